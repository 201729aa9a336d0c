"""The summary of a test against scikit-learn and SciPy on the same probabilities."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as reference

from netloom.metrics.summary import score_probabilities


def test_summary_agrees_with_sklearn_and_scipy():
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 4, 120)
    probabilities = rng.dirichlet([0.5] * 4, 120)
    probabilities[np.arange(120), targets] += 0.3
    probabilities = (probabilities / 1.3).astype(np.float32)
    predictions = probabilities.argmax(axis=1)
    result = score_probabilities(probabilities, targets, train_targets=np.array([3, 3, 0]))

    assert result.accuracy.value == reference.accuracy_score(targets, predictions)
    expected = stats.binomtest(int((targets == predictions).sum()), 120).proportion_ci(method="wilson")
    np.testing.assert_allclose(result.accuracy.interval, (expected.low, expected.high))
    assert result.macro_f1.value == pytest.approx(reference.f1_score(targets, predictions, average="macro"))
    assert result.macro_f1.interval.low < result.macro_f1.value < result.macro_f1.interval.high
    assert result.log_loss.value == pytest.approx(reference.log_loss(targets, probabilities), rel=1e-5)
    assert (result.majority_class, result.majority.value) == (3, np.mean(targets == 3))
    assert {e.n for e in (result.accuracy, result.macro_f1, result.log_loss, result.majority)} == {120}
    assert result.confusion.sum() == result.reliability.counts.sum() == 120
    assert 0 < result.reliability.expected_calibration_error < 1
    assert 0 < result.calibration_error_by_chance < 1


def test_one_picture_is_enough_for_a_summary():
    result = score_probabilities(np.array([[0.2, 0.8]], dtype=np.float32), np.array([1]), train_targets=np.array([0]))
    assert result.accuracy.value == 1
    assert np.isnan(result.log_loss.interval).all()


def test_a_rounding_error_above_one_is_accepted():
    above = np.nextafter(np.float32(1), np.float32(2))
    result = score_probabilities(np.array([[above, 0]], dtype=np.float32), np.array([0]), train_targets=np.array([0]))
    assert result.reliability.confidence[-1] == 1


def test_no_picture_is_an_error():
    with pytest.raises(ValueError, match="found none"):
        score_probabilities(np.zeros((0, 2)), np.array([], dtype=np.int64), train_targets=np.array([0]))
