"""Brightness, contrast, saturation and hue, with a factor for each picture of a batch.

Pictures are float32 `[B, C, H, W]` of 0 to 255. The definitions are those of
`torchvision.transforms.v2.functional` on float pictures, on the scale of 255. Every factor is
float32 `[B]`; 1 (for hue 0) leaves a picture as it is.
"""

from __future__ import annotations

import torch
from torch import Tensor

_LUMA = (0.2989, 0.587, 0.114)  # ITU-R BT.601, with the digits torchvision uses


def per_picture(values: Tensor) -> Tensor:
    """`[B]` as `[B, 1, 1, 1]`."""
    return values.view(-1, 1, 1, 1)


def grey(images: Tensor) -> Tensor:
    """Luma `[B, 1, H, W]` of pictures with one or three channels."""
    if images.shape[1] == 1:
        return images
    red, green, blue = images.unbind(1)
    luma = (red * _LUMA[0]).add_(green, alpha=_LUMA[1]).add_(blue, alpha=_LUMA[2])
    return luma[:, None]


def blend(images: Tensor, other: Tensor, change: Tensor) -> Tensor:
    """1 + `change` of the picture and -`change` of the other, within 0 and 255.

    The order of the sums is torchvision's: cut to whole values, the results are equal to the bit.
    """
    weight = per_picture(change)
    return torch.addcmul(images * (1 + weight), other, -weight).clamp_(0, 255)


def adjust_brightness(images: Tensor, factor: Tensor) -> Tensor:
    """Blend with black."""
    return (images * per_picture(factor)).clamp_(0, 255)


def adjust_contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Blend with the mean luma of the picture."""
    return blend(images, grey(images).mean((1, 2, 3), keepdim=True), factor - 1)


def adjust_saturation(images: Tensor, factor: Tensor) -> Tensor:
    """Blend with the picture's luma; grey pictures stay as they are."""
    return images if images.shape[1] == 1 else blend(images, grey(images), factor - 1)


def adjust_hue(images: Tensor, turn: Tensor) -> Tensor:
    """Turn the hue in HSV by a fraction of the colour circle; grey pictures stay as they are.

    Back from HSV by f(n) = V - C max(0, min(k, 4 - k, 1)), k = (n + 6 H) mod 6, for n = 5, 3, 1
    (Wikipedia, "HSL and HSV", "HSV to RGB alternative"), which needs no case for each sixth of
    the circle.
    """
    if images.shape[1] == 1:
        return images
    lowest, highest = torch.aminmax(images, dim=1)
    chroma = highest - lowest
    red, green, blue = images.unbind(1)
    sixths = torch.where(
        highest == red,
        green - blue,
        torch.where(
            highest == green,
            (blue - red).add_(chroma, alpha=2),
            (red - green).add_(chroma, alpha=4),
        ),
    )
    sixths.div_(torch.where(chroma == 0, 1, chroma)).add_(turn.view(-1, 1, 1), alpha=6)
    channels = []
    for n in (5, 3, 1):
        k = (sixths + n).remainder_(6)
        drop = torch.minimum(k, 4 - k).clamp_(0, 1)
        channels.append(torch.addcmul(highest, drop, chroma, value=-1))
    return torch.stack(channels, dim=1)


def jitter(
    images: Tensor,
    *,
    brightness: Tensor | None,
    contrast: Tensor | None,
    saturation: Tensor | None,
    hue: Tensor | None,
) -> Tensor:
    """Brightness, contrast, saturation and hue changed in this order; None leaves one out."""
    for adjust, factor in (
        (adjust_brightness, brightness),
        (adjust_contrast, contrast),
        (adjust_saturation, saturation),
        (adjust_hue, hue),
    ):
        if factor is not None:
            images = adjust(images, factor)
    return images
