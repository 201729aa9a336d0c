"""Logistic regression against scikit-learn, neighbours against a plain count, choices against what is held out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from netloom.training import feature_heads
from netloom.training.feature_heads import NearestNeighbours, fit_logistic, fit_neighbours, standardization


def blobs(n: int, classes: int, width: int, *, spread: float = 1.5, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of overlapping classes, far from zero and of unlike scales."""
    generator = np.random.default_rng(seed)
    targets = np.arange(n) % classes
    centres = generator.normal(size=(classes, width))
    rows = centres[targets] + spread * generator.normal(size=(n, width))
    rows = 5 + rows * generator.uniform(0.1, 10, size=width)
    return torch.from_numpy(rows).float(), torch.from_numpy(targets)


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


def neighbours(rows: torch.Tensor, targets: torch.Tensor, k: int, queries: torch.Tensor) -> np.ndarray:
    """Shares of votes, by the definition in the class's docstring, one query after the other."""
    mean, std = rows.mean(0), rows.std(0, correction=0)
    directions, asked = ((x - mean) / std for x in (rows, queries))
    found = []
    for query in asked:
        similarity = torch.nn.functional.cosine_similarity(query[None], directions)
        nearest = similarity.argsort(descending=True)[:k]
        weights = ((similarity[nearest] - similarity.max()) / 0.07).exp()
        votes = torch.full((int(targets.max()) + 1,), 0.5 / (int(targets.max()) + 1))
        for row, weight in zip(nearest.tolist(), weights, strict=True):
            votes[targets[row]] += weight
        found.append((votes / votes.sum()).tolist())
    return np.array(found)


def test_neighbours_vote_as_defined() -> None:
    rows, targets = blobs(60, 3, 6)
    classifier = NearestNeighbours(6, num_classes=3, num_outputs=3)
    choice = fit_neighbours(classifier, rows, targets)
    queries = blobs(10, 3, 6, seed=0)[0] + 0.3
    expected = neighbours(rows, targets, int(choice.value), queries)
    assert classifier(queries).exp().numpy() == pytest.approx(expected, abs=1e-5)


def test_the_number_of_neighbours_is_chosen_without_asking_a_picture_itself() -> None:
    rows, targets = blobs(400, 2, 6, spread=4.0)
    choice = fit_neighbours(NearestNeighbours(6, num_classes=2, num_outputs=2), rows, targets)
    single = choice.candidates[0]
    assert single.value == 1
    assert single.accuracy < 0.9  # asked about itself, every picture would be right
    assert choice.value > 1
    assert min(choice.candidates, key=lambda c: c.log_loss).value == choice.value
    twice = fit_neighbours(
        NearestNeighbours(6, num_classes=2, num_outputs=2),
        torch.cat([rows, rows]),
        torch.cat([targets, targets]),
        units=np.tile(np.arange(400), 2),
    )
    assert twice.candidates[0].accuracy == pytest.approx(single.accuracy)


def test_votes_have_weights() -> None:
    rows = torch.tensor([[0.0, 1.0], [0.0, 1.01], [1.0, 0.0], [1.01, 0.0]])
    targets = torch.tensor([0, 1, 0, 1])
    classifier = NearestNeighbours(2, num_classes=2, num_outputs=1)
    fit_neighbours(classifier, rows, targets, weights=torch.tensor([9.0, 1.0, 1.0, 9.0]))
    classifier.neighbours.fill_(2)
    logits = classifier(torch.tensor([[0.0, 1.0], [1.0, 0.0]]))
    assert logits.shape == (2, 1)
    assert logits[0] < -1
    assert logits[1] > 1


def test_neighbours_are_saved_and_loaded_with_their_number() -> None:
    rows, targets = blobs(30, 2, 4)
    fitted = NearestNeighbours(4, num_classes=2, num_outputs=2)
    fit_neighbours(fitted, rows, targets)
    loaded = NearestNeighbours(4, num_classes=2, num_outputs=2)
    loaded.load_state_dict(fitted.state_dict())
    assert torch.equal(loaded(rows), fitted(rows))
    broken = fitted.state_dict() | {"neighbours": torch.tensor(31)}
    with pytest.raises(RuntimeError, match="do not fit"):
        NearestNeighbours(4, num_classes=2, num_outputs=2).load_state_dict(broken)
    with pytest.raises(RuntimeError, match="size mismatch"):
        NearestNeighbours(5, num_classes=2, num_outputs=2).load_state_dict(fitted.state_dict())
