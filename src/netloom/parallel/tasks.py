"""What every executor has in common: tasks go in, events come out.

A task is a function that can be imported by name and plain arguments, so that it can be sent to another process or
machine as JSON. It is called with a `TaskContext`, through which it reports and is asked to stop.
"""

from __future__ import annotations

import importlib
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from netloom.errors import NetloomError
from netloom.memory import is_lack_of_memory


@dataclass(frozen=True)
class Task:
    """A piece of work.

    Attributes:
        name: Unlike that of any other task of the job.
        function: Called as `function(context, **arguments)`; its value must be plain (what JSON holds). Worker
            processes import it, so it is defined in a module, not inside a function or in the user's script.
        arguments: Plain values by name.
    """

    name: str
    function: Callable[..., Any]
    arguments: Mapping[str, Any] = field(default_factory=dict)


class TaskContext(ABC):
    """What a running task has of the executor.

    Attributes:
        shared: What the executor's set-up made in this process, such as the decoded pictures.
    """

    shared: Any

    @abstractmethod
    def report(self, values: Mapping[str, Any]) -> None:
        """Tell the driver plain values, such as an epoch's figures; it gets them as a `Reported` event."""

    @abstractmethod
    def stop_reason(self) -> str | None:
        """Why the task should end soon, or None. What it returns then is its value all the same."""


@dataclass(frozen=True)
class Event:
    """Something that happened to a task."""

    task: Task


@dataclass(frozen=True)
class Started(Event):
    """The task was handed to a worker, for the first time where `attempt` is 1."""

    attempt: int


@dataclass(frozen=True)
class Reported(Event):
    """The task told something."""

    values: Mapping[str, Any]


@dataclass(frozen=True)
class Finished(Event):
    """The task returned."""

    value: Any


@dataclass(frozen=True)
class Retried(Event):
    """The process that ran the task died; the task is waiting to be started once more."""

    reason: str


@dataclass(frozen=True)
class Failed(Event):
    """The task raised, or its process died too often. The other tasks go on.

    Attributes:
        reason: For people, one line.
        details: The traceback, where the error is not one that a user can act on, or the last words of a process that
            died; else empty.
        died: Its process died, so that the task itself may be without fault.
    """

    reason: str
    details: str = ""
    died: bool = False


OnEvent = Callable[[Event], None]
Interruption = Callable[[], str | None]

SECONDS_UNTIL_ASKED_AGAIN = 0.01
"""For a task that is not decided yet."""


def uninterrupted() -> str | None:
    """Nobody asks for an end."""
    return None


class Executor(ABC):
    """Runs tasks, several at once where it can. Use it as a context manager: leaving it ends all that it started."""

    @abstractmethod
    def run(
        self, tasks: Iterable[Task | None], on_event: OnEvent, *, interruption: Interruption = uninterrupted
    ) -> None:
        """Have all tasks done.

        Args:
            tasks: The next one is taken whenever a worker is idle, so a generator can decide late. None stands for
                one that is not decided yet: it is asked for again a moment later, and meanwhile what runs is heard.
            on_event: Called in this thread with every event. It may call `stop`.
            interruption: Asked many times a second; once it gives a reason, every running task is asked to stop, no
                other is started, and `run` returns when all have ended or their time is up.

        Raises:
            NetloomError: Workers cannot be started.
        """

    @abstractmethod
    def stop(self, name: str, reason: str) -> None:
        """Ask a running task to end early; the others go on."""

    @abstractmethod
    def close(self, *, at_once: bool = False) -> None:
        """End all that was started; `at_once` without waiting for anything."""

    def __enter__(self) -> Executor:
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        self.close(at_once=kind is not None)


def name_of(function: Callable[..., Any]) -> str:
    """`package.module:function`, by which another process finds it.

    Raises:
        NetloomError: It is not found so: a lambda, something inside a function, or of the user's script or notebook.
    """
    module, qualified = getattr(function, "__module__", None), getattr(function, "__qualname__", None)
    name = f"{module}:{qualified}"
    if module != "__main__":
        try:
            if find(name) is function:
                return name
        except (ImportError, AttributeError):
            pass
    raise NetloomError(
        f"{qualified or function!r} cannot be used by other processes, since it cannot be imported from a module. Put "
        "it into a file of its own and import it from there, or run one after the other with jobs=1."
    )


def find(name: str) -> Any:
    """What `name_of` named.

    Raises:
        ImportError: There is no such module.
        AttributeError: It has no such function.
    """
    module, _, qualified = name.partition(":")
    found: Any = importlib.import_module(module)
    for part in qualified.split("."):
        found = getattr(found, part)
    return found


def what_went_wrong(error: Exception) -> tuple[str, str]:
    """Reason and details of `Failed` for what a task raised."""
    if isinstance(error, NetloomError):
        return str(error), ""
    text = f"{error}".strip().splitlines()
    if is_lack_of_memory(error):
        said = f" ({text[0][:300]})" if text else ""
        return f"Memory ran out{said}. A smaller batch_size, image_size or network needs less, as do fewer --jobs.", ""
    return f"{type(error).__name__}: {text[0] if text else 'without a message'}"[:500], traceback.format_exc()
