"""Every few steps, go only a part of the way there, and on from that place."""

from __future__ import annotations

from typing import Any

import torch

from netloom.training.callbacks.base import Callback
from netloom.training.state import TrainingState


class Lookahead(Callback):
    """Slow weights that follow the trained ones, which go on from them: `slow += step_size * (weights - slow)`.

    Every `every_steps` steps, and after the last one of an epoch, so that what is validated and kept are slow weights.
    (Zhang et al., "Lookahead optimizer: k steps forward, 1 step back", 2019.) The optimizer's momentum is left as it
    is, as in their code; running statistics of batch normalization are pulled along with the weights.

    With a `power` above 0 returns set in gradually: the part given up is `(1 - step_size) * progress ** power`, for
    `progress` from 0 to 1 over the training (Jordan, "94% on CIFAR-10 in 3.29 seconds on a single GPU", 2024: power 3,
    and 0.77 given up at the end).

    Put it in front of `WeightAveraging`, which is to see the weights that training goes on with.

    Args:
        every_steps: Steps between two returns.
        step_size: Part of the way that is kept, in (0, 1]; 1 changes nothing.
        power: At least 0; 0 for the constant `step_size` of the paper.
    """

    def __init__(self, *, every_steps: int = 5, step_size: float = 0.5, power: float = 0.0) -> None:
        self.every_steps, self.step_size, self.power = every_steps, step_size, power
        self._slow: dict[str, torch.Tensor] | None = None

    def on_fit_start(self, state: TrainingState) -> None:
        """Start from the present weights, or from what a checkpoint held."""
        current = _floats(state.model)
        restored = self._slow
        self._slow = {name: value.detach().clone() for name, value in current.items()}
        for name, value in (restored or {}).items():
            self._slow[name].copy_(value)

    @torch.no_grad()
    def on_batch_end(self, state: TrainingState) -> None:
        """Go back a part of the way if it is time."""
        if self._slow is None or (state.step % self.every_steps and state.step % state.steps_per_epoch):
            return
        progress = state.step / (state.epochs * state.steps_per_epoch)
        kept = 1.0 - (1.0 - self.step_size) * progress**self.power
        current = list(_floats(state.model).values())
        slow = list(self._slow.values())
        torch._foreach_lerp_(slow, current, kept)
        torch._foreach_copy_(current, slow)

    def state_dict(self) -> dict[str, Any]:
        """The slow weights."""
        return {"slow": self._slow}

    def load_state_dict(self, value: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self._slow = value["slow"]


def _floats(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and buffers that are not whole numbers, themselves."""
    return {name: value for name, value in model.state_dict().items() if value.is_floating_point()}
