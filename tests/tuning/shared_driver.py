"""Drivers of a shared study of tiny trials, each in a process of its own.

Run as `shared_driver.py JSON` with `url`, `name`, `drivers`, `n_trials`, `seconds` (that a trial takes, at most), and
optionally `heartbeat` and `grace` (seconds). Says `ready` when everything is imported, which takes longer than all the
rest, and begins when a line comes: one driver for each name, in copies of this process if there are several. Each
prints a line for each trial that it begins and ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from netloom.errors import NetloomError
from netloom.parallel.serial import SerialExecutor
from netloom.parallel.tasks import Task, TaskContext
from netloom.tuning.driver import Driver, TrialEnd, Watcher
from netloom.tuning.samplers import create_pruner, create_sampler
from netloom.tuning.space import Dimension, arrange
from netloom.tuning.space_text import parse_dimension
from netloom.tuning.storage import close_storage, open_storage
from netloom.tuning.study import Proposal, SearchStudy

SPACE: Mapping[str, Any] = {"dropout": "0.0..0.6", "batch_size": "16,32,64"}


def dimensions_of(space: Mapping[str, Any]) -> tuple[Dimension, ...]:
    return arrange(parse_dimension(key, value, lambda _key, _value: None) for key, value in space.items())


def open_study(
    url: str,
    name: str,
    driver: str | None,
    *,
    heartbeat: int = 1,
    grace: int = 60,
    space: Mapping[str, Any] = SPACE,
    facts: Mapping[str, Any] | None = None,
    sampler: str = "random",
) -> SearchStudy:
    dimensions = dimensions_of(space)
    storage = open_storage(url, shared=True, heartbeat_seconds=heartbeat, grace_seconds=grace)
    try:
        study, _ = SearchStudy.create(
            storage,
            name,
            dimensions,
            direction="maximize",
            sampler=create_sampler(sampler, dimensions, seed=0, init_points=1, n_trials=None),
            pruner=create_pruner("median", epochs=3),
            driver=driver,
            facts=facts or {"recipe": "one"},
        )
    except NetloomError:
        close_storage(storage)
        raise
    return study


def trial(context: TaskContext, *, overrides: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    """Reports three times; as long as `seconds` at most, until it is asked to stop."""
    value = float(overrides["dropout"]) + overrides["batch_size"] / 1000
    for step in (1, 2, 3):
        context.report({"step": step, "value": value})
        deadline = time.monotonic() + seconds / 3
        while time.monotonic() < deadline:
            if context.stop_reason() is not None:
                return {"state": "stopped", "values": [value] * step}
            time.sleep(0.01)
    return {"state": "complete", "value": value, "values": [value] * 3}


class Printer(Watcher):
    def started(self, proposal: Proposal) -> None:
        tell(f"begun {proposal.number} {'again' if proposal.again else 'anew'}")

    def ended(self, end: TrialEnd) -> None:
        tell(f"ended {end.number} {end.state}")


def tell(line: str) -> None:
    os.write(1, f"{line}\n".encode())  # in one piece, since copies share it


def main() -> int:
    options = json.loads(sys.argv[1])
    names = options.pop("drivers")
    tell("ready")
    sys.stdin.readline()
    if len(names) == 1:
        return drive(driver=names[0], **options)
    processes = []
    for name in names:
        if (process := os.fork()) == 0:
            os._exit(drive(driver=name, **options))
        processes.append(process)
    return max(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in processes)


def drive(
    *, url: str, name: str, driver: str, n_trials: int, seconds: float, heartbeat: int = 1, grace: int = 60
) -> int:
    try:
        with contextlib.closing(open_study(url, name, driver, heartbeat=heartbeat, grace=grace)) as study:
            Driver(
                study=study,
                executor=SerialExecutor(),
                task_for=lambda p: Task(
                    f"trial-{p.number}", trial, {"overrides": dict(p.overrides), "seconds": seconds}
                ),
                n_trials=n_trials,
                seconds=None,
                pruning=True,
                at_once=False,
                watcher=Printer(),
            ).run()
    except Exception:  # also in a copy, which must not return into what its parent does
        traceback.print_exc()
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
