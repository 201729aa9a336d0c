"""What a person reads while something runs, and that nothing ends because nobody does."""

from __future__ import annotations

import errno
import io
import sys
import time
from pathlib import Path

import pytest

import netloom
from netloom import progress
from netloom.progress import Reporter, number_cell, table_row
from netloom.runtime import ExecutionPlan
from picture_folders import write_folder


class Unread(io.StringIO):
    """A stream whose reader goes away after some writes."""

    def __init__(self, error: OSError, *, terminal: bool = False, writes: int = 0) -> None:
        super().__init__()
        self.error, self.terminal, self.left = error, terminal, writes

    def isatty(self) -> bool:
        return self.terminal

    def write(self, text: str) -> int:
        self.left -= 1
        if self.left < 0:
            raise self.error
        return super().write(text)


def test_a_row_keeps_its_columns() -> None:
    assert table_row(["3", "0.5", "learning_rate"], [5, 6, 8]) == "|     3 |    0.5 | learnin… |"
    assert table_row(["3", "0.5", "learning_rate"], [1, 3, 13]) == "| 3 | 0.5 | learning_rate |"
    with pytest.raises(ValueError, match="zip"):
        table_row(["3"], [5, 6])


@pytest.mark.parametrize(
    ("value", "form", "expected"),
    [
        (0.5, ".4f", "0.5000"),
        (-1.25, ".4f", "-1.2500"),
        (123456789.25, ".4f", "1.23e+08"),
        (-123456789.25, ".4f", "-1.2e+08"),
        (123456.75, ".4f", "123456.8"),
        (-1e-5, ".4g", "-1e-05"),
        (-1.2345e-5, ".4g", "-1.2e-05"),
        (12345678, "d", "12345678"),
        (123456789, "d", "1.23e+08"),
        (float("-inf"), ".4f", "-inf"),
    ],
)
def test_a_number_is_rounded_not_cut(value: float, form: str, expected: str) -> None:
    assert number_cell(value, 8, form) == expected


def use_everything(reporter: Reporter) -> None:
    reporter.say("a line")
    with reporter.bar("reading") as on_progress:
        on_progress(1, 2)
    with reporter.bars() as bars:
        bars.update("one", 1, 2)
        reporter.say("a line above the bars")
        time.sleep(0.3)  # in which they are drawn anew, by a thread of their own
        bars.update("one", 2, 2)
        bars.remove("one")
    reporter.say("another")


def test_without_a_stderr_nothing_is_said_on_stdout(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with_one = Reporter()
    monkeypatch.setattr(sys, "stderr", None)
    use_everything(Reporter())
    with_one.say("a line")
    closed = io.StringIO()
    closed.close()
    monkeypatch.setattr(sys, "stderr", closed)
    use_everything(Reporter())
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("writes", [0, 4])
def test_a_terminal_that_was_closed_ends_nothing(monkeypatch: pytest.MonkeyPatch, writes: int) -> None:
    gone = Unread(OSError(errno.EIO, "Input/output error"), terminal=True, writes=writes)
    monkeypatch.setattr(sys, "stderr", gone)
    monkeypatch.setattr(progress, "_SECONDS_BEFORE_BAR", 0.0)
    reporter = Reporter()
    assert reporter.interactive
    use_everything(reporter)
    assert gone.left < 0
    assert reporter.quiet
    assert sys.stderr is gone


def test_a_reader_that_ends_does_not_end_a_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos = write_folder(tmp_path / "photos", per_class=8)
    gone = Unread(BrokenPipeError(errno.EPIPE, "Broken pipe"), writes=5)
    monkeypatch.setattr(sys, "stderr", gone)
    settings = {"filters": [4], "batch_size": 8, "epochs": 3, "augmentation": None, "precision": "float32", "shards": 0}
    run = netloom.train(photos, out=tmp_path, plan=ExecutionPlan("cpu", 1, "float32"), settings=settings)
    assert "pictures of 3 classes" in gone.getvalue()
    assert gone.left < 0
    assert (run.result["status"], run.result["epochs"]) == ("finished", 3)
