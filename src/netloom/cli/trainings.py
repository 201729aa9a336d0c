"""Verbs that train many times."""

from __future__ import annotations

from typing import Annotated

import typer

from netloom.cli.app import RecipeCommand, app
from netloom.cli.options import (
    DEFAULT_OUT,
    AsJSON,
    Device,
    DeviceOption,
    Jobs,
    Name,
    OutUnlessResumed,
    PerClass,
    PlanOf,
    Quiet,
    RecipeOption,
    Settings,
    SourceUnlessResumed,
    changes_of,
)
from netloom.cli.output import show, told
from netloom.errors import DataError, RecipeError


@app.command(cls=RecipeCommand)
@told
def cv(
    source: SourceUnlessResumed = None,
    recipe: RecipeOption = None,
    folds: Annotated[
        int | None, typer.Option("--folds", metavar="K", help="Parts, each of which tests once; 5 without it.")
    ] = None,
    repeats: Annotated[
        int | None, typer.Option("--repeats", metavar="R", help="Draw anew so often; 1 without it, 5 with --holdout.")
    ] = None,
    holdout: Annotated[
        float | None,
        typer.Option("--holdout", metavar="FRACTION", help="In place of folds: hold out so much in each repeat."),
    ] = None,
    settings: Settings = None,
    per_class: PerClass = None,
    jobs: Jobs = "auto",
    out: OutUnlessResumed = None,
    name: Name = None,
    device: DeviceOption = Device.auto,
    like: PlanOf = None,
    resume: Annotated[
        str | None,
        typer.Option("--resume", metavar="FOLDER", help="Go on with this cross-validation."),
    ] = None,
    as_json: AsJSON = False,
    quiet: Quiet = False,
) -> None:
    """Cross-validate a recipe: how good it is, and how sure that is, from many trainings at once."""
    from netloom.workflows.cross_validate import cross_validate, describe, resume_cross_validation
    from netloom.workflows.runs import load

    if resume is not None:
        begun = (source, recipe, folds, repeats, holdout, settings, per_class, out, name, like)
        if any(value is not None for value in begun) or device is not Device.auto:
            raise RecipeError("--resume goes on with what the folder holds; besides it only --jobs can be given.")
        found = resume_cross_validation(resume, jobs=jobs, quiet=quiet)
    elif source is None:
        raise DataError("Say what to cross-validate on: netloom cv SOURCE, or --resume FOLDER to go on.")
    else:
        found = cross_validate(
            source,
            recipe,
            folds=folds,
            repeats=repeats,
            holdout=holdout,
            jobs=jobs,
            out=out or DEFAULT_OUT,
            name=name,
            device=device.value,
            quiet=quiet,
            plan=None if like is None else load(like).plan,
            settings=changes_of(settings, per_class),
        )
    show(dict(found.result), describe(found.result) if quiet else [], as_json=as_json)
