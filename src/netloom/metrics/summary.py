"""All that is told about one test, computed once from its probabilities."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from netloom.metrics.calibration import (
    ReliabilityBins,
    calibration_error_by_chance,
    reliability_bins,
)
from netloom.metrics.grouped import grouped_macro_f1_interval, grouped_mean_interval, grouped_share_interval
from netloom.metrics.intervals import (
    Estimate,
    macro_f1_interval,
    mean_interval,
    wilson_interval,
)
from netloom.metrics.scores import (
    accuracy,
    confusion_matrix,
    macro_f1,
    majority_baseline,
    sample_log_losses,
)


class HeldOutScores(NamedTuple):
    """The result of a test on held-out pictures; intervals at 95%."""

    accuracy: Estimate
    macro_f1: Estimate
    log_loss: Estimate
    """In nats."""
    majority: Estimate
    """Accuracy of always answering `majority_class`."""
    majority_class: int
    """The commonest class of the training part."""
    confusion: npt.NDArray[np.int64]
    """Counts `[K, K]`; rows are true classes, columns predicted ones."""
    reliability: ReliabilityBins
    calibration_error_by_chance: float
    """What the calibration error of an honest classifier would stay below, 95 times in 100."""


def score_probabilities(
    probabilities: npt.NDArray[np.floating[Any]],
    targets: npt.NDArray[np.integer[Any]],
    *,
    train_targets: npt.NDArray[np.integer[Any]],
    groups: npt.NDArray[np.integer[Any]] | None = None,
    seed: int = 0,
) -> HeldOutScores:
    """Score class probabilities on pictures that had no part in training.

    Args:
        probabilities: `[N, K]`, rows summing to 1.
        targets: True class indices `[N]`.
        train_targets: Class indices of the training part, for the majority baseline.
        groups: The group of each picture `[N]` (a patient, a video), by which intervals are then taken; None for
            independent pictures.
        seed: Of the resampled intervals.

    Raises:
        ValueError: The shapes do not fit, or a part is empty.
    """
    losses = sample_log_losses(probabilities, targets)
    predictions = probabilities.argmax(axis=1)
    correct = predictions == targets
    n = len(targets)
    confusion = confusion_matrix(targets, predictions, probabilities.shape[1])
    baseline = majority_baseline(train_targets, targets)
    # Float32 softmax may end a rounding error above 1.
    confidences = np.minimum(probabilities.max(axis=1).astype(np.float64), 1.0)
    guessed = targets == baseline.class_index
    if groups is None:
        n_groups = None
        intervals = (
            wilson_interval(int(correct.sum()), n),
            macro_f1_interval(confusion, seed=seed),
            mean_interval(losses).within(high=math.inf),
            wilson_interval(int(guessed.sum()), n),
        )
    else:
        n_groups = len(np.unique(groups))
        intervals = (
            grouped_share_interval(correct, groups),
            grouped_macro_f1_interval(targets, predictions, groups, probabilities.shape[1], seed=seed),
            grouped_mean_interval(losses, groups).within(high=math.inf),
            grouped_share_interval(guessed, groups),
        )
    of_accuracy, of_f1, of_loss, of_majority = intervals
    return HeldOutScores(
        accuracy=Estimate(accuracy(targets, predictions), n, of_accuracy, n_groups),
        macro_f1=Estimate(macro_f1(confusion), n, of_f1, n_groups),
        log_loss=Estimate(float(losses.mean()), n, of_loss, n_groups),
        majority=Estimate(baseline.accuracy, n, of_majority, n_groups),
        majority_class=baseline.class_index,
        confusion=confusion,
        reliability=reliability_bins(confidences, correct),
        calibration_error_by_chance=calibration_error_by_chance(confidences, seed=seed),
    )
