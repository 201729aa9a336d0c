"""What executors with workers of their own have in common: who gets which task, and what follows when one dies."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Generic, TypeVar

from netloom.errors import NetloomError
from netloom.parallel.tasks import (
    SECONDS_UNTIL_ASKED_AGAIN,
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

SECONDS_TO_END = 1.5
"""What a task asked to stop has for saving its state; a killed one loses what came after its last checkpoint."""


class NoRoomError(NetloomError):
    """A worker cannot be started, perhaps because there are others."""


class Worker(ABC):
    """A process somewhere, as the driver sees it.

    Attributes:
        task: What it does; None while it is idle.
        attempt: Which one at this task.
        placed: Whether it has a place to run, so that it can be given a task.
        ready: Whether it is set up.
    """

    def __init__(self, *, placed: bool) -> None:
        self.task: Task | None = None
        self.attempt = 0
        self.placed = placed
        self.ready = False

    def give(self, task: Task, attempt: int) -> None:
        """Have a task done."""
        self.task, self.attempt = task, attempt
        arguments = dict(task.arguments)
        self.send({"task": {"name": task.name, "function": name_of(task.function), "arguments": arguments}})

    def ask_to_stop(self, reason: str) -> None:
        """Ask its task, if it has any, to end early."""
        if self.task is not None:
            self.send({"stop": {"name": self.task.name, "reason": reason}})

    @abstractmethod
    def send(self, message: Mapping[str, Any]) -> None:
        """Say something of `task_loop.py` to it; a dead one shows in what it answers, not here."""

    @abstractmethod
    def kill(self) -> None:
        """End it without a word, and without waiting for that."""

    @abstractmethod
    def end(self, seconds: float) -> None:
        """Wait for its end, kill it where that takes longer, and free what it held."""

    @abstractmethod
    def cause_of_death(self) -> str:
        """For people; it is dead."""

    @abstractmethod
    def why_not_started(self) -> str:
        """For people, a sentence; it died before it was ready. Empty if it was killed rather than unable to work."""

    @abstractmethod
    def last_words(self) -> str:
        """What it wrote last to its standard error, as far as that is known here."""


AnyWorker = TypeVar("AnyWorker", bound=Worker)


class WorkerPool(Executor, Generic[AnyWorker]):
    """An executor with up to `jobs` workers, which are started when there is work for them, and then reused."""

    def __init__(self, jobs: int) -> None:
        self._slots: list[AnyWorker | None] = [None] * jobs
        self._again: deque[tuple[Task, int]] = deque()
        self._no_more = False  # whether the tasks have all been taken
        self._undecided = False  # whether a worker is idle since the next task is not decided yet
        self._proven = False  # whether a worker could ever be set up

    @abstractmethod
    def _start(self, slot: int) -> AnyWorker:
        """A new worker, which is being set up.

        Raises:
            NoRoomError: This machine has no room for another process.
        """

    def _do_with_fewer(self, error: NoRoomError) -> None:
        """Go on with the workers that there are, after no other could be started.

        Raises:
            NoRoomError: There is none.
        """
        raise error

    @abstractmethod
    def _listen(self, seconds: float) -> Sequence[tuple[AnyWorker, dict[str, Any] | None]]:
        """What workers said, None if one ended; waits no longer than that for the first word."""

    def run(
        self, tasks: Iterable[Task | None], on_event: OnEvent, *, interruption: Interruption = uninterrupted
    ) -> None:
        """Have all tasks done; see `Executor.run`."""
        waiting = iter(tasks)
        out_of_time: float | None = None
        self._again.clear()
        self._no_more = False
        while True:
            if out_of_time is None and (reason := interruption()) is not None:
                out_of_time = time.monotonic() + SECONDS_TO_END
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
                if not self._tasks_left:
                    return
            for worker, message in self._listen(SECONDS_UNTIL_ASKED_AGAIN if self._undecided else _POLL_SECONDS):
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
        self._free(SECONDS_TO_END)

    @property
    def _tasks_left(self) -> bool:
        return bool(self._again) or not self._no_more

    def _living(self) -> list[AnyWorker]:
        return [worker for worker in self._slots if worker is not None]

    def _free(self, seconds: float) -> None:
        for worker in self._living():
            worker.end(seconds)
        self._slots = [None] * len(self._slots)

    def _kill_all(self) -> None:
        for worker in self._living():
            worker.kill()
        self._free(0)

    def _hand_out(self, waiting: Iterator[Task | None], on_event: OnEvent) -> None:
        """Give every idle worker a task, as long as there are any."""
        self._undecided = False
        for slot in sorted(range(len(self._slots)), key=lambda slot: self._slots[slot] is None):
            worker = self._slots[slot]
            if worker is not None and (worker.task is not None or not worker.placed):
                continue
            task, attempt = self._next_task(waiting)
            if task is None:
                return
            if worker is None:
                try:
                    worker = self._slots[slot] = self._start(slot)
                except NoRoomError as error:
                    self._again.appendleft((task, attempt))
                    self._do_with_fewer(error)
                    return
            worker.give(task, attempt)
            on_event(Started(task, attempt))

    def _next_task(self, waiting: Iterator[Task | None]) -> tuple[Task | None, int]:
        if self._again:
            return self._again.popleft()
        if self._no_more:
            return None, 1
        try:
            task = next(waiting)
        except StopIteration:
            self._no_more = True
            return None, 1
        self._undecided = task is None
        return task, 1

    def _take(self, worker: AnyWorker, message: dict[str, Any] | None, on_event: OnEvent, *, last: bool) -> None:
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

    def _bury(self, worker: AnyWorker, on_event: OnEvent, *, last: bool) -> None:
        """A worker has died: start its task once more, or give it up."""
        reason = worker.cause_of_death()
        if not worker.ready and (unable := worker.why_not_started()):
            self._give_up(worker, unable, on_event)
            return
        self._slots[self._slots.index(worker)] = None
        task, attempt = worker.task, worker.attempt
        if task is None:
            return
        if attempt < _MAX_ATTEMPTS and not last:
            self._again.append((task, attempt + 1))
            on_event(Retried(task, reason))
        else:
            on_event(Failed(task, reason, worker.last_words(), died=True))

    def _give_up(self, worker: AnyWorker, reason: str, on_event: OnEvent) -> None:
        """A worker cannot work: that is the end of all where none ever could, else of its task."""
        self._slots[self._slots.index(worker)] = None
        if not self._proven:
            self._kill_all()
            raise NetloomError(reason)
        if worker.task is not None:
            on_event(Failed(worker.task, reason, worker.last_words(), died=True))


def _event(task: Task, message: Mapping[str, Any]) -> Event:
    if "report" in message:
        return Reported(task, message["report"])
    if "finished" in message:
        return Finished(task, message["finished"])
    reason, details = message["failed"]
    return Failed(task, reason, details)
