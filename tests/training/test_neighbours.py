"""Nearest neighbours against a plain count, and their number against what is held out."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from netloom.training.neighbours import NearestNeighbours, fit_neighbours
from training.helpers import blobs


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
