"""The vocabulary of the networks: activations, normalization, pooling, and how weights start.

Batch normalization uses PyTorch's constants (momentum 0.1, which Keras calls 0.9, and epsilon
1e-5), not Keras's (0.99 and 1e-3): its running statistics follow within some tens of steps, as
short trainings need.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Literal, TypeVar

from pydantic import Field
from torch import nn

from netloom.errors import ModelError
from netloom.models.contract import ImageModel

Activation = Literal[
    "relu",
    "relu6",
    "leaky_relu",
    "elu",
    "selu",
    "gelu",
    "silu",
    "mish",
    "hardswish",
    "softplus",
    "softsign",
    "tanh",
    "sigmoid",
]
Normalization = Literal["none", "before", "after"]
Padding = Literal["same", "valid"]
Pooling = Literal["max", "average", "none"]
# The upper bounds are above any published network, so that a mistyped number is told and not built for hours:
# 32 blocks of 32 convolutions are as many as the deepest one has (ResNet-1001, He et al. 2016).
Count = Annotated[int, Field(ge=1, le=1_000_000, strict=True)]
Depth = Annotated[int, Field(ge=1, le=32, strict=True)]
DenseUnits = Annotated[tuple[Count, ...], Field(max_length=32)]
Rate = Annotated[float, Field(ge=0.0, lt=1.0)]

Value = TypeVar("Value", bound="int | str")

# Slope of leaky ReLU below zero: PyTorch's and Maas et al.'s (2013) 0.01; Keras 3 has 0.2.
ACTIVATIONS: dict[Activation, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "selu": nn.SELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "mish": nn.Mish,
    "hardswish": nn.Hardswish,
    "softplus": nn.Softplus,
    "softsign": nn.Softsign,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
}
_POOLINGS: dict[Pooling, type[nn.MaxPool2d] | type[nn.AvgPool2d]] = {
    "max": nn.MaxPool2d,
    "average": nn.AvgPool2d,
}


def conv_layer(
    in_channels: int,
    out_channels: int,
    number: int,
    *,
    kernel_size: int,
    padding: Padding,
    activation: Activation,
    normalization: Normalization,
    stride: int = 1,
    groups: int = 1,
) -> dict[str, nn.Module]:
    """`{"conv1": …, "norm1": …, "act1": …}` for number 1, in the order in which they are applied.

    `same` keeps height and width at stride 1: TensorFlow's rule, by which an even kernel has its
    odd row of zeros at the end, here as a layer `pad1` of its own. `normalization` says whether
    batch normalization comes before or after the activation. The bias stays where it follows, as
    in Keras and torchvision's VGG, so that parameter counts agree with theirs.
    """
    border = (kernel_size - 1) // 2 if padding == "same" else 0
    layers: dict[str, nn.Module] = {}
    if padding == "same" and kernel_size % 2 == 0:
        layers[f"pad{number}"] = nn.ZeroPad2d((border, border + 1, border, border + 1))
        border = 0
    layers[f"conv{number}"] = nn.Conv2d(in_channels, out_channels, kernel_size, stride, border, groups=groups)
    norm = nn.BatchNorm2d(out_channels)
    return layers | _activated(norm, number, activation, normalization)


def dense_layer(
    in_features: int,
    units: int,
    number: int,
    *,
    activation: Activation,
    normalization: Normalization,
) -> dict[str, nn.Module]:
    """`{"dense1": …, "norm1": …, "act1": …}` for number 1, as `conv_layer`."""
    norm = nn.BatchNorm1d(units)
    layer = {f"dense{number}": nn.Linear(in_features, units)}
    return layer | _activated(norm, number, activation, normalization)


def _activated(
    norm: nn.Module, number: int, activation: Activation, normalization: Normalization
) -> dict[str, nn.Module]:
    act = {f"act{number}": ACTIVATIONS[activation]()}
    if normalization == "none":
        return act
    named = {f"norm{number}": norm}
    return named | act if normalization == "before" else act | named


def pooling_layer(kind: Pooling, *, size: int = 2, stride: int = 2) -> dict[str, nn.Module]:
    """`{"pool": …}`, or nothing for `none`; incomplete windows are left out, as in Keras."""
    return {} if kind == "none" else {"pool": _POOLINGS[kind](size, stride)}


def dropout_layer(rate: float, name: str = "dropout", *, spatial: bool = False) -> dict[str, nn.Module]:
    """`{name: …}`, or nothing for rate 0; `spatial` drops whole channels (Tompson et al. 2015)."""
    if rate == 0:
        return {}
    return {name: nn.Dropout2d(rate) if spatial else nn.Dropout(rate)}


def per_block(name: str, value: Value | Sequence[Value], blocks: int) -> list[Value]:
    """One value for each block: the single one repeated, or the list as it is.

    Raises:
        ModelError: The list has another length than there are blocks.
    """
    if isinstance(value, (int, str)):
        return [value] * blocks
    if len(value) != blocks:
        raise ModelError(
            f"{name}: expected one value, or one for each of the {blocks} blocks, "
            f"got {len(value)} values. Give it as many values as filters has."
        )
    return list(value)


def initialize(model: ImageModel, activation: Activation) -> ImageModel:
    """Draw every hidden weight as fits `activation`, in place, and set the biases to zero.

    Normal weights of variance 2/fan_in for ReLU and its smooth relatives (He et al., "Delving deep
    into rectifiers", 2015), 1/fan_in for SELU (Klambauer et al., "Self-normalizing neural
    networks", 2017), and Glorot uniform ones for the saturating activations. The classifier keeps
    its own (`output_layer`), batch normalization its scale of one and shift of zero.
    """
    for part in (model.trunk, model.head):
        initialize_layers(part, activation)
    return model


def initialize_layers(part: nn.Module, activation: Activation) -> None:
    """Draw the weights of the convolutions and dense layers in `part` as `initialize` does, in place."""
    for module in part.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            _initialize_layer(module, activation)


def _initialize_layer(layer: nn.Conv2d | nn.Linear, activation: Activation) -> None:
    if activation in ("tanh", "sigmoid", "softsign"):
        nn.init.xavier_uniform_(layer.weight)
    elif activation == "selu":
        nn.init.kaiming_normal_(layer.weight, nonlinearity="linear")
    else:
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def identity_start(layer: nn.Conv2d) -> None:
    """Let the first min(inputs, outputs) filters pass their channel on unchanged, in place; the others stay.

    Features then flow through many layers from the first step on, as through residual connections that cost nothing
    (Zagoruyko and Komodakis, "DiracNets", 2017; Jordan, "94% on CIFAR-10 in 3.29 seconds on a single GPU", 2024).
    """
    nn.init.dirac_(layer.weight.data[: layer.in_channels])
