"""Logistic regression against scikit-learn, and its choice against what is held out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from netloom.training import feature_heads
from netloom.training.feature_heads import fit_logistic, standardization
from training.helpers import blobs


def reference(rows: torch.Tensor, targets: torch.Tensor, c: float, weights: np.ndarray | None = None) -> np.ndarray:
    """scikit-learn's log probabilities of standardized rows."""
    scaled = StandardScaler().fit_transform(rows.double().numpy())
    model = LogisticRegression(C=c, tol=1e-10, max_iter=10_000)
    return model.fit(scaled, targets.numpy(), sample_weight=weights).predict_log_proba(scaled)


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("weighted", [False, True])
def test_probabilities_are_those_of_scikit_learn(classes: int, weighted: bool) -> None:
    rows, targets = blobs(300, classes, 12)
    weights = torch.linspace(0.1, 3, 300) if weighted else None
    found = fit_logistic(rows, targets, num_classes=classes, num_outputs=classes, weights=weights)
    expected = reference(rows, targets, found.choice.value, None if weights is None else weights.numpy())
    log_probabilities = torch.log_softmax(rows @ found.weight.T + found.bias, dim=1)
    assert log_probabilities.numpy() == pytest.approx(expected, abs=2e-3)


def test_one_output_is_the_logit_of_the_second_class() -> None:
    rows, targets = blobs(200, 2, 5)
    two = fit_logistic(rows, targets, num_classes=2, num_outputs=2)
    one = fit_logistic(rows, targets, num_classes=2, num_outputs=1)
    assert one.weight.shape == (1, 5)
    assert one.weight[0].numpy() == pytest.approx((two.weight[1] - two.weight[0]).numpy(), rel=1e-5)
    assert one.bias.item() == pytest.approx((two.bias[1] - two.bias[0]).item(), rel=1e-5)


def test_regularization_is_chosen_by_what_is_held_out() -> None:
    """Many features and much noise want a strong penalty, few and clear ones a weak one."""
    noisy = fit_logistic(*blobs(60, 2, 300, spread=30.0), num_classes=2, num_outputs=2).choice
    clear = fit_logistic(*blobs(2_000, 2, 5, spread=1.5), num_classes=2, num_outputs=2).choice
    assert noisy.value < 0.01 < clear.value
    for choice in (noisy, clear):
        losses = {c.value: c.log_loss for c in choice.candidates}
        assert losses[choice.value] == min(losses.values())
        assert list(losses) == sorted(losses)
        assert f"C = {choice.value:g}" in choice.in_words()
    assert clear.held_out == 2_000
    assert clear.scheme == "5 folds"


def test_the_held_out_loss_is_that_of_scikit_learn_on_the_same_folds() -> None:
    rows, targets = blobs(120, 3, 8)
    choice = fit_logistic(rows, targets, num_classes=3, num_outputs=3, seed=4).choice
    folds = feature_heads._held_out(targets.numpy(), None, None, 4)
    mean, scale = standardization(rows)
    scaled = ((rows - mean) * scale).double().numpy()
    losses = []
    for fold in folds:
        model = LogisticRegression(C=choice.value, tol=1e-10, max_iter=10_000)
        model.fit(scaled[fold.teaches], targets[fold.teaches].numpy())
        of_fold = model.predict_log_proba(scaled[fold.answers])
        losses += (-of_fold[np.arange(len(of_fold)), targets[fold.answers].numpy()]).tolist()
    found = next(c.log_loss for c in choice.candidates if c.value == choice.value)
    assert len(losses) == 120
    assert found == pytest.approx(np.mean(losses), rel=2e-3)


def test_folds_keep_classes_in_proportion_units_whole_and_versions_of_a_picture_together() -> None:
    targets = np.arange(60) % 3
    units = np.arange(60) // 2  # each with two classes
    pictures = np.tile(np.arange(60), 3)
    folds = feature_heads._held_out(np.tile(targets, 3), pictures, units, 0)
    answers = [fold.answers.numpy() for fold in folds]
    assert np.array_equal(np.sort(np.concatenate(answers)), np.arange(60))  # the pictures themselves, no views
    for fold in folds:
        asked, taught = set(units[fold.answers.numpy()]), set(units[pictures[fold.teaches.numpy()]])
        assert not asked & taught
        assert len(fold.teaches) == 3 * (60 - len(fold.answers))
        assert abs(np.bincount(targets[fold.answers.numpy()], minlength=3) - 4).max() <= 2


def test_a_class_of_one_picture_always_teaches() -> None:
    targets = np.array([0] * 10 + [1] * 10 + [2])
    folds = feature_heads._held_out(targets, None, None, 0)
    assert all(20 in fold.teaches for fold in folds)
    assert not any(20 in fold.answers for fold in folds)


def test_two_pictures_are_enough_to_fit_but_not_to_choose() -> None:
    rows, targets = blobs(2, 2, 3)
    found = fit_logistic(rows, targets, num_classes=2, num_outputs=2)
    assert "too few" in found.choice.in_words()
    assert (rows @ found.weight.T + found.bias).argmax(1).tolist() == [0, 1]


def test_large_sets_hold_out_no_more_than_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feature_heads, "_ENOUGH_HELD_OUT", 100)
    rows, targets = blobs(400, 2, 4)
    choice = fit_logistic(rows, targets, num_classes=2, num_outputs=2).choice
    assert choice.scheme == "2 of 5 folds"
    assert choice.held_out == 160


def test_features_that_say_nothing_weigh_nothing() -> None:
    rows, targets = blobs(100, 2, 4)
    rows[:, 1] = 3.0
    rows[0, 2] += 1e-7
    found = fit_logistic(rows, targets, num_classes=2, num_outputs=2)
    assert found.weight[:, 1].abs().max() == 0
    assert found.weight.isfinite().all()


def test_a_missing_class_is_never_likely() -> None:
    rows, targets = blobs(90, 3, 4)
    rows, targets = rows[targets != 1], targets[targets != 1]
    found = fit_logistic(rows, targets, num_classes=3, num_outputs=3)
    assert torch.softmax(rows @ found.weight.T + found.bias, dim=1)[:, 1].max() < 0.05


def test_the_same_rows_give_the_same_bits() -> None:
    rows, targets = blobs(200, 3, 20)
    one, other = (fit_logistic(rows, targets, num_classes=3, num_outputs=3) for _ in range(2))
    assert torch.equal(one.weight, other.weight)
    assert torch.equal(one.bias, other.bias)
