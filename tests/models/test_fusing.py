"""Fused networks against the folded ones that they come from."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from netloom.models import create_model, fusing
from netloom.models.folding import fold
from netloom.models.fusing import fuse_convolutions, max_pool_2x2, replace_convolutions, replace_pooling
from netloom.torchvision_shim import torchvision

IS_X86 = torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability().startswith("AVX")
on_x86 = pytest.mark.skipif(not IS_X86, reason="oneDNN's kernels are for x86 processors")


def pictures(n: int = 4, side: int = 12) -> Tensor:
    return torch.randn(n, 3, side, side, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def fused(model: nn.Module, x: Tensor) -> fx.GraphModule:
    """The fused network, compared on more pictures than it was made with."""
    expected = model.eval().double()(x.double())
    model.float()
    found = fold(model, {"x": x[:2]})
    assert found is not None
    assert fuse_convolutions(found)
    for memory_format in (torch.channels_last, torch.contiguous_format):
        outputs = found(x.contiguous(memory_format=memory_format))
        # Float32 sums of some hundred products: 24 bits each, and errors grow with the root of their number.
        assert (outputs - expected).norm() <= 1e-5 * expected.norm()
    return found


def left(model: fx.GraphModule) -> list[str]:
    """What is computed beside fused convolutions."""
    functions = [n.target for n in model.graph.nodes if n.op == "call_function"]
    modules = [type(model.get_submodule(str(n.target))).__name__ for n in model.graph.nodes if n.op == "call_module"]
    return modules + [f.__name__ for f in functions if not isinstance(f, torch._ops.OpOverload)]


class Activated(nn.Module):
    def __init__(self, activation: Any, **options: Any) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 6, 3, **options), nn.BatchNorm2d(6)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.norm(self.conv(x)))


@on_x86
@pytest.mark.parametrize(
    "activation",
    [
        nn.ReLU(), nn.ReLU6(), nn.Hardtanh(-0.5, 0.7), nn.Hardswish(), nn.SiLU(inplace=True), nn.LeakyReLU(0.1),
        nn.GELU(), nn.GELU(approximate="tanh"), nn.Sigmoid(), nn.Tanh(), F.relu, F.silu, torch.tanh, torch.sigmoid,
    ],
)  # fmt: skip
def test_activations(activation: Any) -> None:
    assert left(fused(Activated(activation), pictures())) == []


@on_x86
@pytest.mark.parametrize(
    "options",
    [
        {"stride": 2, "padding": 1},
        {"groups": 3},
        {"dilation": 2, "padding": (2, 1)},
        {"padding": 1, "padding_mode": "reflect"},
    ],
)
def test_every_kind_of_convolution(options: dict[str, Any]) -> None:
    assert set(left(fused(Activated(nn.ReLU(), **options), pictures()))) <= {"pad"}


@on_x86
@pytest.mark.parametrize(("activation", "expected"), [(nn.Mish(), ["Mish"]), (nn.ELU(), ["ELU"])])
def test_what_onednn_does_not_have_stays(activation: nn.Module, expected: list[str]) -> None:
    assert left(fused(Activated(activation), pictures())) == expected


class Wide(nn.Module):
    """Convolutions that suit Winograd's transformation, from the second on, but for the last."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.first, self.second = nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1, bias=False)
        self.third, self.last = nn.Conv2d(16, 24, 3), nn.Conv2d(24, 12, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        y = self.second(torch.relu(self.first(x)))
        return self.last(F.gelu(self.third(torch.relu(x + y))))


@torch.no_grad()
def test_convolutions_by_winograds_transformation(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the ReLU behind them; other activations and shortcuts stay what they are."""
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    monkeypatch.setattr(fusing, "_LEAST_ARITHMETIC", 1.0)
    torch.manual_seed(2)
    model, x = Wide().eval(), pictures()
    expected = copy.deepcopy(model).double()(x.double())
    found = fold(model, {"x": x[:2]})
    assert found is not None
    assert replace_convolutions(found, 1)
    operation = torch.ops.netloom.winograd_convolution.default
    assert [node.args[4] for node in found.graph.nodes if node.target is operation] == [True, False, False]
    assert left(found).count("relu") == 2, "behind the first convolution and the sum"
    for memory_format in (torch.channels_last, torch.contiguous_format):
        outputs = found(x.contiguous(memory_format=memory_format))
        assert (outputs - expected).norm() <= 1e-5 * expected.norm()
    if IS_X86:
        fuse_convolutions(found)
        assert (found(x) - expected).norm() <= 1e-5 * expected.norm()


@pytest.mark.parametrize(
    ("capability", "n_pictures", "usable"),
    [("DEFAULT", 10**9, True), ("NEON", 10**9, True), ("AVX2", 10, True), ("AVX2", 10**9, False)],
)
def test_where_convolutions_stay_as_they_are(
    monkeypatch: pytest.MonkeyPatch, capability: str, n_pictures: int, usable: bool
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(fusing, "usable", lambda: usable)
    found = fold(Wide().eval(), {"x": pictures()[:2]})
    assert found is not None
    before = str(found.graph)
    assert not replace_convolutions(found, n_pictures)
    assert str(found.graph) == before


class Residual(nn.Module):
    def __init__(self, how: str, activation: nn.Module | None = None) -> None:
        super().__init__()
        self.how, self.activation = how, activation or nn.ReLU()
        self.first, self.second = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.short = nn.Conv2d(3, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "shortcut last":
            y = self.second(torch.relu(self.first(x)))
            return self.activation(y + self.short(x))
        short = self.short(x)
        y = self.second(torch.relu(self.first(x)))
        if self.how == "shortcut changed":
            short.mul_(2)
            return self.activation(y + short)
        if self.how == "shortcut overwritten":
            before = short.sum()
            short += y
            return short * before
        if self.how == "shortcut read later":
            return self.activation(y + short) * short
        if self.how == "broadcast":
            return self.activation(y + short.mean(1, keepdim=True))
        return self.activation(short + y)


@on_x86
@pytest.mark.parametrize(
    ("how", "activation", "expected"),
    [
        ("plain", nn.ReLU(), []),
        ("plain", nn.GELU(), ["GELU"]),
        ("shortcut last", nn.ReLU(), []),
        ("shortcut read later", nn.ReLU(), ["mul"]),
        ("shortcut changed", nn.ReLU(), ["ReLU", "iadd"]),
        ("shortcut overwritten", nn.ReLU(), ["mul"]),
        ("broadcast", nn.ReLU(), ["ReLU", "iadd"]),
    ],
)
def test_shortcuts(how: str, activation: nn.Module, expected: list[str]) -> None:
    found = left(fused(Residual(how, activation), pictures()))
    assert [name for name in found if name != "mean"] == expected


@on_x86
@pytest.mark.parametrize("name", ["convnet", "resnet20", "speednet", "lenet5"])
def test_networks(name: str) -> None:
    model = create_model(name, in_channels=3, num_outputs=5, image_size=(32, 32), seed=0)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d) and module.running_var is not None:
                module.running_var.uniform_(0.5, 2)
    assert "conv2d" not in left(fused(model, pictures(side=32)))


@on_x86
@pytest.mark.parametrize("name", ["resnet18", "mobilenetv3_small_100", "seresnet18"])
def test_networks_of_timm(name: str) -> None:
    torchvision()
    import timm

    torch.manual_seed(0)
    assert "conv2d" not in left(fused(timm.create_model(name, num_classes=5), pictures(side=64)))


@on_x86
def test_the_model_keeps_its_weights() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval()
    before = model[0].weight.detach().clone()
    fused(model, pictures())
    assert torch.equal(model[0].weight, before)


def test_other_processors_keep_the_folded_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    folded = fold(Activated(nn.ReLU()).eval(), {"x": pictures(2)})
    assert folded is not None
    before = folded.code
    assert not fuse_convolutions(folded)
    assert folded.code == before


def test_float64_is_left_as_it_is() -> None:
    folded = fold(Activated(nn.ReLU()).eval().double(), {"x": pictures(2).double()})
    assert folded is not None
    assert not fuse_convolutions(folded)


@pytest.mark.parametrize("side", [2, 3, 8, 9])
def test_pooling_gives_the_same_bits(side: int) -> None:
    x = pictures(side=side)
    x[0, 0, 0, 0], x[1, 1, 1, 1] = float("nan"), float("inf")
    for memory_format in (torch.channels_last, torch.contiguous_format):
        found = max_pool_2x2(x.contiguous(memory_format=memory_format))
        assert torch.equal(found.nan_to_num(7.0), F.max_pool2d(x, 2).nan_to_num(7.0))


@pytest.mark.parametrize(
    ("pool", "replaced"),
    [
        (nn.MaxPool2d(2), True),
        (nn.MaxPool2d((2, 2), stride=(2, 2)), True),
        (nn.MaxPool2d(2, ceil_mode=True), False),
        (nn.MaxPool2d(2, stride=1), False),
        (nn.MaxPool2d(2, padding=1), False),
        (nn.MaxPool2d(2, dilation=2), False),
        (nn.MaxPool2d(3, stride=2), False),
    ],
)
def test_pooling_is_replaced_where_it_is_2x2(pool: nn.Module, replaced: bool) -> None:
    x = pictures(side=9)
    folded = fold(nn.Sequential(pool), {"x": x[:2]})
    assert folded is not None
    replace_pooling(folded)
    assert any(node.target is max_pool_2x2 for node in folded.graph.nodes) == replaced
    assert torch.equal(folded(x), pool(x))


class ByName(nn.Module):
    """Every argument is given by its name."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.pool = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.MaxPool2d(2)
        self.dropout, self.relu, self.last = nn.Dropout(0.5), nn.ReLU(), nn.BatchNorm2d(6)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.conv.weight
        x = F.conv2d(input=x, weight=weight, bias=self.conv.bias, stride=1)
        x = F.dropout(input=self.norm(input=x), p=0.5, training=False)
        x = self.dropout(input=self.pool(input=self.relu(input=x)))
        x = F.conv2d(x, weight=torch.flip(input=weight.mean(dim=1, keepdim=True), dims=(2,)), groups=6)
        last = self.last
        x = F.batch_norm(input=x, running_mean=last.running_mean, running_var=last.running_var, weight=last.weight)
        return F.relu(input=x, inplace=True).flatten(1)


@on_x86
def test_arguments_that_are_given_by_name() -> None:
    model = ByName()
    found = fused(model, pictures())
    replace_pooling(found)
    assert left(found).count("max_pool_2x2") == 1
    assert "batch_norm" not in left(found)
    assert not [name for name in left(found) if name in ("BatchNorm2d", "Dropout", "conv2d")]
    assert torch.allclose(found(pictures()), model(pictures()), atol=1e-5)


def test_a_convolution_without_a_kernel_of_onednn_stays_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_kernel(*args: Any) -> Tensor:
        raise NotImplementedError

    monkeypatch.setattr(torch.ops.mkldnn, "_reorder_convolution_weight", no_kernel, raising=False)
    model = Activated(nn.ReLU()).eval()
    folded = fold(model, {"x": pictures(2)})
    assert folded is not None
    assert not fuse_convolutions(folded)
    assert torch.allclose(folded(pictures()), model(pictures()), atol=1e-5)
