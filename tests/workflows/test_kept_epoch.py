"""The epoch that a result names against the callback that keeps its weights."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import netloom
from netloom.recipe import load_recipe
from netloom.training.callbacks import BestWeights, Callback
from netloom.training.callbacks.base import copy_weights
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


class BestInEpoch2(Callback):
    """Ends each epoch with weights of its own: sure and mostly wrong, but for epoch 2, where all classes are alike."""

    def __init__(self) -> None:
        self.of_epoch: dict[int, dict[str, torch.Tensor]] = {}
        self.at_the_end: dict[str, torch.Tensor] = {}

    def on_batch_end(self, state: TrainingState) -> None:
        epoch, rest = divmod(state.step, state.steps_per_epoch)
        if rest == 0:
            with torch.no_grad():
                for parameter in state.model.parameters():
                    parameter.fill_(0.0 if epoch == 2 else 100.0 * epoch)
                    parameter[1:] = 0.0  # so that the first class is answered always

    def on_epoch_end(self, state: TrainingState) -> None:
        self.of_epoch[state.epoch] = copy_weights(state.model)

    def on_fit_end(self, state: TrainingState) -> None:
        self.at_the_end = copy_weights(state.model)


@pytest.mark.parametrize(("keep", "kept"), [("best", 2), ("last", 5)])
def test_a_training_ends_with_the_weights_of_the_kept_epoch(
    photos: Path, tmp_path: Path, one_thread: None, keep: str, kept: int
) -> None:
    """In the network, and in the file."""
    watcher = BestInEpoch2()
    run = netloom.train(
        photos,
        model=lambda in_channels, num_outputs, image_size: torch.nn.Sequential(
            torch.nn.Flatten(), torch.nn.Linear(in_channels * image_size[0] * image_size[1], num_outputs)
        ),
        out=tmp_path,
        quiet=True,
        callbacks=[watcher],
        settings={"epochs": 5, "keep": keep, "batch_size": 16, "augmentation": None, "precision": "float32"},
        early_stopping=None,
    )
    losses = [row["validation_loss"] for row in run.history]
    assert losses[1] == min(losses) < min(losses[:1] + losses[2:])
    assert run.result["kept_epoch"] == kept
    written = load_file(run.weights_path)
    assert written.keys() == watcher.at_the_end.keys()
    for name, value in watcher.of_epoch[kept].items():
        assert torch.equal(watcher.at_the_end[name], value), name
        assert torch.equal(written[name], value), name
