"""Tasks for the executors' tests; worker processes import them from here."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from netloom.errors import TrainingError
from netloom.parallel.tasks import TaskContext


def make_shared(*, value: Any) -> dict[str, Any]:
    return {"value": value, "process": os.getpid()}


def refuse_setup() -> None:
    raise TrainingError("the pictures are gone")


def killed_setup(*, marker: str) -> None:
    """Is killed the first time."""
    path = Path(marker)
    if not path.exists():
        path.touch()
        os.kill(os.getpid(), signal.SIGKILL)


def setup_once(*, marker: str) -> None:
    """Works the first time only, as if the shared files were removed meanwhile."""
    path = Path(marker)
    if path.exists():
        raise TrainingError("the pictures are gone")
    path.touch()


def square(context: TaskContext, *, number: float) -> float:
    print("this must not come between the answers")  # noqa: T201
    context.report({"number": number})
    return number**2


def shared_value(context: TaskContext) -> Any:
    return context.shared


def process(context: TaskContext) -> int:
    time.sleep(0.05)
    return os.getpid()


def fail(context: TaskContext, *, kindly: bool) -> None:
    if kindly:
        raise TrainingError("the loss is no number\nin epoch 3")
    raise ZeroDivisionError("by zero")


def kill_first(context: TaskContext, *, marker: str, number: int) -> str:
    """Dies of a signal the first time, by leaving a marker."""
    path = Path(marker)
    if not path.exists():
        path.touch()
        os.kill(os.getpid(), number)
    return "second time"


def kill_always(context: TaskContext) -> None:
    signal.raise_signal(signal.SIGSEGV)


def run_out_of_memory(context: TaskContext, *, kind: str) -> None:
    """As Python and torch's CPU allocator say it."""
    if kind == "python":
        raise MemoryError
    raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4000000 bytes.\nException")


def talk(context: TaskContext, *, seconds: float) -> dict[str, Any]:
    """Reports a hundred times a second, and is then a complete trial."""
    started = time.monotonic()
    while (passed := time.monotonic() - started) < seconds:
        context.report({"at": passed})
        time.sleep(0.01)
    return {"state": "complete", "value": 0.5}


def until_stopped(context: TaskContext) -> str:
    """Works until it is asked to stop, telling its process."""
    context.report({"process": os.getpid()})
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        context.report({})
        if (reason := context.stop_reason()) is not None:
            return reason
        time.sleep(0.01)
    return "never asked"


def deaf(context: TaskContext) -> None:
    """Never looks whether it shall stop."""
    context.report({"process": os.getpid()})
    time.sleep(60)


def affinity(context: TaskContext) -> list[int]:
    time.sleep(0.3)
    return sorted(os.sched_getaffinity(0))


def own_megabytes(context: TaskContext, *, shared: dict[str, str]) -> dict[str, float]:
    """Maps and reads all pictures: how much that added to what this process holds for itself, and their size."""
    import torch

    from netloom.parallel.pictures import map_pictures

    int(torch.ones(100, dtype=torch.uint8).sum())  # torch's own first allocations
    before = _own_bytes()
    pictures = map_pictures(**shared)
    total = sum(int(picture.sum()) for picture in pictures.images)
    grown = _own_bytes() - before
    return {"grown": grown / 1e6, "all": pictures.images.numel() / 1e6, "sum": total}


def _own_bytes() -> int:
    text = Path("/proc/self/smaps_rollup").read_text()
    return sum(int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("Anonymous:"))


def small_network(in_channels: int, num_outputs: int) -> Any:
    """A network of the user's own."""
    from torch import nn

    return nn.Sequential(
        nn.Conv2d(in_channels, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, num_outputs)
    )


def pictures_on_cluster(*, pixels: Any, labels: dict[str, Any]) -> Any:
    """What the pictures cost this process before anyone reads them."""
    import torch

    from netloom.parallel.pictures import pictures_of

    int(torch.ones(100, dtype=torch.uint8).sum())  # torch's own first allocations
    before = _own_bytes()
    return pictures_of(pixels, labels), before


def read_pictures(context: TaskContext) -> dict[str, Any]:
    """Reads all pictures: how much this process holds for itself since, their sum and what was told of them."""
    pictures, before = context.shared
    total = sum(int(picture.sum()) for picture in pictures.images)
    _stay(context)
    return {
        "process": os.getpid(),
        "machine": _node(),
        "grown": (_own_bytes() - before) / 1e6,
        "sum": total,
        "targets": pictures.targets.tolist(),
        "ids": pictures.ids,
        "weights": pictures.weights.tolist(),
    }


def machine(context: TaskContext) -> str:
    """On which node of a Ray cluster it runs."""
    _stay(context)
    return _node()


def _node() -> str:
    import ray

    return str(ray.get_runtime_context().get_node_id())


def _stay(context: TaskContext) -> None:
    """Keep a worker busy until the driver has heard of it and says stop."""
    context.report({})
    while context.stop_reason() is None:
        time.sleep(0.01)


def out_of_process(context: TaskContext) -> None:
    sys.exit(3)
