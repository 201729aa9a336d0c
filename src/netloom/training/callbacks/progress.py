"""One line per epoch, and on a terminal a bar with the time left."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping

from netloom.durations import duration
from netloom.progress import OnProgress, Reporter
from netloom.training.callbacks.base import Callback
from netloom.training.state import TrainingState

# Redrawing more often costs more than it tells.
_SECONDS_PER_UPDATE = 0.1


class EpochProgress(Callback):
    """Tells a person how the training goes.

    Args:
        reporter: Where to.
    """

    def __init__(self, reporter: Reporter) -> None:
        self.reporter = reporter
        self._bar = contextlib.ExitStack()
        self._update: OnProgress = lambda done, total: None
        self._last = 0.0

    def on_epoch_start(self, state: TrainingState) -> None:
        """Show an empty bar."""
        self._update = self._bar.enter_context(self.reporter.bar(f"Epoch {state.epoch + 1} of {state.epochs}"))

    def on_batch_end(self, state: TrainingState) -> None:
        """Move the bar on."""
        now = time.monotonic()
        if now - self._last >= _SECONDS_PER_UPDATE:
            self._last = now
            self._update(state.step - state.epoch * state.steps_per_epoch, state.steps_per_epoch)

    def on_epoch_end(self, state: TrainingState) -> None:
        """Replace the bar by the epoch's figures."""
        self._bar.close()
        row = state.history[-1]
        width = len(str(state.epochs))
        seconds = row["seconds"] * (state.epochs - state.epoch)
        left = f"  {duration(seconds)} left" if state.epoch < state.epochs else ""
        self.reporter.say(
            f"Epoch {state.epoch:>{width}}/{state.epochs}  {figures_in_words(row)}"
            f"  {row['images_per_second']:,.0f} images/s{left}"
        )

    def close(self) -> None:
        """Remove the bar of an epoch that was cut short."""
        self._bar.close()


def figures_in_words(row: Mapping[str, float]) -> str:
    """Loss and accuracy of an epoch, of the training part and of the validation part if there is one."""
    words = f"loss {row['train_loss']:.4f}  accuracy {row['train_accuracy']:.4f}"
    if "validation_loss" in row:
        words += f"  validation loss {row['validation_loss']:.4f}  accuracy {row['validation_accuracy']:.4f}"
    return words
