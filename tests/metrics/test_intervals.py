"""Intervals against SciPy, a published table, and their own promise: 95 of 100 hold the truth."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import f1_score

from netloom.metrics.intervals import (
    bootstrap_interval,
    macro_f1_interval,
    mean_interval,
    prediction_interval,
    resampled_prediction_interval,
    wilson_interval,
)
from netloom.metrics.scores import confusion_matrix, macro_f1


@pytest.mark.parametrize(("successes", "n"), [(0, 10), (1, 10), (10, 10), (351, 360), (1, 1)])
@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
def test_wilson_interval_is_scipys(successes, n, confidence):
    expected = stats.binomtest(successes, n).proportion_ci(confidence, method="wilson")
    interval = wilson_interval(successes, n, confidence=confidence)
    np.testing.assert_allclose(interval, (expected.low, expected.high), atol=1e-12)
    assert 0 <= interval.low < interval.high <= 1


def test_wilson_interval_of_newcombes_table():
    """Newcombe, "Two-sided confidence intervals for the single proportion", 1998, table I."""
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson_interval(15, 148) == pytest.approx((0.0624, 0.1605), abs=5e-5)
    assert wilson_interval(0, 20) == pytest.approx((0, 0.1611), abs=5e-5)


@pytest.mark.parametrize(("successes", "n"), [(1, 0), (-1, 5), (6, 5)])
def test_impossible_counts_are_refused(successes, n):
    with pytest.raises(ValueError, match=f"found {successes} of {n}"):
        wilson_interval(successes, n)


def test_confidence_in_percent_is_refused():
    with pytest.raises(ValueError, match="found 95"):
        wilson_interval(1, 2, confidence=95)


def test_mean_interval_is_scipys_t_interval():
    values = np.random.default_rng(0).gamma(1.0, size=37)
    expected = stats.t.interval(0.9, df=36, loc=values.mean(), scale=stats.sem(values))
    np.testing.assert_allclose(mean_interval(values, confidence=0.9), expected)


def test_mean_interval_of_one_value_is_unknown_and_of_none_an_error():
    assert np.isnan(mean_interval(np.array([1.0]))).all()
    with pytest.raises(ValueError, match="found none"):
        mean_interval(np.array([]))


def test_bootstrap_of_a_mean_is_scipys_percentile_bootstrap():
    values = np.random.default_rng(0).normal(size=80)
    ours = bootstrap_interval(np.ones(80, dtype=np.int64), lambda counts: counts @ values / 80, n_resamples=20_000)
    theirs = stats.bootstrap((values,), np.mean, method="percentile", n_resamples=20_000, rng=1).confidence_interval
    # Both ends carry a resampling error of about 0.01 standard deviations of the mean (0.11).
    np.testing.assert_allclose(ours, theirs, atol=0.01)


def test_macro_f1_interval_is_that_of_resampled_pictures():
    """Reference: pictures drawn anew one by one, scored by scikit-learn."""
    rng = np.random.default_rng(3)
    targets = rng.choice(4, 150, p=[0.5, 0.3, 0.15, 0.05])
    predictions = np.where(rng.random(150) < 0.7, targets, rng.integers(0, 4, 150))
    draws = rng.integers(0, 150, (400, 150))
    expected = np.quantile(
        [f1_score(targets[d], predictions[d], average="macro", zero_division=np.nan) for d in draws],
        [0.025, 0.975],
    )
    confusion = confusion_matrix(targets, predictions, 4)
    interval = macro_f1_interval(confusion, n_resamples=4000)
    np.testing.assert_allclose(interval, expected, atol=0.02)
    assert interval.low < macro_f1(confusion) < interval.high


def test_macro_f1_interval_repeats_and_depends_on_the_seed():
    confusion = np.array([[40, 10], [5, 45]])
    assert macro_f1_interval(confusion) == macro_f1_interval(confusion)
    assert macro_f1_interval(confusion) != macro_f1_interval(confusion, seed=1)


def test_macro_f1_interval_does_not_depend_on_how_many_resamples_fit_in_memory(monkeypatch):
    confusion = np.array([[40, 10], [5, 45]])
    at_once = macro_f1_interval(confusion)
    monkeypatch.setattr("netloom.metrics.intervals._CELLS_AT_ONCE", 40)
    assert macro_f1_interval(confusion) == at_once


def test_macro_f1_interval_holds_the_truth_as_often_as_it_says():
    """Coverage over 300 simulated tests of 200 pictures: 95% with a standard error of 1.3%."""
    shares = np.array([[0.4, 0.1], [0.08, 0.42]])
    truth = macro_f1(np.round(shares * 100).astype(np.int64))
    draws = np.random.default_rng(0).multinomial(200, shares.ravel(), size=300).reshape(-1, 2, 2)
    intervals = np.array([macro_f1_interval(c, n_resamples=300, seed=i) for i, c in enumerate(draws)])
    coverage = np.mean((intervals[:, 0] <= truth) & (truth <= intervals[:, 1]))
    assert 0.91 <= coverage <= 0.98


def test_macro_f1_interval_of_all_right_or_all_wrong_is_that_of_the_accuracy():
    assert macro_f1_interval(np.diag([10, 20])) == wilson_interval(30, 30)
    assert macro_f1_interval(np.array([[0, 10], [20, 0]])) == wilson_interval(0, 30)


def test_an_empty_confusion_matrix_has_no_interval():
    with pytest.raises(ValueError, match="found none"):
        macro_f1_interval(np.zeros((2, 2), dtype=np.int64))


def test_one_more_value_falls_into_the_prediction_interval_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    drawn = generator.normal(2.0, 0.5, (4000, 4))
    inside = [
        low <= more <= high
        for *known, more in drawn
        for low, high in [prediction_interval(float(np.mean(known)), float(np.std(known, ddof=1)), 3)]
    ]
    assert np.mean(inside) == pytest.approx(0.95, abs=0.012)
    with pytest.raises(ValueError, match="at least two"):
        prediction_interval(1.0, 0.0, 1)


def test_another_mean_of_as_many_falls_into_the_interval_as_often_as_it_says() -> None:
    """Of independent values, which is what no overlap of the training parts comes to."""
    drawn = np.random.default_rng(0).normal(2.0, 0.5, (4000, 2, 4))
    inside = [
        low <= more.mean() <= high
        for known, more in drawn
        for low, high in [resampled_prediction_interval(known.mean(), known.std(ddof=1), 4, test_per_train=1e-12)]
    ]
    assert np.mean(inside) == pytest.approx(0.95, abs=0.012)
    low, high = resampled_prediction_interval(0.0, 1.0, 4, test_per_train=1e-12)
    wide = resampled_prediction_interval(0.0, 1.0, 4, test_per_train=0.25)
    assert wide == pytest.approx((math.sqrt(2) * low, math.sqrt(2) * high))
    with pytest.raises(ValueError, match="found 1"):
        resampled_prediction_interval(1.0, 0.1, 1, test_per_train=0.5)
    with pytest.raises(ValueError, match="positive"):
        resampled_prediction_interval(1.0, 0.1, 2, test_per_train=0.0)


def test_another_draw_of_folds_falls_into_it_at_least_as_often() -> None:
    """Of one set of numbers whose mean is learned; scored by how far the held-out ones are from it."""
    generator = np.random.default_rng(0)

    def by_folds(pool: np.ndarray, k: int) -> np.ndarray:
        folds = generator.permutation(pool).reshape(k, -1)
        return np.array([np.mean((folds[i] - np.delete(folds, i, axis=0).mean()) ** 2) for i in range(k)])

    inside = []
    for _ in range(400):
        pool = generator.normal(size=20)
        known, more = by_folds(pool, 5), by_folds(pool, 5)
        low, high = resampled_prediction_interval(known.mean(), known.std(ddof=1), 5, test_per_train=0.25)
        inside.append(low <= more.mean() <= high)
    assert np.mean(inside) >= 0.95
