"""How far a score could be from the truth by the luck of which pictures were tested."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import sparse, special

from netloom.metrics.scores import f1_from_margins
from netloom.randomness import derive_seed

# Counts held at once while resampling: 32 MB of int64, small beside a decoded data set.
_CELLS_AT_ONCE = 4_000_000


class Interval(NamedTuple):
    """A confidence interval, both ends included."""

    low: float
    high: float

    def within(self, low: float = 0.0, high: float = 1.0) -> Interval:
        """The part of it where a score can be; an end that is NaN stays so."""
        # max and min let NaN through only as their first argument.
        return Interval(min(max(self.low, low), high), max(min(self.high, high), low))


class Estimate(NamedTuple):
    """A score with the number of pictures it was measured on and its confidence interval."""

    value: float
    n: int
    interval: Interval
    groups: int | None = None
    """How many groups the pictures come in, which the interval takes into account; None for independent pictures."""


def wilson_interval(successes: float, n: float, *, confidence: float = 0.95) -> Interval:
    """Interval of a proportion such as accuracy, 0..1.

    Unlike the normal approximation it holds for small `n` and near 0 and 1. `n` need not be whole, where it says how
    many independent pictures those that there are are worth.

    Source: Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22,
    1927; recommended by Brown, Cai and DasGupta, "Interval estimation for a binomial proportion",
    2001.

    Raises:
        ValueError: `n` is below 1, or `successes` is not within `0..n`.
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"Expected 0 <= successes <= n and n >= 1; found {successes} of {n}.")
    z = _normal_quantile(confidence)
    share = successes / n
    shrink = 1 + z**2 / n
    centre = (share + z**2 / (2 * n)) / shrink
    half_width = z / shrink * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    # At the ends the formula gives exactly 0 and 1; rounding must not push them outside.
    return Interval(
        0.0 if successes == 0 else centre - half_width,
        1.0 if successes == n else centre + half_width,
    )


def mean_interval(values: npt.NDArray[np.floating[Any]], *, confidence: float = 0.95) -> Interval:
    """Interval of the mean of independent `values` `[N]` by Student's t; NaN for a single value.

    Raises:
        ValueError: There is no value.
    """
    n = len(values)
    if n == 0:
        raise ValueError("The interval of a mean needs at least one value; found none.")
    if n == 1:
        return Interval(math.nan, math.nan)
    _check_confidence(confidence)
    standard_error = float(np.std(values, ddof=1, dtype=np.float64)) / math.sqrt(n)
    half_width = float(special.stdtrit(n - 1, 0.5 + confidence / 2)) * standard_error
    mean = float(np.mean(values, dtype=np.float64))
    return Interval(mean - half_width, mean + half_width)


def prediction_interval(mean: float, standard_deviation: float, n: int, *, confidence: float = 0.95) -> Interval:
    """Where one more value is to be expected, of which `n` have this mean and sample standard deviation.

    Wider than the interval of the mean by what the new value itself scatters: mean ± t(n - 1) s sqrt(1 + 1/n).

    Source: Hahn, Meeker, "Statistical Intervals", 1991, section 4.7.

    Raises:
        ValueError: Fewer than two values, or `confidence` is not in (0, 1).
    """
    if n < 2:
        raise ValueError(f"an interval needs at least two values, not {n}")
    _check_confidence(confidence)
    half = float(special.stdtrit(n - 1, (1 + confidence) / 2)) * standard_deviation * math.sqrt(1 + 1 / n)
    return Interval(mean - half, mean + half)


def resampled_mean_interval(
    values: npt.NDArray[np.floating[Any]], *, test_per_train: float, confidence: float = 0.95
) -> Interval:
    """Interval of the mean of `values` `[k]`, one for each of k trainings on overlapping parts of the same pictures.

    Their spread alone is too small, since any two trainings share most pictures: Student's t of independent values
    would take 1/k of the variance. Here it is 1/k + n_test / n_train. NaN for a single value.

    Source: Nadeau and Bengio, "Inference for the generalization error", Machine Learning 52, 2003, section 3
    (corrected resampled t-test).

    Args:
        values: A score of each training.
        test_per_train: Pictures tested by a training, divided by those it was given to learn from.
        confidence: Share of intervals that hold the true mean.

    Raises:
        ValueError: There is no value, or `test_per_train` is not positive.
    """
    n = len(values)
    if n == 0 or not test_per_train > 0:
        raise ValueError(f"Expected values and a positive n_test / n_train; found {n} values and {test_per_train}.")
    if n == 1:
        return Interval(math.nan, math.nan)
    _check_confidence(confidence)
    variance = float(np.var(values, ddof=1, dtype=np.float64)) * (1 / n + test_per_train)
    half_width = float(special.stdtrit(n - 1, 0.5 + confidence / 2)) * math.sqrt(variance)
    mean = float(np.mean(values, dtype=np.float64))
    return Interval(mean - half_width, mean + half_width)


def resampled_prediction_interval(
    mean: float, standard_deviation: float, n: int, *, test_per_train: float, confidence: float = 0.95
) -> Interval:
    """Where the mean of `n` more trainings is to be expected, on parts of the same pictures that are drawn anew.

    Both means have the variance of `resampled_mean_interval`: mean ± t(n - 1) s sqrt(2 (1/n + n_test / n_train)). They
    are taken for independent. Being of the same pictures they are not, and differ by less: the interval errs on the
    side of being wide.

    Args:
        mean: Of the scores of `n` trainings.
        standard_deviation: Of these scores, with n - 1.
        n: At least 2.
        test_per_train: As for `resampled_mean_interval`.
        confidence: Share of intervals that hold the other mean, at least.

    Raises:
        ValueError: Fewer than two trainings, or `test_per_train` is not positive.
    """
    if n < 2 or not test_per_train > 0:
        raise ValueError(
            f"Expected at least 2 trainings and a positive n_test / n_train; found {n} and {test_per_train}."
        )
    _check_confidence(confidence)
    half = float(special.stdtrit(n - 1, (1 + confidence) / 2)) * standard_deviation
    half *= math.sqrt(2 * (1 / n + test_per_train))
    return Interval(mean - half, mean + half)


def bootstrap_interval(
    counts: npt.NDArray[np.integer[Any]],
    statistic: Callable[[npt.NDArray[np.int64]], npt.NDArray[np.float64]],
    *,
    confidence: float = 0.95,
    n_resamples: int = 1000,
    seed: int = 0,
) -> Interval:
    """Percentile interval of a score without a formula, from tests on resampled pictures.

    Drawing the tested pictures anew with replacement is drawing how often each outcome occurs from
    a multinomial distribution, so that one call draws all resamples. For a statistic of N single
    values, `counts` is N ones.

    Source: Efron, "Bootstrap methods: another look at the jackknife", Annals of Statistics 7, 1979.

    Args:
        counts: How often each of M distinct outcomes occurred, `[M]`.
        statistic: Maps resampled counts int64 `[R, M]` to the score of each, float64 `[R]`.
        confidence: Share of intervals that hold the true score.
        n_resamples: Number of resampled tests.
        seed: The same seed gives the same interval.

    Raises:
        ValueError: `counts` counts nothing.
    """
    n = int(counts.sum())
    if n == 0:
        raise ValueError("A bootstrap interval needs at least one picture; found none.")
    _check_confidence(confidence)
    generator = np.random.Generator(np.random.Philox(derive_seed(seed, "bootstrap")))
    shares = counts / n
    at_once = max(1, _CELLS_AT_ONCE // len(counts))
    scores = [
        statistic(generator.multinomial(n, shares, size=min(at_once, n_resamples - done)))
        for done in range(0, n_resamples, at_once)
    ]
    tail = (1 - confidence) / 2
    low, high = np.quantile(np.concatenate(scores), [tail, 1 - tail])
    return Interval(float(low), float(high))


def macro_f1_interval(
    confusion: npt.NDArray[np.integer[Any]],
    *,
    confidence: float = 0.95,
    n_resamples: int = 1000,
    seed: int = 0,
) -> Interval:
    """Bootstrap interval of the macro F1 of a confusion matrix `[K, K]` (see `bootstrap_interval`).

    Where all answers are right, or all wrong, so are those of every resample, and the interval
    would have no width. Then the interval of the accuracy stands in.

    Raises:
        ValueError: The confusion matrix counts no picture.
    """
    n, n_correct = int(confusion.sum()), int(np.trace(confusion))
    if n and n_correct in (0, n):
        return wilson_interval(n_correct, n, confidence=confidence)
    # At most min(N, K^2) cells are not empty: with 1,000 classes a hundredth of the matrix.
    true, predicted = np.nonzero(confusion)
    by_true = _group_sums(true, len(confusion))
    by_predicted = _group_sums(predicted, len(confusion))
    by_correct = _group_sums(np.where(true == predicted, true, -1), len(confusion))

    def macro_f1_of(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        f1 = f1_from_margins(counts @ by_correct, counts @ by_predicted, counts @ by_true)
        return np.asarray(np.nanmean(f1, axis=1))

    return bootstrap_interval(
        np.asarray(confusion)[true, predicted],
        macro_f1_of,
        confidence=confidence,
        n_resamples=n_resamples,
        seed=seed,
    )


def _group_sums(groups: npt.NDArray[np.integer[Any]], n_groups: int) -> Any:
    """Sparse `[M, n_groups]` matrix that sums M columns by group; group -1 belongs to none."""
    kept = np.flatnonzero(groups >= 0)
    ones = np.ones(len(kept), dtype=np.int64)
    return sparse.csr_array((ones, (kept, groups[kept])), shape=(len(groups), n_groups))


def _normal_quantile(confidence: float) -> float:
    _check_confidence(confidence)
    return float(special.ndtri(0.5 + confidence / 2))


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be between 0 and 1, such as 0.95; found {confidence}.")
