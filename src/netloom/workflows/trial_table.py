"""How a search goes, for a person: a line for each trial that ends, bars for those that run."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from netloom.durations import duration
from netloom.progress import Bars, Reporter, number_cell, table_row
from netloom.tuning.driver import TrialEnd, Watcher
from netloom.tuning.space import cell_of
from netloom.tuning.study import Direction, Proposal, TrialRecord, best_of

_NARROWEST, _WIDEST = 9, 18
_SEARCH = "search"
# Where there is no terminal, what runs is told this often while no trial ends; so many of them one by one.
_SECONDS_PER_LINE = 30.0
_TRIALS_TOLD = 8


class TrialTable(Watcher):
    """Prints one row for each trial: its number, value, the searched keys, epochs, seconds, and the time left.

    Where there is no terminal for the bars, a line now and then tells of the trials that run.

    Args:
        reporter: Prints.
        bars: Of the trials that run, and of the search.
        keys: Columns.
        direction: Of the value.
        n_trials: In all; None where only time limits them.
        seconds: Time limit.
        earlier: Trials of earlier processes, other drivers' too.
        n_ended: Of them this driver's that have ended.
    """

    def __init__(
        self,
        reporter: Reporter,
        bars: Bars,
        *,
        keys: Sequence[str],
        direction: Direction,
        n_trials: int | None,
        seconds: float | None,
        earlier: Sequence[TrialRecord],
        n_ended: int,
    ) -> None:
        self._reporter, self._bars, self._keys, self._direction = reporter, bars, list(keys), direction
        self._n_trials, self._seconds = n_trials, seconds
        self._started = time.monotonic()
        best = best_of(earlier, direction)
        self._best = None if best is None else best.value
        self._best_number = None if best is None else best.number
        self._ended_before = n_ended
        self.n_ended = self._ended_before
        keyed = [min(max(len(key), _NARROWEST), _WIDEST) for key in self._keys]
        self._widths = [5, 8, *keyed, 6, 7, 12]
        self._header_shown = False
        self._running: dict[int, str] = {}
        self._last_line = self._started

    def progressed(self, number: int, values: Mapping[str, Any]) -> None:
        """Move the trial's bar."""
        text = f"{values['done'] * values['epochs']:.1f} of {values['of'] * values['epochs']} epochs"
        self._running[number] = f"trial {number} at {text}"
        if "value" in values:
            text += f"  {values['value']:.4f}"
        self._bars.update(f"trial {number}", values["done"], values["of"], text)
        self._show_search()
        if not self._reporter.interactive and time.monotonic() - self._last_line >= _SECONDS_PER_LINE:
            self._say_running()

    def started(self, proposal: Proposal) -> None:
        """Say where a trial goes on."""
        if proposal.again:
            self._reporter.say(f"Trial {proposal.number} goes on from its last checkpoint")

    def retried(self, number: int, reason: str) -> None:
        """Say why a trial is begun once more."""
        self._running.pop(number, None)
        self._reporter.say(f"Trial {number}: {reason}; it goes on from its last checkpoint")

    def ended(self, end: TrialEnd) -> None:
        """Print the trial's row."""
        self._bars.remove(f"trial {end.number}")
        self._running.pop(end.number, None)
        self._last_line = time.monotonic()
        self.n_ended += 1
        better = end.value is not None and (
            self._best is None or (end.value > self._best if self._direction == "maximize" else end.value < self._best)
        )
        if better:
            self._best, self._best_number = end.value, end.number
        if not self._header_shown:
            self._header_shown = True
            self._reporter.say(table_row(["trial", "value", *self._keys, "epochs", "seconds", "left"], self._widths))
            self._reporter.say(table_row(["-" * width for width in self._widths], self._widths))
        _, wide, *keyed, _, for_seconds, _ = self._widths
        epochs, seconds = end.outcome.get("epochs"), end.outcome.get("seconds")
        cells = [
            str(end.number),
            end.state if end.value is None else number_cell(end.value, wide, ".4f"),
            *(
                cell_of(end.overrides[key], width) if key in end.overrides else ""
                for key, width in zip(self._keys, keyed, strict=True)
            ),
            "" if epochs is None else str(epochs),
            "" if seconds is None else number_cell(seconds, for_seconds, ".1f"),
            self._left(),
        ]
        self._reporter.say(table_row(cells, self._widths) + (" *" if better else ""))
        if end.state == "failed":
            self._reporter.say(f"  trial {end.number} failed: {end.outcome.get('reason')}")
        self._show_search()

    def _left(self) -> str:
        """The time that the search will still take, or an empty text where nobody knows."""
        passed = time.monotonic() - self._started
        done = self.n_ended - self._ended_before
        by_number = None
        if self._n_trials is not None and done:
            by_number = max(0, self._n_trials - self.n_ended) * passed / done
        by_time = None if self._seconds is None else max(0.0, self._seconds - passed)
        known = [seconds for seconds in (by_number, by_time) if seconds is not None]
        return duration(min(known)) if known else ""

    def _say_running(self) -> None:
        self._last_line = time.monotonic()
        each = [words for _, words in sorted(self._running.items())]
        more = f", and {len(each) - _TRIALS_TOLD} more" if len(each) > _TRIALS_TOLD else ""
        words = [f"Running: {', '.join(each[:_TRIALS_TOLD])}{more}", self._best_in_words()]
        if left := self._left():
            words.append(f"{left} left")
        self._reporter.say("; ".join(filter(None, words)))

    def _best_in_words(self) -> str:
        return "" if self._best is None else f"best {self._best:.4f} (trial {self._best_number})"

    def _show_search(self) -> None:
        best = "" if self._best is None else f"{self._best_in_words()}  "
        left = self._left()
        total = float(self._n_trials or max(self.n_ended, 1))
        self._bars.update(_SEARCH, float(self.n_ended), total, f"{best}{f'{left} left' if left else ''}")
