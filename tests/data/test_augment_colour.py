"""Colour changes and policy operations against torchvision's functional transforms, one picture at a time."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from netloom.data.augment import AugmentationSpec, Augmenter
from netloom.data.augment.colour import (
    adjust_brightness,
    adjust_contrast,
    adjust_hue,
    adjust_saturation,
)
from netloom.data.augment.policies import (
    OPERATIONS,
    apply_operations,
    draw_operations,
    magnitudes_of,
)
from netloom.torchvision_shim import torchvision

torchvision()

from torchvision.transforms import v2  # noqa: E402
from torchvision.transforms.v2 import functional  # noqa: E402


def pictures(n: int, channels: int = 3, side: int = 24) -> torch.Tensor:
    """Noise on a ramp, so that histograms and means are not all alike; one flat picture."""
    generator = torch.Generator().manual_seed(5)
    ramp = torch.linspace(20, 160, side)[:, None].expand(n, channels, side, side)
    noise = torch.randint(0, 90, (n, channels, side, side), generator=generator)
    drawn = (ramp + noise).to(torch.uint8)
    drawn[0] = 130
    return drawn.contiguous(memory_format=torch.channels_last)


JITTERS = [
    (adjust_brightness, functional.adjust_brightness, [0.0, 0.4, 1.0, 1.7, 2.5]),
    (adjust_contrast, functional.adjust_contrast, [0.0, 0.4, 1.0, 1.7, 2.5]),
    (adjust_saturation, functional.adjust_saturation, [0.0, 0.4, 1.0, 1.7, 2.5]),
    (adjust_hue, functional.adjust_hue, [-0.5, -0.17, 0.0, 0.3, 0.5]),
]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("ours", "theirs", "factors"), JITTERS)
def test_jitter_is_that_of_torchvision_on_float_pictures(ours, theirs, factors, channels):
    images = pictures(len(factors), channels).float()
    found = ours(images, torch.tensor(factors))
    for picture, factor, result in zip(images, factors, found, strict=True):
        expected = theirs(picture / 255, factor) * 255
        torch.testing.assert_close(result, expected, atol=2e-3, rtol=0)


def test_hue_of_pure_colours_turns_by_thirds():
    red = torch.tensor([200.0, 0.0, 0.0]).view(1, 3, 1, 1)
    for turn, channel in ((1 / 3, 1), (-1 / 3, 2)):
        turned = adjust_hue(red, torch.tensor([turn])).flatten()
        assert turned.argmax() == channel
        torch.testing.assert_close(turned.sum(), torch.tensor(200.0), atol=1e-2, rtol=0)


def of_torchvision(name: str, picture: torch.Tensor, magnitude: float) -> torch.Tensor:
    """`_apply_image_or_video_transform` of torchvision.transforms.v2, by its public functions."""

    def affine(translate: list[int], shear: list[float], center: list[float] | None = None):
        return functional.affine(picture, 0.0, translate, 1.0, shear, center=center)

    slope = math.degrees(math.atan(magnitude))
    return {
        "identity": lambda: picture,
        "shear_x": lambda: affine([0, 0], [slope, 0.0], [0, 0]),
        "shear_y": lambda: affine([0, 0], [0.0, slope], [0, 0]),
        "translate_x": lambda: affine([int(magnitude), 0], [0.0, 0.0]),
        "translate_y": lambda: affine([0, int(magnitude)], [0.0, 0.0]),
        "rotate": lambda: functional.rotate(picture, magnitude),
        "brightness": lambda: functional.adjust_brightness(picture, 1 + magnitude),
        "color": lambda: functional.adjust_saturation(picture, 1 + magnitude),
        "contrast": lambda: functional.adjust_contrast(picture, 1 + magnitude),
        "sharpness": lambda: functional.adjust_sharpness(picture, 1 + magnitude),
        "posterize": lambda: functional.posterize(picture, int(magnitude)),
        "solarize": lambda: functional.solarize(picture, 255.0 * magnitude),
        "auto_contrast": lambda: functional.autocontrast(picture),
        "equalize": lambda: functional.equalize(picture),
    }[name]()


@pytest.mark.parametrize("policy", ["randaugment", "trivialaugment"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_is_that_of_torchvision_on_uint8(name, channels, policy):
    bins = torch.tensor([30, 0, 4, 13, 22, 30, -1 - 9, -1 - 17, -1 - 30])
    operations = torch.full_like(bins, OPERATIONS.index(name))
    if name in ("posterize", "solarize", "auto_contrast", "equalize", "identity"):
        bins = bins.clamp(min=0)
    images = pictures(len(bins), channels)
    magnitudes = magnitudes_of(operations, bins, policy=policy, height=24, width=24)
    found = apply_operations(images, operations, magnitudes)
    assert found.dtype == torch.uint8
    for picture, magnitude, result in zip(images, magnitudes.tolist(), found, strict=True):
        expected = of_torchvision(name, picture, magnitude)
        difference = (result.int() - expected.int()).abs()
        if name in ("shear_x", "shear_y", "rotate"):
            # places exactly between two pixels go to the one or the other by the last bit
            assert (difference > 0).float().mean() < 0.02
        else:
            # a value just below a whole number is cut to the one below by the last bit
            assert difference.max() <= 1
            assert (difference > 0).float().mean() < 0.02


@pytest.mark.parametrize(
    ("policy", "reference"),
    [("randaugment", v2.RandAugment), ("trivialaugment", v2.TrivialAugmentWide)],
)
def test_magnitude_tables_are_those_of_torchvision(policy, reference):
    theirs = reference._AUGMENTATION_SPACE
    names = {name: "".join(part.title() for part in name.split("_")) for name in OPERATIONS}
    assert [names[name] for name in OPERATIONS] == list(theirs)
    for number, name in enumerate(OPERATIONS):
        magnitudes, signed = theirs[names[name]]
        expected = magnitudes(31, 40, 60)
        bins = torch.arange(31)
        found = magnitudes_of(torch.full((31,), number), bins, policy=policy, height=40, width=60)
        if expected is not None:
            torch.testing.assert_close(found, expected.float(), atol=1e-5, rtol=0)
        draws = np.stack([np.full(50, (number + 0.5) / 14), np.full(50, 0.5), np.arange(50) / 50])
        _, drawn_bins = draw_operations(draws.T, policy=policy, magnitude=9)
        assert (drawn_bins < 0).any() == signed


def test_randaugment_uses_all_operations_at_its_magnitude_and_trivialaugment_all_bins():
    drawn = np.random.default_rng(0).random((4000, 6))
    operations, bins = draw_operations(drawn, policy="randaugment", magnitude=11)
    assert operations.shape == (4000, 2)
    counts = np.bincount(operations.ravel(), minlength=14)
    assert counts.min() > 450  # 8000 / 14 = 571, standard deviation 23
    assert set(np.unique(bins)) == {11, -12}
    _, bins = draw_operations(drawn[:, :3], policy="trivialaugment", magnitude=11)
    assert set(np.unique(np.where(bins < 0, -1 - bins, bins))) == set(range(31))


def test_a_policy_gives_each_picture_what_was_drawn_for_it():
    spec = AugmentationSpec(policy="randaugment", randaugment_operations=2)
    augmenter = Augmenter(spec, seed=4)
    images = pictures(40)
    drawn = augmenter.draw(epoch=3, samples=np.arange(40))
    found = augmenter.apply(images, drawn)
    operations, bins = drawn.get("operations"), drawn.get("bins")
    magnitudes = magnitudes_of(operations, bins, policy="randaugment", height=24, width=24)
    for i in range(40):
        expected = images[i]
        for which, magnitude in zip(operations[i].tolist(), magnitudes[i].tolist(), strict=True):
            expected = of_torchvision(OPERATIONS[which], expected, magnitude)
        far = (found[i].int() - expected.int()).abs() > 4  # one step of two on top of each other
        assert far.float().mean() < 0.03
