"""Compiled steps against the same step by autograd: loss, all gradients, all statistics."""

from __future__ import annotations

import contextlib
import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from netloom.data.batches import Batch
from netloom.kernels import calls
from netloom.models import create_model, model_names, model_options
from netloom.runtime import ConvolutionMethods, ExecutionPlan, executing
from netloom.training import compiled_graph, planning, shards
from netloom.training.optim import create_optimizer
from netloom.training.planning import choose_plan
from netloom.training.shards import ShardedGradients
from netloom.training.step import TrainingStep
from netloom.training.step_rewrites import CaptureError
from netloom.training.timed_steps import TimedSteps
from training.test_shards import CLASSES, HEAVY, Outcome, a_batch, whole

WINOGRAD = ConvolutionMethods("winograd", "winograd", "winograd")
DIRECT = ConvolutionMethods("direct", "direct", "direct")


class CompiledGradients(ShardedGradients):
    """By a compiled plan."""

    def __init__(self, *args: Any, plan: ExecutionPlan, **options: Any) -> None:
        super().__init__(*args, plan=plan_of(plan.threads, plan.convolutions), **options)

    @property
    def n_calls(self) -> list[int]:
        """Of machine code, in each piece of the step."""
        (compiled,) = self._compiled.values()
        return [piece.n_calls for piece in compiled.pieces]


def plan_of(threads: int = 2, methods: tuple[ConvolutionMethods, ...] = ()) -> ExecutionPlan:
    return ExecutionPlan("cpu", threads, "float32", shards=1, convolutions=methods, compiled=True)


def compiled(
    model: nn.Module, batch: Batch, *, methods: tuple[ConvolutionMethods, ...] = (), **options: Any
) -> Outcome:
    """The first convolution by sums of products, and the others by Winograd's transformation where that can be."""
    return Outcome(CompiledGradients, model, batch, convolutions=methods or (DIRECT, *[WINOGRAD] * 60), **options)


def network(*, norm: bool = True, dropout: float = 0.0, padding: int = 1) -> nn.Module:
    torch.manual_seed(3)
    layers = [nn.Conv2d(3, 8, 3, padding=padding), nn.BatchNorm2d(8) if norm else nn.Identity(), nn.ReLU()]
    layers += [nn.MaxPool2d(2), nn.Dropout(dropout), nn.Conv2d(8, 16, 3, padding=padding), nn.ReLU(inplace=True)]
    layers += [nn.MaxPool2d(2), nn.Flatten(), nn.Dropout(dropout), nn.LazyLinear(20), nn.ReLU()]
    layers += [nn.BatchNorm1d(20) if norm else nn.Identity(), nn.Linear(20, 5)]
    model = nn.Sequential(*layers)
    model(a_batch().inputs["image"])
    return model.to(memory_format=torch.channels_last)


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow if n in HEAVY else ()) for n in model_names()])
def test_every_model_trains_alike_compiled(name: str) -> None:
    side = 67 if name == "alexnet" else 32
    options: dict[str, Any] = {"dropout": 0.0, "dense_dropout": 0.0, "dense_units": [16]}
    known = {key: value for key, value in options.items() if key in model_options(name)}
    model = create_model(name, in_channels=3, num_outputs=5, image_size=(side, side), seed=0, options=known)
    batch = a_batch(7, side=side)
    mine, theirs = compiled(model, batch), whole(model, batch)
    if not any(isinstance(module, nn.BatchNorm2d) for module in model.modules()):
        mine.assert_like(theirs, tolerance=1e-3)
        return
    exact = whole(copy.deepcopy(model).double(), Batch({"image": batch.inputs["image"].double()}, batch.targets, None))
    assert mine.distance(exact) < 5 * theirs.distance(exact) + 1e-2
    torch.testing.assert_close(mine.loss, theirs.loss, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize("weighted", [False, True])
def test_a_network_trains_alike_compiled(norm: bool, padding: int, weighted: bool) -> None:
    model, batch = network(norm=norm, padding=padding), a_batch(weighted=weighted)
    compiled(model, batch, label_smoothing=0.1).assert_like(whole(model, batch, label_smoothing=0.1), tolerance=2e-4)


def test_all_but_the_loss_is_two_pieces() -> None:
    gradients = CompiledGradients(
        network(), [CLASSES], plan=plan_of(2, (DIRECT, WINOGRAD)), seed=1, label_smoothing=0.0
    )
    with contextlib.closing(gradients):
        gradients(a_batch(), 0)
        forward, backward = gradients.n_calls
        assert forward + backward >= 30


def test_convolutions_of_torch_part_the_pieces() -> None:
    model, batch = network(), a_batch()
    compiled(model, batch, methods=(ConvolutionMethods(),)).assert_like(whole(model, batch), tolerance=2e-4)


def test_threads_change_no_bit() -> None:
    model, batch = network(dropout=0.3), a_batch(16)
    outcomes = []
    for threads in (1, 2, 3, 4):
        with executing(plan_of(threads)):
            outcomes.append(compiled(model, batch))
    for other in outcomes[1:]:
        other.assert_same_bits(outcomes[0])


def test_dropout_is_that_of_captured_steps() -> None:
    model, batch = network(dropout=0.4, norm=False), a_batch(16)
    captured = Outcome(ShardedGradients, model, batch, n_shards=1)
    compiled(model, batch).assert_like(captured, tolerance=2e-4)


def test_what_is_frozen_has_no_gradient() -> None:
    model = network()
    for parameter in model[:4].parameters():
        parameter.requires_grad_(False)
    compiled(model, a_batch()).assert_like(whole(model, a_batch()), tolerance=2e-4)


def test_batches_of_other_sizes_come_and_go() -> None:
    model = network(norm=False)
    plan = plan_of(2, (DIRECT, WINOGRAD))
    with contextlib.closing(ShardedGradients(model, [CLASSES], plan=plan, seed=9, label_smoothing=0.0)) as gradients:
        for n in (12, 5, 12, 2, 5):
            batch = a_batch(n)
            loss, _ = gradients(batch, 4)
            expected = whole(model, batch)
            torch.testing.assert_close(loss, expected.loss, rtol=1e-4, atol=1e-6)
            for name, parameter in model.named_parameters():
                torch.testing.assert_close(parameter.grad, expected.gradients[name], rtol=1e-3, atol=1e-4, msg=name)


def test_steps_train_a_network_as_captured_ones_do() -> None:
    trained = []
    for plan in (plan_of(2, (DIRECT, WINOGRAD)), ExecutionPlan("cpu", 2, "float32", shards=1)):
        model = network(norm=False)
        optimizer = create_optimizer(model, "adam", learning_rate=1e-3)
        with contextlib.closing(TrainingStep(model, [CLASSES], optimizer, plan=plan, seed=1)) as step:
            for number in range(5):
                step(a_batch(), number)
        trained.append([p.detach().clone() for p in model.parameters()])
    for mine, their in zip(*trained, strict=True):
        torch.testing.assert_close(mine, their, rtol=1e-3, atol=3e-4)


class Residual(nn.Module):
    """Adds, pools over everything, and looks at a value twice."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.first, self.second = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.dense = nn.Linear(32, 5)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.first(image).relu()
        y = (self.second(x) + x).relu()
        averages = F.adaptive_avg_pool2d(y, 1).flatten(1)  # whose gradient is written in place
        pooled = torch.cat([averages, F.max_pool2d(y * x, 2).amax((2, 3))], 1)
        out: torch.Tensor = self.dense(pooled)
        return out


def test_a_model_of_ones_own_trains_alike() -> None:
    model = Residual().to(memory_format=torch.channels_last)
    compiled(model, a_batch()).assert_like(whole(model, a_batch()), tolerance=2e-4)


def test_no_number_stays_none() -> None:
    batch = a_batch()
    batch.inputs["image"][2, 1, 5, 5] = torch.nan
    assert compiled(network(norm=False), batch).loss.isnan()


def test_a_network_without_such_operations_keeps_torchs() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Softmax(dim=1), nn.Unflatten(1, (3072, 1)), nn.Flatten())
    model.append(nn.utils.parametrizations.weight_norm(nn.Linear(3072, 5)))
    compiled(model, a_batch()).assert_like(whole(model, a_batch()), tolerance=2e-4)


def test_a_plan_that_cannot_be_compiled_here_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "usable", lambda: False)
    with pytest.raises(CaptureError, match="llvmlite"):
        compiled(network(), a_batch(), methods=(ConvolutionMethods(),))


def steps_of(model: nn.Module) -> TimedSteps:
    return TimedSteps(model, a_batch(), [CLASSES])


def test_a_long_training_is_compiled_where_that_is_the_fastest(monkeypatch: pytest.MonkeyPatch) -> None:
    entered = []

    def seconds(self: Any, plan: ExecutionPlan) -> float:
        entered.append(plan)
        self._roughly[plan] = 0.1 if plan.compiled else 1.0
        return self._roughly[plan]

    monkeypatch.setattr(planning.Comparison, "enter", seconds)
    monkeypatch.setattr(planning, "training_threads", lambda: 2)
    plan = choose_plan(steps_of(network()), device="cpu", precision="float32", n_steps=10**4)
    assert (plan.compiled, plan.shards, plan.threads) == (True, 1, 2)
    assert "10.0 times faster compiled" in plan.reason
    monkeypatch.setattr(planning, "usable", lambda: False)
    assert not choose_plan(steps_of(network()), device="cpu", precision="float32", n_steps=10**4).compiled
    assert not choose_plan(steps_of(network()), device="cpu", precision="bfloat16", n_steps=10**4).compiled


def test_a_compiled_plan_is_kept() -> None:
    plan = plan_of(2, (DIRECT, WINOGRAD))
    assert ExecutionPlan.from_json(plan.to_json()) == plan
    assert plan.describe_threads() == "2 threads, compiled steps"


def test_nothing_is_compiled_for_few_operations() -> None:
    graph = torch.fx.symbolic_trace(nn.Identity()).graph
    assert compiled_graph.compile_graph(graph, 1).pieces == []
    assert calls.usable()
