"""Searches whose processes die: what they leave is a whole study, and the table of one that nothing happened to."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
import torch
from typer.testing import CliRunner

import netloom
from netloom.cli import app
from netloom.errors import NetloomError, RunError, TrainingError
from netloom.files import lock_file
from netloom.runtime import ExecutionPlan
from netloom.tuning.storage import sqlite_url
from netloom.tuning.study import SearchStudy
from netloom.workflows import search as search_module
from netloom.workflows import trial_folder, trial_task
from netloom.workflows.trainings import InterruptedTrainingsError
from postgresql_server import PASSWORD, new_database, postgresql_server

PLAN = ExecutionPlan("cpu", 1, "float32")
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
SCRIPT = Path(__file__).with_name("tune_driver.py")
QUICK: dict[str, Any] = {
    "filters": [4],
    "batch_size": 16,
    "epochs": 2,
    "augmentation": None,
    "schedule": None,
    "early_stopping": None,
    "precision": "float32",
}
SPACE = {"learning_rate": "1e-4..1e-1:log", "dropout": "0.0..0.6"}
LONGER = {"epochs": 60}
N_LONG = 56
GRID = {"learning_rate": "0.001,0.002,0.003,0.005,0.01,0.02,0.03,0.05", "dropout": "0.0,0.1,0.2,0.3,0.4,0.5,0.6"}
"""As many combinations as `N_LONG`."""
STATES = "*-study/trials/*/trial.json"
"""Each written when its trial begins."""


class DeathError(BaseException):
    """Stands for the end of the driver's process: nothing in it catches this."""


def options(photos: Path, out: Path, **changes: Any) -> dict[str, Any]:
    given = {
        "source": str(photos),
        "space": SPACE,
        "sampler": "random",
        "pruner": "none",
        "n_trials": 4,
        "final_seeds": 0,
        "jobs": 1,
        "out": str(out),
        "settings": QUICK,
    }
    return {**given, **changes}


def tune(photos: Path, out: Path, **changes: Any) -> netloom.Study:
    return netloom.tune(**options(photos, out, quiet=True, plan=PLAN, **changes))


def table(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The trials without what differs from run to run."""
    same = ("number", "state", "overrides", "value", "epochs", "kept_epoch", "values", "reason")
    return [{key: trial[key] for key in same} for trial in result["trials"]]


def the_folder(out: Path) -> Path:
    """The one that can be gone on with; a driver that died while it made its folder has left one that cannot."""
    (folder,) = [manifest.parent for manifest in out.glob("*-study/study.json")]
    return folder


class Search:
    """A driver's process, and what belongs to it."""

    def __init__(self, out: Path, arguments: Mapping[str, Any] | list[str]) -> None:
        self.mark = f"NETLOOM_TEST_OF={out}"
        temporary = out.parent / f"{out.name} temporary"
        temporary.mkdir(exist_ok=True)
        name, _, value = self.mark.partition("=")
        environment = {**os.environ, name: value, "TMPDIR": str(temporary)}
        command = (
            ["-m", "netloom", *arguments] if isinstance(arguments, list) else [str(SCRIPT), json.dumps(dict(arguments))]
        )
        self.process = subprocess.Popen(
            [sys.executable, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.temporary = temporary

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line.rstrip())

    def wait_until_ready(self) -> None:
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n", self.lines

    def wait_for(self, condition: Any, seconds: float = 240) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert self.process.poll() is None, "\n".join(self.lines)
            assert time.monotonic() < deadline, "\n".join(self.lines)
            time.sleep(0.02)

    def workers(self, of: str = "") -> list[int]:
        """Living processes that this driver started, also where it is dead; those with `of` in their command."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                of_it = self.mark.encode() in (folder / "environ").read_bytes().split(b"\0")
                dead = (folder / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
                of_kind = of.encode() in (folder / "cmdline").read_bytes()
                if of_it and of_kind and not dead and int(folder.name) != self.process.pid:
                    found.append(int(folder.name))
        return found

    def finish(self, code: int = 0) -> None:
        """Wait for the end; nothing of it stays."""
        self.process.wait(300)
        self._reader.join(10)
        assert self.process.returncode == code, "\n".join(self.lines)
        deadline = time.monotonic() + 10
        while self.workers() or list(self.temporary.glob("netloom*")):
            assert time.monotonic() < deadline, (self.workers(), list(self.temporary.glob("netloom*")))
            time.sleep(0.05)

    def kill(self) -> None:
        self.process.kill()
        self.finish(-signal.SIGKILL)

    def ended(self) -> set[int]:
        """Numbers of the trials that the driver has shown the end of."""
        return {int(found[1]) for line in self.lines if (found := re.match(r"\|\s+(\d+) \|", line))}

    def retried(self) -> list[int]:
        """Of those whose worker died, in order."""
        return [int(found[1]) for line in self.lines if (found := re.match(r"Trial (\d+): its process", line))]


@contextlib.contextmanager
def search(out: Path, arguments: Mapping[str, Any] | list[str]) -> Iterator[Search]:
    started = Search(out, arguments)
    with started.process:
        try:
            yield started
        finally:
            started.process.kill()


# A driver that dies, in this process


def die_after(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, calls: int) -> None:
    """The driver dies in that call of a method, before anything of it is done."""
    original, left = getattr(owner, name), [calls]

    def called(*given: Any, **more: Any) -> Any:
        left[0] -= 1
        if left[0] == 0:
            raise DeathError
        return original(*given, **more)

    monkeypatch.setattr(owner, name, called)


@pytest.fixture(scope="module")
def undisturbed(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return table(tune(photos, tmp_path_factory.mktemp("undisturbed")).result)


@pytest.mark.parametrize(
    ("owner", "name", "calls"),
    [
        (SearchStudy, "ask", 3),
        (SearchStudy, "complete", 2),
        (trial_folder.TrialFolder, "write", 3),
        (trial_folder.TrialFolder, "finish", 2),
        (trial_task._Reports, "on_epoch_end", 4),
        (trial_task.Fitting, "fit", 4),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)).rpartition(".")[2],
)
def test_wherever_the_driver_dies_the_table_is_the_undisturbed_one(
    photos: Path, tmp_path: Path, undisturbed: Any, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, calls: int
) -> None:
    with monkeypatch.context() as patched:
        die_after(patched, owner, name, calls)
        with pytest.raises(DeathError):
            tune(photos, tmp_path)
    found = netloom.resume_tune(the_folder(tmp_path), jobs=1, quiet=True)
    assert table(found.result) == undisturbed
    assert not list(the_folder(tmp_path).glob("trials/*/checkpoint*"))


def test_what_a_worker_has_finished_is_told_and_not_trained_again(
    photos: Path, tmp_path: Path, undisturbed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        die_after(patched, SearchStudy, "complete", 4)
        with pytest.raises(DeathError):
            tune(photos, tmp_path)
    monkeypatch.setattr(trial_task, "Fitting", None)  # nothing is left to be trained
    found = netloom.resume_tune(the_folder(tmp_path), jobs=1, quiet=True)
    assert table(found.result) == undisturbed


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "null",
        '{"overrides": {}, "scores": [], "outcome": null}',
        '{"overrides": OVERRIDES, "scores": [1], "outcome": null}',
        '{"overrides": OVERRIDES, "scores": [], "outcome": {"value": 0.5}}',
        '{"overrides": OVERRIDES, "scores": [], "outcome": 3}',
    ],
)
def test_a_damaged_trial_is_begun_anew(
    photos: Path, tmp_path: Path, undisturbed: Any, monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    with monkeypatch.context() as patched:
        die_after(patched, trial_task._Reports, "on_epoch_end", 4)  # the second epoch of the second trial
        with pytest.raises(DeathError):
            tune(photos, tmp_path)
    (state,) = the_folder(tmp_path).glob("trials/*-0001/trial.json")
    overrides = json.loads(state.read_text())["overrides"]
    state.write_text(content.replace("OVERRIDES", json.dumps(overrides)))
    found = netloom.resume_tune(the_folder(tmp_path), jobs=1, quiet=True)
    assert table(found.result) == undisturbed


def test_a_damaged_checkpoint_of_a_trial_costs_its_time_only(
    photos: Path, tmp_path: Path, undisturbed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        die_after(patched, trial_task._Reports, "on_epoch_end", 4)
        with pytest.raises(DeathError):
            tune(photos, tmp_path)
    (checkpoint,) = the_folder(tmp_path).glob("trials/*/checkpoint*")
    checkpoint.write_bytes(checkpoint.read_bytes()[:-100])
    found = netloom.resume_tune(the_folder(tmp_path), jobs=1, quiet=True)
    assert table(found.result) == undisturbed


def test_a_death_in_the_winners_trainings_leaves_the_search_whole(
    photos: Path, tmp_path: Path, undisturbed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from netloom.workflows import training_job

    for number, (owner, name, calls) in enumerate(((training_job, "create_run", 2), (trial_task.Fitting, "fit", 6))):
        out = tmp_path / str(number)
        with monkeypatch.context() as patched:
            die_after(patched, owner, name, calls)
            with pytest.raises(DeathError):
                tune(photos, out, final_seeds=2)
        with monkeypatch.context() as patched:
            patched.setattr(trial_task, "Fitting", None)
            found = netloom.resume_tune(the_folder(out), jobs=1, quiet=True)
        assert table(found.result) == undisturbed
        assert found.result["fresh"]["seeds"] == [1, 2]
        assert found.run is not None
        assert found.result["test"] == found.run.result["test"]


def test_a_damaged_study_is_refused(photos: Path, tmp_path: Path) -> None:
    folder = tune(photos, tmp_path, n_trials=1).path
    manifest, database = folder / "study.json", folder / "study.db"
    whole = json.loads(manifest.read_text())
    damaged: list[Any] = [[], {}, {**whole, "kind": "cross-validation"}, {**whole, "plan": 1}, {**whole, "space": [1]}]
    damaged += [{key: value for key, value in whole.items() if key != gone} for gone in whole]
    damaged += [
        {**whole, key: value}
        for key, value in (("sampler", "dice"), ("objective", "x"), ("final_on", "x"), ("extra", 1))
    ]
    damaged += [{**whole, "n_trials": "many"}, {**whole, "final_seeds": -1}, {**whole, "cv": 1.5}]
    for content in ("", "{", *map(json.dumps, damaged)):
        manifest.write_text(content)
        result = CliRunner().invoke(app, ["tune", "--resume", str(folder), "--quiet"])
        assert result.exit_code == 2, (content, result.stderr, result.exception)
        assert isinstance(result.exception, SystemExit)
        assert "damaged" in result.stderr, result.stderr
    manifest.write_text(json.dumps(whole))
    for file in folder.glob("study.db-*"):
        file.unlink()
    database.write_bytes(b"no database at all, whatever its name" * 100)
    with pytest.raises(NetloomError, match="file is not a database"):
        netloom.resume_tune(folder, quiet=True)
    database.unlink()
    with pytest.raises(RunError, match=r"has no study\.db"):
        netloom.resume_tune(folder, quiet=True)


# Trials that end their process


def in_trial(monkeypatch: pytest.MonkeyPatch, number: int, do: Callable[[], Any]) -> None:
    """Have that trial do something with each of its steps."""
    on_batch_end, name = trial_task._Reports.on_batch_end, trial_folder.trial_name(number)

    def called(self: Any, state: Any) -> None:
        if self._score.trial.path.name == name:
            do()
        on_batch_end(self, state)

    monkeypatch.setattr(trial_task._Reports, "on_batch_end", called)


def failing(error: BaseException) -> Callable[[], None]:
    def fail() -> None:
        raise error

    return fail


def test_a_trial_in_which_the_driver_dies_three_times_fails_alone(
    photos: Path, tmp_path: Path, undisturbed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_trial(monkeypatch, 1, failing(DeathError()))
    monkeypatch.setattr(search_module._TrialFolders, "forgive", lambda self: None)  # a dead driver cannot
    with pytest.raises(DeathError):
        tune(photos, tmp_path)
    for _ in range(2):
        with pytest.raises(DeathError):
            netloom.resume_tune(the_folder(tmp_path), jobs=1, quiet=True)
    found = table(netloom.resume_tune(the_folder(tmp_path), jobs=1, quiet=True).result)
    assert [row["state"] for row in found] == ["complete", "failed", "complete", "complete"]
    assert found[1]["reason"].startswith("Its process died each of the 3 times that it was begun, perhaps because mem")
    assert [found[n] for n in (0, 2, 3)] == [undisturbed[n] for n in (0, 2, 3)]


def test_interruptions_are_no_deaths(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However often Ctrl-C is pressed before an epoch has ended."""
    given: dict[str, Any] = {"n_trials": 2, "settings": {**QUICK, "batch_size": 4}}
    with monkeypatch.context() as patched:
        in_trial(patched, 1, lambda: signal.raise_signal(signal.SIGINT))
        with pytest.raises(InterruptedTrainingsError):
            tune(photos, tmp_path / "cut", **given)
        for _ in range(4):
            with pytest.raises(InterruptedTrainingsError):
                netloom.resume_tune(the_folder(tmp_path / "cut"), jobs=1, quiet=True)
    found = netloom.resume_tune(the_folder(tmp_path / "cut"), jobs=1, quiet=True)
    assert table(found.result) == table(tune(photos, tmp_path / "whole", **given).result)


def test_a_second_reason_to_end_does_not_make_a_trial_complete(
    photos: Path, tmp_path: Path, undisturbed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGTERM, while what Ctrl-C has ended is being saved: the trial is not done, and the last reason is told."""
    asked: list[int] = []
    save = trial_task.Checkpointer.save

    def ask() -> None:
        if not asked:
            asked.append(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    def saved(*arguments: Any) -> None:
        save(*arguments)
        if asked == [signal.SIGINT]:
            asked.append(signal.SIGTERM)
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patched:
        in_trial(patched, 1, ask)
        patched.setattr(trial_task.Checkpointer, "save", saved)
        with pytest.raises(InterruptedTrainingsError, match="SIGTERM") as caught:
            tune(photos, tmp_path)
    assert asked == [signal.SIGINT, signal.SIGTERM]
    assert caught.value.exit_code == 143
    found = netloom.resume_tune(the_folder(tmp_path), jobs=1, quiet=True)
    assert table(found.result) == undisturbed


def test_an_interruption_is_heeded_while_a_shared_database_is_away(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {"n_trials": 2, "pruner": "median", "name": "shared"}
    url = sqlite_url(tmp_path / "shared.db")

    def away(*given: Any) -> None:
        signal.raise_signal(signal.SIGINT)
        raise sqlalchemy.exc.OperationalError("SELECT 1", {}, Exception("server closed the connection"))

    with monkeypatch.context() as patched:
        patched.setattr(SearchStudy, "_report", away)
        words = r"Interrupted by the user \(Ctrl-C\) while the study's database was out of reach. Go on with: netloom"
        with pytest.raises(InterruptedTrainingsError, match=words) as told:
            tune(photos, tmp_path / "cut", storage=url, **given)
    assert told.value.exit_code == 130
    resumed = netloom.resume_tune(the_folder(tmp_path / "cut"), jobs=1, quiet=True)
    assert resumed.result["planned"] is None  # other drivers may do trials of their own
    assert table(resumed.result) == table(tune(photos, tmp_path / "whole", **given).result)


def test_a_trial_may_be_begun_three_times_for_each_step_and_fold(tmp_path: Path) -> None:
    def begun(step: int, fold: int = 0, *, counted: bool = True) -> None:
        trial = trial_folder.TrialFolder(tmp_path / "trial-0007", {"dropout": 0.25})
        trial.scores = [{"value": 0.5, "epochs": 2}] * fold
        trial.begin(epoch=step // 10, step=step, counted=counted)

    for step, fold in ((0, 0), (3, 0), (10, 0), (40, 0), (0, 1)):
        for _ in range(3):
            begun(step, fold)
    begun(12, 1)
    begun(0, 1)  # its checkpoint was damaged meanwhile, which is no progress
    begun(0, 1)
    for _ in range(4):  # in workers, of whose deaths the executor keeps count
        begun(12, 1, counted=False)
    with pytest.raises(TrainingError, match=r"died each of the 3 times that it was begun, perhaps"):
        begun(0, 1)
    with pytest.raises(TrainingError, match=r"died each of the 3 times that it was begun after epoch 1, perhaps"):
        begun(12, 1)
    trial_folder.forgive_beginnings(tmp_path / "trial-0007")
    begun(12, 1)
    trial_folder.forgive_beginnings(tmp_path / "there is none")


@pytest.mark.slow
def test_a_driver_of_several_trials_may_die_as_often_as_it_likes(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None of those that ran is known to have ended it."""

    def die(self: Any, proposal: Any) -> None:
        folder = self._folder / trial_folder.trial_name(proposal.number)
        deadline = time.monotonic() + 60
        while not (folder / "trial.json").is_file() or (folder / "trial.json").stat().st_mtime_ns < driver_began:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        raise DeathError

    given: dict[str, Any] = {"n_trials": 2, "jobs": 2}
    with monkeypatch.context() as patched:
        patched.setattr(search_module._TrialFolders, "started", die)
        patched.setattr(search_module._TrialFolders, "forgive", lambda self: None)  # a dead driver cannot
        driver_began = time.time_ns()
        with pytest.raises(DeathError):
            tune(photos, tmp_path / "cut", **given)
        for _ in range(3):
            driver_began = time.time_ns()
            with pytest.raises(DeathError):
                netloom.resume_tune(the_folder(tmp_path / "cut"), jobs=2, quiet=True)
    found = netloom.resume_tune(the_folder(tmp_path / "cut"), jobs=2, quiet=True)
    assert table(found.result) == table(tune(photos, tmp_path / "whole", **given).result)


@LINUX
@pytest.mark.slow
def test_a_search_gets_past_a_trial_that_ends_its_process(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "deadly"
    arguments: dict[str, Any] = options(photos, out, n_trials=3)
    for _ in range(3):
        with search(out, {**arguments, "deadly": 1}) as driver:
            driver.finish(3)
        arguments = {"folder": str(the_folder(out)), "jobs": 1}
    with search(out, {**arguments, "deadly": 1}) as driver:
        driver.finish()
    found = json.loads((the_folder(out) / "tune.json").read_text(encoding="utf-8"))
    assert [trial["state"] for trial in found["trials"]] == ["complete", "failed", "complete"]
    assert "died each of the 3 times" in found["trials"][1]["reason"]


# Trials that fail


@pytest.mark.parametrize(
    ("error", "said"),
    [(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."), "(CUDA out of mem"), (MemoryError(), "")],
    ids=["GPU", "Python"],
)
def test_a_trial_for_which_memory_does_not_suffice_fails_alone(
    photos: Path, tmp_path: Path, undisturbed: Any, monkeypatch: pytest.MonkeyPatch, error: Exception, said: str
) -> None:
    in_trial(monkeypatch, 1, failing(error))
    found = table(tune(photos, tmp_path).result)
    assert [row["state"] for row in found] == ["complete", "failed", "complete", "complete"]
    assert found[1]["reason"].startswith(f"Memory ran out {said}".rstrip())
    assert "smaller batch_size" in found[1]["reason"]
    assert [found[n] for n in (0, 2, 3)] == [undisturbed[n] for n in (0, 2, 3)]


def test_trials_that_fail_are_told_with_their_reasons_and_the_others_go_on(photos: Path, tmp_path: Path) -> None:
    space = {"optimizer": "adam,sgd", "momentum": "0.0,0.9", "learning_rate": "0.01,1e6"}
    found = tune(photos, tmp_path, space=space, sampler="grid", n_trials=8)
    for trial in found.trials:
        values = trial["overrides"]
        if values["optimizer"] == "adam" and values["momentum"] > 0:
            assert trial["state"] == "failed"
            assert "momentum: is for sgd and rmsprop, not for adam" in trial["reason"]
        elif values["optimizer"] == "sgd" and values["learning_rate"] > 1:
            assert trial["state"] == "failed"
            assert "The loss became NaN or infinite" in trial["reason"]
        else:
            assert trial["state"] == "complete"
    assert sum(trial["state"] == "complete" for trial in found.trials) == 4
    assert found.result["best"]["value"] == max(t["value"] for t in found.trials if t["state"] == "complete")


def test_a_search_of_failures_alone_says_why(photos: Path, tmp_path: Path) -> None:
    space = {"learning_rate": "900000,1e6"}
    with pytest.raises(TrainingError, match=r"None of 2 trials was complete. The first reason: .*became NaN") as failed:
        tune(photos, tmp_path, space=space, sampler="grid", n_trials=2, settings={**QUICK, "optimizer": "sgd"})
    folder = the_folder(tmp_path)
    assert str(folder) in str(failed.value)
    with pytest.raises(TrainingError, match="None of 2 trials was complete"):
        netloom.resume_tune(folder, quiet=True)


# A shared database


def test_two_searches_share_a_file_or_say_why_not(photos: Path, tmp_path: Path, undisturbed: Any) -> None:
    storage = f"sqlite:///{(tmp_path / 'shared.db').as_posix()}"
    first = tune(photos, tmp_path / "first", storage=storage, name="shared", n_trials=3)
    second = tune(photos, tmp_path / "second", storage=storage, name="shared", n_trials=1)
    assert table(first.result) == undisturbed[:3]
    assert table(second.result) == undisturbed
    for changes, what in (
        ({"settings": {**QUICK, "epochs": 3}}, "recipe"),
        ({"space": {"dropout": "0.0..0.6"}}, "space"),
        ({"objective": "validation_loss"}, "direction, objective"),
        ({"cv": 2}, "cv"),
    ):
        with pytest.raises(NetloomError, match=f"'shared' exists with another {what}"):
            tune(photos, tmp_path / "third", storage=storage, name="shared", **changes)
        assert not list((tmp_path / "third").iterdir())
    (tmp_path / "shared.db").rename(tmp_path / "moved.db")
    with pytest.raises(RunError, match="holds no study"):
        netloom.resume_tune(first.path, quiet=True)


def test_a_search_that_still_runs_is_not_gone_on_with(photos: Path, tmp_path: Path) -> None:
    folder = tune(photos, tmp_path, n_trials=1).path
    with lock_file(folder / "study.lock", "busy"), pytest.raises(RunError, match="Another process is at work on"):
        netloom.resume_tune(folder, n_trials=2, quiet=True)
    assert len(netloom.resume_tune(folder, n_trials=2, jobs=1, quiet=True).trials) == 2


# Processes that die


@LINUX
def test_a_killed_driver_is_gone_on_with(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "killed"
    with search(out, options(photos, out, n_trials=4, settings={**QUICK, **LONGER})) as killed:
        killed.wait_until_ready()
        killed.wait_for(lambda: list(out.glob("*-study/trials/*-0001/checkpoint*")))
        killed.kill()
    found = netloom.resume_tune(the_folder(out), jobs=1, quiet=True)
    whole = tune(photos, tmp_path / "whole", n_trials=4, settings={**QUICK, **LONGER})
    assert table(found.result) == table(whole.result)


@LINUX
@pytest.mark.slow
@pytest.mark.parametrize(("sampler", "drivers", "workers"), [("random", 4, 10), ("grid", 3, 10), ("qmc", 3, 10)])
def test_random_kills_change_nothing(photos: Path, tmp_path: Path, sampler: str, drivers: int, workers: int) -> None:
    """Ten kills of drivers and thirty of workers, of which two or more work, over three studies."""
    chance = random.Random(sampler)
    out, given = tmp_path / "killed", {"space": GRID if sampler == "grid" else SPACE, "sampler": sampler}
    given = {**given, "n_trials": N_LONG, "settings": {**QUICK, "epochs": 100}}
    arguments: dict[str, Any] = options(photos, out, **given, jobs=4)
    kills = [0, 0]
    for life in range(drivers + 1):
        with search(out, arguments) as driver:
            driver.wait_until_ready()
            begun = time.time()
            driver.wait_for(lambda: sum(state.stat().st_mtime > begun for state in out.glob(STATES)) >= 2)  # noqa: B023
            share = (workers - kills[1]) // (drivers + 1 - life)
            kills[1] += kill_workers(driver, share, chance)
            if life < drivers:
                time.sleep(chance.uniform(0, 1.5))
                if driver.process.poll() is None:
                    kills[0] += 1
                    driver.kill()
            else:
                driver.finish()
        arguments = {"folder": str(the_folder(out)), "jobs": 4}
    assert kills == [drivers, workers]
    states = [json.loads(state.read_text(encoding="utf-8")) for state in out.glob(STATES)]
    assert sum(state["begun"] > 1 or state["reached"] != [0, 0] for state in states) >= workers // 2  # gone on with
    whole = tune(photos, tmp_path / "whole", **given)
    found = json.loads((the_folder(out) / "tune.json").read_text(encoding="utf-8"))
    assert len(found["trials"]) == N_LONG
    assert table(found) == table(whole.result)


def kill_workers(driver: Search, n: int, chance: random.Random) -> int:
    """Kill so many at random moments, none with a trial whose worker died before; how many it were.

    At least two live when one is killed: its place stays empty for a while, but not all of four do.
    """
    killed = 0
    while killed < n and driver.process.poll() is None:
        time.sleep(chance.uniform(0, 0.5))
        living = driver.workers("netloom.parallel.worker")  # others decode
        if len(living) >= 2:
            seen = len(driver.retried())
            with contextlib.suppress(ProcessLookupError):
                os.kill(chance.choice(living), signal.SIGKILL)
            killed += 1
            deadline = time.monotonic() + 2
            while len(driver.retried()) == seen and time.monotonic() < deadline:
                time.sleep(0.01)
            driver_goes_on = lambda: set(driver.retried()) <= driver.ended()  # noqa: E731
            while driver.process.poll() is None and not driver_goes_on():
                time.sleep(0.02)
    return killed


@LINUX
@pytest.mark.slow
def test_a_trial_whose_worker_dies_twice_fails_alone(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "killed"
    with search(out, options(photos, out, n_trials=3, jobs=2, settings={**QUICK, "epochs": 300})) as driver:
        driver.wait_until_ready()
        driver.wait_for(lambda: len(list(out.glob("*-study/trials/*/checkpoint*"))) == 2)
        for worker in driver.workers():
            os.kill(worker, signal.SIGKILL)
        driver.wait_for(lambda: len(driver.retried()) == 2)
        first = driver.retried()[0]
        driver.wait_for(lambda: driver.workers())
        (worker,) = driver.workers()
        os.kill(worker, signal.SIGKILL)
        driver.wait_for(lambda: driver.ended())
        driver.finish()
    found = json.loads((the_folder(out) / "tune.json").read_text(encoding="utf-8"))
    states = {trial["number"]: trial["state"] for trial in found["trials"]}
    assert states == {number: "failed" if number == first else "complete" for number in range(3)}
    assert "its process was killed (SIGKILL)" in found["trials"][first]["reason"]


@LINUX
@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_search_says_how_to_go_on(
    photos: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    out = tmp_path / "cut"
    settings = [
        part for key, value in {**QUICK, "epochs": 150}.items() for part in ("--set", f"{key}={json.dumps(value)}")
    ]
    space = [part for key, value in SPACE.items() for part in ("--space", f"{key}={value}")]
    plain = ["--sampler", "random", "--pruner", "none", "--trials", "8", "--final-seeds", "0"]
    with search(out, ["tune", str(photos), *space, *plain, "--jobs", "2", "--out", str(out), *settings]) as driver:
        driver.wait_for(lambda: len(driver.ended()) >= 2)
        driver.process.send_signal(number)
        driver.finish(code)
    folder = the_folder(out)
    assert f"netloom tune --resume {folder}" in "".join(line.strip("│ ") for line in driver.lines)
    assert "Traceback" not in "\n".join(driver.lines)
    result = CliRunner().invoke(app, ["tune", "--resume", str(folder), "--jobs", "1", "--json", "--quiet"])
    assert result.exit_code == 0, result.stderr
    plan = ExecutionPlan.from_json(json.loads((folder / "study.json").read_text())["plan"])
    given = options(photos, tmp_path / "whole", n_trials=8, settings={**QUICK, "epochs": 150})
    whole = netloom.tune(**given, plan=plan, quiet=True)
    assert table(json.loads(result.stdout)) == table(whole.result)


@LINUX
@pytest.mark.slow
def test_a_killed_search_on_a_postgresql_server_is_gone_on_with(photos: Path, tmp_path: Path) -> None:
    """And its password is neither shown nor written."""
    out = tmp_path / "killed"
    with postgresql_server() as server:
        url = new_database(server)
        given = options(photos, out, storage=url, name="shared", jobs=2, settings={**QUICK, "epochs": 150})
        with search(out, given) as driver:
            driver.wait_until_ready()
            driver.wait_for(lambda: driver.ended())
            driver.kill()
        folder = the_folder(out)
        with pytest.raises(RunError, match="give its URL with --storage"):
            netloom.resume_tune(folder, quiet=True)
        with search(out, {"folder": str(folder), "storage": url, "jobs": 2}) as driver:
            driver.finish()
        shown = "".join(driver.lines)
        with pytest.raises(NetloomError, match="exists with another recipe"):
            tune(photos, tmp_path / "other", storage=url, name="shared", settings={**QUICK, "epochs": 3})
        assert not list((tmp_path / "other").iterdir())
    whole = tune(photos, tmp_path / "whole", settings={**QUICK, "epochs": 150})
    assert table(json.loads((folder / "tune.json").read_text(encoding="utf-8"))) == table(whole.result)
    secrets = [PASSWORD, url.partition("netloom:")[2].partition("@")[0]]
    for secret in secrets:
        assert secret not in shown
        assert not [file for file in folder.rglob("*") if file.is_file() and secret.encode() in file.read_bytes()]
