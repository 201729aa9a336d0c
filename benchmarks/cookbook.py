"""Run the experiments of docs/experiments.yaml and record their results for docs/cookbook.md.

    python benchmarks/cookbook.py [RECIPE ...] [--seeds N] [--out DIR]

Each recipe is trained over several seeds (an experiment's own number, or three) on the same split, with the settings
that the experiment names; the mean, the spread and the machine are written to docs/results/RECIPE.json. Sources are
named sets or, where `NETLOOM_DATA` holds one of that name, folders or archives.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import yaml

from netloom.runtime import environment_record
from netloom.workflows.seeds import train_seeds
from netloom.workflows.train import train

DOCS = Path(__file__).parent.parent / "docs"
_SEEDS = 3


def source_of(name: str) -> str:
    """The source as `netloom train` takes it: a file of `NETLOOM_DATA` where there is one, else the name."""
    folder = os.environ.get("NETLOOM_DATA")
    archive = Path(folder) / f"{name}.zip" if folder else None
    return str(archive) if archive is not None and archive.is_file() else name


def run(experiment: dict[str, Any], seeds: int | None, out: Path) -> None:
    n_seeds = seeds or experiment.get("seeds", _SEEDS)
    settings = experiment.get("settings", {})
    what = (source_of(experiment["source"]), experiment["recipe"])
    if n_seeds == 1:
        summary = one_training(train(*what, out=out, settings=settings).result)
    else:
        # One after the other: the recorded speed is that of a training that has the machine to itself.
        summary = train_seeds(*what, n_seeds=n_seeds, jobs=1, out=out, settings=settings)
    kept = {k: v for k, v in summary.items() if k not in ("folder", "runs")}
    record = {**kept, "settings": settings, "machine": machine()}
    path = DOCS / "results" / f"{experiment['recipe']}.json"
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def one_training(result: dict[str, Any]) -> dict[str, Any]:
    """A run's result in the form of a repetition over seeds; one value has no deviation but its part's interval."""

    def one(value: float, interval: list[float] | None = None) -> dict[str, Any]:
        return {"mean": value, "standard_deviation": None, "n": 1, "interval": interval, "values": [value]}

    test, validation = result["test"], result["validation"]
    return {
        "recipe": result["recipe"],
        "model": result["model"],
        "parameters": result["parameters"],
        "seeds": [0],
        "test_n": test["n"],
        "test_accuracy": one(test["accuracy"], test["interval"]),
        "validation_n": validation["n"],
        "validation_accuracy": one(validation["accuracy"], validation["interval"]),
        "best_validation_accuracy": one(validation["best_accuracy"]),
        "epochs": [result["epochs"]],
        "train_seconds": one(result["train_seconds"]),
        "train_images_per_second": one(result["train_images_per_second"]),
    }


def machine() -> dict[str, Any]:
    """Versions and processor; no names or paths of the machine."""
    environment = environment_record()
    return {k: environment[k] for k in ("versions", "processor", "cpu_capability", "usable_cpus", "cuda_devices")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*")
    parser.add_argument("--seeds", type=int, default=None)
    parser.add_argument("--out", type=Path, default=None)
    arguments = parser.parse_args()
    experiments = yaml.safe_load((DOCS / "experiments.yaml").read_text(encoding="utf-8"))
    wanted = set(arguments.recipes) or {e["recipe"] for e in experiments}
    unknown = wanted - {e["recipe"] for e in experiments}
    if unknown:
        parser.error(f"no such experiment: {', '.join(sorted(unknown))}")
    with tempfile.TemporaryDirectory() as scratch:
        for experiment in experiments:
            if experiment["recipe"] in wanted:
                run(experiment, arguments.seeds, arguments.out or Path(scratch))


if __name__ == "__main__":
    main()
