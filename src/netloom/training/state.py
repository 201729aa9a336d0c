"""What a training is at one moment; callbacks read it and may ask it to stop."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from netloom.data.batches import Batch
from netloom.errors import TrainingError
from netloom.training.optim import learning_rate_of


class EpochFigures(dict[str, float]):
    """An epoch's row of the history: names and numbers, whatever kind of number it is given.

    Raises:
        TrainingError: A value is no number, or a name no text; when it is put in.
    """

    def __init__(self, figures: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        self.update(figures or {})

    def __setitem__(self, name: str, value: Any) -> None:
        try:
            number = float(value)
        except (TypeError, ValueError, RuntimeError) as error:
            raise TrainingError(
                f"The figure {name!r} of an epoch must be one number; found {type(value).__name__}: "
                f"{repr(value)[:100]}. Put its parts into figures of their own."
            ) from error
        if not isinstance(name, str) or not name:
            raise TrainingError(f"Figures of an epoch have texts as names; found {name!r}.")
        super().__setitem__(name, number)

    def update(self, *figures: Any, **named: Any) -> None:
        """Take all of them, each as `[]` would."""
        for name, value in dict(*figures, **named).items():
            self[name] = value

    def setdefault(self, name: str, default: Any = math.nan) -> float:
        """The figure of that name, which is `default` where there was none."""
        if name not in self:
            self[name] = default
        return self[name]

    def __ior__(self, figures: Any) -> EpochFigures:  # type: ignore[override, misc]
        self.update(figures)
        return self


@dataclass
class TrainingState:
    """The training so far.

    Attributes:
        model: The network being trained.
        optimizer: Its optimizer.
        epochs: How many epochs were asked for.
        steps_per_epoch: Optimizer steps in one epoch.
        validates: There is a validation part; else the history has no columns of one.
        epoch: Completed epochs.
        step: Completed optimizer steps, counted over all epochs.
        learning_rate_scale: Factor on every learning rate, beside the schedule's; `ReduceOnPlateau` lowers it.
        batch: The batch of the last optimizer step as the network got it, augmented, scaled and mixed; None before the
            first one.
        evaluated_model: The network that is validated and kept: `model` itself, unless a callback such as
            `WeightAveraging` puts another of the same shape here.
        history: One row per completed epoch: `epoch`, `train_loss`, `train_accuracy`, `validation_loss`,
            `validation_accuracy`, `learning_rate`, `seconds`, `images_per_second`, and what callbacks put into it.
        stop_reason: Why training ended before its last epoch, or None.
        interrupted: It was ended from outside, for `stop_reason`, and is not complete.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    epochs: int
    steps_per_epoch: int
    epoch: int = 0
    step: int = 0
    learning_rate_scale: float = 1.0
    history: list[dict[str, float]] = field(default_factory=list)
    stop_reason: str | None = None
    interrupted: bool = False
    batch: Batch | None = None
    validates: bool = True
    evaluated_model: nn.Module = field(init=False)

    def __post_init__(self) -> None:
        self.evaluated_model = self.model

    def stop(self, reason: str) -> None:
        """Ask for the training to end after this epoch; the first reason stands."""
        if self.stop_reason is None:
            self.stop_reason = reason

    def interrupt(self, reason: str | None) -> None:
        """Note that the training was ended from outside, or that it was not; the last reason stands."""
        if reason is not None:
            self.stop_reason, self.interrupted = reason, True

    @property
    def learning_rate(self) -> float:
        """The present learning rate, without the factors that groups of parameters have on it."""
        return learning_rate_of(self.optimizer)
