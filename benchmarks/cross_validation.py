"""How long a cross-validation takes: all folds at once against one after the other with all cores.

    python benchmarks/cross_validation.py [SOURCE] [--recipe R] [--epochs 5] [--folds 5] [--rounds 3] [--json FILE]

Both ways train the same folds, in turn, so that other work on the machine meets both. Sequential is `jobs=1` with the
execution plan that `netloom train` would choose by itself; at once is `jobs="auto"`. Wall time of the whole, from the
start of the workers to the report, and accuracy, which agrees within rounding where the plans differ.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from netloom.recipe import parse_overrides
from netloom.runtime import environment_record, usable_cpus
from netloom.workflows.cross_validate import cross_validate


def measure(arguments: argparse.Namespace, jobs: int | str) -> dict[str, Any]:
    """One cross-validation."""
    with tempfile.TemporaryDirectory() as out:
        started = time.perf_counter()
        found = cross_validate(
            arguments.source,
            arguments.recipe,
            folds=arguments.folds,
            jobs=jobs,
            out=out,
            quiet=True,
            settings={"epochs": arguments.epochs, "early_stopping": None, **parse_overrides(arguments.settings)},
        )
        return {
            "seconds": time.perf_counter() - started,
            "train_seconds": sum(training["train_seconds"] for training in found.result["trainings"]),
            "jobs": found.result["jobs"],
            "threads": found.result["plan"]["threads"],
            "accuracy": found.scores.accuracy.mean,
            "trained_pictures": sum(t["train_n"] * t["epochs"] for t in found.result["trainings"]),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", nargs="?", default="digits")
    parser.add_argument("--recipe", default=None)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--set", dest="settings", action="append", default=[])
    parser.add_argument("--json", type=Path, default=None)
    arguments = parser.parse_args()
    ways: dict[str, int | str] = {"one after the other": 1, "at once": "auto"}
    found: dict[str, list[dict[str, Any]]] = {way: [] for way in ways}
    measure(argparse.Namespace(**{**vars(arguments), "epochs": 1, "folds": 2}), 1)  # decodes and imports
    for _ in range(arguments.rounds):
        for way, jobs in ways.items():
            found[way].append(measure(arguments, jobs))
            print(way, found[way][-1])
    seconds = {way: statistics.median(one["seconds"] for one in rounds) for way, rounds in found.items()}
    environment = environment_record()
    record = {
        "source": arguments.source,
        "recipe": arguments.recipe,
        "epochs": arguments.epochs,
        "folds": arguments.folds,
        "settings": parse_overrides(arguments.settings),
        "rounds": found,
        "median_seconds": seconds,
        "speedup": seconds["one after the other"] / seconds["at once"],
        "cpus": usable_cpus(),
        "versions": environment["versions"],
        "processor": environment["processor"],
    }
    print(f"{record['speedup']:.2f} times faster")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
