"""Small folders of pictures that a network learns within seconds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def stripes(kind: int, seed: int, *, side: int = 12) -> np.ndarray:
    """Uint8 `[side, side, 3]`: horizontal, vertical or no stripes, with noise."""
    generator = np.random.default_rng(seed)
    picture = generator.integers(0, 70, (side, side, 3))
    if kind == 0:
        picture[::2] += 150
    elif kind == 1:
        picture[:, ::2] += 150
    return picture.astype(np.uint8)


def write_folder(
    root: Path,
    *,
    classes: tuple[str, ...] = ("across", "down", "plain"),
    parts: tuple[str, ...] = ("",),
    per_class: int = 20,
    side: int = 12,
) -> Path:
    """`root/[part/]<class>/NN.png`."""
    for number, part in enumerate(parts):
        for kind, name in enumerate(classes):
            folder = root / part / name
            folder.mkdir(parents=True)
            for i in range(per_class):
                seed = (number * 10 + kind) * 10_000 + i
                Image.fromarray(stripes(kind, seed, side=side)).save(folder / f"{i:03}.png")
    return root
