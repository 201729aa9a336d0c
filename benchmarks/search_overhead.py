"""What the driver of a search costs for each trial, beside the trial itself.

Trials that sleep 50 ms, random search over three dimensions, as `netloom tune` runs them: a database file, worker
processes. The overhead is jobs x wall time / trials - 50 ms: the time that a worker does not spend in trials. Run as
`python -m benchmarks.search_overhead [TRIALS]`; prints JSON.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from netloom.parallel.local import LocalExecutor
from netloom.parallel.serial import SerialExecutor
from netloom.parallel.tasks import Executor, Task, TaskContext
from netloom.tuning.driver import Driver
from netloom.tuning.samplers import create_pruner, create_sampler
from netloom.tuning.space import arrange
from netloom.tuning.space_text import parse_dimension
from netloom.tuning.storage import open_own
from netloom.tuning.study import SearchStudy

SECONDS = 0.05
REPORTS = 5
SPACE = {"learning_rate": "1e-4..1e-1:log", "dropout": "0.0..0.6", "batch_size": "16,32,64"}


def nap(context: TaskContext, *, overrides: dict[str, Any]) -> dict[str, Any]:
    """A trial that takes a known time and reports five times."""
    started = time.perf_counter()
    value = float(overrides["dropout"])
    for step in range(1, REPORTS + 1):
        time.sleep(max(0.0, started + step * SECONDS / REPORTS - time.perf_counter()))
        context.report({"step": step, "value": value})
    return {"state": "complete", "value": value, "values": [value] * REPORTS}


def measure(executor: Executor, jobs: int, n_trials: int, folder: Path) -> dict[str, float]:
    """The overhead of each trial in milliseconds, and the CPU time that this process took for it."""
    dimensions = arrange(parse_dimension(key, value, lambda _key, _value: None) for key, value in SPACE.items())
    study, _ = SearchStudy.create(
        open_own(folder / f"{jobs}.db"),
        "overhead",
        dimensions,
        direction="maximize",
        sampler=create_sampler("random", dimensions, seed=0, init_points=1, n_trials=n_trials),
        pruner=create_pruner("median", epochs=REPORTS),
    )

    def run(n: int) -> None:
        Driver(
            study=study,
            executor=executor,
            task_for=lambda p: Task(f"trial-{p.number}", nap, {"overrides": dict(p.overrides)}),
            n_trials=n,
            seconds=None,
            pruning=True,
            at_once=jobs > 1,
        ).run()

    run(2 * jobs)  # starts the workers
    wall, cpu = time.perf_counter(), time.process_time()
    run(2 * jobs + n_trials)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    study.close()
    pruned = sum(record.state == "pruned" for record in study.records()) / (2 * jobs + n_trials)
    return {
        "overhead_ms": 1000 * (jobs * wall / n_trials - SECONDS),
        "driver_cpu_ms": 1000 * cpu / n_trials,
        "pruned_share": pruned,
    }


def main() -> None:
    n_trials = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    with tempfile.TemporaryDirectory() as folder:
        found: dict[str, Any] = {"trials": n_trials, "seconds_per_trial": SECONDS}
        found["in this process"] = measure(SerialExecutor(), 1, n_trials, Path(folder))
        for jobs in (2, 4):
            with LocalExecutor(jobs) as executor:
                found[f"{jobs} workers"] = measure(executor, jobs, n_trials, Path(folder))
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    from benchmarks import search_overhead  # workers import the task by this name, not as __main__

    search_overhead.main()
