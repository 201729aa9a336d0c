"""What runs in a process of a Ray cluster: the loop of `task_loop.py`, in a thread of its own.

Messages are JSON text, as between local processes; `receive` is asked again and again and answers when there is
something to tell, so that no third process has to keep the messages.
"""

from __future__ import annotations

import json
import os
import platform
import queue
import sys
import threading
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from netloom.parallel.task_loop import TaskLoop

CALLS_AT_ONCE = 3
"""Of the actor: one waits in `receive` nearly all the time, and a `send` is not to wait for it."""


def installed_version() -> str:
    """Of netloom; `unknown` where it is used without having been installed."""
    try:
        return metadata.version("netloom")
    except metadata.PackageNotFoundError:
        return "unknown"


class TaskActor:
    """A worker for one task at a time.

    Args:
        setup: The set-up's message, as JSON.
        path: Where the driver finds modules; what exists here too is searched last.
        arrays: Further arguments of the set-up: NumPy arrays, read-only, in memory shared by this machine's workers.
    """

    def __init__(self, setup: str, path: Sequence[str], **arrays: Any) -> None:
        sys.path.extend(folder for folder in path if folder not in sys.path and Path(folder).is_dir())
        self._loop = _Loop()
        self._loop.answer(placed={"machine": platform.node(), "version": installed_version()})
        self._loop.hear({"setup": json.loads(setup)})
        threading.Thread(target=self._work, kwargs=arrays, daemon=True).start()

    def send(self, text: str) -> None:
        """Take a message of the driver."""
        self._loop.hear(json.loads(text))

    def receive(self) -> list[str]:
        """All messages for the driver since the last call, in their order; waits for one."""
        texts = [self._loop.said.get()]
        while not self._loop.said.empty():  # nobody else takes from it
            texts.append(self._loop.said.get())
        return texts

    def _work(self, **arrays: Any) -> None:
        try:
            self._loop.work(**arrays)
        finally:  # a task that ends its thread, by sys.exit() say, ends its process, as it does elsewhere
            os._exit(1)


class _Loop(TaskLoop):
    def __init__(self) -> None:
        super().__init__()
        self.said: queue.SimpleQueue[str] = queue.SimpleQueue()

    def answer(self, **message: Any) -> None:
        self.said.put(json.dumps(message))
