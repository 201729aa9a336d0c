"""A step divided among threads against the same step in one piece, for the loss, all gradients and all statistics."""

from __future__ import annotations

import contextlib
import copy
import json
import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

from netloom.data.batches import Batch
from netloom.errors import NetloomError, TrainingError
from netloom.models import create_model, model_names, model_options
from netloom.models.heads import Head
from netloom.randomness import derive_seed
from netloom.runtime import ConvolutionMethods, ExecutionPlan, executing
from netloom.training import divided, planning, shards, step_rewrites
from netloom.training.batch_norm import sharded_batch_norm
from netloom.training.capture import capture
from netloom.training.checkpoint import Checkpointer, load_checkpoint
from netloom.training.convolution import ConvolutionShape, convolution_by
from netloom.training.gradients import WholeBatchGradients
from netloom.training.optim import create_optimizer
from netloom.training.planning import choose_plan
from netloom.training.shards import ShardedGradients
from netloom.training.step import TrainingStep
from netloom.training.step_rewrites import CaptureError, Mask
from netloom.training.timed_steps import TimedSteps
from training.helpers import HEAD, batches, equal, network, train, untimed

CLASSES = Head(class_names=tuple("abcde"))
UNFOLDED = ConvolutionMethods(weight_gradient="unfolded")
WINOGRAD = ConvolutionMethods("winograd", "winograd", "winograd")
DIRECT = ConvolutionMethods("direct", "direct", "direct")
WINOGRAD_KERNELS = ["convolution.default", "input_gradient.default", "weight_gradient.default"]
HEAVY = {"alexnet", "vgg13", "vgg16", "vgg19", "resnet32", "resnet56"}


def a_batch(n: int = 11, *, channels: int = 3, side: int = 32, weighted: bool = False) -> Batch:
    generator = torch.Generator().manual_seed(5)
    images = torch.randn(n, channels, side, side, generator=generator).to(memory_format=torch.channels_last)
    targets = torch.randint(0, 5, (n,), generator=generator)
    weights = torch.rand(n, generator=generator) if weighted else None
    return Batch({"image": images}, {"label": targets}, weights)


def convolutional(*, norm: bool = True, dropout: float = 0.0, second: int = 6) -> nn.Module:
    torch.manual_seed(3)
    layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8) if norm else nn.Identity(), nn.ReLU(inplace=True), nn.MaxPool2d(2)]
    layers += [nn.Dropout2d(dropout), nn.Conv2d(8, second, 3), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten()]
    layers += [nn.Dropout(dropout), nn.Linear(second * 36, 12), nn.BatchNorm1d(12) if norm else nn.Identity()]
    return nn.Sequential(*layers, nn.Linear(12, 5)).to(memory_format=torch.channels_last)


class Outcome:
    """What a step leaves: loss, correct predictions, gradients by name, buffers by name."""

    def __init__(
        self,
        compute: Callable[..., Any],
        model: nn.Module,
        batch: Batch,
        *,
        heads: list[Head] | None = None,
        n_shards: int = 0,
        precision: str = "float32",
        step: int = 4,
        label_smoothing: float = 0.0,
        convolutions: tuple[ConvolutionMethods, ...] = (),
    ) -> None:
        replica = copy.deepcopy(model).train()
        plan = ExecutionPlan("cpu", 1, precision, shards=n_shards, convolutions=convolutions)  # type: ignore[arg-type]
        gradients = compute(replica, heads or [CLASSES], plan=plan, seed=9, label_smoothing=label_smoothing)
        with contextlib.closing(gradients):
            self.loss, self.correct = gradients(batch, step)
        self.gradients = {name: p.grad for name, p in replica.named_parameters()}
        self.buffers = dict(replica.named_buffers())

    def assert_like(self, other: Outcome, *, tolerance: float = 1e-4) -> None:
        torch.testing.assert_close(self.loss, other.loss, rtol=tolerance, atol=1e-6)
        assert torch.equal(self.correct, other.correct)
        assert self.gradients.keys() == other.gradients.keys()
        largest = max(float(g.abs().max()) for g in other.gradients.values() if g is not None)
        for name, gradient in other.gradients.items():
            mine = self.gradients[name]
            assert (mine is None) == (gradient is None), name
            if gradient is not None and mine is not None:
                torch.testing.assert_close(mine, gradient, rtol=tolerance, atol=tolerance * largest, msg=name)
        for name, value in other.buffers.items():
            torch.testing.assert_close(self.buffers[name], value, rtol=tolerance, atol=tolerance, msg=name)

    def distance(self, exact: Outcome) -> float:
        """Of all gradients as one vector, relative to its length."""
        pairs = [(self.gradients[name], g) for name, g in exact.gradients.items() if g is not None]
        squares = sum(float((mine.double() - g).square().sum()) for mine, g in pairs if mine is not None)
        assert all(mine is not None for mine, _ in pairs)
        return float((squares / sum(float(g.square().sum()) for _, g in pairs)) ** 0.5)

    def assert_same_bits(self, other: Outcome) -> None:
        assert torch.equal(self.loss, other.loss)
        for mine, their in ((self.gradients, other.gradients), (self.buffers, other.buffers)):
            assert all(
                torch.equal(mine[name], value) if value is not None else mine[name] is None
                for name, value in their.items()
            )


def whole(model: nn.Module, batch: Batch, **options: Any) -> Outcome:
    return Outcome(WholeBatchGradients, model, batch, **options)


def sharded(model: nn.Module, batch: Batch, n_shards: int, **options: Any) -> Outcome:
    return Outcome(ShardedGradients, model, batch, n_shards=n_shards, **options)


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow if n in HEAVY else ()) for n in model_names()])
def test_every_model_trains_alike_in_shards(name: str) -> None:
    side = 67 if name == "alexnet" else 32
    options: dict[str, Any] = {"dropout": 0.0, "dense_dropout": 0.0, "dense_units": [16]}
    known = {key: value for key, value in options.items() if key in model_options(name)}
    model = create_model(name, in_channels=3, num_outputs=5, image_size=(side, side), seed=0, options=known)
    batch = a_batch(7, side=side)
    divided, undivided = sharded(model, batch, 3), whole(model, batch)
    if not any(isinstance(module, nn.BatchNorm2d) for module in model.modules()):
        divided.assert_like(undivided, tolerance=1e-3)
        return
    # In a deep network with batch norm a unit that is 0 under one order of summation and 1e-8 under another moves all
    # gradients by about a thousandth, whole batch or not; all others lie within rounding of double precision.
    exact = whole(copy.deepcopy(model).double(), Batch({"image": batch.inputs["image"].double()}, batch.targets, None))
    assert divided.distance(exact) < 5 * undivided.distance(exact) + 5e-3
    torch.testing.assert_close(divided.loss, undivided.loss, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("n_shards", [1, 2, 4, 16])
@pytest.mark.parametrize("weighted", [False, True])
def test_loss_gradients_and_statistics_are_those_of_the_whole_batch(n_shards: int, weighted: bool) -> None:
    """Eleven samples are never divided evenly, and sixteen threads are too many for them."""
    model, batch = convolutional(), a_batch(weighted=weighted)
    options: dict[str, Any] = {"label_smoothing": 0.1}
    sharded(model, batch, n_shards, **options).assert_like(whole(model, batch, **options))


class Dense(nn.Module):
    """Two layers whose gradients are large beside what goes through them, one that is used twice, and a small one."""

    def __init__(self, *, tokens: int = 0) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.tokens = tokens
        self.wide, self.back = nn.Linear(3 * 32 * 32 // max(1, tokens), 600), nn.Linear(600, 400)
        self.twice, self.small = nn.Linear(400, 400), nn.Linear(400, 5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = images.flatten(1)
        if self.tokens:
            x = x.view(len(x), self.tokens, -1)
        x = F.relu(self.back(F.relu(self.wide(x))))
        x = self.small(F.relu(self.twice(self.twice(x))))
        return x.mean(1) if self.tokens else x


@pytest.fixture
def _many_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_rewrites, "_LARGE_GRADIENT", 2**16)


@pytest.mark.usefixtures("_many_are_large")
@pytest.mark.parametrize("n_shards", [2, 3, 16])
@pytest.mark.parametrize("tokens", [0, 4])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_gradients_of_large_dense_layers_are_one_product_over_all_shards(
    precision: str, tokens: int, n_shards: int
) -> None:
    model, batch = Dense(tokens=tokens), a_batch(weighted=True)
    options: dict[str, Any] = {"label_smoothing": 0.1, "precision": precision}
    tolerance = 1e-4 if precision == "float32" else 5e-2
    sharded(model, batch, n_shards, **options).assert_like(whole(model, batch, **options), tolerance=tolerance)


@pytest.mark.usefixtures("_many_are_large")
@pytest.mark.parametrize(("n_samples", "expected"), [(20, [True, True]), (400, [True, False]), (1200, [False, False])])
def test_what_is_large_is_so_beside_the_rows_that_shards_would_exchange(n_samples: int, expected: list[bool]) -> None:
    """600 x 3,072 and 400 x 600 numbers against n (600 + 3,072) and n (400 + 600)."""
    batch = a_batch(n_samples // 2)
    plan = ExecutionPlan("cpu", 1, "float32", shards=2)
    graph = capture(Dense().train(), batch, [CLASSES], plan=plan, label_smoothing=0.0, n_shards=2)
    assert graph.has_gradient == [True] * 8
    assert [graph.products[i] for i in (0, 2)] == expected
    assert not any(graph.products[i] for i in (1, 3, 4, 5, 6, 7))
    alone = capture(Dense().train(), batch, [CLASSES], plan=plan, label_smoothing=0.0, n_shards=1)
    assert not any(alone.products)


def test_large_sums_are_the_same_bits_whoever_adds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_rewrites, "_LARGE_GRADIENT", 2**30)  # so that all gradients are sums
    monkeypatch.setattr(shards, "_WORTH_SHARING", 2**30)
    alone = sharded(Dense(), a_batch(), 3)
    monkeypatch.setattr(shards, "_WORTH_SHARING", 2**16)
    sharded(Dense(), a_batch(), 3).assert_same_bits(alone)


@pytest.mark.usefixtures("_many_are_large")
def test_products_are_the_same_bits_every_time_and_no_ones_earlier_gradients() -> None:
    model, batch = Dense().train(), a_batch()
    plan = ExecutionPlan("cpu", 1, "float32", shards=3)
    with contextlib.closing(ShardedGradients(model, [CLASSES], plan=plan, seed=9, label_smoothing=0.0)) as gradients:
        gradients(batch, 1)
        before = [p.grad for p in model.parameters()]
        kept = [g.clone() for g in before if g is not None]
        gradients(a_batch(7), 2)
        gradients(batch, 1)
        for mine, earlier, copied in zip(model.parameters(), before, kept, strict=True):
            assert mine.grad is not None
            assert earlier is not None
            assert torch.equal(mine.grad, copied)
            assert torch.equal(earlier, copied)


@pytest.mark.parametrize(("norm", "tolerance"), [(False, 1e-6), (True, 1e-5)])
def test_one_shard_agrees_with_autograd_to_the_last_bits(norm: bool, tolerance: float) -> None:
    """So moving ReLU behind max pooling changes nothing."""
    model, batch = convolutional(norm=norm), a_batch()
    with executing(ExecutionPlan("cpu", 1, "float32")):
        sharded(model, batch, 1).assert_like(whole(model, batch), tolerance=tolerance)


@pytest.mark.parametrize("shape", [(11, 8), (11, 8, 5, 4)])
@pytest.mark.parametrize("affine", [False, True])
def test_normalization_in_one_shard_is_torchs_own_to_the_last_bit(shape: tuple[int, ...], affine: bool) -> None:
    torch.manual_seed(0)
    x, upstream = torch.randn(shape, requires_grad=True), torch.randn(shape)
    scale_and_shift = [torch.rand(8, requires_grad=True), torch.rand(8, requires_grad=True)] if affine else []
    weight, bias = scale_and_shift or (None, None)
    y, mean, variance = sharded_batch_norm(x, weight, bias, 1e-5, 1)
    running = torch.zeros(8), torch.zeros(8)
    own = F.batch_norm(x, *running, weight, bias, training=True, momentum=1.0, eps=1e-5)
    pairs = [(y, own), *zip((mean, variance), running, strict=True)]
    inputs = [x, *scale_and_shift]
    pairs += zip(torch.autograd.grad(y, inputs, upstream), torch.autograd.grad(own, inputs, upstream), strict=True)
    assert all(torch.equal(mine, torchs) for mine, torchs in pairs)


def test_relu_is_taken_behind_max_pooling() -> None:
    model, batch = convolutional(norm=False), a_batch()
    plan = ExecutionPlan("cpu", 1, "float32")
    graph = capture(model.train(), batch, [CLASSES], plan=plan, label_smoothing=0.0, n_shards=1).graph
    order = [str(node.target) for node in graph.nodes if node.op == "call_function"]
    first_relu = order.index("aten.relu.default")
    assert order.index("aten.max_pool2d_with_indices.default") < first_relu


class OddLayouts(nn.Module):
    """Parameters that lie in memory otherwise than their gradients come."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, (1, 5))
        self.grouped = nn.Conv2d(6, 6, 3, groups=3)
        self.turned = nn.Parameter(torch.randn(6, 5).t())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.grouped(self.conv(x))).mean((2, 3)) @ self.turned.t()


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
def test_gradients_lie_in_memory_as_their_parameters(memory_format: torch.memory_format) -> None:
    """Fused optimizers pair the values of both in the order of memory."""
    torch.manual_seed(4)
    model, batch = OddLayouts(), a_batch()
    model.conv.to(memory_format=memory_format)  # type: ignore[call-overload]
    model.grouped.to(memory_format=memory_format)  # type: ignore[call-overload]
    replicas = {n_shards: copy.deepcopy(model).train() for n_shards in (0, 3)}
    for n_shards, replica in replicas.items():
        plan = ExecutionPlan("cpu", 1, "float32", shards=n_shards, convolutions=(UNFOLDED,) if n_shards else ())
        optimizer = create_optimizer(replica, "sgd", learning_rate=0.5, momentum=0.9)
        with contextlib.closing(TrainingStep(replica, [CLASSES], optimizer, plan=plan, seed=1)) as step:
            step(batch, 0)
    for mine, expected in zip(replicas[3].parameters(), replicas[0].parameters(), strict=True):
        assert mine.grad is not None
        assert mine.grad.stride() == mine.stride()
        torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-5)


def test_a_batch_whose_weights_are_zero_trains_nothing() -> None:
    model, batch = convolutional(norm=False), a_batch(8)
    batch = Batch(batch.inputs, batch.targets, torch.zeros(8))
    outcome = sharded(model, batch, 3)
    assert float(outcome.loss) == 0
    assert all(float(g.abs().max()) == 0 for g in outcome.gradients.values() if g is not None)


@pytest.mark.parametrize("n_shards", [1, 3])
def test_bfloat16_agrees_within_its_rounding(n_shards: int) -> None:
    model, batch = convolutional(), a_batch(12)
    mine = sharded(model, batch, n_shards, precision="bfloat16")
    mine.assert_like(whole(model, batch, precision="bfloat16"), tolerance=0.1)


def test_frozen_and_unused_parameters_get_no_gradient() -> None:
    model = convolutional()
    model.register_parameter("unused", nn.Parameter(torch.ones(3)))
    model[0].weight.requires_grad_(requires_grad=False)  # type: ignore[union-attr, operator]
    batch = a_batch()
    outcome = sharded(model, batch, 2)
    outcome.assert_like(whole(model, batch))
    assert outcome.gradients["unused"] is None
    assert outcome.gradients["0.weight"] is None


class TwoInputs(nn.Module):
    """Functional calls, two inputs, two outputs, a value used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.dense, self.place = nn.Conv2d(3, 4, 3), nn.Linear(4 * 36 + 2, 5), nn.Linear(4 * 36, 2)

    def forward(self, image: torch.Tensor, extra: torch.Tensor) -> dict[str, torch.Tensor]:
        x = F.max_pool2d(F.relu_(self.conv(image)), 5, stride=5).flatten(1)
        return {"label": self.dense(torch.cat([x, extra], dim=1)), "place": self.place(x)}


def test_several_inputs_and_heads() -> None:
    torch.manual_seed(1)
    heads = [CLASSES, Head(name="place", kind="regression", num_outputs=2, loss_weight=0.3)]
    plain = a_batch(9)
    batch = Batch(
        {"image": plain.inputs["image"], "extra": torch.randn(9, 2)},
        {"label": plain.targets["label"], "place": torch.randn(9, 2)},
        torch.rand(9),
    )
    model = TwoInputs()
    sharded(model, batch, 4, heads=heads).assert_like(whole(model, batch, heads=heads))


def test_dropout_does_not_depend_on_how_the_batch_is_divided() -> None:
    model, batch = convolutional(dropout=0.4), a_batch()
    one = sharded(model, batch, 1)
    for n_shards in (2, 5):
        sharded(model, batch, n_shards).assert_like(one)
    other = sharded(model, batch, 1, step=5)
    assert not torch.equal(other.loss, one.loss)


def test_dropout_keeps_the_share_it_should_and_the_mean() -> None:
    plan = ExecutionPlan("cpu", 1, "float32")
    graph = capture(convolutional(dropout=0.3), a_batch(), [CLASSES], plan=plan, label_smoothing=0.0, n_shards=1)
    assert [mask.shape for mask in graph.masks] == [(8, 1, 1), (216,)]
    mask = graph.masks[1].draw(derive_seed(1, "mask", 2, 1), 4000)
    kept = (mask != 0).float()
    assert abs(float(kept.mean()) - 0.7) < 0.003  # six standard deviations of 864,000 draws
    assert float(mask.max()) == pytest.approx(1 / 0.7)
    columns, rows = kept.mean(0), kept.mean(1)
    assert float((columns - 0.7).abs().max()) < 0.05
    assert float((rows - 0.7).abs().max()) < 0.2


def test_the_same_plan_gives_the_same_bits_whoever_is_first() -> None:
    model, batch = convolutional(dropout=0.2), a_batch(16)
    first = sharded(model, batch, 4)
    for _ in range(5):
        sharded(model, batch, 4).assert_same_bits(first)


@pytest.mark.parametrize(
    "plan",
    [
        ExecutionPlan("cpu", 1, "float32", shards=3),
        ExecutionPlan("cpu", 1, "float32", shards=3, convolutions=(UNFOLDED,)),
        ExecutionPlan("cpu", 2, "float32", shards=1, compiled=True, convolutions=(DIRECT, WINOGRAD)),
    ],
)
def test_a_training_of_captured_steps_learns_and_resumes_bit_for_bit(plan: ExecutionPlan, tmp_path: Path) -> None:
    """Weights, optimizer, statistics and figures; six steps are an epoch."""
    whole, cut = Checkpointer(tmp_path / "whole.safetensors"), Checkpointer(tmp_path / "cut.safetensors")
    unbroken, stopped, resumed = network(), network(), network(seed=1)
    state = train(unbroken, plan=plan, checkpointer=whole)
    assert state.history[-1]["validation_accuracy"] > 0.9
    answers = iter([None] * 9)  # asked behind each step; who counts by hooks has the optimizer take its own steps
    train(stopped, plan=plan, checkpointer=cut, interruption=lambda: next(answers, "stopped"))
    assert not equal(stopped, unbroken)
    found = train(resumed, plan=plan, checkpointer=cut, resume=load_checkpoint(cut.path, epochs=4))
    assert untimed(found) == untimed(state)
    assert equal(resumed, unbroken)
    ours, theirs = load_file(cut.path), load_file(whole.path)
    assert ours.keys() == theirs.keys()
    assert any("exp_avg" in name for name in ours)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_training_leaves_no_thread_behind() -> None:
    before = threading.active_count()
    train(plan=ExecutionPlan("cpu", 2, "float32", shards=4), epochs=1)
    assert threading.active_count() == before


def test_a_failing_shard_ends_the_step_and_not_in_a_deadlock(monkeypatch: pytest.MonkeyPatch) -> None:
    real = shards._take_through

    def fail(meeting: Any, segments: Any, values: Any, wanted: Any, number: int) -> Any:
        if number == 1:
            raise MemoryError("no more")
        return real(meeting, segments, values, wanted, number)

    monkeypatch.setattr(shards, "_take_through", fail)
    with pytest.raises(MemoryError, match="no more"):
        sharded(convolutional(), a_batch(), 3)


class Looks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Linear(3 * 32 * 32, 5)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.dense(x.flatten(1))
        return x if x.sum().item() > 0 else x * 2


class DrawsNoise(Looks):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.dense(x.flatten(1))
        return x + torch.randn_like(x)


class KeepsCount(Looks):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.dense(x.flatten(1))
        self.seen.add_(x.detach().mean())
        return x


class MixesSamples(Looks):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.dense(x.flatten(1))
        return x - x.mean(0, keepdim=True)


@pytest.mark.parametrize("kind", [Looks, DrawsNoise, KeepsCount])
def test_what_no_graph_can_hold_is_refused(kind: type[nn.Module]) -> None:
    with pytest.raises(CaptureError, match="cannot be divided among threads"):
        sharded(kind(), a_batch(), 2)


class Attends(nn.Module):
    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.mix, self.dense, self.dropout = nn.Linear(32, 96), nn.Linear(32 * 3, 5), dropout

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        query, key, value = self.mix(x).chunk(3, dim=-1)
        return self.dense(F.scaled_dot_product_attention(query, key, value, dropout_p=self.dropout).mean(2).flatten(1))


def test_attention_is_divided_unless_it_drops_something() -> None:
    model, batch = Attends(), a_batch()
    sharded(model, batch, 3).assert_like(whole(model, batch))
    with pytest.raises(CaptureError, match="random numbers"):
        sharded(Attends(dropout=0.5), batch, 3)


def test_a_model_with_hooks_is_refused() -> None:
    model = convolutional()
    model[0].register_forward_hook(lambda *_: None)
    with pytest.raises(CaptureError, match="hooks"):
        sharded(model, a_batch(), 2)


def test_capturing_leaves_model_and_generators_as_they_are() -> None:
    model = convolutional(dropout=0.2).train()
    before = copy.deepcopy(model.state_dict())
    torch.manual_seed(8)
    random.seed(8)
    expected = torch.rand(3), random.random()
    torch.manual_seed(8)
    random.seed(8)
    capture(model, a_batch(), [CLASSES], plan=ExecutionPlan("cpu", 1, "float32"), label_smoothing=0.0, n_shards=2)
    assert torch.equal(torch.rand(3), expected[0])
    assert random.random() == expected[1]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_plan_is_asked_for_measured_or_not_worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = next(iter(batches().epoch()))
    options: dict[str, Any] = {"device": "cpu", "precision": "float32"}
    assert choose_plan(TimedSteps(network(), batch, [HEAD]), **options, shards=3).shards == 3
    assert choose_plan(TimedSteps(network(), batch, [HEAD]), **options, shards=0, n_steps=10**9).shards == 0
    assert choose_plan(TimedSteps(network(), batch, [HEAD]), **options, n_steps=10).shards == 0
    monkeypatch.setattr(planning, "_WORTHWHILE", 0.0)  # chosen, however slow it is
    measured = choose_plan(TimedSteps(network(), batch, [HEAD]), **options, threads=2, n_steps=10**9)
    how = "in 2 shards" if measured.shards == 2 else "compiled" if measured.compiled else "captured"
    assert measured.reason.endswith(f"times faster {how}")
    assert ExecutionPlan.from_json(measured.to_json()) == measured


def test_a_model_that_mixes_samples_is_found_by_comparing() -> None:
    options: dict[str, Any] = {"device": "cpu", "precision": "float32"}
    with pytest.raises(TrainingError, match="depend on how a batch is divided"):
        choose_plan(TimedSteps(MixesSamples(), a_batch(), [CLASSES]), **options, shards=2)
    plan = choose_plan(TimedSteps(MixesSamples(), a_batch(), [CLASSES]), **options, n_steps=10**9)
    if torch.get_num_threads() > 1:
        assert plan.shards <= 1, "captured in one piece, at most"
        assert "depend on how a batch is divided" in plan.reason


@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize(("kernel", "stride", "padding"), [(3, 1, 0), (3, 2, 1), (2, 1, 0), ((1, 5), (2, 1), (0, 2))])
def test_a_weights_gradient_from_unfolded_pictures(channels: int, kernel: Any, stride: Any, padding: Any) -> None:
    torch.manual_seed(2)
    x = torch.randn(3, channels, 9, 11).to(memory_format=torch.channels_last).requires_grad_()
    own = nn.Conv2d(channels, 6, kernel, stride, padding)
    y = own(x)
    gradient = torch.randn_like(y)
    expected = torch.autograd.grad(y, [x, own.weight, own.bias], gradient)
    again = convolution_by(x, own.weight, own.bias, own.stride, own.padding, UNFOLDED)  # type: ignore[arg-type]
    assert torch.equal(again, y)
    for mine, their in zip(torch.autograd.grad(again, [x, own.weight, own.bias], gradient), expected, strict=True):
        torch.testing.assert_close(mine, their, rtol=1e-4, atol=1e-4)


def test_a_plan_names_how_convolutions_compute() -> None:
    model, batch = convolutional(second=16), a_batch()
    for methods, kernels in (
        ((UNFOLDED, UNFOLDED), ["aten.as_strided.default"] * 2),
        ((WINOGRAD, WINOGRAD), ["netloom.winograd_" + kind for kind in WINOGRAD_KERNELS]),  # the first has 3 channels
        (
            (ConvolutionMethods(), WINOGRAD._replace(output="torch")),
            ["netloom.winograd_" + k for k in WINOGRAD_KERNELS[1:]],
        ),
        (
            (ConvolutionMethods(), WINOGRAD._replace(input_gradient="torch")),
            ["netloom.winograd_" + k for k in WINOGRAD_KERNELS[::2]],
        ),
    ):
        plan = ExecutionPlan("cpu", 1, "float32", shards=2, convolutions=methods)
        assert ExecutionPlan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
        graph = capture(model.train(), batch, [CLASSES], plan=plan, label_smoothing=0.0, n_shards=1).graph
        found = [str(node.target) for node in graph.nodes]
        assert sorted(name for name in found if name in set(kernels)) == sorted(kernels)
        sharded(model, batch, 2, convolutions=methods).assert_like(whole(model, batch))


def test_a_plan_whose_machine_code_cannot_be_made_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would give other bits than where it was made."""
    monkeypatch.setattr(step_rewrites, "usable", lambda: False)
    with pytest.raises(CaptureError, match="llvmlite cannot make here"):
        sharded(convolutional(second=16), a_batch(), 2, convolutions=(UNFOLDED, WINOGRAD))


@pytest.mark.parametrize("wrong", [["fast", "torch", "torch"], ["torch", "unfolded", "torch"], ["torch"] * 4, 7])
def test_a_plan_with_unknown_kernels_is_refused(wrong: Any) -> None:
    value = {**ExecutionPlan("cpu", 1, "float32").to_json(), "convolutions": [wrong]}
    with pytest.raises(
        (NetloomError, ValueError), match=r"computed by torch or winograd or direct, not|three methods each"
    ):
        ExecutionPlan.from_json(value)


def test_kernels_are_chosen_by_their_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first convolution has three channels; and without machine code all are torch's or unfolded."""

    times: dict[str, float] = {}

    def seconds(runs: list[Any], device: str, **_: Any) -> list[float]:
        return [times[run.args[0]] for run in runs]

    monkeypatch.setattr(divided, "fastest_seconds", seconds)
    unfolds, by_sums = UNFOLDED, DIRECT
    by_sums_unfolding = by_sums._replace(weight_gradient="unfolded")
    for by_method, usable, compiled, expected in (
        ({"torch": 3.0, "winograd": 1.0, "direct": 1.5, "unfolded": 2.0}, True, False, (by_sums, WINOGRAD)),
        ({"torch": 3.0, "winograd": 1.0, "direct": 1.5, "unfolded": 2.0}, False, False, (unfolds, unfolds)),
        (
            {"torch": 3.0, "winograd": 2.0, "direct": 2.5, "unfolded": 1.0},
            True,
            False,
            (by_sums_unfolding, WINOGRAD._replace(weight_gradient="unfolded")),
        ),
        ({"torch": 3.0, "winograd": 2.9, "direct": 2.9, "unfolded": 2.9}, True, False, ()),
        ({"torch": 3.0, "winograd": 4.0, "direct": 5.0, "unfolded": 2.0}, True, True, (by_sums, WINOGRAD)),
        ({"torch": 1.0, "winograd": 4.0, "direct": 2.0, "unfolded": 0.1}, True, True, (by_sums, by_sums)),
        ({"torch": 1.0, "winograd": 4.0, "direct": 4.0, "unfolded": 0.1}, True, True, ()),
    ):
        times.update(by_method)
        divided._fastest_methods.cache_clear()
        monkeypatch.setattr(divided, "usable", lambda usable=usable: usable)
        plan = ExecutionPlan("cpu", 1, "float32", shards=1 if compiled else 2, compiled=compiled)
        with divided.DividedStep(convolutional(second=16), a_batch(), [CLASSES], plan, 0.0) as step:
            assert step.faster_convolutions() == expected
    divided._fastest_methods.cache_clear()


def test_a_probability_too_small_for_the_random_bits_drops_nothing() -> None:
    """Sixteen of them cannot tell it from 0."""
    mask = Mask((3, 4, 4), 1 - 1e-6, 1.0, torch.float32)
    assert bool((mask.draw(1, 64) == 1).all())
    assert mask.draw(1, 64).is_contiguous(memory_format=torch.channels_last)
    model = convolutional(dropout=1e-6)
    sharded(model, a_batch(), 2).assert_like(whole(model, a_batch()))


def test_nothing_is_kept_that_no_later_segment_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    left: list[set[str]] = []
    original = shards._take_through

    def watched(meeting: Any, segments: Any, values: dict[str, Any], wanted: list[str], number: int) -> Any:
        given = set(values)
        results = original(meeting, segments, values, wanted, number)
        left.append(set(values) - given - set(wanted))
        return results

    monkeypatch.setattr(shards, "_take_through", watched)
    sharded(convolutional(), a_batch(), 2)
    assert left == [set(), set()]


def test_convolutions_are_unfolded_only_where_there_is_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reference: the size of `F.unfold`'s result."""
    shape = ConvolutionShape((5, 6, 9, 7), (4, 6, 3, 2), (2, 1), (1, 0), torch.float32)
    unfolded = F.unfold(torch.zeros(shape.pictures), (3, 2), padding=shape.padding, stride=shape.stride)
    assert shape.unfolded_bytes == 4 * unfolded.numel()
    monkeypatch.setattr(divided, "_fastest_methods", lambda shape, n, may, _: UNFOLDED if may else ConvolutionMethods())
    for free, taken in ((10**12, True), (10**3, False)):
        monkeypatch.setattr(divided, "free_memory_bytes", lambda free=free: free)
        plan = ExecutionPlan("cpu", 1, "float32", shards=2)
        with divided.DividedStep(convolutional(), a_batch(), [CLASSES], plan, 0.0) as step:
            assert bool(step.faster_convolutions()) == taken
