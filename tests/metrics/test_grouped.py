"""Grouped pictures: coverage on simulated tests, ungrouped formulas where groups are single pictures, enumeration."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from netloom.metrics.grouped import (
    grouped_difference_interval,
    grouped_macro_f1_interval,
    grouped_mean_interval,
    grouped_share_interval,
    sign_flip_p_value,
)
from netloom.metrics.intervals import mean_interval, wilson_interval
from netloom.metrics.paired import PairedCounts, mcnemar_p_value, paired_difference_interval
from netloom.metrics.scores import confusion_matrix, macro_f1
from netloom.metrics.summary import score_probabilities


def answers_in_groups(
    n_tests: int, n_groups: int, per_group: int | list[int], *, mean: float, correlation: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Right answers bool `[n_tests, N]` whose groups have shares from a beta distribution, and the groups `[N]`."""
    random = np.random.default_rng(seed)
    spread = 1 / correlation - 1
    shares = random.beta(mean * spread, (1 - mean) * spread, size=(n_tests, n_groups))
    groups = np.repeat(np.arange(n_groups), per_group)
    return random.random((n_tests, len(groups))) < shares[:, groups], groups


@pytest.mark.parametrize(("mean", "correlation", "n_groups"), [(0.8, 0.3, 20), (0.9, 0.1, 40), (0.5, 0.5, 8)])
def test_intervals_hold_the_truth_as_often_as_they_promise(mean: float, correlation: float, n_groups: int) -> None:
    tests, groups = answers_in_groups(1000, n_groups, 50, mean=mean, correlation=correlation, seed=1)
    found = np.array([grouped_share_interval(right, groups) for right in tests])
    plain = np.array([wilson_interval(int(right.sum()), len(right)) for right in tests])
    by_groups, by_pictures = (np.mean((ends[:, 0] <= mean) & (mean <= ends[:, 1])) for ends in (found, plain))
    assert 0.92 <= by_groups <= 0.98
    assert by_pictures < 0.65


@pytest.mark.parametrize("sizes", [[100, 5, 5], [200, *[5] * 9], [60, 40], [5, 10, 20, 40, 80, 160]])
@pytest.mark.parametrize(("mean", "correlation"), [(0.8, 0.3), (0.5, 0.5), (0.9, 0.1)])
def test_groups_of_unequal_size_and_few_of_them(sizes: list[int], mean: float, correlation: float) -> None:
    """A group that outweighs the others is nearly all that is known; the mean of few leaves wide room."""
    tests, groups = answers_in_groups(300, len(sizes), sizes, mean=mean, correlation=correlation, seed=4)
    found = np.array([grouped_share_interval(right, groups) for right in tests])
    assert np.mean((found[:, 0] <= mean) & (mean <= found[:, 1])) >= 0.91
    assert ((found[:, 1] - found[:, 0]) < 1).all()


@pytest.mark.parametrize("shares", [(0.9, 0.7), (0.6, 0.4), (1, 0.5, 0), (1, 0), (1, 0.9), (1, 1, 0)])
def test_two_or_three_groups_tell_little_but_something(shares: tuple[float, ...]) -> None:
    """At least as much as that many pictures, whose interval is Wilson's."""
    right = np.concatenate([np.arange(50) < 50 * share for share in shares])
    groups = np.repeat(np.arange(len(shares)), 50)
    low, high = grouped_share_interval(right, groups)
    widest = wilson_interval(sum(shares), len(shares))
    assert widest.low <= low + 1e-12 < right.mean() < high <= widest.high + 1e-12
    assert high - low > 0.4


def test_two_groups_of_one_class_each_are_scored() -> None:
    """The baseline of always guessing is right on the one group and wrong on the other."""
    groups = np.repeat([0, 1], 30)
    predictions = np.where(np.arange(60) % 10, groups, 1 - groups)
    probabilities = np.abs(np.eye(2)[predictions] - np.linspace(0.1, 0.4, 60)[:, None])
    scores = score_probabilities(probabilities, groups, train_targets=groups, groups=groups)
    assert scores.majority.interval == pytest.approx(wilson_interval(1, 2))
    assert scores.accuracy.interval == pytest.approx(wilson_interval(1.8, 2))
    assert np.isnan(scores.macro_f1.interval).all()
    assert scores.log_loss.interval.low == 0.0
    alone = score_probabilities(probabilities, groups, train_targets=groups, groups=np.zeros(60, dtype=int))
    assert alone.accuracy.interval == wilson_interval(0.9, 1)
    assert np.isnan([alone.macro_f1.interval, alone.log_loss.interval]).all()


def test_log_loss_likewise() -> None:
    random = np.random.default_rng(2)
    groups = np.repeat(np.arange(15), 30)
    tests = random.gamma(2.0, 0.2, (800, 15))[:, groups] + random.gamma(1.0, 0.1, (800, len(groups)))
    found = np.array([grouped_mean_interval(losses, groups) for losses in tests])
    assert 0.92 <= np.mean((found[:, 0] <= 0.5) & (found[:, 1] >= 0.5)) <= 0.98
    assert np.isnan(grouped_mean_interval(tests[0], np.zeros(len(groups), dtype=int))).all()


def test_groups_of_one_picture_are_no_groups() -> None:
    right = np.arange(60) % 5 > 0
    alone = np.arange(60)
    assert grouped_share_interval(right, alone) == wilson_interval(48, 60)
    losses = np.random.default_rng(0).random(60)
    assert grouped_mean_interval(losses, alone) == mean_interval(losses)
    assert sign_flip_p_value(np.array([1] * 20 + [-1] * 4 + [0] * 36)) == pytest.approx(
        mcnemar_p_value(PairedCounts(4, 20, 60)), rel=1e-12
    )
    pairs = np.array([1] * 20 + [-1] * 4 + [0] * 36)
    np.testing.assert_allclose(
        grouped_difference_interval(pairs, np.ones(60, dtype=int)),
        paired_difference_interval(PairedCounts(4, 20, 60)),
        atol=0.02,
    )


def test_a_group_whose_pictures_agree_is_one_picture() -> None:
    """40 patients, 30 of them always right: as if 40 pictures had been tested, but for the degrees of freedom."""
    right, groups = np.repeat(np.arange(40) < 30, 25), np.repeat(np.arange(40), 25)
    low, high = grouped_share_interval(right, groups)
    assert (low, high) == pytest.approx(wilson_interval(30, 40), abs=0.01)
    assert grouped_share_interval(np.ones(1000, dtype=bool), groups) == wilson_interval(40, 40)
    assert grouped_share_interval(np.arange(1000) > 9, np.zeros(1000, dtype=int)) == wilson_interval(0.99, 1)


@pytest.mark.parametrize("seed", range(5))
def test_signs_are_counted_out(seed: int) -> None:
    differences = np.random.default_rng(seed).integers(-6, 8, 9)
    sums = [np.dot(signs, differences) for signs in itertools.product((-1, 1), repeat=9)]
    assert sign_flip_p_value(differences) == pytest.approx(np.mean(np.abs(sums) >= abs(differences.sum())))


def test_a_hundred_pictures_of_two_patients_prove_nothing() -> None:
    assert sign_flip_p_value(np.array([50, 50])) == 0.5
    assert mcnemar_p_value(PairedCounts(0, 100, 100)) < 1e-20
    low, high = grouped_difference_interval(np.array([50, 0, 50, -25]), np.array([50, 50, 50, 50]))
    assert low < 0 < high
    low, high = grouped_difference_interval(np.array([10, 20]), np.array([50, 100]))
    assert -0.7 < low < 0.2 < high <= 1


def test_the_interval_of_macro_f1_is_wider_by_groups() -> None:
    random = np.random.default_rng(3)
    groups = np.repeat(np.arange(12), 40)
    targets = random.integers(0, 3, len(groups))
    wrong = random.random(len(groups)) < np.repeat(random.beta(1, 3, 12), 40)
    predictions = np.where(wrong, (targets + 1) % 3, targets)
    low, high = grouped_macro_f1_interval(targets, predictions, groups, 3)
    scores = score_probabilities(np.eye(3)[predictions], targets, train_targets=targets)
    by_groups = score_probabilities(np.eye(3)[predictions], targets, train_targets=targets, groups=groups)
    assert low < macro_f1(confusion_matrix(targets, predictions, 3)) < high
    assert high - low > 1.5 * np.subtract(*scores.macro_f1.interval[::-1])
    assert by_groups.macro_f1.interval == (low, high)
    assert [e.groups for e in (by_groups.accuracy, by_groups.log_loss, scores.accuracy)] == [12, 12, None]
    assert np.subtract(*by_groups.accuracy.interval[::-1]) > 1.5 * np.subtract(*scores.accuracy.interval[::-1])
