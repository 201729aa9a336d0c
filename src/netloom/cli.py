"""The command line: thin callers of the workflows."""

from __future__ import annotations

import functools
import json
import math
import sys
from collections.abc import Callable, Iterable
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

import typer

from netloom.errors import DataError, NetloomError, RecipeError

app = typer.Typer(
    name="netloom",
    help="From labelled pictures to a classifier you can trust.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help needs no rich, whose import takes longer than the rest together
    context_settings={"help_option_names": ["-h", "--help"]},
)

Verb = TypeVar("Verb", bound=Callable[..., None])


class Device(str, Enum):
    """Where to compute."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"
    mps = "mps"


class Part(str, Enum):
    """Which part of a run's data."""

    train = "train"
    validation = "validation"
    test = "test"


Source = Annotated[
    str,
    typer.Argument(
        help="A folder of class folders, a .zip or .tar of them, a CSV file, or a named set.",
        show_default=False,
    ),
]
RunArgument = Annotated[str, typer.Argument(help="A run's folder, made by train.", show_default=False)]
RecipeOption = Annotated[
    str | None,
    typer.Option("--recipe", "-r", help="A shipped recipe's name or a YAML file.", show_default=False),
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        "-s",
        metavar="KEY=VALUE",
        help="Change a recipe key; repeatable; null turns a group off.",
    ),
]
Out = Annotated[Path, typer.Option("--out", "-o", help="Folder for the run's folder.")]
Name = Annotated[str | None, typer.Option("--name", help="Name of the run, after its time.", show_default=False)]
DeviceOption = Annotated[Device, typer.Option("--device", help="Where to compute.")]
AsJSON = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
Force = Annotated[bool, typer.Option("--force", help="Replace the file if it exists.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing while it runs.")]


def _fail(message: str, code: int, *, as_json: bool, kind: str) -> NoReturn:
    if as_json:
        _print_json({"error": {"kind": kind, "message": message}})
    typer.echo(f"Error: {message}" if code == 2 else message, err=True)
    raise typer.Exit(code)


def _is_lack_of_memory(error: MemoryError | RuntimeError) -> bool:
    """Whether Python, torch's CPU allocator or a GPU's has no memory left; torch has no class for the second."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or "can't allocate memory" in str(error)
        or "not enough memory" in str(error)
    )


def _told(verb: Verb) -> Verb:
    """Turn what a user can act on into one message and an exit code, without a traceback."""

    @functools.wraps(verb)
    def run(*args: Any, **options: Any) -> None:
        as_json = bool(options.get("as_json"))
        try:
            verb(*args, **options)
        except NetloomError as error:
            _fail(str(error), error.exit_code, as_json=as_json, kind=type(error).__name__)
        except KeyboardInterrupt:
            _fail("Interrupted.", 130, as_json=as_json, kind="Interrupted")
        except (MemoryError, RuntimeError) as error:
            if not _is_lack_of_memory(error):
                raise
            _fail(
                "There is not enough memory for this. Use a smaller batch_size, image_size or network. "
                f"({str(error).strip().splitlines()[0][:300] if str(error).strip() else 'MemoryError'})",
                2,
                as_json=as_json,
                kind="OutOfMemory",
            )

    return run  # type: ignore[return-value]


def _plain(value: Any) -> Any:
    """JSON has no NaN and no infinity: they become null."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _print_json(value: dict[str, Any]) -> None:
    typer.echo(json.dumps(_plain(value), ensure_ascii=False, indent=1, allow_nan=False))


def _show(value: dict[str, Any], lines: Iterable[str], *, as_json: bool) -> None:
    """One JSON object, or lines for people."""
    if as_json:
        _print_json(value)
        return
    for line in lines:
        typer.echo(line)


def _table(columns: Iterable[str], rows: Iterable[Iterable[str]], *, right: tuple[int, ...] = ()) -> None:
    """A table on stdout; cells are shown literally, whatever brackets they hold."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    console = Console()
    # A pipe has no width; cutting cells to 80 columns there would lose text.
    console.width = console.width if sys.stdout.isatty() else max(console.width, 160)
    console.print(table)


@app.callback(invoke_without_command=True)
def main_options(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
) -> None:
    """From labelled pictures to a classifier you can trust."""
    if version:
        from importlib.metadata import version as version_of

        typer.echo(f"netloom {version_of('netloom')}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        raise typer.Exit(2)


@app.command()
@_told
def train(
    source: Annotated[
        str | None,
        typer.Argument(
            help="A folder of class folders, a .zip or .tar of them, a CSV file, or a named set.", show_default=False
        ),
    ] = None,
    recipe: RecipeOption = None,
    settings: Settings = None,
    out: Out = Path("runs"),
    name: Name = None,
    device: DeviceOption = Device.auto,
    as_json: AsJSON = False,
    quiet: Quiet = False,
    seeds: Annotated[
        int | None, typer.Option("--seeds", metavar="N", help="Repeat over N seeds and tell the spread.")
    ] = None,
    like: Annotated[
        str | None,
        typer.Option("--plan-of", metavar="RUN", help="Execute it as this run was, to repeat its bits."),
    ] = None,
    resume: Annotated[
        str | None,
        typer.Option("--resume", metavar="RUN", help="Go on with this run; --set epochs=N extends it."),
    ] = None,
    profile: Annotated[
        bool, typer.Option("--profile", help="Write a trace of some steps into the run: where the time goes.")
    ] = False,
) -> None:
    """Train a classifier on labelled pictures and test it once, at the end."""
    from netloom.recipe import parse_overrides
    from netloom.workflows import train as workflow
    from netloom.workflows.runs import load

    overrides = parse_overrides(settings or [])
    if resume is not None:
        started_anew = source or recipe or name or seeds or like or device is not Device.auto
        if started_anew or set(overrides) - {"epochs"}:
            raise RecipeError("--resume goes on with what the run holds; besides it only --set epochs=N can be given.")
        run = workflow.resume(resume, epochs=overrides.get("epochs"), quiet=quiet, profile=profile)
        _show(run.result, [str(run.path)] if quiet else [], as_json=as_json)
        return
    if source is None:
        raise DataError("Say what to train on: netloom train SOURCE, or --resume RUN to go on with a run.")
    shared: dict[str, Any] = {
        "out": out,
        "name": name,
        "device": device.value,
        "quiet": quiet,
        "plan": None if like is None else load(like).plan,
        "settings": overrides,
    }
    if seeds is not None:
        from netloom.workflows.seeds import describe_seeds, train_seeds

        summary = train_seeds(source, recipe, n_seeds=seeds, **shared)
        _show(summary, describe_seeds(summary), as_json=as_json)
        return
    run = workflow.train(source, recipe, profile=profile, **shared)
    _show(run.result, [str(run.path)] if quiet else [], as_json=as_json)


@app.command()
@_told
def evaluate(
    run: RunArgument,
    source: Annotated[
        str | None,
        typer.Argument(help="Other labelled pictures; the run's own without it.", show_default=False),
    ] = None,
    part: Annotated[Part, typer.Option("--part", help="Which part of the run's own data.")] = Part.test,
    device: DeviceOption = Device.auto,
    as_json: AsJSON = False,
    quiet: Quiet = False,
) -> None:
    """Score a run on its own test part or on other labelled pictures."""
    from netloom.workflows.evaluate import evaluate as run_evaluation

    scores = run_evaluation(run, source, part=part.value, device=device.value, quiet=quiet)
    if as_json:
        _print_json(scores)
        return
    low, high = scores["interval"]
    typer.echo(
        f"{scores['part']} accuracy {scores['accuracy']:.2%} of {scores['n']:,} pictures "
        f"(95% interval {low:.2%} to {high:.2%}), macro F1 {scores['macro_f1']:.4f}, "
        f"log loss {scores['log_loss']:.4f}"
    )
    _table(
        ["class", "precision", "recall", "F1", "n"],
        [
            [name, *(_cell(row[k]) for k in ("precision", "recall", "f1")), f"{row['n']:,}"]
            for name, row in scores["per_class"].items()
        ],
        right=(1, 2, 3, 4),
    )


def _cell(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


@app.command()
@_told
def compare(
    runs: Annotated[list[str], typer.Argument(help="Folders of two or more runs.", show_default=False)],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="FILE.html", help="Write a page with the curves of all runs."),
    ] = None,
    as_json: AsJSON = False,
) -> None:
    """Compare runs: what differs, what came out, and which differences are more than noise."""
    from netloom.report.comparison import headline, pairs_table, recipes_table, runs_table
    from netloom.workflows.compare import compare as run_comparison

    found = run_comparison(runs, out=out)
    if as_json:
        _print_json({**found.to_json(), "page": None if out is None else str(out)})
        return
    for table in (runs_table(found), recipes_table(found), pairs_table(found)):
        if table.rows:
            _table(table.columns, table.rows, right=table.right)
    if not found.recipe_differences:
        typer.echo("The recipes are the same.")
    typer.echo(headline(found))
    for note in found.notes:
        typer.echo(f"  note: {note}")
    if out is not None:
        typer.echo(f"Page: {out}")


@app.command()
@_told
def predict(
    run: RunArgument,
    pictures: Annotated[list[str], typer.Argument(help="Files, folders or patterns.", show_default=False)],
    top: Annotated[int, typer.Option("--top", min=1, help="Classes to give for each picture.")] = 1,
    device: DeviceOption = Device.auto,
    as_json: AsJSON = False,
) -> None:
    """Classify new pictures with a trained run."""
    from netloom.workflows.predict import predict as run_prediction

    results = run_prediction(run, pictures, top=top, device=device.value)
    unreadable = [item for item in results if "error" in item]
    if as_json:
        _print_json({"run": run, "predictions": results})
    else:
        for item in results:
            found = item.get("predictions", [])
            text = "  ".join(f"{p['class']} {p['probability']:.1%}" for p in found)
            typer.echo(f"{item['path']}: {text or 'unreadable: ' + item['error']}")
    if len(unreadable) == len(results):
        raise typer.Exit(2)


@app.command()
@_told
def summary(
    model: Annotated[str, typer.Argument(help="A model or a recipe.", show_default=False)],
    input_shape: Annotated[
        str | None,
        typer.Option("--input", metavar="CxHxW", help="Shape of a picture; a recipe's own without it."),
    ] = None,
    classes: Annotated[int | None, typer.Option("--classes", help="How many; 10 without it.")] = None,
    trunk: Annotated[bool, typer.Option("--trunk", help="Only what is in front of the dense head.")] = False,
    settings: Settings = None,
    as_json: AsJSON = False,
) -> None:
    """Layers, shapes and parameters of a model or a recipe's model."""
    from netloom.recipe import parse_overrides
    from netloom.workflows.summarize import summary as summarize

    found = summarize(
        model,
        input_shape=input_shape,
        classes=classes,
        trunk=trunk,
        settings=parse_overrides(settings or []),
    )
    if as_json:
        _print_json(found.to_json())
        return
    columns, *rows = found.rows()
    _table(columns, rows, right=(3, 4))
    typer.echo(
        f"Parameters: {found.parameters:,} ({found.trainable_parameters:,} trainable), "
        f"{found.multiply_adds / 1e6:,.1f} million multiply-adds for a picture"
    )


@app.command()
@_told
def audit(source: Source, as_json: AsJSON = False, quiet: Quiet = False) -> None:
    """What is in a source, and what is wrong with it."""
    from netloom.workflows.inspect import audit_source

    found = audit_source(source, quiet=quiet)
    if as_json:
        _print_json(found.to_json())
        return
    typer.echo(found.to_text())


@app.command("lr-find")
@_told
def lr_find(
    source: Source,
    recipe: RecipeOption = None,
    settings: Settings = None,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE", help="Draw the curve into a .svg, .png or .html file.")
    ] = None,
    force: Force = False,
    min_rate: Annotated[float, typer.Option("--min-rate", help="Learning rate of the first step.")] = 1e-6,
    max_rate: Annotated[float, typer.Option("--max-rate", help="Learning rate of the last step.")] = 10.0,
    steps: Annotated[int, typer.Option("--steps", help="From the first rate to the last.")] = 300,
    device: DeviceOption = Device.auto,
    as_json: AsJSON = False,
    quiet: Quiet = False,
) -> None:
    """Find a learning rate for a recipe: the loss of a copy of the network at rising rates."""
    from netloom.recipe import parse_overrides
    from netloom.workflows.lr_find import describe
    from netloom.workflows.lr_find import lr_find as run_test

    found = run_test(
        source,
        recipe,
        min_rate=min_rate,
        max_rate=max_rate,
        n_steps=steps,
        plot=plot,
        force=force,
        device=device.value,
        quiet=quiet,
        settings=parse_overrides(settings or []),
    )
    shown = None if plot is None else str(plot)
    _show({**found.to_json(), "plot": shown}, describe(found, plot=shown), as_json=as_json)


@app.command("augment-preview")
@_told
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
    from netloom.recipe import parse_overrides
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
        settings=parse_overrides(settings or []),
    )
    text = f"{found['plot']}: {found['picture']} as it is (framed) and in {found['epochs']} epochs"
    _show(found, [text], as_json=as_json)


@app.command()
@_told
def models(as_json: AsJSON = False) -> None:
    """The models, one line each."""
    from netloom.models.registry import describe_models

    found = describe_models()
    if as_json:
        _print_json(
            {
                "models": [
                    {
                        "name": m.name,
                        "description": m.description,
                        "paper": m.paper,
                        "options": dict(m.options),
                    }
                    for m in found
                ]
            }
        )
        return
    _table(["model", "what it is"], [[m.name, m.description] for m in found])


@app.command()
@_told
def recipes(as_json: AsJSON = False) -> None:
    """The shipped recipes, one line each."""
    from netloom.recipe import describe_recipes

    found = describe_recipes()
    if as_json:
        _print_json({"recipes": found})
        return
    _table(
        ["recipe", "model", "what it is"],
        [[r["name"], r["model"], r["description"]] for r in found],
    )


@app.command()
@_told
def datasets(as_json: AsJSON = False) -> None:
    """The named data sets, one line each."""
    from netloom.data.named import NAMED_SETS

    if as_json:
        _print_json(
            {
                "datasets": [
                    {"name": s.name, "description": s.description, "classes": s.n_classes} for s in NAMED_SETS.values()
                ]
            }
        )
        return
    _table(["data set", "what it is"], [[s.name, s.description] for s in NAMED_SETS.values()])


@app.command()
@_told
def doctor(as_json: AsJSON = False) -> None:
    """Device, threads, precision and versions of this machine, and what is missing."""
    from netloom.workflows.doctor import describe, examine

    found = examine()
    if as_json:
        _print_json(found)
        return
    for line in describe(found):
        typer.echo(line)


def main() -> None:
    """Entry point of the `netloom` command."""
    app()


if __name__ == "__main__":
    main()
