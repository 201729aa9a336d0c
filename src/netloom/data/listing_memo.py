"""Remembering what an unchanged archive of many pictures holds: listing 60,000 members takes a second."""

from __future__ import annotations

from dataclasses import astuple
from pathlib import Path
from typing import Any

from netloom.data.file_stamps import Stamp, is_settled, memo_path, read_memo, stamp_of, write_memo
from netloom.data.layout import Arranged
from netloom.data.location import Location, StreamedTarMember, TarMember, ZipMember
from netloom.data.samples import Rejected, Sample

_VERSION = 1  # to be raised whenever the same archive would be listed or arranged otherwise
_FEWEST_SAMPLES = 2000  # fewer are listed as fast as the memo is read
_MEMBERS: dict[str, type[ZipMember | TarMember | StreamedTarMember]] = {
    kind.__name__: kind for kind in (ZipMember, TarMember, StreamedTarMember)
}


def recall(archive: Path) -> Arranged | None:
    """What `remember` was last given for this archive; None if it has changed since, or nothing is known."""
    memo = read_memo(_memo(archive))
    try:
        if memo is None or memo["version"] != _VERSION or memo["stamp"] != stamp_of(str(archive)):
            return None
        locations = _locations(str(archive), memo["kind"], memo["members"])
        columns = zip(memo["ids"], memo["labels"], memo["splits"], locations, strict=True)
        samples = [Sample(id=i, label=label, split=split, location=place) for i, label, split, place in columns]
        rejected = [Rejected(path, reason) for path, reason in memo["rejected"]]
        return Arranged(tuple(memo["class_names"]), samples, rejected)
    except (KeyError, TypeError, ValueError):
        return None


def remember(archive: Path, stamp: Stamp | None, arranged: Arranged) -> None:
    """Note what the archive holds, if that is much and the archive is still the one stamped before it was listed."""
    samples = arranged.samples
    kinds = {type(sample.location) for sample in samples}
    if len(samples) < _FEWEST_SAMPLES or len(kinds) != 1 or not is_settled(stamp) or stamp != stamp_of(str(archive)):
        return
    write_memo(
        _memo(archive),
        {
            "version": _VERSION,
            "stamp": stamp,
            "class_names": arranged.class_names,
            "ids": [sample.id for sample in samples],
            "labels": [sample.label for sample in samples],
            "splits": [sample.split for sample in samples],
            "kind": kinds.pop().__name__,
            "members": [_fields(sample.location) for sample in samples],
            "rejected": [(rejected.path, rejected.reason) for rejected in arranged.rejected],
        },
    )


def _memo(archive: Path) -> Path:
    return memo_path("listings", str(Path.cwd() / archive))


def _fields(location: Location | None) -> list[Any]:
    """The fields of an archive's member without the archive."""
    assert location is not None
    return list(astuple(location))[1:]


def _locations(archive: str, kind: str, members: list[list[Any]]) -> list[Location]:
    make = _MEMBERS[kind]
    return [make(archive, *fields) for fields in members]
