"""Batched, per-sample augmentation beside the augmentation of one picture at a time.

    python -m benchmarks.augmentation [--threads 1]

Pictures a second of netloom, of torchvision's `transforms.v2` called on each picture, and for the affine case of Keras'
way (`scipy.ndimage.affine_transform` on each channel), on the same pictures and measured in turn. Written to
docs/results/programs/augmentation.json for docs/performance.md.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage

from benchmarks.suite.machine import OtherWork
from benchmarks.whole_programs import save
from netloom.data.augment import AugmentationSpec, Augmenter
from netloom.randomness import uniforms
from netloom.runtime import keep_freed_memory
from netloom.torchvision_shim import torchvision

torchvision()

from torchvision.transforms import v2  # noqa: E402

Pixels = npt.NDArray[np.float32]

ROUNDS = 5
SECONDS_PER_MEASUREMENT = 0.5

CASES: dict[str, tuple[tuple[int, ...], AugmentationSpec, list[v2.Transform]]] = {
    "flip and shifted crop, 32x32": (
        (32, 3, 32, 32),
        AugmentationSpec(horizontal_flip=True, shifted_crop=4, fill_mode="constant"),
        [v2.RandomHorizontalFlip(), v2.RandomCrop(32, padding=4)],
    ),
    "affine, 150x150": (
        (20, 3, 150, 150),
        AugmentationSpec(
            rotation=40,
            width_shift=0.2,
            height_shift=0.2,
            shear=12,
            zoom=0.2,
            horizontal_flip=True,
            fill_mode="nearest",
        ),
        [
            v2.RandomHorizontalFlip(),
            v2.RandomAffine(
                40,
                translate=(0.2, 0.2),
                scale=(0.8, 1.2),
                shear=12,
                interpolation=v2.InterpolationMode.BILINEAR,
            ),
        ],
    ),
    "colour jitter, 150x150": (
        (20, 3, 150, 150),
        AugmentationSpec(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1),
        [v2.ColorJitter(0.4, 0.4, 0.4, 0.1)],
    ),
    "RandAugment, 32x32": (
        (32, 3, 32, 32),
        AugmentationSpec(policy="randaugment"),
        [v2.RandAugment()],
    ),
    "RandAugment, 150x150": (
        (20, 3, 150, 150),
        AugmentationSpec(policy="randaugment"),
        [v2.RandAugment()],
    ),
    "TrivialAugment, 32x32": (
        (128, 3, 32, 32),
        AugmentationSpec(policy="trivialaugment"),
        [v2.TrivialAugmentWide()],
    ),
}


def netloom_way(images: torch.Tensor, spec: AugmentationSpec) -> Callable[[], Any]:
    """An epoch of 50 batches drawn at once, applied batch by batch."""
    augmenter, size, epochs = Augmenter(spec, seed=0), len(images), iter(range(10**9))

    def batches() -> Any:
        while True:
            drawn = augmenter.draw(epoch=next(epochs), samples=np.arange(50 * size))
            for start in range(0, 50 * size, size):
                yield augmenter.apply(images, drawn[start : start + size])

    endless = batches()
    return lambda: next(endless)


def torchvision_way(images: torch.Tensor, transforms: list[v2.Transform]) -> Callable[[], Any]:
    """Each picture by itself, as a Dataset's `transform` is called, then stacked to a batch."""
    transform, pictures = v2.Compose(transforms), [p.contiguous() for p in images]
    return lambda: torch.stack([transform(p) for p in pictures])


def keras_way(images: torch.Tensor, spec: AugmentationSpec) -> Callable[[], Any]:
    """What Keras' ImageDataGenerator does: each channel of each picture through SciPy."""
    pictures = images.float().numpy()
    height, width = pictures.shape[2:]
    centre = np.array([height / 2 - 0.5, width / 2 - 0.5])
    calls = iter(range(10**9))

    def one(picture: Pixels, u: npt.NDArray[np.float64]) -> Pixels:
        theta, phi = np.deg2rad(spec.rotation * (2 * u[0] - 1)), np.deg2rad(spec.shear * (2 * u[1] - 1))
        rotate = np.array([[np.cos(theta), -np.sin(theta)], [np.sin(theta), np.cos(theta)]])
        low, high = spec.zoom_factors
        shear = np.array([[1, -np.sin(phi)], [0, np.cos(phi)]])
        matrix = rotate @ shear @ np.diag(low + (high - low) * u[2:4])
        shift = (2 * u[4:6] - 1) * [spec.height_shift * height, spec.width_shift * width]
        offset = rotate @ shift + centre - matrix @ centre
        channels = [ndimage.affine_transform(c, matrix, offset, order=1, mode="nearest") for c in picture]
        changed = np.stack(channels)
        return changed[:, :, ::-1] if u[6] < 0.5 else changed

    def batch() -> Pixels:
        drawn = uniforms(0, "benchmark", next(calls), np.arange(len(pictures)), 7)
        return np.stack([one(p, u) for p, u in zip(pictures, drawn, strict=True)])

    return batch


def pictures_per_second(way: Callable[[], Any], size: int) -> float:
    done, began = 0, time.perf_counter()
    while (seconds := time.perf_counter() - began) < SECONDS_PER_MEASUREMENT:
        way()
        done += size
    return done / seconds


def measure(shape: tuple[int, ...], spec: AugmentationSpec, transforms: list[v2.Transform]) -> list[dict[str, float]]:
    """Pictures a second of each way, for each round."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    images = images.contiguous(memory_format=torch.channels_last)
    ways = {
        "netloom": netloom_way(images, spec),
        "torchvision": torchvision_way(images, transforms),
    }
    if spec.interpolates:
        ways["keras"] = keras_way(images, spec)
    for way in ways.values():
        way()
    return [{name: pictures_per_second(way, len(images)) for name, way in ways.items()} for _ in range(ROUNDS)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    threads = parser.parse_args().threads
    torch.set_num_threads(threads)
    keep_freed_memory()
    torch.manual_seed(0)
    for name, case in CASES.items():
        others = OtherWork()
        rounds = measure(*case)
        print(name, " ".join(f"{way} {rate:,.0f}/s" for way, rate in rounds[-1].items()), flush=True)
        about = {"threads": threads, "torch": torch.__version__, "torchvision": torchvision().__version__}
        save("augmentation", {name: rounds}, about, others)


if __name__ == "__main__":
    main()
