"""The pictures of the measurements: arrays of noise in memory, and a folder of JPEG files."""

from __future__ import annotations

import shutil
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from benchmarks.suite.clock import made_pictures

# What netloom tests on at the end, and libraries validate on where they have to or where that is what is timed.
HELD_OUT = 20
_ARCHIVE = "cats_and_dogs_small.zip"


def noise(shape: tuple[int, int, int], classes: int, count: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Pictures uint8 `[N, H, W, C]` and labels int64 `[N]`, the same at every call."""
    began = time.perf_counter()
    pixels = np.random.default_rng(0).integers(0, 256, (count, *shape), dtype=np.uint8)
    made_pictures(time.perf_counter() - began)
    return pixels, np.arange(count, dtype=np.int64) % classes


def photo_folder(folder: Path, archive_folder: Path | None, count: int) -> Path:
    """`train`, `validation` and `test` with two classes each, made where they are not there yet.

    The pictures are those of cats_and_dogs_small.zip where `archive_folder` holds it, else generated ones of about the
    same size (500x375, some 25 KB). All but `2 * HELD_OUT` are for training.
    """
    finished = folder / "finished"
    if finished.is_file():
        return folder / "pictures"
    print(f"Making a folder of {count:,} JPEG files ...", file=sys.stderr)
    shutil.rmtree(folder, ignore_errors=True)
    archive = archive_folder / _ARCHIVE if archive_folder else None
    pictures = folder / "pictures"
    if archive is not None and archive.is_file():
        _unpack(archive, pictures, count)
    else:
        _generate(pictures, count)
    finished.touch()
    return pictures


def source_of_photos(archive_folder: Path | None) -> str:
    """What `photo_folder` makes its pictures of, for the record."""
    return _ARCHIVE if archive_folder and (archive_folder / _ARCHIVE).is_file() else "generated"


def _place(folder: Path, number: int, count: int, label: str) -> Path:
    """Where picture `number` of `count` belongs; the held-out parts come last."""
    part = "train" if number < count - 2 * HELD_OUT else "validation" if number < count - HELD_OUT else "test"
    path = folder / part / label / f"{number:05}.jpg"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _unpack(archive: Path, folder: Path, count: int) -> None:
    with zipfile.ZipFile(archive) as opened:
        names = sorted(name for name in opened.namelist() if name.lower().endswith(".jpg"))
        by_class = {label: [n for n in names if Path(n).parent.name == label] for label in ("cats", "dogs")}
        for number in range(count):
            label = ("cats", "dogs")[number % 2]
            _place(folder, number, count, label).write_bytes(opened.read(by_class[label][number // 2]))


def _generate(folder: Path, count: int) -> None:
    """Smooth colours with noise on top: files and decoding times of photographs."""
    generator = np.random.default_rng(0)
    for number in range(count):
        coarse = generator.integers(0, 256, (12, 16, 3), dtype=np.uint8)
        smooth = np.asarray(Image.fromarray(coarse).resize((500, 375), Image.Resampling.BICUBIC), dtype=np.int16)
        pixels = np.clip(smooth + generator.integers(-12, 13, smooth.shape, dtype=np.int16), 0, 255)
        path = _place(folder, number, count, ("first", "second")[number % 2])
        Image.fromarray(pixels.astype(np.uint8)).save(path, quality=75)
