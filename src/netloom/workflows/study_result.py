"""What came out of a search: plain figures for `tune.json` and the report, lines for people."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from netloom.metrics.intervals import resampled_mean_interval, wilson_interval
from netloom.recipe import Recipe
from netloom.report.study_wording import describe_study
from netloom.tuning.samplers import describe_sampler, grid_size
from netloom.tuning.space import Dimension
from netloom.tuning.study import TrialRecord
from netloom.workflows.fresh_scores import FreshScores
from netloom.workflows.runs import Run
from netloom.workflows.seeds import spread, summarize_seeds
from netloom.workflows.study import REPORT_FILE
from netloom.workflows.study_manifest import StudyManifest


def study_result(
    folder: Path,
    manifest: StudyManifest,
    recipe: Recipe,
    *,
    source: str,
    source_location: str,
    validation_n: int,
    validation_groups: int | None,
    test_notes: Sequence[str],
    records: Sequence[TrialRecord],
    best: TrialRecord | None,
    best_recipe: Recipe | None,
    best_recipe_file: Path,
    runs: Sequence[Run],
    fresh: FreshScores | None,
    earlier_winners: int,
    importances: Mapping[str, float] | None,
) -> dict[str, Any]:
    """The figures of a study.

    Args:
        folder: Of the study.
        manifest: What it is.
        recipe: What its trials changed.
        source: Name of the pictures' source.
        source_location: Where that is; empty for pictures in memory.
        validation_n: Pictures that a trial is scored on.
        validation_groups: How many groups these come in; None where each stands for itself.
        test_notes: Why the pictures of the test part are not new, see `Split`.
        records: All trials.
        best: The best of them; None where none is complete.
        best_recipe: Its recipe.
        best_recipe_file: Where that is.
        runs: Of the winner, with fresh seeds.
        fresh: What the winner scores where it was not chosen; None where that is not known.
        earlier_winners: Of this search when it was shorter, which were tested on the same pictures.
        importances: Of the dimensions.
    """
    summary = summarize_seeds(folder, runs) if len(runs) > 1 else None
    return {
        "study": str(folder),
        "source": source,
        "source_location": source_location,
        "recipe": recipe.name,
        "model": recipe.custom_model or recipe.model,
        "custom_model": recipe.custom_model,
        "objective": manifest.objective,
        "direction": manifest.direction,
        "sampler": manifest.sampler,
        "sampler_in_words": describe_sampler(manifest.sampler, len(records), at_random=_at_random(records)),
        "pruner": manifest.pruner,
        "scheme_in_words": "validation part" if manifest.cv is None else f"{manifest.cv} folds",
        "validation_n": validation_n,
        "validation_groups": validation_groups,
        "per_class": recipe.per_class,
        "space": [dimension.to_json() for dimension in manifest.space],
        "base": values_of(recipe, manifest.space),
        "trials": [_trial_json(record) for record in records],
        "n_trials": len(records),
        "planned": _planned(manifest),
        "seconds": manifest.seconds,
        "jobs": manifest.jobs,
        "plan": manifest.plan.to_json(),
        "importances": None if importances is None else dict(importances),
        "best": None
        if best is None
        else {
            "number": best.number,
            "value": best.value,
            "interval": _interval(best.value, validation_n, manifest) if validation_groups is None else None,
            "overrides": dict(best.overrides),
        },
        "fresh": _fresh_scores(fresh, manifest),
        "final": _final(runs, manifest),
        "test": dict(runs[0].result["test"]) if runs else None,
        "test_notes": list(test_notes),
        "earlier_winners": earlier_winners,
        "test_over_seeds": None if summary is None else summary["test_accuracy"],
        "final_run": str(runs[0].path) if runs else None,
        "final_runs": [str(run.path) for run in runs],
        "best_recipe": None if best_recipe is None else str(best_recipe_file),
        "best_recipe_yaml": None if best_recipe is None else best_recipe.to_yaml(),
    }


def _planned(manifest: StudyManifest) -> int | None:
    """How many trials there would be at the end; None where time alone limits them, or each of several drivers."""
    if manifest.n_trials is None or manifest.driver is not None:
        return None
    return min(manifest.n_trials, grid_size(manifest.space)) if manifest.sampler == "grid" else manifest.n_trials


def _at_random(records: Sequence[TrialRecord]) -> int:
    """Trials that the sampler did not take from a model."""
    return sum(record.origin == "sampler" and not record.modelled for record in records)


def _fresh_scores(fresh: FreshScores | None, manifest: StudyManifest) -> dict[str, Any] | None:
    if fresh is None:
        return None
    if fresh.held_out is None or fresh.given is None:
        return _fresh(fresh.runs, fresh.values, manifest)
    return {
        **_fresh_folds(fresh.values, fresh.held_out, fresh.given, manifest),
        "seeds": [run.recipe.seed for run in fresh.runs],
    }


def _fresh_folds(
    values: Sequence[float], held_out: Sequence[int], given: Sequence[int], manifest: StudyManifest
) -> dict[str, Any]:
    """What the winner scores on folds that the search has not seen; the interval is that of a cross-validation."""
    scores = np.array(values, dtype=np.float64)
    test_per_train = float(np.mean(np.array(held_out) / np.array(given)))
    highest = math.inf if manifest.objective == "validation_loss" else 1.0
    interval = resampled_mean_interval(scores, test_per_train=test_per_train).within(high=highest)
    return {
        "mean": float(scores.mean()),
        "standard_deviation": float(scores.std(ddof=1)),
        # Folds that happen to score alike do not say how far such a mean can be from the truth.
        "interval": list(interval) if len(set(values)) > 1 else None,
        "values": list(values),
        "n": len(values),
        "folds": manifest.cv,
        "held_out_n": int(sum(held_out)),
        "test_per_train": test_per_train,
    }


def _fresh(runs: Sequence[Run], values: Sequence[float], manifest: StudyManifest) -> dict[str, Any] | None:
    """What the winner scores on the validation part with seeds that were not searched with."""
    if not values:
        return None
    found: dict[str, Any] = {"mean": values[0], "standard_deviation": None, "interval": None}
    if len(values) > 1:
        found = spread(values, highest=math.inf if manifest.objective == "validation_loss" else 1.0)
    return {**found, "values": list(values), "n": len(values), "seeds": [run.recipe.seed for run in runs]}


def _final(runs: Sequence[Run], manifest: StudyManifest) -> dict[str, Any] | None:
    """What the winner's trainings with fresh seeds were trained on, and how long."""
    if not runs:
        return None
    result = runs[0].result
    return {"on": manifest.final_on, "train_n": result["train_n"], "epochs": result["epochs"]}


def values_of(recipe: Recipe, dimensions: Sequence[Dimension]) -> dict[str, Any]:
    """What the recipe itself has for the keys of the space, as far as it says."""
    mapping = recipe.to_mapping()
    found = {}
    for dimension in dimensions:
        value: Any = mapping
        for part in dimension.key.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        if dimension.key == "image_size" and isinstance(value, list) and len(set(value)) == 1:
            value = value[0]  # of squares the recipe holds both sides, people write one
        if dimension.kind == "choice":
            same = [c for c in dimension.choices if _plain(dimension.key, c) == value]
            value = same[0] if same else value
        found[dimension.key] = value
    return found


def _plain(key: str, choice: Any) -> Any:
    """A choice as the recipe holds it: `32-64` is `[32, 64]` there."""
    value: Any = Recipe.model_validate(_nested(key, choice)).to_mapping()
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _nested(key: str, value: Any) -> dict[str, Any]:
    first, _, rest = key.partition(".")
    return {first: _nested(rest, value) if rest else value}


def _interval(value: float | None, n: int, manifest: StudyManifest) -> list[float] | None:
    """Wilson's, of one training scored on `n` independent pictures; None for what that formula does not hold for."""
    if value is None or manifest.objective != "validation_accuracy" or manifest.cv is not None:
        return None
    return list(wilson_interval(round(float(np.clip(value, 0, 1)) * n), n))


def _trial_json(record: TrialRecord) -> dict[str, Any]:
    outcome = record.outcome
    return {
        "number": record.number,
        "state": record.state,
        "value": record.value,
        "overrides": dict(record.overrides),
        "epochs": outcome.get("epochs"),
        "kept_epoch": outcome.get("kept_epoch"),
        "parameters": outcome.get("parameters"),
        "seconds": outcome.get("seconds"),
        "finished_after": record.finished_after,
        "values": list(outcome.get("values", [])),
        "reason": outcome.get("reason"),
        "from": record.origin,
    }


def describe_result(result: Mapping[str, Any]) -> list[str]:
    """What `tune.json` holds, in lines for people."""
    lines = describe_study(result)
    if result["final_run"] is not None:
        lines.append(f"Run:    {result['final_run']}")
    return [
        *lines,
        f"Recipe: {result['best_recipe']}",
        f"Report: {Path(result['study']) / REPORT_FILE}",
    ]
