"""Where decoded pictures are kept between runs: a folder of entries, the oldest of which give way.

An entry is a folder that is made under a temporary name and renamed once it is complete, so that
nobody ever sees half of one, and several processes may make the same one at once.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import logging
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import platformdirs

from netloom.errors import DataError
from netloom.files import with_home

DEFAULT_LIMIT_GB = 20.0
_FREE_BESIDE_BYTES = 10**9
"""What stays free on the disk beside a large entry: whatever fills a disk to its end breaks more than itself."""

_STALE_AFTER_SECONDS = 24 * 3600
_PARTIAL_SUFFIX = ".partial"
_REFUSALS = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.ENOENT}

_logger = logging.getLogger(__name__)
_temporary_folders: dict[Path, Path] = {}  # what replaces a cache folder that cannot be written
_in_use: set[Path] = set()


def cache_directory() -> Path:
    """`$NETLOOM_CACHE`, else the user's cache folder of this system; it need not exist yet."""
    chosen = os.environ.get("NETLOOM_CACHE")
    return with_home(chosen) if chosen else Path(platformdirs.user_cache_dir("netloom"))


def cache_limit_bytes() -> int:
    """How much all entries may take together: `$NETLOOM_CACHE_LIMIT_GB` (10^9 bytes), else 20.

    Raises:
        DataError: The variable is set to something that is not a positive number.
    """
    text = os.environ.get("NETLOOM_CACHE_LIMIT_GB", str(DEFAULT_LIMIT_GB))
    try:
        limit_gb = float(text)
    except ValueError:
        limit_gb = 0.0
    if not 0 < limit_gb < float("inf"):
        raise DataError(f"NETLOOM_CACHE_LIMIT_GB must be a positive number of gigabytes, not {text!r}.")
    return int(limit_gb * 1e9)


def find_entry(key: str) -> Path | None:
    """The complete entry of that key, marked as used just now; None if there is none."""
    wanted = _entries_folder()
    for folder in (wanted, _temporary_folders.get(wanted)):
        if folder is not None and (folder / key).is_dir():
            with contextlib.suppress(OSError):  # a read-only cache is still worth reading
                os.utime(folder / key)
            _in_use.add(folder / key)
            return folder / key
    return None


def find_entries(prefix: str) -> list[Path]:
    """The complete entries whose keys begin so, sorted by key, each marked as used just now."""
    wanted = _entries_folder()
    folders = [folder for folder in (wanted, _temporary_folders.get(wanted)) if folder is not None and folder.is_dir()]
    keys = {path.name for folder in folders for path in folder.glob(f"{prefix}*")}
    return [entry for key in sorted(keys) if (entry := find_entry(key)) is not None]


def build_entry(key: str, *, needed_bytes: int, fill: Callable[[Path], None]) -> Path:
    """Make the entry of that key: `fill` writes files into the empty folder it is given.

    Entries used longest ago are removed first where the limit or the room on the disk asks for it,
    never one that this process has found or built. (Another process that has an entry's files open or mapped keeps
    them on POSIX, and keeps them from being removed on Windows.) Where the cache folder cannot be
    written, a temporary one takes its place until this process ends.

    Raises:
        DataError: The disk is full, or would be but for a gigabyte (or as much as the entry takes), or the system
            refuses the entry otherwise.
    """
    folder = _writable_folder(needed_bytes)
    partial = folder / f".{key}-{uuid.uuid4().hex}{_PARTIAL_SUFFIX}"
    try:
        _remove_stale(folder)
        free_bytes = _make_room(folder, needed_bytes)
        if free_bytes < needed_bytes + _free_beside(needed_bytes):
            raise _disk_full(folder, needed_bytes)
        partial.mkdir()
        fill(partial)
        _move_into_place(partial, folder / key)
    except OSError as error:
        raise _refusal(folder, needed_bytes, error) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    _in_use.add(folder / key)
    return folder / key


def outlives_process() -> bool:
    """Whether entries are kept when this process ends: the cache folder can be written.

    Raises:
        DataError: The disk is full or fails.
    """
    return _writable_folder(0) == _entries_folder()


def discard_entry(entry: Path) -> None:
    """Remove an entry; it disappears at once as a whole."""
    doomed = entry.with_name(f".{entry.name}-{uuid.uuid4().hex}{_PARTIAL_SUFFIX}")
    with contextlib.suppress(OSError):  # another process was faster, or has it open on Windows
        entry.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)
    _in_use.discard(entry)


def _entries_folder() -> Path:
    return cache_directory() / "pictures"


def _writable_folder(needed_bytes: int) -> Path:
    folder = _entries_folder()
    if folder in _temporary_folders:
        return _temporary_folders[folder]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        if error.errno not in _REFUSALS:
            raise _refusal(folder, needed_bytes, error) from error
        replacement = Path(tempfile.mkdtemp(prefix="netloom-"))
        atexit.register(shutil.rmtree, replacement, ignore_errors=True)
        _temporary_folders[folder] = replacement
        _logger.warning(
            "The cache folder %s cannot be written (%s); decoded pictures are kept in %s until"
            " this run ends. Set NETLOOM_CACHE to a folder that can be written.",
            folder,
            error.strerror,
            replacement,
        )
        return replacement


def _move_into_place(partial: Path, entry: Path) -> None:
    try:
        partial.rename(entry)
    except OSError:
        if not entry.is_dir():  # otherwise another process made the same entry meanwhile
            raise


def _remove_stale(folder: Path) -> None:
    """Remove what killed processes left behind, once nobody can be at it any more."""
    for partial in folder.glob(f".*{_PARTIAL_SUFFIX}"):
        with contextlib.suppress(OSError):  # it may be gone by now
            newest = max(path.stat().st_mtime for path in (partial, *partial.iterdir()))
            if time.time() - newest > _STALE_AFTER_SECONDS:
                shutil.rmtree(partial, ignore_errors=True)


def _free_beside(needed_bytes: int) -> int:
    return min(_FREE_BESIDE_BYTES, needed_bytes)


def _make_room(folder: Path, needed_bytes: int) -> int:
    """Remove old entries until the limit and the disk allow for a new one; the bytes that are free then."""
    entries = []
    for entry in folder.iterdir():
        if not entry.name.startswith("."):
            with contextlib.suppress(OSError):  # as above
                n_bytes = sum(path.stat().st_size for path in entry.iterdir())
                entries.append((entry.stat().st_mtime, n_bytes, entry))
    over_limit = sum(n_bytes for _, n_bytes, _ in entries) + needed_bytes - cache_limit_bytes()
    lacking = needed_bytes + _free_beside(needed_bytes) - shutil.disk_usage(folder).free
    excess = max(over_limit, lacking)
    for _, n_bytes, entry in sorted(entries):
        if excess <= 0:
            break
        if entry not in _in_use:
            discard_entry(entry)
            excess -= n_bytes
    return shutil.disk_usage(folder).free


def _refusal(folder: Path, needed_bytes: int, error: OSError) -> DataError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return _disk_full(folder, needed_bytes)
    return DataError(
        f"The decoded pictures cannot be kept in {folder}: {error.strerror or error}. Try again, or set NETLOOM_CACHE "
        "to another folder."
    )


def _disk_full(folder: Path, needed_bytes: int) -> DataError:
    free = ""
    with contextlib.suppress(OSError):
        free = f", on a disk with {shutil.disk_usage(folder).free:,} bytes free"
    beside = _free_beside(needed_bytes)
    return DataError(
        f"The disk is full: the decoded pictures need {needed_bytes:,} bytes in {folder}{free}, and {beside:,} more are"
        " left free. Free some space, make the pictures smaller (image_size), or set NETLOOM_CACHE to a folder on a"
        " disk that has it."
    )
