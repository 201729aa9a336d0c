"""Several drivers of one study in one database: SQLite's, or a PostgreSQL server's."""

from __future__ import annotations

import contextlib
import json
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy

from netloom.errors import NetloomError
from netloom.parallel.serial import SerialExecutor
from netloom.parallel.tasks import Task, TaskContext
from netloom.tuning import patience, shared
from netloom.tuning.driver import Driver
from netloom.tuning.patience import Patience, StorageLostError
from netloom.tuning.samplers import create_pruner, create_sampler
from netloom.tuning.storage import in_memory, open_storage, sqlite_url, without_password
from netloom.tuning.study import Proposal, SearchStudy
from postgresql_server import new_database, postgresql_server
from tuning.shared_driver import SPACE, open_study

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="kills processes as Linux does")
SCRIPT = Path(__file__).with_name("shared_driver.py")


class DriverProcess:
    """A driver, or several that begin at the same moment, waiting for `go`."""

    def __init__(self, url: str, *drivers: str, **options: Any) -> None:
        given = {"url": url, "name": "shared", "drivers": drivers, "n_trials": 5, "seconds": 0.03, **options}
        command = [sys.executable, "-W", "error", str(SCRIPT), json.dumps(given)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def wait_until(self, words: str) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith(words):
                return
        raise AssertionError(f"no {words!r}; {self.process.communicate()}")

    def go(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()

    def finish(self, seconds: float = 600) -> tuple[str, str]:
        output, errors = self.process.communicate(timeout=seconds)
        assert self.process.returncode == 0, errors
        return output, errors


@contextlib.contextmanager
def drivers(*names: str, url: str, **options: Any) -> Iterator[list[DriverProcess]]:
    """Each has imported all and waits."""
    with contextlib.ExitStack() as stack:
        made = [DriverProcess(url, name, **options) for name in names]
        for driver in made:
            stack.enter_context(driver.process)
            stack.callback(driver.process.kill)
        for driver in made:
            driver.wait_until("ready")
        yield made


def records_of(url: str) -> list[Any]:
    with contextlib.closing(open_study(url, "shared", "reader")) as study:
        return study.records()


def assert_all_ran_once(url: str, n_drivers: int, n_trials: int) -> float:
    """So many drivers begin at the same moment; every trial has one number and one end. The wall time in seconds."""
    crowd = DriverProcess(url, *(f"driver-{i}" for i in range(n_drivers)), n_trials=n_trials)
    with crowd.process:
        crowd.wait_until("ready")
        wall = time.perf_counter()
        crowd.go()
        output, errors = crowd.finish()
        wall = time.perf_counter() - wall
    assert errors == ""
    ended = Counter(int(line.split()[1]) for line in output.splitlines() if line.startswith("ended"))
    assert ended == Counter(range(n_drivers * n_trials))
    records = records_of(url)
    assert [record.number for record in records] == list(range(n_drivers * n_trials))
    states = Counter(record.state for record in records)
    assert set(states) <= {"complete", "pruned"}
    assert states["complete"] > 0
    for record in records:
        assert record.value == record.overrides["dropout"] + record.overrides["batch_size"] / 1000
    return wall


@LINUX
def test_drivers_that_begin_at_once_share_a_new_file(tmp_path: Path) -> None:
    assert_all_ran_once(sqlite_url(tmp_path / "study.db"), 6, 5)


@LINUX
@pytest.mark.slow
def test_32_drivers_share_a_new_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wall = assert_all_ran_once(sqlite_url(tmp_path / "study.db"), 32, 20)
    with capsys.disabled():
        sys.stdout.write(f" {wall:.1f} s for 640 trials of 32 drivers ")


def assert_dead_drivers_trials_are_given_up(url: str) -> None:
    with drivers("dead", "other", url=url, n_trials=3, seconds=60, grace=3) as (dead, other):
        dead.go()
        dead.wait_until("begun 0")
        dead.process.send_signal(signal.SIGKILL)
        dead.process.wait()
        assert [record.state for record in records_of(url)] == ["running"]
        other.go()
        other.wait_until("begun 1")
        deadline = time.monotonic() + 60
        while (first := records_of(url)[0]).state == "running":
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert first.state == "failed"
        assert first.outcome["reason"].startswith("Its driver fell silent")
        time.sleep(4)
        assert records_of(url)[1].state == "running"  # of the living one, for longer than the grace period by now
    with drivers("dead", url=url, n_trials=3) as (resumed,):
        resumed.go()
        output, _ = resumed.finish()
    begun = [line for line in output.splitlines() if line.startswith("begun")]
    assert begun == ["begun 2 anew", "begun 3 anew"]  # 3 in all, one of them lost


@LINUX
@pytest.mark.slow
def test_the_trials_of_a_dead_driver_are_given_up_once(tmp_path: Path) -> None:
    assert_dead_drivers_trials_are_given_up(sqlite_url(tmp_path / "study.db"))


@LINUX
@pytest.mark.slow
def test_a_dead_driver_that_comes_back_in_time_goes_on_with_its_trials(tmp_path: Path) -> None:
    url = sqlite_url(tmp_path / "study.db")
    with drivers("dead", url=url, seconds=60) as (dead,):
        dead.go()
        dead.wait_until("begun 0")
        dead.process.kill()
        dead.process.wait()
    with drivers("dead", "other", url=url, n_trials=2) as (back, other):
        back.go()
        output, errors = back.finish()
        other.go()
        others, _ = other.finish()
    assert errors == ""  # values that were reported before are not warned about
    assert [line for line in output.splitlines() if "begun" in line] == ["begun 0 again", "begun 1 anew"]
    assert [line for line in others.splitlines() if "begun" in line] == ["begun 2 anew", "begun 3 anew"]
    assert all(record.state in ("complete", "pruned") for record in records_of(url))


@pytest.fixture
def opened() -> Iterator[Any]:
    """`open_study`, closed in the end."""
    with contextlib.ExitStack() as stack:
        yield lambda *given, **options: stack.enter_context(contextlib.closing(open_study(*given, **options)))


def test_a_trial_that_was_given_up_meanwhile_stays_so(tmp_path: Path, opened: Any) -> None:
    """The driver's machine slept for longer than the grace period, and then goes on with its trial."""
    url = sqlite_url(tmp_path / "study.db")
    asleep, other = opened(url, "shared", "asleep", grace=1), opened(url, "shared", "other", grace=1)
    late, last = asleep.ask(), asleep.ask()
    time.sleep(2.5)
    other.heartbeat()
    assert [record.state for record in other.records()] == ["failed", "failed"]
    assert asleep.report(late.number, 1, 0.5)  # had better end
    asleep.complete(late.number, 0.5, {"seconds": 1})
    asleep.prune(last.number, {})
    assert [record.state for record in asleep.records()] == ["failed", "failed"]
    assert asleep.n_asked() == 2


def test_a_driver_that_dies_before_it_gives_its_name_leaves_nothing_running(tmp_path: Path, opened: Any) -> None:
    url = sqlite_url(tmp_path / "study.db")
    dead, other = opened(url, "shared", "dead"), opened(url, "shared", "other", grace=1)
    dead._study.ask()  # what `ask` does first
    other.heartbeat()
    assert [record.state for record in other.records()] == ["running"]
    time.sleep(1.2)
    other.heartbeat()
    assert [record.state for record in other.records()] == ["failed"]
    assert dead.n_asked() == 0


def test_a_driver_is_alive_while_its_training_looks_up_from_nothing(tmp_path: Path, opened: Any) -> None:
    """One job: the training has the only thread that the driver would tell of itself from."""
    study = opened(sqlite_url(tmp_path / "study.db"), "shared", "one")
    sent: list[float] = []
    study._heartbeats._storage.record_heartbeat = lambda trial: sent.append(time.monotonic())
    started = time.monotonic()

    def busy(context: TaskContext) -> dict[str, Any]:
        time.sleep(1.6)
        return {"state": "complete", "value": 0.5}

    Driver(study, SerialExecutor(), lambda proposal: Task("busy", busy), 1, None, False, False).run()
    assert [at - started > 0.8 for at in sent].count(True) >= 1
    assert [record.state for record in study.records()] == ["complete"]
    n, _ = len(sent), time.sleep(1.2)
    assert len(sent) == n  # the thread has ended


def make_silent(file: Path) -> None:
    """All signs of life in a database were given long ago."""
    with contextlib.closing(sqlite3.connect(file)) as connection, connection:
        connection.execute("UPDATE trial_heartbeats SET heartbeat = datetime('now', '-1 day')")


def test_the_only_driver_goes_on_with_its_trials_however_late_it_comes_back(tmp_path: Path, opened: Any) -> None:
    """Its own silence is no reason to give them up, where no other driver has."""
    url = sqlite_url(tmp_path / "study.db")
    dead = opened(url, "shared", "one")
    begun = [dead.ask(), dead.ask()]
    make_silent(tmp_path / "study.db")
    study = opened(url, "shared", "one")

    @contextlib.contextmanager
    def alive() -> Iterator[None]:
        study.heartbeat()  # the other thread may be that fast
        yield

    study.alive = alive

    def task_for(proposal: Proposal) -> Task:
        assert proposal.again
        return Task(str(proposal.number), lambda context: {"state": "complete", "value": 0.5})

    Driver(study, SerialExecutor(), task_for, 2, None, False, False).run()
    assert [(r.number, r.state, dict(r.outcome)) for r in study.records()] == [
        (proposal.number, "complete", {}) for proposal in begun
    ]


def test_a_trial_whose_end_cannot_be_told_for_a_while_is_not_given_up(tmp_path: Path, opened: Any) -> None:
    """The database is away for as long as a driver may be silent; once it is back, either thread is the first."""
    study = opened(sqlite_url(tmp_path / "study.db"), "shared", "one")
    trial = study.ask()
    storage = study._study._storage
    original, failures = storage.set_trial_user_attr, [away()]

    def away_for_long(*given: Any) -> None:
        if failures:
            make_silent(tmp_path / "study.db")
            study.heartbeat()
            raise failures.pop()
        original(*given)

    storage.set_trial_user_attr = away_for_long
    study.complete(trial.number, 0.5, {"seconds": 1})
    assert [(r.state, r.value) for r in study.records()] == [("complete", 0.5)]


def away() -> optuna.exceptions.StorageInternalError:
    """What Optuna raises while a server starts anew."""
    error = optuna.exceptions.StorageInternalError("during the commit")
    error.__cause__ = sqlalchemy.exc.OperationalError("SELECT 1", {}, Exception("server closed the connection"))
    return error


def test_a_database_that_is_away_for_a_moment_is_waited_for(tmp_path: Path, opened: Any) -> None:
    study = opened(sqlite_url(tmp_path / "study.db"), "shared", "one")
    storage = study._study._storage
    for name, use in (
        ("create_new_trial", study.ask),
        ("get_all_trials", study.n_asked),
        ("set_trial_intermediate_value", lambda: study.report(0, 1, 0.5)),
        ("set_trial_state_values", lambda: study.complete(0, 0.5, {})),
        ("get_all_trials", study.records),
        ("set_study_user_attr", lambda: study.note_tested("trial 0")),
    ):
        original, failures = getattr(storage, name), [away()]

        def once(*given: Any, original: Any = original, failures: list[Exception] = failures, **options: Any) -> Any:
            if failures:
                raise failures.pop()
            return original(*given, **options)

        setattr(storage, name, once)
        use()
        setattr(storage, name, original)
        assert not failures
    assert [(r.state, r.value) for r in study.records()] == [("complete", 0.5)]
    assert study.tested() == {"trial 0"}


def test_a_database_that_stays_away_is_told_and_other_errors_at_once() -> None:
    calls: list[int] = []

    def never() -> None:
        calls.append(1)
        raise away()

    with pytest.raises(StorageLostError, match="out of reach for 0 s: server closed the connection"):
        Patience(seconds=0.2, first_pause=0.02, longest_pause=0.05).call(never)
    assert 4 <= len(calls) <= 8

    def refused() -> None:
        calls.clear()
        raise sqlalchemy.exc.IntegrityError("INSERT", {}, Exception("unique"))

    with pytest.raises(sqlalchemy.exc.IntegrityError):
        Patience(seconds=60).call(refused)


def test_a_wait_that_lasts_is_told_once_and_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "SECONDS_UNTIL_TOLD", 0.3)
    said: list[str] = []
    waiting = Patience(seconds=60, say=said.append, first_pause=0.15)

    def back_after(failures: int) -> Callable[[], str]:
        left = [away() for _ in range(failures)]

        def call() -> str:
            if left:
                raise left.pop()
            return "back"

        return call

    assert waiting.call(back_after(1)) == "back"
    assert said == []
    assert waiting.call(back_after(3)) == "back"
    assert said == [
        "The study's database does not answer: server closed the connection. It is waited for, 60 s at most",
        "The study's database answers again",
    ]


def test_a_wait_ends_when_somebody_asks_for_an_end_and_no_trial_fails_by_that(tmp_path: Path, opened: Any) -> None:
    """Here the driver's only thread is the trial's, too, whose report waits: its failure would be the trial's."""
    url = sqlite_url(tmp_path / "study.db")
    study = opened(url, "shared", "one")
    reasons: list[str] = []

    def report(*given: Any) -> None:
        raise away()

    def reporting(context: TaskContext) -> dict[str, Any]:
        study._study._storage.set_trial_intermediate_value = report  # nothing else is away, so a failure could be told
        threading.Timer(0.3, reasons.append, ["Ctrl-C"]).start()
        context.report({"step": 1, "value": 0.5})
        raise AssertionError("reported")

    def interruption() -> str | None:
        return reasons[0] if reasons else None

    driver = Driver(study, SerialExecutor(), lambda proposal: Task("one", reporting), 1, None, True, False)
    started = time.monotonic()
    with pytest.raises(StorageLostError, match="server closed the connection"), study.heeding(interruption):
        driver.run(interruption=interruption)
    assert time.monotonic() - started < 10  # of the 60 that it would be waited for
    assert [record.state for record in opened(url, "shared", "one").records()] == ["running"]


def test_a_study_whose_maker_says_nothing_is_waited_for_and_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "SECONDS_UNTIL_TOLD", 0.1)
    monkeypatch.setattr(shared, "_SECONDS_FOR_FACTS", 0.4)
    storage = in_memory()
    optuna.create_study(storage=storage, study_name="of another program", direction="maximize")
    said: list[str] = []
    with pytest.raises(NetloomError, match="was not made by netloom"):
        SearchStudy.create(
            storage,
            "of another program",
            (),
            direction="maximize",
            sampler=create_sampler("random", (), seed=0, init_points=1, n_trials=None),
            pruner=create_pruner("none", epochs=1),
            driver="one",
            say=said.append,
        )
    assert said == [
        "The study 'of another program' does not say yet what it searches. Its maker is waited for, 0.4 s at most"
    ]


def test_drivers_of_different_searches_do_not_share(tmp_path: Path, opened: Any) -> None:
    url = sqlite_url(tmp_path / "study.db")
    opened(url, "shared", "one")
    with pytest.raises(NetloomError, match="'shared' exists with another space"):
        opened(url, "shared", "two", space={**SPACE, "epochs": "2..5"})
    with pytest.raises(NetloomError, match="exists with another recipe"):
        opened(url, "shared", "two", facts={"recipe": "two"})
    opened(url, "another", "two", facts={"recipe": "two"})


def test_passwords_are_taken_out_of_urls() -> None:
    for url, shown in (
        ("postgresql://ann:secret@db:5433/x", "postgresql://ann@db:5433/x"),
        ("postgresql+psycopg://ann:se/cr:et@db/x?sslmode=require", "postgresql+psycopg://ann@db/x?sslmode=require"),
        ("postgresql://ann@db/x?password=secret&sslpassword=secret", "postgresql://ann@db/x"),
        ("postgresql://ann:s%40cret@db/x", "postgresql://ann@db/x"),
        ("sqlite:////data/a b.db", "sqlite:////data/a b.db"),
        ("postgresql//ann:secret@db/x", "postgresql//ann@db/x"),
        ("postgresql://ann:secret@db:port/x?password=secret", "postgresql://ann@db:port/x"),
    ):
        assert without_password(url) == shown


def test_what_is_no_database_is_told_without_its_password(tmp_path: Path) -> None:
    for url in (
        "postgresql//ann:secret@db/x",
        "nothing://ann:secret@db/x",
        f"sqlite:///{tmp_path}/missing/study.db?password=secret",
    ):
        with pytest.raises(NetloomError) as refused:
            open_storage(url, shared=True)
        assert "secret" not in str(refused.value)
    (tmp_path / "text.db").write_text("this is no database, and long enough to be read as one" * 100)
    with pytest.raises(NetloomError, match=r"text\.db cannot be used: file is not a database"):
        open_storage(sqlite_url(tmp_path / "text.db"), shared=True)


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with postgresql_server() as url:
        yield url


@pytest.fixture
def database(server: str) -> str:
    """URL of a database of the test's own."""
    return new_database(server)


@LINUX
@pytest.mark.slow
def test_drivers_share_a_postgresql_database(database: str) -> None:
    assert_all_ran_once(database, 8, 10)


@LINUX
@pytest.mark.slow
def test_the_trials_of_a_dead_driver_are_given_up_in_postgresql(database: str) -> None:
    assert_dead_drivers_trials_are_given_up(database)


@LINUX
@pytest.mark.slow
def test_postgresql_refuses_without_telling_the_password(database: str) -> None:
    wrong = database.replace("netloom:", "netloom:wrong")
    with pytest.raises(NetloomError, match="password authentication failed") as refused:
        open_storage(wrong, shared=True)
    assert "wrong" not in str(refused.value)
