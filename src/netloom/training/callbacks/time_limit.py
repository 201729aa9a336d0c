"""Stop before a time limit is passed."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

from netloom.training.callbacks.base import Callback
from netloom.training.schedules import LENGTH_DEPENDENT, Schedule
from netloom.training.state import TrainingState

_REASON = "time limit"


class TimeLimit(Callback):
    """Stops after the epoch from which another one would not end within the limit.

    An epoch is expected to take as long as the longest so far, so that only a first epoch that is longer than the
    whole limit passes it. What a resumed training took before counts; one that is extended has the limit anew.

    Args:
        max_minutes: Of training and validation together, with what was counted before.
        schedule: Of the learning rate. One that is stretched over all epochs is cut off by the limit, usually at a high
            rate, where a network is far from its best: the reason then says so.
    """

    def __init__(self, *, max_minutes: float, schedule: Schedule | None = None) -> None:
        self.max_minutes, self.schedule = max_minutes, schedule or Schedule()
        self._earlier_seconds = 0.0
        self._longest_epoch_seconds = 0.0
        self._started: float | None = None
        self._epoch_started = 0.0
        self._epochs: int | None = None

    def count(self, seconds: float) -> None:
        """Count what was used before the fit; a checkpoint's own count takes its place."""
        self._earlier_seconds += seconds

    def on_fit_start(self, state: TrainingState) -> None:
        """Start the clock."""
        if self._epochs not in (None, state.epochs):
            self._earlier_seconds = 0.0
        self._epochs = state.epochs
        self._started = time.monotonic()

    def on_epoch_start(self, state: TrainingState) -> None:
        """Start the epoch's clock."""
        self._epoch_started = time.monotonic()

    def on_epoch_end(self, state: TrainingState) -> None:
        """Stop if another epoch would pass the limit."""
        epoch_seconds = time.monotonic() - self._epoch_started
        self._longest_epoch_seconds = max(self._longest_epoch_seconds, epoch_seconds)
        spent = self._seconds()
        if spent + self._longest_epoch_seconds > 60 * self.max_minutes:
            state.stop(
                f"{_REASON}: {spent / 60:.1f} of {self.max_minutes:g} minutes are used and an epoch takes up to "
                f"{self._longest_epoch_seconds / 60:.1f}{self._cut_off(state)}"
            )

    def _cut_off(self, state: TrainingState) -> str:
        """Where the schedule was, if it was to go on."""
        if self.schedule.kind not in LENGTH_DEPENDENT or state.epoch >= state.epochs:
            return ""
        factor = self.schedule.factor(epochs=state.epochs, steps_per_epoch=state.steps_per_epoch)
        here, end = factor(state.step - 1), factor(state.epochs * state.steps_per_epoch - 1)
        return (
            f"; the {self.schedule.kind} schedule of {state.epochs:,} epochs was cut off at {here:.0%} of the learning "
            f"rate, where it would end at {end:.0%}: with epochs={state.epoch} it ends within the limit"
        )

    def state_dict(self) -> dict[str, Any]:
        """The seconds spent, those of the longest epoch, and of how many epochs the training was to be."""
        return {
            "seconds": self._seconds(),
            "longest_epoch_seconds": self._longest_epoch_seconds,
            "epochs": self._epochs,
        }

    def load_state_dict(self, value: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self._earlier_seconds = value["seconds"]
        self._longest_epoch_seconds = value["longest_epoch_seconds"]
        self._epochs = value.get("epochs")

    def _seconds(self) -> float:
        return self._earlier_seconds + (0.0 if self._started is None else time.monotonic() - self._started)


def is_time_limit(reason: str | None) -> bool:
    """Whether a training's `stop_reason` is that of a time limit."""
    return reason is not None and reason.startswith(_REASON)


def count_earlier(callbacks: Iterable[Callback], seconds: float) -> None:
    """Have the time limits among `callbacks` count what was used before the fit."""
    for callback in callbacks:
        if isinstance(callback, TimeLimit):
            callback.count(seconds)
