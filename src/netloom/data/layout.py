"""From a list of files to labelled samples: which folder is a class, and which is a part."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import NamedTuple

from netloom.data.location import Location
from netloom.data.samples import Rejected, Sample
from netloom.errors import DataError, NoClassesError
from netloom.progress import printable

PART_NAMES = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
    "testing": "test",
}
"""Folder names and CSV values, in any case, and the parts they mean."""

UNLABELLED = "unlabelled"
"""The one class of pictures without classes."""
OUTSIDE = "outside the class folders"
"""Why pictures beside class folders are left out."""

_JUNK = {"thumbs.db", "desktop.ini", "__macosx"}
_PICTURE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"}
_ARRANGEMENT = (
    "Arrange the pictures as CLASS/picture.jpg, one folder for each class, or as "
    "train/CLASS/picture.jpg, validation/CLASS/… and test/CLASS/…, or list them in a CSV file "
    "with the columns image_path and label."
)


class Entry(NamedTuple):
    """A file below a root: the components of its relative path, and where its bytes are."""

    parts: tuple[str, ...]
    location: Location


@dataclass(frozen=True)
class Arranged:
    """Labelled samples with the class names they index."""

    class_names: tuple[str, ...]
    samples: list[Sample]
    rejected: list[Rejected]


def is_junk(name: str) -> bool:
    """Whether a file or folder is hidden, or one that systems leave behind."""
    return name.startswith(".") or name.casefold() in _JUNK


@functools.lru_cache(maxsize=4096)
def _in_junk(folders: tuple[str, ...]) -> bool:
    """Whether one of the folders is junk; cached, since thousands of files share theirs."""
    return any(map(is_junk, folders))


def order_classes(names: Iterable[str]) -> tuple[str, ...]:
    """Distinct class names by Unicode code point; by value if all of them are integers."""
    distinct = set(names)
    if all(re.fullmatch("-?[0-9]+", name) for name in distinct):
        return tuple(sorted(distinct, key=lambda name: (int(name), name)))
    return tuple(sorted(distinct))


def arrange(entries: Sequence[Entry], *, where: str, strip_common: bool) -> Arranged:
    """Label files by their folders: `CLASS/**`, or `PART/CLASS/**` (`PART_NAMES`, in any case).

    `where` names the root in messages. `strip_common` takes off folders that hold everything, as
    archives often have them.

    Raises:
        NoClassesError: There are no class folders, fewer than two classes or pictures, or part folders beside others.
        DataError: There are no files, or a class that the training part lacks.
    """
    entries = [entry for entry in entries if not (is_junk(entry.parts[-1]) or _in_junk(entry.parts[:-1]))]
    if not entries:
        raise DataError(f"{where} holds no files. {_ARRANGEMENT}")
    if strip_common:
        entries = _strip_common_folders(entries)
    depth = 1 if _has_part_folders(entries, where) else 0
    inside = [entry for entry in entries if len(entry.parts) > depth + 1]
    loose = [entry for entry in entries if len(entry.parts) <= depth + 1]
    if not inside:
        raise NoClassesError(f"{where} holds {_counted(loose)} but no class folders. {_ARRANGEMENT}")
    by_id = {_id(entry): entry for entry in reversed(inside)}
    classes = {folder: printable(folder) for folder in {entry.parts[depth] for entry in inside}}
    names = order_classes(classes.values())
    number = {folder: names.index(name) for folder, name in classes.items()}
    samples = [
        Sample(
            id=name,
            label=number[entry.parts[depth]],
            split=PART_NAMES[entry.parts[0].casefold()] if depth else None,
            location=entry.location,
        )
        for name, entry in sorted(by_id.items())
    ]
    check_classes(names, samples, where=where, hint=_nested_hint(inside, depth, names))
    return Arranged(names, samples, _left_out(inside, by_id, loose))


def arrange_unlabelled(entries: Sequence[Entry], *, where: str, strip_common: bool) -> Arranged:
    """All pictures, in whatever folders, as one class.

    Folders at the top may be parts (`PART_NAMES`); what lies beside a part is for training. `where` and
    `strip_common` are those of `arrange`.

    Raises:
        DataError: There are fewer than two pictures.
    """
    found = [
        entry
        for entry in entries
        if not (is_junk(entry.parts[-1]) or _in_junk(entry.parts[:-1])) and _is_picture(entry)
    ]
    if strip_common:
        found = _strip_common_folders(found)
    by_id = {_id(entry): entry for entry in reversed(found)}
    if len(by_id) < 2:
        raise DataError(
            f"{where} holds {_counted(found) if found else 'no pictures'}; to learn from pictures without classes it "
            f"takes many of them ({', '.join(sorted(_PICTURE_SUFFIXES))})."
        )
    parts = {name: PART_NAMES.get(entry.parts[0].casefold(), "train") for name, entry in by_id.items()}
    has_parts = set(parts.values()) != {"train"}
    samples = [
        Sample(id=name, label=0, split=parts[name] if has_parts else None, location=entry.location)
        for name, entry in sorted(by_id.items())
    ]
    return Arranged((UNLABELLED,), samples, _left_out(found, by_id, ()))


def check_classes(names: Sequence[str], samples: Sequence[Sample], *, where: str, hint: str = "") -> None:
    """Refuse what no classifier can be trained on.

    Raises:
        NoClassesError: There are fewer than two pictures or classes.
        DataError: There are parts of which the training part is missing or lacks a class.
    """
    if len(samples) < 2:
        raise NoClassesError(f"{where} holds one picture; a classifier needs some of each class.{hint}")
    if len(names) < 2:
        raise NoClassesError(f"{where} holds one class only, {names[0]!r}; a classifier needs at least two.{hint}")
    parts = {sample.split for sample in samples}
    if parts <= {None, "train"}:
        return
    if "train" not in parts:
        raise DataError(
            f"{where} has a {' and a '.join(sorted(map(str, parts)))} part but no train part; "
            "add one, or leave the parts out and they will be drawn."
        )
    trained = {sample.label for sample in samples if sample.split == "train"}
    unknown = [name for label, name in enumerate(names) if label not in trained]
    if unknown:
        raise DataError(
            f"{where} has no training pictures of {', '.join(map(repr, unknown[:5]))}"
            f"{' and others' if len(unknown) > 5 else ''}, which other parts hold. Add some, or "
            "check the spelling of the class folders."
        )


def _strip_common_folders(entries: list[Entry]) -> list[Entry]:
    """Take off top folders that hold all class folders, as often as there is one.

    Files beside such a folder (a README, a licence) stay as they are, outside the class folders.
    """
    while True:
        tops = {entry.parts[0] for entry in entries if len(entry.parts) > 1}
        has_classes_below = any(len(entry.parts) > 2 for entry in entries)
        if len(tops) != 1 or not has_classes_below or min(tops).casefold() in PART_NAMES:
            return entries
        entries = [entry._replace(parts=entry.parts[1:]) if len(entry.parts) > 1 else entry for entry in entries]


def _has_part_folders(entries: Sequence[Entry], where: str) -> bool:
    tops = {entry.parts[0] for entry in entries if len(entry.parts) > 1}
    parts = sorted(top for top in tops if top.casefold() in PART_NAMES)
    others = sorted(tops.difference(parts))
    if parts and others:
        raise NoClassesError(
            f"{where} mixes the part folders {', '.join(map(repr, parts))} with others: "
            f"{', '.join(repr(printable(other)) for other in others[:5])}"
            f"{' …' if len(others) > 5 else ''}. Move every class folder into a part folder, or "
            "rename the part folders if they are classes."
        )
    return bool(parts)


def _left_out(inside: Sequence[Entry], by_id: Mapping[str, Entry], loose: Sequence[Entry]) -> list[Rejected]:
    alone = len(by_id) == len(inside)
    collisions = [] if alone else [entry for entry in inside if by_id[_id(entry)] is not entry]
    return [
        *(Rejected(_id(entry), "another file has the same name") for entry in collisions),
        *(Rejected(_id(entry), OUTSIDE) for entry in loose if _is_picture(entry)),
    ]


def _nested_hint(entries: Sequence[Entry], depth: int, names: Sequence[str]) -> str:
    below = {entry.parts[depth + 1] for entry in entries if len(entry.parts) > depth + 2}
    if len(names) != 1 or len(below) < 2:
        return ""
    folders = "/".join(map(printable, entries[0].parts[: depth + 1]))
    return f" Folders lie inside it: if those are the classes, name {folders!r} as the source."


def _id(entry: Entry) -> str:
    return printable("/".join(entry.parts))


def _is_picture(entry: Entry) -> bool:
    return PurePosixPath(entry.parts[-1]).suffix.casefold() in _PICTURE_SUFFIXES


def _counted(entries: Sequence[Entry]) -> str:
    pictures = sum(map(_is_picture, entries))
    noun = "picture" if pictures else "file"
    count = pictures or len(entries)
    return f"{count:,} {noun}{'s' if count != 1 else ''}"
