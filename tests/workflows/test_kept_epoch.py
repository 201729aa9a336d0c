"""The epoch that a result names against the callback that keeps its weights."""

from __future__ import annotations

import math

import pytest
import torch

from netloom.recipe import load_recipe
from netloom.training.callbacks import BestWeights
from netloom.training.state import TrainingState
from netloom.workflows.training_run import kept_epoch

NAN, INFINITE = math.nan, math.inf


@pytest.mark.parametrize("monitor", ["validation_loss", "validation_accuracy"])
@pytest.mark.parametrize(
    "values",
    [
        [0.5, 0.4, 0.6],
        [0.5, 0.5, 0.5],
        [NAN, 0.5, 0.4, 0.6],
        [0.5, NAN, 0.4, NAN, 0.6],
        [NAN, NAN],
        [NAN, NAN, 0.5],
        [INFINITE, NAN, 0.5, -INFINITE],
    ],
)
def test_the_kept_epoch_is_that_whose_weights_are_kept(monitor: str, values: list[float]) -> None:
    model = torch.nn.Linear(1, 1)
    state = TrainingState(model, torch.optim.SGD(model.parameters(), lr=0.1), len(values), 1)
    best = BestWeights(monitor=monitor)
    for epoch, value in enumerate(values, start=1):
        state.epoch = epoch
        state.history.append({"epoch": float(epoch), monitor: value})
        torch.nn.init.constant_(model.weight, float(epoch))
        best.on_epoch_end(state)
    assert best.weights is not None
    recipe = load_recipe("photos", {"keep": "best", "monitor": monitor})
    assert kept_epoch(recipe, state.history) == int(best.weights["weight"])
