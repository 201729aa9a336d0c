"""Whether two models have the same gradients and buffers but for rounding: the same step, taken in two ways."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

# Relative difference of whole gradients that rounding explains, in the same operations and in others: those of the
# model's own code and those captured of it (batch normalization, ReLU and pooling) round elsewhere.
ROUNDING = {"float32": 1e-3, "bfloat16": 5e-2}
SAME_FORMULA = {"float32": 2e-2, "bfloat16": 2e-1}
_SAME_STATISTICS = 5e-2


def gradients_agree(mine: nn.Module, other: nn.Module, tolerance: float) -> bool:
    """Whether two models of one architecture have the same gradients, taken together as one vector."""
    pairs = [(a.grad, b.grad) for a, b in zip(mine.parameters(), other.parameters(), strict=True)]
    if any((a is None) != (b is None) for a, b in pairs):
        return False
    return _agree([(a, b) for a, b in pairs if a is not None and b is not None], tolerance)


def buffers_agree(mine: nn.Module, other: nn.Module) -> bool:
    """Whether two models of one architecture have the same buffers: equal counts, and statistics but for rounding."""
    a, b = dict(mine.named_buffers()), dict(other.named_buffers())
    if {name: value.shape for name, value in a.items()} != {name: value.shape for name, value in b.items()}:
        return False
    pairs = [(a[name], value) for name, value in b.items()]
    counted = all(torch.equal(x, y) for x, y in pairs if not y.is_floating_point())
    return counted and _agree([(x, y) for x, y in pairs if y.is_floating_point()], _SAME_STATISTICS)


def _agree(pairs: Sequence[tuple[torch.Tensor, torch.Tensor]], tolerance: float) -> bool:
    """Whether tensors are the same but for rounding, taken together as one vector; infinities are equal or not."""
    difference = math.sqrt(sum(float(torch.where(a == b, 0.0, a - b).square().sum()) for a, b in pairs))
    size = math.sqrt(sum(float(torch.where(b.isinf(), 0.0, b).square().sum()) for _, b in pairs))
    return difference <= tolerance * size
