"""Repeat a training over seeds, since one run does not tell luck from merit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from netloom.data.imageset import ImageSet
from netloom.errors import ModelError, RecipeError
from netloom.files import write_json
from netloom.metrics.intervals import mean_interval
from netloom.progress import Reporter
from netloom.recipe import Recipe
from netloom.run import RunFolder
from netloom.runtime import ExecutionPlan
from netloom.workflows.build import CustomModel
from netloom.workflows.runs import Run
from netloom.workflows.train import recipe_for, train

SUMMARY_FILE = "seeds.json"


def train_seeds(
    source: str | Path | ImageSet,
    recipe: str | Path | Recipe | None = None,
    *,
    n_seeds: int,
    model: CustomModel | None = None,
    out: str | Path = "runs",
    name: str | None = None,
    device: str = "auto",
    quiet: bool = False,
    plan: ExecutionPlan | None = None,
    settings: Mapping[str, Any] | None = None,
    **overrides: Any,
) -> dict[str, Any]:
    """Train one recipe with `n_seeds` seeds, from the recipe's own upwards, on the same split.

    The runs and `seeds.json`, which is also returned, are in one folder. Its intervals tell how much the seed
    matters (Student's t over the runs); they say nothing of other splits or other pictures.

    Args:
        source: As for `train`.
        recipe: As for `train`.
        n_seeds: At least 2.
        model: A function making the network; a network itself would carry its weights from run to run.
        out: As for `train`.
        name: As for `train`.
        device: As for `train`.
        quiet: As for `train`.
        plan: As for `train`; without it the first run measures and the others follow it.
        settings: As for `train`.
        **overrides: As for `train`.

    Raises:
        NetloomError: As `train` raises it.
    """
    if n_seeds < 2:
        raise RecipeError(f"--seeds {n_seeds}: a spread needs at least two seeds.")
    if isinstance(model, nn.Module):
        raise ModelError("Several seeds need a function that makes a new model; a module keeps its trained weights.")
    reporter = Reporter(quiet=quiet)
    changes = {**(settings or {}), **overrides}
    first = recipe_for(source, recipe, changes, model).seed
    label = name or (Path(source).stem if isinstance(source, (str, Path)) else "pictures")
    folder = RunFolder.create(out, f"{label}-{n_seeds}-seeds").path
    runs: list[Run] = []
    for number in range(n_seeds):
        seed = first + number
        reporter.say(f"Seed {seed} ({number + 1} of {n_seeds})")
        runs.append(
            train(
                source,
                recipe,
                model=model,
                out=folder,
                name=f"seed-{seed}",
                device=device,
                quiet=quiet,
                plan=plan,
                settings={**changes, "seed": seed},
            )
        )
        plan = runs[-1].plan
    summary = summarize_seeds(folder, runs)
    write_json(folder / SUMMARY_FILE, summary)
    return summary


def summarize_seeds(folder: Path, runs: Sequence[Run]) -> dict[str, Any]:
    """Mean, standard deviation and 95% interval over runs that differ in their seed."""
    results = [run.result for run in runs]
    return {
        "folder": str(folder),
        "recipe": results[0]["recipe"],
        "model": results[0]["model"],
        "parameters": results[0]["parameters"],
        "seeds": [run.recipe.seed for run in runs],
        "runs": [str(run.path) for run in runs],
        "test_n": results[0]["test"]["n"],
        "test_accuracy": spread([r["test"]["accuracy"] for r in results]),
        "validation_n": results[0]["validation"]["n"],
        "validation_accuracy": spread([r["validation"]["accuracy"] for r in results]),
        "best_validation_accuracy": spread([r["validation"]["best_accuracy"] for r in results]),
        "epochs": [r["epochs"] for r in results],
        "train_seconds": spread([r["train_seconds"] for r in results]),
        "train_images_per_second": spread([r["train_images_per_second"] for r in results]),
    }


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Mean, sample standard deviation, n and the 95% t-interval of the mean."""
    array = np.asarray(values, dtype=np.float64)
    return {
        "mean": float(array.mean()),
        "standard_deviation": float(array.std(ddof=1)),
        "n": len(values),
        "interval": list(mean_interval(array)),
        "values": list(values),
    }


def describe_seeds(summary: Mapping[str, Any]) -> list[str]:
    """The summary in lines for people."""
    lines = []
    for part in ("validation", "test"):
        figures = summary[f"{part}_accuracy"]
        low, high = figures["interval"]
        values = ", ".join(f"{value:.2%}" for value in figures["values"])
        lines.append(
            f"{part.capitalize()} accuracy over {figures['n']} seeds: mean {figures['mean']:.2%}, standard deviation "
            f"{figures['standard_deviation']:.2%}, 95% interval of the mean {low:.2%} to {high:.2%} ({values}; "
            f"{summary[f'{part}_n']:,} pictures, the same in every run)"
        )
    return [*lines, f"Runs: {summary['folder']}"]
