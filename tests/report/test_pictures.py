"""Data URIs, decoded again by Pillow."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image

from netloom.report.pictures import Thumbnail, thumbnail


def decode(thumb: Thumbnail) -> Image.Image:
    head, content = thumb.uri.split(",")
    image = Image.open(io.BytesIO(base64.b64decode(content, validate=True)))
    assert head == f"data:image/{image.format.lower()};base64"
    assert image.size == (thumb.width, thumb.height)
    return image


@pytest.mark.parametrize("channels", [1, 3])
def test_a_small_picture_is_kept_to_the_last_bit(channels):
    picture = np.random.default_rng(0).integers(0, 256, (channels, 28, 32), dtype=np.uint8)
    thumb = thumbnail(picture)
    assert thumb.pixelated
    decoded = np.atleast_3d(np.asarray(decode(thumb))).transpose(2, 0, 1)
    np.testing.assert_array_equal(decoded, picture)


def test_a_large_picture_is_reduced_and_keeps_its_proportions():
    ramp = np.linspace(0, 255, 400, dtype=np.uint8)
    picture = np.stack([np.tile(ramp, (300, 1))] * 2 + [np.zeros((300, 400), np.uint8)])
    thumb = thumbnail(picture, max_side=100)
    assert not thumb.pixelated
    assert (thumb.width, thumb.height) == (100, 75)
    decoded = np.asarray(decode(thumb)).astype(int)
    expected = picture.reshape(3, 75, 4, 100, 4).mean(axis=(2, 4)).transpose(1, 2, 0)
    assert np.abs(decoded - expected).max() < 10


def test_a_view_in_channels_last_memory_is_accepted():
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    np.testing.assert_array_equal(np.asarray(decode(thumbnail(pixels.transpose(2, 0, 1)))), pixels)


@pytest.mark.parametrize(
    "picture",
    [np.zeros((4, 8, 8), np.uint8), np.zeros((8, 8), np.uint8), np.zeros((3, 8, 8), np.float32)],
)
def test_anything_else_is_refused_with_what_was_found(picture):
    with pytest.raises(ValueError, match=rf"found {picture.dtype} \[{picture.shape[0]}, "):
        thumbnail(picture)
