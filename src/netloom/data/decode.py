"""One picture's bytes in, 8-bit pixels out, whatever the bytes are.

Runs in the decode workers and in prediction: standard library, NumPy and Pillow only.
"""

from __future__ import annotations

import contextlib
import io
import threading
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,
)

from netloom.data.location import UnreadablePictureError
from netloom.data.refusals import CUT_OFF, why_broken, why_unidentified

__all__ = [
    "DECODER_VERSION",
    "FORMATS",
    "MAX_PIXELS",
    "DecodedPicture",
    "PictureHeader",
    "Resize",
    "UnreadablePictureError",
    "decode_picture",
    "probe_picture",
    "warnings_ignored",
]

DECODER_VERSION = 1
"""Raised whenever the same bytes would give other pixels: older cached pixels then stay unused."""

MAX_PIXELS = 150_000_000
"""Largest picture that is decoded: above any camera's (100 megapixels), and 600 MB in memory."""

Resize = Literal["stretch", "crop", "pad"]

# Imported above so that Pillow need not search all its plugins for one, which takes 0.1 s.
_PLUGINS = (
    JpegImagePlugin.JpegImageFile,
    PngImagePlugin.PngImageFile,
    WebPImagePlugin.WebPImageFile,
    GifImagePlugin.GifImageFile,
    BmpImagePlugin.BmpImageFile,
    TiffImagePlugin.TiffImageFile,
)
FORMATS = tuple(plugin.format for plugin in _PLUGINS)
"""The only formats ever tried, by Pillow's names: what cameras, browsers and scanners write."""

_ORIENTATION_TAG = 0x0112
_BITS_PER_SAMPLE_TAG = 258
_PHOTOMETRIC_TAG = 262
_WHITE_IS_ZERO = 0
# EXIF 2.32, table 6: how a stored picture becomes upright.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ON_ITS_SIDE = (5, 6, 7, 8)
_LEFT_WAS_AT_THE_END = (2, 3, 6, 7)  # the upright picture's left is the last stored column or row
_TOP_WAS_AT_THE_END = (3, 4, 7, 8)


@dataclass(frozen=True)
class PictureHeader:
    """What a picture says of itself.

    Attributes:
        width: Pixels across, after the EXIF orientation.
        height: Pixels down, after the EXIF orientation.
        mode: Pillow's name of the stored colour mode (`L`, `RGB`, `P`, `I;16`, …).
        format: One of `FORMATS`.
    """

    width: int
    height: int
    mode: str
    format: str


@dataclass(frozen=True)
class DecodedPicture:
    """A picture's pixels, and what its header said.

    Attributes:
        pixels: uint8 `[H, W, C]`, upright, C being 1 (grey) or 3 (red, green, blue).
        width: Pixels across before resizing, after the EXIF orientation.
        height: Pixels down before resizing, after the EXIF orientation.
        mode: Pillow's name of the stored colour mode (`L`, `RGB`, `P`, `I;16`, …).
        format: One of `FORMATS`.
    """

    pixels: npt.NDArray[np.uint8]
    width: int
    height: int
    mode: str
    format: str


def probe_picture(data: bytes) -> PictureHeader:
    """Read a picture's header and leave its pixels alone.

    Raises:
        UnreadablePictureError: It is none of `FORMATS`, damaged in its header, or has no pixels or
            more than `MAX_PIXELS`.
    """
    with _refusing(data), _opened(data) as image:
        return _header(image, _orientation(image))


def decode_picture(
    data: bytes, *, size: tuple[int, int] | None, resize: Resize, channels: Literal[1, 3]
) -> DecodedPicture:
    """Decode a picture of any of `FORMATS` to 8 bits, upright, at the wanted size.

    The first frame of an animation or of several pages counts. Transparency is laid over white.
    CMYK is converted without its colour profile. 16-bit grey keeps its levels (value / 257,
    rounded). Grey of 32-bit integers or floats says nowhere what its white is: the first of 1
    (floats only), 255 and 65,535 that no value exceeds is taken for white, and where there are
    negative or larger values the picture's own smallest and largest become black and white
    (infinite values and those that are no numbers count as 0).

    Resizing is Pillow's antialiased bilinear filter. `stretch` gives every side its target;
    `crop` scales the picture to cover the target and cuts the centre out (as torchvision's
    `Resize` and `CenterCrop` do); `pad` scales it to fit inside and centres it on black. JPEGs are
    decoded at a half, quarter or eighth where that leaves at least twice the target.

    Args:
        data: The bytes of the picture's file.
        size: Height and width in pixels; None keeps the picture's own.
        resize: How the picture's shape becomes that of `size`.
        channels: 1 for grey (ITU-R 601 luma), 3 for red, green, blue.

    Raises:
        UnreadablePictureError: It is none of `FORMATS`, damaged or cut off, or has no pixels or
            more than `MAX_PIXELS`.
    """
    with _refusing(data), _opened(data) as image:
        if image.format == "PNG":
            _check_png(data)
            image.load()  # the orientation may stand behind the pixels
        orientation = _orientation(image)
        header = _header(image, orientation)
        scaled, extent = (header.width, header.height), None
        if size is not None:
            scaled = _scaled_size(header.width, header.height, size, resize)
            extent = _draft(image, scaled, on_its_side=orientation in _ON_ITS_SIDE)
        image.load()
        flat = _flatten(image)
        # Pillow turns TIFFs itself when it loads them.
        if header.format != "TIFF" and orientation in _UPRIGHT:
            flat = flat.transpose(_UPRIGHT[orientation])
        if channels == 1:
            flat = _in_mode(flat, "L")
        if size is not None:
            region = _region(flat, extent, orientation)
            flat = _resize(flat, region, size, scaled, resize)
        if channels == 3:
            flat = _in_mode(flat, "RGB")
        pixels = np.array(flat).reshape(flat.height, flat.width, channels)
    return DecodedPicture(pixels, header.width, header.height, header.mode, header.format)


@contextlib.contextmanager
def _refusing(data: bytes) -> Iterator[None]:
    """Turn whatever Pillow raises into a reason why this picture is left out."""
    try:
        with warnings_ignored():
            yield
    except UnreadablePictureError:
        raise
    except Image.DecompressionBombError:
        raise UnreadablePictureError(
            f"more than {MAX_PIXELS // 1_000_000} megapixels, the most that are decoded"
        ) from None
    except UnidentifiedImageError as error:
        raise UnreadablePictureError(why_unidentified(data, FORMATS)) from error
    except MemoryError as error:
        raise UnreadablePictureError("not enough memory to decode it", passing=True) from error
    except Exception as error:  # Pillow's plugins raise nearly every kind on damaged files
        raise UnreadablePictureError(why_broken(error, data)) from error


_warnings_lock = threading.Lock()
_warnings_users: list[warnings.catch_warnings[None]] = []


@contextlib.contextmanager
def warnings_ignored() -> Iterator[None]:
    """Silence what Pillow warns of (odd metadata, large pictures), from several threads at once.

    `warnings.catch_warnings` is not safe in threads: overlapping uses can leave the filters of one
    in force for good. So the first to come sets the filter and the last to leave restores it.
    """
    with _warnings_lock:
        if not _warnings_users:
            catcher = warnings.catch_warnings()
            catcher.__enter__()
            warnings.simplefilter("ignore")
        else:
            catcher = _warnings_users[0]
        _warnings_users.append(catcher)
    try:
        yield
    finally:
        with _warnings_lock:
            if len(_warnings_users) == 1:
                catcher.__exit__(None, None, None)
            _warnings_users.pop()


def _opened(data: bytes) -> ImageFile.ImageFile:
    if not data:
        raise UnreadablePictureError("the file is empty")
    _check_pixels(*_webp_canvas(data))
    image = Image.open(io.BytesIO(data), formats=FORMATS)
    _check_pixels(*image.size)
    return image


def _webp_canvas(data: bytes) -> tuple[int, int]:
    """Width and height of an extended WebP, or (1, 1): its decoder allocates them when opened.

    Source: RFC 9649, section 2.7.
    """
    if data[:4] != b"RIFF" or data[8:16] != b"WEBPVP8X" or len(data) < 30:
        return 1, 1
    return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")


def _check_pixels(width: int, height: int) -> None:
    if width < 1 or height < 1:
        raise UnreadablePictureError(f"it has no pixels ({width} x {height})")
    if width * height > MAX_PIXELS:
        raise UnreadablePictureError(
            f"{width} x {height} pixels; more than {MAX_PIXELS // 1_000_000} megapixels are not decoded"
        )


def _check_png(data: bytes) -> None:
    """Compare the checksums of the pixel data, which Pillow ignores: a flipped bit would show as noise."""
    position = 8
    while (name := data[position + 4 : position + 8]) != b"IEND":
        end = position + 8 + int.from_bytes(data[position : position + 4], "big")
        if end + 4 > len(data):
            raise UnreadablePictureError(CUT_OFF)
        checked = memoryview(data)[position + 4 : end]
        if name == b"IDAT" and zlib.crc32(checked) != int.from_bytes(data[end : end + 4], "big"):
            raise UnreadablePictureError("damaged (the checksum of its pixels is wrong)")
        position = end + 4


def _orientation(image: ImageFile.ImageFile) -> int:
    """The EXIF orientation, 1 to 8; 1 where there is none or the EXIF data is damaged."""
    try:
        # Not image.getexif(): for a PNG without EXIF data that would decode all its pixels.
        orientation = Image.Image.getexif(image).get(_ORIENTATION_TAG, 1)
    except Exception:  # broken metadata must not cost the picture
        return 1
    return orientation if orientation in _UPRIGHT else 1


def _header(image: ImageFile.ImageFile, orientation: int) -> PictureHeader:
    width, height = image.size
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        width, height = image.tag_v2[256], image.tag_v2[257]
    if orientation in _ON_ITS_SIDE:
        width, height = height, width
    # A JPEG with further pictures behind the first one is an MPO to Pillow.
    picture_format = "JPEG" if image.format == "MPO" else str(image.format)
    return PictureHeader(width, height, image.mode, picture_format)


def _scaled_size(width: int, height: int, size: tuple[int, int], resize: Resize) -> tuple[int, int]:
    """Width and height that the whole picture is scaled to, before cutting or padding."""
    target_height, target_width = size
    if resize == "stretch":
        return target_width, target_height
    wide = width * target_height >= height * target_width
    if resize == "crop":
        if wide:
            return width * target_height // height, target_height
        return target_width, height * target_width // width
    if wide:
        return target_width, max(1, round(height * target_width / width))
    return max(1, round(width * target_height / height)), target_height


def _draft(image: ImageFile.ImageFile, scaled: tuple[int, int], *, on_its_side: bool) -> tuple[float, float] | None:
    """Let a JPEG decode itself smaller, as long as both sides stay at least twice the target.

    So the result is 0.2 levels from the full decode's in the mean, 7 at most (smooth pictures).

    Returns the upright picture's width and height in the pixels that will be decoded, which are no
    whole numbers where the last 8 x 8 block is not full; None where nothing changes.
    """
    if not isinstance(image, JpegImagePlugin.JpegImageFile):
        return None
    width, height = reversed(scaled) if on_its_side else scaled
    drafted = image.draft(None, (2 * width, 2 * height))
    if drafted is None:
        return None
    _, (_, _, width_decoded, height_decoded) = drafted
    return (height_decoded, width_decoded) if on_its_side else (width_decoded, height_decoded)


def _region(
    image: Image.Image, extent: tuple[float, float] | None, orientation: int
) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of the picture in `image`, whose last stored pixels may be fill."""
    width, height = extent or image.size
    left = image.width - width if orientation in _LEFT_WAS_AT_THE_END else 0
    top = image.height - height if orientation in _TOP_WAS_AT_THE_END else 0
    return left, top, left + width, top + height


def _flatten(image: ImageFile.ImageFile) -> Image.Image:
    """The picture in mode `L` or `RGB`: 8 bits, no palette, no transparency."""
    if image.mode.startswith("I;16"):
        return _from_16_bit(image)
    if image.mode in ("I", "F"):
        return _from_unknown_white(image)
    flat_mode = "L" if image.mode in ("1", "L", "LA", "La") else "RGB"
    if not image.has_transparency_data:
        return _in_mode(image, flat_mode)
    transparent = image.convert("RGBA")
    flat = Image.new(flat_mode, image.size, "white")
    flat.paste(transparent.convert(flat_mode), mask=transparent.getchannel("A"))
    return flat


def _in_mode(image: Image.Image, mode: str) -> Image.Image:
    # Pillow copies where there is nothing to convert, a tenth of the time of a 32 x 32 picture.
    return image if image.mode == mode else image.convert(mode)


def _from_16_bit(image: ImageFile.ImageFile) -> Image.Image:
    values = np.asarray(image).astype(np.uint32)
    white = 65_535
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        white = 2 ** int(image.tag_v2.get(_BITS_PER_SAMPLE_TAG, (16,))[0]) - 1
        if image.tag_v2.get(_PHOTOMETRIC_TAG) == _WHITE_IS_ZERO:
            values = white - values
    grey = ((values * 255 + white // 2) // white).astype(np.uint8)
    transparent_value = image.info.get("transparency")
    if isinstance(transparent_value, int):
        grey[values == transparent_value] = 255
    return Image.fromarray(grey)


def _from_unknown_white(image: ImageFile.ImageFile) -> Image.Image:
    values = np.nan_to_num(np.asarray(image).astype(np.float64), posinf=0, neginf=0)
    darkest, brightest = values.min(), values.max()
    usual_whites = (255, 65_535) if image.mode == "I" else (1, 255, 65_535)
    white = next((white for white in usual_whites if darkest >= 0 and brightest <= white), None)
    if white is None:
        values, white = values - darkest, (brightest - darkest) or 1
    return Image.fromarray(np.rint(values * (255 / white)).astype(np.uint8))


def _resize(
    image: Image.Image,
    region: tuple[float, float, float, float],
    size: tuple[int, int],
    scaled: tuple[int, int],
    resize: Resize,
) -> Image.Image:
    height, width = size
    if resize == "crop":
        # Resizing only the part that stays: a 1 x 5000 strip scaled whole would be 82 megapixels.
        cut_left, cut_top = round((scaled[0] - width) / 2), round((scaled[1] - height) / 2)
        across, down = (region[2] - region[0]) / scaled[0], (region[3] - region[1]) / scaled[1]
        left, top = region[0] + cut_left * across, region[1] + cut_top * down
        return _scale(image, (width, height), (left, top, left + width * across, top + height * down))
    resized = _scale(image, scaled, region)
    if resize == "pad":
        canvas = Image.new(image.mode, (width, height))
        canvas.paste(resized, ((width - scaled[0]) // 2, (height - scaled[1]) // 2))
        return canvas
    return resized


def _scale(image: Image.Image, size: tuple[int, int], box: tuple[float, float, float, float]) -> Image.Image:
    left, top, right, bottom = box
    inside = (max(left, 0.0), max(top, 0.0), min(right, image.width), min(bottom, image.height))  # rounding errors
    if image.size == size and inside == (0, 0, *size):
        return image
    return image.resize(size, Image.Resampling.BILINEAR, box=inside)
