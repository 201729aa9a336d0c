"""What a person sees on the terminal while a search runs: rows of trials that ended, bars of those that run."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from netloom.progress import Bars, Reporter
from netloom.tuning.driver import TrialEnd
from netloom.tuning.study import Proposal, TrialRecord
from netloom.workflows import trial_table
from netloom.workflows.trial_table import TrialTable

WAITED = 20.0


class Recording(Bars):
    """Bars that remember what they would show."""

    def __init__(self) -> None:
        self.shown: dict[str, tuple[float, float, str]] = {}
        self.removed: list[str] = []

    def update(self, name: str, done: float, total: float, text: str = "") -> None:
        self.shown[name] = (done, total, text)

    def remove(self, name: str) -> None:
        self.removed.append(name)
        self.shown.pop(name, None)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The table's, set by hand."""
    now = SimpleNamespace(seconds=100.0)
    monkeypatch.setattr(trial_table, "time", SimpleNamespace(monotonic=lambda: now.seconds))
    return now


def table_of(bars: Bars, reporter: Reporter | None = None, **changes: Any) -> TrialTable:
    options: dict[str, Any] = {
        "keys": ["dropout", "learning_rate"],
        "direction": "maximize",
        "n_trials": 4,
        "seconds": None,
        "earlier": [],
        "n_ended": 0,
    }
    return TrialTable(reporter or Reporter(), bars, **{**options, **changes})


def end(number: int, value: float | None, state: Any = "complete", **outcome: Any) -> TrialEnd:
    overrides = {"dropout": 0.25, "learning_rate": 1e-3}
    return TrialEnd(number, state, value, overrides, {"epochs": 5, "seconds": 12.34, **outcome})


def rows(told: str) -> list[list[str]]:
    """The cells of each row, and `*` or nothing behind them."""
    lines = [line for line in told.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.split("|")[1:]] for line in lines]


def test_rows_tell_the_best_so_far_and_the_time_left(
    clock: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    bars = Recording()
    earlier = [TrialRecord(0, "complete", 0.5, {}, {}, "recipe")]
    table = table_of(bars, earlier=earlier, n_ended=1)
    table.started(Proposal(1, {}))
    table.progressed(1, {"done": 0.5, "of": 1, "epochs": 4, "value": 0.25})
    assert bars.shown["trial 1"] == (0.5, 1, "2.0 of 4 epochs  0.2500")
    assert bars.shown["search"] == (1.0, 4.0, "best 0.5000 (trial 0)  ")  # nobody knows yet how long one takes
    clock.seconds += 10
    table.ended(end(1, 0.4))
    clock.seconds += 6
    table.ended(end(2, 0.6))
    assert bars.shown["search"] == (3.0, 4.0, "best 0.6000 (trial 2)  8.0 s left")
    table.ended(end(3, None, "failed", reason="it is too large", epochs=None))
    assert bars.removed == ["trial 1", "trial 2", "trial 3"]
    assert set(bars.shown) == {"search"}
    told = capsys.readouterr().err
    header, line, *ended = rows(told)
    assert header == ["trial", "value", "dropout", "learning_rate", "epochs", "seconds", "left", ""]
    assert all(set(cell) == {"-"} for cell in line[:-1])
    assert ended == [
        ["1", "0.4000", "0.25", "0.001", "5", "12.3", "20 s", ""],
        ["2", "0.6000", "0.25", "0.001", "5", "12.3", "8.0 s", "*"],
        ["3", "failed", "0.25", "0.001", "", "12.3", "0.0 s", ""],
    ]
    assert "trial 3 failed: it is too large" in told
    assert "Trial 1" not in told


def test_the_least_is_the_best_where_it_is_sought(clock: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    table = table_of(Recording(), direction="minimize")
    for number, value in enumerate((0.5, 0.6, 0.4, 0.4)):
        table.ended(end(number, value))
    table.ended(end(4, None, "pruned"))
    assert [row[-1] for row in rows(capsys.readouterr().err)[2:]] == ["*", "", "*", "", ""]


@pytest.mark.parametrize(
    ("n_trials", "seconds", "left"),
    [(None, 60.0, "50 s"), (11, None, "1 min 40 s"), (11, 60.0, "50 s"), (3, 60.0, "20 s"), (361, None, "1 h 0 min")],
)
def test_the_time_left_is_that_of_the_trials_or_of_the_limit(
    n_trials: int | None, seconds: float | None, left: str, clock: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    table = table_of(Recording(), n_trials=n_trials, seconds=seconds)
    clock.seconds += 10
    table.ended(end(0, 0.5))
    assert rows(capsys.readouterr().err)[-1][-2] == left


def test_a_trial_that_goes_on_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    table = table_of(Recording())
    table.started(Proposal(7, {}, again=True))
    table.retried(7, "its process died")
    told = capsys.readouterr().err
    assert "Trial 7 goes on from its last checkpoint" in told
    assert "Trial 7: its process died; it goes on from its last checkpoint" in told


def test_without_a_terminal_a_line_now_and_then_tells_what_runs(
    clock: SimpleNamespace, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def told() -> list[str]:
        return [line for line in capsys.readouterr().err.splitlines() if line.startswith("Running")]

    table = table_of(Recording(), n_trials=20)
    for second in range(100):
        clock.seconds += 1
        for number in (0, 1):
            table.progressed(number, {"done": second / 100, "of": 1, "epochs": 100})
    assert told() == [
        f"Running: trial 0 at {second}.0 of 100 epochs, trial 1 at {second - 1}.0 of 100 epochs"
        for second in (29, 59, 89)
    ]
    table.ended(end(0, 0.5))
    table.retried(1, "its process died")
    clock.seconds += 29  # rows tell enough
    table.progressed(2, {"done": 0.3, "of": 1, "epochs": 10, "value": 0.25})
    assert told() == []
    clock.seconds += 1
    table.progressed(2, {"done": 0.4, "of": 1, "epochs": 10, "value": 0.25})
    assert told() == ["Running: trial 2 at 4.0 of 10 epochs; best 0.5000 (trial 0); 41 min 10 s left"]
    for number in range(3, 13):
        table.progressed(number, {"done": 0.1, "of": 1, "epochs": 10})
    clock.seconds += 30
    table.progressed(2, {"done": 0.5, "of": 1, "epochs": 10})
    (line,) = told()
    assert "trial 9 at 1.0 of 10 epochs, and 3 more; best 0.5000" in line
    quiet = table_of(Recording(), Reporter(quiet=True))
    clock.seconds += 60
    quiet.progressed(0, {"done": 0.5, "of": 1, "epochs": 10})
    on_terminal = Reporter()
    on_terminal.interactive = True
    with_bars = table_of(Recording(), on_terminal)
    clock.seconds += 60
    with_bars.progressed(0, {"done": 0.5, "of": 1, "epochs": 10})
    assert told() == []


def test_what_does_not_fit_is_no_other_number(clock: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    table = table_of(Recording(), keys=["filters", "n", "rate"], n_trials=700)
    clock.seconds += 3599
    overrides = {"filters": [32, 64, 128, 256], "n": 1234567890123, "rate": -1.2345e-5}
    table.ended(TrialEnd(0, "complete", 123456789.25, overrides, {"epochs": 5, "seconds": 1234567.5}))
    table.ended(TrialEnd(1, "complete", 0.5, {"filters": "32-64"}, {"epochs": 5, "seconds": 1.0}))
    assert rows(capsys.readouterr().err)[2:] == [
        ["0", "1.23e+08", "32-64-12…", "1.235e+12", "-1.23e-05", "5", "1234568", "698 h 48 min", "*"],
        ["1", "0.5000", "32-64", "", "", "5", "1.0", "348 h 54 min", ""],
    ]


@contextlib.contextmanager
def on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], str]]:
    """Standard error is a pseudo-terminal; tells what was written to it so far, without what moves the cursor."""
    import pty

    reading, writing = pty.openpty()
    written: list[bytes] = []

    def read() -> None:
        try:
            while piece := os.read(reading, 4096):
                written.append(piece)
        except OSError:
            return  # how a Linux system says that the other end is closed

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    with os.fdopen(writing, "w", encoding="utf-8") as stream, monkeypatch.context() as patched:
        patched.setattr(sys, "stderr", stream)
        yield lambda: re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", b"".join(written).decode("utf-8", "replace"))
    thread.join(WAITED)
    os.close(reading)


def wait_for(words: str, text: Callable[[], str]) -> None:
    deadline = time.monotonic() + WAITED
    while words not in text():
        assert time.monotonic() < deadline, f"{words!r} never came in {text()!r}"
        time.sleep(0.02)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no pseudo-terminals")
def test_on_a_terminal_there_are_bars_until_a_trial_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    with on_a_terminal(monkeypatch) as written:
        reporter = Reporter()
        assert reporter.interactive
        with reporter.bars() as bars:
            table = table_of(bars, reporter, keys=["dropout"])
            table.progressed(3, {"done": 0.5, "of": 1, "epochs": 8})
            wait_for("4.0 of 8 epochs", written)
            assert "trial 3" in written()
            table.ended(end(3, 0.75))
            wait_for("best 0.7500 (trial 3)", written)
            before = written()
            table.progressed(4, {"done": 0.25, "of": 1, "epochs": 8})
            wait_for("2.0 of 8 epochs", written)
            assert "4.0 of 8 epochs" not in written()[len(before) :]
        assert re.search(r"\|\s+3 \|\s+0\.7500 \|\s+0\.25 \|.* \*", written())
