"""Loss and gradients of a batch: by autograd, on the model as it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import nn

from netloom.data.batches import Batch
from netloom.inference import forward
from netloom.models.heads import Head
from netloom.randomness import derive_seed
from netloom.runtime import ExecutionPlan


class Gradients(Protocol):
    """Computes the loss of a batch and its gradients."""

    def __call__(self, batch: Batch, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Loss and number of correct predictions, scalars on the device; the gradients are in the parameters' `grad`.

        `step` counts optimizer steps from the start; dropout is a function of it.
        """

    def renew(self) -> None:
        """Take notice that other parameters train than before, or other modules are in training mode."""

    def close(self) -> None:
        """Give back what is held."""


class WholeBatchGradients:
    """The model as it is, by autograd, on the whole batch.

    Args:
        model: In training mode, on the plan's device.
        heads: What the outputs mean; the correct predictions are the first one's.
        plan: Device and precision.
        seed: Of dropout.
        label_smoothing: In [0, 1).
    """

    def __init__(
        self, model: nn.Module, heads: Sequence[Head], *, plan: ExecutionPlan, seed: int, label_smoothing: float
    ) -> None:
        self.model, self.heads, self.plan, self.seed = model, heads, plan, seed
        self.label_smoothing = label_smoothing
        self._names = [head.name for head in heads]

    def __call__(self, batch: Batch, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """As `Gradients`."""
        seed_step(self.seed, step, self.plan.torch_device)
        return self.compute(batch)

    def compute(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """As a call, with masks from the generators as they are."""
        with self.plan.autocast():
            outputs = forward(self.model, batch.inputs, self._names)
        loss = total_loss(outputs, batch, self.heads, self.label_smoothing)
        self.model.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        head = self.heads[0]
        with torch.no_grad():
            return loss.detach(), head.correct(outputs[head.name].detach(), batch.targets[head.name])

    def renew(self) -> None:
        """Autograd looks at every step anew."""

    def close(self) -> None:
        """Nothing is held."""


def seed_step(seed: int, step: int, device: torch.device) -> None:
    """Make dropout and everything else that draws from torch's streams a function of (seed, step)."""
    value = derive_seed(seed, "step", step)
    torch.default_generator.manual_seed(value)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index or 0].manual_seed(value)
    elif device.type == "mps":
        torch.mps.manual_seed(value)


def total_loss(
    outputs: dict[str, torch.Tensor], batch: Batch, heads: Sequence[Head], label_smoothing: float
) -> torch.Tensor:
    """The weighted sum of the heads' losses, a float32 scalar."""
    losses = [
        head.loss_weight
        * head.loss(
            outputs[head.name],
            batch.targets[head.name],
            weights=batch.weights,
            label_smoothing=label_smoothing,
        )
        for head in heads
    ]
    return losses[0] if len(losses) == 1 else torch.stack(losses).sum()
