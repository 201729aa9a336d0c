"""Arrays of numbers as pictures: which axis is which, and how values become the 0..255 that pictures hold."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from netloom.errors import DataError

_CHANNELS = (1, 3)
_LONGEST_SIDE = 10_000  # as recipes allow
_ROWS_AT_ONCE = 1024  # float64 in between takes eight times the room of the pixels


@dataclass(frozen=True)
class PictureArrays:
    """How samples of one array are read as pictures; learned from the training pictures, applied to all later ones.

    Attributes:
        sample: Shape of one sample as it is given: `(F,)`, `(H, W)`, `(H, W, C)` or `(C, H, W)`.
        picture: Shape of its picture as the values lie: `(H, W)`, `(H, W, C)` or `(C, H, W)`.
        channels_first: The last of these.
        low: The value that becomes 0.
        high: The value that becomes 255.

    Raises:
        DataError: The shapes do not fit each other, or the values span no finite range.
    """

    sample: tuple[int, ...]
    picture: tuple[int, ...]
    channels_first: bool
    low: float
    high: float

    def __post_init__(self) -> None:
        if len(self.picture) not in (2, 3) or math.prod(self.picture) != math.prod(self.sample):
            raise DataError(f"Samples of shape {self.sample} do not fit pictures of shape {self.picture}.")
        if not 0 <= self.high - self.low < math.inf:
            raise DataError(f"Values from {self.low:g} to {self.high:g} cannot be mapped to 0..255; scale them first.")

    @classmethod
    def learn(cls, values: npt.NDArray[Any], image_shape: Sequence[int] | None = None) -> PictureArrays:
        """How `values` `[N, ...]`, finite numbers, are pictures.

        Rows `[N, F]` without an `image_shape` are square grey pictures, or where F is no square, pictures of one row.
        uint8 is taken as it is; of other types the smallest value becomes 0 and the largest 255.

        Args:
            values: At least one sample, of one to three dimensions.
            image_shape: Shape of one picture as its values lie, where that does not follow from `values`.

        Raises:
            DataError: The shape is not that of pictures, is ambiguous, or is not `image_shape`.
        """
        sample = tuple(values.shape[1:])
        picture = _given_shape(sample, image_shape) if image_shape is not None else _own_shape(sample)
        first, last = picture[0] in _CHANNELS, picture[-1] in _CHANNELS
        if len(picture) == 3 and not (first or last):
            raise DataError(
                f"Pictures of shape {picture} have neither 1 (grey) nor 3 (RGB) channels, in front or at the end."
            )
        if len(picture) == 3 and first and last and image_shape is None:
            raise DataError(
                f"Pictures of shape {picture} may have their channels in front or at the end. Give "
                f"image_shape={picture} if they are at the end; otherwise move them there with "
                "numpy.moveaxis(X, 1, -1) and give the new shape."
            )
        if not all(1 <= side <= _LONGEST_SIDE for side in picture):
            raise DataError(
                f"Pictures of shape {picture} are impossible: sides are 1 to {_LONGEST_SIDE:,} pixels. For rows that "
                "are flat pictures, give image_shape=(height, width) or (height, width, channels)."
            )
        low, high = (0.0, 255.0) if values.dtype == np.uint8 else (float(values.min()), float(values.max()))
        return cls(sample, picture, len(picture) == 3 and first and not last, low, high)

    def __call__(self, values: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
        """Pixels `[N, H, W, C]` of `values` `[N, ...]`; what lies outside `low`..`high` is cut off.

        Raises:
            DataError: Samples have another shape than those that this was learned from.
        """
        if values.shape[1:] != self.sample:
            raise DataError(f"X has samples of shape {values.shape[1:]}, expected {self.sample} as in training.")
        if values.dtype == np.uint8 and (self.low, self.high) == (0.0, 255.0):
            pixels = values
        else:
            pixels = np.empty(values.shape, dtype=np.uint8)
            factor = 255.0 / (self.high - self.low) if self.high > self.low else 0.0
            for start in range(0, len(values), _ROWS_AT_ONCE):
                scaled = (values[start : start + _ROWS_AT_ONCE].astype(np.float64) - self.low) * factor
                pixels[start : start + _ROWS_AT_ONCE] = np.rint(scaled).clip(0, 255)
        pixels = pixels.reshape(len(values), *self.picture)
        if len(self.picture) == 2:
            return pixels[..., None]
        return np.ascontiguousarray(np.moveaxis(pixels, 1, -1)) if self.channels_first else pixels


def _own_shape(sample: tuple[int, ...]) -> tuple[int, ...]:
    if len(sample) != 1:
        return sample
    side = round(sample[0] ** 0.5)
    return (side, side) if side * side == sample[0] else (1, sample[0])


def _given_shape(sample: tuple[int, ...], image_shape: Sequence[int]) -> tuple[int, ...]:
    try:
        shape = tuple(int(side) for side in image_shape)
    except (TypeError, ValueError):
        shape = ()
    if len(shape) not in (2, 3):
        raise DataError(
            f"image_shape must be (height, width) or (height, width, channels), not {image_shape!r}; channels may "
            "also come first."
        )
    fits = math.prod(shape) == sample[0] if len(sample) == 1 else shape == sample
    if not fits:
        raise DataError(f"X has samples of shape {sample}, which do not fit image_shape={shape}.")
    return shape
