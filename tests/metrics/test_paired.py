"""Paired comparisons against SciPy, published tables, and their own promises by simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from netloom.metrics.intervals import wilson_interval
from netloom.metrics.paired import (
    PairedCounts,
    count_pairs,
    holm_adjusted,
    independent_difference_interval,
    mcnemar_p_value,
    paired_difference_interval,
)


@pytest.mark.parametrize(("b", "c"), [(0, 0), (0, 1), (5, 0), (0, 6), (7, 7), (3, 12), (59, 6), (400, 460)])
def test_mcnemar_is_scipys_binomial_test_of_the_disagreements(b, c):
    expected = stats.binomtest(b, b + c, 0.5).pvalue if b + c else 1.0
    assert mcnemar_p_value(PairedCounts(b, c, 1000)) == pytest.approx(expected, rel=1e-10)
    assert mcnemar_p_value(PairedCounts(c, b, 1000)) == pytest.approx(expected, rel=1e-10)


def test_counts_are_those_of_answers_compared_one_by_one():
    rng = np.random.default_rng(0)
    first, second = rng.random(500) < 0.8, rng.random(500) < 0.7
    counts = count_pairs(first, second)
    table = stats.contingency.crosstab(first, second).count  # rows: first wrong, right
    assert counts == (table[1, 0], table[0, 1], 500)
    assert counts.difference == pytest.approx(second.mean() - first.mean())


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (np.ones(3, bool), np.ones(4, bool)),
        (np.ones(0, bool), np.ones(0, bool)),
        (np.ones((2, 2), bool), np.ones((2, 2), bool)),
        (np.ones(3, int), np.ones(3, bool)),
    ],
)
def test_answers_that_are_no_pairs_are_refused(first, second):
    with pytest.raises(ValueError, match="found"):
        count_pairs(first, second)


def test_paired_interval_is_scipys_percentile_bootstrap_of_the_pairs():
    counts = PairedCounts(31, 12, 200)
    per_picture = np.repeat([-1, 1, 0], [31, 12, 157])
    theirs = stats.bootstrap((per_picture,), np.mean, method="percentile", n_resamples=10_000, rng=1)
    # A step of the difference is 1/200; both ends carry a resampling error below that.
    np.testing.assert_allclose(paired_difference_interval(counts), theirs.confidence_interval, atol=0.0051)


def test_paired_interval_holds_the_truth_as_often_as_it_says():
    """Coverage over 400 simulated tests of 300 pictures: 95% with a standard error of 1.1%."""
    draws = np.random.default_rng(0).multinomial(300, [0.10, 0.16, 0.74], size=400)
    intervals = [paired_difference_interval(PairedCounts(b, c, 300), n_resamples=1000) for b, c, _ in draws.tolist()]
    covered = np.mean([low <= 0.06 <= high for low, high in intervals])
    assert 0.915 <= covered <= 0.985


def test_paired_interval_has_a_width_where_no_resample_differs():
    """Of pictures that never disagree, at most a share of 1 - Wilson's lower end would; a win lost counts twice."""
    low_end = wilson_interval(50, 50).low
    assert paired_difference_interval(PairedCounts(0, 0, 50)) == pytest.approx((low_end - 1, 1 - low_end))
    assert paired_difference_interval(PairedCounts(0, 50, 50)) == pytest.approx((2 * low_end - 1, 1))
    assert paired_difference_interval(PairedCounts(50, 0, 50)) == pytest.approx((-1, 1 - 2 * low_end))


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ((56, 70), (48, 80), (0.0524, 0.3339)),
        ((9, 10), (3, 10), (0.1705, 0.8090)),
        ((10, 10), (0, 20), (0.6791, 1.0000)),
        ((0, 10), (0, 20), (-0.1611, 0.2775)),
    ],
)
def test_independent_interval_of_newcombes_table(first, second, expected):
    """Newcombe 1998, table II, method 10, which takes the first proportion minus the second."""
    assert independent_difference_interval(*second, *first) == pytest.approx(expected, abs=5e-5)


@pytest.mark.parametrize(
    ("p_values", "expected"),
    [
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),
        ([0.5, 0.6, 0.9], [1, 1, 1]),
        ([0.02], [0.02]),
        ([], []),
    ],
)
def test_holm_is_the_procedure_worked_by_hand(p_values, expected):
    """Holm 1979: the k-th smallest of M times M - k + 1, never below the one before, at most 1."""
    np.testing.assert_allclose(holm_adjusted(p_values), expected)


def test_holm_errs_in_at_most_five_of_a_hundred_families():
    """2,000 families of six true hypotheses: 5% with a standard error of 0.5%."""
    families = np.random.default_rng(0).random((2000, 6))
    wrong = np.mean([holm_adjusted(family).min() < 0.05 for family in families])
    assert 0.035 <= wrong <= 0.065
