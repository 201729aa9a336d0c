"""The database of one process: whatever part of the changes reached it, the study goes on to the same trials."""

from __future__ import annotations

import contextlib
import sqlite3
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from netloom.errors import NetloomError, RunError
from netloom.tuning.own_database import OwnDatabase
from netloom.tuning.samplers import create_pruner, create_sampler
from netloom.tuning.storage import open_own
from netloom.tuning.study import SearchStudy
from tuning.shared_driver import SPACE, dimensions_of

N_TRIALS = 4


def study_in(path: Path, *, new: bool, sampler: str = "tpe") -> SearchStudy:
    dimensions = dimensions_of(SPACE)
    parts: dict[str, Any] = {
        "sampler": create_sampler(sampler, dimensions, seed=0, init_points=2, n_trials=N_TRIALS),
        "pruner": create_pruner("median", epochs=2),
    }
    storage = open_own(path)
    if not new:
        return SearchStudy.open(storage, "own", dimensions, **parts)
    return SearchStudy.create(storage, "own", dimensions, direction="maximize", **parts)[0]


def run(study: SearchStudy) -> None:
    """What the driver does, one trial after the other."""
    left = N_TRIALS - study.n_asked()
    for proposal in [*study.unfinished(), *(None for _ in range(left))]:
        trial = proposal or study.ask()
        value = float(trial.overrides["dropout"])
        for step in (1, 2):
            study.report(trial.number, step, value / step)
        study.complete(trial.number, value, {"values": [value, value / 2]})


def figures(study: SearchStudy) -> list[Any]:
    found = []
    for record, trial in zip(study.records(), study._study.get_trials(), strict=True):
        untimed = replace(record, finished_after=None)
        found.append((untimed, trial.params, trial.distributions, trial.intermediate_values, trial.user_attrs))
    return found


def test_a_reopened_study_is_what_was_written(tmp_path: Path) -> None:
    with contextlib.closing(study_in(tmp_path / "study.db", new=True)) as study:
        study.enqueue({"dropout": 0.25, "batch_size": 32}, "recipe")
        run(study)
        waiting = study.ask()
        written = figures(study)
    with contextlib.closing(study_in(tmp_path / "study.db", new=False)) as again:
        assert figures(again) == written
        assert again.unfinished()[0].overrides == waiting.overrides
        assert again.records()[0].overrides == {"dropout": 0.25, "batch_size": 32}
        assert again.records()[0].origin == "recipe"


def test_any_beginning_of_the_changes_leads_to_the_same_trials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The power fails after each of the changes in turn."""
    write, changes = OwnDatabase._write, [0]

    def counted(self: OwnDatabase, change: Any) -> None:
        changes[0] += 1
        if changes[0] <= limit:
            write(self, change)

    monkeypatch.setattr(OwnDatabase, "_write", counted)
    limit = 10**6
    with contextlib.closing(study_in(tmp_path / "whole.db", new=True)) as study:
        study.enqueue({"dropout": 0.25, "batch_size": 32}, "recipe")
        run(study)
        expected = figures(study)
    assert [record.state for record, *_ in expected] == ["complete"] * N_TRIALS
    n_changes = changes[0]
    assert n_changes > 30
    # From the third on: what the study is, and the recipe's own trial, are written before the first trial runs.
    for cut in range(3, n_changes, 3):
        changes[0], limit, path = 0, cut, tmp_path / f"{cut}.db"
        with contextlib.closing(study_in(path, new=True)) as study:
            study.enqueue({"dropout": 0.25, "batch_size": 32}, "recipe")
            run(study)
        limit = 10**6
        with contextlib.closing(study_in(path, new=False)) as study:
            run(study)
            assert figures(study) == expected, cut


def test_what_cannot_be_written_is_told(tmp_path: Path) -> None:
    study = study_in(tmp_path / "study.db", new=True)
    run(study)
    database = study._study._storage
    assert isinstance(database, OwnDatabase)
    database._writer.submit(lambda: None).result()  # all that was changed before is written
    with contextlib.closing(sqlite3.connect(tmp_path / "study.db")) as other:
        other.execute("DROP TABLE trial_params")
        other.commit()
    study.ask()  # written later
    database._writer.submit(lambda: None).result()
    with pytest.raises(NetloomError, match=r"study\.db could not be written: no such table"):
        study.ask()
    with pytest.raises(NetloomError, match="no such table"):
        study.close()


def test_two_processes_do_not_write_to_one_study(tmp_path: Path) -> None:
    path = tmp_path / "study.db"
    program = (
        "import sys, pathlib; from netloom.files import lock_file\n"
        f"lock = lock_file(pathlib.Path({str(path.with_suffix('.lock'))!r}), 'busy'); print('locked', flush=True)\n"
        "sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline().strip() == b"locked"
        with pytest.raises(RunError, match="Another process is at work on"):
            open_own(path)
        other.kill()
    open_own(path).close()
