"""Folded networks against the networks they come from, in float64 and in float32."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from netloom.models import create_model, model_names, model_options
from netloom.models.folding import fold
from netloom.torchvision_shim import torchvision

# Built by the same function as a smaller and a larger model.
BETWEEN_SIBLINGS = {"vgg13", "vgg16", "vgg19", "resnet32", "resnet56"}

# Normalizations that stay: behind nothing (DenseNet and pre-activation networks), beside a convolution and not behind
# it (RepVGG), or inside a module that decides by the shape of its input (TensorFlow's padding).
TIMM = {
    "mobilenetv1_100": 0,
    "mobilenetv3_small_100": 0,
    "resnet18": 0,
    "vgg11_bn": 0,
    "densenet121": 62,
    "efficientnet_b0": 0,
    "tf_efficientnet_b0": 5,
    "regnetx_002": 0,
    "resnetv2_50": 17,
    "repvgg_a0": 17,
    "ghostnet_100": 0,
    "seresnet18": 0,
    "nfnet_l0": 0,
    "convnext_atto": 0,
    "vit_tiny_patch16_224": 0,
    "swin_tiny_patch4_window7_224": 0,
    "mixer_s32_224": 0,
}
SLOW = ("vgg11_bn", "densenet121", "swin_tiny_patch4_window7_224", "nfnet_l0")
SIZED = ("vit_", "swin_", "mixer_")  # made for one size of pictures


def as_if_trained(model: nn.Module, seed: int = 0) -> nn.Module:
    """The model with any statistics, scales of both signs, and no weight that starts at zero."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(0, 0.3, generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1 or not parameter.any():
                parameter.uniform_(-0.4, 1.2, generator=generator)
            assert parameter.any(), name
    return model.eval()


def norms(model: nn.Module) -> int:
    modules = sum(isinstance(module, _BatchNorm) for module in model.modules())
    calls = (
        [node for node in model.graph.nodes if node.target is F.batch_norm] if isinstance(model, fx.GraphModule) else []
    )
    return modules + len(calls)


@torch.no_grad()
def check(model: nn.Module, x: Tensor) -> fx.GraphModule:
    """The folded model, compared with the model on other pictures than it was made with."""
    exact = copy.deepcopy(model).double()
    expected = exact(x.double())
    in_float64 = fold(exact, {"x": x[:2].double()})
    assert in_float64 is not None
    assert (in_float64(x.double()) - expected).norm() <= 1e-10 * expected.norm()
    folded = fold(model, {"x": x[:2]})
    assert folded is not None
    # Folding rounds each weight once more, which is no more than each multiplication does: the error may grow by
    # some factor, not by an order of magnitude.
    own_error = (model(x) - expected).norm() / expected.norm()
    assert (folded(x) - expected).norm() <= (4 * own_error + 1e-6) * expected.norm()
    return folded


def pictures(side: int, n: int = 3) -> Tensor:
    return torch.randn(n, 3, side, side, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow if n in BETWEEN_SIBLINGS else ()) for n in model_names()]
)
@pytest.mark.parametrize("normalization", ["none", "before", "after"])
def test_every_family(name: str, normalization: str) -> None:
    options: dict[str, Any] = {"dense_units": [16, 12]} if "dense_units" in model_options(name) else {}
    if "normalization" in model_options(name):
        options["normalization"] = normalization
    elif normalization != "none":
        pytest.skip("it has no choice of normalization")
    side = 67 if name == "alexnet" else 32
    model = create_model(name, in_channels=3, num_outputs=7, image_size=(side, side), seed=0, options=options)
    folded = check(as_if_trained(model), pictures(side))
    if normalization != "after":
        assert norms(folded) == 0


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow if n in SLOW else ()) for n in TIMM])
def test_networks_of_timm(name: str) -> None:
    torchvision()
    import timm

    size = {"img_size": 64} if name.startswith(SIZED) else {}
    torch.manual_seed(0)
    model = as_if_trained(timm.create_model(name, num_classes=5, **size))
    assert norms(check(model, pictures(64))) == TIMM[name]


class Small(nn.Module):
    """A convolution, `between` and a normalization with scales of both signs."""

    def __init__(self, between: nn.Module | None = None, **options: Any) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, **options)
        self.between = between or nn.Identity()
        self.norm = nn.BatchNorm2d(6)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.between(self.conv(x))).flatten(1)


@pytest.mark.parametrize(
    "options",
    [
        {"stride": 2, "padding": 1, "bias": False},
        {"padding": "same", "dilation": 2},
        {"padding": 1, "padding_mode": "reflect"},
        {"groups": 3},
    ],
)
def test_every_kind_of_convolution(options: dict[str, Any]) -> None:
    assert norms(check(as_if_trained(Small(**options)), pictures(9))) == 0


@pytest.mark.parametrize(
    ("between", "left"),
    [
        (nn.Dropout(0.5), 0),
        (nn.AvgPool2d(2), 0),
        (nn.AdaptiveAvgPool2d(2), 0),
        (nn.AvgPool2d(2, padding=1, count_include_pad=False), 0),
        (nn.AvgPool2d(2, padding=1), 1),  # whose zeros are not normalized
        (nn.MaxPool2d(2), 1),  # whose largest number would be another one
        (nn.ReLU(), 1),
    ],
)
def test_what_may_be_between_layer_and_normalization(between: nn.Module, left: int) -> None:
    assert norms(check(as_if_trained(Small(between)), pictures(9))) == left


def test_the_largest_of_growing_numbers_may_be_between() -> None:
    model = as_if_trained(Small(nn.MaxPool2d(2)))
    with torch.no_grad():
        model.norm.weight.abs_()  # type: ignore[union-attr,operator]
    assert norms(check(model, pictures(9))) == 0


class ReadTwice(Small):
    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return (self.norm(y) * torch.sigmoid(y)).flatten(1)


class UsedTwice(nn.Module):
    """One convolution in front of two normalizations."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.first, self.second = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.conv(torch.relu(self.first(self.conv(x))))).flatten(1)


class OverPositions(nn.Module):
    """A normalization whose channels are not the dense layer's features, and as many."""

    def __init__(self) -> None:
        super().__init__()
        self.dense, self.norm = nn.Linear(9, 9), nn.BatchNorm1d(9)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.dense(x[:, 0])).flatten(1)


class WrittenTo(Small):
    """Changes what the convolution gave, by calls whose results it does not read."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        y.mul_(2)
        F.relu(y, inplace=True)
        return self.norm(y).flatten(1)


@pytest.mark.parametrize(
    ("model", "left"), [(WrittenTo(), 1), (ReadTwice(), 1), (UsedTwice(), 0), (OverPositions(), 1)]
)
def test_weights_that_others_need_too(model: nn.Module, left: int) -> None:
    assert norms(check(as_if_trained(model), pictures(9))) == left


def test_statistics_of_each_batch_stay() -> None:
    model = as_if_trained(Small())
    model.norm = nn.BatchNorm2d(6, track_running_stats=False)
    assert norms(check(model.eval(), pictures(9))) == 1


def test_parametrized_kernels_are_computed_once() -> None:
    model = as_if_trained(Small())
    nn.utils.parametrizations.weight_norm(model.conv)  # type: ignore[arg-type]
    folded = check(model.eval(), pictures(9))
    assert norms(folded) == 0
    assert not any("norm" in str(node.target) for node in folded.graph.nodes if node.op == "call_function")


def test_the_model_is_left_alone_and_shares_what_is_not_folded() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 49, 5)).train()
    before = copy.deepcopy(model.state_dict())
    folded = fold(model, {"x": pictures(9)})
    assert folded is not None
    assert all(module.training for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not model[2].inplace  # type: ignore[union-attr]
    large = model[4].weight  # type: ignore[union-attr]
    assert any(parameter is large for parameter in folded.parameters())


class Counting(Small):
    def __init__(self, where: str) -> None:
        super().__init__()
        self.where, self.number, self.seen = where, 0, []  # type: ignore[var-annotated]
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        if self.where == "attribute":
            self.number += 1
        elif self.where == "list":
            self.seen.append(x)
        elif self.where == "new":
            self.features = self.conv(x)
        elif self.where == "buffer":
            self.count += 1
        else:
            self.count.add_(1)  # type: ignore[operator]
        return super().forward(x)


@pytest.mark.parametrize("where", ["attribute", "list", "new", "buffer", "in place"])
def test_models_that_keep_something(where: str) -> None:
    model = Counting(where).eval()
    assert fold(model, {"x": pictures(9)}) is None
    assert (model.number, model.seen, model.count.item()) == (0, [], 0)
    assert not hasattr(model, "features")


class Deciding(Small):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if x.mean() > 0 else -x)


def hooked() -> nn.Module:
    model = Small()
    model.conv.register_forward_hook(lambda module, inputs, output: 2 * output)
    return model


class Doubling(Small):
    """Doubles a copy of its kernels in each call, which a constant would keep."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.conv.weight.clone()
        weight.mul_(2)
        return F.conv2d(x, weight)


@pytest.mark.parametrize("make", [Deciding, Doubling, hooked])
def test_what_no_graph_tells(make: Callable[[], nn.Module]) -> None:
    assert fold(make().eval(), {"x": pictures(9)}) is None
