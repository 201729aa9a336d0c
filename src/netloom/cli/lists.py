"""Verbs that tell what there is."""

from __future__ import annotations

from typing import Annotated

import typer

from netloom.cli.app import app
from netloom.cli.options import (
    AsJSON,
    Machine,
    Quiet,
    Settings,
    Source,
)
from netloom.cli.output import print_json, print_table, told


@app.command()
@told
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
        print_json(found.to_json())
        return
    columns, *rows = found.rows()
    print_table(columns, rows, right=(3, 4))
    typer.echo(
        f"Parameters: {found.parameters:,} ({found.trainable_parameters:,} trainable), "
        f"{found.multiply_adds / 1e6:,.1f} million multiply-adds for a picture"
    )


@app.command()
@told
def audit(source: Source, as_json: AsJSON = False, quiet: Quiet = False) -> None:
    """What is in a source, and what is wrong with it."""
    from netloom.workflows.inspect import audit_source

    found = audit_source(source, quiet=quiet)
    if as_json:
        print_json(found.to_json())
        return
    typer.echo(found.to_text())


@app.command()
@told
def models(as_json: AsJSON = False) -> None:
    """The models, one line each."""
    from netloom.models.registry import describe_models

    found = describe_models()
    if as_json:
        print_json(
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
    print_table(["model", "what it is"], [[m.name, m.description] for m in found])


@app.command()
@told
def backbones(
    source: Annotated[
        str | None,
        typer.Argument(help="A source whose pictures are counted.", show_default=False),
    ] = None,
    fits: Annotated[
        Machine | None,
        typer.Option("--fits", help="Only those that take at most two minutes there.", show_default=False),
    ] = None,
    pictures: Annotated[
        int | None, typer.Option("--pictures", metavar="N", help="How many pictures; 2000 without it.")
    ] = None,
    as_json: AsJSON = False,
) -> None:
    """Pretrained networks worth trying, what they cost here, and which one to take."""
    from netloom.workflows.backbones import backbones as list_backbones

    found = list_backbones(fits.value if fits else None, pictures=pictures, source=source)
    if as_json:
        print_json(found.to_json())
        return
    columns, *rows = found.to_rows()
    print_table(columns, rows, right=(2, 3, 4, 8))
    for line in found.notes():
        typer.echo(line)


@app.command()
@told
def recipes(as_json: AsJSON = False) -> None:
    """The shipped recipes, one line each."""
    from netloom.recipe import describe_recipes

    found = describe_recipes()
    if as_json:
        print_json({"recipes": found})
        return
    print_table(
        ["recipe", "model", "what it is"],
        [[r["name"], r["model"], r["description"]] for r in found],
    )


@app.command()
@told
def datasets(as_json: AsJSON = False) -> None:
    """The named data sets, one line each."""
    from netloom.data.named import NAMED_SETS

    if as_json:
        print_json(
            {
                "datasets": [
                    {"name": s.name, "description": s.description, "classes": s.n_classes} for s in NAMED_SETS.values()
                ]
            }
        )
        return
    print_table(["data set", "what it is"], [[s.name, s.description] for s in NAMED_SETS.values()])


@app.command()
@told
def doctor(as_json: AsJSON = False) -> None:
    """Device, threads, precision and versions of this machine, and what is missing."""
    from netloom.workflows.doctor import describe, examine

    found = examine()
    if as_json:
        print_json(found)
        return
    for line in describe(found):
        typer.echo(line)
