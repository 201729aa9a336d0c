"""Calibration against the formula of Guo et al. as a loop, and simulated classifiers."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.calibration import calibration_curve

from netloom.metrics.calibration import (
    calibration_error_by_chance,
    reliability_bins,
)


def simulate(n: int, *, honesty: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Confidences of 0.5 to 1 and answers that are right `honesty` times as often as claimed."""
    rng = np.random.default_rng(seed)
    confidences = rng.uniform(0.5, 1, n)
    return confidences, rng.random(n) < confidences * honesty


def test_error_is_the_formula_of_the_paper():
    confidences, correct = simulate(500, honesty=0.8)
    expected = 0.0
    for m in range(1, 16):
        inside = (confidences > (m - 1) / 15) & (confidences <= m / 15)
        if inside.any():
            gap = abs(correct[inside].mean() - confidences[inside].mean())
            expected += inside.sum() / 500 * gap
    assert reliability_bins(confidences, correct).expected_calibration_error == pytest.approx(expected)


def test_bins_are_sklearns_calibration_curve():
    confidences, correct = simulate(300, honesty=0.9)
    bins = reliability_bins(confidences, correct, n_bins=10)
    accuracy, confidence = calibration_curve(correct, confidences, n_bins=10)
    filled = bins.counts > 0
    np.testing.assert_allclose(bins.accuracy[filled], accuracy)
    np.testing.assert_allclose(bins.confidence[filled], confidence)
    assert np.isnan(bins.accuracy[~filled]).all()
    assert bins.counts.sum() == 300


def test_zero_and_one_fall_into_the_outer_bins():
    bins = reliability_bins(np.array([0.0, 0.25, 0.5, 1.0]), np.array([False, True, True, True]), n_bins=4)
    assert bins.counts.tolist() == [2, 1, 0, 1]


def test_honest_confidences_stay_below_what_chance_gives_and_others_do_not():
    below = 0
    for seed in range(100):
        confidences, correct = simulate(400, honesty=1, seed=seed)
        error = reliability_bins(confidences, correct).expected_calibration_error
        below += error <= calibration_error_by_chance(confidences, n_resamples=200)
    # 95 of 100 by construction; the binomial standard deviation is 2.2.
    assert 88 <= below <= 100
    confidences, correct = simulate(400, honesty=0.7)
    error = reliability_bins(confidences, correct).expected_calibration_error
    assert error > calibration_error_by_chance(confidences)


def test_chance_repeats_and_shrinks_with_more_answers():
    few, many = (calibration_error_by_chance(simulate(n, honesty=1)[0]) for n in (100, 10_000))
    assert calibration_error_by_chance(simulate(100, honesty=1)[0]) == few
    # A mean deviation shrinks with the square root of n: a tenth.
    assert many == pytest.approx(few / 10, rel=0.3)


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match=r"shapes \(2,\) and \(1,\)"):
        reliability_bins(np.ones(2), np.ones(1, dtype=bool))
    with pytest.raises(ValueError, match="from 0 to 1"):
        reliability_bins(np.array([np.nan]), np.array([True]))
    assert np.isnan(reliability_bins(np.ones(0), np.ones(0, dtype=bool)).expected_calibration_error)
    with pytest.raises(ValueError, match="found none"):
        calibration_error_by_chance(np.ones(0))
