"""Fitted linear classifiers on disk, so that none is fitted twice to the same features of the same pictures.

They lie beside the decoded pictures and the features (`data/cache.py`: one limit, one eviction), each an entry of its
own, which is never changed. What it is found by must name all that determines its bits.
"""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from netloom.data.cache import build_entry, discard_entry, find_entry
from netloom.errors import DataError

_FILE = "classifier.safetensors"

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class KeptClassifier:
    """A linear classifier.

    Attributes:
        weight: Float32 `[K, D]`.
        bias: Float32 `[K]`.
        how: How what it leaves open was chosen, a sentence for people.
    """

    weight: npt.NDArray[np.float32]
    bias: npt.NDArray[np.float32]
    how: str


def find_classifier(key: str, *, shape: tuple[int, int]) -> KeptClassifier | None:
    """The classifier of that key, None if there is none; one that is damaged is removed.

    Args:
        key: 32 hexadecimal digits.
        shape: Of its weight, (K, D).
    """
    entry = find_entry(_name(key))
    if entry is None:
        return None
    found = _read(entry)
    if found is None or found.weight.shape != shape:
        discard_entry(entry)
        return None
    return found


def keep_classifier(key: str, classifier: KeptClassifier) -> None:
    """Keep a classifier; where there is no room for it, it is not kept, and that is logged."""
    weight, bias = np.ascontiguousarray(classifier.weight), np.ascontiguousarray(classifier.bias)
    texts = {"how": classifier.how, "digest": _digest(weight, bias, classifier.how)}
    content = save({"weight": weight, "bias": bias}, metadata=texts)

    def fill(folder: Path) -> None:
        (folder / _FILE).write_bytes(content)

    try:
        build_entry(_name(key), needed_bytes=len(content), fill=fill)
    except (DataError, OSError, MemoryError) as error:
        _logger.warning("The start of a head is not kept for later trainings: %s", str(error) or "too little memory")


def _name(key: str) -> str:
    if len(key) != 32 or not set(key) <= set("0123456789abcdef"):
        raise ValueError(f"A key is 32 hexadecimal digits, not {key!r}.")
    return f"classifier-{key}"


def _digest(weight: npt.NDArray[np.float32], bias: npt.NDArray[np.float32], how: str) -> str:
    digest = hashlib.sha256(repr((weight.shape, bias.shape, how)).encode())
    digest.update(weight.data)
    digest.update(bias.data)
    return digest.hexdigest()


def _read(entry: Path) -> KeptClassifier | None:
    """What an entry holds, or None where it is gone or not what was written."""
    try:
        with safe_open(entry / _FILE, "np") as file:
            texts = file.metadata() or {}
            how, expected = texts["how"], texts["digest"]
            weight, bias = file.get_tensor("weight"), file.get_tensor("bias")
    except (SafetensorError, OSError, KeyError, ValueError, TypeError):
        return None
    plausible = weight.dtype == bias.dtype == np.float32 and weight.ndim == 2 and bias.shape == weight.shape[:1]
    if not plausible or _digest(weight, bias, how) != expected:
        return None
    return KeptClassifier(weight, bias, how)
