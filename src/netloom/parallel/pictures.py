"""One copy of the decoded pictures for all processes of a job: a file that each of them maps into its memory."""

from __future__ import annotations

import contextlib
import json
import math
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from netloom.data.imageset import ImageSet, channels_last_images
from netloom.data.mapping import Pixels, map_pixels
from netloom.errors import DataError

_PIXELS_FILE = "pixels.npy"
_LABELS_FILE = "labels.json"


@dataclass(frozen=True)
class SharedPictures:
    """Where the pictures of an ImageSet are, for other processes of this machine.

    Attributes:
        folder: Temporary; holds the labels and, where the pictures were in memory only, their pixels.
        pixels: An .npy file, uint8 `[N, H, W, C]`: the decode cache's or the folder's own.
    """

    folder: str
    pixels: str

    def to_json(self) -> dict[str, Any]:
        """Plain arguments of `map_pictures`."""
        return {"folder": self.folder, "pixels": self.pixels}


@contextlib.contextmanager
def sharing(image_set: ImageSet, pixels_file: Path | None) -> Iterator[SharedPictures]:
    """Make the pictures available to other processes for the body.

    Args:
        image_set: In main memory.
        pixels_file: The .npy file that its pixels are mapped from, in the same order; None where they are only in
            memory, and are written into a temporary file once.

    Raises:
        DataError: The disk is full, or there is no temporary folder.
    """
    folder = None
    try:
        folder = Path(tempfile.mkdtemp(prefix="netloom-pictures-"))
        if pixels_file is None:
            pixels_file = folder / _PIXELS_FILE
            np.save(pixels_file, pixels_of(image_set), allow_pickle=False)
        # ASCII, since ids of files whose names are no text hold lone surrogates.
        (folder / _LABELS_FILE).write_text(json.dumps(labels_of(image_set)), encoding="ascii")
    except OSError as error:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
        raise DataError(
            f"The pictures cannot be shared between processes ({error.strerror or error}): "
            f"{math.ceil(image_set.images.numel() / 1e6):,} MB are needed in {tempfile.gettempdir()}. Free some space, "
            "set TMPDIR to a folder that has it, or use --jobs 1."
        ) from error
    try:
        yield SharedPictures(str(folder), str(pixels_file))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def map_pictures(*, folder: str, pixels: str) -> ImageSet:
    """The pictures of `sharing` in another process, without given parts, which serve the split.

    The pixels are mapped copy-on-write: all processes use the same physical memory as long as nobody writes, and what
    is written is seen by the writer alone.

    Raises:
        DataError: The files are gone.
    """
    try:
        array = map_pixels(Path(pixels))
        labels = json.loads((Path(folder) / _LABELS_FILE).read_text(encoding="ascii"))
    except (OSError, ValueError) as error:
        raise DataError(
            f"The decoded pictures at {pixels} are gone ({error}), perhaps because the cache was "
            "emptied. Start again; a larger NETLOOM_CACHE_LIMIT_GB keeps them longer."
        ) from error
    return pictures_of(array, labels)


def pixels_of(image_set: ImageSet) -> Pixels:
    """The pictures, uint8 `[N, H, W, C]`, without a copy; the ImageSet is in main memory."""
    return cast(Pixels, image_set.images.permute(0, 2, 3, 1).numpy())


def labels_of(image_set: ImageSet) -> dict[str, Any]:
    """What else `pictures_of` needs, as plain values."""
    return {
        "targets": image_set.targets.tolist(),
        "class_names": list(image_set.class_names),
        "ids": list(image_set.ids),
        "weights": None if image_set.weights is None else image_set.weights.tolist(),
        "groups": None if image_set.groups is None else list(image_set.groups),
        "content_hashes": None if image_set.content_hashes is None else list(image_set.content_hashes),
    }


def pictures_of(pixels: Pixels, labels: Mapping[str, Any]) -> ImageSet:
    """The ImageSet that `pixels_of` and `labels_of` were taken from, without given parts.

    Pixels that cannot be written are not copied, since they are other processes' too; nobody may write into them.
    """
    weights, groups, hashes = labels["weights"], labels["groups"], labels["content_hashes"]
    return ImageSet(
        images=channels_last_images(pixels, copy_read_only=False),
        targets=torch.tensor(labels["targets"], dtype=torch.int64),
        class_names=tuple(labels["class_names"]),
        ids=tuple(labels["ids"]),
        weights=None if weights is None else torch.tensor(weights, dtype=torch.float32),
        groups=None if groups is None else tuple(groups),
        content_hashes=None if hashes is None else tuple(hashes),
    )


@contextlib.contextmanager
def sharing_all(image_sets: Sequence[tuple[ImageSet, Path | None]]) -> Iterator[list[SharedPictures]]:
    """As `sharing`, for several sets and the files that their pixels are mapped from."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(sharing(image_set, pixels_file)) for image_set, pixels_file in image_sets]


def received_pictures(
    *,
    pictures: Sequence[Mapping[str, str]] = (),
    labels: Sequence[Mapping[str, Any]] = (),
    **pixels: Pixels,
) -> list[ImageSet]:
    """The sets of pictures in a worker, however they came: as files of this machine, or as arrays from another.

    Args:
        pictures: Arguments of `map_pictures` for each.
        labels: As `labels_of` gave them, in place of `pictures`.
        **pixels: For each of `labels`, `pixels_0` and so on, as `pixels_of` gave them.
    """
    if pictures:
        return [map_pictures(**files) for files in pictures]
    return [pictures_of(pixels[f"pixels_{number}"], each) for number, each in enumerate(labels)]
