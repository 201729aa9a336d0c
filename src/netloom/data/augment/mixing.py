"""Mixing the pictures and targets of a batch with one another: mixup and cutmix."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from netloom.randomness import derive_seed


def mix_batch(
    images: Tensor,
    targets: Tensor,
    *,
    seed: int,
    step: int,
    mixup_alpha: float = 0.0,
    cutmix_alpha: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Mix each picture and its target with the one before it in the batch, the first with the last.

    One share is drawn for the whole batch, a function of (seed, step). Where both are asked for,
    each has half of the steps. The batch must be shuffled, so that the neighbour is a picture
    like any other.

    mixup: Zhang et al., 2017, https://arxiv.org/abs/1710.09412. cutmix: Yun et al., 2019,
    https://arxiv.org/abs/1905.04899; the target's share is that of the pixels that stay.

    Args:
        images: `[B, C, H, W]`, uint8 or float.
        targets: float `[B, K]`, one-hot or soft.
        seed: Of the training.
        step: Optimizer steps done so far.
        mixup_alpha: Of Beta(alpha, alpha); 0 is off.
        cutmix_alpha: Likewise.

    Returns:
        The pictures, of float dtype after mixup and in their own after cutmix, and the soft
        targets `[B, K]`.

    Raises:
        ValueError: An alpha is negative, or the targets are not one row of floats per picture.
    """
    if min(mixup_alpha, cutmix_alpha) < 0:
        raise ValueError(f"mixup_alpha is {mixup_alpha} and cutmix_alpha {cutmix_alpha}; neither may be below 0.")
    if targets.ndim != 2 or len(targets) != len(images) or not targets.is_floating_point():
        raise ValueError(
            f"Mixing needs float targets [{len(images)}, classes], one row per picture, "
            f"but found {targets.dtype} {list(targets.shape)}; make class indices one-hot first."
        )
    generator = np.random.Generator(np.random.Philox(derive_seed(seed, "mix", step)))
    coin = generator.random()
    if mixup_alpha and (not cutmix_alpha or coin < 0.5):
        share = float(generator.beta(mixup_alpha, mixup_alpha))
        return _mixed(images.float(), share), _mixed(targets, share)
    if cutmix_alpha:
        share = float(generator.beta(cutmix_alpha, cutmix_alpha))
        return _cut(images, targets, share, *generator.random(2))
    return images, targets


def _mixed(values: Tensor, share: float) -> Tensor:
    return values.roll(1, 0).lerp_(values, share)


def _cut(images: Tensor, targets: Tensor, share: float, centre_x: float, centre_y: float) -> tuple[Tensor, Tensor]:
    """Paste a box of 1 - share of the neighbour's area about a centre given in [0, 1)."""
    height, width = images.shape[2:]
    half = 0.5 * np.sqrt(1 - share)
    x, y = int(centre_x * width), int(centre_y * height)
    half_width, half_height = int(half * width), int(half * height)
    left, right = max(x - half_width, 0), min(x + half_width, width)
    top, bottom = max(y - half_height, 0), min(y + half_height, height)
    pasted = images.clone()
    pasted[:, :, top:bottom, left:right] = images.roll(1, 0)[:, :, top:bottom, left:right]
    kept = 1 - (right - left) * (bottom - top) / (width * height)
    return pasted, _mixed(targets, kept)
