"""The parametric network of convolution blocks that most first experiments are made of."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field

from netloom.models.blocks import Block, conv_trunk, with_dense_head
from netloom.models.contract import ImageModel
from netloom.models.layers import (
    Activation,
    Count,
    DenseUnits,
    Depth,
    Normalization,
    Padding,
    Pooling,
    Rate,
    per_block,
)
from netloom.models.registry import register_model


def suited_filters(image_size: tuple[int, int]) -> tuple[int, ...]:
    """Channels of blocks that halve pictures of this size down to about 4x4: two to five, 32 doubling to 256."""
    halvings = round(math.log2(max(1, min(image_size)) / 4))
    return (32, 64, 128, 256, 256)[: min(5, max(2, halvings))]


@register_model(
    "convnet",
    description="Blocks of convolutions and pooling, every part of them an option",
    paper="LeCun et al., Gradient-based learning applied to document recognition, 1998",
)
def convnet(
    *,
    in_channels: int,
    num_outputs: int,
    image_size: tuple[int, int],
    filters: Annotated[tuple[Count, ...], Field(min_length=1, max_length=32)] | None = None,
    convs_per_block: Depth | tuple[Depth, ...] = 1,
    kernel_size: Count | tuple[Count, ...] = 3,
    padding: Padding = "same",
    pooling: Pooling | tuple[Pooling, ...] = "max",
    activation: Activation = "relu",
    normalization: Normalization = "none",
    dense_normalization: Normalization | None = None,
    block_dropout: Rate = 0.0,
    spatial_dropout: bool = False,
    head_pooling: Literal["flatten", "average"] = "flatten",
    dropout: Rate = 0.0,
    dense_units: DenseUnits = (),
    dense_dropout: Rate = 0.0,
) -> ImageModel:
    """Blocks of convolutions in the line of LeCun et al. 1998, and a dense head.

    A block is (convolution, [norm], activation, [norm]) `convs_per_block` times, 2x2 pooling,
    dropout. The head is flattening or global average pooling, dropout, and for each entry of
    `dense_units` a dense layer, [norm], activation, [norm], dropout.

    Args:
        in_channels: Channels of the pictures.
        num_outputs: Numbers per picture that the network gives.
        image_size: Height and width of the pictures in pixels.
        filters: Channels of each block; None for as many blocks as the pictures can use (see `suited_filters`).
        convs_per_block: One number, or one for each block.
        kernel_size: Side in pixels; one number, or one for each block.
        padding: `same` keeps height and width; `valid` pads nothing.
        pooling: One word, or one for each block.
        activation: Behind each convolution and each dense layer but the last.
        normalization: Batch normalization before or after each activation.
        dense_normalization: The same for the dense layers, where it differs.
        block_dropout: Rate behind each block's pooling.
        spatial_dropout: Whether `block_dropout` drops whole channels.
        head_pooling: Whether the head sees all positions or their average.
        dropout: Rate behind the flattening.
        dense_units: Width of each hidden dense layer.
        dense_dropout: Rate behind each hidden dense layer.

    Raises:
        ModelError: A list has not one value for each block, or the pictures are too small.
    """
    filters = filters or suited_filters(image_size)
    count = len(filters)
    blocks = map(
        Block,
        filters,
        per_block("convs_per_block", convs_per_block, count),
        per_block("kernel_size", kernel_size, count),
        per_block("pooling", pooling, count),
    )
    trunk = conv_trunk(
        in_channels,
        list(blocks),
        padding=padding,
        activation=activation,
        normalization=normalization,
        block_dropout=block_dropout,
        spatial_dropout=spatial_dropout,
    )
    return with_dense_head(
        trunk,
        name="convnet",
        image_size=image_size,
        num_features=filters[-1],
        num_outputs=num_outputs,
        activation=activation,
        dense_units=dense_units,
        normalization=normalization if dense_normalization is None else dense_normalization,
        head_pooling=head_pooling,
        dropout=dropout,
        dense_dropout=dense_dropout,
        remedy=", fewer blocks (filters), pooling: none in some, or padding: same",
    )
