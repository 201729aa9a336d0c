"""Random changes of training pictures, drawn per sample and applied to a whole batch on its device.

`spec.py` says what is asked for and needs no torch; `augmenter.py` draws and applies it;
`mixing.py` mixes the pictures of a batch with one another; `geometry.py`, `colour.py` and
`policies.py` hold the operations.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from netloom.data.augment.augmenter import AugmentationParameters, Augmenter
    from netloom.data.augment.mixing import mix_batch
    from netloom.data.augment.spec import AugmentationSpec

__all__ = ["AugmentationParameters", "AugmentationSpec", "Augmenter", "mix_batch"]

_HOMES = {
    "AugmentationParameters": "augmenter",
    "AugmentationSpec": "spec",
    "Augmenter": "augmenter",
    "mix_batch": "mixing",
}


def __getattr__(name: str) -> Any:
    """Import on first use, so that a recipe can be checked without importing torch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
