"""The verb `pretrain`."""

from __future__ import annotations

from typing import Annotated

import typer

from netloom.cli.app import RecipeCommand, app
from netloom.cli.options import (
    DEFAULT_OUT,
    AsJSON,
    Device,
    DeviceOption,
    Name,
    OutUnlessResumed,
    Quiet,
    Settings,
    TimeLimit,
    changes_of,
)
from netloom.cli.output import show, told
from netloom.errors import DataError, RecipeError

_DEFAULT_RECIPE = "pretrain"


@app.command(cls=RecipeCommand)
@told
def pretrain(
    source: Annotated[
        str | None,
        typer.Argument(
            help="A folder, a .zip or .tar of pictures, with classes or without, a CSV file, or a named set.",
            show_default=False,
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model", "-m", metavar="NAME", help="The network, in place of the recipe's.", show_default=False
        ),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            "--recipe",
            "-r",
            help="A shipped recipe's name or a YAML file, with self_supervised.",
            show_default=_DEFAULT_RECIPE,
        ),
    ] = None,
    settings: Settings = None,
    time_limit: TimeLimit = None,
    out: OutUnlessResumed = None,
    name: Name = None,
    device: DeviceOption = Device.auto,
    as_json: AsJSON = False,
    quiet: Quiet = False,
    resume: Annotated[
        str | None, typer.Option("--resume", metavar="RUN", help="Go on with this run, which was cut short.")
    ] = None,
) -> None:
    """Train a backbone on pictures without labels, for `transfer --backbone`."""
    from netloom.workflows import pretrain as workflow

    overrides = changes_of(settings, time_limit=time_limit)
    if resume is not None:
        begun = (source, model, recipe, settings, time_limit, out, name)
        if any(value is not None for value in begun) or device is not Device.auto:
            raise RecipeError("--resume goes on with what the run holds; nothing else can be given beside it.")
        run = workflow.resume_pretraining(resume, quiet=quiet)
    elif source is None:
        raise DataError("Say what to learn from: netloom pretrain SOURCE, or --resume RUN to go on with a run.")
    else:
        if model is not None:
            overrides = {"model": model, **overrides}
        run = workflow.pretrain(
            source,
            recipe or _DEFAULT_RECIPE,
            out=out or DEFAULT_OUT,
            name=name,
            device=device.value,
            quiet=quiet,
            settings=overrides,
        )
    show(run.result, [str(run.path)] if quiet else [], as_json=as_json)
