"""Digests of pictures by content; what was hashed before and has not changed is not read again."""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt

from netloom.data.file_stamps import Stamp, is_settled, memo_path, read_memo, stamp_of, write_memo

OF_PIXELS = "pixels:"
"""Begins the digests of pixels. Those of files are others for the same picture, which only this tells."""

_CHUNK_BYTES = 1 << 20
_FILES_PER_TASK = 64
_NOT_A_FILE, _UNREADABLE = "not a file", "unreadable"  # in place of a file's hash


def fingerprint_arrays(ids: Sequence[str], images: npt.NDArray[np.uint8]) -> str:
    """Digest of `ids` and the pictures `[N, H, W, C]` beside them: 32 hexadecimal digits."""
    digest = hashlib.blake2b(digest_size=16)
    digest.update(repr(images.shape).encode())
    digest.update(np.ascontiguousarray(images).data)
    digest.update("\0".join(ids).encode())
    return digest.hexdigest()


def hash_pictures(images: npt.NDArray[np.uint8]) -> list[str]:
    """Digest of each picture of `[N, H, W, C]`: `OF_PIXELS` and 32 hexadecimal digits, equal for equal pixels."""
    return [OF_PIXELS + hashlib.blake2b(picture.tobytes(), digest_size=16).hexdigest() for picture in images]


def fingerprint_files(ids: Sequence[str], files: Sequence[str], *, memo: str) -> str:
    """Digest of `ids` and the content of the file behind each: 32 hexadecimal digits.

    Several ids may lie in one file (an archive), which is hashed once. `memo` names what the
    hashes are remembered for.
    """
    content = _content_hashes(dict.fromkeys(files), memo_path("hashes", memo))
    digest = hashlib.blake2b(digest_size=16)
    for name, file in zip(ids, files, strict=True):
        digest.update(f"{name}\0{content[file]}\0".encode())
    return digest.hexdigest()


def _content_hashes(files: Iterable[str], memo: Path) -> dict[str, str]:
    known = _read_hashes(memo)
    stamps = {file: stamp_of(file) for file in files}
    hashes = {file: known[file][1] for file, stamp in stamps.items() if file in known and known[file][0] == stamp}
    changed = [file for file in stamps if file not in hashes]
    if changed:
        # Several files of a slow disk at once, in portions: a task for each small file takes four times the time.
        portions = [changed[start : start + _FILES_PER_TASK] for start in range(0, len(changed), _FILES_PER_TASK)]
        with ThreadPoolExecutor(min(8, (os.cpu_count() or 1) + 2)) as threads:
            hashed = itertools.chain.from_iterable(threads.map(_hash_files, portions))
            hashes.update(zip(changed, hashed, strict=True))
        _write_hashes(memo, stamps, hashes)
    return hashes


def _hash_files(files: Sequence[str]) -> list[str]:
    return [_hash_file(file) for file in files]


def _hash_file(file: str) -> str:
    stamp = stamp_of(file)
    if stamp is None:
        return _NOT_A_FILE
    digest = hashlib.blake2b(digest_size=16)
    n_chunk = min(stamp[0] + 1, _CHUNK_BYTES)
    try:
        # Without a file object around it, which takes as long as reading and hashing a small file.
        descriptor = os.open(file, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        try:
            while chunk := os.read(descriptor, n_chunk):
                digest.update(chunk)
        finally:
            os.close(descriptor)
    except OSError:
        return _UNREADABLE
    return digest.hexdigest()


def _read_hashes(memo: Path) -> dict[str, tuple[Stamp, str]]:
    """Remembered stamp and hash per file; empty where there is no memo or it is damaged.

    That a file could not be read says nothing of its content, and no stamp shows when it can be read again.
    """
    try:
        known = {file: (stamp, str(digest)) for file, (stamp, digest) in read_memo(memo).items()}
        return {file: one for file, one in known.items() if one[1] not in (_NOT_A_FILE, _UNREADABLE)}
    except (AttributeError, TypeError, ValueError):
        return {}


def _write_hashes(memo: Path, stamps: dict[str, Stamp | None], hashes: dict[str, str]) -> None:
    write_memo(memo, {file: (stamp, hashes[file]) for file, stamp in stamps.items() if is_settled(stamp)})
