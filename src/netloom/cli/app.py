"""The application that verbs register with."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperCommand

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
