"""Repeat a training over seeds, since one run does not tell luck from merit."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from netloom.data.imageset import ImageSet
from netloom.errors import RecipeError, TrainingError
from netloom.files import write_json
from netloom.metrics.intervals import mean_interval
from netloom.progress import Reporter
from netloom.recipe import Recipe
from netloom.runtime import ExecutionPlan
from netloom.workflows import builders
from netloom.workflows.builders import CustomModel
from netloom.workflows.prepare import prepare_data
from netloom.workflows.request import request_for
from netloom.workflows.runs import Run
from netloom.workflows.training_job import Member, TrainingJob, resume_job, start_job

SUMMARY_FILE = "seeds.json"


def train_seeds(
    source: str | Path | ImageSet,
    recipe: str | Path | Recipe | None = None,
    *,
    n_seeds: int,
    jobs: int | str = "auto",
    model: CustomModel | str | None = None,
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
        jobs: Trainings at once, as for `cross_validate`; it changes no result under the same plan.
        model: A function making the network; a network itself would carry its weights from run to run.
        out: As for `train`.
        name: As for `train`.
        device: As for `train`.
        quiet: As for `train`.
        plan: As for `train`; without it one is measured and used by all.
        settings: As for `train`.
        **overrides: As for `train`.

    Raises:
        NetloomError: As `train` raises it.
        InterruptedTrainingsError: Ctrl-C or SIGTERM; `resume_seeds` goes on.
    """
    if n_seeds < 2:
        raise RecipeError(f"--seeds {n_seeds}: a spread needs at least two seeds.")
    asked = request_for(
        source,
        recipe,
        model=model,
        jobs=jobs,
        device=device,
        plan=plan,
        quiet=quiet,
        changes={**(settings or {}), **overrides},
    )
    chosen, reporter = asked.recipe, asked.reporter
    data = prepare_data(source, chosen, reporter)
    if (note := builders.note_on_unused(chosen)) is not None:
        reporter.say(f"  note: {note}")
    chosen = chosen.replace(image_size=list(data.facts.image_size))
    seeds = range(chosen.seed, chosen.seed + n_seeds)
    job = start_job(
        "seeds",
        [Member(f"seed-{seed}", chosen.replace(seed=seed), data.split, {"seed": seed}) for seed in seeds],
        data,
        out=out,
        name=f"{name or data.facts.source_name}-{n_seeds}-seeds",
        details={},
        jobs=asked.jobs,
        device=asked.device,
        plan=plan,
        model=asked.model,
        reporter=reporter,
    )
    return _finish(job, reporter)


def resume_seeds(
    folder: str | Path,
    *,
    source: ImageSet | None = None,
    jobs: int | str = "auto",
    model: CustomModel | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """Go on with a repetition over seeds that was cut short; finished runs are not repeated.

    Args:
        folder: Its folder.
        source: The pictures, where it was started on pictures in memory.
        jobs: As for `train_seeds`.
        model: The function making the network, where it was started with one.
        quiet: As for `train_seeds`.

    Raises:
        RunError: There is no such folder, or its pictures have changed.
    """
    reporter = Reporter(quiet=quiet)
    return _finish(resume_job(folder, "seeds", source=source, jobs=jobs, model=model, reporter=reporter), reporter)


def _finish(job: TrainingJob, reporter: Reporter) -> dict[str, Any]:
    """Train what is left to train, and summarize."""
    go_on_with = job.how_to_go_on("netloom train", "netloom.workflows.seeds.resume_seeds")
    failures = job.train(reporter, go_on_with=go_on_with)
    if failures:
        name, reason = next(iter(failures.items()))
        raise TrainingError(
            f"{len(failures)} of {len(job.runs)} trainings failed, for example {name}: {reason.rstrip('.')}. The "
            f"others are in {job.path}. When the cause is mended, go on with: {go_on_with}"
        )
    summary = summarize_seeds(job.path, job.runs)
    write_json(job.path / SUMMARY_FILE, summary)
    return summary


def summarize_seeds(folder: Path, runs: Sequence[Run]) -> dict[str, Any]:
    """Mean, standard deviation and 95% interval over runs that differ in their seed, see `spread`.

    Validation accuracy and loss (in nats) are those of the kept weights, the best accuracy that of any epoch.
    """
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
        **_validation([r["validation"] for r in results if "validation" in r]),
        "epochs": [r["epochs"] for r in results],
        "train_seconds": spread([r["train_seconds"] for r in results], highest=math.inf),
        "train_images_per_second": spread([r["train_images_per_second"] for r in results], highest=math.inf),
    }


def _validation(scores: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Of the validation part; nothing where there is none."""
    if not scores:
        return {}
    return {
        "validation_n": scores[0]["n"],
        "validation_accuracy": spread([s["accuracy"] for s in scores]),
        "best_validation_accuracy": spread([s["best_accuracy"] for s in scores]),
        "validation_loss": spread([s["log_loss"] for s in scores], highest=math.inf),
    }


def spread(values: Sequence[float], *, highest: float = 1.0) -> dict[str, Any]:
    """Mean, sample standard deviation, n and the 95% t-interval of the mean, within 0 and `highest`.

    The interval is None where all values are the same: how far seeds scatter is then not known.
    """
    array = np.asarray(values, dtype=np.float64)
    alike = bool((array == array[0]).all())
    return {
        "mean": float(array.mean()),
        "standard_deviation": float(array.std(ddof=1)),
        "n": len(values),
        "interval": None if alike else list(mean_interval(array).within(high=highest)),
        "values": list(values),
    }


def _interval_in_words(interval: Sequence[float] | None) -> str:
    if interval is None:
        return "no interval, since all seeds came out the same"
    low, high = interval
    return f"95% interval of the mean over seeds {low:.2%} to {high:.2%}"


def describe_seeds(summary: Mapping[str, Any]) -> list[str]:
    """The summary in lines for people."""
    lines = []
    for part in ("validation", "test"):
        if f"{part}_n" not in summary:
            continue
        figures = summary[f"{part}_accuracy"]
        values = ", ".join(f"{value:.2%}" for value in figures["values"])
        lines.append(
            f"{part.capitalize()} accuracy over {figures['n']} seeds: mean {figures['mean']:.2%}, standard deviation "
            f"{figures['standard_deviation']:.2%}, {_interval_in_words(figures['interval'])} ({values}; "
            f"{summary[f'{part}_n']:,} pictures, the same in every run)"
        )
    return [*lines, f"Runs: {summary['folder']}"]
