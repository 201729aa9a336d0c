"""Intervals and tests where pictures come in groups: those of one patient or one video succeed and fail together.

A thousand pictures of five patients say of a sixth about as much as five pictures do. Formulas that take pictures for
independent promise far too much there: with 20 groups of 50 and an intraclass correlation of 0.3, their 95% interval of
an accuracy holds the true one in 37% of 2,000 tests, those of this module in 94% (tests/metrics/test_grouped.py).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse, special

from netloom.metrics.intervals import Interval, bootstrap_interval, mean_interval, wilson_interval
from netloom.metrics.scores import f1_from_margins

IntArray = npt.NDArray[np.integer[Any]]
# Of G groups one resample in G^(G - 1) holds a single one; below this G that is more often than 1 in 40.
_LEAST_RESAMPLED = 4


def grouped_share_interval(right: npt.NDArray[np.bool_], groups: IntArray, *, confidence: float = 0.95) -> Interval:
    """Wilson's interval of a share such as accuracy for as many independent pictures as `groups` are worth, 0..1.

    The variance of the share is that between groups, with the degrees of freedom of their number; both take
    into account that groups differ in size. Never worth more than there are pictures, nor less than there are groups,
    since a group tells at least as much as one picture of it does. Where all are right, or all wrong, nothing is known
    of how alike the pictures of a group are, and each group counts as one picture.

    Source: Korn and Graubard, "Confidence intervals for proportions with small expected number of positive counts
    estimated from survey data", Survey Methodology 24, 1998 (effective sample size); with Wilson's interval
    recommended by Dean and Pagano, "Evaluating confidence interval methods for binomial proportions in clustered
    surveys", Journal of Survey Statistics and Methodology 3, 2015.

    Args:
        right: Whether each picture was, `[N]`.
        groups: The group of each, from 0 on, `[N]`.
        confidence: Share of intervals that hold the true share.

    Raises:
        ValueError: There is no picture.
    """
    n = len(right)
    if n == 0:
        raise ValueError("The interval of a share needs at least one picture; found none.")
    share, n_groups = float(right.mean()), _effective_groups(groups)
    if n_groups == n:
        return wilson_interval(int(right.sum()), n, confidence=confidence)
    variance = _variance_of_mean(right.astype(np.float64), groups)
    if share in (0.0, 1.0) or not variance > 0:
        return wilson_interval(share * n_groups, n_groups, confidence=confidence)
    tail = 0.5 + confidence / 2
    freedom = (float(special.stdtrit(n - 1, tail)) / float(special.stdtrit(n_groups - 1, tail))) ** 2
    # The variance of a share cannot exceed that of groups whose pictures all agree, which is the lower end here.
    worth = max(min(float(n), share * (1 - share) / variance * freedom), n_groups)
    return wilson_interval(share * worth, worth, confidence=confidence)


def grouped_mean_interval(
    values: npt.NDArray[np.floating[Any]], groups: IntArray, *, confidence: float = 0.95
) -> Interval:
    """Interval of the mean of `values` `[N]` by Student's t over the groups they come in; NaN for a single group.

    Source: Cochran, "Sampling techniques", 3rd edition 1977, section 9A (the ratio estimate for clusters of unequal
    size).
    """
    n_groups = _effective_groups(groups)
    if n_groups == len(values):
        return mean_interval(values, confidence=confidence)
    if n_groups == 1:
        return Interval(math.nan, math.nan)
    mean = float(np.mean(values, dtype=np.float64))
    # A group that outweighs all others leaves less than one degree of freedom, for which no interval is of any use.
    quantile = float(special.stdtrit(max(n_groups - 1, 1.0), 0.5 + confidence / 2))
    half_width = quantile * math.sqrt(_variance_of_mean(values.astype(np.float64), groups))
    return Interval(mean - half_width, mean + half_width)


def grouped_macro_f1_interval(
    targets: IntArray, predictions: IntArray, groups: IntArray, n_classes: int, *, seed: int = 0
) -> Interval:
    """Bootstrap interval of macro F1, groups drawn anew with replacement; that of the accuracy where F1 cannot vary.

    NaN for fewer than four groups: one resample in 27 of three is a single group over and over, so that there is
    nothing beyond to be the outer 2.5%.

    Source: Davison and Hinkley, "Bootstrap methods and their application", 1997, section 3.8 (resampling clusters).
    """
    right = targets == predictions
    if right.all() or not right.any():
        return grouped_share_interval(right, groups)
    numbers = np.unique(groups, return_inverse=True)[1]
    n_groups = int(numbers.max()) + 1
    if n_groups < _LEAST_RESAMPLED:
        return Interval(math.nan, math.nan)
    by_true, by_predicted = (_counts(numbers, classes, n_groups, n_classes) for classes in (targets, predictions))
    by_correct = _counts(numbers[right], targets[right], n_groups, n_classes)

    def macro_f1_of(drawn: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        f1 = f1_from_margins(drawn @ by_correct, drawn @ by_predicted, drawn @ by_true)
        return np.asarray(np.nanmean(f1, axis=1))

    return bootstrap_interval(np.ones(n_groups, dtype=np.int64), macro_f1_of, seed=seed)


def count_by_groups(
    first_right: npt.NDArray[np.bool_], second_right: npt.NDArray[np.bool_], groups: IntArray
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """How many more of its pictures the second got right, and how many pictures there are, of each group int64 `[G]`.

    Args:
        first_right: Whether the first classifier was right, `[N]`.
        second_right: Whether the second was, on the same pictures in the same order.
        groups: The group of each picture, `[N]`.
    """
    numbers = np.unique(groups, return_inverse=True)[1]
    gained = np.bincount(numbers, weights=second_right.astype(np.int64) - first_right)
    return gained.astype(np.int64), np.bincount(numbers).astype(np.int64)


def sign_flip_p_value(differences: IntArray) -> float:
    """Two-sided exact p-value of "as often for the one as for the other" from the differences of groups `[G]`, 0..1.

    A group's difference is how many more of its pictures the second classifier got right. Under that hypothesis it is
    as likely to have the other sign, whatever ties its pictures together. The sum over all choices of signs is
    counted out; with one picture a group that is McNemar's exact test.

    Source: Fisher, "The design of experiments", 1935, section 21; for clusters Dwass, "Modified randomization tests for
    nonparametric hypotheses", Annals of Mathematical Statistics 28, 1957.
    """
    sizes = np.abs(np.asarray(differences, dtype=np.int64))
    sizes = np.sort(sizes[sizes > 0])
    reach = int(sizes.sum())
    # Probabilities of the part of the sum that has a positive sign, 0 to `reach`.
    chances, upto = np.zeros(reach + 1), 0
    chances[0] = 1.0
    for size in sizes.tolist():
        chances[size : upto + size + 1] = chances[size : upto + size + 1] / 2 + chances[: upto + 1] / 2
        chances[:size] /= 2
        upto += size
    sums = 2 * np.arange(reach + 1) - reach
    return min(1.0, float(chances[np.abs(sums) >= abs(int(np.sum(differences)))].sum()))


def grouped_difference_interval(
    differences: IntArray, sizes: IntArray, *, confidence: float = 0.95, n_resamples: int = 10_000, seed: int = 0
) -> Interval:
    """Bootstrap interval of a difference of accuracies on the same pictures, groups drawn anew, -1..1.

    Args:
        differences: How many more of its pictures the second got right, of each group `[G]`.
        sizes: Pictures in each group `[G]`.
        confidence: Share of intervals that hold the true difference.
        n_resamples: Number of resampled tests.
        seed: The same seed gives the same interval.
    """
    difference = float(differences.sum() / sizes.sum())
    if (differences * sizes.sum() == differences.sum() * sizes).all():
        # No group differs from another: as far as Wilson's interval lets other groups occur.
        reach = (1 - wilson_interval(len(sizes), len(sizes), confidence=confidence).low) * (1 + abs(difference))
        return Interval(max(-1.0, difference - reach), min(1.0, difference + reach))
    return bootstrap_interval(
        np.ones(len(sizes), dtype=np.int64),
        lambda drawn: (drawn @ differences) / (drawn @ sizes),
        confidence=confidence,
        n_resamples=n_resamples,
        seed=seed,
    )


def _effective_groups(groups: IntArray) -> float:
    """How many groups of one size say as much of a mean over all pictures, 1..G: the number G where all have one size.

    Source: Kish, "Survey sampling", 1965 (the loss by weights that differ; a group weighs as much as it has pictures).
    """
    sizes = np.unique(groups, return_counts=True)[1]
    return int(sizes.sum()) ** 2 / int(np.square(sizes).sum())


def _variance_of_mean(values: npt.NDArray[np.float64], groups: IntArray) -> float:
    """Of the mean over all pictures, from how it changes when a group is left out; NaN for a single group.

    A large group draws the mean towards itself, so that its own deviation from it says too little.

    Source: Bell and McCaffrey, "Bias reduction in standard errors for linear regression with multi-stage samples",
    Survey Methodology 28, 2002 (the jackknife).
    """
    numbers, sizes = np.unique(groups, return_inverse=True, return_counts=True)[1:]
    n_groups = len(sizes)
    if n_groups == 1:
        return math.nan
    # Multiplied, not divided, so that groups of the very same share differ by nothing, not by a rounding error.
    residuals = np.bincount(numbers, weights=values) * len(values) - sizes * values.sum()
    changes = residuals / len(values) / (len(values) - sizes)
    return float((n_groups - 1) / n_groups * np.square(changes).sum())


def _counts(rows: IntArray, columns: IntArray, n_rows: int, n_columns: int) -> Any:
    """Sparse `[n_rows, n_columns]`: how often each pair occurs."""
    return sparse.csr_array((np.ones(len(rows), dtype=np.int64), (rows, columns)), shape=(n_rows, n_columns))
