"""Lower the learning rate when the monitored figure no longer gets better."""

from __future__ import annotations

from typing import Any

from netloom.training.callbacks.base import Callback, Monitor
from netloom.training.optim import learning_rate_of
from netloom.training.state import TrainingState


class ReduceOnPlateau(Callback):
    """Multiplies the learning rate by `factor` after `patience` epochs without a new best.

    Args:
        monitor: A column of the history.
        mode: `min`, `max` or `auto`.
        factor: In (0, 1); what the learning rate is multiplied by.
        patience: Epochs without improvement before lowering.
        min_delta: How much better counts as better, in the figure's own unit (Keras' default).
        min_learning_rate: The learning rate is not lowered below this.
    """

    def __init__(
        self,
        *,
        monitor: str = "validation_loss",
        mode: str = "auto",
        factor: float = 0.5,
        patience: int = 3,
        min_delta: float = 1e-4,
        min_learning_rate: float = 0.0,
    ) -> None:
        self.monitor = Monitor(monitor, mode=mode, min_delta=min_delta)
        self.factor = factor
        self.patience = patience
        self.min_learning_rate = min_learning_rate

    def on_epoch_end(self, state: TrainingState) -> None:
        """Lower the rate when patience is used up, and wait anew."""
        if not self.monitor.improved(state) and self.monitor.waited >= self.patience:
            self.monitor.waited = 0
            floor = min(1.0, self.min_learning_rate / learning_rate_of(state.optimizer, "base_lr"))
            state.learning_rate_scale = max(floor, state.learning_rate_scale * self.factor)

    def state_dict(self) -> dict[str, Any]:
        """What the monitor remembers."""
        return self.monitor.state_dict()

    def load_state_dict(self, value: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self.monitor.load_state_dict(value)
