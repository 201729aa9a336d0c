"""Numbers and results in plain words."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from netloom.metrics.calibration import ReliabilityBins
from netloom.metrics.intervals import Estimate, Interval
from netloom.report.data import ReportData, TrainingFacts
from netloom.report.history import column


def percent(share: float) -> str:
    """`0.9748` as `97.5%`, `0.99996` as `99.996%`: only exactly all is 100%, exactly none 0%."""
    if not math.isfinite(share):
        return "–"
    if share in (0.0, 1.0):
        return f"{share:.0%}"
    texts = [f"{share:.{digits}%}" for digits in range(1, 6)]
    return next((text for text in texts if float(text[:-1]) not in (0.0, 100.0)), texts[-1])


def certainty(probability: float) -> str:
    """How sure a network is of one answer: `97.5%`; the nines behind 99.9% mean nothing."""
    return "over 99.9%" if probability > 0.9995 else percent(probability)


def points(difference: float) -> str:
    """A difference of two shares: `0.2741` as `27.4 points`."""
    return f"{difference * 100:.1f} points"


def percent_interval(interval: Interval) -> str:
    """`95.3% to 98.7%`."""
    return f"{percent(interval.low)} to {percent(interval.high)}"


def number_interval(interval: Interval) -> str:
    """`0.081 to 0.143`, or `unknown` (of a single picture)."""
    if not all(map(math.isfinite, interval)):
        return "unknown"
    return f"{interval.low:.3f} to {interval.high:.3f}"


def counted(n: int, noun: str) -> str:
    """`1 picture`, `1,024 pictures`."""
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def pictures_in_words(n: int, groups: int | None, noun: str = "picture") -> str:
    """`1,000 pictures`, `1,000 pictures of 40 groups`."""
    return counted(n, noun) + ("" if groups is None else f" of {counted(groups, 'group')}")


def sample_size(n: int, groups: int | None) -> str:
    """`n = 1,000`, `n = 1,000 of 40 groups`: what stands beside an interval in a table or figure."""
    return f"n = {n:,}" + ("" if groups is None else f" of {counted(groups, 'group')}")


def headline(report: ReportData) -> str:
    """The answer first: how often it is right on new pictures, how sure that is, and guessing."""
    if report.test is not None:
        accuracy, majority = report.test.accuracy, report.test.majority
        guess = report.class_names[report.test.majority_class]
        pictures = pictures_in_words(accuracy.n, accuracy.groups, "test picture")
        unknown = " it had never seen" if report.tests <= 1 else " it was not trained on"
        if report.test_notes:
            unknown = ", not all of them known to be new to it"
        return (
            f"Right on {percent(accuracy.value)} of {pictures}{unknown} (95% interval "
            f"{percent_interval(accuracy.interval)}); always guessing “{guess}” would be right on "
            f"{percent(majority.value)}."
        )
    epochs = len(report.training.history) if report.training is not None else 0
    if epochs == 0:
        return "There is no result yet: no epoch was completed."
    return f"Not tested yet. {_best_validation(report.training)}"


def verdict(accuracy: Estimate, majority: Estimate) -> str:
    """Whether the test shows that anything was learned, compared with always guessing one class."""
    low, high = accuracy.interval
    if low > majority.value:
        return ""
    if high < majority.value:
        return "That is worse than guessing: something is wrong with the training or the labels."
    return (
        "The interval includes what guessing gives, so this test does not show that the network has learned anything."
    )


def calibration_in_words(reliability: ReliabilityBins, by_chance: float) -> str:
    """What the expected calibration error means, beside what chance alone would give."""
    error = reliability.expected_calibration_error
    differ = (
        f"Confidence and accuracy differ by {points(error)} on average, where chance alone gives "
        f"up to {points(by_chance)}"
    )
    if error <= by_chance:
        return f"{differ}: no sign that the confidences mislead."
    sure = np.nansum(reliability.confidence * reliability.counts) / reliability.counts.sum()
    right = np.nansum(reliability.accuracy * reliability.counts) / reliability.counts.sum()
    # Bins that err in opposite directions cancel in the means; then neither word is true.
    if abs(sure - right) < error / 2:
        return f"{differ}: take the confidences with care."
    word = "overconfident" if sure > right else "underconfident"
    return f"{differ}. It is {word}: {percent(sure)} sure and {percent(right)} right."


def missing_parts(report: ReportData) -> list[str]:
    """What this report cannot show, a phrase each."""
    training = report.training
    epochs = training is not None and (len(training.history) > 0 or len(training.solved) > 0)
    parts: Sequence[tuple[bool, str]] = (
        (report.source is None, "the data"),
        (report.model is None, "the model"),
        (not epochs, "the curves"),
        (report.test is None, "the test result"),
    )
    return [phrase for is_missing, phrase in parts if is_missing]


def _best_validation(training: TrainingFacts | None) -> str:
    history = training.history if training is not None else ()
    accuracies = column(history, "validation_accuracy")
    if np.isnan(accuracies).all():
        return f"{counted(len(history), 'epoch')} completed."
    best = int(np.nanargmax(accuracies))
    return (
        f"The best validation accuracy so far is {percent(accuracies[best])}, in epoch "
        f"{column(history, 'epoch')[best]:.0f} of {len(history)}. A test would probably come out "
        "lower, since the best epoch was picked by this very figure."
    )
