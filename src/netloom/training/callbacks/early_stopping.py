"""Stop when the monitored figure no longer gets better."""

from __future__ import annotations

from typing import Any

from netloom.training.callbacks.base import Callback, Monitor
from netloom.training.state import TrainingState


class EarlyStopping(Callback):
    """Stops after `patience` epochs without a new best; pair it with `BestWeights` to get that best back.

    A training that it has ended and that is extended gets as many epochs anew; the best so far stays the best.

    Args:
        monitor: A column of the history.
        mode: `min`, `max` or `auto`.
        patience: Epochs without improvement before stopping.
        min_delta: How much better counts as better, in the figure's own unit.
    """

    def __init__(
        self,
        *,
        monitor: str = "validation_loss",
        mode: str = "auto",
        patience: int = 10,
        min_delta: float = 0.0,
    ) -> None:
        self.monitor = Monitor(monitor, mode=mode, min_delta=min_delta)
        self.patience = patience

    def on_fit_start(self, state: TrainingState) -> None:
        """Wait anew where this had ended a training that goes on nevertheless."""
        if state.stop_reason is None and self.monitor.waited >= self.patience:
            self.monitor.waited = 0

    def on_epoch_end(self, state: TrainingState) -> None:
        """Stop when patience is used up."""
        if not self.monitor.improved(state) and self.monitor.waited >= self.patience:
            state.stop(
                f"early stopping: {self.monitor.name} has not improved for {self.monitor.waited} epochs "
                f"(best in epoch {self.monitor.best_epoch})"
            )

    def state_dict(self) -> dict[str, Any]:
        """What the monitor remembers."""
        return self.monitor.state_dict()

    def load_state_dict(self, value: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self.monitor.load_state_dict(value)
