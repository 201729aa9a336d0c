from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import confusion_matrix, f1_score, log_loss, recall_score

from netloom.evaluation.cross_validation import FoldOutcome, gain, summarize_folds
from netloom.metrics.intervals import mean_interval, resampled_mean_interval, wilson_interval


def outcomes(n_folds: int = 6, n: int = 40, *, n_classes: int = 3, seed: int = 0) -> list[FoldOutcome]:
    random = np.random.default_rng(seed)
    found = []
    for _ in range(n_folds):
        targets = np.concatenate([np.arange(n_classes), random.integers(0, n_classes, n - n_classes)])
        scores = random.normal(size=(n, n_classes)) + 1.5 * np.eye(n_classes)[targets]
        probabilities = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
        found.append(FoldOutcome(probabilities.astype(np.float32), targets, random.integers(0, n_classes, 4 * n)))
    return found


def test_scores_are_those_of_scikit_learn_over_the_folds() -> None:
    folds = outcomes()
    scores = summarize_folds(folds, 3)
    answers = [fold.probabilities.argmax(axis=1) for fold in folds]
    for i, (fold, answer) in enumerate(zip(folds, answers, strict=True)):
        assert scores.accuracy.values[i] == pytest.approx(np.mean(answer == fold.targets))
        assert scores.macro_f1.values[i] == pytest.approx(f1_score(fold.targets, answer, average="macro"))
        normalized = fold.probabilities.astype(np.float64)
        normalized /= normalized.sum(axis=1, keepdims=True)
        assert scores.log_loss.values[i] == pytest.approx(log_loss(fold.targets, normalized), rel=1e-5)
        recalls = recall_score(fold.targets, answer, average=None)
        assert [scores.recall[c].values[i] for c in range(3)] == pytest.approx(recalls.tolist())
    together = confusion_matrix(np.concatenate([fold.targets for fold in folds]), np.concatenate(answers))
    assert (scores.confusion == together).all()


def test_the_interval_is_nadeau_and_bengios() -> None:
    """The formula written out: mean ± t(k-1) sqrt((1/k + n_test/n_train) S²), S² with k - 1."""
    scores = summarize_folds(outcomes(), 3)
    values, k = scores.accuracy.values, 6
    mean = sum(values) / k
    variance = sum((value - mean) ** 2 for value in values) / (k - 1)
    half = stats.t.ppf(0.975, k - 1) * math.sqrt((1 / k + 40 / 160) * variance)
    assert scores.test_per_train == 0.25
    assert scores.accuracy.interval == pytest.approx((mean - half, mean + half))
    assert scores.accuracy.standard_deviation == pytest.approx(math.sqrt(variance))
    plain = mean_interval(np.array(values))
    assert scores.accuracy.interval.low < plain.low < plain.high < scores.accuracy.interval.high


def test_the_interval_holds_the_truth_more_often_than_the_uncorrected_one() -> None:
    """Scores of overlapping trainings: a common part that all share, beside each one's own.

    With the correlation rho = n_test / (n_test + n_train) that Nadeau and Bengio assume the corrected interval holds
    the truth in 95% of cases; 2,000 of them miss that by less than 1.5 points (three standard errors).
    """
    random = np.random.default_rng(0)
    k, rho, truth = 10, 0.2, 0.9
    held = {"corrected": 0, "plain": 0}
    for _ in range(2000):
        values = truth + 0.02 * (math.sqrt(rho) * random.normal() + math.sqrt(1 - rho) * random.normal(size=k))
        low, high = resampled_mean_interval(values, test_per_train=rho / (1 - rho))
        held["corrected"] += low <= truth <= high
        low, high = mean_interval(values)
        held["plain"] += low <= truth <= high
    assert abs(held["corrected"] / 2000 - 0.95) < 0.015
    assert held["plain"] / 2000 < 0.8


def fold(*right: bool, units: np.ndarray | None = None) -> FoldOutcome:
    """Pictures of two classes in turn, each taken for its own or for the other."""
    targets = np.arange(len(right)) % 2
    answers = np.where(right, targets, 1 - targets)
    return FoldOutcome(np.eye(2, dtype=np.float32)[answers], targets, np.arange(4 * len(right)) % 2, units)


def test_folds_that_score_alike_are_no_certainty() -> None:
    """Five folds of 20 pictures: Wilson's intervals of 100 and of 50 answers."""
    perfect = summarize_folds([fold(*[True] * 20)] * 5, 2)
    assert perfect.accuracy.interval == pytest.approx(wilson_interval(100, 100))
    assert perfect.macro_f1.interval == pytest.approx(wilson_interval(100, 100))
    for scores in (perfect.recall, perfect.precision):
        assert scores[0].interval == pytest.approx(wilson_interval(50, 50))
    low = wilson_interval(50, 50).low
    assert perfect.f1[1].interval == pytest.approx((2 * low / (1 + low), 1))
    nearly = summarize_folds([fold(False, *[True] * 19)] * 5, 2)
    assert nearly.accuracy.standard_deviation == 0
    assert nearly.accuracy.interval == pytest.approx(wilson_interval(95, 100))
    assert nearly.majority.interval == pytest.approx(wilson_interval(50, 100))
    for spread in (nearly.macro_f1, *nearly.recall[:1], *nearly.precision[1:], *nearly.f1):
        assert spread.interval.low < spread.mean - 0.01
        assert spread.interval.high > spread.mean + 0.01


def test_answers_to_one_picture_or_group_count_together() -> None:
    """Four repeats ask 40 pictures, or ten patients of four pictures, over and over."""
    for units, independent in ((np.arange(20), 40), (np.arange(20) // 4, 10)):
        halves = [fold(*[True] * 20, units=units + half * 100) for half in (0, 1)]
        scores = summarize_folds(halves * 4, 2)
        assert scores.accuracy.interval == pytest.approx(wilson_interval(independent, independent))


def test_a_gain_needs_pictures_beside_folds_that_agree() -> None:
    """One more of 20 right in each of five folds: 5 to 0 is nothing to McNemar's exact test, 10 to 0 is (SciPy)."""
    before = summarize_folds([fold(False, False, False, *[True] * 17)] * 5, 2)
    after = [summarize_folds([fold(*[False] * (3 - more), *[True] * (17 + more))] * 5, 2) for more in (0, 1, 2)]
    none, one, two = (gain(found, before) for found in after)
    assert [found.mean for found in (none, one, two)] == pytest.approx([0, 0.05, 0.1])
    assert [found.p_value for found in (none, one, two)] == pytest.approx(
        [1, stats.binomtest(0, 5).pvalue, stats.binomtest(0, 10).pvalue]
    )
    assert [found.more_than_noise for found in (none, one, two)] == [False, False, True]
    for found in (none, one, two):
        assert found.interval.high - found.interval.low > 0.05
    worse = gain(before, after[2])
    assert (worse.mean, worse.more_than_noise) == (pytest.approx(-0.1), False)


def test_a_gain_of_two_patients_is_noise() -> None:
    units = np.repeat(np.arange(4), 5)
    folds = [units + 10 * number for number in range(2)]
    before = summarize_folds([fold(*[False] * 5, *[True] * 15, units=one) for one in folds], 2)
    after = summarize_folds([fold(*[True] * 20, units=one) for one in folds], 2)
    gained = gain(after, before)
    assert (gained.p_value, gained.more_than_noise) == (0.5, False)
    with pytest.raises(ValueError, match="same folds"):
        gain(summarize_folds([fold(*[True] * 20)] * 2, 2), before)


def test_the_interval_stays_nadeau_and_bengios_where_folds_differ() -> None:
    scores = summarize_folds(outcomes(), 3)
    found = resampled_mean_interval(np.array(scores.macro_f1.values), test_per_train=0.25)
    assert scores.macro_f1.interval == pytest.approx(found)


def test_intervals_end_where_the_scores_do() -> None:
    perfect = FoldOutcome(np.eye(2, dtype=np.float32)[[0, 1, 1]], np.array([0, 1, 1]), np.array([0, 1, 1, 1]))
    wrong = FoldOutcome(np.eye(2, dtype=np.float32)[[0, 1, 0]], np.array([0, 1, 1]), np.array([0, 1, 1, 1]))
    scores = summarize_folds([perfect, wrong], 2)
    assert scores.accuracy.interval == (0.0, 1.0)
    assert scores.log_loss.interval.low == 0.0
    assert scores.log_loss.interval.high > 1
    assert scores.majority.mean == pytest.approx(2 / 3)


def test_a_class_that_a_fold_lacks_has_no_score_there() -> None:
    both = FoldOutcome(np.eye(2, dtype=np.float32)[[0, 1]], np.array([0, 1]), np.array([0, 1]))
    one = FoldOutcome(np.eye(2, dtype=np.float32)[[0, 0]], np.array([0, 0]), np.array([0, 1]))
    scores = summarize_folds([both, one], 2)
    assert scores.recall[1].n == 1
    assert scores.recall[1].mean == 1.0
    assert math.isnan(scores.recall[1].standard_deviation)
    assert scores.to_json(["a", "b"])["per_class"]["b"]["recall"]["n"] == 1
    never = summarize_folds([one, one], 2)
    assert math.isnan(never.recall[1].mean)
    with pytest.raises(ValueError, match="at least one training"):
        summarize_folds([], 2)
    with pytest.raises(ValueError, match="positive"):
        resampled_mean_interval(np.array([1.0, 2.0]), test_per_train=0)
