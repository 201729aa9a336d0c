"""Digests of pictures by content; what was hashed before and has not changed is not read again."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt

from netloom.data.cache import cache_directory
from netloom.errors import NetloomError
from netloom.files import read_json, write_atomically

# A file changed right after it was hashed can have the same time stamp, since clocks of file
# systems tick coarsely (FAT: 2 s). Younger files are hashed again, as git does ("racy git").
_YOUNG_NANOSECONDS = 2_500_000_000
_CHUNK_BYTES = 1 << 20

Stamp = list[int]  # size, mtime_ns, ctime_ns, inode


def fingerprint_arrays(ids: Sequence[str], images: npt.NDArray[np.uint8]) -> str:
    """Digest of `ids` and the pictures `[N, H, W, C]` beside them: 32 hexadecimal digits."""
    digest = hashlib.blake2b(digest_size=16)
    digest.update(repr(images.shape).encode())
    digest.update(np.ascontiguousarray(images).data)
    digest.update("\0".join(ids).encode())
    return digest.hexdigest()


def hash_pictures(images: npt.NDArray[np.uint8]) -> list[str]:
    """Digest of each picture of `[N, H, W, C]`: 32 hexadecimal digits, equal for equal pixels."""
    return [hashlib.blake2b(picture.tobytes(), digest_size=16).hexdigest() for picture in images]


def fingerprint_files(ids: Sequence[str], files: Sequence[str], *, memo: str) -> str:
    """Digest of `ids` and the content of the file behind each: 32 hexadecimal digits.

    Several ids may lie in one file (an archive), which is hashed once. `memo` names what the
    hashes are remembered for.
    """
    content = _content_hashes(dict.fromkeys(files), _memo_path(memo))
    digest = hashlib.blake2b(digest_size=16)
    for name, file in zip(ids, files, strict=True):
        digest.update(f"{name}\0{content[file]}\0".encode())
    return digest.hexdigest()


def _content_hashes(files: Iterable[str], memo: Path) -> dict[str, str]:
    known = _read_memo(memo)
    stamps = {file: _stamp(file) for file in files}
    hashes = {file: known[file][1] for file, stamp in stamps.items() if file in known and known[file][0] == stamp}
    changed = [file for file in stamps if file not in hashes]
    if changed:
        with ThreadPoolExecutor(min(8, (os.cpu_count() or 1) + 2)) as threads:
            hashes.update(zip(changed, threads.map(_hash_file, changed), strict=True))
        _write_memo(memo, stamps, hashes)
    return hashes


def _stamp(file: str) -> Stamp | None:
    """What changes when the file does; None for what is not a regular file, or not there."""
    try:
        status = os.stat(file)  # noqa: PTH116 - half the time of Path.stat over 60,000 files
    except (OSError, ValueError):
        return None
    if not stat.S_ISREG(status.st_mode):
        return None
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def _hash_file(file: str) -> str:
    if _stamp(file) is None:
        return "not a file"
    digest = hashlib.blake2b(digest_size=16)
    try:
        with Path(file).open("rb", buffering=0) as stream:
            while chunk := stream.read(_CHUNK_BYTES):
                digest.update(chunk)
    except OSError:
        return "unreadable"
    return digest.hexdigest()


def _memo_path(name: str) -> Path:
    key = hashlib.blake2b(os.fsencode(name), digest_size=16).hexdigest()
    return cache_directory() / "hashes" / f"{key}.json"


def _read_memo(memo: Path) -> dict[str, tuple[Stamp, str]]:
    """Remembered stamp and hash per file; empty where there is no memo or it is damaged."""
    try:
        return {file: (stamp, str(digest)) for file, (stamp, digest) in read_json(memo).items()}
    except (NetloomError, AttributeError, TypeError, ValueError):
        return {}


def _write_memo(memo: Path, stamps: dict[str, Stamp | None], hashes: dict[str, str]) -> None:
    newest = time.time_ns() - _YOUNG_NANOSECONDS
    settled = {
        file: (stamp, hashes[file])
        for file, stamp in stamps.items()
        if stamp is not None and max(stamp[1], stamp[2]) < newest
    }
    # A memo that cannot be written costs the next start some time, and nothing else.
    with contextlib.suppress(NetloomError, OSError):
        memo.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(memo, json.dumps(settled))
