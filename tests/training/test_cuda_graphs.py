"""Steps replayed from a CUDA graph: those of autograd. Without a GPU, a stand-in records and replays on the CPU."""

from __future__ import annotations

import contextlib
import copy
import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from netloom.data.batches import Batch
from netloom.errors import TrainingError
from netloom.runtime import ExecutionPlan
from netloom.training import cuda_graphs, planning
from netloom.training.callbacks import Callback
from netloom.training.cuda_graphs import GraphedGradients, Recorder, RecordingError, check_replayed
from netloom.training.gradients import WholeBatchGradients
from netloom.training.optim import create_optimizer
from netloom.training.planning import TimedSteps, choose_plan
from netloom.training.state import TrainingState
from training.helpers import HEAD, PLAN, batches, equal, network, train, untimed

GRAPHED = replace(PLAN, graphed=True)


class Replaying:
    """Does on the CPU what a graph does: replays fill the tensors of the recording, which itself changes nothing."""

    def __init__(self, device: torch.device) -> None:
        self.recorded = 0

    def warm_up(self, compute: Callable[[], object]) -> None:
        compute()

    def record(self, compute: Callable[[], Any]) -> tuple[Any, Callable[[], None]]:
        self.recorded += 1
        model = inspect.getclosurevars(compute).nonlocals["self"].model
        before = [buffer.clone() for buffer in model.buffers()]
        figures = compute()
        gradients = [parameter.grad for parameter in model.parameters()]
        for buffer, value in zip(model.buffers(), before, strict=True):
            buffer.copy_(value)

        def replay() -> None:
            found = compute()
            for held, value in zip(figures, found, strict=True):
                held.copy_(value)
            for held, parameter in zip(gradients, model.parameters(), strict=True):
                if held is not None:
                    held.copy_(parameter.grad)

        return figures, replay


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_graphs, "Recorder", Replaying)


def a_batch() -> Batch:
    return next(iter(batches().epoch()))


def gradients_of(model: nn.Module, plan: ExecutionPlan = GRAPHED) -> GraphedGradients:
    return GraphedGradients(model, [HEAD], plan=plan, seed=0, label_smoothing=0.0)


@pytest.mark.usefixtures("on_cpu")
def test_a_training_of_replayed_steps_is_that_of_autograd() -> None:
    """With dropout, batch normalization, augmentation, and a last batch that is smaller."""
    mine, own = train(plan=GRAPHED), train(plan=PLAN)
    assert equal(mine.model, own.model)
    assert untimed(mine) == untimed(own)


@pytest.mark.usefixtures("on_cpu")
def test_each_shape_is_recorded_once_until_others_train_or_the_model_has_other_tensors() -> None:
    model = network()
    gradients, batch = gradients_of(model), a_batch()
    smaller = Batch({"image": batch.inputs["image"][:5]}, {"label": batch.targets["label"][:5]})
    weighted = replace(batch, weights=torch.ones(len(batch)))

    def recorded() -> int:
        recorder: Any = gradients._recorder
        return recorder.recorded

    for step, one in enumerate([batch, smaller, batch, weighted, smaller]):
        gradients(one, step)
    assert recorded() == 3
    model[0].weight.requires_grad_(False)
    gradients.renew()
    gradients(batch, 9)
    assert recorded() == 1
    assert model[0].weight.grad is None
    model[6].weight.data = model[6].weight.data.clone()
    gradients(batch, 10)
    assert recorded() == 1
    own = copy.deepcopy(model)
    WholeBatchGradients(own, [HEAD], plan=PLAN, seed=0, label_smoothing=0.0)(batch, 11)
    gradients(batch, 11)
    assert torch.equal(model[6].weight.grad, own[6].weight.grad)


@pytest.mark.usefixtures("on_cpu")
def test_what_no_graph_can_hold_is_told() -> None:
    hooked = network()
    hooked[0].register_forward_hook(lambda *_: None)
    with pytest.raises(RecordingError, match="cannot be replayed from a CUDA graph: it has hooks"):
        gradients_of(hooked)(a_batch(), 0)

    class Waiting(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("called a synchronizing CUDA operation\nand more")

    with pytest.raises(RecordingError, match=r"graph: called a synchronizing CUDA operation$"):
        gradients_of(nn.Sequential(Waiting()))(a_batch(), 0)


@pytest.mark.usefixtures("on_cpu")
def test_replayed_steps_are_compared_with_others(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    before = copy.deepcopy(model.state_dict())
    check_replayed(model, [a_batch()] * 2, [HEAD], GRAPHED, 0.0)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())
    assert all(parameter.grad is None for parameter in model.parameters())

    class Counting(nn.Module):
        calls = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            return x

    class Keeping(Counting):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.seen = [x.detach()]
            return x

    for kept in (Counting(), Keeping()):
        with pytest.raises(RecordingError, match="keeps something of one step"):
            check_replayed(nn.Sequential(kept, *network()), [a_batch()] * 2, [HEAD], GRAPHED, 0.0)

    class Stale(Replaying):
        """Replays what it computed first."""

        def record(self, compute: Callable[[], Any]) -> tuple[Any, Callable[[], None]]:
            return super().record(compute)[0], lambda: None

    monkeypatch.setattr(cuda_graphs, "Recorder", Stale)
    with pytest.raises(RecordingError, match="gradients or buffers are others"):
        check_replayed(model, [a_batch()] * 2, [HEAD], GRAPHED, 0.0)


@pytest.mark.parametrize(
    ("eager", "replayed", "n_steps", "failure", "graphed"),
    [
        (1.0, 0.5, 100, None, True),
        (1.0, 0.95, 100, None, False),
        (1.0, 0.5, 2, None, False),
        (1.0, 0.5, 100, RecordingError("it has hooks"), False),
        (1.0, 0.5, 100, torch.OutOfMemoryError("CUDA out of memory.\nTried"), False),
    ],
)
def test_steps_are_replayed_where_that_is_faster_and_possible(
    eager: float,
    replayed: float,
    n_steps: int,
    failure: Exception | None,
    graphed: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    checked = []

    def check(self: TimedSteps, plan: ExecutionPlan) -> None:
        checked.append(plan)
        if failure is not None:
            raise failure

    monkeypatch.setattr(TimedSteps, "seconds", lambda self, plans: [replayed if p.graphed else eager for p in plans])
    monkeypatch.setattr(TimedSteps, "check_replayed", check)
    monkeypatch.setattr(planning, "executing", lambda plan: contextlib.nullcontext())
    steps = TimedSteps(network(), a_batch(), [HEAD])
    plan = choose_plan(steps, device="cuda:0", precision="float32", n_steps=n_steps)
    assert plan.graphed == graphed
    assert ExecutionPlan.from_json(plan.to_json()) == plan
    assert len(checked) == (n_steps > 2)
    if failure is not None:
        assert plan.reason == f"as asked; {str(failure).splitlines()[0]}"
    elif graphed:
        assert plan.reason == "as asked; a step is 2.0 times faster replayed from a CUDA graph"


def test_a_precision_that_cannot_be_recorded_is_timed_without(monkeypatch: pytest.MonkeyPatch) -> None:
    timed = []

    def fastest(
        steps: Any, plan: ExecutionPlan, under: Any, what: str, *, precision: str, n_steps: int
    ) -> ExecutionPlan:
        timed.append(plan.graphed)
        if plan.graphed:
            raise RecordingError("no")
        return replace(plan, precision="bfloat16", reason="timed")

    monkeypatch.setattr(planning, "_graphed_if_faster", lambda plan, steps, n: (replace(plan, graphed=True), "faster"))
    monkeypatch.setattr(planning, "_in_faster_precision", lambda *given, **named: fastest(None, *given, **named))
    plan = choose_plan(TimedSteps(network(), a_batch(), [HEAD]), device="cuda:0")
    assert (timed, plan.graphed, plan.precision) == ([True, False], False, "bfloat16")
    assert plan.reason == "timed; its steps cannot be replayed from a CUDA graph: no"


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_gpu_replays_what_autograd_computes(precision: Any) -> None:
    if not torch.cuda.is_available():
        pytest.skip("there is no CUDA device")
    from netloom.runtime import executing

    plan = ExecutionPlan("cuda:0", 1, precision, graphed=True)
    model = network().cuda()
    data = [Batch({"image": b.inputs["image"].cuda()}, {"label": b.targets["label"].cuda()}) for b in batches().epoch()]
    with executing(plan):
        check_replayed(model, data[:2], [HEAD], plan, 0.1)
        own, mine = copy.deepcopy(model), copy.deepcopy(model)
        options: Any = {"seed": 5, "label_smoothing": 0.0}
        whole = WholeBatchGradients(own, [HEAD], plan=replace(plan, graphed=False), **options)
        graphed = GraphedGradients(mine, [HEAD], plan=plan, **options)
        for step, batch in enumerate(data):  # the last one is smaller, and dropout draws
            expected, found = whole(batch, step), graphed(batch, step)
            torch.testing.assert_close(found, expected)
            for a, b in zip(mine.parameters(), own.parameters(), strict=True):
                torch.testing.assert_close(a.grad, b.grad)
        for a, b in zip(mine.buffers(), own.buffers(), strict=True):
            torch.testing.assert_close(a, b)

        class Waiting(nn.Module):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return x * float(x.mean())

        with pytest.raises(TrainingError, match="synchronizing"):
            check_replayed(nn.Sequential(Waiting(), *network().cuda()), data[:2], [HEAD], plan, 0.0)
        torch.rand(3, device="cuda")  # generators are as they were


def test_a_recorder_needs_no_device_until_it_records() -> None:
    assert Recorder(torch.device("cuda:0"))._pool is None


class Activations(Callback):
    """Has hooks of torch's on a module during its second epoch."""

    def __init__(self) -> None:
        self.calls: list[int] = []

    def on_epoch_start(self, state: TrainingState) -> None:
        if state.epoch == 1:
            module: Any = state.model
            self.handle = module[0].register_forward_hook(lambda *_: self.calls.append(state.step))

    def on_epoch_end(self, state: TrainingState) -> None:
        if state.epoch == 2:
            self.handle.remove()


@pytest.mark.parametrize("plan", [PLAN, replace(PLAN, shards=2), replace(PLAN, graphed=True)])
def test_hooks_of_torch_are_called_however_steps_are_executed(
    plan: ExecutionPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda_graphs, "Recorder", Replaying)
    watcher = Activations()
    state = train(plan=plan, callbacks=[watcher], validation=None, epochs=3)
    assert watcher.calls == list(range(6, 12))
    assert len(state.history) == 3
    assert equal(state.model, train(plan=plan, validation=None, epochs=3).model) or plan.shards


class Changing(Callback):
    """Does something to the network before its second epoch."""

    def __init__(self, change: Callable[[Any], object]) -> None:
        self.change = change

    def on_epoch_start(self, state: TrainingState) -> None:
        if state.epoch == 1:
            self.change(state.model)


def freeze(model: Any) -> None:
    model[0].requires_grad_(False)
    model[6].weight.requires_grad_(False)


def drop_nothing(model: Any) -> None:
    model[5].p = 0.0


def normalize_slowly(model: Any) -> None:
    model[1].momentum = 0.01


def without_dropout() -> Any:
    model: Any = network()
    model[5].p = 0.0
    return model


@pytest.mark.parametrize("plan", [PLAN, replace(PLAN, shards=2), replace(PLAN, graphed=True)])
@pytest.mark.parametrize("change", [freeze, normalize_slowly])
def test_what_callbacks_change_counts_however_steps_are_executed(
    change: Callable[[Any], object], plan: ExecutionPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against a training by autograd; without dropout, whose masks are others in shards."""
    monkeypatch.setattr(cuda_graphs, "Recorder", Replaying)

    def trained(plan: ExecutionPlan) -> Any:
        model = without_dropout()
        optimizer = create_optimizer(model, "sgd", learning_rate=0.01)  # which leaves rounding what it is
        options: dict[str, Any] = {"optimizer": optimizer, "callbacks": [Changing(change)], "validation": None}
        return train(model, plan=plan, epochs=3, **options).model

    model, expected = trained(plan), trained(PLAN)
    for mine, their in zip(model.state_dict().values(), expected.state_dict().values(), strict=True):
        torch.testing.assert_close(mine, their, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("plan", [replace(PLAN, shards=2), replace(PLAN, graphed=True)])
def test_what_a_callback_freezes_stays_and_what_drops_nothing_draws_nothing(
    plan: ExecutionPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda_graphs, "Recorder", Replaying)
    one: Any = train(plan=plan, validation=None, epochs=1).model
    frozen: Any = train(plan=plan, callbacks=[Changing(freeze)], validation=None, epochs=3).model
    assert torch.equal(frozen[0].weight, one[0].weight)
    assert torch.equal(frozen[6].weight, one[6].weight)
    assert not torch.equal(frozen[1].weight, one[1].weight)
    assert frozen[0].weight.grad is None
    dropping = train(plan=plan, validation=None, epochs=3).model
    assert not equal(train(plan=plan, callbacks=[Changing(drop_nothing)], validation=None, epochs=3).model, dropping)
