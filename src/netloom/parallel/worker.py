"""The process in which tasks run: reads JSON lines from its standard input and answers with JSON lines.

In:  `{"setup": {"function": NAME, "arguments": {…}}}` once, then `{"task": {"name", "function", "arguments"}}` one at
     a time, `{"stop": {"name", "reason"}}` at any time, and `{"end": true}`.
Out: `{"ready": true}` once, then for each task any number of `{"report": {…}}` and one of `{"finished": VALUE}` and
     `{"failed": [reason, details]}`.

Names of functions are imported: the only one who can write to this input is the process that started this one.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import shutil
import signal
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from typing import IO, Any

from netloom.parallel.tasks import TaskContext, find, what_went_wrong

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


class _Worker:
    def __init__(self, remove: Sequence[str]) -> None:
        # What tasks and libraries print must not come between the answers.
        self._answers: IO[bytes] = os.fdopen(os.dup(1), "wb")
        os.dup2(2, 1)
        self._requests: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._remove = remove
        self._reasons: dict[str, str] = {}
        self._shared: Any = None
        threading.Thread(target=self._listen, daemon=True).start()
        if hasattr(os, "getppid"):
            threading.Thread(target=self._watch_parent, args=(os.getppid(),), daemon=True).start()

    def work(self) -> None:
        while "end" not in (request := self._requests.get()):
            if "setup" in request:
                self._set_up(request["setup"])
            else:
                self._do(request["task"])

    def answer(self, **message: Any) -> None:
        try:
            self._answers.write(json.dumps(message).encode() + b"\n")
            self._answers.flush()
        except OSError:  # nobody reads any more
            self._end_as_orphan()

    def reason_to_stop(self, name: str) -> str | None:
        return self._reasons.get(name)

    def _set_up(self, request: Mapping[str, Any]) -> None:
        try:
            if request["function"] is not None:
                self._shared = find(request["function"])(**request["arguments"])
        except Exception as error:
            self.answer(failed=what_went_wrong(error))
            return
        self.answer(ready=True)

    def _do(self, request: Mapping[str, Any]) -> None:
        try:
            context = _Context(self, request["name"], self._shared)
            value = find(request["function"])(context, **request["arguments"])
            self.answer(finished=value)
        except Exception as error:
            self.answer(failed=what_went_wrong(error))

    def _listen(self) -> None:
        for line in sys.stdin.buffer:
            request = json.loads(line)
            if "stop" in request:
                self._reasons.setdefault(request["stop"]["name"], request["stop"]["reason"])
                continue
            self._requests.put(request)
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


class _Context(TaskContext):
    def __init__(self, worker: _Worker, name: str, shared: Any) -> None:
        self.shared = shared
        self._worker, self._name = worker, name

    def report(self, values: Mapping[str, Any]) -> None:
        self._worker.answer(report=dict(values))

    def stop_reason(self) -> str | None:
        return self._worker.reason_to_stop(self._name)
