"""How good predictions are. Classes are indices `0..K-1`; rows of a confusion matrix are true."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.integer[Any]]
FloatArray = npt.NDArray[np.floating[Any]]


class ClassScores(NamedTuple):
    """Scores per class: float64 `[K]` in 0..1 and `support` int64 `[K]`.

    A score whose denominator is zero is NaN, never a made-up 0 or 1: precision of a class that was
    never predicted, recall of a class without pictures, F1 of a class with neither.
    """

    precision: npt.NDArray[np.float64]
    recall: npt.NDArray[np.float64]
    f1: npt.NDArray[np.float64]
    support: npt.NDArray[np.int64]


class MajorityBaseline(NamedTuple):
    """What always answering the commonest training class would score on the test part."""

    class_index: int
    n_correct: int
    accuracy: float


def confusion_matrix(targets: IntArray, predictions: IntArray, n_classes: int) -> npt.NDArray[np.int64]:
    """Count pictures by true class (row) and predicted class (column), int64 `[K, K]`.

    Args:
        targets: True class indices `[N]`; N may be 0.
        predictions: Predicted class indices `[N]`.
        n_classes: Number of classes K.

    Raises:
        ValueError: The arrays differ in shape, or hold an index outside `0..n_classes-1`.
    """
    _check_same_shape(targets, predictions)
    for name, values in (("targets", targets), ("predictions", predictions)):
        if values.size and (values.min() < 0 or values.max() >= n_classes):
            raise ValueError(
                f"{name} must hold class indices 0..{n_classes - 1}; found {values.min()}..{values.max()}."
            )
    cells = targets.astype(np.int64) * n_classes + predictions.astype(np.int64)
    return np.bincount(cells, minlength=n_classes**2).reshape(n_classes, n_classes)


def accuracy(targets: IntArray, predictions: IntArray) -> float:
    """Share of pictures whose predicted class is the true one, 0..1.

    Raises:
        ValueError: The arrays differ in shape or are empty.
    """
    _check_same_shape(targets, predictions)
    _check_not_empty(targets)
    return float(np.mean(targets == predictions))


def per_class_scores(confusion: IntArray) -> ClassScores:
    """Precision, recall, F1 and support of every class of a confusion matrix `[K, K]`."""
    correct, predicted, support = _margins(confusion)
    return ClassScores(
        precision=_ratio(correct, predicted),
        recall=_ratio(correct, support),
        f1=f1_from_margins(correct, predicted, support),
        support=support,
    )


def macro_f1(confusion: IntArray) -> float:
    """Mean F1 over the classes that occur among targets or predictions, 0..1.

    Raises:
        ValueError: The confusion matrix `[K, K]` counts no picture.
    """
    _check_counts(confusion)
    return float(np.nanmean(per_class_scores(confusion).f1))


def balanced_accuracy(confusion: IntArray) -> float:
    """Mean recall over the classes that have pictures, 0..1: a rare class counts like any other.

    Raises:
        ValueError: The confusion matrix `[K, K]` counts no picture.
    """
    _check_counts(confusion)
    return float(np.nanmean(per_class_scores(confusion).recall))


def f1_from_margins(
    correct: npt.ArrayLike, predicted: npt.ArrayLike, support: npt.ArrayLike
) -> npt.NDArray[np.float64]:
    """F1 = 2 TP / (predicted + support), any shape; NaN where a class is in neither count."""
    return _ratio(2 * np.asarray(correct), np.asarray(predicted) + np.asarray(support))


def sample_log_losses(probabilities: FloatArray, targets: IntArray) -> npt.NDArray[np.float64]:
    """Negative logarithm of the probability given to the true class, float64 `[N]`, in nats.

    Probabilities are held at least one machine epsilon of their dtype away from zero (as
    scikit-learn does), so that one confident mistake gives a large number (15.9 in float32), not
    infinity.

    Args:
        probabilities: `[N, K]`, rows summing to 1.
        targets: True class indices `[N]`.

    Raises:
        ValueError: The shapes do not fit.
    """
    _check_rows(probabilities, targets)
    of_true_class = probabilities[np.arange(len(targets)), targets]
    return -np.log(np.maximum(of_true_class, np.finfo(probabilities.dtype).eps, dtype=np.float64))


def log_loss(probabilities: FloatArray, targets: IntArray) -> float:
    """Mean of `sample_log_losses`, in nats: 0 is perfect, `log(K)` is knowing nothing.

    Raises:
        ValueError: The shapes do not fit, or there is no picture.
    """
    _check_not_empty(targets)
    return float(sample_log_losses(probabilities, targets).mean())


def top_k_accuracy(probabilities: FloatArray, targets: IntArray, k: int) -> float:
    """Share of pictures whose true class is among the `k` most probable, 0..1.

    Of equally probable classes the lower index comes first, so that `k=1` is the accuracy of
    `argmax`.

    Raises:
        ValueError: The shapes do not fit, there is no picture, or `k` is below 1.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1; found {k}.")
    _check_not_empty(targets)
    _check_rows(probabilities, targets)
    of_true_class = probabilities[np.arange(len(targets)), targets][:, None]
    comes_first = np.arange(probabilities.shape[1]) < targets[:, None]
    ahead = (probabilities > of_true_class) | ((probabilities == of_true_class) & comes_first)
    return float(np.mean(ahead.sum(axis=1) < k))


def majority_baseline(train_targets: IntArray, test_targets: IntArray) -> MajorityBaseline:
    """Score on the test part of always answering the commonest training class.

    Of equally common classes it is the one with the lowest index.

    Raises:
        ValueError: Either part is empty.
    """
    _check_not_empty(train_targets)
    _check_not_empty(test_targets)
    commonest = int(np.bincount(train_targets).argmax())
    n_correct = int(np.count_nonzero(test_targets == commonest))
    return MajorityBaseline(commonest, n_correct, n_correct / len(test_targets))


def _margins(confusion: IntArray) -> tuple[npt.NDArray[np.int64], ...]:
    """True positives, predicted counts and true counts per class."""
    counts = np.asarray(confusion, dtype=np.int64)
    return np.diagonal(counts), counts.sum(axis=0), counts.sum(axis=1)


def _ratio(numerator: npt.ArrayLike, denominator: npt.ArrayLike) -> npt.NDArray[np.float64]:
    with np.errstate(invalid="ignore"):
        return np.asarray(np.true_divide(numerator, denominator), dtype=np.float64)


def _check_same_shape(targets: IntArray, predictions: IntArray) -> None:
    if targets.ndim != 1 or targets.shape != predictions.shape:
        raise ValueError(
            "targets and predictions must be two vectors of one length; "
            f"found shapes {targets.shape} and {predictions.shape}."
        )


def _check_rows(probabilities: FloatArray, targets: IntArray) -> None:
    if probabilities.ndim != 2 or targets.shape != probabilities.shape[:1]:
        raise ValueError(
            f"probabilities must be [N, K] and targets [N]; found shapes {probabilities.shape} and {targets.shape}."
        )


def _check_not_empty(targets: IntArray) -> None:
    if targets.size == 0:
        raise ValueError("A score needs at least one picture; found none.")


def _check_counts(confusion: IntArray) -> None:
    if not confusion.any():
        raise ValueError("A score needs at least one picture; the confusion matrix counts none.")
