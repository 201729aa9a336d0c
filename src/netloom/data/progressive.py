"""Smaller pictures in the first epochs: how large they are, as a function of the epoch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F

# Sides are multiples of this: pooling cuts off odd rows, so that in a network that halves it three times a side of 28
# costs four fifths of one of 29, and shows as much.
_STEP = 4


class Sizes(Protocol):
    """How large pictures are in each epoch."""

    def at(self, epoch: int, image_size: tuple[int, int]) -> tuple[int, int]:
        """Height and width in `epoch` (0 is the first) of pictures of `image_size`."""


@dataclass(frozen=True)
class ProgressiveSizes:
    """Sides that grow in a straight line from `start` to the whole by the epoch `until * epochs`.

    A convolution costs as much less as its picture has fewer pixels, and early epochs learn coarse features (Howard's
    DAWNBench entry, 2018; Tan and Le, "EfficientNetV2", 2021). The last epochs see the whole pictures, which are those
    that the network is validated on and used for.

    Attributes:
        start: Side of the first epoch's pictures, as a fraction of the whole one, in (0, 1].
        until: Share of the epochs after which pictures are whole, in (0, 1].
        epochs: Of the whole training.
    """

    start: float
    until: float
    epochs: int

    def at(self, epoch: int, image_size: tuple[int, int]) -> tuple[int, int]:
        """Height and width in `epoch` (0 is the first) of pictures of `image_size`: multiples of 4, or the whole."""
        fraction = self.start + (1 - self.start) * min(1.0, epoch / (self.until * self.epochs))
        return scaled_size(fraction, image_size)


def scaled_size(fraction: float, image_size: tuple[int, int]) -> tuple[int, int]:
    """A fraction of height and width, rounded to multiples of 4, or the whole."""
    height, width = (_rounded(fraction * side, side) for side in image_size)
    return height, width


def _rounded(wanted: float, whole: int) -> int:
    return whole if wanted >= whole else min(whole, max(_STEP, _STEP * round(wanted / _STEP)))


def shrunk(images: torch.Tensor, image_size: tuple[int, int]) -> torch.Tensor:
    """Pictures `[B, C, H, W]` of 0 to 255 at `image_size`, float32 in channels-last memory.

    Bilinear with antialiasing, as Pillow's; `images` themselves where they have that size.
    """
    if tuple(images.shape[2:]) == image_size:
        return images
    smaller = F.interpolate(images.float(), size=image_size, mode="bilinear", antialias=True, align_corners=False)
    return smaller.contiguous(memory_format=torch.channels_last)
