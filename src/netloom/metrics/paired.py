"""Whether two classifiers differ by more than the luck of which pictures were tested."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import special

from netloom.metrics.intervals import Interval, bootstrap_interval, wilson_interval

BoolArray = npt.NDArray[np.bool_]


class PairedCounts(NamedTuple):
    """How two classifiers answered the same `n` pictures."""

    only_first: int
    """Pictures that only the first one got right."""
    only_second: int
    """Pictures that only the second one got right."""
    n: int

    @property
    def difference(self) -> float:
        """Accuracy of the second minus that of the first, -1..1."""
        return (self.only_second - self.only_first) / self.n


def count_pairs(first_right: BoolArray, second_right: BoolArray) -> PairedCounts:
    """Compare right and wrong answers `[N]` to the same N pictures in the same order.

    Raises:
        ValueError: The arrays are not two boolean vectors of one length, or are empty.
    """
    if first_right.ndim != 1 or first_right.shape != second_right.shape or first_right.size == 0:
        raise ValueError(
            "Answers must be two vectors of one length, at least one picture long; "
            f"found shapes {first_right.shape} and {second_right.shape}."
        )
    if first_right.dtype != np.bool_ or second_right.dtype != np.bool_:
        raise ValueError(f"Answers must be right or wrong, bool; found {first_right.dtype} and {second_right.dtype}.")
    return PairedCounts(
        int(np.count_nonzero(first_right & ~second_right)),
        int(np.count_nonzero(second_right & ~first_right)),
        len(first_right),
    )


def mcnemar_p_value(counts: PairedCounts) -> float:
    """Two-sided exact p-value of "both classifiers are right equally often", 0..1.

    Only the pictures on which they disagree say anything: under that hypothesis each of them is as likely to favour
    the one as the other, so their number is binomial with probability 1/2.

    Source: McNemar, "Note on the sampling error of the difference between correlated proportions or percentages",
    Psychometrika 12, 1947; for classifiers Dietterich, "Approximate statistical tests for comparing supervised
    classification learning algorithms", Neural Computation 10, 1998.
    """
    fewer = min(counts.only_first, counts.only_second)
    return min(1.0, 2 * float(special.bdtr(fewer, counts.only_first + counts.only_second, 0.5)))


def paired_difference_interval(
    counts: PairedCounts, *, confidence: float = 0.95, n_resamples: int = 10_000, seed: int = 0
) -> Interval:
    """Bootstrap interval of `counts.difference`, from the pictures drawn anew in pairs, -1..1.

    With few disagreements it is narrower than it promises; the test of `mcnemar_p_value` is exact there and decides.
    Where all pictures came out the same way, so do those of every resample, and the interval would have no width:
    then it reaches as far as the Wilson interval lets other outcomes occur.
    """
    tied = counts.n - counts.only_first - counts.only_second
    outcomes = np.array([counts.only_first, counts.only_second, tied])
    if np.count_nonzero(outcomes) == 1:
        # A picture that turns out otherwise moves the difference by one picture from a tie, by two from a win.
        others = 1 - wilson_interval(counts.n, counts.n, confidence=confidence).low
        reach = others * (1 + abs(counts.difference))
        return Interval(max(-1.0, counts.difference - reach), min(1.0, counts.difference + reach))
    return bootstrap_interval(
        outcomes,
        lambda resampled: (resampled[:, 1] - resampled[:, 0]) / counts.n,
        confidence=confidence,
        n_resamples=n_resamples,
        seed=seed,
    )


def independent_difference_interval(
    first_right: int, first_n: int, second_right: int, second_n: int, *, confidence: float = 0.95
) -> Interval:
    """Interval of second minus first accuracy where each was tested on pictures of its own, -1..1.

    Source: Newcombe, "Interval estimation for the difference between independent proportions", Statistics in Medicine
    17, 1998, method 10: from the Wilson intervals of the two.

    Raises:
        ValueError: A count is impossible.
    """
    return difference_of_intervals(
        first_right / first_n,
        wilson_interval(first_right, first_n, confidence=confidence),
        second_right / second_n,
        wilson_interval(second_right, second_n, confidence=confidence),
    )


def difference_of_intervals(p_first: float, first: Interval, p_second: float, second: Interval) -> Interval:
    """Newcombe's interval of `p_second - p_first` from intervals of the two shares, of whatever kind, -1..1."""
    difference = p_second - p_first
    return Interval(
        difference - float(np.hypot(p_second - second.low, first.high - p_first)),
        difference + float(np.hypot(second.high - p_second, p_first - first.low)),
    )


def holm_adjusted(p_values: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """P-values of M tests `[M]`, corrected for there being several, in the same order, 0..1.

    Calling those below 0.05 real is wrong about even one of them at most 5 times in 100, however the tests depend on
    each other.

    Source: Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 6, 1979.
    """
    values = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(values, kind="stable")
    stepped = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1))
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted
