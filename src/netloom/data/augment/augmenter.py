"""Drawing what happens to every sample of an epoch, and applying it to a batch."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from netloom.data.augment import colour, geometry, policies
from netloom.data.augment.spec import AugmentationSpec
from netloom.randomness import uniforms

Samples = npt.NDArray[np.int64]

_COLOURS = ("brightness", "contrast", "saturation", "hue")
_ON_CPU = ("operations", "bins")


class AugmentationParameters:
    """What was drawn for some samples: a table of named columns, one row for each sample.

    Only what the augmentation uses is there:
        maps: float32 `[n, 2, 5]`, pixel maps (`geometry.resample`), flips and shifted crop
            included.
        moves: int64 `[n, 4]`, flips and shifted crop alone (`geometry.move_pixels`).
        operations, bins: int64 `[n, K]`, in the memory of the CPU (`policies.draw_operations`).
        brightness, contrast, saturation: float32 `[n]`, factors. hue: float32 `[n]`, fractions of
            the colour circle.
        cutout: float32 `[n, 2]`, the centre (x, y) as fractions of the size, in [0, 1).

    Args:
        columns: By name, first dimension n.
        n: Samples.
    """

    def __init__(self, columns: Mapping[str, Tensor], n: int) -> None:
        self._columns, self._n = columns, n

    def __len__(self) -> int:
        return self._n

    def __getitem__(self, rows: slice) -> AugmentationParameters:
        """The parameters of consecutive samples."""
        n = len(range(self._n)[rows])
        return AugmentationParameters({k: v[rows] for k, v in self._columns.items()}, n)

    def get(self, name: str) -> Tensor | None:
        """A column, or None where the augmentation does not use it."""
        return self._columns.get(name)


class Augmenter:
    """Draws and applies an augmentation; the same sample in the same epoch always gets the same.

    Args:
        spec: What is asked for; its mixing of batches is left to `mixing.mix_batch`.
        seed: Of the training.
    """

    def __init__(self, spec: AugmentationSpec, *, seed: int) -> None:
        self.spec, self.seed = spec, seed

    def draw(self, *, epoch: int, samples: Samples, device: torch.device | str = "cpu") -> AugmentationParameters:
        """The parameters of all `samples` (int64 `[n]`) in an epoch, in their order.

        Each kind of change has random numbers of its own, so that turning one on leaves the
        others as they were.
        """
        columns = {
            **self._geometry(epoch, samples),
            **self._operations(epoch, samples),
            **self._jitter(epoch, samples),
        }
        if self.spec.cutout:
            columns["cutout"] = self._uniforms("cutout", epoch, samples, 2).astype(np.float32)
        tensors = {name: torch.from_numpy(values) for name, values in columns.items()}
        placed = {k: v if k in _ON_CPU else v.to(device) for k, v in tensors.items()}
        return AugmentationParameters(placed, len(samples))

    def apply(self, images: Tensor, parameters: AugmentationParameters) -> Tensor:
        """The pictures changed; what is given is left as it was.

        Flips, shifted crop, cutout and policies keep uint8 pictures uint8. Resampling and colour
        jitter compute in float32 and give float32 (a policy after resampling rounds to whole
        values again, as its operations are defined on them). Values stay within 0 and 255;
        scaling for the network is the caller's.

        Args:
            images: `[B, C, H, W]`, uint8 or float32 of 0 to 255.
            parameters: B rows from `draw`, on the same device.

        Returns:
            `[B, C, H, W]` in channels-last memory; `images` itself where nothing is asked for.

        Raises:
            ValueError: The number of rows is not that of the pictures, the pictures are smaller
                than the shifted crop allows, or colours are to change and there are neither one
                nor three channels.
        """
        if len(images) != len(parameters):
            raise ValueError(f"{len(images)} pictures came with {len(parameters)} parameter rows.")
        if not (images.shape[1] in (1, 3) or self._channelwise):
            raise ValueError(
                "Colour changes and policies need pictures with 1 or 3 channels, found "
                f"{images.shape[1]}; leave brightness, contrast, saturation, hue and policy out."
            )
        images = self._move(images, parameters)
        if not self._channelwise:
            images = images.contiguous()  # planes: see colour.py
        images = self._apply_policy(images, parameters)
        if self.spec.jitters_colour:
            factors = {name: parameters.get(name) for name in _COLOURS}
            images = colour.jitter(images.float(), **factors)
        images = images.contiguous(memory_format=torch.channels_last)
        return self._cut_out(images, parameters)

    @property
    def _channelwise(self) -> bool:
        """Whether the channels may mean anything."""
        return self.spec.policy == "none" and not self.spec.jitters_colour

    def _uniforms(self, purpose: str, epoch: int, samples: Samples, columns: int) -> npt.NDArray[np.float64]:
        return uniforms(self.seed, f"augment/{purpose}", epoch, samples, columns)

    def _geometry(self, epoch: int, samples: Samples) -> dict[str, npt.NDArray[np.generic]]:
        if not (self.spec.interpolates or self.spec.moves_pixels):
            return {}
        moves = self._moves(epoch, samples)
        if not self.spec.interpolates:
            return {"moves": moves}
        spec, drawn = self.spec, self._uniforms("affine", epoch, samples, 6).T
        low, high = spec.zoom_factors
        maps = geometry.pixel_maps(
            rotation=spec.rotation * (2 * drawn[0] - 1),
            width_shift=spec.width_shift * (2 * drawn[1] - 1),
            height_shift=spec.height_shift * (2 * drawn[2] - 1),
            shear=spec.shear * (2 * drawn[3] - 1),
            zoom_x=low + (high - low) * drawn[4],
            zoom_y=low + (high - low) * drawn[5],
        )
        maps = geometry.with_whole_pixel_moves(maps, moves, reach=spec.shifted_crop)
        return {"maps": maps.astype(np.float32)}

    def _moves(self, epoch: int, samples: Samples) -> npt.NDArray[np.int64]:
        """Int64 `[n, 4]`: left, top, horizontal flip, vertical flip."""
        drawn = self._uniforms("moves", epoch, samples, 4)
        choices = [2 * self.spec.shifted_crop + 1] * 2
        choices += [1 + bool(self.spec.horizontal_flip), 1 + self.spec.vertical_flip]
        moves = (drawn * choices).astype(np.int64)
        if self.spec.horizontal_flip == "alternating":
            first = self._uniforms("alternating flip", 0, samples, 1)[:, 0] < 0.5
            moves[:, 2] = first ^ (epoch % 2 == 1)
        return moves

    def _operations(self, epoch: int, samples: Samples) -> dict[str, npt.NDArray[np.generic]]:
        spec = self.spec
        if spec.policy == "none":
            return {}
        count = spec.randaugment_operations if spec.policy == "randaugment" else 1
        drawn = self._uniforms("policy", epoch, samples, 3 * count)
        operations, bins = policies.draw_operations(drawn, policy=spec.policy, magnitude=spec.randaugment_magnitude)
        return {"operations": operations, "bins": bins}

    def _jitter(self, epoch: int, samples: Samples) -> dict[str, npt.NDArray[np.generic]]:
        drawn = self._uniforms("colour", epoch, samples, 4) if self.spec.jitters_colour else None
        columns: dict[str, npt.NDArray[np.generic]] = {}
        for place, name in enumerate(_COLOURS):
            reach = getattr(self.spec, name)
            if drawn is not None and reach:
                low, high = (-reach, reach) if name == "hue" else (max(0.0, 1 - reach), 1 + reach)
                columns[name] = (low + (high - low) * drawn[:, place]).astype(np.float32)
        return columns

    def _move(self, images: Tensor, parameters: AugmentationParameters) -> Tensor:
        spec = self.spec
        if (maps := parameters.get("maps")) is not None:
            return geometry.resample(images, maps, fill_mode=spec.fill_mode, fill_value=spec.fill_value)
        if (moves := parameters.get("moves")) is not None:
            return geometry.move_pixels(
                images,
                moves,
                reach=spec.shifted_crop,
                fill_mode=spec.fill_mode,
                fill_value=spec.fill_value,
            )
        return images

    def _apply_policy(self, images: Tensor, parameters: AugmentationParameters) -> Tensor:
        operations, bins = parameters.get("operations"), parameters.get("bins")
        if operations is None or bins is None:
            return images
        height, width = images.shape[2:]
        magnitudes = policies.magnitudes_of(operations, bins, policy=self.spec.policy, height=height, width=width)
        if images.dtype != torch.uint8:
            images = images.round().to(torch.uint8)
        for which, strength in zip(operations.unbind(1), magnitudes.unbind(1), strict=True):
            images = policies.apply_operations(images, which, strength, fill_value=self.spec.fill_value)
        return images

    def _cut_out(self, images: Tensor, parameters: AugmentationParameters) -> Tensor:
        """Fill a square of each picture, row by row in channels-last memory.

        Multiplying takes 0.5 ms for 20 pictures of 150x150 on two threads; `masked_fill` and
        `where` take 2.6 and 3.8 ms, as they are not vectorized.
        """
        if (centres := parameters.get("cutout")) is None:
            return images
        batch, channels, height, width = images.shape
        side = max(1, round(self.spec.cutout * min(height, width)))
        columns = _within(centres[:, 0], width, side).repeat_interleave(channels, dim=1)
        rows = _within(centres[:, 1], height, side)
        square = rows[:, :, None].to(images.dtype) * columns[:, None].to(images.dtype)
        lines = images.permute(0, 2, 3, 1).reshape(batch, height, width * channels)
        filled = lines * (1 - square)
        if self.spec.fill_value:
            value = self.spec.fill_value
            filled += square * (value if images.is_floating_point() else round(value))
        return filled.view(batch, height, width, channels).permute(0, 3, 1, 2)


def _within(centres: Tensor, size: int, side: int) -> Tensor:
    """Which of `size` places a square about each centre in [0, 1) covers: bool `[B, size]`."""
    begin = (centres * size).long()[:, None] - side // 2
    places = torch.arange(size, device=centres.device)
    return (places >= begin) & (places < begin + side)
