"""All pictures of a source, decoded once by isolated workers into a memory-mapped cache."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import PIL

from netloom.data.cache import build_entry, discard_entry, find_entry
from netloom.data.decode import DECODER_VERSION, Resize
from netloom.data.decode_worker import unreadable_answer
from netloom.data.decoded_entry import (
    PICTURES_FILE,
    PIXELS_FILE,
    DecodedPictures,
    close_gaps,
    load_entry,
    reserve_pixels,
    write_columns,
)
from netloom.data.file_stamps import memo_path, read_memo, write_memo
from netloom.data.location import (
    Location,
    StreamedTarMember,
    UnreadablePictureError,
    stream_tar,
)
from netloom.data.worker_pool import Task, WorkerPool
from netloom.errors import DataError, NetloomError, did_you_mean
from netloom.files import write_json

GREY_MODES = frozenset({"1", "L", "LA", "La", "I", "F", "I;16", "I;16B", "I;16L", "I;16N"})
"""Pillow's modes without colour. Palettes are not among them, whatever colours they hold."""

PROBED_PICTURES = 100
"""Headers that are read to see what a source holds: 95% sure to meet what 3% of it are."""

LARGEST_NATIVE_SIDE = 96
"""Pictures of one common size up to this side are used as they are (CIFAR 32, STL-10 96)."""

DEFAULT_SIDE = 128
"""Otherwise: enough to tell things in photographs apart, at a third of the work of 224."""

_AGAIN_FILE = "again.json"
_SECONDS_BEFORE_ANOTHER_TRY = 300.0
_MOST_TRIES = 2
_MAX_CHUNK_PICTURES = 64
_MAX_CHUNK_BYTES = 8 * 1024**2
_CHUNKS_PER_WORKER = 8
_PICTURES_PER_WORKER = 16  # fewer do not repay the 0.15 s that a worker takes to start
_PROGRESS_INTERVAL_SECONDS = 0.05


def decode_all(
    locations: Sequence[Location],
    *,
    image_size: tuple[int, int],
    resize: str,
    channels: int | None,
    fingerprint: str,
    jobs: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    picture_timeout_seconds: float = 60,
) -> DecodedPictures:
    """Decode all pictures, or map what an earlier call with the same arguments decoded.

    Pictures that cannot be read, that crash their decoder or that take too long are left out with
    the reason; nothing else about them matters to the others.

    Args:
        locations: Where the pictures are.
        image_size: Height and width of the decoded pictures, in pixels.
        resize: As for `netloom.data.decode.decode_picture`.
        channels: 1 for grey, 3 for colour; None for 1 if all pictures are grey, else 3.
        fingerprint: Differs whenever any of the pictures' bytes or their order does.
        jobs: Worker processes; None for one per CPU, fewer for few pictures.
        on_progress: Called now and then with the number of pictures done and of all.
        picture_timeout_seconds: Longest time for one picture.

    Raises:
        DataError: An argument is not among the possible ones, the cache's disk is full or fails, or no
            worker can be started.
    """
    _check(image_size, resize, channels)
    key = _entry_key(fingerprint, image_size, resize, channels)
    entry = find_entry(key)
    if entry is not None:
        settings = {"image_size": image_size, "resize": resize, "channels": channels or 3}
        with contextlib.suppress(OSError, ValueError, KeyError):
            if not _more_is_readable_now(entry, locations, settings, picture_timeout_seconds):
                return load_entry(entry, len(locations))
        discard_entry(entry)
    n_workers = _default_jobs(len(locations)) if jobs is None else max(1, jobs)
    with WorkerPool(n_workers=n_workers, picture_timeout_seconds=picture_timeout_seconds) as pool:
        build = _Build(pool, locations, image_size, resize, n_workers, on_progress)
        if channels is None and _all_grey(_probe(pool, locations)):
            try:
                return load_entry(build.entry(key, 1, grey_only=True), len(locations))
            except _ColourFoundError:
                pass
        return load_entry(build.entry(key, channels or 3), len(locations))


def suggest_image_size(locations: Sequence[Location], *, fingerprint: str | None = None) -> tuple[int, int]:
    """Height and width to decode these pictures at, from the headers of about a hundred of them.

    Their own where all are of one size of at most 96 pixels a side, otherwise 128 x 128. With a fingerprint (as for
    `decode_all`) it is remembered, since looking takes a worker, 0.3 s of every start.

    Raises:
        DataError: No worker can be started.
    """
    if fingerprint is None:
        return _suitable_size(locations)
    memo = memo_path("sizes", f"{fingerprint}/{DECODER_VERSION}/{PIL.__version__}")
    match read_memo(memo):
        case [int(height), int(width)] if min(height, width) >= 1:
            return height, width
    size = _suitable_size(locations)
    write_memo(memo, size)
    return size


def _suitable_size(locations: Sequence[Location]) -> tuple[int, int]:
    with WorkerPool(n_workers=1, picture_timeout_seconds=60) as pool:
        sizes = {(height, width) for width, height, _ in _probe(pool, locations)}
    if len(sizes) == 1 and max(size := sizes.pop()) <= LARGEST_NATIVE_SIDE:
        return size
    return DEFAULT_SIDE, DEFAULT_SIDE


class _ColourFoundError(Exception):
    """The headers looked at were all grey, but this picture is not."""


@dataclass(frozen=True)
class _Build:
    """Decodes everything into a new cache entry."""

    pool: WorkerPool
    locations: Sequence[Location]
    image_size: tuple[int, int]
    resize: str
    n_workers: int
    on_progress: Callable[[int, int], None] | None

    def entry(self, key: str, channels: int, *, grey_only: bool = False) -> Path:
        """Make the entry.

        Raises:
            _ColourFoundError: `grey_only`, and a picture is coloured.
            DataError: The disk is full or fails.
        """
        n_bytes = len(self.locations) * math.prod(self.image_size) * channels
        return build_entry(
            key,
            needed_bytes=n_bytes,
            fill=lambda folder: self._fill(folder, channels, grey_only=grey_only),
        )

    def _fill(self, folder: Path, channels: int, *, grey_only: bool) -> None:
        shape = (len(self.locations), *self.image_size, channels)
        first_offset = reserve_pixels(folder / PIXELS_FILE, shape)
        settings = {
            "operation": "decode",
            "output": str(folder / PIXELS_FILE),
            "image_size": self.image_size,
            "resize": self.resize,
            "channels": channels,
        }
        answers = self._answers(settings, first_offset, math.prod(shape[1:]), grey_only)
        readable = np.array([i for i in sorted(answers) if answers[i][0] == "ok"], dtype=np.int64)
        close_gaps(folder / PIXELS_FILE, readable)
        write_columns(folder / PICTURES_FILE, answers)
        for_now = [i for i in sorted(answers) if answers[i][0] != "ok" and len(answers[i]) > 2]
        if for_now:
            write_json(folder / _AGAIN_FILE, {"indices": for_now, "tries": 0})

    def _answers(
        self, settings: dict[str, Any], first_offset: int, row_bytes: int, grey_only: bool
    ) -> dict[int, list[Any]]:
        """What became of each picture, by its index."""
        answers: dict[int, list[Any]] = {}
        chunks = _chunks(self.locations, range(len(self.locations)), self.n_workers, answers)
        placed = (
            [Task(t.index, t.location, t.data, offset=first_offset + t.index * row_bytes) for t in chunk]
            for chunk in chunks
        )
        next_report = 0.0
        with contextlib.closing(self.pool.run(settings, placed)) as stream:
            for index, answer in stream:
                if answer[0] == "failed":
                    raise OSError(*answer[1:])
                if grey_only and answer[0] == "ok" and answer[4] not in GREY_MODES:
                    raise _ColourFoundError
                answers[index] = answer
                if self.on_progress is not None and time.monotonic() >= next_report:
                    self.on_progress(len(answers), len(self.locations))
                    next_report = time.monotonic() + _PROGRESS_INTERVAL_SECONDS
        if self.on_progress is not None:
            self.on_progress(len(answers), len(self.locations))
        return answers


def _more_is_readable_now(
    entry: Path, locations: Sequence[Location], settings: dict[str, Any], timeout_seconds: float
) -> bool:
    """Whether one of the pictures that an entry lacks for a passing reason can be decoded by now.

    A machine that was busy or short of memory must not cost a picture for good. Those that fail twice more are left
    alone, since a picture that hangs its decoder would cost a minute at every start.

    Raises:
        OSError, ValueError, KeyError: The entry is damaged.
    """
    path = entry / _AGAIN_FILE
    if not path.is_file() or time.time() - path.stat().st_mtime < _SECONDS_BEFORE_ANOTHER_TRY:
        return False
    content = json.loads(path.read_text(encoding="utf-8"))
    indices, tries = [int(i) for i in content["indices"]], int(content["tries"])
    if tries >= _MOST_TRIES or not all(0 <= i < len(locations) for i in indices):
        return False
    try:
        found = _any_is_readable(locations, indices, settings, timeout_seconds)
    except (OSError, DataError):
        return False  # there is no room to try it in, or no process: nothing has been learned of the pictures
    if not found:
        with contextlib.suppress(NetloomError):  # a read-only cache is still worth reading
            write_json(path, {"indices": indices, "tries": tries + 1})
    return found


def _any_is_readable(
    locations: Sequence[Location], indices: Sequence[int], settings: dict[str, Any], timeout_seconds: float
) -> bool:
    """Whether one of the pictures at `indices` can be decoded.

    Raises:
        OSError: The disk of temporary files is full.
        DataError: No worker can be started.
    """
    with (
        tempfile.TemporaryDirectory(prefix="netloom-decoding-") as folder,
        WorkerPool(n_workers=1, picture_timeout_seconds=timeout_seconds) as pool,
    ):
        output = Path(folder) / PIXELS_FILE
        offset = reserve_pixels(output, (1, *settings["image_size"], settings["channels"]))
        request = {"operation": "decode", "output": str(output), **settings}
        tasks = (
            [Task(task.index, task.location, task.data, offset=offset) for task in chunk]
            for chunk in _chunks(locations, indices, 1, {})
        )
        for _, answer in pool.run(request, tasks):
            if answer[0] == "failed":
                raise OSError(*answer[1:])
            if answer[0] == "ok":
                return True
    return False


def _check(image_size: tuple[int, int], resize: str, channels: int | None) -> None:
    if len(image_size) != 2 or min(image_size) < 1:
        raise DataError(f"image_size must be a height and a width of at least 1, not {image_size}.")
    if resize not in get_args(Resize):
        known = get_args(Resize)
        raise DataError(f"resize must be one of {', '.join(known)}, not {resize!r}.{did_you_mean(resize, known)}")
    if channels not in (1, 3, None):
        raise DataError(f"channels must be 1 (grey), 3 (colour) or None, not {channels!r}.")


def _entry_key(fingerprint: str, image_size: tuple[int, int], resize: str, channels: int | None) -> str:
    parts = [fingerprint, *image_size, resize, channels, DECODER_VERSION, PIL.__version__]
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=16).hexdigest()


def _default_jobs(n_pictures: int) -> int:
    # macOS and Windows have no affinity to ask for.
    n_cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min(n_cpus or 1, n_pictures // _PICTURES_PER_WORKER))


def _probe(pool: WorkerPool, locations: Sequence[Location]) -> list[tuple[int, int, str]]:
    """Width, height and mode of the readable ones among about a hundred evenly spaced pictures.

    Of pictures in a compressed tar archive the first ones are taken: to reach others, all before
    them would have to be decompressed.
    """
    n_locations = len(locations)
    streamed = any(isinstance(location, StreamedTarMember) for location in locations)
    step = 1.0 if streamed else max(1.0, n_locations / PROBED_PICTURES)
    indices = [int(i * step) for i in range(min(n_locations, PROBED_PICTURES))]
    headers = []
    for _, answer in pool.run({"operation": "probe"}, _chunks(locations, indices, 1, {})):
        if answer[0] == "ok":
            _, _, width, height, mode, _ = answer
            headers.append((width, height, mode))
    return headers


def _all_grey(headers: list[tuple[int, int, str]]) -> bool:
    return bool(headers) and all(mode in GREY_MODES for _, _, mode in headers)


def _chunks(
    locations: Sequence[Location],
    indices: Sequence[int],
    n_workers: int,
    unreadable: dict[int, list[Any]],
) -> Iterator[list[Task]]:
    """Tasks in portions that keep all workers busy to the end.

    Members of compressed tar archives are read here, one portion at a time; those that cannot be
    are put into `unreadable` with their answers.
    """
    direct = [i for i in indices if not isinstance(locations[i], StreamedTarMember)]
    n_chunk = min(_MAX_CHUNK_PICTURES, 1 + len(direct) // (_CHUNKS_PER_WORKER * n_workers))
    for start in range(0, len(direct), n_chunk):
        yield [Task(i, locations[i]) for i in direct[start : start + n_chunk]]
    yield from _streamed_chunks(locations, indices, unreadable)


def _streamed_chunks(
    locations: Sequence[Location], indices: Sequence[int], unreadable: dict[int, list[Any]]
) -> Iterator[list[Task]]:
    archives: dict[str, dict[StreamedTarMember, int]] = defaultdict(dict)
    for i in indices:
        location = locations[i]
        if isinstance(location, StreamedTarMember):
            archives[location.archive][location] = i
    for archive, members in archives.items():
        chunk: list[Task] = []
        n_bytes = 0
        for member, data in stream_tar(archive, members):
            if isinstance(data, UnreadablePictureError):
                unreadable[members[member]] = unreadable_answer(data)
                continue
            chunk.append(Task(members[member], member, data))
            n_bytes += len(data)
            if len(chunk) == _MAX_CHUNK_PICTURES or n_bytes >= _MAX_CHUNK_BYTES:
                yield chunk
                chunk, n_bytes = [], 0
        if chunk:
            yield chunk
