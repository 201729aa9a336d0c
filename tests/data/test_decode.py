"""Decoding one picture, against source pixels, torchvision and the luma formula."""

from __future__ import annotations

import importlib
import io
import subprocess
import sys
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from netloom.data.decode import (
    MAX_PIXELS,
    DecodedPicture,
    Resize,
    UnreadablePictureError,
    decode_picture,
    probe_picture,
)
from netloom.data.location import FileLocation, read_bytes
from netloom.torchvision_shim import torchvision
from picture_corpus import CorpusFile, colours, encoded, greys, png, ramp_16_bit, tiff, upright, write_corpus

torchvision()
F = importlib.import_module("torchvision.transforms.v2.functional")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> list[CorpusFile]:
    return write_corpus(tmp_path_factory.mktemp("corpus"))


def _decode(data: bytes, size: tuple[int, int] | None = None, resize: Resize = "stretch") -> DecodedPicture:
    return decode_picture(data, size=size, resize=resize, channels=3)


def _reason(data: bytes) -> str:
    with pytest.raises(UnreadablePictureError) as caught:
        _decode(data)
    return caught.value.reason


def _levels_apart(a: np.ndarray, b: np.ndarray) -> int:
    return int(np.abs(a.astype(int) - b.astype(int)).max())


def test_corpus_is_large_and_has_both_kinds(corpus: list[CorpusFile]) -> None:
    assert sum(file.valid for file in corpus) >= 60
    assert sum(not file.valid for file in corpus) >= 60


def test_each_valid_file_gives_its_source_pixels(corpus: list[CorpusFile]) -> None:
    wrong = {}
    for file in corpus:
        if file.valid and file.expected is not None:
            picture = _decode(read_bytes(FileLocation(str(file.path))))
            if picture.pixels.shape != file.expected.shape:
                wrong[file.path.name] = str(picture.pixels.shape)
            elif _levels_apart(picture.pixels, file.expected) > file.tolerance:
                wrong[file.path.name] = f"{_levels_apart(picture.pixels, file.expected)} levels off"
            elif (picture.height, picture.width) != file.expected.shape[:2]:
                wrong[file.path.name] = f"says {picture.width} x {picture.height}"
    assert wrong == {}


def test_each_bad_file_is_refused_at_once_with_a_reason(corpus: list[CorpusFile]) -> None:
    reasons = {}
    for file in corpus:
        if not file.valid:
            start = time.monotonic()
            try:
                _decode(read_bytes(FileLocation(str(file.path))))
                reasons[file.path.name] = "accepted"
            except UnreadablePictureError as error:
                reasons[file.path.name] = error.reason
            assert time.monotonic() - start < 2, file.path.name
    assert [name for name, reason in reasons.items() if reason in ("accepted", "")] == []


def test_headers_agree_with_decoding(corpus: list[CorpusFile]) -> None:
    for file in corpus:
        if file.valid and file.expected is not None:
            header = probe_picture(file.path.read_bytes())
            picture = _decode(file.path.read_bytes())
            assert vars(header).items() <= vars(picture).items(), file.path.name


@pytest.mark.skipif(sys.platform == "win32", reason="peak memory is read through the resource module")
def test_bombs_take_little_memory(corpus: list[CorpusFile]) -> None:
    bombs = [str(file.path) for file in corpus if "bomb" in file.path.name or "huge" in file.path.name]
    assert len(bombs) >= 8
    script = (
        "import resource, sys\n"
        "from pathlib import Path\n"
        "from netloom.data.decode import UnreadablePictureError, decode_picture\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "for path in sys.argv[1:]:\n"
        "    try:\n"
        "        decode_picture(Path(path).read_bytes(), size=None, resize='stretch', channels=3)\n"
        "    except UnreadablePictureError:\n"
        "        pass\n"
        "after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "print((after - before) / (1024 if sys.platform == 'linux' else 1024**2))\n"
    )
    grown_mib = float(subprocess.run([sys.executable, "-c", script, *bombs], capture_output=True, check=True).stdout)
    assert grown_mib < 60


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", "empty"),
        (b"not a picture at all", "text"),
        (b"<html><body>404", "web page"),
        (b"%PDF-1.7", "PDF"),
        (b"\0\0\0\x18ftypheicmif1", "HEIC"),
        (encoded(colours(), "JPEG")[:500], "cut off"),
        (encoded(colours(), "WEBP")[:100], "cut off"),
        (png(20_000, 20_000, 1, 0, b""), "megapixels"),
        (encoded(colours(), "PPM"), "supported"),
    ],
)
def test_reasons_are_for_people(data: bytes, expected: str) -> None:
    assert expected in _reason(data)


def test_grey_output_is_itu_r_601_luma() -> None:
    picture = decode_picture(encoded(colours(), "PNG"), size=None, resize="stretch", channels=1)
    luma = colours() @ np.array([0.299, 0.587, 0.114])
    assert picture.pixels.shape == (*colours().shape[:2], 1)
    assert np.abs(picture.pixels[..., 0] - luma).max() <= 0.51


def test_sixteen_bit_ramp_keeps_its_levels() -> None:
    picture = decode_picture(tiff(ramp_16_bit(), ">"), size=None, resize="stretch", channels=1)
    np.testing.assert_array_equal(picture.pixels[..., 0], np.rint(ramp_16_bit() / 257))
    assert len(np.unique(picture.pixels)) == 256


def test_transparent_value_of_16_bit_grey_is_white() -> None:
    ramp = ramp_16_bit()
    key = int(ramp[3, 3])
    data = png(64, 16, 16, 0, ramp.astype(">u2").tobytes(), (b"tRNS", key.to_bytes(2, "big")))
    assert _decode(data).pixels[3, 3].tolist() == [255, 255, 255]
    assert _decode(data).pixels[3, 4, 0] == round(int(ramp[3, 4]) / 257)


def test_pixels_are_writable_and_contiguous() -> None:
    pixels = _decode(encoded(greys(), "PNG"), (10, 10)).pixels
    assert pixels.flags.writeable
    assert pixels.flags.c_contiguous
    assert pixels.dtype == np.uint8


@pytest.mark.parametrize("shape", [(24, 36), (37, 23), (200, 51), (9, 9)])
def test_stretch_is_torchvision_resize(shape: tuple[int, int]) -> None:
    source = np.random.Generator(np.random.Philox(3)).integers(0, 256, (*shape, 3), dtype=np.uint8)
    reference = F.resize(Image.fromarray(source), [20, 28])
    np.testing.assert_array_equal(_decode(encoded(source, "PNG"), (20, 28)).pixels, np.asarray(reference))


@pytest.mark.parametrize("shape", [(24, 36), (37, 23), (201, 50), (9, 9), (5, 80)])
def test_crop_is_torchvision_resize_and_center_crop(shape: tuple[int, int]) -> None:
    source = np.random.Generator(np.random.Philox(4)).integers(0, 256, (*shape, 3), dtype=np.uint8)
    reference = F.center_crop(F.resize(Image.fromarray(source), [16]), [16, 16])
    picture = _decode(encoded(source, "PNG"), (16, 16), "crop")
    assert _levels_apart(picture.pixels, np.asarray(reference)) <= 1


def test_crop_of_a_strip_scales_only_what_stays() -> None:
    strip = encoded(np.zeros((5000, 1), dtype=np.uint8), "PNG")
    start = time.monotonic()
    assert _decode(strip, (224, 224), "crop").pixels.shape == (224, 224, 3)
    assert time.monotonic() - start < 0.5


def test_pad_keeps_the_shape_on_black() -> None:
    white = np.full((20, 40, 3), 255, dtype=np.uint8)
    wide = _decode(encoded(white, "PNG"), (32, 32), "pad").pixels
    assert (wide[8:24] == 255).all()
    assert (wide[:8] == 0).all()
    assert (wide[24:] == 0).all()
    tall = _decode(encoded(np.ascontiguousarray(white.swapaxes(0, 1)), "PNG"), (32, 32), "pad").pixels
    np.testing.assert_array_equal(tall, wide.swapaxes(0, 1))
    line = _decode(encoded(np.full((1, 5000), 255, dtype=np.uint8), "PNG"), (9, 9), "pad").pixels
    assert (line[4] == 255).all()
    assert int(line.sum()) == 9 * 3 * 255


@pytest.mark.parametrize(
    ("orientation", "resize"),
    [*((o, "stretch") for o in range(1, 9)), (1, "crop"), (6, "crop"), (1, "pad"), (6, "pad")],
)
def test_jpegs_decoded_smaller_look_the_same(orientation: int, resize: Resize) -> None:
    """Against the lossless picture at full size; 803 x 601 leaves part of a block at either end."""
    y, x = np.mgrid[0:601, 0:803]
    waves = 128 + 100 * np.sin(x / 20 + y / 45)
    source = np.stack([waves, 255 - waves, x / 4], axis=-1).clip(0, 255).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    drafted = _decode(encoded(source, "JPEG", quality=95, exif=exif), (48, 64), resize)
    shown = np.ascontiguousarray(upright(source, orientation))
    full = _decode(encoded(shown, "PNG"), (48, 64), resize)
    assert (drafted.width, drafted.height) == (full.width, full.height) == shown.shape[1::-1]
    assert np.abs(drafted.pixels.astype(int) - full.pixels).mean() < 0.5
    assert _levels_apart(drafted.pixels, full.pixels) <= 10


def test_jpegs_are_drafted_only_down_to_twice_the_target(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow's own account of the size it decoded at, for pictures on either side of the limit."""
    sizes = []
    resize = Image.Image.resize
    monkeypatch.setattr(Image.Image, "resize", lambda self, *a, **k: sizes.append(self.size) or resize(self, *a, **k))
    for width in (511, 512, 1023, 1024, 2048):
        _decode(encoded(np.zeros((width, width, 3), dtype=np.uint8), "JPEG"), (128, 128))
    assert sizes == [(511, 511), (256, 256), (512, 512), (256, 256), (256, 256)]


def test_callers_warning_filters_and_pillow_settings_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    warns = png(9_600, 9_600, 1, 0, bytes(1200 * 9600))  # above Pillow's warning, below the cap
    assert Image.MAX_IMAGE_PIXELS is not None
    assert Image.MAX_IMAGE_PIXELS < 9_600**2 < MAX_PIXELS
    settings, filters = Image.MAX_IMAGE_PIXELS, list(warnings.filters)
    with ThreadPoolExecutor(8) as threads:
        headers = list(threads.map(probe_picture, [warns] * 200))
    assert {header.width for header in headers} == {9_600}
    assert list(warnings.filters) == filters
    assert settings == Image.MAX_IMAGE_PIXELS
    with pytest.raises(UserWarning, match="still heard"):
        warnings.warn("still heard", UserWarning, stacklevel=1)


@pytest.mark.parametrize("error", [MemoryError(), RecursionError(), ValueError("x"), KeyError(1), OverflowError()])
def test_whatever_pillow_raises_is_a_reason(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(Image, "open", fail)
    assert _reason(b"anything")


def test_importing_the_decoder_is_light() -> None:
    script = "import sys, netloom.data.decode_worker; print(sorted({'torch', 'scipy', 'pydantic'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True, text=True)
    assert result.stdout.strip() == "[]"


def test_reads_only_whole_regular_files(tmp_path: Path) -> None:
    buffer = io.BytesIO(b"bytes")
    (tmp_path / "file").write_bytes(buffer.getvalue())
    assert read_bytes(FileLocation(str(tmp_path / "file"))) == b"bytes"
    with pytest.raises(UnreadablePictureError, match="folder"):
        read_bytes(FileLocation(str(tmp_path)))
    with pytest.raises(UnreadablePictureError, match="no such file"):
        read_bytes(FileLocation(str(tmp_path / "nul\0byte").replace("nul\0byte", "absent")))
    with pytest.raises(UnreadablePictureError):
        read_bytes(FileLocation("nul\0byte"))
