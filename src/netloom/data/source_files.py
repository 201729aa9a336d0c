"""Opening a folder, an archive or a table of labels as a Source."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from netloom.data import listing_memo
from netloom.data.archives import ARCHIVE_SUFFIXES, list_archive
from netloom.data.file_stamps import stamp_of
from netloom.data.label_table import read_label_table
from netloom.data.layout import Arranged, Entry, arrange, arrange_unlabelled, is_junk
from netloom.data.location import FileLocation
from netloom.data.samples import Rejected, Source
from netloom.errors import DataError
from netloom.memory import without_garbage_collection
from netloom.progress import printable

FolderKey = tuple[int, int]  # device and inode


def open_path(path: Path, *, name: str | None = None, kind: str | None = None) -> Source:
    """Open the folder, archive or CSV file at `path`, which exists.

    `name` and `kind` replace those that follow from the path.

    Raises:
        DataError: It is none of these, or no classifier can be trained on what it holds.
    """
    with without_garbage_collection():
        return _open(path, name, kind)


def open_unlabelled(path: Path) -> Source:
    """Open the folder or archive at `path`, which exists, as pictures without classes, in whatever folders they lie.

    Raises:
        DataError: It is neither, or holds fewer than two pictures.
    """
    with without_garbage_collection():
        if path.is_dir():
            form, (entries, rejected) = "folder", list_folder(path)
        else:
            form, (entries, rejected) = "archive", list_archive(path)
        arranged = arrange_unlabelled(entries, where=str(path), strip_common=form == "archive")
    return Source(
        name=_name_of(path),
        kind=form,
        location=str(Path.cwd() / path),
        class_names=arranged.class_names,
        samples=arranged.samples,
        rejected=(*rejected, *arranged.rejected),
    )


def _open(path: Path, name: str | None, kind: str | None) -> Source:
    lower = path.name.casefold()
    rejected: list[Rejected] = []
    if path.is_dir():
        form, (entries, rejected) = "folder", list_folder(path)
        arranged = arrange(entries, where=str(path), strip_common=False)
    elif lower.endswith(ARCHIVE_SUFFIXES):
        form, arranged = "archive", _open_archive(path)
    elif lower.endswith((".csv", ".tsv")):
        form, arranged = "csv", read_label_table(path)
    else:
        raise DataError(
            f"{path} is no source of labelled pictures. Sources are folders, archives "
            f"({', '.join(ARCHIVE_SUFFIXES)}), CSV files and the named sets that "
            "`netloom datasets` lists. Unpack other archives first."
        )
    return Source(
        name=name or _name_of(path),
        kind=kind or form,
        location=str(Path.cwd() / path),
        class_names=arranged.class_names,
        samples=arranged.samples,
        rejected=(*rejected, *arranged.rejected),
    )


def _open_archive(path: Path) -> Arranged:
    known = listing_memo.recall(path)
    if known is not None:
        return known
    stamp = stamp_of(str(path))
    entries, rejected = list_archive(path)
    arranged = arrange(entries, where=str(path), strip_common=True)
    arranged = replace(arranged, rejected=[*rejected, *arranged.rejected])
    listing_memo.remember(path, stamp, arranged)
    return arranged


def _name_of(path: Path) -> str:
    """The folder's or file's name without the suffix of its form."""
    name = path.resolve().name if path.is_dir() else path.name
    suffixes = (*ARCHIVE_SUFFIXES, ".csv", ".tsv")
    ending = max((s for s in suffixes if name.casefold().endswith(s)), key=len, default="")
    stem = name[: len(name) - len(ending)] if path.is_file() else name
    return printable(stem or name)


def list_folder(root: Path) -> tuple[list[Entry], list[Rejected]]:
    """The files in the folder `root`, which exists, and below, without what is hidden; and what is left out, why.

    Links to folders are followed once.
    """
    rejected: list[Rejected] = []
    return list(_walk(str(root), (), frozenset([_key(str(root))]), set(), rejected)), rejected


def _walk(
    folder: str,
    parts: tuple[str, ...],
    above: frozenset[FolderKey],
    linked: set[FolderKey],
    rejected: list[Rejected],
) -> Iterator[Entry]:
    """The files below `folder`, without what is hidden.

    Links to folders are followed, but none into a folder it lies in (`above`), and none twice
    (`linked`), so that no arrangement of links makes this endless.
    """
    try:
        with os.scandir(folder) as found:
            items = [item for item in found if not is_junk(item.name)]
    except OSError as error:
        rejected.append(Rejected(printable("/".join(parts)) or folder, f"folder not readable: {error.strerror}"))
        return
    for item in items:
        below = (*parts, item.name)
        try:
            key = _key(item.path) if _is_folder(item) else None
        except OSError as error:  # gone since it was listed, or no permission to look where a link leads
            rejected.append(Rejected(printable("/".join(below)), f"not readable: {error.strerror}"))
            continue
        if key is None:
            yield Entry(below, FileLocation(item.path))
            continue
        if item.is_symlink():
            if key in above or key in linked:
                rejected.append(Rejected(printable("/".join(below)), "link to a folder read already"))
                continue
            linked.add(key)
        yield from _walk(item.path, below, above | {key}, linked, rejected)


def _is_folder(item: os.DirEntry[str]) -> bool:
    """Whether it is a folder or a link to one; a link that points to itself is not."""
    return Path(item.path).is_dir() if item.is_symlink() else item.is_dir()


def _key(folder: str) -> FolderKey:
    status = Path(folder).stat()
    return status.st_dev, status.st_ino
