"""When callbacks are called, and when not."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from netloom.errors import TrainingError
from netloom.inference import Prediction
from netloom.training.callbacks import Callback, TimeLimit
from netloom.training.callbacks.base import HOOKS
from netloom.training.checkpoint import Checkpointer, load_checkpoint
from netloom.training.optim import create_optimizer
from netloom.training.schedules import LENGTH_DEPENDENT, Schedule
from netloom.training.state import TrainingState
from training.helpers import StopAfter, network, train


def recording(calls: list[str]) -> Callback:
    """A callback with all hooks, each of which notes its name."""

    def noting(hook: str) -> Any:
        return lambda self, state: calls.append(hook)

    methods = {hook: noting(hook) for hook in HOOKS}
    return type("Recorder", (Callback,), {**methods, "close": lambda self: calls.append("close")})()


def test_hooks_come_in_their_order() -> None:
    """Six steps an epoch; the 15 validation pictures are two batches."""
    calls: list[str] = []
    train(epochs=2, callbacks=[recording(calls)])
    epoch = [
        "on_epoch_start",
        *["on_batch_start", "on_batch_end"] * 6,
        "on_validation_start",
        "on_predict_start",
        *["on_predict_batch_end"] * 2,
        "on_predict_end",
        "on_validation_end",
        "on_epoch_end",
    ]
    assert calls == ["on_fit_start", *epoch, *epoch, "on_fit_end", "close"]


def test_callbacks_come_in_the_order_they_were_given() -> None:
    calls: list[str] = []

    class Named(Callback):
        def __init__(self, name: str) -> None:
            self.name = name

        def on_epoch_end(self, state: TrainingState) -> None:
            calls.append(self.name)

    train(epochs=1, callbacks=[Named("first"), Named("second")])
    assert calls == ["first", "second"]


def test_hooks_that_are_not_overridden_are_not_called(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: Counter[str] = Counter()

    class OnlyEpochs(Callback):
        def on_epoch_end(self, state: TrainingState) -> None:
            calls["on_epoch_end"] += 1

    for hook in HOOKS:
        monkeypatch.setattr(Callback, hook, lambda self, state, hook=hook: calls.update([f"base {hook}"]))
    train(epochs=3, callbacks=[OnlyEpochs()])
    assert calls == {"on_epoch_end": 3}


def test_callbacks_are_closed_after_an_error() -> None:
    calls: list[str] = []
    model = network()
    with pytest.raises(TrainingError):
        train(model, optimizer=create_optimizer(model, "sgd", learning_rate=1e20), callbacks=[recording(calls)])
    assert calls[-1] == "close"
    assert "on_fit_end" not in calls


def test_a_prediction_can_be_followed() -> None:
    pictures: list[int] = []
    shapes: list[tuple[int, ...]] = []

    class Follower(Callback):
        def on_predict_batch_end(self, prediction: Prediction) -> None:
            assert not prediction.model.training
            pictures.append(prediction.pictures)
            shapes.append(tuple(prediction.outputs["label"].shape))

    train(epochs=1, callbacks=[Follower()])
    assert pictures == [8, 15]
    assert shapes == [(8, 3), (7, 3)]


def test_the_state_holds_the_batch_as_the_network_got_it() -> None:
    """Against the inputs that the network's first layer saw in training."""
    model, seen, shown = network(), [], []

    class Shown(Callback):
        def on_batch_end(self, state: TrainingState) -> None:
            assert state.batch is not None
            shown.append(state.batch.inputs["image"].clone())

    first = next(model.children())
    first.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].clone()) if module.training else None)
    train(model, epochs=1, mixup_alpha=1.0, callbacks=[Shown()])
    assert len(shown) == 6
    assert all(torch.equal(a, b) for a, b in zip(seen, shown, strict=True))


class Counting(Callback):
    """Counts batches over interruptions."""

    def __init__(self) -> None:
        self.batches = 0

    def on_batch_end(self, state: TrainingState) -> None:
        self.batches += 1

    def state_dict(self) -> dict[str, Any]:
        return {"batches": self.batches}

    def load_state_dict(self, value: dict[str, Any]) -> None:
        self.batches = value["batches"]


def test_states_are_given_back_by_class_whatever_else_there_is(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    train(callbacks=[Counting(), Callback()], checkpointer=Checkpointer(path), interruption=StopAfter(5))
    old, new = Counting(), Counting()
    train(callbacks=[Callback(), old, new], resume=load_checkpoint(path))
    assert (old.batches, new.batches) == (24, 19)


class Clock:
    """Stands in for `time.monotonic`: every epoch takes as many seconds as it is told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class EpochsTake(Callback):
    def __init__(self, clock: Clock, seconds: float) -> None:
        self.clock, self.seconds = clock, seconds

    def on_validation_end(self, state: TrainingState) -> None:
        self.clock.now += self.seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr("netloom.training.callbacks.time_limit.time.monotonic", found)
    return found


@pytest.mark.parametrize(("minutes", "epochs"), [(0.5, 1), (1.0, 1), (3.0, 3), (3.5, 3), (9.0, 4)])
def test_the_time_limit_is_kept(clock: Clock, minutes: float, epochs: int) -> None:
    """An epoch takes one minute; four are asked for. Only the first one may pass the limit."""
    state = train(callbacks=[TimeLimit(max_minutes=minutes), EpochsTake(clock, 60)])
    assert state.epoch == epochs
    assert (state.stop_reason is None) == (minutes >= 4)
    if state.stop_reason:
        assert f"{epochs}.0 of {minutes:g} minutes" in state.stop_reason


@pytest.mark.parametrize("kind", ["cosine", "one_cycle", "step", "constant"])
def test_a_schedule_that_the_time_limit_cuts_off_is_told(clock: Clock, kind: str) -> None:
    """Reference: the rate that the optimizer had in the last step; an uncut training of two epochs says nothing."""
    schedule = Schedule(kind, peak_fraction=0.3, final_fraction=0.1)
    callbacks = [TimeLimit(max_minutes=2, schedule=schedule), EpochsTake(clock, 60)]
    state = train(callbacks=callbacks, schedule=schedule)
    assert state.epoch == 2
    assert state.stop_reason is not None
    told = re.search(r"(\w+) schedule of 4 epochs was cut off at (\d+)% .* end at (\d+)%", state.stop_reason)
    assert (told is not None) == (kind in LENGTH_DEPENDENT)
    if told is not None:
        assert told[1] == kind
        assert int(told[2]) == round(100 * state.learning_rate / state.optimizer.param_groups[0]["base_lr"])
        assert 50 < int(told[2]) < 90
        assert 10 <= int(told[3]) <= 13
        assert state.stop_reason.endswith("with epochs=2 it ends within the limit")
    whole = train(callbacks=[TimeLimit(max_minutes=2, schedule=schedule), EpochsTake(clock, 60)], epochs=2)
    assert whole.stop_reason is None or "cut off" not in whole.stop_reason


def test_the_time_before_a_resumption_counts(clock: Clock, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    callbacks = [TimeLimit(max_minutes=3), EpochsTake(clock, 60)]
    train(callbacks=callbacks, checkpointer=Checkpointer(path), interruption=StopAfter(12))
    clock.now += 3600
    resumed = train(callbacks=[TimeLimit(max_minutes=3), EpochsTake(clock, 60)], resume=load_checkpoint(path))
    assert resumed.epoch == 3


def test_an_extended_training_has_the_time_limit_anew(clock: Clock, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"

    def run(epochs: int, **options: Any) -> TrainingState:
        callbacks = [TimeLimit(max_minutes=3), EpochsTake(clock, 60)]
        return train(callbacks=callbacks, epochs=epochs, checkpointer=Checkpointer(path), **options)

    assert run(9).epoch == 3
    assert run(9, resume=load_checkpoint(path)).epoch == 3
    assert run(10, resume=load_checkpoint(path)).epoch == 6
