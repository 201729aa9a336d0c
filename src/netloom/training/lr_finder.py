"""Which learning rate: the exponential range test, on a copy of the network.

Smith, "Cyclical learning rates for training neural networks", 2015 (https://arxiv.org/abs/1506.01186), with the
exponential rise, the stop at four times the best loss, and the steepest descent of fastai.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.ndimage import gaussian_filter1d
from torch import nn

from netloom.data.batches import Batch, Batches
from netloom.errors import TrainingError
from netloom.progress import OnProgress
from netloom.runtime import executing
from netloom.training.optim import learning_rate_of
from netloom.training.step import TrainingStep

FloatArray = npt.NDArray[np.float64]

_DIVERGED = 4.0  # times the best smoothed loss, as in fastai
# Of the running mean that the stop looks at: single losses may be four times the best by chance. As in ignite.
_MEMORY = 0.95
# Standard deviation of the kernel that smooths the curve, in decades of the rate. The kernel is symmetric: a running
# mean of this strength lags behind by half a decade, and so would the rates read off it.
_DECADES_SMOOTHED = 0.12
# The loss "starts to shoot up" where it has climbed by this share of what it had fallen.
_CLIMB = 0.1
_WARM_UP_STEPS = 5
# With fewer there is no curve to read.
_FEWEST_STEPS = 50
_FEWEST_POINTS = 10


@dataclass(frozen=True, eq=False)
class RangeTest:
    """The loss at rising learning rates.

    Attributes:
        rates: Learning rate of each step, float64 `[steps]`, rising by a constant factor.
        losses: Training loss before each step, float64 `[steps]`.
        diverged: Whether the test ended because the loss had shot up, not because the rates were through.
        cut: The steps from the first rate to the last, and the more that were asked for and would have taken too long;
            None where there was time for all.
    """

    rates: FloatArray
    losses: FloatArray
    diverged: bool
    cut: tuple[int, int] | None = None

    @property
    def smoothed(self) -> FloatArray:
        """The losses smoothed over the logarithm of the rate, without lag, float64 `[steps]`.

        Losses beyond four times the lowest first tell no more than that, and would drown the others.
        """
        steps_per_decade = (len(self.rates) - 1) / math.log10(self.rates[-1] / self.rates[0])
        sigma = _DECADES_SMOOTHED * steps_per_decade
        limit = max(_DIVERGED * gaussian_filter1d(self.losses, sigma, mode="nearest").min(), self.losses[0])
        smoothed: FloatArray = gaussian_filter1d(np.minimum(self.losses, limit), sigma, mode="nearest")
        return smoothed

    @property
    def steepest(self) -> float | None:
        """The rate at which the loss falls fastest with the logarithm of the rate; None if it never falls."""
        smoothed = self.smoothed
        slope = np.gradient(smoothed, np.log(self.rates))[: int(smoothed.argmin()) + 1]
        return float(self.rates[slope.argmin()]) if slope.min() < 0 else None

    @property
    def diverging(self) -> float | None:
        """The rate at which the loss starts to shoot up, behind its lowest point; None if it never does."""
        smoothed = self.smoothed
        lowest = int(smoothed.argmin())
        fall = smoothed[: lowest + 1].max() - smoothed[lowest]
        climbed = np.flatnonzero(smoothed[lowest:] > smoothed[lowest] + _CLIMB * fall)
        return float(self.rates[lowest + climbed[0]]) if fall > 0 and len(climbed) else None

    @property
    def suggestions(self) -> dict[str, float]:
        """Learning rates by the rule that they follow, those that the curve allows.

        `steepest` descent, and `half_of_diverging`: half of the rate at which the loss starts to shoot up, the rule
        of thumb that the best rate is about half of the largest one.
        """
        half = None if self.diverging is None else self.diverging / 2
        found = {"steepest": self.steepest, "half_of_diverging": half}
        return {name: rate for name, rate in found.items() if rate is not None}

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "suggestions": self.suggestions,
            "diverging": self.diverging,
            "diverged": self.diverged,
            "cut": None if self.cut is None else {"steps": self.cut[0], "asked": self.cut[1]},
            "rates": self.rates.tolist(),
            "losses": self.losses.tolist(),
            "smoothed_losses": self.smoothed.tolist(),
        }


def find_learning_rate(
    model: nn.Module,
    *,
    train: Batches,
    make_step: Callable[[nn.Module], TrainingStep],
    min_rate: float = 1e-6,
    max_rate: float = 10.0,
    n_steps: int = 300,
    max_seconds: float = 120.0,
    on_progress: OnProgress = lambda done, total: None,
) -> RangeTest:
    """Train a copy of `model` while the learning rate rises exponentially, until its loss shoots up.

    The model, its optimizer and all generators stay as they are.

    Args:
        model: On its device.
        train: The training part, as it would be trained on; entered at its first epoch.
        make_step: Makes the training step, with its optimizer, for the copy. Rates of parameter groups keep their
            ratios; the one that rises is `learning_rate_of` them.
        min_rate: Of the first step, above 0.
        max_rate: Of the last step, above `min_rate`.
        n_steps: Optimizer steps from `min_rate` to `max_rate`.
        max_seconds: Fewer steps are taken, but not below 50, if the first ones show that it would take longer.
        on_progress: Called with (steps done, steps in all).

    Raises:
        TrainingError: The rates do not rise, there are fewer than 50 steps, there is no time, or the loss is no number
            or shoots up within the first steps already.
    """
    if not 0 < min_rate < max_rate:
        raise TrainingError(f"The rates go from {min_rate:g} to {max_rate:g}; expected 0 < min_rate < max_rate.")
    if n_steps < _FEWEST_STEPS:
        raise TrainingError(f"{n_steps} steps are too few for a curve; expected at least {_FEWEST_STEPS}.")
    if not max_seconds > 0:
        raise TrainingError(f"A test of {max_seconds:g} seconds has no steps; give more (max_seconds, --max-seconds).")
    step = make_step(copy.deepcopy(model).train())
    batches = _endless(train)
    with executing(step.plan), contextlib.closing(step):
        torch.set_num_threads(step.plan.threads_between_steps)
        seconds_per_step = _warm_up(step, batches, min_rate)
        asked, n_steps = n_steps, max(_FEWEST_STEPS, int(min(n_steps, max_seconds / seconds_per_step)))
        rates = np.geomspace(min_rate, max_rate, n_steps)
        losses, diverged = _losses_at(rates, step, batches, on_progress)
    if len(losses) < _FEWEST_POINTS:
        raise TrainingError(
            f"The loss shoots up within {len(losses) + 1} steps from a learning rate of {min_rate:g} on, too few for a "
            "curve. Start lower (min_rate, --min-rate), and check `input_scaling` if the pictures are not scaled."
        )
    return RangeTest(rates[: len(losses)], losses, diverged, cut=None if asked == n_steps else (n_steps, asked))


def _warm_up(step: TrainingStep, batches: Iterator[Batch], rate: float) -> float:
    """Steps at the lowest rate, which change next to nothing; seconds that one takes, without the first."""
    started = time.perf_counter()
    for number in range(_WARM_UP_STEPS):
        loss = _take_step(step, next(batches), number, rate)
        if not math.isfinite(loss):
            raise TrainingError(
                f"The loss is {loss} at a learning rate of {rate:g} already. Start lower (min_rate, --min-rate), and "
                "check `input_scaling` and the model."
            )
        if number == 0:
            started = time.perf_counter()
    return (time.perf_counter() - started) / (_WARM_UP_STEPS - 1)


def _losses_at(
    rates: FloatArray, step: TrainingStep, batches: Iterator[Batch], on_progress: OnProgress
) -> tuple[FloatArray, bool]:
    """The loss of one step at each rate, float64, until it has shot up, and whether it has."""
    losses: list[float] = []
    mean, best = 0.0, math.inf
    for rate, batch in zip(rates.tolist(), batches, strict=False):
        loss = _take_step(step, batch, _WARM_UP_STEPS + len(losses), rate)
        if not math.isfinite(loss):
            return np.array(losses), True
        losses.append(loss)
        mean = _MEMORY * mean + (1 - _MEMORY) * loss
        unbiased = mean / (1 - _MEMORY ** len(losses))
        best = min(best, unbiased)
        if unbiased > _DIVERGED * best:
            return np.array(losses), True
        on_progress(len(losses), len(rates))
    return np.array(losses), False


def _endless(train: Batches) -> Iterator[Batch]:
    return itertools.chain.from_iterable(train.epoch(epoch) for epoch in itertools.count())


def _take_step(step: TrainingStep, batch: Batch, number: int, rate: float) -> float:
    """Take one step at `rate` and return the batch's loss before it."""
    base = learning_rate_of(step.optimizer, "base_lr")
    for group in step.optimizer.param_groups:
        group["lr"] = rate * group["base_lr"] / base
    step.reset()
    step(batch, number)
    return step.figures()["train_loss"]
