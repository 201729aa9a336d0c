"""The executor without other processes: one task after the other, here."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any

from netloom.parallel.tasks import (
    SECONDS_UNTIL_ASKED_AGAIN,
    Executor,
    Failed,
    Finished,
    Interruption,
    OnEvent,
    Reported,
    Started,
    Task,
    TaskContext,
    uninterrupted,
    what_went_wrong,
)


class SerialExecutor(Executor):
    """Runs one task at a time in this process, where any function will do.

    Args:
        shared: What tasks find as `context.shared`.
    """

    def __init__(self, *, shared: Any = None) -> None:
        self._shared = shared
        self._asked: dict[str, str] = {}

    def run(
        self, tasks: Iterable[Task | None], on_event: OnEvent, *, interruption: Interruption = uninterrupted
    ) -> None:
        """Have all tasks done, in their order; see `Executor.run`."""
        for task in tasks:
            if interruption() is not None:
                return
            if task is None:
                time.sleep(SECONDS_UNTIL_ASKED_AGAIN)
                continue
            on_event(Started(task, 1))
            context = _Context(task, self._shared, on_event, interruption, self._asked)
            try:
                value = task.function(context, **task.arguments)
            except Exception as error:
                on_event(Failed(task, *what_went_wrong(error)))
            else:
                on_event(Finished(task, value))

    def stop(self, name: str, reason: str) -> None:
        """Ask a running task to end early."""
        self._asked.setdefault(name, reason)

    def close(self, *, at_once: bool = False) -> None:
        """Nothing was started."""


class _Context(TaskContext):
    def __init__(
        self, task: Task, shared: Any, on_event: OnEvent, interruption: Interruption, asked: Mapping[str, str]
    ) -> None:
        self.shared = shared
        self._task, self._on_event, self._interruption, self._asked = task, on_event, interruption, asked

    def report(self, values: Mapping[str, Any]) -> None:
        self._on_event(Reported(self._task, values))

    def stop_reason(self) -> str | None:
        return self._asked.get(self._task.name) or self._interruption()
