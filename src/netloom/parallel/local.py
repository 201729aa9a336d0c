"""Worker processes on this machine.

Plain subprocesses instead of `multiprocessing`, as for decoding: nothing is imported from the user's script, which
therefore needs no `__main__` guard, and nothing is unpickled. Each lives until the executor is closed, since importing
torch takes one to two seconds.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import IO, Any

from netloom.errors import NetloomError
from netloom.parallel.tasks import (
    Event,
    Executor,
    Failed,
    Finished,
    Interruption,
    OnEvent,
    Reported,
    Retried,
    Started,
    Task,
    name_of,
    uninterrupted,
)

_MAX_ATTEMPTS = 2
"""A worker may be killed from outside: a task at which one died gets a second chance."""

_POLL_SECONDS = 0.1
_SECONDS_TO_END = 1.5
"""What a task asked to stop has for saving its state; a killed one loses what came after its last checkpoint."""

_LAST_WORDS = 40
"""Lines of a worker's standard error that are kept."""

_BOOTSTRAP = (
    "import json, sys; options = json.loads(sys.argv[1]); sys.path[:] = options.pop('path'); "
    "from netloom.parallel.worker import main; main(**options)"
)


class LocalExecutor(Executor):
    """Runs up to `jobs` tasks at once, each in a process of its own.

    Args:
        jobs: Processes at most; each is started when there is work for it, and then reused.
        cpus: The CPUs of each of them, in their order; none to leave that to the system.
        setup: Makes, in each process, what tasks find as `context.shared`.
        arguments: Plain arguments of `setup`.
        remove: Folders that the workers remove should this process die, which else removes them itself.
    """

    def __init__(
        self,
        jobs: int,
        *,
        cpus: Sequence[Sequence[int]] = (),
        setup: Callable[..., Any] | None = None,
        arguments: Mapping[str, Any] | None = None,
        remove: Sequence[str] = (),
    ) -> None:
        self._setup = {"function": None if setup is None else name_of(setup), "arguments": dict(arguments or {})}
        self._cpus, self._remove = list(cpus), list(remove)
        self._slots: list[_Worker | None] = [None] * jobs
        self._inbox: queue.SimpleQueue[tuple[_Worker, dict[str, Any] | None]] = queue.SimpleQueue()
        self._again: deque[tuple[Task, int]] = deque()
        self._proven = False  # whether a worker could ever be set up

    @property
    def workers(self) -> list[int]:
        """Process ids of the living workers."""
        return [worker.pid for worker in self._living()]

    def run(self, tasks: Iterable[Task], on_event: OnEvent, *, interruption: Interruption = uninterrupted) -> None:
        """Have all tasks done; see `Executor.run`."""
        waiting = iter(tasks)
        out_of_time: float | None = None
        self._again.clear()
        while True:
            if out_of_time is None and (reason := interruption()) is not None:
                out_of_time = time.monotonic() + _SECONDS_TO_END
                for worker in self._living():
                    worker.ask_to_stop(reason)
            if out_of_time is None:
                self._hand_out(waiting, on_event)
            elif time.monotonic() >= out_of_time:
                self._kill_all()
                return
            if not any(worker.task for worker in self._living()):
                if out_of_time is not None:
                    self._kill_all()  # idle ones have nothing to save, and a person waits
                return
            with contextlib.suppress(queue.Empty):
                worker, message = self._inbox.get(timeout=_POLL_SECONDS)
                self._take(worker, message, on_event, last=out_of_time is not None)

    def stop(self, name: str, reason: str) -> None:
        """Ask a running task to end early; the others go on."""
        for worker in self._living():
            if worker.task is not None and worker.task.name == name:
                worker.ask_to_stop(reason)

    def close(self, *, at_once: bool = False) -> None:
        """End all workers; `at_once` kills them."""
        if at_once:
            self._kill_all()
            return
        for worker in self._living():
            worker.send({"end": True})
        self._free(_SECONDS_TO_END)

    def _free(self, seconds: float) -> None:
        for worker in self._living():
            worker.end(seconds)
        self._slots = [None] * len(self._slots)

    def _living(self) -> list[_Worker]:
        return [worker for worker in self._slots if worker is not None]

    def _kill_all(self) -> None:
        for worker in self._living():
            worker.kill()
        self._free(0)

    def _hand_out(self, waiting: Iterator[Task], on_event: OnEvent) -> None:
        """Give every idle worker a task, as long as there are any."""
        for slot in sorted(range(len(self._slots)), key=lambda slot: self._slots[slot] is None):
            worker = self._slots[slot]
            if worker is not None and worker.task is not None:
                continue
            task, attempt = self._again.popleft() if self._again else (next(waiting, None), 1)
            if task is None:
                return
            if worker is None:
                cpus = self._cpus[slot] if slot < len(self._cpus) else ()
                worker = _Worker(cpus, self._remove, self._setup, self._inbox)
                self._slots[slot] = worker
            worker.give(task, attempt)
            on_event(Started(task, attempt))

    def _take(self, worker: _Worker, message: dict[str, Any] | None, on_event: OnEvent, *, last: bool) -> None:
        """Act on what a worker said; None if it ended."""
        if worker not in self._slots:  # a dead one's last words
            return
        if message is None:
            self._bury(worker, on_event, last=last)
        elif "ready" in message:
            worker.ready = self._proven = True
        elif not worker.ready:
            worker.kill()
            worker.end(0)
            self._give_up(worker, f"Its process could not be set up: {message['failed'][0]}", on_event)
        elif worker.task is not None:
            task, event = worker.task, _event(worker.task, message)
            if not isinstance(event, Reported):
                worker.task = None
            assert event.task is task
            on_event(event)

    def _bury(self, worker: _Worker, on_event: OnEvent, *, last: bool) -> None:
        """A worker has died: start its task once more, or give it up."""
        reason = worker.cause_of_death()
        if not worker.ready and not worker.killed:
            words = worker.last_line() or "it ended without a message"
            self._give_up(
                worker, f"Its process could not be started with {sys.executable} ({reason}): {words}", on_event
            )
            return
        slot = self._slots.index(worker)
        self._slots[slot] = None
        if worker.killed and len(self._slots) > 1:
            # What the system kills for want of memory would be killed again in as large a company.
            del self._slots[slot]
            if slot < len(self._cpus):
                del self._cpus[slot]
        task, attempt = worker.task, worker.attempt
        if task is None:
            return
        if attempt < _MAX_ATTEMPTS and not last:
            self._again.append((task, attempt + 1))
            on_event(Retried(task, reason))
        else:
            on_event(Failed(task, reason, worker.last_words()))

    def _give_up(self, worker: _Worker, reason: str, on_event: OnEvent) -> None:
        """A worker cannot work: that is the end of all where none ever could, else of its task."""
        self._slots[self._slots.index(worker)] = None
        if not self._proven:
            self._kill_all()
            raise NetloomError(reason)
        if worker.task is not None:
            on_event(Failed(worker.task, reason, worker.last_words()))


def _event(task: Task, message: Mapping[str, Any]) -> Event:
    if "report" in message:
        return Reported(task, message["report"])
    if "finished" in message:
        return Finished(task, message["finished"])
    reason, details = message["failed"]
    return Failed(task, reason, details)


class _Worker:
    """One process and the threads that read what it says."""

    def __init__(
        self,
        cpus: Sequence[int],
        remove: Sequence[str],
        setup: Mapping[str, Any],
        inbox: queue.SimpleQueue[tuple[_Worker, dict[str, Any] | None]],
    ) -> None:
        self.task: Task | None = None
        self.attempt = 0
        self.ready = False
        self._inbox = inbox
        self._errors: deque[str] = deque(maxlen=_LAST_WORDS)
        self._process = _start_process({"path": sys.path, "cpus": list(cpus), "remove": list(remove)})
        self._requests, answers, errors = map(_pipe, self._pipes())
        self._threads = [
            threading.Thread(target=self._read_answers, args=(answers,), daemon=True),
            threading.Thread(target=self._read_errors, args=(errors,), daemon=True),
        ]
        for thread in self._threads:
            thread.start()
        self.send({"setup": setup})

    def _pipes(self) -> tuple[IO[bytes] | None, IO[bytes] | None, IO[bytes] | None]:
        return self._process.stdin, self._process.stdout, self._process.stderr

    @property
    def pid(self) -> int:
        return self._process.pid

    def give(self, task: Task, attempt: int) -> None:
        self.task, self.attempt = task, attempt
        arguments = dict(task.arguments)
        self.send({"task": {"name": task.name, "function": name_of(task.function), "arguments": arguments}})

    def ask_to_stop(self, reason: str) -> None:
        if self.task is not None:
            self.send({"stop": {"name": self.task.name, "reason": reason}})

    def send(self, message: Mapping[str, Any]) -> None:
        with contextlib.suppress(OSError, ValueError):  # a dead process shows in its answers
            self._requests.write(json.dumps(message).encode() + b"\n")
            self._requests.flush()

    def kill(self) -> None:
        self._process.kill()

    def end(self, seconds: float) -> None:
        """Wait for the process, kill it where it takes longer, and free what it held."""
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            self._process.wait()
        for thread in self._threads:
            thread.join(_SECONDS_TO_END)
        for pipe in self._pipes():
            with contextlib.suppress(OSError):
                _pipe(pipe).close()

    @property
    def killed(self) -> bool:
        """Whether the system or a person killed it; known once it is dead."""
        return os.name == "posix" and self._process.returncode == -signal.SIGKILL

    def cause_of_death(self) -> str:
        """For people; waits for the process, which has closed its output."""
        self.end(_SECONDS_TO_END)
        code = self._process.returncode
        if self.killed:
            return "its process was killed (SIGKILL), perhaps because memory ran out: try fewer --jobs"
        try:
            return f"its process crashed ({signal.Signals(-code).name})"
        except ValueError:
            return f"its process ended with exit code {code}"

    def last_line(self) -> str:
        return self._errors[-1].strip() if self._errors else ""

    def last_words(self) -> str:
        return "".join(self._errors)

    def _read_answers(self, answers: IO[bytes]) -> None:
        for line in answers:
            if line.endswith(b"\n"):
                self._inbox.put((self, json.loads(line)))
        self._inbox.put((self, None))

    def _read_errors(self, errors: IO[bytes]) -> None:
        for line in errors:
            self._errors.append(line.decode(errors="replace"))


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    assert pipe is not None
    return pipe


def _start_process(options: Mapping[str, Any]) -> subprocess.Popen[bytes]:
    # -I: no variable and no file in the current folder changes what the worker imports; its path is this process's
    # own. Its own session, so that Ctrl-C reaches this process only.
    flags = ["-I", *(["-X", "utf8"] if sys.flags.utf8_mode else [])]
    return subprocess.Popen(
        [sys.executable, *flags, "-c", _BOOTSTRAP, json.dumps(options)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
    )
