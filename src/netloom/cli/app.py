"""The application that verbs register with."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from netloom.cli.output import print_json

_ARGUMENTS = "netloom.arguments"


class Verbs(TyperGroup):
    """All verbs. What is wrong with a command line is told as one JSON object, too, where `--json` is in it."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse what is in front of the verb.

        Raises:
            UsageError: It is not understood.
        """
        ctx.meta[_ARGUMENTS] = tuple(args)
        with _mistakes_told(args):
            return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Parse what is behind the verb, and run it.

        Raises:
            UsageError: It is not understood, or there is no such verb.
        """
        with _mistakes_told(ctx.meta[_ARGUMENTS]):
            return super().invoke(ctx)


@contextlib.contextmanager
def _mistakes_told(arguments: Sequence[str]) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # UsageError is click's or, of later versions, a private one of Typer's
        if "--json" in arguments and hasattr(error, "format_message"):
            print_json({"error": {"kind": type(error).__name__, "message": error.format_message()}})
        raise


app = typer.Typer(
    name="netloom",
    cls=Verbs,
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


class RecipeCommand(TyperCommand):
    """A verb with `--set`, which tells those who write `--epochs 3` how a recipe's keys are given."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the command line.

        Raises:
            NoSuchOption: An option is unknown; the message says so, and what to write for a recipe's key.
        """
        try:
            return super().parse_args(ctx, args)
        except Exception as error:  # NoSuchOption is click's or, of later versions, a private one of Typer's
            key = str(getattr(error, "option_name", "")).lstrip("-").replace("-", "_")
            if key and key in _recipe_keys():
                vars(error).update(
                    message=f"{error}. It is a key of recipes; write: --set {key}=VALUE.", possibilities=None
                )
            raise


def _recipe_keys() -> set[str]:
    from netloom.recipe import Recipe

    return set(Recipe.model_fields)
