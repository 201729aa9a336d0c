"""Penalties on weights, added to the gradient directly."""

from __future__ import annotations

import torch
from torch import nn

from netloom.training.optim import is_weight


class WeightPenalty:
    """`l1 * sum|w| + l2 * sum(w^2)` over the kernels of a model, as Keras' kernel regularizers define it.

    The gradient, `l1 * sign(w) + 2 * l2 * w`, is added after the backward pass in a few batched operations, which
    equals adding the penalty to the loss and costs no graph. Biases and norms are not penalized.

    Args:
        model: The network; parameters that are frozen are left out.
        l1: Coefficient of the absolute values, at least 0.
        l2: Coefficient of the squares, at least 0.
    """

    def __init__(self, model: nn.Module, *, l1: float = 0.0, l2: float = 0.0) -> None:
        self.l1, self.l2 = l1, l2
        self.weights: list[torch.Tensor] = [
            p for n, p in model.named_parameters() if is_weight(n, p) and p.requires_grad
        ]

    @torch.no_grad()
    def add_gradient(self) -> None:
        """Add the penalty's gradient to the gradients that are there."""
        weights = [w for w in self.weights if w.grad is not None]
        gradients = [w.grad for w in weights if w.grad is not None]
        if not weights:
            return
        if self.l2:
            torch._foreach_add_(gradients, weights, alpha=2 * self.l2)
        if self.l1:
            torch._foreach_add_(gradients, torch._foreach_sign(weights), alpha=self.l1)

    @torch.no_grad()
    def value(self) -> float:
        """The penalty itself."""
        absolute = sum((w.abs().sum().item() for w in self.weights), 0.0) if self.l1 else 0.0
        squares = sum((w.square().sum().item() for w in self.weights), 0.0) if self.l2 else 0.0
        return self.l1 * absolute + self.l2 * squares
