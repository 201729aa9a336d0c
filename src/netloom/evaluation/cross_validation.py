"""Scores over the trainings of a cross-validation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from netloom.metrics.grouped import (
    count_by_groups,
    grouped_difference_interval,
    grouped_macro_f1_interval,
    grouped_mean_interval,
    grouped_share_interval,
    sign_flip_p_value,
)
from netloom.metrics.intervals import Interval, macro_f1_interval, resampled_mean_interval
from netloom.metrics.paired import count_pairs, mcnemar_p_value, paired_difference_interval
from netloom.metrics.scores import (
    accuracy,
    confusion_matrix,
    log_loss,
    macro_f1,
    majority_baseline,
    per_class_scores,
    sample_log_losses,
)

_SIGNIFICANT = 0.05


@dataclass(frozen=True, eq=False)
class FoldOutcome:
    """What one training said of the pictures that were held out from it.

    Attributes:
        probabilities: Float32 `[n, K]`.
        targets: True classes, int64 `[n]`.
        learned_targets: Classes of all other pictures it was given, for training or to choose the epoch, int64 `[m]`.
        units: A number for what each picture is or belongs to that is independent of all else, itself or its group,
            int64 `[n]`; the same in every training. None where each picture is held out once and stands for itself.
    """

    probabilities: npt.NDArray[np.float32]
    targets: npt.NDArray[np.int64]
    learned_targets: npt.NDArray[np.int64]
    units: npt.NDArray[np.int64] | None = None


class HeldOutAnswers(NamedTuple):
    """All answers of all trainings to what was held out from them, one after the other."""

    right: npt.NDArray[np.bool_]
    """`[n]`."""
    units: npt.NDArray[np.int64]
    """As of `FoldOutcome`, `[n]`."""

    @property
    def independent(self) -> bool:
        """Whether no two of them are about one unit."""
        return len(np.unique(self.units)) == len(self.units)


@dataclass(frozen=True)
class Spread:
    """A score over trainings.

    Attributes:
        mean: Over the trainings that have it.
        standard_deviation: Of single trainings, with n - 1; NaN for one.
        interval: 95%, of the mean, corrected for overlapping training parts, and no narrower than which pictures there
            were to be held out lets expect; NaN for one training.
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
        answers: To the held-out pictures.
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
    answers: HeldOutAnswers

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


@dataclass(frozen=True)
class Gain:
    """How much more accurate one recipe is than another on the same folds.

    Attributes:
        mean: Of the trainings' differences in accuracy, -1..1.
        interval: 95%, of the mean; as of `Spread`.
        p_value: Of "right equally often on the held-out pictures", McNemar's exact test, or with groups or repeats the
            exact test of their differences' signs.
    """

    mean: float
    interval: Interval
    p_value: float

    @property
    def more_than_noise(self) -> bool:
        """Whether it is above zero by more than the luck of the trainings, and of which pictures there were.

        The interval alone may be narrow because a few folds happen to agree; the exact test knows nothing of training,
        but cannot be deceived by that.
        """
        return self.interval.low > 0 and self.p_value < _SIGNIFICANT


def summarize_folds(outcomes: Sequence[FoldOutcome], n_classes: int) -> CrossValidationScores:
    """Mean, spread and corrected interval of every score; the confusion matrix over all held-out pictures.

    Folds that happen to score alike say nothing of which pictures there are: no interval of a mean is narrower than
    that of the same score of all held-out answers, of which those to one picture or group count together.

    Source: of the latter for the F1 of a class Lam, Gopal and Qian, "Confidence intervals for the F1 score: a
    comparison of four methods", 2023 (Wilson's for the share of pictures that are in the class and taken for it among
    those that are either, from which F1 follows).

    Raises:
        ValueError: There is no outcome.
    """
    if not outcomes:
        raise ValueError("A cross-validation needs at least one training that was tested; found none.")
    ratio = float(np.mean([len(o.targets) / len(o.learned_targets) for o in outcomes]))
    answers = [outcome.probabilities.argmax(axis=1) for outcome in outcomes]
    matrices = [confusion_matrix(o.targets, a, n_classes) for o, a in zip(outcomes, answers, strict=True)]
    by_class = [per_class_scores(matrix) for matrix in matrices]
    baselines = [majority_baseline(o.learned_targets, o.targets) for o in outcomes]
    held_out = _AllAnswers(outcomes, answers, n_classes)

    def spread(values: Sequence[float], pooled: _Pooled, *, high: float = 1.0) -> Spread:
        return _spread(values, ratio, pooled, Interval(0.0, high))

    guessed = np.concatenate([o.targets == b.class_index for o, b in zip(outcomes, baselines, strict=True)])
    classes = range(n_classes)
    return CrossValidationScores(
        accuracy=spread([accuracy(o.targets, a) for o, a in zip(outcomes, answers, strict=True)], held_out.accuracy()),
        macro_f1=spread([macro_f1(matrix) for matrix in matrices], held_out.macro_f1()),
        log_loss=spread([log_loss(o.probabilities, o.targets) for o in outcomes], held_out.log_loss(), high=math.inf),
        majority=spread([baseline.accuracy for baseline in baselines], held_out.share(guessed)),
        recall=tuple(spread([float(scores.recall[i]) for scores in by_class], held_out.recall(i)) for i in classes),
        precision=tuple(
            spread([float(scores.precision[i]) for scores in by_class], held_out.precision(i)) for i in classes
        ),
        f1=tuple(spread([float(scores.f1[i]) for scores in by_class], held_out.f1(i)) for i in classes),
        confusion=np.sum(matrices, axis=0),
        test_per_train=ratio,
        answers=HeldOutAnswers(held_out.right, held_out.units),
    )


def gain(after: CrossValidationScores, before: CrossValidationScores) -> Gain:
    """What one cross-validation gains in accuracy over another of the same folds.

    Raises:
        ValueError: The folds are not the same.
    """
    first, second = before.answers, after.answers
    if not np.array_equal(first.units, second.units) or len(before.accuracy.values) != len(after.accuracy.values):
        raise ValueError("Only cross-validations of the same folds can be compared picture by picture.")
    if first.independent:
        counts = count_pairs(first.right, second.right)
        difference, interval, p_value = counts.difference, paired_difference_interval(counts), mcnemar_p_value(counts)
    else:
        differences, sizes = count_by_groups(first.right, second.right, first.units)
        difference = float(differences.sum() / sizes.sum())
        interval, p_value = grouped_difference_interval(differences, sizes), sign_flip_p_value(differences)
    gains = [b - a for a, b in zip(before.accuracy.values, after.accuracy.values, strict=True)]
    found = _spread(gains, after.test_per_train, _Pooled(difference, interval), Interval(-1.0, 1.0))
    return Gain(found.mean, found.interval, p_value)


class _Pooled(NamedTuple):
    """A score of all held-out answers together, and how far it can be from the truth by which pictures there were."""

    value: float
    interval: Interval


class _AllAnswers:
    """The held-out answers of all trainings, scored together."""

    def __init__(
        self, outcomes: Sequence[FoldOutcome], answers: Sequence[npt.NDArray[np.int64]], n_classes: int
    ) -> None:
        self.targets = np.concatenate([outcome.targets for outcome in outcomes])
        self.answers = np.concatenate(answers)
        self.right = self.targets == self.answers
        given = [outcome.units for outcome in outcomes if outcome.units is not None]
        self.units = np.concatenate(given) if len(given) == len(outcomes) else np.arange(len(self.targets))
        self._losses = np.concatenate([sample_log_losses(o.probabilities, o.targets) for o in outcomes])
        self._n_classes = n_classes

    def share(self, right: npt.NDArray[np.bool_], among: npt.NDArray[np.bool_] | None = None) -> _Pooled:
        """How often, among all or some of the answers."""
        chosen = np.ones(len(right), dtype=np.bool_) if among is None else among
        if not chosen.any():
            return _Pooled(math.nan, Interval(math.nan, math.nan))
        return _Pooled(float(right[chosen].mean()), grouped_share_interval(right[chosen], self.units[chosen]))

    def accuracy(self) -> _Pooled:
        return self.share(self.right)

    def recall(self, index: int) -> _Pooled:
        return self.share(self.right, self.targets == index)

    def precision(self, index: int) -> _Pooled:
        return self.share(self.right, self.answers == index)

    def f1(self, index: int) -> _Pooled:
        value, (low, high) = self.share(self.right, (self.targets == index) | (self.answers == index))
        return _Pooled(2 * value / (1 + value), Interval(2 * low / (1 + low), 2 * high / (1 + high)))

    def macro_f1(self) -> _Pooled:
        confusion = confusion_matrix(self.targets, self.answers, self._n_classes)
        if HeldOutAnswers(self.right, self.units).independent:
            return _Pooled(macro_f1(confusion), macro_f1_interval(confusion))
        interval = grouped_macro_f1_interval(self.targets, self.answers, self.units, self._n_classes)
        return _Pooled(macro_f1(confusion), interval)

    def log_loss(self) -> _Pooled:
        return _Pooled(float(self._losses.mean()), grouped_mean_interval(self._losses, self.units))


def _spread(values: Sequence[float], test_per_train: float, pooled: _Pooled, possible: Interval) -> Spread:
    """The spread of a score; its interval reaches as far as that of `pooled`, but not beyond where the score ends."""
    there = np.array([value for value in values if not math.isnan(value)], dtype=np.float64)
    if len(there) == 0:
        return Spread(math.nan, math.nan, Interval(math.nan, math.nan), tuple(values))
    mean = float(there.mean())
    if len(there) == 1:
        return Spread(mean, math.nan, Interval(math.nan, math.nan), tuple(values))
    found = resampled_mean_interval(there, test_per_train=test_per_train)
    # fmax leaves NaN out, where there is no interval of the pooled answers.
    below = float(np.fmax(mean - found.low, pooled.value - pooled.interval.low))
    above = float(np.fmax(found.high - mean, pooled.interval.high - pooled.value))
    interval = Interval(mean - below, mean + above).within(*possible)
    return Spread(mean, float(there.std(ddof=1)), interval, tuple(values))
