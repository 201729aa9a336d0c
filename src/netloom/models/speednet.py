"""The network of the CIFAR-10 speed records, for pictures of any size."""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from netloom.models.blocks import named_sequence
from netloom.models.contract import ImageModel
from netloom.models.geometry import require_size
from netloom.models.layers import ACTIVATIONS, Activation, Count, Rate, dropout_layer, identity_start
from netloom.models.registry import register_model

_STEM_KERNEL = 2
_BATCH_NORM_MOMENTUM = 0.4  # Jordan's; statistics of the last few steps fit weights that move as fast as here


class ShiftNorm2d(nn.BatchNorm2d):
    """Batch normalization with a shift and no scale: the scale of a channel is left to the next kernel."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, momentum=_BATCH_NORM_MOMENTUM, affine=False)
        self.bias = nn.Parameter(torch.zeros(channels))

    def _check_input_dim(self, input: Tensor) -> None:  # noqa: A002
        """Leave it to the convolution in front, so that the network can be traced."""


class Scale(nn.Module):
    """Multiplies by a constant."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        """`factor * x`."""
        return x * self.factor


class SpeedBlock(nn.Module):
    """A convolution that widens, 2x2 pooling, and one or two convolutions more; two are a residual branch.

    `[B, in_channels, H, W]` to `[B, out_channels, H // 2, W // 2]`. Pooling in front of the first normalization
    leaves it and the activation a quarter of the work.
    """

    def __init__(self, in_channels: int, out_channels: int, *, convs: int, activation: Activation) -> None:
        super().__init__()
        self.conv1 = _conv3x3(in_channels, out_channels)
        self.pool = nn.MaxPool2d(2)
        self.norm1 = ShiftNorm2d(out_channels)
        self.act1 = ACTIVATIONS[activation]()
        self.conv2 = _conv3x3(out_channels, out_channels)
        self.norm2 = ShiftNorm2d(out_channels)
        self.act2 = ACTIVATIONS[activation]()
        self.residual = convs == 3
        if self.residual:
            self.conv3 = _conv3x3(out_channels, out_channels)
            self.norm3 = ShiftNorm2d(out_channels)
            self.act3 = ACTIVATIONS[activation]()

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        x = self.act1(self.norm1(self.pool(self.conv1(x))))
        y: Tensor = self.act2(self.norm2(self.conv2(x)))
        if self.residual:
            y = self.act3(self.norm3(self.conv3(y)) + x)
        return y


@register_model(
    "speednet",
    description="Wide and shallow, to be trained in few epochs on small colour pictures (recipe cifar10-fast)",
    paper="Jordan, 94% on CIFAR-10 in 3.29 seconds on a single GPU, 2024",
)
def speednet(
    *,
    in_channels: int,
    num_outputs: int,
    image_size: tuple[int, int],
    filters: Annotated[tuple[Count, ...], Field(min_length=1, max_length=8)] = (64, 256, 256),
    convs_per_block: Literal[2, 3] = 2,
    activation: Activation = "gelu",
    identity_start: bool = True,
    dropout: Rate = 0.0,
) -> ImageModel:
    """The networks of Jordan 2024: of 94% (two convolutions to a block) and of 96% (three, with a residual).

    A 2x2 convolution without padding, as wide as there are principal components of its patches and their negatives
    (recipe key `first_layer: whitening` or `frozen_whitening`), then blocks of 3x3 convolutions, each followed by
    batch normalization without scale, then the maximum over all positions: Jordan's 3x3 pooling at 32x32 pixels, and
    the same for pictures of any size. The features are divided by the square root of their number before the
    classifier, so that the first outputs are near zero.

    Args:
        in_channels: Channels of the pictures.
        num_outputs: Numbers per picture that the network gives.
        image_size: Height and width of the pictures in pixels.
        filters: Channels of each block.
        convs_per_block: 2, or 3 with a residual connection over the last two.
        activation: Behind each normalization and the first layer.
        identity_start: Kernels start by passing their channels on (see `layers.identity_start`).
        dropout: Rate in front of the classifier.

    Raises:
        ModelError: The pictures are too small.
    """
    trunk = nn.Sequential()
    width = 2 * in_channels * _STEM_KERNEL**2
    stem = nn.Conv2d(in_channels, width, _STEM_KERNEL, bias=False)
    nn.init.kaiming_normal_(stem.weight, nonlinearity="relu")
    trunk.add_module("stem", named_sequence({"conv1": stem, "act1": ACTIVATIONS[activation]()}))
    for number, channels in enumerate(filters, start=1):
        block = SpeedBlock(width, channels, convs=convs_per_block, activation=activation)
        trunk.add_module(f"block{number}", block)
        width = channels
    if identity_start:
        _pass_channels_on(trunk)
    require_size("speednet", trunk, image_size, remedy=" or fewer blocks (filters)")
    head = {"pool": nn.AdaptiveMaxPool2d(1), "flatten": nn.Flatten(), "scale": Scale(1 / math.sqrt(width))}
    return ImageModel(
        trunk=trunk,
        head=named_sequence(head | dropout_layer(dropout)),
        num_features=width,
        classifier_features=width,
        num_outputs=num_outputs,
    )


def _conv3x3(in_channels: int, out_channels: int) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)


def _pass_channels_on(trunk: nn.Sequential) -> None:
    for block in trunk:
        if isinstance(block, SpeedBlock):
            for module in block.modules():
                if isinstance(module, nn.Conv2d):
                    identity_start(module)
