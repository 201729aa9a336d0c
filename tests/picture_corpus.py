"""Odd and malformed picture files, made deterministically, with the pixels that went into them."""

from __future__ import annotations

import contextlib
import io
import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, TiffImagePlugin

HEIGHT, WIDTH = 24, 36


@dataclass(frozen=True)
class CorpusFile:
    """One file: `expected` is uint8 `[H, W, 3]`, the upright source pixels over white; None: not compared."""

    path: Path
    valid: bool
    expected: np.ndarray | None = None
    tolerance: int = 0


@dataclass(frozen=True)
class _Made:
    name: str
    data: bytes
    valid: bool
    expected: np.ndarray | None = None
    tolerance: int = 0


def write_corpus(folder: Path) -> list[CorpusFile]:
    """Write all files into `folder`; the same bytes at every call."""
    files = []
    for made in (*_lossless(), *_lossy(), *_oriented(), *_odd_names(), *_odd_but_fine(), *_malformed(), *_bombs()):
        path = folder / made.name
        try:
            path.write_bytes(made.data)
        except OSError:
            continue  # a name that this file system does not allow
        files.append(CorpusFile(path, made.valid, made.expected, made.tolerance))
    assert len({file.path for file in files}) == len(files)
    return [*files, *_special_files(folder)]


def colours() -> np.ndarray:
    """The source picture, uint8 `[HEIGHT, WIDTH, 3]`: smooth, and unlike itself however it is turned."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    return np.stack([x * 7, y * 10, 255 - x * 3 - y * 5], axis=-1).clip(0, 255).astype(np.uint8)


def greys() -> np.ndarray:
    """A grey source picture, uint8 `[HEIGHT, WIDTH]`."""
    return colours()[..., 0]


def ramp_16_bit() -> np.ndarray:
    """uint16 `[16, 64]`: every 64th level from 0 to 65,535."""
    return (np.arange(1024) * 64.0616).astype(np.uint16).reshape(16, 64)


def over_white(rgb: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """`rgb` uint8 `[H, W, 3]` with `alpha` uint8 `[H, W]` laid over white."""
    share = alpha[..., None] / 255
    return np.rint(rgb * share + 255 * (1 - share)).astype(np.uint8)


def upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """What a viewer shows of stored `pixels`: row 0 and column 0 are where EXIF 2.32, table 6 says."""
    turned = {
        1: pixels,
        2: pixels[:, ::-1],
        3: pixels[::-1, ::-1],
        4: pixels[::-1],
        5: pixels.swapaxes(0, 1),
        6: pixels.swapaxes(0, 1)[:, ::-1],
        7: pixels[::-1, ::-1].swapaxes(0, 1),
        8: pixels.swapaxes(0, 1)[::-1],
    }
    return turned[orientation]


def encoded(array: np.ndarray, picture_format: str, mode: str | None = None, **options: Any) -> bytes:
    """`array` written by Pillow."""
    image = Image.fromarray(array)
    return _saved(image.convert(mode) if mode else image, picture_format, **options)


def png(width: int, height: int, depth: int, colour_type: int, rows: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG by hand: `rows` are packed samples, each row without its filter byte."""
    stride = (len(rows) // height) if height else 0
    filtered = b"".join(b"\0" + rows[y * stride : (y + 1) * stride] for y in range(height))
    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    body = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(filtered, 1)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(name, data) for name, data in body)


def tiff(pixels: np.ndarray, order: str, *, photometric: int = 1, sample_format: int = 1) -> bytes:
    """An uncompressed grey TIFF by hand; `order` is `<` or `>`."""
    height, width = pixels.shape
    data = pixels.astype(pixels.dtype.newbyteorder(order)).tobytes()
    entries = [
        (256, 4, width),
        (257, 4, height),
        (258, 3, pixels.itemsize * 8),
        (259, 3, 1),
        (262, 3, photometric),
        (273, 4, 8),
        (277, 3, 1),
        (278, 4, height),
        (279, 4, len(data)),
        (339, 3, sample_format),
    ]
    directory = struct.pack(order + "H", len(entries))
    for tag, kind, value in entries:
        packed = struct.pack(order + ("H" if kind == 3 else "I"), value).ljust(4, b"\0")
        directory += struct.pack(order + "HHI", tag, kind, 1) + packed
    start = (b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, 8 + len(data))
    return start + data + directory + b"\0\0\0\0"


def endless_jpeg() -> bytes:
    """A small JPEG that takes some 20 s to decode: its last progressive scan comes 5,000 times."""
    data = encoded(np.full((2000, 2000), 99, dtype=np.uint8), "JPEG", progressive=True)
    last_scan = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + last_scan * 5000 + data[-2:]


def _saved(image: Image.Image, picture_format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, picture_format, **options)
    return buffer.getvalue()


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def _rgb_of(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[..., None], 3, axis=-1)


def _lossless() -> Iterator[_Made]:
    rgb, grey = colours(), greys()
    alpha = np.linspace(0, 255, HEIGHT * WIDTH).astype(np.uint8).reshape(HEIGHT, WIDTH)
    rgba, la = np.dstack([rgb, alpha]), np.dstack([grey, alpha])
    for name, picture_format, options in (
        ("rgb.png", "PNG", {}),
        ("rgb.bmp", "BMP", {}),
        ("rgb.tif", "TIFF", {}),
        ("rgb_lzw.tif", "TIFF", {"compression": "tiff_lzw"}),
        ("rgb_deflate.tiff", "TIFF", {"compression": "tiff_adobe_deflate"}),
        ("rgb.webp", "WEBP", {"lossless": True}),
    ):
        yield _Made(name, encoded(rgb, picture_format, **options), True, rgb)
    for name, picture_format in (("grey.png", "PNG"), ("grey.bmp", "BMP"), ("grey.tif", "TIFF"), ("grey.gif", "GIF")):
        yield _Made(name, encoded(grey, picture_format), True, _rgb_of(grey))
    bilevel = np.where(grey > 127, 255, 0).astype(np.uint8)
    for name, picture_format in (("bilevel.png", "PNG"), ("bilevel.tif", "TIFF"), ("bilevel.bmp", "BMP")):
        yield _Made(name, encoded(bilevel, picture_format, mode="1"), True, _rgb_of(bilevel))
    yield _Made("rgba.png", encoded(rgba, "PNG"), True, over_white(rgb, alpha), 1)
    yield _Made("rgba.tif", encoded(rgba, "TIFF"), True, over_white(rgb, alpha), 1)
    yield _Made("rgba.webp", encoded(rgba, "WEBP", lossless=True, exact=True), True, over_white(rgb, alpha), 1)
    yield _Made("la.png", encoded(la, "PNG"), True, over_white(_rgb_of(grey), alpha), 1)
    yield from _deep()
    yield from _palettes()
    yield from _animations()


def _deep() -> Iterator[_Made]:
    ramp = ramp_16_bit()
    height, width = ramp.shape
    eight_bits = _rgb_of(np.rint(ramp / 257).astype(np.uint8))
    big_endian = ramp.astype(">u2").tobytes()
    yield _Made("grey16.png", png(width, height, 16, 0, big_endian), True, eight_bits)
    yield _Made("grey16_intel.tif", tiff(ramp, "<"), True, eight_bits)
    yield _Made("grey16_motorola.tif", tiff(ramp, ">"), True, eight_bits)
    yield _Made("grey16_white_is_zero.tif", tiff(65_535 - ramp, "<", photometric=0), True, eight_bits)
    yield _Made("int32_of_16_bits.tif", tiff(ramp.astype(np.int32), "<", sample_format=2), True, eight_bits)
    signed = ramp.astype(np.int32) * 1000 - 10_000_000
    spread = (signed - signed.min()) / float(signed.max() - signed.min())
    yield _Made(
        "int32_signed.tif", tiff(signed, ">", sample_format=2), True, _rgb_of(np.rint(spread * 255).astype(np.uint8))
    )
    share = (ramp / 65_535).astype(np.float32)
    floats = _rgb_of(np.rint(share * 255.0).astype(np.uint8))
    yield _Made("float_0_to_1.tif", tiff(share, "<", sample_format=3), True, floats, 1)
    rgb16 = np.stack([ramp, ramp[::-1], ramp[:, ::-1]], axis=-1)
    yield _Made(
        "rgb16.png",
        png(width, height, 16, 2, rgb16.astype(">u2").tobytes()),
        True,
        np.rint(rgb16 / 257).astype(np.uint8),
        1,
    )
    nibbles = (np.arange(256) % 16).astype(np.uint8).reshape(16, 16)
    packed = (nibbles[:, 0::2] << 4 | nibbles[:, 1::2]).astype(np.uint8).tobytes()
    yield _Made("grey4.png", png(16, 16, 4, 0, packed), True, _rgb_of(nibbles * 17))


def _palettes() -> Iterator[_Made]:
    indices = (np.arange(HEIGHT * WIDTH) % 5).astype(np.uint8).reshape(HEIGHT, WIDTH)
    palette = np.array([[255, 0, 0], [0, 200, 0], [10, 20, 250], [90, 90, 0], [1, 2, 3]], dtype=np.uint8)
    image = Image.fromarray(indices)
    image.putpalette(palette.tobytes())
    for name, picture_format in (("palette.png", "PNG"), ("palette.gif", "GIF"), ("palette.bmp", "BMP")):
        yield _Made(name, _saved(image, picture_format), True, palette[indices])
    yield _Made("palette.tif", _saved(image, "TIFF"), True, palette[indices])
    cleared = palette[indices].copy()
    cleared[indices == 2] = 255
    yield _Made("palette_transparent.png", _saved(image, "PNG", transparency=2), True, cleared)
    yield _Made("palette_transparent.gif", _saved(image, "GIF", transparency=2), True, cleared)
    degrees = np.array([0, 60, 120, 200, 255], dtype=np.uint8)
    laid = over_white(palette[indices], degrees[indices])
    yield _Made("palette_translucent.png", _saved(image, "PNG", transparency=degrees.tobytes()), True, laid, 1)
    keyed = colours().copy()
    keyed[5:9, 5:9] = (1, 1, 1)
    shown = keyed.copy()
    shown[5:9, 5:9] = 255
    key = (b"tRNS", struct.pack(">HHH", 1, 1, 1))
    yield _Made("rgb_transparent_colour.png", png(WIDTH, HEIGHT, 8, 2, keyed.tobytes(), key), True, shown)


def _animations() -> Iterator[_Made]:
    first, others = colours(), [colours()[::-1], 255 - colours()]
    frames = [Image.fromarray(np.ascontiguousarray(frame)) for frame in others]
    for name, picture_format, options in (
        ("animated.png", "PNG", {}),
        ("animated.webp", "WEBP", {"lossless": True}),
        ("pages.tif", "TIFF", {}),
    ):
        data = encoded(first, picture_format, save_all=True, append_images=frames, **options)
        yield _Made(name, data, True, first)
    grey = greys()
    more = [Image.fromarray(255 - grey), Image.fromarray(np.ascontiguousarray(grey[::-1]))]
    data = encoded(grey, "GIF", save_all=True, append_images=more, duration=50)
    yield _Made("animated.gif", data, True, _rgb_of(grey))


def _lossy() -> Iterator[_Made]:
    rgb, grey = colours(), greys()
    finest = {"quality": 98, "subsampling": 0}
    jpeg = encoded(rgb, "JPEG", **finest)
    yield _Made("rgb.jpg", jpeg, True, rgb, 6)
    yield _Made("progressive.jpeg", encoded(rgb, "JPEG", progressive=True, **finest), True, rgb, 6)
    yield _Made("grey.jpg", encoded(grey, "JPEG", quality=98), True, _rgb_of(grey), 6)
    yield _Made("lossy.webp", encoded(rgb, "WEBP", quality=98), True, rgb, 16)
    cyan_magenta_yellow = 255 - rgb
    black = np.full((HEIGHT, WIDTH), 30, dtype=np.uint8)
    bands = (*np.moveaxis(cyan_magenta_yellow, -1, 0), black)
    separations = Image.merge("CMYK", [Image.fromarray(np.ascontiguousarray(band)) for band in bands])
    mixed = np.rint(rgb * ((255 - 30) / 255)).astype(np.uint8)
    yield _Made("cmyk.jpg", _saved(separations, "JPEG", quality=98, subsampling=0), True, mixed, 8)
    yield _Made("cmyk.tif", _saved(separations, "TIFF"), True, mixed, 1)
    yield _Made("garbage_behind.jpg", jpeg + bytes(range(256)) * 40, True, rgb, 6)
    yield _Made("broken_exif.jpg", _with_segment(jpeg, 0xE1, b"Exif\0\0II*\0\xff\xff\xff\xff garbage"), True, rgb, 6)
    profile = b"ICC_PROFILE\0\x01\x01" + b"no profile at all" * 9
    yield _Made("broken_profile.jpg", _with_segment(jpeg, 0xE2, profile), True, rgb, 6)
    yield _Made("broken_multi_picture.jpg", _with_segment(jpeg, 0xE2, b"MPF\0II*\0\x08\0\0\0\x01\0"), True, rgb, 6)
    yield _Made("really_a_jpeg.png", jpeg, True, rgb, 6)
    yield _Made("UPPERCASE.JPG", jpeg, True, rgb, 6)
    yield _Made("no_extension", jpeg, True, rgb, 6)
    several = encoded(rgb, "MPO", save_all=True, append_images=[Image.fromarray(255 - rgb)], **finest)
    yield _Made("several_pictures.jpg", several, True, rgb, 6)


def _with_segment(jpeg: bytes, marker: int, payload: bytes) -> bytes:
    return jpeg[:2] + struct.pack(">BBH", 0xFF, marker, len(payload) + 2) + payload + jpeg[2:]


def _oriented() -> Iterator[_Made]:
    rgb = colours()
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        shown = upright(rgb, orientation)
        data = encoded(rgb, "JPEG", quality=98, subsampling=0, exif=exif)
        yield _Made(f"orientation{orientation}.jpg", data, True, shown, 6)
        if orientation in (3, 6):
            yield _Made(f"orientation{orientation}.png", encoded(rgb, "PNG", exif=exif), True, shown)
            webp = encoded(rgb, "WEBP", lossless=True, exif=exif)
            yield _Made(f"orientation{orientation}.webp", webp, True, shown)
            tags = TiffImagePlugin.ImageFileDirectory_v2()
            tags[274] = orientation
            yield _Made(f"orientation{orientation}.tif", encoded(rgb, "TIFF", tiffinfo=tags), True, shown)
    exif = Image.Exif()
    exif[0x0112] = 99
    yield _Made("orientation99.png", encoded(rgb, "PNG", exif=exif), True, rgb)


def _odd_names() -> Iterator[_Made]:
    rgb = colours()
    data = encoded(rgb, "PNG")
    names = ["고양이 사진.png", "two  spaces .png", "'quotes\" and `ticks`.png", "<b>bold</b>.png".replace("/", "∕")]
    names += [
        "-leading-dash.png",
        ".leading_dot.png",
        "new\nline.png",
        "%s {0} $HOME.png",
        "🐈.png",
        "x" * 240 + ".png",
    ]
    names += [os.fsdecode(b"not_utf8_\xff\xfe.png")]
    for name in names:
        yield _Made(name, data, True, rgb)


def _odd_but_fine() -> Iterator[_Made]:
    one = np.array([[[7, 8, 9]]], dtype=np.uint8)
    yield _Made("one_pixel.png", encoded(one, "PNG"), True, one)
    tall = _rgb_of((np.arange(5000) % 251).astype(np.uint8)[:, None])
    yield _Made("1x5000.png", encoded(tall, "PNG"), True, tall)
    yield _Made("5000x1.png", encoded(np.ascontiguousarray(tall.swapaxes(0, 1)), "PNG"), True, tall.swapaxes(0, 1))
    yield _Made("81_megapixels.png", png(9000, 9000, 1, 0, bytes(9000 // 8 * 9000)), True)


def _malformed() -> Iterator[_Made]:
    rgb = np.random.Generator(np.random.Philox(1)).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    whole = {
        "jpg": encoded(rgb, "JPEG"),
        "progressive.jpg": encoded(rgb, "JPEG", progressive=True),
        "png": encoded(rgb, "PNG"),
        "gif": encoded(rgb[..., 0], "GIF"),
        "webp": encoded(rgb, "WEBP"),
        "lossless.webp": encoded(rgb, "WEBP", lossless=True),
        "bmp": encoded(rgb, "BMP"),
        "tif": encoded(rgb, "TIFF"),
        "lzw.tif": encoded(rgb, "TIFF", compression="tiff_lzw"),
    }
    for ending, data in whole.items():
        for percent in (1, 30, 60, 90):
            yield _Made(f"cut_at_{percent}_percent.{ending}", data[: len(data) * percent // 100], False)
    for ending in ("jpg", "png", "gif", "webp", "bmp", "tif"):
        yield _Made(f"flipped_start.{ending}", bytes([whole[ending][0] ^ 0x10]) + whole[ending][1:], False)
    wrong = bytearray(whole["png"])
    wrong[20] ^= 0xFF
    yield _Made("wrong_checksum.png", bytes(wrong), False)
    wrong = bytearray(whole["png"])
    wrong[60:90] = bytes(30)
    yield _Made("broken_data.png", bytes(wrong), False)
    yield _Made("no_pixels.png", png(0, 0, 8, 2, b""), False)
    yield _Made("no_width.png", png(0, 5, 8, 2, b""), False)
    yield _Made("no_pixels.gif", b"GIF89a" + bytes(7) + b"\x2c" + bytes(9) + b"\x02\x02\x4c\x01\x00\x3b", False)
    yield _Made("empty.jpg", b"", False)
    yield _Made("one_byte.png", b"\x89", False)
    yield _Made("zeros.jpg", bytes(5000), False)
    yield _Made("noise.jpg", rgb.tobytes(), False)
    yield _Made("text.jpg", b"This is not a picture.\n" * 9, False)
    yield _Made("page.jpg", b"<!DOCTYPE html><html><body>404</body></html>", False)
    yield _Made("drawing.svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>", False)
    yield _Made("document.jpg", b"%PDF-1.4\n%%EOF", False)
    yield _Made("photo.heic", b"\0\0\0\x18ftypheic" + bytes(400), False)
    yield _Made("labels.json", b'{"cat": 1}', False)
    for name, picture_format in (
        ("icon.ico", "ICO"),
        ("plain.ppm", "PPM"),
        ("photo.jp2", "JPEG2000"),
        ("x.tga", "TGA"),
    ):
        yield _Made(name, encoded(rgb, picture_format), False)
    yield _Made("only_start.jpg", b"\xff\xd8\xff", False)
    yield _Made("only_ends.jpg", b"\xff\xd8\xff\xd9", False)


def _bombs() -> Iterator[_Made]:
    zeros = zlib.compress(bytes(100 * 1024**2), 1)
    picture = (1, 1, 8, 2, b"\1\2\3")
    yield _Made("text_bomb.png", png(*picture, (b"zTXt", b"k\0\0" + zeros)), False)
    yield _Made("international_text_bomb.png", png(*picture, (b"iTXt", b"k\0\1\0\0\0" + zeros)), False)
    yield _Made("profile_bomb.png", png(*picture, (b"iCCP", b"p\0\0" + zeros)), False)
    huge = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", huge)
    yield _Made("huge_canvas.png", start + _chunk(b"IDAT", zeros) + _chunk(b"IEND", b""), False)
    over_cap = struct.pack(">IIBBBBB", 13_000, 13_000, 1, 0, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", over_cap)
    rows = zlib.compress(bytes((13_000 // 8 + 1) * 13_000))
    yield _Made("just_over_the_cap.png", data + _chunk(b"IDAT", rows) + _chunk(b"IEND", b""), False)
    gif = b"GIF89a" + struct.pack("<HHBBB", 65_535, 65_535, 0, 0, 0)
    yield _Made("huge_canvas.gif", gif + b"\x2c" + struct.pack("<HHHHB", 0, 0, 65_535, 65_535, 0) + b"\2\0\x3b", False)
    extended = b"VP8X" + struct.pack("<IB3x", 10, 2) + b"\xff\xff\x00\xff\xff\x00"
    yield _Made("huge_canvas.webp", b"RIFF" + struct.pack("<I", 4 + len(extended)) + b"WEBP" + extended, False)
    bmp = struct.pack("<IiiHHIIiiII", 40, 100_000, 100_000, 1, 24, 0, 0, 0, 0, 0, 0)
    yield _Made("huge_canvas.bmp", b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + bmp, False)
    counts = b"".join(struct.pack("<HHII", tag, 5, 0x0FFFFFFF, 8) for tag in (256, 257, 258, 273, 279, 320))
    yield _Made("huge_tags.tif", b"II*\0\x08\0\0\0" + struct.pack("<H", 6) + counts + b"\0\0\0\0", False)
    yield _Made("endless_pages.tif", b"II*\0\x08\0\0\0" + struct.pack("<HI", 0, 8), False)


def _special_files(folder: Path) -> Iterator[CorpusFile]:
    too_large = folder / "too_large.bmp"
    with too_large.open("wb") as file:
        file.truncate(300 * 1024**2)
    yield CorpusFile(too_large, False)
    directory = folder / "folder.jpg"
    directory.mkdir()
    yield CorpusFile(directory, False)
    if hasattr(os, "mkfifo"):
        os.mkfifo(folder / "pipe.jpg")
        yield CorpusFile(folder / "pipe.jpg", False)
    with contextlib.suppress(OSError):  # Windows asks for a privilege
        for name, target, valid in (
            ("dangling.jpg", "nowhere.jpg", False),
            ("loop.jpg", "loop.jpg", False),
            ("link.png", "rgb.png", True),
            ("device.jpg", "/dev/zero", False),
        ):
            (folder / name).symlink_to(target)
            yield CorpusFile(folder / name, valid, colours() if valid else None)
    yield CorpusFile(folder / "there_is_no_such_file.jpg", False)
