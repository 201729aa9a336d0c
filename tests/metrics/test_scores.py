"""Scores against scikit-learn, which is the reference for each of them."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics as reference

from netloom.metrics import scores

K = 7


@pytest.fixture(params=[0, 1, 2])
def answers(request: pytest.FixtureRequest) -> tuple[np.ndarray, np.ndarray]:
    """200 answers among 7 classes; class 5 is never true, class 6 never predicted."""
    rng = np.random.default_rng(request.param)
    targets = rng.choice([0, 1, 2, 3, 4, 6], 200)
    predictions = np.where(rng.random(200) < 0.66, targets, rng.integers(0, K - 1, 200))
    predictions[predictions == 6] = 0
    return targets, predictions


def random_probabilities(n: int, k: int, dtype: type = np.float64) -> np.ndarray:
    logits = np.random.default_rng(5).normal(size=(n, k))
    exponentials = np.exp(logits)
    return (exponentials / exponentials.sum(axis=1, keepdims=True)).astype(dtype)


def test_confusion_matrix_and_accuracy(answers):
    targets, predictions = answers
    confusion = scores.confusion_matrix(targets, predictions, K)
    assert confusion.dtype == np.int64
    np.testing.assert_array_equal(confusion, reference.confusion_matrix(targets, predictions, labels=range(K)))
    assert scores.accuracy(targets, predictions) == reference.accuracy_score(targets, predictions)


def test_confusion_matrix_of_nothing_is_zero():
    none = np.array([], dtype=np.int64)
    np.testing.assert_array_equal(scores.confusion_matrix(none, none, 3), np.zeros((3, 3)))


def test_per_class_scores_are_nan_where_undefined(answers):
    targets, predictions = answers
    ours = scores.per_class_scores(scores.confusion_matrix(targets, predictions, K))
    precision, recall, f1, support = reference.precision_recall_fscore_support(
        targets, predictions, labels=range(K), zero_division=np.nan
    )
    np.testing.assert_allclose(ours.precision, precision)
    np.testing.assert_allclose(ours.recall, recall)
    np.testing.assert_array_equal(ours.support, support)
    assert np.isnan(ours.precision[6])
    assert np.isnan(ours.recall[5])
    # A class that is present but never predicted has F1 0, as in scikit-learn.
    np.testing.assert_allclose(ours.f1, f1)


def test_a_class_that_does_not_occur_is_left_out_of_the_means():
    confusion = scores.confusion_matrix(np.array([0, 0, 1]), np.array([0, 1, 1]), 3)
    assert np.isnan(scores.per_class_scores(confusion).f1[2])
    assert scores.macro_f1(confusion) == pytest.approx(2 / 3)


def test_macro_f1_and_balanced_accuracy(answers):
    targets, predictions = answers
    confusion = scores.confusion_matrix(targets, predictions, K)
    assert scores.macro_f1(confusion) == pytest.approx(
        reference.f1_score(targets, predictions, labels=range(K), average="macro", zero_division=np.nan)
    )
    assert scores.balanced_accuracy(confusion) == pytest.approx(
        reference.recall_score(targets, predictions, labels=[0, 1, 2, 3, 4, 6], average="macro", zero_division=0)
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_log_loss(dtype):
    probabilities = random_probabilities(100, 5, dtype)
    targets = np.random.default_rng(1).integers(0, 5, 100)
    assert scores.log_loss(probabilities, targets) == pytest.approx(
        reference.log_loss(targets, probabilities, labels=range(5)), rel=1e-6
    )


def test_log_loss_of_a_certain_mistake_is_finite():
    losses = scores.sample_log_losses(np.array([[1, 0], [1, 0]], dtype=np.float32), np.array([1, 0]))
    np.testing.assert_allclose(losses, [-np.log(2.0**-23), 0], rtol=1e-6)


@pytest.mark.parametrize("k", [1, 2, 4, 5])
def test_top_k_accuracy(k):
    probabilities = random_probabilities(100, 5)
    targets = np.random.default_rng(1).integers(0, 5, 100)
    expected = reference.top_k_accuracy_score(targets, probabilities, k=k, labels=range(5)) if k < 5 else 1
    assert scores.top_k_accuracy(probabilities, targets, k) == pytest.approx(expected)


def test_top_1_of_equal_probabilities_is_argmax():
    probabilities = np.full((3, 3), 1 / 3)
    targets = np.array([0, 1, 2])
    assert scores.top_k_accuracy(probabilities, targets, 1) == pytest.approx(
        np.mean(probabilities.argmax(axis=1) == targets)
    )
    assert scores.top_k_accuracy(probabilities, targets, 2) == pytest.approx(2 / 3)


def test_majority_baseline_is_sklearns_dummy_classifier():
    from sklearn.dummy import DummyClassifier

    train, test = np.array([2, 2, 1, 1, 0]), np.array([0, 1, 1, 2])
    baseline = scores.majority_baseline(train, test)
    dummy = DummyClassifier(strategy="most_frequent").fit(np.zeros((5, 1)), train)
    assert baseline == (1, 2, dummy.score(np.zeros((4, 1)), test))


def test_wrong_arguments_are_named():
    one, two = np.array([0]), np.array([0, 1])
    with pytest.raises(ValueError, match=r"shapes \(1,\) and \(2,\)"):
        scores.accuracy(one, two)
    with pytest.raises(ValueError, match=r"targets must hold class indices 0..0; found 0..1"):
        scores.confusion_matrix(two, two, 1)
    with pytest.raises(ValueError, match="found none"):
        scores.accuracy(one[:0], one[:0])
    with pytest.raises(ValueError, match="counts none"):
        scores.macro_f1(np.zeros((2, 2), dtype=np.int64))
    with pytest.raises(ValueError, match=r"\[N, K\]"):
        scores.log_loss(np.ones((1, 2)), two)
    with pytest.raises(ValueError, match="k must be at least 1"):
        scores.top_k_accuracy(np.ones((2, 2)), two, 0)
