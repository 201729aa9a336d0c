"""How long a cross-validation takes: all folds at once against one after the other with all cores.

    python -m benchmarks.cross_validation [SOURCE] [--recipe R] [--epochs 5] [--folds 5] [--rounds 3]

Both ways train the same folds, in turn, so that other work on the machine meets both. Sequential is `jobs=1` with the
execution plan that `netloom train` would choose by itself; at once is `jobs="auto"`. Wall time of the whole, from the
start of the workers to the report, and accuracy, which agrees within rounding where the plans differ.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from typing import Any

from benchmarks.suite.machine import OtherWork
from benchmarks.whole_programs import save
from netloom.recipe import parse_overrides
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
    arguments = parser.parse_args()
    ways: dict[str, int | str] = {"one after the other": 1, "at once": "auto"}
    found: dict[str, list[dict[str, Any]]] = {way: [] for way in ways}
    others = OtherWork()
    measure(argparse.Namespace(**{**vars(arguments), "epochs": 1, "folds": 2}), 1)  # decodes and imports
    for _ in range(arguments.rounds):
        for way, jobs in ways.items():
            found[way].append(measure(arguments, jobs))
            print(way, found[way][-1])
    keys = ("source", "recipe", "epochs", "folds")
    about = {**{key: getattr(arguments, key) for key in keys}, "settings": parse_overrides(arguments.settings)}
    save("cross_validation", found, about, others)


if __name__ == "__main__":
    main()
