"""Numbers as files of weights hold them: of which types they are read, and whether all of them are finite."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

# Eight bits and fewer mean nothing without their scales, and torch does not know of all of them what is finite.
_READ = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """Names of the tensors that hold infinities or NaN, as far as their type is one that weights are read from."""
    return [name for name, value in tensors.items() if value.dtype in _READ and not value.isfinite().all()]


def of_other_types(tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> list[str]:
    """Tensors `name (type)` in whose place a network has floating-point numbers, and that hold something else.

    Floating-point numbers of 16, 32 and 64 bits go into one another's place; others into their own type's alone.
    """
    return [
        f"{name} ({str(tensors[name].dtype).removeprefix('torch.')})"
        for name, place in wanted.items()
        if name in tensors and place.is_floating_point() and tensors[name].dtype not in (*_READ, place.dtype)
    ]
