"""Decoded pictures in a folder of the cache: their pixels as one array file, and what is known of each."""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from netloom.data.mapping import map_pixels

PIXELS_FILE = "pixels.npy"
PICTURES_FILE = "pictures.json"
_MOST_BYTES_MOVED = 8 * 1024**2


@dataclass(frozen=True)
class DecodedPictures:
    """The readable pictures of a source, in its order.

    Attributes:
        pixels: uint8 `[n, H, W, C]`, C being 1 or 3; mapped from the cache,
            copy-on-write if they fit the memory, else read-only.
        readable: int64 `[n]`, where in the source each picture is, ascending.
        rejected: Index into the source and reason of every picture that is left out, ascending.
        widths: int32 `[n]`, pixels across before resizing, after the EXIF orientation.
        heights: int32 `[n]`, pixels down likewise.
        modes: Pillow's names of the stored colour modes.
        formats: Pillow's names of the file formats.
        content_hashes: BLAKE2b of each file's bytes, 32 hexadecimal digits.
    """

    pixels: npt.NDArray[np.uint8]
    readable: npt.NDArray[np.int64]
    rejected: list[tuple[int, str]]
    widths: npt.NDArray[np.int32]
    heights: npt.NDArray[np.int32]
    modes: list[str]
    formats: list[str]
    content_hashes: list[str]


def reserve_pixels(path: Path, shape: tuple[int, ...]) -> int:
    """Make an .npy file of that shape, claim its room on the disk; where its first pixel is.

    Raises:
        OSError: `ENOSPC`: there is not enough room.
    """
    with path.open("wb") as file:
        _write_header(file, shape)
        offset = file.tell()
        n_bytes = offset + math.prod(shape)
        if shutil.disk_usage(path).free < n_bytes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        file.truncate(n_bytes)
    return offset


def _write_header(file: BinaryIO, shape: tuple[int, ...]) -> None:
    # NumPy leaves room for a first axis of any length: the header's size does not depend on it.
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)


def close_gaps(path: Path, readable: npt.NDArray[np.int64]) -> None:
    """Move the rows `readable` (ascending) to the front and cut the others off."""
    pixels = np.load(path, mmap_mode="r")
    shape = (len(readable), *pixels.shape[1:])
    row_bytes = math.prod(shape[1:])
    n_block = 1 + _MOST_BYTES_MOVED // row_bytes
    with path.open("r+b") as file:
        _write_header(file, shape)
        first_offset = file.tell()
        if len(readable) < len(pixels):
            for start in range(0, len(readable), n_block):
                # A row only ever moves forward, so that none is overwritten before it is read.
                # Written to the file, not the mapping: a full disk then is an error, no signal.
                file.write(pixels[readable[start : start + n_block]].data)
                file.flush()
        del pixels  # Windows cuts no file that is mapped
        file.truncate(first_offset + len(readable) * row_bytes)
        os.fsync(file.fileno())


def write_columns(path: Path, answers: dict[int, list[Any]]) -> None:
    """Write what is known of the pictures as JSON columns: 60,000 load in 0.05 s."""
    readable = [i for i in sorted(answers) if answers[i][0] == "ok"]
    names = ("content_hashes", "widths", "heights", "modes", "formats")
    columns = {name: [answers[i][k] for i in readable] for k, name in enumerate(names, start=1)}
    rejected = [(i, answers[i][1]) for i in sorted(answers) if answers[i][0] != "ok"]
    content = {"n_locations": len(answers), "readable": readable, "rejected": rejected, **columns}
    with path.open("w", encoding="ascii") as file:
        file.write(json.dumps(content))  # json.dump would take ten times as long
        file.flush()
        os.fsync(file.fileno())


def load_entry(entry: Path, n_locations: int) -> DecodedPictures:
    """Map an entry.

    Raises:
        OSError, ValueError, KeyError: It is incomplete, damaged, or of other pictures.
    """
    pixels = map_pixels(entry / PIXELS_FILE)
    content = json.loads((entry / PICTURES_FILE).read_text(encoding="ascii"))
    if content["n_locations"] != n_locations or len(content["readable"]) != len(pixels):
        raise ValueError(f"{entry} does not hold {n_locations} pictures.")
    return DecodedPictures(
        pixels=pixels,
        readable=np.array(content["readable"], dtype=np.int64),
        rejected=[(index, reason) for index, reason in content["rejected"]],
        widths=np.array(content["widths"], dtype=np.int32),
        heights=np.array(content["heights"], dtype=np.int32),
        modes=content["modes"],
        formats=content["formats"],
        content_hashes=content["content_hashes"],
    )
