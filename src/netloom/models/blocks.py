"""What the plain networks are made of: blocks of convolutions, and a dense head on top of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from torch import nn

from netloom.models.contract import ImageModel
from netloom.models.geometry import require_size
from netloom.models.layers import (
    Activation,
    Normalization,
    Padding,
    Pooling,
    conv_layer,
    dense_layer,
    dropout_layer,
    initialize,
    pooling_layer,
)


class Block(NamedTuple):
    """Convolutions of equal width, and the pooling behind them."""

    filters: int
    convs: int = 1
    kernel_size: int = 3
    pooling: Pooling = "max"


def conv_trunk(
    in_channels: int,
    blocks: Sequence[Block],
    *,
    padding: Padding,
    activation: Activation,
    normalization: Normalization,
    block_dropout: float = 0.0,
    spatial_dropout: bool = False,
) -> nn.Sequential:
    """`block1`, `block2`, …: (convolution, activation) `convs` times, 2x2 pooling, dropout."""
    trunk = nn.Sequential()
    for position, block in enumerate(blocks, start=1):
        layers: dict[str, nn.Module] = {}
        for number in range(1, block.convs + 1):
            layers |= conv_layer(
                in_channels,
                block.filters,
                number,
                kernel_size=block.kernel_size,
                padding=padding,
                activation=activation,
                normalization=normalization,
            )
            in_channels = block.filters
        layers |= pooling_layer(block.pooling)
        layers |= dropout_layer(block_dropout, spatial=spatial_dropout)
        trunk.add_module(f"block{position}", named_sequence(layers))
    return trunk


def dense_layers(
    in_features: int,
    dense_units: Sequence[int],
    *,
    activation: Activation,
    normalization: Normalization,
    dense_dropout: float,
) -> list[dict[str, nn.Module]]:
    """For each entry of `dense_units` its dense layer, activation and dropout, by name."""
    stack: list[dict[str, nn.Module]] = []
    for number, units in enumerate(dense_units, start=1):
        layer = dense_layer(in_features, units, number, activation=activation, normalization=normalization)
        stack.append(layer | dropout_layer(dense_dropout, f"dropout{number}"))
        in_features = units
    return stack


def with_dense_head(
    trunk: nn.Sequential,
    *,
    name: str,
    image_size: tuple[int, int],
    num_features: int,
    num_outputs: int,
    activation: Activation,
    dense_units: Sequence[int] = (),
    normalization: Normalization = "none",
    normalize_features: bool = False,
    head_pooling: Literal["flatten", "average"] = "flatten",
    dropout: float = 0.0,
    dense_dropout: float = 0.0,
    remedy: str = "",
) -> ImageModel:
    """The network of a convolutional trunk: flattening or global average, dense layers, classifier.

    `normalize_features` adds batch normalization right behind the flattening, in front of its
    dropout (the other order shifts the variance that the normalization has learned: Li et al.,
    "Understanding the disharmony between dropout and batch normalization", 2019).

    Raises:
        ModelError: The pictures are smaller than the trunk of the model `name` needs.
    """
    height, width = require_size(name, trunk, image_size, remedy=remedy)
    flat = num_features if head_pooling == "average" else num_features * height * width
    layers: dict[str, nn.Module] = {"flatten": nn.Flatten()}
    if head_pooling == "average":
        layers = {"pool": nn.AdaptiveAvgPool2d(1)} | layers
    if normalize_features:
        layers["norm"] = nn.BatchNorm1d(flat)
    layers |= dropout_layer(dropout)
    for named in dense_layers(
        flat,
        dense_units,
        activation=activation,
        normalization=normalization,
        dense_dropout=dense_dropout,
    ):
        layers |= named
    model = ImageModel(
        trunk=trunk,
        head=named_sequence(layers),
        num_features=num_features,
        classifier_features=dense_units[-1] if dense_units else flat,
        num_outputs=num_outputs,
    )
    return initialize(model, activation)


def named_sequence(layers: dict[str, nn.Module]) -> nn.Sequential:
    """The layers one after the other, under their names."""
    sequence = nn.Sequential()
    for name, layer in layers.items():
        sequence.add_module(name, layer)
    return sequence
