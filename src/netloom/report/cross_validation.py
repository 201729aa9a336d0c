"""A cross-validation told as one HTML page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from markupsafe import Markup

from netloom.evaluation.cross_validation import CrossValidationScores, Spread
from netloom.metrics.intervals import Interval
from netloom.report import tables
from netloom.report.comparison import GLYPHS
from netloom.report.curves import RUN_COLOURS, History, draw_runs, run_style
from netloom.report.page import render_page
from netloom.report.wording import counted, percent, percent_interval

# As in the report of a run.
_GLANCE_CLASSES = 20
_MATRIX_CLASSES = 100
_CONFUSED_PAIRS = 12
# Beyond, the curves of single trainings cannot be told apart.
_CURVES = 20
# A figure that spreads over less than this share of the axis is drawn as if it spread over that much.
_LEAST_WIDTH = 0.02


@dataclass(frozen=True, kw_only=True)
class FoldFacts:
    """One training, and what it said of the pictures held out from it."""

    name: str
    seed: int
    train_n: int
    validation_n: int
    test_n: int
    accuracy: float
    interval: Interval
    """Wilson's, of this one test."""
    macro_f1: float
    epochs: int
    kept_epoch: int | None
    seconds: float
    history: History = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class CrossValidationReport:
    """Everything the page shows."""

    title: str
    folder: str
    created: str
    """Date and time as people read it."""
    scheme: str
    """`5 folds, repeated 2 times`."""
    repeats: int
    class_names: Sequence[str]
    scores: CrossValidationScores
    folds: Sequence[FoldFacts]
    """Those that were tested."""
    failures: Mapping[str, str] = field(default_factory=dict)
    """Reason by name."""
    notes: Sequence[str] = ()
    model: str
    parameters: int
    recipe_yaml: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)


class SpreadMark(NamedTuple):
    """Where a figure's smallest, mean and largest value lie between two ends, 0..100."""

    low: float
    mean: float
    high: float


class ClassRow(NamedTuple):
    """A class over the trainings."""

    name: str
    n: int
    """Held-out pictures of one repeat, on average."""
    f1: Spread
    recall: Spread
    precision: Spread
    mark: SpreadMark | None
    """Of the recall, on the whole axis 0..1."""


def render_cross_validation(report: CrossValidationReport) -> str:
    """Write a cross-validation as one self-contained HTML page.

    Raises:
        ValueError: The class names and the scores disagree about the number of classes.
    """
    n_classes, scores = len(report.class_names), report.scores
    if scores.confusion.shape != (n_classes, n_classes):
        raise ValueError(
            f"There are {n_classes} class names, so the confusion matrix must be [{n_classes}, {n_classes}]; found "
            f"{list(scores.confusion.shape)}."
        )
    at_a_glance = n_classes <= _GLANCE_CLASSES
    shown = [fold.history for fold in report.folds[:_CURVES] if fold.history]
    return render_page(
        "cross_validation.html",
        report=report,
        scores=scores,
        headline=headline(report),
        verdict=verdict(scores),
        axis=_axis(scores.accuracy),
        validated=any(fold.validation_n for fold in report.folds),
        spread_text=spread_text,
        number_spread=number_spread,
        place=lambda value: _place(scores.accuracy, value),
        at_a_glance=at_a_glance,
        matrix=tables.confusion_rows(scores.confusion, report.class_names) if n_classes <= _MATRIX_CLASSES else None,
        pairs=tables.confused_pairs(scores.confusion, report.class_names, limit=_CONFUSED_PAIRS),
        n_wrong=int(scores.confusion.sum() - scores.confusion.trace()),
        classes=class_rows(report),
        colours=RUN_COLOURS,
        # Markup of Matplotlib from numbers alone; no name of the user's is in it.
        curves=[(quantity, Markup(draw_runs(shown, quantity))) for quantity in ("loss", "accuracy") if shown],
        keys=[(style.variable, GLYPHS[style.marker]) for style in map(run_style, range(len(shown)))],
    )


def headline(report: CrossValidationReport) -> str:
    """The answer first: how often it is right on new pictures, and how sure that is."""
    accuracy = report.scores.accuracy
    trainings = counted(accuracy.n, "training")
    lead = f"Right on {percent(accuracy.mean)} of the pictures held out, the mean of {trainings} ({report.scheme})"
    if accuracy.n < 2:
        return f"{lead}; one training tells no spread."
    return (
        f"{lead}; the 95% interval of that mean is {percent_interval(accuracy.interval)}, and single trainings differ "
        f"by a standard deviation of {accuracy.standard_deviation * 100:.1f} points."
    )


def verdict(scores: CrossValidationScores) -> str:
    """Whether anything was learned at all, compared with always guessing one class."""
    low, high = scores.accuracy.interval
    if math.isnan(low) or low > scores.majority.mean:
        return ""
    if high < scores.majority.mean:
        return "That is worse than guessing: something is wrong with the training or the labels."
    return "The interval includes what guessing gives, so this does not show that the recipe learns anything."


def class_rows(report: CrossValidationReport) -> list[ClassRow]:
    """Scores of each class over the trainings, the lowest F1 first, classes without one last."""
    scores = report.scores
    per_repeat = scores.confusion.sum(axis=1) / max(1, report.repeats)
    order = np.argsort([spread.mean for spread in scores.f1], kind="stable")
    return [
        ClassRow(
            report.class_names[i],
            round(float(per_repeat[i])),
            scores.f1[i],
            scores.recall[i],
            scores.precision[i],
            _span(scores.recall[i]),
        )
        for i in order.tolist()
    ]


def _span(spread: Spread) -> SpreadMark | None:
    there = [value for value in spread.values if not math.isnan(value)]
    return SpreadMark(100 * min(there), 100 * spread.mean, 100 * max(there)) if there else None


def _axis(spread: Spread) -> Interval:
    """The ends of an axis on which the single trainings can be told apart."""
    there = [value for value in (*spread.values, *spread.interval) if not math.isnan(value)]
    low, high = min(there), max(there)
    margin = max(0.1 * (high - low), (_LEAST_WIDTH - (high - low)) / 2, 0.0)
    return Interval(max(0.0, low - margin), min(1.0, high + margin))


def _place(spread: Spread, value: float) -> float:
    """Where a value lies on the axis, 0..100."""
    low, high = _axis(spread)
    return 100 * (value - low) / (high - low) if high > low else 50.0


def spread_text(spread: Spread) -> str:
    """`93.1% ± 1.2`: mean and standard deviation of single trainings, in points."""
    if math.isnan(spread.mean):
        return "–"
    if math.isnan(spread.standard_deviation):
        return percent(spread.mean)
    return f"{percent(spread.mean)} ± {spread.standard_deviation * 100:.1f}"


def number_spread(spread: Spread) -> str:
    """`0.931 ± 0.012`."""
    if math.isnan(spread.mean):
        return "–"
    deviation = "" if math.isnan(spread.standard_deviation) else f" ± {spread.standard_deviation:.3f}"
    return f"{spread.mean:.3f}{deviation}"
