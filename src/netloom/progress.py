"""What a person sees while something runs: bars on a terminal, plain lines elsewhere; always on stderr."""

from __future__ import annotations

import contextlib
import re
import sys
import time
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TextIO, cast

if TYPE_CHECKING:
    from rich.console import Console

OnProgress = Callable[[int, int], None]

# Where there is no terminal (a log file, a notebook's output), a line this often.
_SECONDS_PER_LINE = 10.0
# A bar for something shorter than this only flickers.
_SECONDS_BEFORE_BAR = 0.5
# What a stream raises that has lost its reader (a pipe, a terminal that was closed), or was closed itself.
_UNREAD = (OSError, ValueError)


_UNSHOWABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def printable(name: str) -> str:
    r"""`name` in NFC, so that it can be stored and shown.

    Undecodable bytes, control characters (which a terminal would obey) and those that turn the direction of the text
    around them are escaped, as `\x1b`.
    """
    if name.isascii() and name.isprintable():
        return name
    return _escaped(unicodedata.normalize("NFC", name))


def printable_lines(text: str) -> str:
    """`text` with the same characters escaped but for ends of lines: names in it may be a stranger's."""
    return "\n".join(map(_escaped, text.split("\n")))


def _escaped(text: str) -> str:
    shown = text.encode("utf-8", "backslashreplace").decode()
    return _UNSHOWABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), shown)


def table_row(cells: Sequence[str], widths: Sequence[int]) -> str:
    """A row of a table of plain text: each cell to the right of its column; what is too long ends with `…`."""
    return f"| {' | '.join(_cut(cell, width).rjust(width) for cell, width in zip(cells, widths, strict=True))} |"


def _cut(cell: str, width: int) -> str:
    return cell if len(cell) <= width else f"{cell[: width - 1]}…"


def number_cell(value: float, width: int, form: str = ".4g") -> str:
    """A number for a cell of such a table: in that form or, where it is too long, with as many digits as fit.

    A number that is cut would be another one: `123456789.25` in 8 characters is `1.23e+08`, not `12345678`.
    """
    forms = [form, *(f".{digits}g" for digits in range(width, 0, -1))]
    texts = [format(value, each) for each in forms]
    return next((text for text in texts if len(text) <= width), texts[-1])


class Bars:
    """Bars by name; these show nothing."""

    def update(self, name: str, done: float, total: float, text: str = "") -> None:
        """Show the bar of that name, at `done` of `total`, with a few words beside it."""

    def remove(self, name: str) -> None:
        """Take the bar away, where there is one."""


class Reporter:
    """Tells a person what happens; a quiet one says nothing.

    No work ends because nobody listens: without a stderr, or once its reader is gone, a reporter is quiet.

    Args:
        quiet: Say nothing at all.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self.quiet = quiet
        self.interactive = not quiet and _is_terminal(sys.stderr)

    def say(self, text: str) -> None:
        """One line."""
        stream: TextIO | None = sys.stderr  # None in services and other programs without a console
        if self.quiet or stream is None:
            return
        try:
            print(printable_lines(text), file=stream, flush=True)
        except _UNREAD:
            self.quiet, self.interactive = True, False

    @contextlib.contextmanager
    def bar(self, description: str) -> Iterator[OnProgress]:
        """A progress bar for the body, which calls what it gets with (done, total)."""
        if self.quiet:
            yield lambda done, total: None
        elif self.interactive:
            with _terminal_bar(description) as update:
                yield update
        else:
            yield self._lines(description)

    @contextlib.contextmanager
    def bars(self) -> Iterator[Bars]:
        """Several bars at once for the body, on a terminal; elsewhere they show nothing."""
        if not self.interactive:
            yield Bars()
            return
        with _TerminalBars() as shown:
            yield shown

    def _lines(self, description: str) -> OnProgress:
        last = time.monotonic()

        def update(done: int, total: int) -> None:
            nonlocal last
            if time.monotonic() - last >= _SECONDS_PER_LINE:
                last = time.monotonic()
                self.say(f"{description}: {done:,} of {total:,} ({done / max(total, 1):.0%})")

        return update


def _is_terminal(stream: TextIO | None) -> bool:
    try:
        return stream is not None and stream.isatty()
    except _UNREAD:
        return False


class _Forgiving:
    """A stream that takes what is written, also when nobody reads it any more."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with contextlib.suppress(*_UNREAD):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(*_UNREAD):
            self._stream.flush()


def _console() -> Console:
    """For bars on stderr, which are drawn by a thread of their own."""
    from rich.console import Console

    # While bars are shown, `sys.stderr` is a stand-in that prints above them.
    stream = getattr(sys.stderr, "rich_proxied_file", sys.stderr)
    return Console(file=cast("TextIO", _Forgiving(stream)))


@contextlib.contextmanager
def _terminal_bar(description: str) -> Iterator[OnProgress]:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=_console(),
        transient=True,
    )
    started, shown = time.monotonic(), False
    task = progress.add_task(description, total=None)

    def update(done: int, total: int) -> None:
        nonlocal shown
        if not shown and time.monotonic() - started >= _SECONDS_BEFORE_BAR:
            progress.start()
            shown = True
        progress.update(task, completed=done, total=total)

    try:
        yield update
    finally:
        progress.stop()


class _TerminalBars(Bars):
    def __init__(self) -> None:
        from rich.progress import BarColumn, Progress, TaskID, TextColumn

        # While it runs, what is said on stderr appears above the bars.
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[text]}", markup=False),
            console=_console(),
            transient=True,
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Bars:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def update(self, name: str, done: float, total: float, text: str = "") -> None:
        if name not in self._tasks:
            self._tasks[name] = self._progress.add_task(name, total=total, text=text)
        self._progress.update(self._tasks[name], completed=done, total=total, text=text)

    def remove(self, name: str) -> None:
        if name in self._tasks:
            self._progress.remove_task(self._tasks.pop(name))
