"""What a captured step does not hold is found before it trains anything, and what it normalizes is right."""

from __future__ import annotations

import copy
import random
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.modules.module import register_module_full_backward_hook

from netloom.data.batches import Batch
from netloom.errors import TrainingError
from netloom.models.contract import ImageModel
from netloom.models.heads import Head
from netloom.models.registry import create_model
from netloom.recipe import load_recipe
from netloom.runtime import ExecutionPlan
from netloom.training import planning
from netloom.training.divided import DividedStep
from netloom.training.planning import choose_plan
from netloom.training.shards import ShardedGradients
from netloom.training.step_rewrites import CaptureError
from netloom.training.timed_steps import TimedSteps
from netloom.workflows import builders
from training.test_shards import sharded, whole

CLASSES = Head(class_names=tuple("abcde"))
OPTIONS: dict[str, Any] = {"device": "cpu", "precision": "float32", "threads": 2}


def a_batch(n: int = 12) -> Batch:
    generator = torch.Generator().manual_seed(5)
    images = torch.randn(n, 1, 2, 3, generator=generator).to(memory_format=torch.channels_last)
    return Batch({"image": images}, {"label": torch.randint(0, 5, (n,), generator=generator)})


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.body, self.classifier = nn.Linear(6, 6), nn.Linear(6, 5)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.body(x.flatten(1)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.features(x))


class WithoutGradients(Plain):
    def features(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return super().features(x)


class Counting(Plain):
    calls = 0

    def features(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return super().features(x) * self.calls


class CountingInside(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.counts = {"calls": 0}

    def features(self, x: torch.Tensor) -> torch.Tensor:
        self.counts["calls"] += 1
        return super().features(x) * self.counts["calls"]


class Cooling(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("temperature", torch.ones(()))

    def features(self, x: torch.Tensor) -> torch.Tensor:
        self.temperature = self.temperature * 0.5
        return super().features(x) / self.temperature


class Hooked(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.body.weight.register_hook(lambda gradient: gradient * 0)


class HookedLate(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.body.weight.register_post_accumulate_grad_hook(lambda weight: weight.grad.zero_())


class Lazy(Plain):
    scale: torch.Tensor | None

    def __init__(self) -> None:
        super().__init__()
        self.scale = None

    def features(self, x: torch.Tensor) -> torch.Tensor:
        if self.scale is None:
            self.scale = torch.linspace(0.5, 1.5, 6)
        return super().features(x) * self.scale


class Drawing(Plain):
    def features(self, x: torch.Tensor) -> torch.Tensor:
        return super().features(x) * (2 if random.random() < 2 else 1)


class DrawingByNumPy(Plain):
    def features(self, x: torch.Tensor) -> torch.Tensor:
        return super().features(x) * (2 if np.random.rand() < 2 else 1)  # noqa: NPY002 - as users' models do


class _Reversal(torch.autograd.Function):
    @staticmethod
    def forward(x: torch.Tensor) -> torch.Tensor:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None: ...

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        return -gradients[0]


class Reversing(Plain):
    def features(self, x: torch.Tensor) -> torch.Tensor:
        return _Reversal.apply(super().features(x))


ONLY_COMPARED = [WithoutGradients, Drawing, DrawingByNumPy, Reversing]
KINDS = [*ONLY_COMPARED, Counting, CountingInside, Cooling, Hooked, HookedLate, Lazy]


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_graph_does_not_hold_is_trained_by_whole_batches(
    kind: type[nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = kind()
    as_it_was = {name: copy.deepcopy(value) for name, value in vars(model).items() if name[0] != "_"}
    buffers = copy.deepcopy(dict(model.named_buffers()))
    measured = builders.as_in_training(load_recipe("photos"), model)  # as trainings have it measured
    with pytest.raises(TrainingError, match="cannot be divided among threads"):
        choose_plan(TimedSteps(measured, a_batch(), [CLASSES]), **OPTIONS, shards=2)
    monkeypatch.setattr(planning, "_WORTHWHILE", 0.0)  # shards would be chosen, however slow they are
    plan = choose_plan(TimedSteps(measured, a_batch(), [CLASSES]), **OPTIONS, n_steps=10**12)
    assert plan.shards == 0
    assert "cannot be divided among threads" in plan.reason
    assert choose_plan(TimedSteps(Plain(), a_batch(), [CLASSES]), **OPTIONS, n_steps=10**12).shards > 0
    if kind not in ONLY_COMPARED:
        one = ExecutionPlan("cpu", 1, "float32", shards=1)
        with pytest.raises(CaptureError):
            ShardedGradients(model, [CLASSES], plan=one, seed=0, label_smoothing=0.0)(a_batch(), 0)
    assert {name: value for name, value in vars(model).items() if name[0] != "_"} == as_it_was
    assert dict(model.named_buffers()) == buffers


def test_hooks_on_all_modules_are_hooks() -> None:
    handle = register_module_full_backward_hook(lambda *_: None)
    try:
        with pytest.raises(CaptureError, match="hooks"):
            choose_plan(TimedSteps(Plain(), a_batch(), [CLASSES]), **OPTIONS, shards=2)
    finally:
        handle.remove()


@pytest.mark.parametrize("dropout", [lambda: nn.Dropout(0.5), lambda: nn.Dropout1d(0.5), nn.Identity])
def test_dropout_and_statistics_pass_the_comparison(dropout: Callable[[], nn.Module]) -> None:
    torch.manual_seed(2)
    layers = [nn.Conv1d(1, 4, 2), nn.BatchNorm1d(4), nn.ReLU(), dropout(), nn.Flatten(), nn.Linear(20, 5)]
    model = nn.Sequential(nn.Flatten(2), nn.Flatten(1), nn.Unflatten(1, (1, 6)), *layers)
    assert choose_plan(TimedSteps(model, a_batch(), [CLASSES]), **OPTIONS, shards=2).shards == 2
    assert (
        choose_plan(TimedSteps(model, a_batch(), [CLASSES]), **{**OPTIONS, "precision": "bfloat16"}, shards=2).shards
        == 2
    )


@pytest.mark.parametrize("length", [4, 5])
@pytest.mark.parametrize("n_shards", [1, 3])
def test_sequences_are_normalized_by_channel(length: int, n_shards: int) -> None:
    """Also where there are as many channels as places."""
    torch.manual_seed(2)
    layers = [nn.Conv1d(1, 4, 7 - length), nn.BatchNorm1d(4), nn.Flatten(), nn.Linear(4 * length, 5)]
    model = nn.Sequential(nn.Flatten(2), nn.Flatten(1), nn.Unflatten(1, (1, 6)), *layers)
    sharded(model, a_batch(), n_shards).assert_like(whole(model, a_batch()))


def test_volumes_are_normalized_by_channel() -> None:
    torch.manual_seed(2)
    model = nn.Sequential(
        nn.Unflatten(1, (1, 1)), nn.Conv3d(1, 2, 1), nn.BatchNorm3d(2), nn.Flatten(), nn.Linear(12, 5)
    )
    sharded(model, a_batch(), 2).assert_like(whole(model, a_batch()))


class Standardized(nn.Conv2d):
    """As timm's `StdConv2d` computes its kernels."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = self.weight.reshape(1, self.out_channels, -1)
        weight = F.batch_norm(rows, None, None, training=True, momentum=0.0, eps=1e-6).reshape_as(self.weight)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding)


@pytest.mark.parametrize("n_shards", [1, 3])
def test_standardized_kernels_are_those_of_each_shard(n_shards: int) -> None:
    torch.manual_seed(2)
    model = nn.Sequential(Standardized(1, 6, 2), nn.ReLU(), nn.Flatten(), nn.Linear(12, 5))
    sharded(model, a_batch(), n_shards).assert_like(whole(model, a_batch()))
    assert choose_plan(TimedSteps(model, a_batch(), [CLASSES]), **OPTIONS, shards=2).shards == 2


class ForeignStatistics(Plain):
    def features(self, x: torch.Tensor) -> torch.Tensor:
        y = super().features(x)
        return F.batch_norm(y, y.mean(0).detach(), torch.ones(6), training=True)


def test_running_statistics_that_are_no_buffers_are_told() -> None:
    with pytest.raises(CaptureError):
        sharded(ForeignStatistics(), a_batch(), 2)


def test_an_error_of_any_kind_behind_the_trace_is_told_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> Any:
        raise KeyError("float8")

    monkeypatch.setattr("netloom.training.shards.compile_segments", fail)
    with pytest.raises(CaptureError, match="float8"):
        sharded(Plain(), a_batch(), 2)
    monkeypatch.setattr("netloom.training.capture._trace_gradients", fail)
    with pytest.raises(CaptureError, match="float8"):
        sharded(Plain(), a_batch(), 2)


class Reordered(Plain):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x[:, :, [1, 0]])


class Scaled(Plain):
    def features(self, x: torch.Tensor) -> torch.Tensor:
        return super().features(x) * torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])


class ScaledAlike(Plain):
    def features(self, x: torch.Tensor) -> torch.Tensor:
        return super().features(x) * torch.tensor(2.0)


class ByText(Plain):
    def features(self, x: torch.Tensor) -> torch.Tensor:
        return F.gelu(super().features(x), approximate="tanh")


@pytest.mark.parametrize("kind", [Reordered, Scaled, ScaledAlike, ByText])
@pytest.mark.parametrize("n_shards", [1, 3])
def test_constants_and_texts_of_the_models_code_are_held(kind: type[nn.Module], n_shards: int) -> None:
    sharded(kind(), a_batch(), n_shards).assert_like(whole(kind(), a_batch()))
    assert choose_plan(TimedSteps(kind(), a_batch(), [CLASSES]), **OPTIONS, shards=2).shards == 2


def test_an_error_of_any_kind_in_a_divided_step_leaves_whole_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> Any:
        raise KeyError("v__tensor_constant0")

    monkeypatch.setattr("netloom.training.shards._take_through", fail)
    monkeypatch.setattr(planning, "_WORTHWHILE", 0.0)
    plan = choose_plan(TimedSteps(Plain(), a_batch(), [CLASSES]), **OPTIONS, n_steps=10**12)
    assert plan.shards == 0
    assert "v__tensor_constant0" in plan.reason
    with pytest.raises(CaptureError, match="v__tensor_constant0"):
        choose_plan(TimedSteps(Plain(), a_batch(), [CLASSES]), **OPTIONS, shards=2)


def test_a_users_own_image_model_is_compared_though_the_registrys_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its trunk goes another way to its gradients, which no graph tells."""
    trunk = nn.Sequential(OrderedDict(flat=nn.Flatten(), body=WithoutGradients()))
    own = ImageModel(trunk=trunk, head=nn.Sequential(), num_features=5, classifier_features=5, num_outputs=5)
    monkeypatch.setattr(planning, "_WORTHWHILE", 0.0)
    plan = choose_plan(TimedSteps(own, a_batch(), [CLASSES]), **OPTIONS, n_steps=10**12)
    assert plan.shards == 0
    assert "cannot be divided among threads" in plan.reason
    checked: list[str] = []
    monkeypatch.setattr(DividedStep, "check", lambda self: checked.append("yes"))
    registered = create_model("mlp", in_channels=1, num_outputs=5, image_size=(2, 3), seed=0)
    assert choose_plan(TimedSteps(registered, a_batch(), [CLASSES]), **OPTIONS, n_steps=10**12).shards > 0
    assert not checked
