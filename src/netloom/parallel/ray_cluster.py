"""Workers on the machines of a Ray cluster.

Each is an actor, which Ray places where there are CPUs and GPUs for it. What it shall do and what it tells is JSON
text; only the pictures go as they are, once, into Ray's object store, which holds one copy on each machine for all
workers there.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from netloom.errors import NetloomError
from netloom.parallel.pool import Worker, WorkerPool
from netloom.parallel.ray_actor import CALLS_AT_ONCE, TaskActor, installed_version
from netloom.parallel.ray_connection import connected
from netloom.parallel.tasks import OnEvent, Task, name_of

_SECONDS_BEFORE_SAYING = 10.0
"""What Ray may take to start a process before a person should hear what is waited for; measured: 1 to 4."""


class RayExecutor(WorkerPool["_Actor"]):
    """Runs up to `jobs` tasks at once on a Ray cluster, each in a process of its own.

    All workers are started at once, and wait where others use the cluster; a task is taken when a worker has a place.

    Args:
        address: `auto`, `local`, `HOST:PORT` or `ray://HOST:PORT`; see `ray_connection.connected`.
        jobs: Workers at most; None for as many as fit the cluster.
        cpus_per_task: CPUs that Ray keeps for each.
        gpus_per_task: GPUs that Ray keeps for each, which sees no others.
        setup: Makes, in each process, what tasks find as `context.shared`: `setup(**arguments, **arrays)`.
        arguments: Plain arguments of `setup`.
        arrays: Large arguments of `setup`, which gets them read-only, in memory that a machine's workers share.
        say: Tells a person what is waited for.

    Raises:
        NetloomError: Ray is not installed, the cluster cannot be used, or no machine of it has room for a task.
    """

    def __init__(
        self,
        address: str,
        jobs: int | None,
        *,
        cpus_per_task: float = 1,
        gpus_per_task: float = 0,
        setup: Callable[..., Any] | None = None,
        arguments: Mapping[str, Any] | None = None,
        arrays: Mapping[str, npt.NDArray[Any]] | None = None,
        say: Callable[[str], None] | None = None,
    ) -> None:
        text = json.dumps({"function": None if setup is None else name_of(setup), "arguments": dict(arguments or {})})
        self._ending = contextlib.ExitStack()
        self._connection = self._ending.enter_context(connected(address))
        self._ray = self._connection.ray
        self._needs = {name: n for name, n in (("CPU", cpus_per_task), ("GPU", gpus_per_task)) if n > 0}
        self._say = say or (lambda _: None)
        self._waiting_since: float | None = None
        try:
            room = self._room()
            super().__init__(room if jobs is None else jobs)
            self._class = self._ray.remote(TaskActor).options(
                num_cpus=cpus_per_task,
                num_gpus=gpus_per_task,
                max_concurrency=CALLS_AT_ONCE,
                scheduling_strategy="SPREAD",  # neighbours on one machine take each other's memory bandwidth
            )
            self._setup = self._put(text, "The set-up")
            self._arrays = {
                name: self._put(np.ascontiguousarray(array), f"{array.nbytes / 1e6:,.0f} MB of {name}")
                for name, array in (arrays or {}).items()
            }
        except BaseException:
            self._ending.close()
            raise

    def close(self, *, at_once: bool = False) -> None:
        """End all workers, and the cluster if it was started for them."""
        self._kill_all()
        self._arrays, self._setup = {}, None
        self._ending.close()

    def _start(self, slot: int) -> _Actor:
        return _Actor(self._ray, self._class.remote(self._setup, sys.path, **self._arrays))

    def _listen(self, seconds: float) -> list[tuple[_Actor, dict[str, Any] | None]]:
        listeners = {worker.heard: worker for worker in self._living()}
        try:
            done, _ = self._ray.wait(list(listeners), num_returns=1, timeout=seconds)
            if done:
                done, _ = self._ray.wait(list(listeners), num_returns=len(listeners), timeout=0)
            return [(listeners[ref], message) for ref in done for message in listeners[ref].messages()]
        except (ConnectionError, self._ray.exceptions.RayError) as error:
            raise NetloomError(
                f"The connection to the Ray cluster at {self._connection.address} broke ({_first_line(error)}). "
                "See whether its head node still runs."
            ) from error

    def _hand_out(self, waiting: Iterator[Task | None], on_event: OnEvent) -> None:
        if self._tasks_left:
            self._slots = [self._start(slot) if worker is None else worker for slot, worker in enumerate(self._slots)]
            self._say_if_waiting()
        super()._hand_out(waiting, on_event)

    def _take(self, worker: _Actor, message: dict[str, Any] | None, on_event: OnEvent, *, last: bool) -> None:
        if message is None or "placed" not in message or worker not in self._slots:
            super()._take(worker, message, on_event, last=last)
            return
        there, here = message["placed"], installed_version()
        if there["version"] != here:
            raise NetloomError(
                f"{there['machine']} has netloom {there['version']}, this machine {here}. Install the same version on "
                "all machines of the cluster."
            )
        worker.placed = True

    def _give_up(self, worker: _Actor, reason: str, on_event: OnEvent) -> None:
        super()._give_up(worker, reason, on_event)
        if worker.task is None:  # no task went with it, so that nothing else would end the attempts
            self._slots.remove(None)
            if not self._slots:
                raise NetloomError(reason)

    def _say_if_waiting(self) -> None:
        """Tell once, whenever nothing has a place for some time, what is missing."""
        if any(worker.placed for worker in self._living()):
            self._waiting_since = None
        elif self._waiting_since is None:
            self._waiting_since = time.monotonic()
        elif time.monotonic() - self._waiting_since >= _SECONDS_BEFORE_SAYING:
            self._waiting_since = float("inf")
            self._room()
            free = self._ray.available_resources()
            self._say(
                f"Waiting for the cluster: a task needs {_described(self._needs)}; "
                f"of all machines together {_described({name: free.get(name, 0) for name in self._needs})} is free"
            )

    def _room(self) -> int:
        """How many tasks the machines that are there could do at once, were nobody else there.

        Raises:
            NetloomError: Not even one.
        """
        machines = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        needs = self._needs
        room = sum(min((int(has.get(name, 0) / needs[name] + 1e-9) for name in needs), default=1) for has in machines)
        if room == 0:
            raise NetloomError(
                f"A task needs {_described(needs)} on one machine, but the Ray cluster at {self._connection.address} "
                f"has {'; '.join(map(_described, machines)) or 'no machine'}. Ask for less, or add a larger machine."
            )
        return room

    def _put(self, value: Any, name: str) -> Any:
        try:
            return self._ray.put(value)
        except self._ray.exceptions.RayError as error:
            raise NetloomError(
                f"{name} cannot be put into the object store of the Ray cluster ({_first_line(error)}). Start Ray with "
                "a larger --object-store-memory, or free some disk space."
            ) from error


class _Actor(Worker):
    """An actor, and the answer it owes."""

    def __init__(self, ray: ModuleType, actor: Any) -> None:
        super().__init__(placed=False)
        self._ray, self._actor = ray, actor
        self._error: Exception | None = None
        self.heard = actor.receive.remote()

    def messages(self) -> list[dict[str, Any] | None]:
        """What it has answered, None at the end if it has died; it is asked for more."""
        try:
            texts = self._ray.get(self.heard)
        except self._ray.exceptions.RayError as error:
            self._error = error
            self.kill()  # one that is only out of reach must not do what another is given
            return [None]
        self.heard = self._actor.receive.remote()
        return [json.loads(text) for text in texts]

    def send(self, message: Mapping[str, Any]) -> None:
        with contextlib.suppress(ConnectionError):
            self._actor.send.remote(json.dumps(message))

    def kill(self) -> None:
        with contextlib.suppress(ConnectionError, RuntimeError, self._ray.exceptions.RayError):  # where all is gone
            self._ray.kill(self._actor)

    def end(self, seconds: float) -> None:
        self.kill()

    def cause_of_death(self) -> str:
        text = str(self._error)
        if "NODE_OUT_OF_MEMORY" in text:
            return "its process was ended because its machine ran low on memory: try fewer --jobs"
        if "its node has died" in text:
            return "its machine left the cluster"
        if isinstance(self._error, self._ray.exceptions.ActorUnavailableError):
            return "it cannot be reached any more: its process or its machine is gone"
        return "its process crashed or was killed, perhaps because memory ran out: try fewer --jobs"

    def why_not_started(self) -> str:
        text = str(self._error)
        initialized = not getattr(self._error, "actor_init_failed", False)
        if initialized and (self.placed or "its node has died" in text):
            return ""
        if "No module named 'netloom" in text:
            return (
                "A machine of the Ray cluster has no netloom where Ray runs. Install the same version of it on all "
                "machines of the cluster, in the environment that Ray was started from."
            )
        return f"A worker could not be started on the Ray cluster: {text.strip().splitlines()[-1]}"

    def last_words(self) -> str:
        return str(self._error)


def _described(resources: Mapping[str, float]) -> str:
    """For people: `4 CPU, 1 GPU`."""
    return ", ".join(f"{resources[name]:g} {name}" for name in ("CPU", "GPU") if name in resources) or "nothing"


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
