"""What augmentation is asked for: plain numbers in the vocabulary of Keras and torchvision."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from netloom.errors import did_you_mean

FillMode = Literal["nearest", "constant", "reflect", "wrap"]
Policy = Literal["none", "randaugment", "trivialaugment"]
FILL_MODES: tuple[FillMode, ...] = ("nearest", "constant", "reflect", "wrap")
POLICIES: tuple[Policy, ...] = ("none", "randaugment", "trivialaugment")

# field: (lowest, highest, what the number is); both ends are allowed.
_RANGES: dict[str, tuple[float, float, str]] = {
    "rotation": (0, 180, "degrees"),
    "width_shift": (0, 1, "a fraction of the width"),
    "height_shift": (0, 1, "a fraction of the height"),
    "shear": (0, 89, "degrees"),
    "fill_value": (0, 255, "a pixel value"),
    "shifted_crop": (0, 1024, "whole pixels"),
    "brightness": (0, 10, "the largest change of the factor 1"),
    "contrast": (0, 10, "the largest change of the factor 1"),
    "saturation": (0, 10, "the largest change of the factor 1"),
    "hue": (0, 0.5, "a fraction of the colour circle"),
    "randaugment_operations": (1, 14, "operations on each picture"),
    "randaugment_magnitude": (0, 30, "one of 31 steps"),
    "cutout": (0, 1, "a fraction of the shorter side"),
    "mixup": (0, 100, "alpha of the Beta distribution"),
    "cutmix": (0, 100, "alpha of the Beta distribution"),
}
_WHOLE = ("shifted_crop", "randaugment_operations", "randaugment_magnitude")
# field: what it may be beside true and false.
_SWITCHES: dict[str, tuple[str, ...]] = {"horizontal_flip": ("alternating",), "vertical_flip": ()}


@dataclass(frozen=True)
class AugmentationSpec:
    """What may happen to a training picture; with the defaults, nothing does.

    Geometry, in the conventions of Keras' `ImageDataGenerator` (see `geometry.pixel_maps`):
        rotation: Degrees; the angle is uniform in ±`rotation`.
        width_shift, height_shift: Fractions of the width and height; uniform in ±.
        shear: Degrees; uniform in ±.
        zoom: z for factors uniform in [1-z, 1+z], or the two ends; rows and columns are drawn
            independently and, as in Keras, a factor over 1 makes the picture smaller.
        horizontal_flip, vertical_flip: Mirror half of the pictures, drawn anew in each epoch. `alternating`
            (horizontal only): mirror half of them in the first epoch and the other half in the next, in turn, so that
            two epochs always show both sides of each picture (Jordan, "94% on CIFAR-10 in 3.29 seconds on a single
            GPU", 2024, section 3.6).
        shifted_crop: Pixels; pad each side by this many and cut the original size out at a random
            place.
        fill_mode: What lies outside the picture, for the picture `a b c d`: nearest `a a a|a b c
            d|d d d`, reflect `c b a|a b c d|d c b`, wrap `b c d|a b c d|a b c`, constant
            `fill_value` everywhere.
        fill_value: 0 to 255: outside the picture (fill mode constant, and policies), and within a
            cutout.

    Colour, as in torchvision's `ColorJitter`, applied in this order (torchvision draws the order):
        brightness, contrast, saturation: j for factors uniform in [max(0, 1-j), 1+j].
        hue: Fraction of the colour circle; uniform in ±. Grey pictures have no saturation and hue
            to change.

    Policies (uint8 pictures, torchvision's operations and magnitude bins):
        policy: `randaugment` (Cubuk et al., 2019) or `trivialaugment` (Müller and Hutter, 2021),
            or `none`.
        randaugment_operations: How many operations, one after the other.
        randaugment_magnitude: 0 to 30.

    Occlusion and mixing:
        cutout: Side of a square set to `fill_value`, as a fraction of the shorter side (DeVries
            and Taylor, 2017; they fill with the mean of the training pictures).
        mixup, cutmix: alpha of Beta(alpha, alpha); 0 is off (see `mixing.mix_batch`).

    Raises:
        ValueError: A value is out of its range; the message lists every such field.
    """

    rotation: float = 0.0
    width_shift: float = 0.0
    height_shift: float = 0.0
    shear: float = 0.0
    zoom: float | tuple[float, float] = 0.0
    horizontal_flip: bool | Literal["alternating"] = False
    vertical_flip: bool = False
    shifted_crop: int = 0
    fill_mode: FillMode = "nearest"
    fill_value: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    policy: Policy = "none"
    randaugment_operations: int = 2
    randaugment_magnitude: int = 9
    cutout: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0

    def __post_init__(self) -> None:
        problems = [p for name in _RANGES if (p := _number_problem(name, getattr(self, name)))]
        problems += [
            f"{name} is {value!r}; it must be {', '.join(['true', *more])} or false."
            for name, more in _SWITCHES.items()
            if not isinstance(value := getattr(self, name), bool) and value not in more
        ]
        problems += _choice_problem("fill_mode", self.fill_mode, FILL_MODES)
        problems += _choice_problem("policy", self.policy, POLICIES)
        problems += _zoom_problem(self.zoom)
        if problems:
            raise ValueError("\n".join(problems))

    @property
    def zoom_factors(self) -> tuple[float, float]:
        """The smallest and the largest zoom factor."""
        if isinstance(self.zoom, (int, float)):
            return 1.0 - self.zoom, 1.0 + self.zoom
        low, high = self.zoom
        return low, high

    @property
    def interpolates(self) -> bool:
        """Whether pictures are resampled between pixels."""
        shifts = self.rotation or self.width_shift or self.height_shift or self.shear
        return bool(shifts) or self.zoom_factors != (1.0, 1.0)

    @property
    def moves_pixels(self) -> bool:
        """Whether pictures are flipped or moved by whole pixels."""
        return bool(self.horizontal_flip) or self.vertical_flip or self.shifted_crop > 0

    @property
    def jitters_colour(self) -> bool:
        """Whether brightness, contrast, saturation or hue change."""
        return bool(self.brightness or self.contrast or self.saturation or self.hue)

    @property
    def mixes(self) -> bool:
        """Whether the pictures and targets of a batch are mixed with one another."""
        return self.mixup > 0 or self.cutmix > 0

    @property
    def changes_pictures(self) -> bool:
        """Whether anything is done to single pictures; mixing is done to batches."""
        geometry = self.interpolates or self.moves_pixels
        colour = self.jitters_colour or self.policy != "none"
        return bool(geometry or colour or self.cutout)

    @property
    def is_identity(self) -> bool:
        """Whether nothing at all is asked for."""
        return not (self.changes_pictures or self.mixes)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _number_problem(name: str, value: Any) -> str:
    low, high, meaning = _RANGES[name]
    kind = "a whole number" if name in _WHOLE else "a number"
    fits = isinstance(value, int) if name in _WHOLE else True
    if _is_number(value) and fits and low <= value <= high:
        return ""
    return f"{name} is {value!r}; it must be {kind} from {low} to {high} ({meaning})."


def _choice_problem(name: str, value: Any, known: tuple[str, ...]) -> list[str]:
    if value in known:
        return []
    hint = did_you_mean(str(value), known)
    return [f"{name} is {value!r}; it must be one of {', '.join(known)}.{hint}"]


def _zoom_problem(zoom: Any) -> list[str]:
    pair = isinstance(zoom, (tuple, list)) and len(zoom) == 2 and all(map(_is_number, zoom))
    if (pair and 0 < zoom[0] <= zoom[1] <= 10) or (_is_number(zoom) and 0 <= zoom < 1):
        return []
    return [
        f"zoom is {zoom!r}; it must be a fraction of at least 0 and below 1, or two factors, "
        "the smaller first, both above 0 and at most 10."
    ]
