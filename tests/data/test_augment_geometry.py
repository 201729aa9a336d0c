"""Geometry against scipy.ndimage through Keras' matrices, torchvision, and NumPy's own padding and flips."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from netloom.data.augment import AugmentationSpec, Augmenter
from netloom.data.augment.geometry import (
    move_pixels,
    pixel_maps,
    resample,
    with_whole_pixel_moves,
)
from netloom.torchvision_shim import torchvision

SCIPY_MODES = {
    "nearest": "nearest",
    "constant": "grid-constant",
    "reflect": "reflect",
    "wrap": "grid-wrap",
}
NUMPY_MODES = {
    "nearest": "edge",
    "constant": "constant",
    "reflect": "symmetric",
    "wrap": "wrap",
}
NEUTRAL = {
    "rotation": 0.0,
    "width_shift": 0.0,
    "height_shift": 0.0,
    "shear": 0.0,
    "zoom_x": 1.0,
    "zoom_y": 1.0,
}
SINGLE_CHANGES = [
    {"rotation": 30.0},
    {"rotation": -75.0},
    {"width_shift": 0.21},
    {"height_shift": -0.33},
    {"shear": 25.0},
    {"zoom_x": 1.3},
    {"zoom_y": 0.6},
]
EVERYTHING = {
    "rotation": 20.0,
    "width_shift": 0.1,
    "height_shift": -0.2,
    "shear": 12.0,
    "zoom_x": 0.8,
    "zoom_y": 1.2,
}


def pictures(*shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    drawn = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    return drawn.contiguous(memory_format=torch.channels_last)


def maps_of(*changes: dict[str, float]) -> np.ndarray:
    complete = [{**NEUTRAL, **change} for change in changes]
    return pixel_maps(**{name: np.array([c[name] for c in complete]) for name in NEUTRAL})


def as_float32(maps: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(maps.astype(np.float32))


def keras_affine(picture: np.ndarray, mode: str, cval: float, **change: float) -> np.ndarray:
    """`apply_affine_transform` of keras.src.legacy.preprocessing.image, order 1, on `[C, H, W]`."""
    c = {**NEUTRAL, **change}
    height, width = picture.shape[1:]
    theta, phi = np.deg2rad(c["rotation"]), np.deg2rad(c["shear"])
    tx, ty = c["height_shift"] * height, c["width_shift"] * width
    matrix = np.array([[np.cos(theta), -np.sin(theta), 0], [np.sin(theta), np.cos(theta), 0], [0, 0, 1]])
    matrix = matrix @ np.array([[1, 0, tx], [0, 1, ty], [0, 0, 1]])
    matrix = matrix @ np.array([[1, -np.sin(phi), 0], [0, np.cos(phi), 0], [0, 0, 1]])
    matrix = matrix @ np.diag([c["zoom_y"], c["zoom_x"], 1])
    o_x, o_y = height / 2 - 0.5, width / 2 - 0.5
    matrix = (
        np.array([[1, 0, o_x], [0, 1, o_y], [0, 0, 1]]) @ matrix @ np.array([[1, 0, -o_x], [0, 1, -o_y], [0, 0, 1]])
    )
    return np.stack(
        [
            ndimage.affine_transform(channel, matrix[:2, :2], matrix[:2, 2], order=1, mode=mode, cval=cval)
            for channel in picture.astype(np.float64)
        ]
    )


@pytest.mark.parametrize("fill_mode", SCIPY_MODES)
@pytest.mark.parametrize("change", [*SINGLE_CHANGES, EVERYTHING], ids=str)
def test_affine_changes_are_those_of_keras_through_scipy(change, fill_mode):
    images = pictures(2, 3, 17, 24)
    found = resample(images, as_float32(maps_of(change, change)), fill_mode=fill_mode, fill_value=50.0)
    for picture, result in zip(images.numpy(), found.numpy(), strict=True):
        expected = keras_affine(picture, SCIPY_MODES[fill_mode], 50.0, **change)
        # float32 places of about 1e-6 pixel times neighbours that differ by up to 255
        np.testing.assert_allclose(result, expected, atol=0.02)


def test_rotation_and_shift_agree_with_torchvision():
    torchvision()
    from torchvision.transforms.v2 import InterpolationMode, functional

    images = pictures(1, 3, 20, 20).float()
    turned = resample(images, as_float32(maps_of({"rotation": 35.0})), fill_mode="constant")
    expected = functional.rotate(images, -35.0, interpolation=InterpolationMode.BILINEAR)
    torch.testing.assert_close(turned, expected, atol=0.02, rtol=0)
    moved = resample(images, as_float32(maps_of({"width_shift": 0.15})), fill_mode="constant")
    expected = functional.affine(images, 0.0, [-3, 0], 1.0, [0.0, 0.0])
    torch.testing.assert_close(moved, expected, atol=0.02, rtol=0)


def numpy_moved(
    picture: np.ndarray, left: int, top: int, horizontal: int, vertical: int, reach: int, mode: str
) -> np.ndarray:
    flipped = picture[:, :: 1 - 2 * vertical, :: 1 - 2 * horizontal]
    sides = ((0, 0), (reach, reach), (reach, reach))
    values = {"constant_values": 77} if mode == "constant" else {}
    padded = np.pad(flipped, sides, mode=mode, **values)
    height, width = picture.shape[1:]
    return padded[:, top : top + height, left : left + width]


def every_move(reach: int) -> torch.Tensor:
    places = [0, reach, 2 * reach, reach // 2]
    return torch.tensor([[x, y, h, v] for x in places for y in places[::-1] for h in (0, 1) for v in (0, 1)])


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("reach", [0, 3, 9])
@pytest.mark.parametrize("fill_mode", NUMPY_MODES)
def test_whole_pixel_moves_are_exactly_those_of_numpy(fill_mode, reach, channels):
    moves = every_move(reach)
    images = pictures(len(moves), channels, 9, 13)
    found = move_pixels(images, moves, reach=reach, fill_mode=fill_mode, fill_value=77)
    assert found.dtype == torch.uint8
    assert found.is_contiguous(memory_format=torch.channels_last)
    for picture, move, result in zip(images.numpy(), moves.tolist(), found.numpy(), strict=True):
        expected = numpy_moved(picture, *move, reach, NUMPY_MODES[fill_mode])
        np.testing.assert_array_equal(result, expected)


def test_horizontal_flip_agrees_with_torchvision():
    torchvision()
    from torchvision.transforms.v2 import functional

    images = pictures(4, 3, 8, 10)
    moves = torch.tensor([[0, 0, 1, 0]] * 4)
    flipped = move_pixels(images, moves, reach=0, fill_mode="nearest")
    assert torch.equal(flipped, functional.horizontal_flip(images))


@pytest.mark.parametrize("fill_mode", NUMPY_MODES)
def test_a_move_within_a_pixel_map_is_the_same_move(fill_mode):
    moves = every_move(4)
    images = pictures(len(moves), 3, 10, 12)
    maps = with_whole_pixel_moves(maps_of(*[{}] * len(moves)), moves.numpy(), reach=4)
    resampled = resample(images, as_float32(maps), fill_mode=fill_mode, fill_value=9)
    copied = move_pixels(images, moves, reach=4, fill_mode=fill_mode, fill_value=9)
    torch.testing.assert_close(resampled, copied.float(), atol=0.02, rtol=0)


def test_a_map_with_moves_is_the_affine_change_and_then_the_moves():
    moves = torch.tensor([[5, 1, 1, 0], [0, 6, 0, 1]])
    images = pictures(2, 3, 20, 20)
    maps = maps_of({"rotation": 40.0, "zoom_x": 1.2}, {"shear": 20.0})
    composed = resample(
        images,
        as_float32(with_whole_pixel_moves(maps, moves.numpy(), reach=3)),
        fill_mode="nearest",
    )
    affine = resample(images, as_float32(maps), fill_mode="nearest")
    expected = move_pixels(affine, moves, reach=3, fill_mode="nearest")
    inside = (..., slice(4, -4), slice(4, -4))  # beyond the edge only the composition knows more
    torch.testing.assert_close(composed[inside], expected[inside], atol=0.02, rtol=0)


def test_a_shifted_crop_wider_than_the_pictures_is_refused():
    images = pictures(2, 3, 8, 10)
    augmenter = Augmenter(AugmentationSpec(shifted_crop=9), seed=0)
    with pytest.raises(ValueError, match=r"shifted_crop is 9 pixels.*10x8"):
        augmenter.apply(images, augmenter.draw(epoch=0, samples=np.arange(2)))
