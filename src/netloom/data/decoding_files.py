"""Pictures that are looked at once: decoded batch by batch in isolated workers, without a cache."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from netloom.data.decode import Resize
from netloom.data.location import Location
from netloom.data.worker_pool import Task, WorkerPool
from netloom.errors import DataError

Decoded = list["npt.NDArray[np.uint8] | str"]
"""Of each picture its pixels `[H, W, C]`, or why it cannot be read."""

_PICTURES_PER_WORKER = 16  # fewer do not repay the 0.15 s that a worker takes to start
_MAX_CHUNK_PICTURES = 16


def decode_in_batches(
    locations: Sequence[Location],
    *,
    batch_size: int,
    image_size: tuple[int, int],
    resize: Resize,
    channels: int,
    jobs: int,
    picture_timeout_seconds: float = 60,
) -> Iterator[Decoded]:
    """Decode pictures in their order; one that crashes its decoder, or takes too long, costs itself only.

    Args:
        locations: Where the pictures are.
        batch_size: How many are given at a time.
        image_size: Height and width of the decoded pictures, in pixels.
        resize: As for `netloom.data.decode.decode_picture`.
        channels: 1 for grey, 3 for colour.
        jobs: Worker processes at most.
        picture_timeout_seconds: Longest time for one picture.

    Raises:
        DataError: The disk is full, or no worker can be started.
    """
    shape = (*image_size, channels)
    n_workers = max(1, min(jobs, len(locations) // _PICTURES_PER_WORKER))
    try:
        with (
            tempfile.TemporaryDirectory(prefix="netloom-decoding-") as folder,
            WorkerPool(n_workers=n_workers, picture_timeout_seconds=picture_timeout_seconds) as pool,
        ):
            output = Path(folder) / "pixels"
            with output.open("wb") as file:
                file.truncate(min(batch_size, len(locations)) * math.prod(shape))
            settings = {
                "operation": "decode",
                "output": str(output),
                "image_size": image_size,
                "resize": resize,
                "channels": channels,
            }
            for start in range(0, len(locations), batch_size):
                yield _decoded(pool, settings, locations[start : start + batch_size], n_workers, shape)
    except OSError as error:
        raise DataError(
            f"Pictures cannot be decoded in {tempfile.gettempdir()}: {error.strerror or error}. Free some space there, "
            "or set TMPDIR to a folder that has it."
        ) from error


def _decoded(
    pool: WorkerPool, settings: dict[str, Any], locations: Sequence[Location], n_workers: int, shape: tuple[int, ...]
) -> Decoded:
    row_bytes = math.prod(shape)
    tasks = [Task(row, location, offset=row * row_bytes) for row, location in enumerate(locations)]
    n_chunk = min(_MAX_CHUNK_PICTURES, 1 + len(tasks) // (2 * n_workers))
    chunks = [tasks[start : start + n_chunk] for start in range(0, len(tasks), n_chunk)]
    answers = dict(pool.run(settings, chunks))
    if failed := next((answer for answer in answers.values() if answer[0] == "failed"), None):
        raise OSError(*failed[1:])
    pixels = np.fromfile(settings["output"], dtype=np.uint8, count=len(tasks) * row_bytes).reshape(-1, *shape)
    return [pixels[row] if answers[row][0] == "ok" else str(answers[row][1]) for row in range(len(tasks))]
