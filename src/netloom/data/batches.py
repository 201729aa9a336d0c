"""Batches of decoded pictures, augmented and scaled on the device."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from netloom.data.augment import Augmenter
from netloom.data.mapping import fits_memory, will_need
from netloom.data.prefetch import prefetched
from netloom.data.progressive import Sizes, shrunk
from netloom.randomness import permutation

_ANNOUNCED_BATCHES = 4  # whose pictures the system is told to read, the one that is collected included
_ROW_VALUES = 4096  # 16 KB of float32, half of a core's first cache


@dataclass(frozen=True)
class Batch:
    """Named inputs and named targets.

    Attributes:
        inputs: Tensors by input name; a picture is `image`, float32 `[B, C, H, W]` in channels-last memory.
        targets: Tensors by head name; a class is `label`, int64 `[B]`.
        weights: Float32 `[B]`, or None where every sample weighs 1.
    """

    inputs: dict[str, torch.Tensor]
    targets: dict[str, torch.Tensor]
    weights: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))


class Batches(Protocol):
    """The batches of one part of a data set, epoch by epoch: what a training asks of them.

    Attributes:
        indices: Which rows of `targets` belong to the part, in the order of an epoch without shuffling.
        targets: By head name, first dimension that of the whole set.
    """

    indices: npt.NDArray[np.int64]
    targets: dict[str, torch.Tensor]

    def __len__(self) -> int:
        """Batches in an epoch."""
        ...

    def epoch(self, epoch: int = 0, *, skip: int = 0) -> Iterator[Batch]:
        """The batches of an epoch, from batch `skip` on."""
        ...


def n_batches(n: int, batch_size: int) -> int:
    """How many batches `n` samples make; a remainder of a single one joins the batch before it."""
    whole, rest = divmod(n, batch_size)
    return whole + (rest > 1 or (rest == 1 and not whole))


def batch_bounds(n: int, batch_size: int) -> Sequence[tuple[int, int]]:
    """Where the `n_batches` of `n` samples start and stop."""
    starts = range(0, n_batches(n, batch_size) * batch_size, batch_size)
    return list(zip(starts, [*starts[1:], n], strict=True)) if starts else []


@dataclass(frozen=True)
class InputScaling:
    """`(pixel / 255 - mean) / std` for each channel; it belongs to the model and travels with its weights.

    Attributes:
        mean: One value per channel, in units of the full range 0..1.
        std: Likewise.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Scale `[B, C, H, W]` pixels of 0..255, uint8 or float32, to float32 network inputs."""
        pixels = images.to(torch.float32)
        own = pixels if pixels is not images else None
        if len(set(zip(self.mean, self.std, strict=True))) == 1 and self.mean[0] == 0:
            return torch.mul(pixels, 1 / (255 * self.std[0]), out=own)
        n, channels, height, width = images.shape
        if not images.is_contiguous(memory_format=torch.channels_last):
            factor, offset = _factor_and_offset(self, images.device, 1)
            return torch.addcmul(offset.view(1, -1, 1, 1), pixels, factor.view(1, -1, 1, 1))
        # One value per channel does not vectorize on the CPU, where channels lie side by side. As rows of some thousand
        # values the same arithmetic takes 0.4 ms in place of 2.0 for 20 pictures 150x150 (a core with AVX2).
        repetitions = height * width if height * width * channels <= _ROW_VALUES else width
        factor, offset = _factor_and_offset(self, images.device, repetitions)
        rows = pixels.permute(0, 2, 3, 1).reshape(-1, repetitions * channels)
        scaled = torch.addcmul(offset, rows, factor, out=None if own is None else rows)
        return scaled.view(n, height, width, channels).permute(0, 3, 1, 2)

    def to_pixels(self, inputs: torch.Tensor) -> torch.Tensor:
        """The way back: network inputs `[B, C, H, W]` to pixels, uint8, rounded and cut to 0..255."""
        std = inputs.new_tensor(self.std).view(1, -1, 1, 1)
        mean = inputs.new_tensor(self.mean).view(1, -1, 1, 1)
        return (inputs * std + mean).mul(255).round_().clamp_(0, 255).to(torch.uint8)

    @classmethod
    def unit(cls, channels: int) -> InputScaling:
        """Pixels to 0..1, as `rescale=1/255` does."""
        return cls((0.0,) * channels, (1.0,) * channels)

    @classmethod
    def none(cls, channels: int) -> InputScaling:
        """Pixels as they are, 0..255."""
        return cls((0.0,) * channels, (1 / 255,) * channels)

    @classmethod
    def standardizing(cls, images: torch.Tensor, indices: npt.NDArray[np.int64]) -> InputScaling:
        """Mean 0 and standard deviation 1 per channel over `images[indices]`, at most 10,000 of them evenly spaced."""
        chosen = indices[:: max(1, len(indices) // 10_000)]
        channels = images.shape[1]
        total, squares, count = torch.zeros(channels).double(), torch.zeros(channels).double(), 0
        for start in range(0, len(chosen), 64):
            block = images[torch.from_numpy(chosen[start : start + 64])].float().div_(255)
            total += block.sum((0, 2, 3))
            squares += block.square_().sum((0, 2, 3))
            count += block.numel() // channels
        mean = total / count
        std = (squares / count - mean**2).clamp_(min=0).sqrt_().clamp_(min=1 / 255)
        # Rounded, since the last bits of float32 sums depend on the number of threads.
        return cls(tuple(round(m, 5) for m in mean.tolist()), tuple(round(s, 5) for s in std.tolist()))


@functools.lru_cache(maxsize=64)
def _factor_and_offset(
    scaling: InputScaling, device: torch.device, repetitions: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """`[repetitions * C]` each, made once for a device: copying them to a GPU for each batch would wait for it."""
    with torch.inference_mode(False):  # or the first use, if it predicts, would bar them from every training
        factor = torch.tensor([1 / (255 * s) for s in scaling.std], device=device)
        offset = torch.tensor([-m / s for m, s in zip(scaling.mean, scaling.std, strict=True)], device=device)
        return factor.repeat(repetitions), offset.repeat(repetitions)


class ImageBatches:
    """The batches of one part of a data set, epoch by epoch.

    Order and augmentation are functions of (seed, epoch, sample), so any epoch can be entered at any batch. The last
    batch may be smaller; a remainder of a single picture joins the batch before it, since batch normalization has
    no variance of one value.

    Pictures that do not fit the memory, and pictures on the CPU for a network elsewhere, are collected in a thread of
    their own while the network is at earlier batches. Batches are the same bits either way.

    Args:
        images: Uint8 `[N, C, H, W]`, on the device or on the CPU.
        targets: By head name, beside the images, first dimension N.
        indices: Which pictures belong to the part.
        batch_size: Pictures in one batch.
        scaling: From pixels to network inputs.
        seed: Of order and augmentation.
        shuffle: A new order in every epoch; without it the order of `indices`.
        augmenter: Applied to every picture; never given for validation or test data.
        weights: Float32 `[N]`, beside the images.
        device: Where batches are wanted; None for where the images are.
        sizes: Of the pictures in each epoch, which are made smaller behind the augmentation; None for whole ones.
        drawn_by: The number by which each picture's augmentation is drawn, int64 `[N]`; None for its index.
    """

    def __init__(
        self,
        images: torch.Tensor,
        targets: dict[str, torch.Tensor],
        indices: npt.NDArray[np.int64],
        *,
        batch_size: int,
        scaling: InputScaling,
        seed: int = 0,
        shuffle: bool = False,
        augmenter: Augmenter | None = None,
        weights: torch.Tensor | None = None,
        device: torch.device | str | None = None,
        sizes: Sizes | None = None,
        drawn_by: npt.NDArray[np.int64] | None = None,
    ) -> None:
        self.images, self.targets, self.indices, self.weights = images, targets, indices, weights
        self.batch_size, self.scaling = batch_size, scaling
        self.seed, self.shuffle, self.augmenter, self.sizes = seed, shuffle, augmenter, sizes
        self.drawn_by = drawn_by
        self.device = images.device if device is None else torch.device(device)
        self._collected_ahead = images.device.type == "cpu" and (
            self.device.type != "cpu" or not fits_memory(images.nbytes)
        )

    @property
    def n_samples(self) -> int:
        """Pictures in the part."""
        return len(self.indices)

    def _bounds(self) -> Sequence[tuple[int, int]]:
        return batch_bounds(self.n_samples, self.batch_size)

    def __len__(self) -> int:
        return n_batches(self.n_samples, self.batch_size)

    def epoch(self, epoch: int = 0, *, skip: int = 0) -> Iterator[Batch]:
        """The batches of an epoch, from batch `skip` on."""
        order = self.indices
        if self.shuffle:
            order = order[permutation(self.seed, "order", epoch, self.n_samples)]
        bounds = self._bounds()[skip:]
        drawn = None
        if self.augmenter is not None:
            samples = order if self.drawn_by is None else self.drawn_by[order]
            drawn = self.augmenter.draw(epoch=epoch, samples=samples, device=self.device)
        rows = torch.from_numpy(order).to(self.images.device)
        height, width = self.images.shape[2:]
        size = (height, width) if self.sizes is None else self.sizes.at(epoch, (height, width))
        with self._pictures(order, rows, bounds) as pictures:
            for (start, stop), images in zip(bounds, pictures, strict=True):
                if self.augmenter is not None and drawn is not None:
                    images = self.augmenter.apply(images, drawn[start:stop])
                chosen = rows[start:stop]
                yield Batch(
                    {"image": self.scaling(shrunk(images, size))},
                    {name: self._placed(values.index_select(0, chosen)) for name, values in self.targets.items()},
                    None if self.weights is None else self._placed(self.weights.index_select(0, chosen)),
                )

    def _placed(self, values: torch.Tensor) -> torch.Tensor:
        return values if values.device == self.device else values.to(self.device, non_blocking=True)

    @contextlib.contextmanager
    def _pictures(
        self, order: npt.NDArray[np.int64], rows: torch.Tensor, bounds: Sequence[tuple[int, int]]
    ) -> Iterator[Iterator[torch.Tensor]]:
        """The uint8 pictures `[B, C, H, W]` of each batch, on the device; `rows` are `order` beside the images."""
        # index_select and take forget channels-last memory, so they work on the [N, H, W, C] view.
        pixels = self.images.permute(0, 2, 3, 1)
        if self._collected_ahead:
            parts = [order[start:stop] for start, stop in bounds]
            with prefetched(lambda: self._collected(pixels, parts)) as collected:
                yield (self._placed(batch.permute(0, 3, 1, 2)) for batch in collected)
        else:
            yield (pixels.index_select(0, rows[start:stop]).permute(0, 3, 1, 2) for start, stop in bounds)

    def _collected(self, pixels: torch.Tensor, parts: Sequence[npt.NDArray[np.int64]]) -> Iterator[torch.Tensor]:
        """Pixels `[B, H, W, C]` on the CPU, pinned where a GPU is to copy them.

        NumPy takes them: on one thread, however many torch has, and without holding up the training's Python.
        """
        mapped = pixels.numpy()
        announced = not fits_memory(self.images.nbytes)
        for number, part in enumerate(parts):
            if announced:
                first = number + _ANNOUNCED_BATCHES - 1 if number else 0
                for later in parts[first : number + _ANNOUNCED_BATCHES]:
                    will_need(self.images, later)
            batch = torch.from_numpy(mapped.take(part, axis=0))
            yield batch.pin_memory() if self.device.type == "cuda" else batch
