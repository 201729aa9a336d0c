from __future__ import annotations

import math
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch

from netloom.errors import RunError, TrainingError
from netloom.training.callbacks import (
    BestWeights,
    Callback,
    EarlyStopping,
    Lookahead,
    ReduceOnPlateau,
    WeightAveraging,
)
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


class Breaks(Callback):
    """Puts what is no number into a weight after a step, and into the running statistics of some validations."""

    def __init__(self, *, step: int = 0, epochs: tuple[int, ...] = ()) -> None:
        self.step, self.epochs = step, epochs

    def on_batch_end(self, state: TrainingState) -> None:
        if state.step == self.step:
            torch.nn.init.constant_(state.model[-1].weight[0, :1], math.inf)  # type: ignore[index]

    def on_validation_start(self, state: TrainingState) -> None:
        norm = state.model[1]  # type: ignore[index]
        self.before = norm.running_var.clone()
        if state.epoch + 1 in self.epochs:
            norm.running_var.fill_(math.nan)

    def on_validation_end(self, state: TrainingState) -> None:
        state.model[1].running_var.copy_(self.before)  # type: ignore[index]


def test_weights_that_the_last_step_breaks_are_told() -> None:
    """6 steps are an epoch; no loss is computed of what the last one left."""
    with pytest.raises(TrainingError, match=r"A weight became NaN or infinite in the last step of epoch 1 .*=0\.001"):
        train(epochs=1, callbacks=[Breaks(step=6)], validation=None)


def test_a_validation_loss_that_stays_no_number_ends_the_training(tmp_path: Path) -> None:
    """Also across a resumption."""
    with pytest.raises(TrainingError, match=r"The validation loss is NaN .* second epoch in a row, in epoch 3 "):
        train(callbacks=[Breaks(epochs=(2, 3, 4))])
    path = tmp_path / "checkpoint.safetensors"
    train(callbacks=[Breaks(epochs=(2,))], checkpointer=Checkpointer(path), interruption=StopAfter(14))
    with pytest.raises(TrainingError, match="validation loss"):
        train(callbacks=[Breaks(epochs=(3,))], resume=load_checkpoint(path))


def test_single_epochs_without_a_validation_loss_end_nothing() -> None:
    """The best of the others is kept."""
    best = BestWeights()
    state = train(epochs=5, callbacks=[Breaks(epochs=(1, 3)), best])
    assert [math.isnan(row["validation_loss"]) for row in state.history] == [True, False, True, False, False]
    assert best.monitor.best == min(row["validation_loss"] for row in state.history[1::2] + state.history[4:])


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


class StopsWithin(Callback):
    def on_batch_end(self, state: TrainingState) -> None:
        if state.step == 8:
            state.stop("enough")


def test_an_epoch_that_was_cut_behind_a_request_to_stop_is_finished(tmp_path: Path) -> None:
    """The request comes in step 8, the interruption in step 9 of the 12 that two epochs have."""
    path = tmp_path / "checkpoint.safetensors"
    whole = train(callbacks=[StopsWithin()])
    assert (whole.epoch, whole.step, whole.stop_reason) == (2, 12, "enough")
    train(callbacks=[StopsWithin()], checkpointer=Checkpointer(path), interruption=StopAfter(9))
    resumed = train(callbacks=[StopsWithin()], checkpointer=Checkpointer(path), resume=load_checkpoint(path))
    assert (resumed.epoch, resumed.step, resumed.stop_reason) == (2, 12, "enough")
    assert untimed(resumed) == untimed(whole)
    assert equal(resumed.model, whole.model)
    again = load_checkpoint(path)
    assert (again.values["epoch"], again.values["step"], again.progress.batches) == (2, 12, 0)


def test_early_stopping_waits_anew_when_what_it_ended_is_extended(tmp_path: Path) -> None:
    """Nothing improves behind the first epoch, which stays the best; what is not extended is at its end."""
    path = tmp_path / "checkpoint.safetensors"

    def run(**options: Any) -> TrainingState:
        model = network()
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = 0.0
        optimizer = create_optimizer(model, "sgd", learning_rate=1e-30)
        stopping = EarlyStopping(monitor="train_accuracy", patience=2, min_delta=1.0)
        return train(model, optimizer=optimizer, callbacks=[stopping], checkpointer=Checkpointer(path), **options)

    assert run(epochs=9).epoch == 3
    before = load_checkpoint(path)
    again = run(epochs=9, resume=load_checkpoint(path))
    assert (again.epoch, again.stop_reason) == (3, before.stop_reason)
    assert load_checkpoint(path).values == before.values
    extended = run(epochs=10, resume=load_checkpoint(path))
    assert extended.epoch == 5
    assert "not improved for 2 epochs (best in epoch 1)" in (extended.stop_reason or "")


class SlowSteps(Callback):
    """Two seconds a step by a clock that stands in for `time.perf_counter`."""

    def __init__(self) -> None:
        self.now = 1000.0

    def on_batch_end(self, state: TrainingState) -> None:
        self.now += 2.0


class NotingCheckpointer(Checkpointer):
    def save(self, state: TrainingState, callbacks: Any, progress: Any) -> None:
        self.saved = [*getattr(self, "saved", []), progress.batches]
        super().save(state, callbacks, progress)


def test_slow_steps_are_saved_by_the_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SlowSteps()
    monkeypatch.setattr("netloom.training.loop.time.perf_counter", lambda: clock.now)
    checkpointer = NotingCheckpointer(tmp_path / "checkpoint.safetensors")
    train(epochs=1, train=batches(shuffle=True, augment=True), callbacks=[clock], checkpointer=checkpointer)
    assert checkpointer.saved == [3, 6, 0]  # of 8 steps; the last is the end


def test_a_checkpoint_is_let_go_once_it_is_restored(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    train(callbacks=[Lookahead(), WeightAveraging()], checkpointer=Checkpointer(path), interruption=StopAfter(9))
    checkpoint = load_checkpoint(path)
    kept = [weakref.ref(tensor) for tensor in checkpoint.tensors.values()]
    alive: list[int] = []

    class Looks(Callback):
        def on_epoch_start(self, state: TrainingState) -> None:
            alive.append(sum(tensor() is not None for tensor in kept))

    train(callbacks=[Lookahead(), WeightAveraging(), Looks()], resume=checkpoint)
    assert len(kept) > 10
    assert alive == [0, 0, 0]
