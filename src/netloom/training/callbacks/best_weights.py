"""Keep the weights of the best epoch, in memory and on disk."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from netloom.training.callbacks.base import Callback, Monitor, copy_weights
from netloom.training.state import TrainingState


class BestWeights(Callback):
    """Remembers the weights of the epoch that is best by `monitor` and puts them back when training ends.

    Args:
        monitor: A column of the history.
        mode: `min`, `max` or `auto`.
        save: Called with the model at every new best, to write it to disk; None keeps it in memory only.
    """

    def __init__(
        self,
        *,
        monitor: str = "validation_loss",
        mode: str = "auto",
        save: Callable[[torch.nn.Module], None] | None = None,
    ) -> None:
        self.monitor = Monitor(monitor, mode=mode)
        self.save = save
        self.weights: dict[str, torch.Tensor] | None = None

    def on_epoch_end(self, state: TrainingState) -> None:
        """Copy the weights if this epoch is the best so far."""
        if self.monitor.improved(state):
            self.weights = copy_weights(state.evaluated_model)
            if self.save is not None:
                self.save(state.evaluated_model)

    def on_fit_end(self, state: TrainingState) -> None:
        """Put the best epoch's weights into the model."""
        if self.weights is not None:
            state.model.load_state_dict(self.weights)

    def state_dict(self) -> dict[str, Any]:
        """The best figure, its epoch and its weights."""
        return {**self.monitor.state_dict(), "weights": self.weights}

    def load_state_dict(self, value: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self.monitor.load_state_dict(value)
        self.weights = value["weights"]
