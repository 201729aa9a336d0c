"""The shipped recipe cifar10-fast, trained as it is but for its length: what it promises happens."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch

import netloom
from netloom.training.callbacks import Callback
from netloom.training.muon import Muon, MuonOptions
from netloom.training.state import TrainingState

STEM = "trunk.stem.conv1.weight"


class Watcher(Callback):
    """Notes what the steps of a training see, one step to an epoch, and what they leave alone."""

    def __init__(self) -> None:
        self.sides: list[int] = []
        self.mirrored: list[list[int]] = []

    def on_fit_start(self, state: TrainingState) -> None:
        self.optimizer = state.optimizer
        self.trained = {name for name, p in state.model.named_parameters() if p.requires_grad}
        self.stem = state.model.get_parameter(STEM).detach().clone()

    def on_batch_start(self, state: TrainingState) -> None:
        if state.step == 0:
            groups = state.optimizer.param_groups
            self.rates = {own: sorted({g["lr"] for g in groups if g["orthogonal"] == own}) for own in (True, False)}

    def on_batch_end(self, state: TrainingState) -> None:
        assert state.batch is not None
        images, labels = state.batch.inputs["image"], state.batch.targets["label"]
        self.sides.append(images.shape[3])
        left, right = (half.mean((1, 2, 3)) for half in images.chunk(2, dim=3))
        self.mirrored.append(torch.bincount(labels[left < right], minlength=3).tolist())
        self.counts = torch.bincount(labels).tolist()

    def on_fit_end(self, state: TrainingState) -> None:
        assert torch.equal(state.model.get_parameter(STEM), self.stem)
        self.averages = state.evaluated_model is not state.model


def pictures() -> netloom.ImageSet:
    """36 noisy pictures of three classes, one channel each, which are brighter on the left."""
    targets = torch.arange(36) % 3
    images = torch.randint(0, 100, (36, 3, 32, 32), generator=torch.Generator().manual_seed(0))
    images[torch.arange(36), targets] += 50
    images[..., :16] += 100
    return netloom.ImageSet(
        images.to(torch.uint8).contiguous(memory_format=torch.channels_last),
        targets,
        class_names=("blue", "green", "red"),
        ids=tuple(f"{number:02}" for number in range(36)),
    )


@pytest.mark.usefixtures("one_thread")
def test_cifar10_fast_trains_as_it_says(tmp_path: Path) -> None:
    watcher = Watcher()
    recipe = netloom.load_recipe("cifar10-fast")
    run = netloom.train(pictures(), recipe=recipe, out=tmp_path, quiet=True, callbacks=[watcher], epochs=5)
    assert run.result["epochs"] == run.result["kept_epoch"] == 5
    # Whitened by pairs of opposite filters, and left so.
    assert STEM not in watcher.trained
    assert torch.equal(watcher.stem[::2], -watcher.stem[1::2])
    # Small pictures first.
    assert watcher.sides == [16, 20, 24, 28, 32]
    # Who is mirrored in one epoch is not in the next.
    for beside in itertools.pairwise(watcher.mirrored):
        assert [sum(both) for both in zip(*beside, strict=True)] == watcher.counts
    assert 0 < sum(watcher.mirrored[0]) < sum(watcher.counts)
    optimizer = watcher.optimizer
    assert isinstance(optimizer, Muon)
    assert optimizer.options == MuonOptions(
        momentum=0.6, newton_schulz_steps=3, update_scale="none", normalize_kernels=True, rest="sgd", rest_momentum=0.85
    )
    # Of the kernels; of the classifier's; of biases.
    assert watcher.rates == {True: [0.18], False: [3.9, pytest.approx(78.0)]}
    # It names neither lookahead nor an average of weights.
    assert (run.recipe.lookahead, run.recipe.ema, watcher.averages) == (None, None, False)
    assert run.result["test_time_augmentation"] == "flip_shift"
