"""Worker processes on this machine.

Plain subprocesses instead of `multiprocessing`, as for decoding: nothing is imported from the user's script, which
therefore needs no `__main__` guard, and nothing is unpickled. Each lives until the executor is closed, since importing
torch takes one to two seconds.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import queue
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import IO, Any

from netloom.parallel.pool import SECONDS_TO_END, NoRoomError, Worker, WorkerPool
from netloom.parallel.tasks import Event, Finished, Interruption, OnEvent, Task, name_of, uninterrupted

_LAST_WORDS = 40
"""Lines of a worker's standard error that are kept."""

_TASKS_UNTIL_MORE = 3
"""So many tasks must return after a worker was killed, before its place is taken again."""

_BOOTSTRAP = (
    "import json, sys; options = json.loads(sys.argv[1]); sys.path[:] = options.pop('path'); "
    "from netloom.parallel.worker import main; main(**options)"
)


class LocalExecutor(WorkerPool["_Process"]):
    """Runs up to `jobs` tasks at once, each in a process of its own.

    A worker that was killed leaves its place empty for a while: what the system kills for want of memory would be
    killed again in as large a company. The place is taken again when some tasks have returned, since a person may have
    killed it, or others needed the memory. Where another is killed soon after that, it stays empty for twice as long.
    So do the places for which the system starts no process, as long as there is any worker.

    Args:
        jobs: Processes at most; each is started when there is work for it, and then reused.
        cpus: The CPUs of each of them, in their order; none to leave that to the system.
        setup: Makes, in each process, what tasks find as `context.shared`.
        arguments: Plain arguments of `setup`.
        remove: Folders that the workers remove should this process die, which else removes them itself.
        say: Tells a person when fewer run at once, and when more do again.
    """

    def __init__(
        self,
        jobs: int,
        *,
        cpus: Sequence[Sequence[int]] = (),
        setup: Callable[..., Any] | None = None,
        arguments: Mapping[str, Any] | None = None,
        remove: Sequence[str] = (),
        say: Callable[[str], None] | None = None,
    ) -> None:
        super().__init__(jobs)
        self._setup = {"function": None if setup is None else name_of(setup), "arguments": dict(arguments or {})}
        self._cpus, self._remove = [*cpus, *[()] * (jobs - len(cpus))], list(remove)
        self._say = say or (lambda _: None)
        self._empty: list[Sequence[int]] = []  # places that are not taken for a while, by their CPUs
        self._until_more = _TASKS_UNTIL_MORE
        self._returned = math.inf  # tasks since a worker was killed
        self._inbox: queue.SimpleQueue[tuple[_Process, dict[str, Any] | None]] = queue.SimpleQueue()

    @property
    def workers(self) -> list[int]:
        """Process ids of the living workers."""
        return [worker.pid for worker in self._living()]

    def _start(self, slot: int) -> _Process:
        return _Process(self._cpus[slot], self._remove, self._setup, self._inbox)

    def _listen(self, seconds: float) -> list[tuple[_Process, dict[str, Any] | None]]:
        try:
            return [self._inbox.get(timeout=seconds)]
        except queue.Empty:
            return []

    def run(
        self, tasks: Iterable[Task | None], on_event: OnEvent, *, interruption: Interruption = uninterrupted
    ) -> None:
        """Have all tasks done; see `Executor.run`."""

        def told(event: Event) -> None:
            on_event(event)
            if isinstance(event, Finished):
                self._count_return()

        super().run(tasks, told, interruption=interruption)

    def _bury(self, worker: _Process, on_event: OnEvent, *, last: bool) -> None:
        slot = self._slots.index(worker)
        super()._bury(worker, on_event, last=last)
        if worker.killed and len(self._slots) > 1 and not last:
            self._leave_empty([slot])

    def _do_with_fewer(self, error: NoRoomError) -> None:
        if not self._living():
            raise error
        self._say(str(error))
        self._leave_empty([slot for slot, worker in enumerate(self._slots) if worker is None])

    def _leave_empty(self, slots: Sequence[int]) -> None:
        before = len(self._slots)
        for slot in sorted(slots, reverse=True):
            del self._slots[slot]
            self._empty.append(self._cpus.pop(slot))
        too_soon = self._returned < 2 * self._until_more
        self._until_more = 2 * self._until_more if too_soon else _TASKS_UNTIL_MORE
        self._returned = 0
        n = len(self._slots)
        self._say(f"{n} at once for now instead of {before}; one more again when {self._until_more} have ended well")

    def _count_return(self) -> None:
        """A task has returned: take an empty place again, if enough have."""
        self._returned += 1
        if self._empty and self._returned % self._until_more == 0:
            self._slots.append(None)
            self._cpus.append(self._empty.pop())
            self._say(f"{len(self._slots)} at once again")


class _Process(Worker):
    """One process and the threads that read what it says."""

    def __init__(
        self,
        cpus: Sequence[int],
        remove: Sequence[str],
        setup: Mapping[str, Any],
        inbox: queue.SimpleQueue[tuple[_Process, dict[str, Any] | None]],
    ) -> None:
        super().__init__(placed=True)
        self._inbox = inbox
        self._errors: deque[str] = deque(maxlen=_LAST_WORDS)
        self._process = _start_process({"path": sys.path, "cpus": list(cpus), "remove": list(remove)})
        self._requests, answers, errors = map(_pipe, self._pipes())
        self._threads = [
            threading.Thread(target=self._read_answers, args=(answers,), daemon=True),
            threading.Thread(target=self._read_errors, args=(errors,), daemon=True),
        ]
        try:
            for thread in self._threads:
                thread.start()
        except RuntimeError as error:  # threads count like processes
            self._threads = [thread for thread in self._threads if thread.ident is not None]
            self.kill()
            self.end(SECONDS_TO_END)
            raise _no_room(error) from error
        self.send({"setup": setup})

    def _pipes(self) -> tuple[IO[bytes] | None, IO[bytes] | None, IO[bytes] | None]:
        return self._process.stdin, self._process.stdout, self._process.stderr

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, message: Mapping[str, Any]) -> None:
        with contextlib.suppress(OSError, ValueError):  # a dead process shows in its answers
            self._requests.write(json.dumps(message).encode() + b"\n")
            self._requests.flush()

    def kill(self) -> None:
        self._process.kill()

    def end(self, seconds: float) -> None:
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            self._process.wait()
        for thread in self._threads:
            thread.join(SECONDS_TO_END)
        for pipe in self._pipes():
            with contextlib.suppress(OSError):
                _pipe(pipe).close()

    @property
    def killed(self) -> bool:
        """Whether the system or a person killed it; known once it is dead."""
        return os.name == "posix" and self._process.returncode == -signal.SIGKILL

    def cause_of_death(self) -> str:
        self.end(SECONDS_TO_END)
        code = self._process.returncode
        if self.killed:
            return "its process was killed (SIGKILL), perhaps because memory ran out: try fewer --jobs"
        try:
            return f"its process crashed ({signal.Signals(-code).name})"
        except ValueError:
            return f"its process ended with exit code {code}"

    def why_not_started(self) -> str:
        if self.killed:
            return ""
        words = self._errors[-1].strip() if self._errors else "it ended without a message"
        return f"Its process could not be started with {sys.executable} ({self.cause_of_death()}): {words}"

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


def _no_room(error: OSError | RuntimeError) -> NoRoomError:
    return NoRoomError(
        f"The system starts no other process ({error}), perhaps because of a limit on their number or since memory is "
        "short. Try fewer --jobs; 1 needs no other process."
    )


def _start_process(options: Mapping[str, Any]) -> subprocess.Popen[bytes]:
    # -I: no variable and no file in the current folder changes what the worker imports; its path is this process's
    # own. Its own session, so that Ctrl-C reaches this process only.
    flags = ["-I", *(["-X", "utf8"] if sys.flags.utf8_mode else [])]
    try:
        return subprocess.Popen(
            [sys.executable, *flags, "-c", _BOOTSTRAP, json.dumps(options)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
        )
    except OSError as error:
        raise _no_room(error) from error
