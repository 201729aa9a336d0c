"""Features of pictures on disk, so that no network looks at the same picture twice.

Beside the decoded pictures (`data/cache.py`: one limit, one eviction) lie entries of features. All that determines
features but the picture is a *space*: weights, architecture, scaling, precision. An entry holds some pictures' features
in one space, is never changed, and is named after the pictures in it, so that several processes may add at once.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from netloom.data.cache import build_entry, discard_entry, find_entries
from netloom.errors import DataError

Keys = npt.NDArray[np.uint8]
Features = npt.NDArray[np.float32]

KEY_BYTES = 16
_FILE = "features.safetensors"
# More entries than this of about one size are made one, since each costs a file to open and a search. Sizes are powers
# of eight, so that a row is written again once for each size, not each time that something is added.
_MOST_ENTRIES = 8
_BITS_PER_SIZE = 3
_NO_ROOM = (DataError, OSError, MemoryError)

_logger = logging.getLogger(__name__)


class FeatureCache:
    """The features of one space.

    Args:
        space: Digest of all that determines features but the picture, 32 hexadecimal digits.
    """

    def __init__(self, space: str) -> None:
        if len(space) != 32 or not set(space) <= set("0123456789abcdef"):
            raise ValueError(f"A space is 32 hexadecimal digits, not {space!r}.")
        self._prefix = f"features-{space}-"

    def is_empty(self) -> bool:
        """Whether nothing has been kept in this space, which is known without reading it."""
        return not find_entries(self._prefix)

    def find(self, keys: Keys) -> tuple[Features | None, npt.NDArray[np.bool_]]:
        """Features of pictures, float32 `[n, D]`, and which of them were found, `[n]`; None where none was.

        Rows that were not found are zero. What is damaged is removed and counts as not found.

        Args:
            keys: Of the pictures, uint8 `[n, 16]`.
        """
        found = np.zeros(len(keys), dtype=np.bool_)
        features: Features | None = None
        wanted = _names(keys)
        for entry in find_entries(self._prefix):
            if found.all():
                break
            held = _read(entry)
            if held is None or (features is not None and held[1].shape[1] != features.shape[1]):
                discard_entry(entry)
                continue
            place = {name: row for row, name in enumerate(_names(held[0]))}
            rows = np.fromiter((place.get(name, -1) for name in wanted), dtype=np.int64, count=len(wanted))
            new = (rows >= 0) & ~found
            if features is None and new.any():
                features = np.zeros((len(keys), held[1].shape[1]), dtype=np.float32)
            if features is not None:
                features[new] = held[1][rows[new]]
                found |= new
        return features, found

    def add(self, keys: Keys, features: Features) -> None:
        """Keep features of pictures; where there is no room for them they are not kept, and that is logged.

        Args:
            keys: Of the pictures, uint8 `[n, 16]`.
            features: Float32 `[n, D]`.
        """
        if not len(keys):
            return
        try:
            self._write(keys, features)
        except _NO_ROOM as error:
            _logger.warning("Features are not kept for later trainings: %s", str(error) or "too little memory")
            return
        try:
            self._merge()
        except _NO_ROOM as error:
            _logger.warning("Features stay in many small files: %s", str(error) or "too little memory")

    def _write(self, keys: Keys, features: Features) -> Path:
        keys, features = np.ascontiguousarray(keys), np.ascontiguousarray(features, dtype=np.float32)
        content = save({"pictures": keys, "features": features}, metadata={"digest": _digest(keys, features)})
        name = self._prefix + hashlib.sha256(keys.tobytes()).hexdigest()[:32]

        def fill(folder: Path) -> None:
            (folder / _FILE).write_bytes(content)

        return build_entry(name, needed_bytes=len(content), fill=fill)

    def _merge(self) -> None:
        """Make one entry of many of about a size; what another process adds meanwhile stays beside it."""
        crowd = _of_one_size(find_entries(self._prefix))
        held = [content for entry in crowd if (content := _read(entry)) is not None]
        if not held:
            return
        keys, features = np.concatenate([one for one, _ in held]), np.concatenate([one for _, one in held])
        del held  # as large as what was made of it
        first = np.sort(np.unique(keys, axis=0, return_index=True)[1])
        if len(first) < len(keys):
            keys, features = keys[first], features[first]
        merged = self._write(keys, features)
        for entry in crowd:
            if entry != merged:
                discard_entry(entry)


def _of_one_size(entries: Sequence[Path]) -> list[Path]:
    """The entries of the smallest size of which there are too many; none where there is no such size."""
    by_size: dict[int, list[Path]] = defaultdict(list)
    for entry in entries:
        with contextlib.suppress(OSError):  # gone
            by_size[(entry / _FILE).stat().st_size.bit_length() // _BITS_PER_SIZE].append(entry)
    return next((by_size[size] for size in sorted(by_size) if len(by_size[size]) > _MOST_ENTRIES), [])


def _names(keys: Keys) -> list[bytes]:
    content = np.ascontiguousarray(keys).tobytes()
    return [content[start : start + KEY_BYTES] for start in range(0, len(content), KEY_BYTES)]


def _digest(keys: Keys, features: Features) -> str:
    digest = hashlib.sha256(repr(features.shape).encode())
    digest.update(keys.data)
    digest.update(features.data)
    return digest.hexdigest()


def _read(entry: Path) -> tuple[Keys, Features] | None:
    """Keys and features of an entry, or None where it is gone or not what was written."""
    try:
        with safe_open(entry / _FILE, "np") as file:
            expected = (file.metadata() or {})["digest"]
            keys, features = file.get_tensor("pictures"), file.get_tensor("features")
    except (SafetensorError, OSError, KeyError, ValueError, TypeError):
        return None
    plausible = keys.dtype == np.uint8 and features.dtype == np.float32 and keys.ndim == features.ndim == 2
    if not plausible or keys.shape != (len(features), KEY_BYTES) or _digest(keys, features) != expected:
        return None
    return keys, features
