"""The inside of a worker: sets up once, then does one task after the other, and answers with plain messages.

In:  `{"setup": {"function": NAME, "arguments": {…}}}` once, then `{"task": {"name", "function", "arguments"}}` one at
     a time, `{"stop": {"name", "reason"}}` at any time, and `{"end": true}`.
Out: `{"ready": true}` once, then for each task any number of `{"report": {…}}` and one of `{"finished": VALUE}` and
     `{"failed": [reason, details]}`.

Names of functions are imported: the only one who can send these messages is the driver that started the worker.
"""

from __future__ import annotations

import queue
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from netloom.parallel.tasks import TaskContext, find, what_went_wrong


class TaskLoop(ABC):
    """Whoever inherits it brings the messages: `hear` may be called in any thread, `work` runs in one."""

    def __init__(self) -> None:
        self._requests: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._reasons: dict[str, str] = {}
        self._shared: Any = None

    @abstractmethod
    def answer(self, **message: Any) -> None:
        """Send a message to the driver; called in the thread of `work`.

        Raises:
            TypeError, ValueError: It is not plain.
        """

    def hear(self, request: dict[str, Any]) -> None:
        """Take a message of the driver."""
        if "stop" in request:
            self._reasons.setdefault(request["stop"]["name"], request["stop"]["reason"])
        else:
            self._requests.put(request)

    def work(self, **objects: Any) -> None:
        """Do what is asked until the end is.

        Args:
            objects: Further arguments of the set-up, which a message cannot hold.
        """
        while "end" not in (request := self._requests.get()):
            if "setup" in request:
                self._set_up(request["setup"], objects)
            else:
                self._do(request["task"])

    def reason_to_stop(self, name: str) -> str | None:
        """Why the task of that name should end soon, or None."""
        return self._reasons.get(name)

    def _set_up(self, request: Mapping[str, Any], objects: Mapping[str, Any]) -> None:
        try:
            if request["function"] is not None:
                self._shared = find(request["function"])(**request["arguments"], **objects)
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


class _Context(TaskContext):
    def __init__(self, loop: TaskLoop, name: str, shared: Any) -> None:
        self.shared = shared
        self._loop, self._name = loop, name

    def report(self, values: Mapping[str, Any]) -> None:
        self._loop.answer(report=dict(values))

    def stop_reason(self) -> str | None:
        return self._loop.reason_to_stop(self._name)
