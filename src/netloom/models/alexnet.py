"""AlexNet, and its form for small pictures."""

from __future__ import annotations

from typing import NamedTuple

from torch import nn

from netloom.models.blocks import named_sequence, with_dense_head
from netloom.models.contract import ImageModel
from netloom.models.layers import (
    Activation,
    DenseUnits,
    Normalization,
    Padding,
    Pooling,
    Rate,
    conv_layer,
    pooling_layer,
)
from netloom.models.registry import register_model

_PAPER = "Krizhevsky, Sutskever and Hinton, ImageNet classification with deep convolutional neural networks, 2012"


class _Stage(NamedTuple):
    filters: int
    kernel_size: int
    towers: int = 1
    stride: int = 1
    response_norm: bool = False
    pooled: bool = False


_FIRST = _Stage(96, 11, stride=4, response_norm=True, pooled=True)
_FIRST_SMALL = _Stage(96, 5, response_norm=True, pooled=True)
# Layers 2 to 5 of the paper's section 3.5; the third is the only one that sees both towers.
_OTHERS = (
    _Stage(256, 5, towers=2, response_norm=True, pooled=True),
    _Stage(384, 3),
    _Stage(384, 3, towers=2),
    _Stage(256, 3, towers=2, pooled=True),
)


@register_model(
    "alexnet",
    description="The 2012 original: two towers, response normalization, 227x227 pictures",
    paper=_PAPER,
    fixed={"small": False},
)
@register_model(
    "alexnet-small",
    description="AlexNet for small pictures such as 32x32",
    paper=_PAPER,
    fixed={"small": True},
    defaults={"dense_units": (1024, 1024)},
)
def alexnet(
    *,
    small: bool,
    in_channels: int,
    num_outputs: int,
    image_size: tuple[int, int],
    activation: Activation = "relu",
    pooling: Pooling = "max",
    normalization: Normalization = "none",
    dropout: Rate = 0.0,
    dense_units: DenseUnits = (4096, 4096),
    dense_dropout: Rate = 0.5,
) -> ImageModel:
    """AlexNet as published (Krizhevsky et al. 2012), or with a first layer for small pictures.

    The original has 60,965,224 parameters at 227x227 for 1000 classes. The paper's two GPUs are two
    groups of channels. The paper says 224x224, but its feature maps of 55x55 need 227. Weights
    start as `initialize` draws them, not with the paper's one deviation of 0.01 for all layers.

    Args:
        small: Whether the first convolution is 5x5 at stride 1 in place of 11x11 at stride 4.
        in_channels: Channels of the pictures.
        num_outputs: Numbers per picture that the network gives.
        image_size: Height and width of the pictures in pixels.
        activation: Behind each layer but the last.
        pooling: Kind of the three overlapping 3x3 poolings.
        normalization: Batch normalization before or after each activation, in place of the paper's
            local response normalization behind the first two.
        dropout: Rate behind the flattening; not in the paper.
        dense_units: Width of each hidden dense layer.
        dense_dropout: Rate behind each hidden dense layer.

    Raises:
        ModelError: The pictures are too small.
    """
    trunk = nn.Sequential()
    for position, stage in enumerate((_FIRST_SMALL if small else _FIRST, *_OTHERS), start=1):
        padding: Padding = "valid" if stage.stride > 1 else "same"
        layers = conv_layer(
            in_channels,
            stage.filters,
            1,
            kernel_size=stage.kernel_size,
            padding=padding,
            activation=activation,
            normalization=normalization,
            stride=stage.stride,
            groups=stage.towers,
        )
        if stage.response_norm and normalization == "none":
            layers["response_norm"] = local_response_norm()
        if stage.pooled:
            layers |= pooling_layer(pooling, size=3)
        trunk.add_module(f"block{position}", named_sequence(layers))
        in_channels = stage.filters
    return with_dense_head(
        trunk,
        name="alexnet-small" if small else "alexnet",
        image_size=image_size,
        num_features=in_channels,
        num_outputs=num_outputs,
        activation=activation,
        dense_units=dense_units,
        normalization=normalization,
        dropout=dropout,
        dense_dropout=dense_dropout,
        remedy=", or the model lenet5 or convnet" if small else ", or the model alexnet-small",
    )


def local_response_norm() -> nn.LocalResponseNorm:
    """Section 3.3 of the paper: n = 5 channels, k = 2, alpha = 1e-4, beta = 0.75.

    PyTorch divides alpha by n, which the paper's formula does not.
    """
    return nn.LocalResponseNorm(5, alpha=5 * 1e-4, beta=0.75, k=2.0)
