"""What is measured before a training: its own steps, of copies."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import netloom
from netloom.data.batches import Batch
from netloom.progress import Reporter
from netloom.runtime import ExecutionPlan
from netloom.training.step import TrainingStep
from netloom.workflows import builders
from netloom.workflows.fitting import Fitting
from netloom.workflows.prepare import prepare_data

pytestmark = pytest.mark.usefixtures("one_thread")


def test_measured_steps_are_the_trainings_and_leave_it_as_it_was(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """38 of 60 pictures train: four batches of 8 and one of 6, which is left out, since it would be captured anew."""
    settings = {"filters": [4], "epochs": 3, "batch_size": 8, "image_size": 12, "augmentation": {"rotation": 10}}
    recipe = netloom.load_recipe("photos", settings)
    data = prepare_data(photos, recipe, Reporter(quiet=True))
    network, heads = builders.build_network(recipe, data.facts)
    fitting = Fitting.prepare(
        recipe, network, heads, data.image_set, data.split, scaling=data.facts.scaling, device="cpu"
    )
    epochs: list[int] = []
    updates: list[object] = []
    batches: list[Batch] = []
    draw, build_optimizer, take = fitting.train.epoch, builders.build_optimizer, TrainingStep.__call__

    def epoch(number: int = 0, **options: Any) -> Iterator[Batch]:
        epochs.append(number)
        return draw(number, **options)

    def noted(*arguments: Any) -> torch.optim.Optimizer:
        optimizer = build_optimizer(*arguments)
        optimizer.register_step_post_hook(lambda *_: updates.append(None))
        return optimizer

    def step(self: TrainingStep, batch: Batch, number: int) -> Batch:
        batches.append(batch)
        return take(self, batch, number)

    monkeypatch.setattr(fitting.train, "epoch", epoch)
    monkeypatch.setattr(builders, "build_optimizer", noted)
    monkeypatch.setattr(TrainingStep, "__call__", step)
    before = copy.deepcopy(network.state_dict())
    modes = [module.training for module in network.modules()]
    generator = torch.random.get_rng_state()
    seconds = fitting.step_seconds([ExecutionPlan("cpu", 1, "float32"), ExecutionPlan("cpu", 1, "float32", shards=2)])
    assert len(seconds) == 2
    assert min(seconds) > 0
    assert set(epochs) == {2}
    assert len(updates) == len(batches) > 4
    assert {len(batch) for batch in batches} == {8}
    assert not torch.equal(batches[0].inputs["image"], batches[1].inputs["image"])
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())
    assert [module.training for module in network.modules()] == modes
    assert torch.equal(torch.random.get_rng_state(), generator)
