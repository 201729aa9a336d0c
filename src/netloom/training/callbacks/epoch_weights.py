"""Keep the weights of every epoch, or of every so many."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from netloom.training.callbacks.base import Callback
from netloom.training.state import TrainingState


class EpochWeights(Callback):
    """Hands the weights to `save` after every `every` epochs, counted from the first; `BestWeights` keeps the best.

    Args:
        save: Called with the epoch's number, 1 for the first, and the model.
        every: Epochs between two calls; 1 for each epoch.
    """

    def __init__(self, *, save: Callable[[int, nn.Module], None], every: int = 1) -> None:
        self.save, self.every = save, every

    def on_epoch_end(self, state: TrainingState) -> None:
        """Save if it is this epoch's turn."""
        if state.epoch % self.every == 0:
            self.save(state.epoch, state.evaluated_model)
