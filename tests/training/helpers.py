"""A tiny picture problem for tests of the training loop."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from netloom.data.augment import AugmentationSpec, Augmenter
from netloom.data.batches import ImageBatches, InputScaling
from netloom.models.heads import Head
from netloom.runtime import ExecutionPlan
from netloom.training.loop import fit
from netloom.training.optim import create_optimizer
from netloom.training.state import TrainingState

HEAD = Head(name="label", kind="softmax", class_names=("dark", "bright", "striped"))
PLAN = ExecutionPlan("cpu", 2, "float32")
TIMED = ("seconds", "images_per_second")


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


def train(model: torch.nn.Module | None = None, **options: Any) -> TrainingState:
    model = model or network()
    optimizer = options.pop("optimizer", None) or create_optimizer(model, "adam", learning_rate=0.01)
    defaults: dict[str, Any] = {
        "train": batches(n=45, shuffle=True, augment=True),
        "validation": batches(start=45),
        "heads": [HEAD],
        "plan": PLAN,
        "epochs": 4,
        "seed": 1,
    }
    return fit(model, optimizer=optimizer, **{**defaults, **options})


def untimed(state: TrainingState) -> list[dict[str, float]]:
    return [{k: v for k, v in row.items() if k not in TIMED} for row in state.history]


def equal(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


class StopAfter:
    """Asks for an end after so many steps of any optimizer, as Ctrl-C would."""

    def __init__(self, steps: int) -> None:
        self.left = steps
        self._counting = register_optimizer_step_post_hook(self._count)

    def _count(self, *_: Any) -> None:
        self.left -= 1

    def __call__(self) -> str | None:
        if self.left > 0:
            return None
        self._counting.remove()
        return "stopped"


def blobs(n: int, classes: int, width: int, *, spread: float = 1.5, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of overlapping classes, far from zero and of unlike scales."""
    generator = np.random.default_rng(seed)
    targets = np.arange(n) % classes
    centres = generator.normal(size=(classes, width))
    rows = centres[targets] + spread * generator.normal(size=(n, width))
    rows = 5 + rows * generator.uniform(0.1, 10, size=width)
    return torch.from_numpy(rows).float(), torch.from_numpy(targets)
