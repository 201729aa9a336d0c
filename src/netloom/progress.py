"""What a person sees while something runs: bars on a terminal, plain lines elsewhere; always on stderr."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

OnProgress = Callable[[int, int], None]

# Where there is no terminal (a log file, a notebook's output), a line this often.
_SECONDS_PER_LINE = 10.0
# A bar for something shorter than this only flickers.
_SECONDS_BEFORE_BAR = 0.5


class Reporter:
    """Tells a person what happens; a quiet one says nothing.

    Args:
        quiet: Say nothing at all.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self.quiet = quiet
        self.interactive = not quiet and sys.stderr.isatty()

    def say(self, text: str) -> None:
        """One line."""
        if not self.quiet:
            print(text, file=sys.stderr, flush=True)  # noqa: T201

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

    def _lines(self, description: str) -> OnProgress:
        last = time.monotonic()

        def update(done: int, total: int) -> None:
            nonlocal last
            if time.monotonic() - last >= _SECONDS_PER_LINE:
                last = time.monotonic()
                self.say(f"{description}: {done:,} of {total:,} ({done / max(total, 1):.0%})")

        return update


@contextlib.contextmanager
def _terminal_bar(description: str) -> Iterator[OnProgress]:
    from rich.console import Console
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
        console=Console(stderr=True),
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
