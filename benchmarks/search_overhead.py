"""What the driver of a search costs for each trial, beside the trial itself.

    python -m benchmarks.search_overhead [--trials 100] [--gp-trials 40] [--rounds 1]

Trials that sleep, over three dimensions, as `netloom tune` runs them: a database file, worker processes, pruning. The
overhead is jobs x wall time / trials - the sleep: the time that a worker does not spend in trials. Random search with
trials of 50 ms, and Gaussian processes with trials of one second, whose fits, tenths of a second, should be done while
workers are busy. Recorded in docs/results/programs/search_overhead.json.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.suite.machine import OtherWork
from benchmarks.whole_programs import save
from netloom.parallel.local import LocalExecutor
from netloom.parallel.serial import SerialExecutor
from netloom.parallel.tasks import Executor, Task, TaskContext
from netloom.tuning.driver import Driver
from netloom.tuning.samplers import create_pruner, create_sampler
from netloom.tuning.space import arrange
from netloom.tuning.space_text import parse_dimension
from netloom.tuning.storage import open_own
from netloom.tuning.study import SearchStudy

REPORTS = 5
SECONDS = {"random": 0.05, "gp": 1.0}
SPACE = {"learning_rate": "1e-4..1e-1:log", "dropout": "0.0..0.6", "batch_size": "16,32,64"}


def nap(context: TaskContext, *, overrides: dict[str, Any], seconds: float) -> dict[str, Any]:
    """A trial that takes a known time and reports five times."""
    started = time.perf_counter()
    value = float(overrides["dropout"])
    for step in range(1, REPORTS + 1):
        time.sleep(max(0.0, started + step * seconds / REPORTS - time.perf_counter()))
        context.report({"step": step, "value": value})
    return {"state": "complete", "value": value, "values": [value] * REPORTS}


def measure(sampler: str, executor: Executor, jobs: int, n_trials: int, folder: Path) -> dict[str, float]:
    """The overhead of each trial in milliseconds, and the CPU time that this process took for it."""
    dimensions = arrange(parse_dimension(key, value, lambda _key, _value: None) for key, value in SPACE.items())
    seconds = SECONDS[sampler]
    study, _ = SearchStudy.create(
        open_own(folder / f"{sampler}-{jobs}.db"),
        "overhead",
        dimensions,
        direction="maximize",
        sampler=create_sampler(sampler, dimensions, seed=0, init_points=4, n_trials=n_trials),
        pruner=create_pruner("median", epochs=REPORTS),
    )

    def run(n: int) -> None:
        Driver(
            study=study,
            executor=executor,
            task_for=lambda p: Task(f"trial-{p.number}", nap, {"overrides": dict(p.overrides), "seconds": seconds}),
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
    return {"overhead_ms": 1000 * (jobs * wall / n_trials - seconds), "driver_cpu_ms": 1000 * cpu / n_trials}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--gp-trials", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=1)
    arguments = parser.parse_args()
    trials = {"random": arguments.trials, "gp": arguments.gp_trials}
    found: dict[str, list[dict[str, float]]] = {}
    others = OtherWork()
    for _ in range(arguments.rounds):
        for sampler, n in trials.items():
            with tempfile.TemporaryDirectory() as folder:
                for jobs in (1, 2, 4):
                    with SerialExecutor() if jobs == 1 else LocalExecutor(jobs) as executor:
                        measured = measure(sampler, executor, jobs, n, Path(folder))
                    found.setdefault(f"{sampler}, {jobs} at once", []).append(measured)
                    print(sampler, jobs, measured, flush=True)
    save("search_overhead", found, {"trials": trials, "seconds": SECONDS}, others)


if __name__ == "__main__":
    from benchmarks import search_overhead  # workers import the task by this name, not as __main__

    search_overhead.main()
