"""Compiled steps against the same step by autograd: loss, all gradients, all statistics."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from netloom.data.batches import Batch
from netloom.kernels import calls
from netloom.models import create_model, model_names, model_options
from netloom.runtime import ConvolutionMethods, ExecutionPlan, executing
from netloom.training import compiled_graph, machine_code, planning, shards
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


def test_a_whole_step_is_one_piece() -> None:
    gradients = CompiledGradients(
        network(), [CLASSES], plan=plan_of(2, (DIRECT, WINOGRAD)), seed=1, label_smoothing=0.0
    )
    with contextlib.closing(gradients):
        gradients(a_batch(), 0)
        (n_calls,) = gradients.n_calls
        assert n_calls >= 30


def test_other_losses_are_torchs() -> None:
    gradients = CompiledGradients(
        network(), [CLASSES], plan=plan_of(2, (DIRECT, WINOGRAD)), seed=1, label_smoothing=0.1
    )
    with contextlib.closing(gradients):
        gradients(a_batch(), 0)
        assert len(gradients.n_calls) == 2


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


class Special(nn.Module):
    """Layers to make something special of, and what is made."""

    def __init__(self, forward: Callable[[Special, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.norm, self.dense = nn.BatchNorm2d(8), nn.Linear(8, 5)
        self.weights, self.others = (nn.Parameter(torch.randn(5, 8) * 0.1) for _ in range(2))
        self.columns, self.one = nn.Parameter(torch.randn(8, 2)), nn.Parameter(torch.tensor(0.5))
        self._forward = forward
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self._forward(self, image)

    def features(self, image: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.second(self.first(image).relu()).relu()
        return found


def _convolved(model: Special, image: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    features = F.conv2d(model.first(image).relu(), model.second.weight, bias, padding=1)
    out: torch.Tensor = model.dense(features.relu().mean((2, 3)))
    return out


def _joined_pools(model: Special, image: torch.Tensor) -> torch.Tensor:
    pools = [F.max_pool2d(part, 2) for part in (model.first(image).relu(), model.features(image))]
    out: torch.Tensor = F.linear(torch.cat(pools, 1).mean((2, 3)), torch.cat([model.weights, model.others], 1))
    return out


SPECIAL: dict[str, Callable[[Special, torch.Tensor], torch.Tensor]] = {
    "column as bias of a convolution": lambda model, image: _convolved(model, image, model.columns[:, 1]),
    "one number as bias of a convolution": lambda model, image: _convolved(model, image, model.one.expand(8)),
    "column as bias": lambda model, image: F.linear(
        model.features(image).mean((2, 3)), model.weights, model.columns[:5, 1]
    ),
    "one number as bias": lambda model, image: F.linear(
        model.features(image).mean((2, 3)), model.weights, model.one.expand(5)
    ),
    "columns as scale and shift of a normalization": lambda model, image: model.dense(
        F.batch_norm(model.first(image), None, None, model.columns[:, 0], model.columns[:, 1], True).relu().mean((2, 3))
    ),
    "sum behind a normalization": lambda model, image: model.dense(model.norm(model.first(image)).sum((2, 3))),
    "sum behind pooling": lambda model, image: model.dense(F.max_pool2d(model.features(image), 2).sum((2, 3))),
    "sum behind pooling alone": lambda model, image: model.dense(
        F.max_pool2d(model.second(model.first(image)), 2).sum((2, 3))
    ),
    "pools joined": _joined_pools,
    "sum of weights": lambda model, image: F.linear(model.features(image).mean((2, 3)), model.weights + model.others),
    "sum of everything": lambda model, image: model.dense(model.features(image).mean((2, 3))) + model.columns.sum(None),
}


@pytest.mark.parametrize("name", SPECIAL)
def test_special_layers_train_alike(name: str) -> None:
    model = Special(SPECIAL[name])
    compiled(model, a_batch()).assert_like(whole(model, a_batch()), tolerance=5e-4)


@pytest.mark.parametrize("compiles", [False, True])
def test_each_parameter_has_a_gradient_of_its_own(compiles: bool) -> None:
    """What clips gradients changes them in place: of two parameters whose sum is used, too."""
    plans = replace(plan_of(1, (DIRECT, WINOGRAD)), compiled=compiles), ExecutionPlan("cpu", 1, "float32")
    norms = []
    for plan in plans:
        model = Special(SPECIAL["sum of weights"])
        optimizer = create_optimizer(model, "sgd", learning_rate=0.1)
        step = TrainingStep(model, [CLASSES], optimizer, plan=plan, seed=1, gradient_clip_norm=0.01)
        with contextlib.closing(step):
            step(a_batch(), 0)
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        norms.append(torch.nn.utils.get_total_norm(gradients))
    torch.testing.assert_close(norms[0], norms[1], rtol=1e-4, atol=0.0)


def test_an_interruption_stays_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    model = network()
    gradients = ShardedGradients(model, [CLASSES], plan=plan_of(1), seed=1, label_smoothing=0.0)
    with contextlib.closing(gradients):
        gradients(a_batch(), 0)
        with monkeypatch.context() as patched:
            patched.setattr(machine_code.Piece, "run", interrupted)
            with pytest.raises(KeyboardInterrupt):
                gradients(a_batch(), 1)
        gradients(a_batch(), 1)


def test_a_normalization_that_the_loss_does_not_see_is_refused() -> None:
    def forward(model: Special, image: torch.Tensor) -> torch.Tensor:
        features = model.features(image)
        model.norm(features.detach())
        return model.dense(features.mean((2, 3)))  # type: ignore[no-any-return]

    with pytest.raises(CaptureError, match="does not depend on"):
        compiled(Special(forward), a_batch())


def test_a_batch_that_cannot_be_captured_is_trained_on_by_autograd() -> None:
    def forward(model: Special, image: torch.Tensor) -> torch.Tensor:
        if len(image) < 6:
            assert not torch.isnan(image).any()  # which no graph can hold
        return model.dense(model.features(image).mean((2, 3)))  # type: ignore[no-any-return]

    model, twin = Special(forward), Special(forward)
    for each, plan in ((model, plan_of(1)), (twin, ExecutionPlan("cpu", 1, "float32"))):
        optimizer = create_optimizer(each, "sgd", learning_rate=0.1)
        with contextlib.closing(TrainingStep(each, [CLASSES], optimizer, plan=plan, seed=1)) as step:
            for number, n in enumerate((8, 4, 8, 4)):
                step(a_batch(n), number)
    for mine, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-5)


def test_gradients_that_are_left_have_memory_of_their_own() -> None:
    model = network()
    gradients = ShardedGradients(model, [CLASSES], plan=plan_of(1, (DIRECT, WINOGRAD)), seed=1, label_smoothing=0.0)
    with contextlib.closing(gradients):
        gradients(a_batch(), 0)
    for parameter in model.parameters():
        assert parameter.grad is not None
        assert parameter.grad.untyped_storage().nbytes() == parameter.numel() * 4


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
    model = network()
    step = TrainingStep(model, [CLASSES], create_optimizer(model, "sgd", learning_rate=0.1), plan=plan_of(1), seed=1)
    with contextlib.closing(step), pytest.raises(CaptureError, match="llvmlite"):
        step(a_batch(), 0)


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
