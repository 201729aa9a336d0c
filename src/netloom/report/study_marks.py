"""What all figures of a search share: its axes, its colour scale, and how a trial is marked."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence

from netloom.report import axes
from netloom.report.axes import Axis
from netloom.report.study_data import SearchKey, StudyFacts, TrialFacts
from netloom.report.svg import Plot, number

SHADES = 11
"""Of the colour scale, from the worst (0) to the best."""

MARK = 3.4
"""Radius of a trial's dot."""

# Every next mark is moved by this part of its slot, modulo one: the golden ratio spreads any number of them evenly.
_GOLDEN = 0.618034
SPREAD = 0.6
"""Part of a slot over which equal values are spread."""


# The colour scale reaches so many times as far as from the best value to the median: among thirty hopeless trials the
# good half still shows its differences.
_REACH = 3
_REACH_TRIALS = 8


class Shading:
    """The colour scale over the values of the complete trials; its bad end stands for whatever is worse, too."""

    def __init__(self, study: StudyFacts) -> None:
        values = sorted((trial.value for trial in study.complete), reverse=not study.maximize)
        self.low = self.high = math.nan
        self.open_ended = False
        self._maximize = study.maximize
        if values:
            worst, median, best = values[0], statistics.median(values), values[-1]
            end = best + _REACH * (median - best)
            enough = len(values) >= _REACH_TRIALS and median != best
            self.open_ended = enough and study.advantage(end, worst) > 0
            worst = end if self.open_ended else worst
            self.low, self.high = min(worst, best), max(worst, best)

    def shade(self, value: float) -> int:
        """0 (worst, or not a number) to `SHADES - 1`; all the best where all are the same."""
        if math.isnan(value):
            return 0
        if not self.high > self.low:
            return SHADES - 1
        share = (value - self.low) / (self.high - self.low)
        better = share if self._maximize else 1 - share
        return min(SHADES - 1, max(0, int(better * SHADES)))

    @property
    def ends(self) -> tuple[float, float]:
        """The worst and the best value of the scale."""
        return (self.low, self.high) if self._maximize else (self.high, self.low)


def score_axis(study: StudyFacts, trials: Sequence[TrialFacts], *, label: str = "") -> Axis:
    """The axis of the objective, over the values that these trials reached."""
    low, high = score_ends(study, trials)
    return axes.linear_axis(low, high, form=score_form(study), label=label)


def score_ends(study: StudyFacts, trials: Sequence[TrialFacts]) -> tuple[float, float]:
    """The ends of `score_axis`; a trial so much worse than the others that it would squash them lies beyond."""
    values = [trial.value for trial in trials if math.isfinite(trial.value)]
    return axes.score_range(values, maximize=study.maximize)


def beyond_the_axis(study: StudyFacts) -> int:
    """How many trials figures place at the end of the axis for being so much worse than the others."""
    low, high = score_ends(study, study.trials)
    return sum(not low <= trial.value <= high for trial in study.trials if math.isfinite(trial.value))


def key_axis(study: StudyFacts, key: SearchKey, *, label: str = "", n_ticks: int = 5) -> Axis:
    """The axis of a key: what was searched, and whatever else a trial had."""
    seen = [trial.settings[key.name] for trial in study.trials if key.name in trial.settings]
    if key.kind == "choice":
        others = {axes.identity(value): value for value in (*key.choices, *seen)}
        return axes.choice_axis(list(others.values()), label=label)
    numbers = [
        float(value)
        for value in (key.low, key.high, *seen)
        if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    ]
    if key.log:
        numbers = [value for value in numbers if value > 0]
    if not numbers:
        return axes.linear_axis(0, 0, form=lambda _: "–", label=label)
    low, high = min(numbers), max(numbers)
    if key.log:
        return axes.log_axis(low, high, form=axes.number_text, label=label, n_ticks=n_ticks)
    return axes.linear_axis(low, high, form=axes.number_text, label=label, integers=key.kind == "int", n_ticks=n_ticks)


def score_form(study: StudyFacts) -> Callable[[float], str]:
    """How ticks of the objective are written: `65%`, `62.5%`, or plain numbers."""
    return (lambda value: f"{axes.number_text(100 * value)}%") if study.is_share else axes.number_text


def tooltip(study: StudyFacts, trial: TrialFacts, *settings: str) -> str:
    """`trial 7: 66.0%`, and what it set, for a pointer that rests on a mark."""
    words = study.score(trial.value, digits=2) if math.isfinite(trial.value) else "no value"
    state = "" if trial.state == "complete" else f", {trial.state}"
    more = "".join(f"\n{key}: {axes.value_text(trial.settings[key])}" for key in settings if key in trial.settings)
    return f"trial {trial.number}: {words}{state}{more}"


def mark(plot: Plot, study: StudyFacts, trial: TrialFacts, place: float | None, *settings: str) -> None:
    """A trial: a dot, hollow if pruned, a cross at the bad end if it failed, a ring around the best."""
    height = plot.axes[1].place(trial.value)
    words = tooltip(study, trial, *settings)
    if place is None or (height is None and trial.state != "failed"):
        return
    if trial.state == "failed":
        x, y = plot.x(place), plot.y(0) - 4 if study.maximize else plot.y(1) + 4
        plot.add("path", title=words, class_="failed", d=f"M{number(x - 3)} {number(y - 3)}l6 6m0 -6l-6 6")
        return
    x, y = plot.x(place), plot.y(height or 0.0)
    if study.best is not None and trial.number == study.best.number:
        plot.add("circle", class_="best", cx=x, cy=y, r=MARK + 3.6)
    plot.add("circle", title=words, class_=f"trial {trial.state}", cx=x, cy=y, r=MARK)


def jittered(axis: Axis, place: float | None, turn: int) -> float | None:
    """The place, moved within its slot so that equal values lie beside each other."""
    if place is None or not axis.slot:
        return place
    return place + SPREAD * axis.slot * ((turn * _GOLDEN) % 1 - 0.5)
