"""Learning-rate schedules: the factor on the base rate as a function of the step, nothing else."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

SCHEDULES = ("constant", "step", "exponential", "linear", "triangular", "cosine", "one_cycle")
LENGTH_DEPENDENT = ("linear", "triangular", "cosine", "one_cycle")


@dataclass(frozen=True)
class Schedule:
    """How the learning rate moves.

    Attributes:
        kind: One of `SCHEDULES`.
        warmup_epochs: Linear rise from 0 to where the kind begins, in front of it; it then has the remaining epochs.
        step_epochs: Epochs between two reductions of `step`.
        decay: Factor at each reduction of `step`, and per epoch of `exponential`.
        final_fraction: Where `linear`, `triangular`, `cosine` and `one_cycle` end, as a fraction of the base rate.
        peak_fraction: When `one_cycle` peaks, as a fraction of the training (Smith, "Super-convergence", 2017), and
            `triangular`, which goes there and back in straight lines.
        start_fraction: Where `triangular` and `one_cycle` start, as a fraction of the base rate.
    """

    kind: str = "constant"
    warmup_epochs: float = 0.0
    step_epochs: float = 10.0
    decay: float = 0.1
    final_fraction: float = 0.0
    peak_fraction: float = 0.3
    start_fraction: float = 0.04

    def factor(self, *, epochs: int, steps_per_epoch: int) -> Callable[[int], float]:
        """The factor as a function of the step (0 is the first) for a training of this length."""
        warmup = round(self.warmup_epochs * steps_per_epoch)
        length = max(1, epochs * steps_per_epoch - warmup)
        shape = _SHAPES[self.kind]

        def at(step: int) -> float:
            if step < warmup:
                return (step + 1) / warmup * shape(self, 0.0, 0.0)
            after = step - warmup
            return shape(self, after / steps_per_epoch, min(1.0, after / length))

        return at

    def rise(self, step: int, *, joined: int, steps_per_epoch: int) -> float:
        """The factor, beside the schedule's own, on the rate of parameters that train from step `joined` on.

        They have the warm-up, too: an adaptive optimizer's first steps, whose averages are of few gradients, are as
        large as any (Liu et al., "On the variance of the adaptive learning rate and beyond", 2020).
        """
        warmup = max(1, round(self.warmup_epochs * steps_per_epoch))
        return 1.0 if joined == 0 else min(1.0, max(0, step - joined + 1) / warmup)


def _constant(_schedule: Schedule, _epochs: float, _progress: float) -> float:
    return 1.0


def _step(schedule: Schedule, epochs: float, _progress: float) -> float:
    return float(schedule.decay ** math.floor(epochs / schedule.step_epochs + 1e-9))


def _exponential(schedule: Schedule, epochs: float, _progress: float) -> float:
    return float(schedule.decay**epochs)


def _linear(schedule: Schedule, _epochs: float, progress: float) -> float:
    return 1.0 + (schedule.final_fraction - 1.0) * progress


def _triangular(schedule: Schedule, _epochs: float, progress: float) -> float:
    peak = schedule.peak_fraction
    if progress < peak:
        return schedule.start_fraction + (1.0 - schedule.start_fraction) * progress / peak
    return 1.0 + (schedule.final_fraction - 1.0) * (progress - peak) / (1 - peak)


def _anneal(start: float, end: float, progress: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2


def _cosine(schedule: Schedule, _epochs: float, progress: float) -> float:
    return _anneal(1.0, schedule.final_fraction, progress)


def _one_cycle(schedule: Schedule, _epochs: float, progress: float) -> float:
    peak = schedule.peak_fraction
    if progress < peak:
        return _anneal(schedule.start_fraction, 1.0, progress / peak)
    return _anneal(1.0, schedule.final_fraction, (progress - peak) / (1 - peak))


_SHAPES: dict[str, Callable[[Schedule, float, float], float]] = {
    "constant": _constant,
    "step": _step,
    "exponential": _exponential,
    "linear": _linear,
    "triangular": _triangular,
    "cosine": _cosine,
    "one_cycle": _one_cycle,
}
