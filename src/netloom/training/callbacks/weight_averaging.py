"""Train one set of weights, validate and keep the running average of them."""

from __future__ import annotations

import copy
from typing import Any

import torch

from netloom.training.callbacks.base import Callback
from netloom.training.state import TrainingState


class WeightAveraging(Callback):
    """An exponential moving average of the weights, `average = d * average + (1 - d) * weights` after each step.

    The average is what is validated, monitored and kept; the optimizer goes on with the weights themselves, whose
    figures `train_loss` and `train_accuracy` are. (Polyak and Juditsky, "Acceleration of stochastic approximation by
    averaging", 1992; Tarvainen and Valpola, "Mean teachers", 2017.)

    The running mean and variance of batch normalization are averaged with the same `d`: they then describe the
    activations that the averaged weights had, while those of the latest weights would not fit them. EfficientNet's
    and timm's averages do the same. Counters (whole numbers) are copied.

    Put it in front of `BestWeights`, whose best epoch is to have the last word when training ends.

    Args:
        decay: `d`, in [0, 1). About `1 / (1 - d)` steps have a say: 1,000 for 0.999.
        warmup: Use `min(decay, (1 + t) / (10 + t))` after `t` updates, as TensorFlow's moving average does, so that
            the random weights of the beginning are forgotten: without it they still weigh `decay ** t`, 37% after
            the first 1,000 steps at 0.999. Where the beginning is a trained network, that weight is what keeps few
            steps from leading away from it (Wortsman et al., "Robust fine-tuning of zero-shot models", 2022, average
            the two ends of a fine-tuning).
    """

    def __init__(self, *, decay: float = 0.999, warmup: bool = True) -> None:
        self.decay, self.warmup = decay, warmup
        self.updates = 0
        self.average: torch.nn.Module | None = None
        self._restored: dict[str, torch.Tensor] | None = None
        # Pairs of (average, current): tensors to average, and whole numbers to copy.
        self._averaged: list[torch.Tensor] = []
        self._current: list[torch.Tensor] = []
        self._copied: list[tuple[torch.Tensor, torch.Tensor]] = []

    def on_fit_start(self, state: TrainingState) -> None:
        """Start from the present weights, or from what a checkpoint held, and have the average evaluated."""
        self.average = copy.deepcopy(state.model).requires_grad_(False).eval()
        if self._restored is not None:
            self.average.load_state_dict(self._restored)
            self._restored = None
        mine, theirs = self.average.state_dict(keep_vars=True), state.model.state_dict(keep_vars=True)
        # By the tensor: one that several modules share has as many names, and moves once.
        pairs = {id(theirs[name]): (mine[name].detach(), theirs[name].detach()) for name in theirs}.values()
        self._averaged = [a for a, _ in pairs if a.is_floating_point()]
        self._current = [b for a, b in pairs if a.is_floating_point()]
        self._copied = [(a, b) for a, b in pairs if not a.is_floating_point()]
        state.evaluated_model = self.average

    @torch.no_grad()
    def on_batch_end(self, state: TrainingState) -> None:
        """Move the average towards the weights after this step."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates)) if self.warmup else self.decay
        torch._foreach_lerp_(self._averaged, self._current, 1 - decay)
        for average, current in self._copied:
            average.copy_(current)
        self.updates += 1

    def on_fit_end(self, state: TrainingState) -> None:
        """Put the average into the model; the checkpoint, already written, keeps the weights themselves."""
        if self.average is not None:
            state.model.load_state_dict(self.average.state_dict())

    def state_dict(self) -> dict[str, Any]:
        """The number of updates and the average."""
        weights = self._restored if self.average is None else self.average.state_dict()
        return {"updates": self.updates, "weights": weights}

    def load_state_dict(self, value: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self.updates, self._restored = value["updates"], value["weights"]
