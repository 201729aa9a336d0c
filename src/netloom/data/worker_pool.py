"""Decode workers, and handing pictures to them so that a crash or a hang costs one picture.

Plain subprocesses instead of `multiprocessing`: nothing is imported from the user's script, which
therefore needs no `__main__` guard, and a worker needs Pillow and NumPy only (0.15 s to start).
"""

from __future__ import annotations

import base64
import contextlib
import json
import math
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Any, TypeAlias

from netloom.data.decode_worker import READY
from netloom.data.location import Location, to_json
from netloom.errors import DataError

_MAX_CRASHES = 2
"""A worker may be killed from outside: a picture at which one died gets a second chance."""

_MAX_FAILED_STARTS = 3
_WATCH_INTERVAL_SECONDS = 0.1
_START_TIMEOUT_SECONDS = 60.0
_BOOTSTRAP = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from netloom.data.decode_worker import main; main()"
)


@dataclass(frozen=True)
class Task:
    """One picture to be read by a worker.

    Attributes:
        index: The caller's number for it, given back with the answer.
        location: Where its bytes are.
        data: The bytes themselves where a worker cannot fetch them, or None.
        offset: Where in the output file its pixels begin, in bytes.
    """

    index: int
    location: Location
    data: bytes | None = None
    offset: int = 0

    def to_json(self) -> dict[str, Any]:
        """The task as `decode_worker` reads it."""
        data = None if self.data is None else base64.b64encode(self.data).decode()
        return {"location": to_json(self.location), "data": data, "offset": self.offset}


Answer = tuple[int, list[Any]]
"""A task's index and what the worker said of it; the forms are listed in `decode_worker`."""


_Events: TypeAlias = "queue.SimpleQueue[list[Answer] | BaseException | None]"  # None: thread ended


class WorkerPool:
    """A few decode workers that live from the first `run` to the end of the `with` block.

    Args:
        n_workers: How many processes at most; each is started when there is work for it.
        picture_timeout_seconds: A worker that is longer at one picture is killed.
    """

    def __init__(self, *, n_workers: int, picture_timeout_seconds: float) -> None:
        self._timeout_seconds = picture_timeout_seconds
        self._workers: list[_Worker | None] = [None] * n_workers
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self._stopped = False

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()
        for worker in self._workers:
            if worker is not None:
                worker.close()

    def run(self, settings: dict[str, Any], chunks: Iterable[Sequence[Task]]) -> Generator[Answer, None, None]:
        """Have all tasks done and yield their answers as they come, in no particular order.

        `chunks` is consumed from several threads, one at a time, whenever a worker is idle. Leaving
        the iteration early kills the workers.

        Raises:
            DataError: No worker can be started.
        """
        self._stopped = False
        events: _Events = queue.SimpleQueue()
        source = _SharedChunks(chunks)
        self._threads = [
            threading.Thread(target=self._serve, args=(slot, settings, source, events), daemon=True)
            for slot in range(len(self._workers))
        ]
        for thread in self._threads:
            thread.start()
        finished = False
        try:
            yield from self._collect(events, len(self._threads))
            finished = True
        finally:
            if not finished:
                self._stop()

    def _collect(self, events: _Events, n_running: int) -> Iterator[Answer]:
        next_watch = 0.0
        while n_running:
            if time.monotonic() >= next_watch:
                self._kill_late()
                next_watch = time.monotonic() + _WATCH_INTERVAL_SECONDS
            try:
                event = events.get(timeout=_WATCH_INTERVAL_SECONDS)
            except queue.Empty:
                continue
            if event is None:
                n_running -= 1
            elif isinstance(event, BaseException):
                raise event
            else:
                yield from event

    def _serve(
        self,
        slot: int,
        settings: dict[str, Any],
        source: _SharedChunks,
        events: _Events,
    ) -> None:
        try:
            while not self._stopped and (chunk := source.next()) is not None:
                self._work_off(slot, settings, chunk, events)
        except BaseException as error:
            events.put(error)
        finally:
            events.put(None)

    def _work_off(self, slot: int, settings: dict[str, Any], chunk: Sequence[Task], events: _Events) -> None:
        """Have one worker after the other do `chunk` until all of it is answered.

        Once a worker has died, the rest is done with every answer sent at once, so that it is
        known at which picture the next one dies.
        """
        waiting = deque(chunk)
        one_by_one = False
        n_crashes = 0  # at the picture that is first in line
        while waiting and (worker := self._worker(slot)) is not None:
            request = {**settings, "one_by_one": one_by_one}
            for answers in _in_portions(worker.ask(request, list(waiting))):
                events.put([(waiting.popleft().index, answer) for answer in answers])
                n_crashes = 0
            if not waiting or self._stopped:
                return
            self._bury(slot)
            if not one_by_one:
                one_by_one = True
                continue
            n_crashes += 1
            if worker.timed_out or n_crashes == _MAX_CRASHES:
                reason = worker.cause_of_death()
                events.put([(waiting.popleft().index, ["unreadable", reason, "for now"])])
                n_crashes = 0

    def _worker(self, slot: int) -> _Worker | None:
        """The living worker of `slot`, started if need be; None once the pool is stopped."""
        worker = self._workers[slot]
        if worker is not None:
            if worker.is_alive():
                return worker
            self._bury(slot)
        for _ in range(_MAX_FAILED_STARTS):
            with self._lock:
                if self._stopped:
                    return None
                worker = self._workers[slot] = _Worker(self._timeout_seconds)
            if worker.is_ready():
                return worker
            last_words = self._bury(slot)
        if self._stopped:
            return None
        raise DataError(
            f"The process that decodes pictures could not be started with {sys.executable}:"
            f" {last_words or 'it ended without a message'}. Check that Pillow and NumPy can be"
            " imported there."
        )

    def _bury(self, slot: int) -> str:
        """Free what a dead worker held; returns its last words."""
        with self._lock:
            worker, self._workers[slot] = self._workers[slot], None
        return worker.close() if worker is not None else ""

    def _kill_late(self) -> None:
        for worker in list(self._workers):
            if worker is not None and time.monotonic() > worker.deadline:
                worker.timed_out = True
                worker.kill()

    def _stop(self) -> None:
        with self._lock:
            self._stopped = True
            for worker in self._workers:
                if worker is not None:
                    worker.kill()
        for thread in self._threads:
            thread.join()


def _in_portions(answers: Iterator[list[Any]]) -> Iterator[list[list[Any]]]:
    """What came within a tenth of a second, at once: waking another thread costs 50 us."""
    portion: list[list[Any]] = []
    since = time.monotonic()
    for answer in answers:
        portion.append(answer)
        if time.monotonic() - since > _WATCH_INTERVAL_SECONDS:
            yield portion
            portion, since = [], time.monotonic()
    if portion:
        yield portion


class _SharedChunks:
    """Chunks for whichever thread asks next."""

    def __init__(self, chunks: Iterable[Sequence[Task]]) -> None:
        self._chunks = iter(chunks)
        self._lock = threading.Lock()

    def next(self) -> Sequence[Task] | None:
        with self._lock:
            return next(self._chunks, None)


class _Worker:
    """One process, used by one thread; `kill` may be called from any."""

    def __init__(self, timeout_seconds: float) -> None:
        self.timed_out = False
        self.deadline = time.monotonic() + _START_TIMEOUT_SECONDS
        self._timeout_seconds = timeout_seconds
        self._process = _start_process()
        self._requests = _pipe(self._process.stdin)
        self._answers = _pipe(self._process.stdout)
        self._errors = _pipe(self._process.stderr)

    def is_ready(self) -> bool:
        """Wait for the sign of life; False if the process ended before."""
        ready = self._answers.readline() == json.dumps(READY).encode() + b"\n"
        self.deadline = math.inf
        return ready

    def is_alive(self) -> bool:
        return self._process.poll() is None

    def ask(self, settings: dict[str, Any], tasks: Sequence[Task]) -> Iterator[list[Any]]:
        """Yield one answer for each task; fewer if the process ends."""
        request = {**settings, "tasks": [task.to_json() for task in tasks]}
        self.deadline = time.monotonic() + self._timeout_seconds
        with contextlib.suppress(OSError):  # a dead process shows in its answers
            self._requests.write(json.dumps(request).encode() + b"\n")
            self._requests.flush()
        for _ in tasks:
            line = self._answers.readline()
            if not line.endswith(b"\n"):
                break
            self.deadline = time.monotonic() + self._timeout_seconds
            yield json.loads(line)
        self.deadline = math.inf

    def kill(self) -> None:
        self._process.kill()

    def close(self) -> str:
        """End the process and free its pipes; the last line it wrote on stderr while starting."""
        self.kill()
        self._process.wait()
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        for pipe in (self._requests, self._answers, self._errors):
            with contextlib.suppress(OSError):  # a request that was never taken cannot be flushed
                pipe.close()
        return lines[-1] if lines else ""

    def cause_of_death(self) -> str:
        """For people: why the picture at which the process ended is left out."""
        if self.timed_out:
            return f"decoding it took longer than {self._timeout_seconds:g} s"
        code = self._process.returncode
        try:
            cause = signal.Signals(-code).name
        except ValueError:
            cause = f"exit code {code}"
        return f"its decoder crashed, more than once ({cause})"


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    assert pipe is not None
    return pipe


def _start_process() -> subprocess.Popen[bytes]:
    # -I: no variable and no file in the current folder changes what the worker imports; its path is
    # this process's own. Its own session, so that Ctrl-C reaches this process only.
    options = ["-I", *(["-X", "utf8"] if sys.flags.utf8_mode else [])]
    one_thread = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, *options, "-c", _BOOTSTRAP, json.dumps(sys.path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, **one_thread},
        start_new_session=True,
        creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
    )
