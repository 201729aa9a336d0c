"""RandAugment and TrivialAugment: its own operations for each picture, each operation in one go.

Operations and magnitudes are those of `torchvision.transforms.v2.RandAugment` and
`TrivialAugmentWide`.
RandAugment: Cubuk et al., 2019, https://arxiv.org/abs/1909.13719. TrivialAugment: Müller and
Hutter, 2021, https://arxiv.org/abs/2103.10158.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from netloom.data.augment import colour
from netloom.data.augment.geometry import resample
from netloom.data.augment.spec import Policy

N_BINS = 31
OPERATIONS = (
    "identity",
    "shear_x",
    "shear_y",
    "translate_x",
    "translate_y",
    "rotate",
    "brightness",
    "color",
    "contrast",
    "sharpness",
    "posterize",
    "solarize",
    "auto_contrast",
    "equalize",
)
_GEOMETRIC = range(OPERATIONS.index("shear_x"), OPERATIONS.index("rotate") + 1)
_SIGNED = range(OPERATIONS.index("shear_x"), OPERATIONS.index("sharpness") + 1)


def draw_operations(
    uniforms: npt.NDArray[np.float64], *, policy: Policy, magnitude: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Which operations each picture gets, and how strong.

    Args:
        uniforms: `[n, 3 * K]` in [0, 1): for each of K operations its choice, its bin and its sign.
        policy: `randaugment`, or `trivialaugment` which draws the bin too.
        magnitude: The bin of `randaugment`, 0 to 30.

    Returns:
        Operations int64 `[n, K]`, places in `OPERATIONS`, and bins int64 `[n, K]`, 0 to 30, or -1
        to -31 where the magnitude of bin -1 - bin is taken negative.
    """
    choice, strength, sign = uniforms.reshape(len(uniforms), -1, 3).transpose(2, 0, 1)
    operations = (choice * len(OPERATIONS)).astype(np.int64)
    drawn = (strength * N_BINS).astype(np.int64)
    bins = drawn if policy == "trivialaugment" else np.full_like(drawn, magnitude)
    negative = (sign < 0.5) & np.isin(operations, _SIGNED)
    return operations, np.where(negative, -1 - bins, bins)


def magnitudes_of(operations: Tensor, bins: Tensor, *, policy: Policy, height: int, width: int) -> Tensor:
    """The signed magnitudes float32 of operations and bins (see `draw_operations`), of any shape.

    Shears are slopes, translations pixels, rotations degrees, colours the change of the factor 1,
    posterize bits, solarize the threshold as a fraction of 255; operations without a magnitude
    have 0.
    """
    wide = policy == "trivialaugment"
    shear, degrees, factor = (0.99, 135.0, 0.99) if wide else (0.3, 30.0, 0.9)
    shift_x, shift_y = (32.0, 32.0) if wide else (150 / 331 * width, 150 / 331 * height)
    steps = torch.linspace(0, 1, N_BINS)
    bits = (8 - torch.arange(N_BINS) / ((N_BINS - 1) / (6 if wide else 4))).round()
    largest = {
        "shear_x": shear,
        "shear_y": shear,
        "translate_x": shift_x,
        "translate_y": shift_y,
        "rotate": degrees,
        "brightness": factor,
        "color": factor,
        "contrast": factor,
        "sharpness": factor,
    }
    table = torch.stack([steps * largest.get(name, 0.0) for name in OPERATIONS])
    table[OPERATIONS.index("posterize")] = bits
    table[OPERATIONS.index("solarize")] = 1 - steps
    magnitudes = table[operations, torch.where(bins < 0, -1 - bins, bins)]
    return torch.where(bins < 0, -magnitudes, magnitudes)


def apply_operations(images: Tensor, operations: Tensor, magnitudes: Tensor, *, fill_value: float = 0.0) -> Tensor:
    """One operation on each picture.

    The operations lie in the memory of the CPU, so that the pictures of each are found without
    waiting for a GPU.

    Args:
        images: uint8 `[B, C, H, W]` with one or three channels.
        operations: int64 `[B]` on the CPU, places in `OPERATIONS`.
        magnitudes: float32 `[B]` on the CPU, in the units of `magnitudes_of`.
        fill_value: 0 to 255: what shears, translations and rotations uncover.

    Returns:
        uint8 `[B, C, H, W]`.
    """
    geometric = (operations >= _GEOMETRIC.start) & (operations < _GEOMETRIC.stop)
    groups = torch.where(geometric, _GEOMETRIC.start, operations)
    order, changed = [], []
    for number in sorted(set(groups.tolist())):
        chosen = (groups == number).nonzero().squeeze(1)
        pictures = images.index_select(0, chosen.to(images.device))
        if number == _GEOMETRIC.start:
            maps = _maps(operations[chosen], magnitudes[chosen]).to(images.device)
            pictures = _resampled(pictures, maps, fill_value)
        elif operation := _OPERATIONS.get(OPERATIONS[number]):
            pictures = operation(pictures, magnitudes[chosen].to(images.device))
        order.append(chosen)
        changed.append(pictures)
    places = torch.cat(order).argsort()
    return torch.cat(changed).index_select(0, places.to(images.device))


def _resampled(images: Tensor, maps: Tensor, fill_value: float) -> Tensor:
    moved = resample(images, maps, fill_mode="constant", fill_value=fill_value, interpolation="nearest")
    return moved.round_().to(torch.uint8)


def _maps(operations: Tensor, magnitudes: Tensor) -> Tensor:
    """Pixel maps `[B, 2, 5]`; shears are about the upper left corner, rotations the centre."""

    def only(name: str) -> Tensor:
        return torch.where(operations == OPERATIONS.index(name), magnitudes, 0.0)

    shear_x, shear_y, angle = only("shear_x"), only("shear_y"), torch.deg2rad(only("rotate"))
    zero = torch.zeros_like(angle)
    x = [angle.cos(), shear_x - angle.sin(), zero, shear_x / 2, -only("translate_x").trunc()]
    y = [shear_y + angle.sin(), angle.cos(), shear_y / 2, zero, -only("translate_y").trunc()]
    return torch.stack([torch.stack(x, -1), torch.stack(y, -1)], -2)


def _brightness(images: Tensor, magnitude: Tensor) -> Tensor:
    return colour.adjust_brightness(images.float(), 1 + magnitude).to(torch.uint8)


def _color(images: Tensor, magnitude: Tensor) -> Tensor:
    if images.shape[1] == 1:
        return images
    pictures = images.float()
    return colour.blend(pictures, colour.grey(pictures).floor_(), magnitude).to(torch.uint8)


def _contrast(images: Tensor, magnitude: Tensor) -> Tensor:
    pictures = images.float()
    mean = colour.grey(pictures).floor().mean((1, 2, 3), keepdim=True)
    return colour.blend(pictures, mean, magnitude).to(torch.uint8)


def _sharpness(images: Tensor, magnitude: Tensor) -> Tensor:
    """Blend with the picture smoothed by Pillow's SMOOTH filter; the outermost pixels stay."""
    channels, height, width = images.shape[1:]
    if min(height, width) <= 2:
        return images
    pictures = images.float()
    kernel = pictures.new_full((channels, 1, 3, 3), 1 / 13)
    kernel[:, :, 1, 1] = 5 / 13
    smooth = F.conv2d(pictures, kernel, groups=channels).round_()
    inside = pictures[:, :, 1:-1, 1:-1]
    inside += (smooth - inside) * -colour.per_picture(magnitude)
    return pictures.clamp_(0, 255).to(torch.uint8)


def _posterize(images: Tensor, bits: Tensor) -> Tensor:
    kept = (256 - 2.0 ** (8 - bits)).to(torch.uint8)
    return images & colour.per_picture(kept)


def _solarize(images: Tensor, threshold: Tensor) -> Tensor:
    """Invert the values from the threshold on; by exclusive or, as `where` is not vectorized."""
    first = colour.per_picture((255 * threshold).ceil().to(torch.uint8))
    return images ^ (images >= first).to(torch.uint8).mul_(255)


def _auto_contrast(images: Tensor, _: Tensor) -> Tensor:
    pictures = images.float()
    lowest, highest = pictures.amin((2, 3), True), pictures.amax((2, 3), True)
    flat = lowest == highest
    scale = torch.where(flat, 1.0, (highest - lowest) * (1 / 255))
    stretched = (pictures - torch.where(flat, 0.0, lowest)) / scale
    return stretched.clamp_(0, 255).to(torch.uint8)


def _equalize(images: Tensor, _: Tensor) -> Tensor:
    """Spread the histogram of each channel evenly, by Pillow's scheme (`ImageOps.equalize`)."""
    batch, channels, height, width = images.shape
    levels = images.reshape(batch, channels, -1).long()
    counts = levels.new_zeros(batch, channels, 256)
    counts.scatter_add_(2, levels, levels.new_ones(1).expand_as(levels))
    total = counts.cumsum(2)
    brightest = levels.amax(2, keepdim=True)
    step = (height * width - counts.gather(2, brightest)) // 255
    below = torch.cat([torch.zeros_like(step), total[:, :, :-1]], dim=2)
    spread = (below + step // 2) // step.clamp(min=1)
    table = torch.where(step == 0, torch.arange(256, device=images.device), spread.clamp_(0, 255))
    return table.gather(2, levels).view(images.shape).to(torch.uint8)


_OPERATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "brightness": _brightness,
    "color": _color,
    "contrast": _contrast,
    "sharpness": _sharpness,
    "posterize": _posterize,
    "solarize": _solarize,
    "auto_contrast": _auto_contrast,
    "equalize": _equalize,
}
