"""The application that verbs register with."""

from __future__ import annotations

from typing import Annotated

import typer

app = typer.Typer(
    name="netloom",
    help="From labelled pictures to a classifier you can trust.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help needs no rich, whose import takes longer than the rest together
    context_settings={"help_option_names": ["-h", "--help"]},
)


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
