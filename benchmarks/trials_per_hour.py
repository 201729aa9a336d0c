"""Trials per hour: one search with several workers beside as many searches of one process each, and over the workers.

    NETLOOM_DATA=… python -m benchmarks.trials_per_hour [--trials 16] [--epochs 1] [--jobs 1 2 4] [--rounds 1]
        [--device auto]

The network of `cifar10-bayes-cnn` on CIFAR-10, 40,000 training and 10,000 validation pictures, random search without
pruning. `netloom tune --jobs J` is one driver with J workers. Beside it, in turn, are J processes begun at once that
know nothing of each other, each a `netloom tune --jobs 1` with a J-th of the trials and a J-th of the processors: what
the machine can do if nothing has to be shared or waited for. Whole processes, from start to end; the independent ones
count until the last has ended. On a GPU all share it: `--device cuda --jobs 1 2 4 8` tells what that is worth. Linux
only.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.suite.machine import OtherWork
from benchmarks.whole_programs import save


def search(out: Path, *, trials: int, epochs: int, jobs: int, seed: int, device: str) -> list[str]:
    return [
        *(sys.executable, "-m", "netloom", "tune", "cifar10", "--recipe", "cifar10-bayes-cnn"),
        *("--space", "dropout=0.1..0.5", "--space", "learning_rate=1e-4..1e-2", "--sampler", "random"),
        *("--pruner", "none", "--trials", str(trials), "--final-seeds", "0", "--jobs", str(jobs)),
        *("--set", f"seed={seed}", "--set", f"epochs={epochs}", "--out", str(out), "--quiet"),
        *("--device", device),
    ]


def seconds_of(lines: list[list[str]], cpus: list[list[int]]) -> float:
    """From the start of all to the end of the last."""
    started = time.perf_counter()
    processes = []
    for line, allowed in zip(lines, cpus, strict=True):
        pinned = ["taskset", "-c", ",".join(map(str, allowed)), *line]
        processes.append(subprocess.Popen(pinned, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
    said = [process.communicate()[0] for process in processes]
    for process, text in zip(processes, said, strict=True):
        if process.returncode:
            raise SystemExit(f"a search failed:\n{text[-2000:]}")
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--jobs", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    cpus = sorted(os.sched_getaffinity(0))
    found: dict[str, list[dict[str, float]]] = {}
    others = OtherWork()
    with tempfile.TemporaryDirectory() as scratch:
        for number in range(arguments.rounds):
            for jobs in arguments.jobs:
                if arguments.trials % jobs or jobs > len(cpus):
                    parser.error(f"{arguments.trials} trials on {len(cpus)} processors cannot be divided by {jobs}")
                out = Path(scratch) / f"{number}-{jobs}"
                common = {"epochs": arguments.epochs, "device": arguments.device}
                one = search(out / "one", trials=arguments.trials, jobs=jobs, seed=0, **common)
                ways = {f"{jobs} workers": ([one], [cpus])}
                if jobs > 1:
                    share, width = arguments.trials // jobs, len(cpus) // jobs
                    ways[f"{jobs} processes"] = (
                        [search(out / f"{i}", trials=share, jobs=1, seed=i, **common) for i in range(jobs)],
                        [cpus[i * width : (i + 1) * width] for i in range(jobs)],
                    )
                for way, (lines, allowed) in ways.items():
                    seconds = seconds_of(lines, allowed)
                    found.setdefault(way, []).append(
                        {"seconds": seconds, "per_hour": 3600 * arguments.trials / seconds}
                    )
                    print(way, f"{seconds:.1f} s", flush=True)
    about = {"trials": arguments.trials, "epochs": arguments.epochs, "jobs": arguments.jobs}
    if arguments.device != "auto":
        about["device"] = arguments.device
    save("trials_per_hour", found, about, others)


if __name__ == "__main__":
    main()
