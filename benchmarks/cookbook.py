"""Run the experiments of docs/experiments.yaml and record their results for docs/cookbook.md.

    python benchmarks/cookbook.py [RECIPE ...] [--seeds N] [--jobs J] [--out DIR]
    python benchmarks/cookbook.py RECIPE --resume FOLDER [--jobs J]

Each recipe is trained over several seeds (an experiment's own number, or three) on the same split, with the settings
that the experiment names; the mean, the spread, what was trained, by which code and where are written to
docs/results/RECIPE.json. Several seeds at once (`--jobs`) take less time in all; the speed of one training is then
not told. What was cut short is gone on with by `--resume`. Sources are named sets, or files, which lie in the folder
that `NETLOOM_DATA` names or in the current one.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

import yaml

from netloom.data.named import NAMED_SETS
from netloom.errors import RecipeError
from netloom.files import with_home
from netloom.recipe import Recipe, load_recipe
from netloom.run import RunFolder
from netloom.runtime import environment_record
from netloom.workflows.seeds import resume_seeds, train_seeds
from netloom.workflows.train import resume, train

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
_SEEDS = 3
Experiment = Mapping[str, Any]
Record = dict[str, Any]


def load_experiments() -> list[dict[str, Any]]:
    """Those of docs/experiments.yaml."""
    found: list[dict[str, Any]] = yaml.safe_load((DOCS / "experiments.yaml").read_text(encoding="utf-8"))
    return found


def seeds_of(experiment: Experiment) -> int:
    """Over how many seeds it is to be trained."""
    return int(experiment.get("seeds", _SEEDS))


def load_record(recipe: str) -> Record | None:
    """What was recorded of a recipe, if anything."""
    path = DOCS / "results" / f"{recipe}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def source_of(name: str) -> str:
    """The source as `netloom train` takes it: a named set, or a file, that of `NETLOOM_DATA` where there is one."""
    file = with_home(os.environ.get("NETLOOM_DATA", "")) / name
    return str(file) if name not in NAMED_SETS and file.is_file() else name


def run(
    experiment: Experiment, seeds: int | None, jobs: int, out: Path, commit: str | None, begun: Path | None = None
) -> None:
    """Train, or go on with what has `begun`, and write the record."""
    n_seeds = seeds or seeds_of(experiment)
    settings = experiment.get("settings", {})
    what = (source_of(experiment["source"]), experiment["recipe"])
    if n_seeds == 1:
        jobs = 1
        first: RunFolder = train(*what, out=out, settings=settings) if begun is None else resume(begun)
        summary = one_training(first.result)
    else:
        if begun is None:
            summary = train_seeds(*what, n_seeds=n_seeds, jobs=jobs, out=out, settings=settings)
        else:
            summary = resume_seeds(begun, jobs=jobs)
        first = RunFolder.open(summary["runs"][0])
    record = {
        **{k: v for k, v in summary.items() if k not in ("folder", "runs")},
        "recipe": first.recipe.to_mapping(),
        "plan": first.plan.to_json(),
        "jobs": jobs,
        "date": date.today().isoformat(),
        "commit": commit,
        "machine": machine(),
    }
    path = DOCS / "results" / f"{experiment['recipe']}.json"
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def one_training(result: Mapping[str, Any]) -> Record:
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
        "validation_loss": one(validation["log_loss"], validation["log_loss_interval"]),
        "epochs": [result["epochs"]],
        "train_seconds": one(result["train_seconds"]),
        "train_images_per_second": one(result["train_images_per_second"]),
    }


def machine() -> dict[str, Any]:
    """Versions and processor; no names or paths of the machine."""
    environment = environment_record()
    return {k: environment[k] for k in ("versions", "processor", "cpu_capability", "usable_cpus", "cuda_devices")}


def commit_of(root: Path = ROOT) -> str | None:
    """The commit of the code, with a `+` where src/ has changes beside it; None where git tells of none."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, check=True, text=True)
        return done.stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain", "--", "src") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def changed_since(record: Record, experiment: Experiment) -> list[str]:
    """The recipe's keys that the experiment has otherwise today than when it was recorded.

    Records of before they held their recipe tell a part only: the settings, the model and the epochs.
    """
    today = load_recipe(experiment["recipe"], experiment.get("settings", {}))
    if not holds_recipe(record):
        then, now = record.get("settings") or {}, experiment.get("settings", {})
        changed = {key for key in {*then, *now} if then.get(key) != now.get(key)}
        if record["model"] != today.model:
            changed.add("model")
        if today.early_stopping is None and set(record["epochs"]) != {today.epochs}:
            changed.add("epochs")
        return sorted(changed)
    try:
        recorded = _values(Recipe.from_mapping(record["recipe"]))
    except RecipeError:  # of a version whose keys were others
        recorded = _values(record["recipe"])
    wanted = _values(today)
    if today.image_size is None:  # which takes that of the pictures, and a training notes what it was
        wanted["image_size"] = recorded["image_size"]
    return sorted(key for key in {*recorded, *wanted} if recorded.get(key) != wanted.get(key))


def holds_recipe(record: Record) -> bool:
    """Whether it holds all that was trained; records of before have the recipe's name there."""
    return not isinstance(record["recipe"], str)


def _values(recipe: Recipe | Mapping[str, Any]) -> dict[str, Any]:
    """What determines a training, by key; the size of the pictures as a training notes it, [height, width]."""
    values = dict(recipe.to_mapping() if isinstance(recipe, Recipe) else recipe)
    size = values.get("image_size")
    described = {"description": None, "image_size": [size, size] if isinstance(size, int) else size}
    return {**values, **described}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*")
    parser.add_argument("--seeds", type=int, default=None)
    parser.add_argument("--jobs", type=int, default=1, help="seeds at once (default 1)")
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument(
        "--resume", type=Path, default=None, help="the folder of a call for the recipe that was cut short"
    )
    arguments = parser.parse_args()
    commit = commit_of()  # now, since the code may change while it trains
    experiments = load_experiments()
    wanted = set(arguments.recipes) or {e["recipe"] for e in experiments}
    unknown = wanted - {e["recipe"] for e in experiments}
    if unknown:
        parser.error(f"no such experiment: {', '.join(sorted(unknown))}")
    if arguments.resume is not None and len(wanted) != 1:
        parser.error("--resume goes on with one recipe; name it")
    with tempfile.TemporaryDirectory() as scratch:
        for experiment in experiments:
            if experiment["recipe"] in wanted:
                out = arguments.out or Path(scratch)
                run(experiment, arguments.seeds, arguments.jobs, out, commit, arguments.resume)


if __name__ == "__main__":
    main()
