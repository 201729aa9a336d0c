"""From what the user names to a Source: a folder, an archive, a table of labels, a named set."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path

from netloom.data.archives import ARCHIVE_SUFFIXES
from netloom.data.layout import OUTSIDE
from netloom.data.named import NAMED_SETS, open_named
from netloom.data.samples import ArrayPictures, Rejected, Sample, Source
from netloom.data.source_files import open_path, open_unlabelled
from netloom.errors import DataError, NoClassesError, did_you_mean
from netloom.files import with_home

__all__ = ["ArrayPictures", "Rejected", "Sample", "Source", "open_pictures", "open_source"]


def open_source(source: str | Path) -> Source:
    """Open labelled pictures without decoding or copying any.

    `source` is a named set (`digits`, `cifar10`; in any case), or a path: a folder
    `CLASS/**` or `{train,validation,test}/CLASS/**` (also training, val, valid, testing; in any
    case), a zip or tar archive of such folders, or a CSV file with the columns image_path, label
    and optionally split, group, weight. A text that is both a named set and a file means the set;
    `./digits` means the file.

    Classes are in the order of their Unicode code points, or by value where all names are integers.

    Raises:
        DataError: There is no such thing, or no classifier can be trained on what it holds.
    """
    if isinstance(source, str) and source.casefold() in NAMED_SETS:
        return open_named(source.casefold())
    return open_path(_existing(source))


def open_pictures(source: str | Path) -> Source:
    """Open pictures that need no labels: what `open_source` takes, or a folder or archive without class folders.

    Where there are classes the source is as `open_source` gives it. Where there are none, or one only, or pictures lie
    beside the folders that would be classes, or part folders beside others, all pictures in it, in whatever folders,
    are of the class `unlabelled`. A note of the source tells what that was decided by, where one may wonder.

    Raises:
        DataError: There is no such thing, or it holds fewer than two pictures.
    """
    try:
        opened = open_source(source)
    except NoClassesError:
        path = _existing(source)
        if not (path.is_dir() or path.name.casefold().endswith(ARCHIVE_SUFFIXES)):
            raise
        return open_unlabelled(path)
    outside = sum(rejected.reason == OUTSIDE for rejected in opened.rejected)
    if not outside or opened.kind not in ("folder", "archive"):
        return opened
    lie = "1 picture lies" if outside == 1 else f"{outside:,} pictures lie"
    note = (
        f"{lie} beside the folders {', '.join(map(repr, opened.class_names[:3]))}"
        f"{' …' if len(opened.class_names) > 3 else ''}, which are therefore not taken for classes: all pictures are "
        "learned from, but those in a folder `test` at the top. If they are classes, and a training on them is to be "
        "tested on pictures that this network has not seen, move what lies beside them."
    )
    return replace(open_unlabelled(_existing(source)), notes=(note,))


def _existing(source: str | Path) -> Path:
    path = with_home(source)
    try:
        there = bool(str(source)) and path.exists()
    except (OSError, ValueError) as error:
        raise DataError(f"{str(source)!r} is no usable path: {error}.") from error
    if not there:
        raise DataError(_nothing_there(source, path))
    return path


def _nothing_there(source: str | Path, path: Path) -> str:
    hint = did_you_mean(str(source), NAMED_SETS)
    if not hint:
        with contextlib.suppress(OSError, ValueError):
            siblings = [str(path.with_name(item.name)) for item in path.parent.iterdir()]
            hint = did_you_mean(str(path), siblings)
    return (
        f"There is no {str(source)!r}: neither a folder, an archive or a CSV file of that name, "
        f"nor a named set ({', '.join(sorted(NAMED_SETS))}).{hint}"
    )
