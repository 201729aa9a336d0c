"""Tables of a report, as rows of plain values ready to be written."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from netloom.metrics.calibration import ReliabilityBins
from netloom.metrics.intervals import Interval, wilson_interval
from netloom.metrics.scores import per_class_scores
from netloom.report.data import SourceFacts
from netloom.report.wording import percent

# Ten shades are as many as an eye tells apart in a table.
_SHADES = 10


class Cell(NamedTuple):
    """A cell of the confusion matrix: its count, the CSS class of its shade, and both in words."""

    n: int
    shade: str
    words: str


class ConfusionRow(NamedTuple):
    """All pictures of one true class."""

    name: str
    total: int
    cells: list[Cell]


class ConfusedPair(NamedTuple):
    """How often pictures of one class were taken for another."""

    true_name: str
    predicted_name: str
    n: int
    total: int
    """Pictures of the true class."""


class Proportion(NamedTuple):
    """A share of `n` pictures; NaN without interval where `n` is 0."""

    value: float
    n: int
    interval: Interval | None


class ClassRow(NamedTuple):
    """Scores of one class."""

    name: str
    f1: float
    recall: Proportion
    precision: Proportion
    mistaken_for: str
    """The class its pictures were most often taken for, with the count; empty if for none."""
    weight: float | None
    """Of its training pictures in the loss; None where all classes weigh the same."""


class PartCounts(NamedTuple):
    """Pictures of one class by part, all of them as a share of the largest class, and its weight in the loss."""

    name: str
    counts: list[int]
    total: int
    share_of_largest: float
    weight: float | None
    """None where all classes weigh the same."""


class ReliabilityRow(NamedTuple):
    """Answers given with about the same confidence."""

    low: float
    high: float
    n: int
    confidence: float
    accuracy: float
    interval: Interval


def confusion_rows(confusion: npt.NDArray[np.int64], class_names: Sequence[str]) -> list[ConfusionRow]:
    """Rows of the confusion matrix `[K, K]`, shaded by share of the row."""
    rows = []
    for true, counts in enumerate(confusion):
        total = int(counts.sum())
        cells = [
            _cell(int(count), total, class_names[true], class_names[predicted], true == predicted)
            for predicted, count in enumerate(counts)
        ]
        rows.append(ConfusionRow(class_names[true], total, cells))
    return rows


def _cell(count: int, total: int, true_name: str, predicted_name: str, right: bool) -> Cell:
    if count == 0:
        return Cell(0, "right-0" if right else "", "")
    # The square root lifts rare mistakes out of the paper: 1 in 100 gets the second shade of ten.
    share = count / total if right else math.sqrt(count / total)
    shade = max(1, math.ceil(share * _SHADES))
    verb = "recognized" if right else f"taken for {predicted_name}"
    words = f"{true_name} {verb}: {count} of {total} ({percent(count / total)})"
    return Cell(count, f"{'right' if right else 'wrong'}-{shade}", words)


def confused_pairs(confusion: npt.NDArray[np.int64], class_names: Sequence[str], *, limit: int) -> list[ConfusedPair]:
    """The most frequent kinds of mistakes, most frequent first."""
    mistakes = confusion - np.diag(np.diagonal(confusion))
    totals = confusion.sum(axis=1)
    order = np.argsort(-mistakes, axis=None, kind="stable")[:limit]
    pairs = [divmod(int(cell), len(confusion)) for cell in order if mistakes.flat[cell] > 0]
    return [
        ConfusedPair(
            class_names[true],
            class_names[predicted],
            int(mistakes[true, predicted]),
            int(totals[true]),
        )
        for true, predicted in pairs
    ]


def class_rows(
    confusion: npt.NDArray[np.int64], class_names: Sequence[str], class_weights: Sequence[float] = ()
) -> list[ClassRow]:
    """Scores per class, the lowest F1 first, classes that do not occur last; weights are empty if all are the same."""
    weights: Sequence[float | None] = class_weights or [None] * len(class_names)
    scores = per_class_scores(confusion)
    predicted = confusion.sum(axis=0)
    rows = []
    # NumPy sorts NaN to the end.
    for index in np.argsort(scores.f1, kind="stable"):
        correct = int(confusion[index, index])
        rows.append(
            ClassRow(
                class_names[index],
                float(scores.f1[index]),
                _proportion(correct, int(scores.support[index])),
                _proportion(correct, int(predicted[index])),
                _mistaken_for(int(index), confusion[index], class_names),
                weights[index],
            )
        )
    return rows


def _proportion(successes: int, n: int) -> Proportion:
    if n == 0:
        return Proportion(math.nan, 0, None)
    return Proportion(successes / n, n, wilson_interval(successes, n))


def _mistaken_for(index: int, counts: npt.NDArray[np.int64], class_names: Sequence[str]) -> str:
    others = counts.copy()
    others[index] = 0
    most = int(others.argmax())
    return f"{class_names[most]} ({others[most]}×)" if others[most] else ""


def part_counts(source: SourceFacts, class_names: Sequence[str]) -> list[PartCounts]:
    """Pictures per class and part, in the order of the classes; empty if they were not counted."""
    if not source.class_counts:
        return []
    by_class = np.array(list(source.class_counts.values()), dtype=np.int64).T
    totals = by_class.sum(axis=1)
    largest = max(1, int(totals.max(initial=0)))
    weights: Sequence[float | None] = source.class_weights or [None] * len(class_names)
    return [
        PartCounts(name, counts.tolist(), int(total), int(total) / largest, weight)
        for name, counts, total, weight in zip(class_names, by_class, totals, weights, strict=True)
    ]


def reliability_rows(reliability: ReliabilityBins) -> list[ReliabilityRow]:
    """Bins that hold an answer, the surest first."""
    rows = []
    for index in np.flatnonzero(reliability.counts)[::-1]:
        n = int(reliability.counts[index])
        accuracy = float(reliability.accuracy[index])
        rows.append(
            ReliabilityRow(
                float(reliability.edges[index]),
                float(reliability.edges[index + 1]),
                n,
                float(reliability.confidence[index]),
                accuracy,
                wilson_interval(round(accuracy * n), n),
            )
        )
    return rows
