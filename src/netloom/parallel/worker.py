"""The process in which tasks run: reads JSON lines from its standard input and answers with JSON lines.

What they say is in `task_loop.py`.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Sequence
from typing import IO, Any

from netloom.parallel.task_loop import TaskLoop

_SECONDS_BETWEEN_LOOKS = 1.0


def main(*, cpus: Sequence[int], remove: Sequence[str]) -> None:
    """Work until the end is told or the driver is gone.

    Args:
        cpus: To stay on, where the system can; none for any.
        remove: Folders to remove if the driver dies, which would have removed them itself.
    """
    if cpus and hasattr(os, "sched_setaffinity"):
        with contextlib.suppress(OSError):  # such a CPU may be gone by now
            os.sched_setaffinity(0, cpus)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the driver's to handle
    _Worker(remove).work()
    sys.stderr.flush()
    os._exit(0)  # everything is written; taking torch down in order would take a third of a second


class _Worker(TaskLoop):
    def __init__(self, remove: Sequence[str]) -> None:
        super().__init__()
        # What tasks and libraries print must not come between the answers.
        self._answers: IO[bytes] = os.fdopen(os.dup(1), "wb")
        os.dup2(2, 1)
        self._remove = remove
        threading.Thread(target=self._listen, daemon=True).start()
        if hasattr(os, "getppid"):
            threading.Thread(target=self._watch_parent, args=(os.getppid(),), daemon=True).start()

    def answer(self, **message: Any) -> None:
        line = json.dumps(message).encode() + b"\n"
        try:
            self._answers.write(line)
            self._answers.flush()
        except OSError:  # nobody reads any more
            self._end_as_orphan()

    def _listen(self) -> None:
        for line in sys.stdin.buffer:
            request = json.loads(line)
            self.hear(request)
            if "end" in request:
                return
        self._end_as_orphan()

    def _watch_parent(self, parent: int) -> None:
        """A process that the driver forked may keep the pipe open after the driver's death."""
        while os.getppid() == parent:
            time.sleep(_SECONDS_BETWEEN_LOOKS)
        self._end_as_orphan()

    def _end_as_orphan(self) -> None:
        """The driver is gone: end at once, as by a crash; what is half done can be resumed."""
        for folder in self._remove:
            shutil.rmtree(folder, ignore_errors=True)
        os._exit(1)
