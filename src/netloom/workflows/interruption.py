"""Ctrl-C and SIGTERM end a training between two steps, with everything saved; a second Ctrl-C ends it at once.

A time that is over can end trainings in the same way.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextvars import ContextVar
from types import FrameType
from typing import Any

BY_USER = "interrupted by the user (Ctrl-C)"
BY_SYSTEM = "asked to end by the system (SIGTERM)"
BY_TIME = "the time limit was used up"

_deadline: ContextVar[float | None] = ContextVar("deadline", default=None)


def exit_code_of(reason: str) -> int:
    """What the command line ends with after an interruption for this reason."""
    return 143 if reason == BY_SYSTEM else 130


def quoted(argument: object) -> str:
    """An argument of a command as a shell of this system takes it for one."""
    if os.name == "nt":
        return subprocess.list2cmdline([str(argument)])
    return shlex.quote(str(argument))


def how_to_go_on(command: str, call: str, *, in_memory: bool, model: object, callbacks: bool = False) -> str:
    """What to do after an interruption: the command, or, where that cannot have all that is needed, the call.

    Args:
        command: For a shell; folders in it are `quoted`.
        call: For Python, without its closing parenthesis.
        in_memory: The pictures are not on the disk.
        model: The function making the network, where it is the user's own.
        callbacks: There are some of the user's own.
    """
    wanted = {"source=image_set": in_memory, "model=model": model is not None, "callbacks=callbacks": callbacks}
    given = [argument for argument, needed in wanted.items() if needed]
    return f"{', '.join([call, *given])})" if given else command


class Interruption:
    """Says whether the training was asked to end; pass it to `fit`."""

    def __init__(self) -> None:
        self.reason: str | None = None
        self._deadline = _deadline.get()

    def __call__(self) -> str | None:
        """Why to stop, or None."""
        if self.reason is None and self._deadline is not None and time.perf_counter() >= self._deadline:
            self.reason = BY_TIME
        return self.reason


@contextlib.contextmanager
def ending_at(deadline: float) -> Iterator[None]:
    """Whatever listens within the body is interrupted when `time.perf_counter()` has come to `deadline`."""
    token = _deadline.set(deadline)
    try:
        yield
    finally:
        _deadline.reset(token)


@contextlib.contextmanager
def listening() -> Iterator[Interruption]:
    """Catch the signals for the body; outside the main thread, where Python cannot, none is caught."""
    interruption = Interruption()
    if threading.current_thread() is not threading.main_thread():
        yield interruption
        return

    def ask(number: int, _frame: FrameType | None) -> None:
        if interruption.reason is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        interruption.reason = BY_USER if number == signal.SIGINT else BY_SYSTEM

    before: dict[int, Any] = {number: signal.signal(number, ask) for number in _SIGNALS}
    try:
        yield interruption
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


_SIGNALS = (signal.SIGINT, signal.SIGTERM)
