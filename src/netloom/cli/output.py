"""What verbs print: one JSON object, tables, and errors as one message with an exit code."""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable, Iterable
from typing import Any, NoReturn, TypeVar

import typer

from netloom.errors import NetloomError
from netloom.files import json_text
from netloom.memory import is_lack_of_memory
from netloom.progress import printable_lines

Verb = TypeVar("Verb", bound=Callable[..., None])


def fail(message: str, code: int, *, as_json: bool, kind: str) -> NoReturn:
    """Tell what went wrong and exit with `code`."""
    if as_json:
        print_json({"error": {"kind": kind, "message": message}})
    with contextlib.suppress(OSError, ValueError):  # nobody may be reading; the exit code tells it, too
        say(f"Error: {message}" if code == 2 else message, err=True)
    raise typer.Exit(code)


def told(verb: Verb) -> Verb:
    """Turn what a user can act on into one message and an exit code, without a traceback."""

    @functools.wraps(verb)
    def run(*args: Any, **options: Any) -> None:
        as_json = bool(options.get("as_json"))
        try:
            verb(*args, **options)
        except NetloomError as error:
            fail(str(error), error.exit_code, as_json=as_json, kind=type(error).__name__)
        except KeyboardInterrupt:
            fail("Interrupted.", 130, as_json=as_json, kind="Interrupted")
        except (MemoryError, RuntimeError) as error:
            if not is_lack_of_memory(error):
                raise
            fail(
                "There is not enough memory for this. Use a smaller batch_size, image_size or network. "
                f"({str(error).strip().splitlines()[0][:300] if str(error).strip() else 'MemoryError'})",
                2,
                as_json=as_json,
                kind="OutOfMemory",
            )

    return run  # type: ignore[return-value]


def print_json(value: dict[str, Any]) -> None:
    """One JSON object on stdout."""
    typer.echo(json_text(value))


def say(text: str, *, err: bool = False) -> None:
    """A line or several for people: names in it, which may be those of a stranger's run, cannot steer the terminal."""
    typer.echo(printable_lines(text), err=err)


def show(value: dict[str, Any], lines: Iterable[str], *, as_json: bool) -> None:
    """One JSON object, or lines for people."""
    if as_json:
        print_json(value)
        return
    for line in lines:
        say(line)


def print_table(columns: Iterable[str], rows: Iterable[Iterable[str]], *, right: tuple[int, ...] = ()) -> None:
    """A table on stdout; cells are shown literally, whatever brackets they hold."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for i, column in enumerate(columns):
        table.add_column(Text(printable_lines(column)), justify="right" if i in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable_lines(cell)) for cell in row))
    console = Console()
    # A pipe has no width; cutting cells to 80 columns there would lose text.
    console.width = console.width if sys.stdout.isatty() else max(console.width, 160)
    console.print(table)
