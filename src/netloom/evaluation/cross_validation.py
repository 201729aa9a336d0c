"""Scores over the trainings of a cross-validation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from netloom.metrics.intervals import Interval, resampled_mean_interval
from netloom.metrics.scores import accuracy, confusion_matrix, log_loss, macro_f1, majority_baseline, per_class_scores


@dataclass(frozen=True, eq=False)
class FoldOutcome:
    """What one training said of the pictures that were held out from it.

    Attributes:
        probabilities: Float32 `[n, K]`.
        targets: True classes, int64 `[n]`.
        learned_targets: Classes of all other pictures it was given, for training or to choose the epoch, int64 `[m]`.
    """

    probabilities: npt.NDArray[np.float32]
    targets: npt.NDArray[np.int64]
    learned_targets: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Spread:
    """A score over trainings.

    Attributes:
        mean: Over the trainings that have it.
        standard_deviation: Of single trainings, with n - 1; NaN for one.
        interval: 95%, of the mean, corrected for overlapping training parts; NaN for one training.
        values: One for each training, in their order; NaN where a training has none.
    """

    mean: float
    standard_deviation: float
    interval: Interval
    values: tuple[float, ...]

    @property
    def n(self) -> int:
        """Trainings that have the score."""
        return sum(not math.isnan(value) for value in self.values)

    def to_json(self) -> dict[str, Any]:
        """Plain values; NaN becomes null."""
        return {
            "mean": self.mean,
            "standard_deviation": self.standard_deviation,
            "n": self.n,
            "interval": list(self.interval),
            "values": list(self.values),
        }


@dataclass(frozen=True, eq=False)
class CrossValidationScores:
    """What a cross-validation tells of a recipe on a kind of pictures.

    Attributes:
        accuracy: Over the trainings, as the following.
        macro_f1: Mean F1 of the classes.
        log_loss: In nats.
        majority: Accuracy of always answering the commonest class among what a training was given.
        recall: By class, in the order of the class names.
        precision: Likewise.
        f1: Likewise.
        confusion: Counts `[K, K]` over all held-out pictures of all trainings; rows are true classes.
        test_per_train: Held-out pictures per picture that a training was given, the mean over the trainings.
    """

    accuracy: Spread
    macro_f1: Spread
    log_loss: Spread
    majority: Spread
    recall: tuple[Spread, ...]
    precision: tuple[Spread, ...]
    f1: tuple[Spread, ...]
    confusion: npt.NDArray[np.int64]
    test_per_train: float

    def to_json(self, class_names: Sequence[str]) -> dict[str, Any]:
        """Plain values."""
        by_class: Mapping[str, tuple[Spread, ...]] = {
            "recall": self.recall,
            "precision": self.precision,
            "f1": self.f1,
        }
        return {
            "accuracy": self.accuracy.to_json(),
            "macro_f1": self.macro_f1.to_json(),
            "log_loss": self.log_loss.to_json(),
            "majority_baseline": self.majority.to_json(),
            "per_class": {
                name: {score: spreads[i].to_json() for score, spreads in by_class.items()}
                for i, name in enumerate(class_names)
            },
            "confusion": self.confusion.tolist(),
            "test_per_train": self.test_per_train,
        }


def summarize_folds(outcomes: Sequence[FoldOutcome], n_classes: int) -> CrossValidationScores:
    """Mean, spread and corrected interval of every score; the confusion matrix over all held-out pictures.

    Raises:
        ValueError: There is no outcome.
    """
    if not outcomes:
        raise ValueError("A cross-validation needs at least one training that was tested; found none.")
    ratio = float(np.mean([len(o.targets) / len(o.learned_targets) for o in outcomes]))
    answers = [outcome.probabilities.argmax(axis=1) for outcome in outcomes]
    matrices = [confusion_matrix(o.targets, a, n_classes) for o, a in zip(outcomes, answers, strict=True)]
    by_class = [per_class_scores(matrix) for matrix in matrices]

    def spread(values: Sequence[float], *, low: float = 0.0, high: float = 1.0) -> Spread:
        return _spread(values, ratio, Interval(low, high))

    return CrossValidationScores(
        accuracy=spread([accuracy(o.targets, a) for o, a in zip(outcomes, answers, strict=True)]),
        macro_f1=spread([macro_f1(matrix) for matrix in matrices]),
        log_loss=spread([log_loss(o.probabilities, o.targets) for o in outcomes], high=math.inf),
        majority=spread([majority_baseline(o.learned_targets, o.targets).accuracy for o in outcomes]),
        recall=tuple(spread([float(scores.recall[i]) for scores in by_class]) for i in range(n_classes)),
        precision=tuple(spread([float(scores.precision[i]) for scores in by_class]) for i in range(n_classes)),
        f1=tuple(spread([float(scores.f1[i]) for scores in by_class]) for i in range(n_classes)),
        confusion=np.sum(matrices, axis=0),
        test_per_train=ratio,
    )


def _spread(values: Sequence[float], test_per_train: float, possible: Interval) -> Spread:
    """The spread of a score; its interval ends where the score does."""
    there = np.array([value for value in values if not math.isnan(value)], dtype=np.float64)
    if len(there) == 0:
        return Spread(math.nan, math.nan, Interval(math.nan, math.nan), tuple(values))
    found = resampled_mean_interval(there, test_per_train=test_per_train)
    deviation = float(there.std(ddof=1)) if len(there) > 1 else math.nan
    # max and min let NaN through only as their first argument.
    interval = Interval(max(found.low, possible.low), min(found.high, possible.high))
    return Spread(float(there.mean()), deviation, interval, tuple(values))
