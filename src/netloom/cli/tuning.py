"""The verb that searches."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from netloom.cli.app import RecipeCommand, app
from netloom.cli.options import (
    AsJSON,
    Device,
    DeviceOption,
    Jobs,
    Name,
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
from netloom.workflows.search_options import (
    DEFAULT_FINAL_PART,
    DEFAULT_FINAL_SEEDS,
    DEFAULT_OBJECTIVE,
    DEFAULT_PORT,
    DEFAULT_TRIALS,
    OBJECTIVES,
)


@app.command(cls=RecipeCommand)
@told
def tune(
    source: SourceUnlessResumed = None,
    recipe: RecipeOption = None,
    space: Annotated[
        list[str] | None,
        typer.Option(
            "--space",
            metavar="SPACE",
            help="What to search over, repeatable: KEY=LOW..HIGH, KEY=LOW..HIGH:log, KEY=CHOICE,CHOICE, each also with "
            "' if KEY=VALUE' behind it; default, small-data, architecture; or a YAML file.",
            show_default="default",
        ),
    ] = None,
    sampler: Annotated[
        str | None,
        typer.Option("--sampler", help="auto, gp, tpe, random, grid, qmc, cmaes or evolution.", show_default="auto"),
    ] = None,
    pruner: Annotated[
        str | None,
        typer.Option(
            "--pruner",
            help="Ends trials that promise little: auto, none, median, asha or hyperband.",
            show_default="auto",
        ),
    ] = None,
    trials: Annotated[
        int | None,
        typer.Option(
            "--trials",
            "-n",
            metavar="N",
            help="Trials in all.",
            show_default=f"{DEFAULT_TRIALS}, or what the time allows",
        ),
    ] = None,
    time_limit: Annotated[
        str | None,
        typer.Option(
            "--time-limit",
            metavar="TIME",
            help="Of the search: 90s, 10m, 1h30m; a bare number is seconds.",
            show_default=False,
        ),
    ] = None,
    init_points: Annotated[
        int | None,
        typer.Option("--init-points", metavar="N", help="Random trials before a model proposes.", show_default=False),
    ] = None,
    objective: Annotated[
        str | None,
        typer.Option("--objective", help=f"{', '.join(OBJECTIVES)}.", show_default=DEFAULT_OBJECTIVE),
    ] = None,
    cv: Annotated[
        int | None,
        typer.Option("--cv", metavar="K", help="Score each trial by K folds, not by the validation part."),
    ] = None,
    final_seeds: Annotated[
        int | None,
        typer.Option(
            "--final-seeds",
            metavar="N",
            help="Trainings of the winner with fresh seeds, each tested once; 0 for none.",
            show_default=str(DEFAULT_FINAL_SEEDS),
        ),
    ] = None,
    final_on: Annotated[
        str | None,
        typer.Option(
            "--final-on",
            help="What these are trained on: train, or train+validation, for as many epochs as the best trial kept.",
            show_default=DEFAULT_FINAL_PART,
        ),
    ] = None,
    first: Annotated[
        list[str] | None,
        typer.Option("--try", metavar="VALUES", help="Try these first, repeatable: 'dropout=0.3 learning_rate=1e-3'."),
    ] = None,
    warm_start: Annotated[
        list[str] | None,
        typer.Option("--warm-start", metavar="STUDY", help="Try the best of this study first; repeatable."),
    ] = None,
    storage: Annotated[
        str | None,
        typer.Option(
            "--storage",
            metavar="URL",
            help="A database that several drivers share under one --name: postgresql://… or sqlite:///FILE.",
            show_default="a file in the study's folder",
        ),
    ] = None,
    settings: Settings = None,
    per_class: PerClass = None,
    jobs: Jobs = "auto",
    ray: Annotated[
        str | None,
        typer.Option("--ray", metavar="ADDRESS", help="Have trials done on a Ray cluster: auto, or HOST:PORT."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder for the study's folder.", show_default="runs")
    ] = None,
    name: Name = None,
    device: DeviceOption = Device.auto,
    like: PlanOf = None,
    resume: Annotated[
        str | None,
        typer.Option("--resume", metavar="STUDY", help="Go on with this search; more --trials extend it."),
    ] = None,
    dashboard: Annotated[
        str | None,
        typer.Option("--dashboard", metavar="STUDY", help="Show this study, also while it runs, in a browser."),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(
            "--port",
            min=0,
            max=65535,
            help="Of the dashboard, on this machine alone; 0 for any.",
            show_default=str(DEFAULT_PORT),
        ),
    ] = None,
    as_json: AsJSON = False,
    quiet: Quiet = False,
) -> None:
    """Search for the values of recipe keys that train best, many trials at once, and test the winner once."""
    from netloom.workflows.first_trials import parse_first
    from netloom.workflows.runs import load
    from netloom.workflows.study_result import describe_result
    from netloom.workflows.tune import resume_tune
    from netloom.workflows.tune import tune as search

    searched = (source, recipe, space, sampler, pruner, init_points, objective, cv, final_seeds, first, warm_start)
    begun = [*searched, settings, per_class, out, name, like]
    if dashboard is not None:
        from netloom.progress import Reporter
        from netloom.workflows.study_views import serve_dashboard

        of_search = (*begun, resume, trials, time_limit, final_on, ray)
        how = jobs != "auto" or device is not Device.auto or as_json or quiet
        if any(value is not None for value in of_search) or how:
            raise RecipeError("--dashboard shows a study; beside it only --port and --storage can be given.")
        served_at = DEFAULT_PORT if port is None else port
        serve_dashboard(dashboard, port=served_at, storage=storage, reporter=Reporter())
        return
    if port is not None:
        raise RecipeError("--port is for the dashboard of a study: --dashboard STUDY --port N.")
    if resume is not None:
        if any(value is not None for value in begun) or device is not Device.auto:
            raise RecipeError(
                "--resume goes on with what the study holds; besides it only --trials, --time-limit, --final-on, "
                "--storage, --ray and --jobs can be given."
            )
        found = resume_tune(
            resume,
            n_trials=trials,
            time_limit=time_limit,
            final_on=final_on,
            storage=storage,
            jobs=jobs,
            ray=ray,
            quiet=quiet,
        )
    elif source is None:
        raise DataError("Say what to search on: netloom tune SOURCE, or --resume STUDY to go on.")
    else:
        found = search(
            source,
            recipe,
            space=None if space is None else list(space),
            sampler=sampler or "auto",
            pruner=pruner or "auto",
            n_trials=trials,
            time_limit=time_limit,
            init_points=init_points,
            objective=objective or DEFAULT_OBJECTIVE,
            cv=cv,
            final_seeds=DEFAULT_FINAL_SEEDS if final_seeds is None else final_seeds,
            final_on=final_on or DEFAULT_FINAL_PART,
            first=parse_first(first or ()),
            warm_start=warm_start or (),
            storage=storage,
            jobs=jobs,
            ray=ray,
            out=out or "runs",
            name=name,
            device=device.value,
            quiet=quiet,
            plan=None if like is None else load(like).plan,
            settings=changes_of(settings, per_class),
        )
    show(dict(found.result), describe_result(found.result) if quiet else [], as_json=as_json)
