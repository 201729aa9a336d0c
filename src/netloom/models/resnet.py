"""The residual networks for small pictures."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from netloom.models.blocks import named_sequence, with_dense_head
from netloom.models.contract import ImageModel
from netloom.models.layers import ACTIVATIONS, Activation, Rate
from netloom.models.registry import register_model

_PAPER = "He et al., Deep residual learning for image recognition, 2015, section 4.2"
_FILTERS = (16, 32, 64)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions whose result is added to the block's input `[B, C, H, W]`.

    Where the block halves height and width (`stride` 2) and widens, the shortcut takes every second
    pixel and fills the new channels with zeros: option A of He et al. 2015, which has no weights.
    """

    def __init__(self, in_channels: int, out_channels: int, *, stride: int, activation: Activation) -> None:
        super().__init__()
        self.conv1 = _conv3x3(in_channels, out_channels, stride=stride)
        self.norm1 = nn.BatchNorm2d(out_channels)
        self.act1 = ACTIVATIONS[activation]()
        self.conv2 = _conv3x3(out_channels, out_channels)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.act2 = ACTIVATIONS[activation]()
        self.stride = stride
        self.new_channels = out_channels - in_channels

    def forward(self, x: Tensor) -> Tensor:
        """`[B, out_channels, ceil(H / stride), ceil(W / stride)]`."""
        residual = self.norm2(self.conv2(self.act1(self.norm1(self.conv1(x)))))
        output: Tensor = self.act2(residual + self._shortcut(x))
        return output

    def _shortcut(self, x: Tensor) -> Tensor:
        if self.stride > 1:
            x = x[:, :, :: self.stride, :: self.stride]
        if self.new_channels:
            x = F.pad(x, (0, 0, 0, 0, 0, self.new_channels))
        return x


def resnet(
    *,
    depth: int,
    in_channels: int,
    num_outputs: int,
    image_size: tuple[int, int],
    activation: Activation = "relu",
    dropout: Rate = 0.0,
) -> ImageModel:
    """The CIFAR-10 networks of He et al. 2015, section 4.2, with `depth` = 6n + 2 layers.

    Three stages of n residual blocks with 16, 32 and 64 channels, then global average pooling.

    Args:
        depth: Layers that have weights: 20, 32 or 56.
        in_channels: Channels of the pictures.
        num_outputs: Numbers per picture that the network gives.
        image_size: Height and width of the pictures in pixels; 32x32 in the paper.
        activation: Behind each convolution, and behind each sum.
        dropout: Rate in front of the classifier; the paper has none.
    """
    stem = {
        "conv1": _conv3x3(in_channels, _FILTERS[0]),
        "norm1": nn.BatchNorm2d(_FILTERS[0]),
        "act1": ACTIVATIONS[activation](),
    }
    trunk = nn.Sequential()
    trunk.add_module("stem", named_sequence(stem))
    in_channels = _FILTERS[0]
    for stage, filters in enumerate(_FILTERS, start=1):
        blocks: dict[str, nn.Module] = {}
        for number in range(1, (depth - 2) // 6 + 1):
            stride = 2 if stage > 1 and number == 1 else 1
            blocks[f"residual{number}"] = ResidualBlock(in_channels, filters, stride=stride, activation=activation)
            in_channels = filters
        trunk.add_module(f"block{stage}", named_sequence(blocks))
    return with_dense_head(
        trunk,
        name=f"resnet{depth}",
        image_size=image_size,
        num_features=_FILTERS[-1],
        num_outputs=num_outputs,
        activation=activation,
        head_pooling="average",
        dropout=dropout,
    )


def _conv3x3(in_channels: int, out_channels: int, *, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)


for _depth in (20, 32, 56):
    register_model(
        f"resnet{_depth}",
        description=f"{(_depth - 2) // 2} residual blocks for small pictures",
        paper=_PAPER,
        fixed={"depth": _depth},
    )(resnet)
