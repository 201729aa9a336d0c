"""Several runs beside each other: what differs, what came out, and which differences are more than noise."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from markupsafe import Markup

from netloom.durations import duration
from netloom.metrics.intervals import Estimate, Interval
from netloom.report.curves import RUN_COLOURS, History, draw_runs, run_style
from netloom.report.data import Status
from netloom.report.page import render_page
from netloom.report.wording import counted, percent, percent_interval

_SIGNIFICANT = 0.05
# Matplotlib's markers as a legend in HTML writes them.
GLYPHS = {None: "", "s": "■", "^": "▲", "D": "◆", "v": "▼"}


@dataclass(frozen=True, kw_only=True)
class ComparedRun:
    """One run; whatever it did not reach is None or empty."""

    name: str
    """Unlike that of any other run here."""
    path: str
    status: Status
    source: str
    recipe: str
    model: str
    parameters: int | None
    planned_epochs: int
    kept_epoch: int | None
    history: History
    """A row per completed epoch, as `draw_curve` takes them."""
    train_seconds: float
    """Of the completed epochs."""
    images_per_second: float | None
    validation: Estimate | None
    """Accuracy."""
    test: Estimate | None
    """Accuracy."""

    def to_json(self) -> dict[str, Any]:
        """Plain values; the history is in the run's own folder."""
        return {
            "name": self.name,
            "run": self.path,
            "status": self.status,
            "source": self.source,
            "recipe": self.recipe,
            "model": self.model,
            "parameters": self.parameters,
            "epochs": len(self.history),
            "planned_epochs": self.planned_epochs,
            "kept_epoch": self.kept_epoch,
            "train_seconds": self.train_seconds,
            "train_images_per_second": self.images_per_second,
            "validation": _estimate_json(self.validation),
            "test": _estimate_json(self.test),
        }


class ClassRecall(NamedTuple):
    """Which share of a class's test pictures each run of a pair found, 0..1."""

    name: str
    n: int
    """Test pictures of the class."""
    first: float
    second: float

    @property
    def difference(self) -> float:
        """The second run's minus the first's."""
        return self.second - self.first


@dataclass(frozen=True, kw_only=True)
class ComparedPair:
    """The test accuracy of one run minus that of another."""

    first: int
    """Index of the run that is subtracted."""
    second: int
    kind: Literal["paired", "unpaired", "none"]
    """By the same test pictures, by different ones, or not to be compared."""
    reason: str = ""
    """Why not paired, as a phrase."""
    difference: float | None = None
    """-1..1."""
    interval: Interval | None = None
    """At 95%, for this pair alone."""
    n: int | None = None
    """Test pictures of both, where paired."""
    groups: int | None = None
    """How many groups these come in, by which the test then is."""
    only_first: int | None = None
    """Pictures that only the first run got right, where paired."""
    only_second: int | None = None
    p_value: float | None = None
    """Where paired: of McNemar's exact test, or with groups of the exact test of their differences' signs."""
    adjusted_p_value: float | None = None
    """The same, corrected by Holm's procedure for all pairs tested."""
    classes: Sequence[ClassRecall] = ()
    """Where paired, class by class; no test is made of these."""

    @property
    def more_than_noise(self) -> bool | None:
        """Whether the paired test finds a difference; None where there is no such test."""
        return None if self.adjusted_p_value is None else self.adjusted_p_value < _SIGNIFICANT


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What `netloom.compare` finds."""

    runs: Sequence[ComparedRun]
    recipe_differences: Mapping[str, Sequence[Any]]
    """Recipe keys, dotted within groups, with the value of each run; None where a run leaves it open."""
    pairs: Sequence[ComparedPair]
    notes: Sequence[str] = ()
    """What to know before believing the figures, a sentence or two each."""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "runs": [run.to_json() for run in self.runs],
            "recipe_differences": {key: list(values) for key, values in self.recipe_differences.items()},
            "pairs": [self._pair_json(pair) for pair in self.pairs],
            "headline": headline(self),
            "notes": list(self.notes),
        }

    def _pair_json(self, pair: ComparedPair) -> dict[str, Any]:
        return {
            **vars(pair),
            "first": self.runs[pair.first].name,
            "second": self.runs[pair.second].name,
            "interval": None if pair.interval is None else list(pair.interval),
            "classes": [{**row._asdict(), "difference": row.difference} for row in pair.classes],
            "more_than_noise": pair.more_than_noise,
        }


class Table(NamedTuple):
    """A table in words; a second line in a cell is its small print."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    right: tuple[int, ...] = ()
    """Columns of numbers."""


def render_comparison(comparison: Comparison) -> str:
    """Write a comparison as one self-contained HTML page, with the curves of all runs in one figure."""
    return render_page(
        "comparison.html",
        comparison=comparison,
        headline=headline(comparison),
        tables={
            "runs": runs_table(comparison),
            "pairs": pairs_table(comparison),
            "recipes": recipes_table(comparison),
            "classes": classes_table(comparison),
        },
        # Markup of Matplotlib from numbers alone; no name of the user's is in it.
        curves=[
            (quantity, Markup(draw_runs([run.history for run in comparison.runs], quantity)))
            for quantity in ("loss", "accuracy")
            if any(run.history for run in comparison.runs)
        ],
        colours=RUN_COLOURS,
        keys=[(style.variable, GLYPHS[style.marker]) for style in map(run_style, range(len(comparison.runs)))],
    )


def headline(comparison: Comparison) -> str:
    """The answer first: which differences on the same test pictures are more than noise."""
    tested = [pair for pair in comparison.pairs if pair.kind == "paired"]
    real = [pair for pair in tested if pair.more_than_noise]
    if not tested:
        return "No two of these runs were tested on the same pictures, so no difference can be told from noise."
    if len(tested) == 1:
        return _one_result(tested[0])
    if not real:
        return f"None of the {len(tested)} differences on the same test pictures is more than noise could give."
    verb = "is" if len(real) == 1 else "are"
    share = f"{len(real)} of {len(tested)} differences {verb} more than noise"
    return f"On the same test pictures {share}: {_ranking(real)}."


def _ranking(pairs: Sequence[ComparedPair]) -> str:
    """Who is better than whom, grouped by the winner or the loser, whichever takes fewer words."""
    by_better: dict[int, list[int]] = {}
    by_worse: dict[int, list[int]] = {}
    for pair in pairs:
        by_better.setdefault(_better(pair), []).append(_worse(pair))
        by_worse.setdefault(_worse(pair), []).append(_better(pair))
    groups, word = (by_better, "better") if len(by_better) <= len(by_worse) else (by_worse, "worse")
    return "; ".join(f"run {run + 1} is {word} than {runs_in_words(others)}" for run, others in sorted(groups.items()))


def runs_in_words(indices: Sequence[int]) -> str:
    """Runs by their numbers, which count from 1: `run 4`, `runs 1, 2 and 4`."""
    *first, last = (str(index + 1) for index in sorted(indices))
    return f"runs {', '.join(first)} and {last}" if first else f"run {last}"


def _one_result(pair: ComparedPair) -> str:
    if not pair.difference:
        return f"Runs {pair.first + 1} and {pair.second + 1} were right equally often on the same test pictures."
    lead = f"Run {_better(pair) + 1} was right on {abs(pair.difference) * 100:.1f} points more"
    verdict = "more than noise" if pair.more_than_noise else "which noise alone could give"
    return f"{lead} of the same {counted(pair.n or 0, 'test picture')} than run {_worse(pair) + 1}, {verdict}."


def _better(pair: ComparedPair) -> int:
    return pair.second if (pair.difference or 0) > 0 else pair.first


def _worse(pair: ComparedPair) -> int:
    return pair.first if (pair.difference or 0) > 0 else pair.second


def runs_table(comparison: Comparison) -> Table:
    """What each run is, took and reached."""
    rows = [
        [
            str(number),
            f"{run.name}\n{', '.join(filter(None, (run.recipe, '' if run.status == 'finished' else run.status)))}",
            f"{run.model}\n{'–' if run.parameters is None else counted(run.parameters, 'parameter')}",
            f"{len(run.history)} of {run.planned_epochs}"
            + ("" if run.kept_epoch is None else f"\nkept: {run.kept_epoch}"),
            duration(run.train_seconds)
            + ("" if run.images_per_second is None else f"\n{run.images_per_second:,.0f} pictures/s"),
            _accuracy_cell(run.validation),
            _accuracy_cell(run.test),
        ]
        for number, run in enumerate(comparison.runs, 1)
    ]
    return Table(["", "run", "model", "epochs", "training", "validation accuracy", "test accuracy"], rows, (3, 4, 5, 6))


def pairs_table(comparison: Comparison) -> Table:
    """Each difference of test accuracy, and whether it is more than noise."""
    rows = [
        [
            f"{pair.second + 1}\N{NO-BREAK SPACE}minus\N{NO-BREAK SPACE}{pair.first + 1}",
            "–"
            if pair.difference is None
            else f"{pair.difference * 100:+.1f} points\n{_points_interval(pair.interval)}",
            "–" if pair.n is None else f"{pair.n:,}{_of_groups(pair.groups)}",
            "–"
            if pair.n is None
            else f"{pair.second + 1}: {pair.only_second:,}\n{pair.first + 1}: {pair.only_first:,}",
            "–" if pair.p_value is None else p_value_text(pair.p_value),
            "–" if pair.adjusted_p_value is None else p_value_text(pair.adjusted_p_value),
            verdict(pair),
        ]
        for pair in comparison.pairs
    ]
    columns = ["runs", "difference in test accuracy", "same pictures", "right in one only", "p", "p (Holm)", "verdict"]
    return Table(columns, rows, (1, 2, 3, 4, 5))


def recipes_table(comparison: Comparison) -> Table:
    """The recipe keys in which the runs differ; no rows where they do not."""
    numbers = [f"run {number}" for number in range(1, len(comparison.runs) + 1)]
    rows = [[key, *map(_value_text, values)] for key, values in comparison.recipe_differences.items()]
    return Table(["recipe key", *numbers], rows, tuple(range(1, len(numbers) + 1)))


def classes_table(comparison: Comparison) -> Table:
    """Recall by class of the runs that were tested on the same pictures as the first of them.

    The classes with the largest differences come first; no rows where no two runs are so.
    """
    paired = [pair for pair in comparison.pairs if pair.classes]
    pairs = [pair for pair in paired if pair.first == paired[0].first]
    if not pairs:
        return Table([], [])
    by_class = sorted(
        zip(*(pair.classes for pair in pairs), strict=True), key=lambda same: -max(abs(row.difference) for row in same)
    )
    rows = [
        [
            same[0].name,
            f"{same[0].n:,}",
            percent(same[0].first),
            *(f"{percent(row.second)}\n{row.difference * 100:+.1f} points" for row in same),
        ]
        for same in by_class
    ]
    columns = [
        "class",
        "test pictures",
        *(f"run {index + 1}" for index in (pairs[0].first, *(p.second for p in pairs))),
    ]
    return Table(columns, rows, tuple(range(1, len(columns))))


def verdict(pair: ComparedPair) -> str:
    """Whether the difference of a pair is more than noise, or why that cannot be told."""
    if pair.kind == "none":
        return f"not compared: {pair.reason}"
    if pair.kind == "unpaired":
        low, high = pair.interval or Interval(0, 0)
        includes = "includes" if low <= 0 <= high else "leaves out"
        return f"no paired test: {pair.reason}; the interval for independent tests {includes} 0"
    if pair.difference == 0:
        return "right equally often"
    return "more than noise" if pair.more_than_noise else "could be noise"


def p_value_text(value: float) -> str:
    """`0.031`, `< 0.001`."""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _accuracy_cell(estimate: Estimate | None) -> str:
    if estimate is None:
        return "–"
    of = f"{percent(estimate.value)} of {estimate.n:,}"
    interval = "" if math.isnan(estimate.interval.low) else f"\n{percent_interval(estimate.interval)}"
    return f"{of}{interval}{_of_groups(estimate.groups)}"


def _of_groups(groups: int | None) -> str:
    return "" if groups is None else f"\n{counted(groups, 'group')}"


def _points_interval(interval: Interval | None) -> str:
    return "" if interval is None else f"{interval.low * 100:+.1f} to {interval.high * 100:+.1f}"


def _value_text(value: Any) -> str:
    if value is None:
        return "–"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _estimate_json(estimate: Estimate | None) -> dict[str, Any] | None:
    if estimate is None:
        return None
    return {
        "accuracy": estimate.value,
        "n": estimate.n,
        "groups": estimate.groups,
        "interval": list(estimate.interval),
    }
