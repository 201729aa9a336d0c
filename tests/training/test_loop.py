from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from netloom.errors import RunError, TrainingError
from netloom.training.callbacks import BestWeights, Callback, EarlyStopping, ReduceOnPlateau, WeightAveraging
from netloom.training.checkpoint import Checkpointer, load_checkpoint
from netloom.training.optim import MUON, OPTIMIZERS, create_optimizer
from netloom.training.regularize import MaxNorm, WeightPenalty
from netloom.training.schedules import Schedule
from netloom.training.state import TrainingState
from training.helpers import StopAfter, batches, equal, network, train, untimed


def test_it_learns_and_repeats_bit_for_bit() -> None:
    first, second = train(epochs=8), train(epochs=8)
    assert first.history[-1]["validation_accuracy"] == 1.0
    assert untimed(first) == untimed(second)
    assert equal(first.model, second.model)


def test_another_seed_gives_another_training() -> None:
    assert untimed(train()) != untimed(train(seed=2))


def test_training_leaves_the_global_generator_untouched() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train(epochs=1)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("optimizer", [*OPTIMIZERS, MUON])
@pytest.mark.parametrize("steps", [1, 5, 6, 14])
def test_a_resumed_training_ends_bit_identical(tmp_path: Path, optimizer: str, steps: int) -> None:
    """6 steps are one epoch; all that has a state is on."""

    def pieces() -> dict[str, Any]:
        model = network()
        return {
            "model": model,
            "optimizer": create_optimizer(
                model,
                optimizer,
                learning_rate=0.01,
                momentum=0.9 if optimizer in ("sgd", "rmsprop") else 0,
                weight_decay=0.01,
            ),
            "penalty": WeightPenalty(model, l1=1e-4, l2=1e-3),
            "max_norm": MaxNorm(model, limit=1.0),
            "mixup_alpha": 0.2,
            "cutmix_alpha": 1.0,
            "schedule": Schedule("cosine", warmup_epochs=1),
            "callbacks": [
                WeightAveraging(decay=0.9),
                BestWeights(),
                EarlyStopping(patience=3),
                ReduceOnPlateau(patience=1),
            ],
        }

    whole = train(**pieces())
    path = tmp_path / "checkpoint.safetensors"
    cut = train(**pieces(), checkpointer=Checkpointer(path), interruption=StopAfter(steps))
    assert cut.stop_reason == "stopped"
    assert cut.step == steps
    resumed = train(**pieces(), resume=load_checkpoint(path))
    assert untimed(resumed) == untimed(whole)
    assert equal(resumed.model, whole.model)
    states = zip(
        whole.optimizer.state_dict()["state"].values(),
        resumed.optimizer.state_dict()["state"].values(),
        strict=True,
    )
    assert all(torch.equal(a[k], b[k]) for a, b in states for k in a)


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    train(epochs=1, checkpointer=Checkpointer(path))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(RunError, match="damaged"):
        load_checkpoint(path)


def test_a_failed_save_leaves_the_previous_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "checkpoint.safetensors"
    train(epochs=1, checkpointer=Checkpointer(path))
    before = path.read_bytes()

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(RunError, match="disk is full"):
        train(epochs=1, checkpointer=Checkpointer(path))
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_validation_loss_is_the_mean_over_the_part() -> None:
    """Against torch's own cross-entropy on all pictures at once."""
    state = train(epochs=1)
    part = batches(start=45)
    images = torch.cat([b.inputs["image"] for b in part.epoch()])
    targets = torch.cat([b.targets["label"] for b in part.epoch()])
    with torch.no_grad():
        expected = torch.nn.functional.cross_entropy(state.model.eval()(images), targets)
    assert math.isclose(state.history[0]["validation_loss"], expected.item(), rel_tol=1e-5)


def test_a_loss_that_is_no_number_is_told() -> None:
    model = network()
    with pytest.raises(TrainingError, match="learning rate 1e\\+20"):
        train(model, optimizer=create_optimizer(model, "sgd", learning_rate=1e20))


def test_early_stopping_and_best_weights() -> None:
    """With a rate of zero nothing improves after the first epoch."""
    model = network()
    optimizer = create_optimizer(model, "sgd", learning_rate=1e-30)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 0.0
    best = BestWeights(monitor="train_accuracy")
    state = train(model, optimizer=optimizer, epochs=20, callbacks=[best, EarlyStopping(patience=2)])
    assert state.epoch == 3
    assert "has not improved for 2 epochs" in (state.stop_reason or "")


def test_reduce_on_plateau_lowers_the_rate_to_its_floor() -> None:
    model = network()
    optimizer = create_optimizer(model, "sgd", learning_rate=1e-9)
    plateau = ReduceOnPlateau(patience=1, factor=0.1, min_learning_rate=1e-11, min_delta=10.0)
    state = train(model, optimizer=optimizer, epochs=6, callbacks=[plateau])
    rates = [row["learning_rate"] for row in state.history]
    assert rates == pytest.approx([1e-9, 1e-9, 1e-10, 1e-11, 1e-11, 1e-11])


class Spy(Callback):
    def __init__(self) -> None:
        self.calls: list[str] = []

    def on_epoch_start(self, state: TrainingState) -> None:
        self.calls.append(f"start {state.epoch}")

    def on_epoch_end(self, state: TrainingState) -> None:
        self.calls.append(f"end {state.epoch}")
        if state.epoch == 2:
            state.stop("enough")


def test_a_users_callback_reads_and_stops() -> None:
    spy = Spy()
    state = train(callbacks=[spy])
    assert spy.calls == ["start 0", "end 1", "start 1", "end 2"]
    assert state.stop_reason == "enough"
