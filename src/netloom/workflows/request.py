"""What a caller of a verb with many trainings asks for, checked before any picture is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from netloom.data.imageset import ImageSet
from netloom.parallel.planning import parse_jobs
from netloom.progress import Reporter
from netloom.recipe import Recipe
from netloom.runtime import ExecutionPlan, resolve_device
from netloom.workflows import builders
from netloom.workflows.builders import CustomModel
from netloom.workflows.train import recipe_for
from netloom.workflows.trainings import jobs_for_model


@dataclass(frozen=True, eq=False)
class Request:
    """What `cross_validate`, `train_seeds` and `tune` have in common.

    Attributes:
        recipe: The one that is meant, with its changes.
        model: The function making the network, where it is the user's own.
        jobs: Trainings at once; None to decide.
        device: A torch device name.
        reporter: Tells a person how it goes.
    """

    recipe: Recipe
    model: CustomModel | None
    jobs: int | None
    device: str
    reporter: Reporter


def request_for(
    source: str | Path | ImageSet,
    recipe: str | Path | Recipe | None,
    *,
    model: CustomModel | str | None,
    jobs: int | str,
    device: str,
    plan: ExecutionPlan | None,
    quiet: bool,
    changes: Mapping[str, Any],
) -> Request:
    """Check and resolve the arguments that these verbs share; their docstrings say what each means.

    Raises:
        NetloomError: Of the fitting kind; the message says what to do.
    """
    reporter = Reporter(quiet=quiet)
    if isinstance(model, str):
        changes, model = {**changes, "model": model}, None
    at_once = jobs_for_model(model, parse_jobs(jobs), reporter)
    chosen = recipe_for(source, recipe, changes, model)
    resolved = resolve_device(device if plan is None else plan.device)
    builders.check_extras(chosen)
    return Request(chosen, model, at_once, resolved, reporter)
