"""Whether a file is still the one that was read before, told without reading it, and notes about it that last."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
import time
from pathlib import Path
from typing import Any

from netloom.data.cache import cache_directory
from netloom.errors import NetloomError
from netloom.files import read_json, write_atomically

# A file changed right after it was read can have the same time stamp, since clocks of file systems
# tick coarsely (FAT: 2 s). Younger files are read again, as git does ("racy git").
_YOUNG_NANOSECONDS = 2_500_000_000

Stamp = list[int]  # size, mtime_ns, ctime_ns, inode


def stamp_of(file: str) -> Stamp | None:
    """What changes when the file does; None for what is not a regular file, or not there."""
    try:
        status = os.stat(file)  # noqa: PTH116 - half the time of Path.stat over 60,000 files
    except (OSError, ValueError):
        return None
    if not stat.S_ISREG(status.st_mode):
        return None
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def is_settled(stamp: Stamp | None) -> bool:
    """Whether the file is old enough that any later change shows in its stamp."""
    return stamp is not None and max(stamp[1], stamp[2]) < time.time_ns() - _YOUNG_NANOSECONDS


def memo_path(folder: str, name: str) -> Path:
    """Where the cache keeps, in `folder` of it, what is remembered about `name`."""
    key = hashlib.blake2b(os.fsencode(name), digest_size=16).hexdigest()
    return cache_directory() / folder / f"{key}.json"


def read_memo(memo: Path) -> Any:
    """What `write_memo` wrote; None where there is none or it is damaged."""
    try:
        return read_json(memo)
    except NetloomError:
        return None


def write_memo(memo: Path, value: Any) -> None:
    """Remember JSON values; a memo that cannot be written costs the next start some time, and nothing else."""
    with contextlib.suppress(NetloomError, OSError):
        memo.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(memo, json.dumps(value))
