"""The process that decodes pictures: requests as JSON lines on stdin, answers on stdout.

A request names an operation, its settings and a list of tasks; each task gets one line in answer,
in order. Answers are collected for up to 20 ms, since each waking of the reader costs 50 us, unless
the request says `one_by_one`: then the reader knows at which picture a worker died or hangs.

    ["ok", content hash, width, height, mode, format]
    ["unreadable", reason]
    ["unreadable", reason, "for now"] not the picture's fault, perhaps: another time it may be read
    ["failed", errno, message]        the pixels could not be written: no picture's fault

It ends when stdin does, so that none outlives the process that started it.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from netloom.data.decode import decode_picture, probe_picture, warnings_ignored
from netloom.data.location import LocationReader, UnreadablePictureError, from_json

READY = ["ready"]
_COLLECTING_SECONDS = 0.02


def content_hash(data: bytes) -> str:
    """BLAKE2b of a file's bytes, 128 bits as 32 hexadecimal digits."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


@contextlib.contextmanager
def _output(request: dict[str, Any]) -> Iterator[BinaryIO | None]:
    """The file that a request's pixels go to, open no longer than for the request: Windows moves no open files."""
    if request["operation"] == "probe":
        yield None
        return
    with Path(request["output"]).open("r+b", buffering=0) as file:
        yield file


def _write(output: BinaryIO, offset: int, data: memoryview) -> None:
    # Written, not memory-mapped: a full disk then is an error here, and not a fatal signal.
    output.seek(offset)
    while data:
        data = data[output.write(data) :]


def main() -> None:
    """Answer requests until stdin ends."""
    answers = _take_stdout()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    requests: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_read_requests, args=(requests,), daemon=True).start()
    _send(answers, [READY])
    # Warnings are silenced once here, not anew for each picture.
    with warnings_ignored(), LocationReader() as reader:
        while True:
            _serve(json.loads(requests.get()), reader, answers)


def _serve(request: dict[str, Any], reader: LocationReader, answers: BinaryIO) -> None:
    collected: list[list[Any]] = []
    n_sent, sent = 0, time.monotonic()
    try:
        with _output(request) as output:
            for task in request["tasks"]:
                if collected and (request["one_by_one"] or time.monotonic() - sent > _COLLECTING_SECONDS):
                    _send(answers, collected)
                    n_sent += len(collected)
                    collected, sent = [], time.monotonic()
                collected.append(_answer(request, task, reader, output))
    except OSError as error:  # opening or closing the file; some systems tell only then that the disk is full
        collected = [_failed(error)] * (len(request["tasks"]) - n_sent)
    # The last ones only now that the file is closed, since with them the reader may go on to move it.
    _send(answers, collected)


def _take_stdout() -> BinaryIO:
    """Keep stdout for answers alone: what C libraries print there or on stderr goes nowhere."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb", buffering=0)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.dup2(nowhere, sys.stderr.fileno())
    os.close(nowhere)
    return answers


def _read_requests(requests: queue.SimpleQueue[bytes]) -> None:
    """Queue the requests; leave as soon as nobody is there any more, even amid a long decode."""
    for line in sys.stdin.buffer:
        requests.put(line)
    os._exit(0)


def _send(answers: BinaryIO, collected: list[list[Any]]) -> None:
    lines = memoryview("".join(json.dumps(answer) + "\n" for answer in collected).encode())
    try:
        while lines:
            lines = lines[answers.write(lines) :]
    except OSError:
        os._exit(0)


def _answer(
    request: dict[str, Any], task: dict[str, Any], reader: LocationReader, output: BinaryIO | None
) -> list[Any]:
    try:
        sent = task["data"]
        data = reader.read(from_json(task["location"])) if sent is None else base64.b64decode(sent)
        if output is None:
            header = probe_picture(data)
            return _ok(data, header.width, header.height, header.mode, header.format)
        picture = decode_picture(
            data,
            size=tuple(request["image_size"]),
            resize=request["resize"],
            channels=request["channels"],
        )
    except UnreadablePictureError as error:
        return unreadable_answer(error)
    except MemoryError:
        return unreadable_answer(UnreadablePictureError("not enough memory to read it", passing=True))
    try:
        _write(output, task["offset"], picture.pixels.reshape(-1).data)
    except OSError as error:
        return _failed(error)
    return _ok(data, picture.width, picture.height, picture.mode, picture.format)


def unreadable_answer(error: UnreadablePictureError) -> list[Any]:
    """The answer of a picture that cannot be read."""
    return ["unreadable", error.reason, *(["for now"] if error.passing else [])]


def _failed(error: OSError) -> list[Any]:
    return ["failed", error.errno, error.strerror or str(error)]


def _ok(data: bytes, width: int, height: int, mode: str, picture_format: str) -> list[Any]:
    return ["ok", content_hash(data), width, height, mode, picture_format]


if __name__ == "__main__":
    main()
