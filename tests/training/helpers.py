"""A tiny picture problem for tests of the training loop."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from netloom.data.augment import AugmentationSpec, Augmenter
from netloom.data.batches import ImageBatches, InputScaling
from netloom.models.heads import Head

HEAD = Head(name="label", kind="softmax", class_names=("dark", "bright", "striped"))


def pictures(n: int = 60) -> tuple[torch.Tensor, torch.Tensor]:
    """Uint8 `[n, 1, 8, 8]` of three easily told classes, and their labels."""
    generator = torch.Generator().manual_seed(7)
    targets = torch.arange(n) % 3
    images = torch.randint(0, 60, (n, 1, 8, 8), generator=generator)
    images[targets == 1] += 150
    images[targets == 2, :, ::2] += 190
    return images.to(torch.uint8), targets


def batches(
    *, n: int = 60, start: int = 0, shuffle: bool = False, augment: bool = False, seed: int = 3
) -> ImageBatches:
    images, targets = pictures(n)
    spec = AugmentationSpec(rotation=10, horizontal_flip=True, width_shift=0.1)
    return ImageBatches(
        images,
        {"label": targets},
        np.arange(start, n),
        batch_size=8,
        scaling=InputScaling.unit(1),
        seed=seed,
        shuffle=shuffle,
        augmenter=Augmenter(spec, seed=seed) if augment else None,
    )


def network(seed: int = 0) -> nn.Module:
    """A small network with dropout and batch normalization."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Dropout(0.3),
            nn.Linear(8 * 16, 3),
        ).to(memory_format=torch.channels_last)
