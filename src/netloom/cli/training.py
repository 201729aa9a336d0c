"""Verbs that train, or prepare a training."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from netloom.cli.app import RecipeCommand, app
from netloom.cli.options import (
    DEFAULT_OUT,
    AsJSON,
    Device,
    DeviceOption,
    Force,
    Name,
    OutUnlessResumed,
    PerClass,
    PlanOf,
    Quiet,
    RecipeOption,
    Settings,
    Source,
    SourceUnlessResumed,
    TimeLimit,
    changes_of,
)
from netloom.cli.output import show, told
from netloom.errors import DataError, RecipeError


@app.command(cls=RecipeCommand)
@told
def train(
    source: SourceUnlessResumed = None,
    recipe: RecipeOption = None,
    settings: Settings = None,
    per_class: PerClass = None,
    time_limit: TimeLimit = None,
    out: OutUnlessResumed = None,
    name: Name = None,
    device: Annotated[
        Device | None,
        typer.Option("--device", help="Where to compute; auto without it, and with --resume where the run was."),
    ] = None,
    as_json: AsJSON = False,
    quiet: Quiet = False,
    seeds: Annotated[
        int | None, typer.Option("--seeds", metavar="N", help="Repeat over N seeds and tell the spread.")
    ] = None,
    jobs: Annotated[
        str | None,
        typer.Option("--jobs", "-j", metavar="N", help="With --seeds: trainings at once; auto without it."),
    ] = None,
    like: PlanOf = None,
    resume: Annotated[
        str | None,
        typer.Option(
            "--resume", metavar="RUN", help="Go on with this run; --set epochs=N extends it, --device moves it."
        ),
    ] = None,
    profile: Annotated[
        bool, typer.Option("--profile", help="Write a trace of some steps into the run: where the time goes.")
    ] = False,
) -> None:
    """Train a classifier on labelled pictures and test it once, at the end."""
    if source is not None and resume is None:
        from netloom.workflows import head_start

        head_start.begin(source, recipe, settings or [])  # before torch is imported, which takes as long
    from netloom.workflows import train as workflow
    from netloom.workflows.runs import load

    overrides = changes_of(settings, per_class, time_limit)
    if resume is not None:
        from netloom.workflows.seeds import describe_seeds, resume_seeds
        from netloom.workflows.training_job import is_job

        started_anew = source or recipe or name or out or seeds or like
        if started_anew or set(overrides) - {"epochs"}:
            raise RecipeError(
                "--resume goes on with what the run holds; besides it only --set epochs=N, --device and --profile can "
                "be given."
            )
        if is_job(resume, "seeds"):
            if overrides or profile or device:
                raise RecipeError(f"{resume} holds several trainings, which --resume goes on with as they are.")
            summary = resume_seeds(resume, jobs=jobs or "auto", quiet=quiet)
            show(summary, describe_seeds(summary), as_json=as_json)
            return
        if jobs is not None:
            raise RecipeError("--jobs is for several trainings: --seeds N, or the folder that it made.")
        run = workflow.resume(
            resume,
            epochs=overrides.get("epochs"),
            device=None if device is None else device.value,
            quiet=quiet,
            profile=profile,
        )
        show(run.result, [str(run.path)] if quiet else [], as_json=as_json)
        return
    if source is None:
        raise DataError("Say what to train on: netloom train SOURCE, or --resume RUN to go on with a run.")
    shared: dict[str, Any] = {
        "out": out or DEFAULT_OUT,
        "name": name,
        "device": (device or Device.auto).value,
        "quiet": quiet,
        "plan": None if like is None else load(like).plan,
        "settings": overrides,
    }
    if seeds is not None:
        if profile:
            raise RecipeError("--profile traces one training; leave out --seeds, or give one of them as --set seed=N.")
        from netloom.workflows.seeds import describe_seeds, train_seeds

        summary = train_seeds(source, recipe, n_seeds=seeds, jobs=jobs or "auto", **shared)
        show(summary, describe_seeds(summary), as_json=as_json)
        return
    if jobs is not None:
        raise RecipeError("--jobs is for several trainings: give --seeds N, too.")
    run = workflow.train(source, recipe, profile=profile, **shared)
    show(run.result, [str(run.path)] if quiet else [], as_json=as_json)


@app.command("lr-find", cls=RecipeCommand)
@told
def lr_find(
    source: Source,
    recipe: RecipeOption = None,
    settings: Settings = None,
    per_class: PerClass = None,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE", help="Draw the curve into a .svg, .png or .html file.")
    ] = None,
    force: Force = False,
    min_rate: Annotated[float, typer.Option("--min-rate", help="Learning rate of the first step.")] = 1e-6,
    max_rate: Annotated[float, typer.Option("--max-rate", help="Learning rate of the last step.")] = 10.0,
    steps: Annotated[int, typer.Option("--steps", help="From the first rate to the last.")] = 300,
    max_seconds: Annotated[
        float, typer.Option("--max-seconds", help="Take fewer steps, 50 at least, where they would take longer.")
    ] = 120.0,
    device: DeviceOption = Device.auto,
    as_json: AsJSON = False,
    quiet: Quiet = False,
) -> None:
    """Find a learning rate for a recipe: the loss of a copy of the network at rising rates."""
    from netloom.workflows.lr_find import describe
    from netloom.workflows.lr_find import lr_find as run_test

    found = run_test(
        source,
        recipe,
        min_rate=min_rate,
        max_rate=max_rate,
        n_steps=steps,
        max_seconds=max_seconds,
        plot=plot,
        force=force,
        device=device.value,
        quiet=quiet,
        settings=changes_of(settings, per_class),
    )
    shown = None if plot is None else str(plot)
    show({**found.to_json(), "plot": shown}, describe(found, plot=shown), as_json=as_json)


@app.command("augment-preview", cls=RecipeCommand)
@told
def augment_preview(
    source: Source,
    recipe: RecipeOption = None,
    settings: Settings = None,
    picture: Annotated[
        str | None,
        typer.Option("--picture", metavar="ID", help="Of a training picture, or its number; the first without it."),
    ] = None,
    rows: Annotated[int, typer.Option("--rows", min=1, help="Of the grid.")] = 4,
    columns: Annotated[int, typer.Option("--columns", min=2, help="Of the grid.")] = 6,
    plot: Annotated[
        Path | None,
        typer.Option("--plot", metavar="FILE.png", help="What to write; a new augmented-….png here without it."),
    ] = None,
    force: Force = False,
    as_json: AsJSON = False,
    quiet: Quiet = False,
) -> None:
    """Draw a training picture as the recipe's augmentation changes it, epoch by epoch."""
    from netloom.workflows.augment_preview import augment_preview as draw

    found = draw(
        source,
        recipe,
        picture=picture,
        rows=rows,
        columns=columns,
        plot=plot,
        force=force,
        quiet=quiet,
        settings=changes_of(settings),
    )
    text = f"{found['plot']}: {found['picture']} as it is (framed) and in {found['epochs']} epochs"
    show(found, [text], as_json=as_json)
