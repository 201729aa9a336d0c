from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from netloom.data.imageset import ImageSet
from netloom.errors import NetloomError
from netloom.parallel.local import LocalExecutor
from netloom.parallel.pictures import map_pictures, sharing
from netloom.parallel.ray_cluster import RayExecutor
from netloom.parallel.serial import SerialExecutor
from netloom.parallel.tasks import (
    Event,
    Executor,
    Failed,
    Finished,
    Reported,
    Retried,
    Started,
    Task,
)
from parallel import work

POSIX = pytest.mark.skipif(os.name == "nt", reason="signals are POSIX")
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc or binds to CPUs")


def make_serial(value: Any = None) -> Executor:
    return SerialExecutor(shared=work.make_shared(value=value))


def make_local(value: Any = None) -> Executor:
    return LocalExecutor(2, setup=work.make_shared, arguments={"value": value})


@pytest.fixture(params=["serial", "local", "ray"])
def make(request: pytest.FixtureRequest) -> Callable[..., Executor]:
    """Every executor keeps the same promises."""
    if request.param == "ray":
        address = request.getfixturevalue("two_machines").address
        return lambda value=None: RayExecutor(address, 2, setup=work.make_shared, arguments={"value": value})
    return {"serial": make_serial, "local": make_local}[request.param]


def run(executor: Executor, tasks: Any, **options: Any) -> list[Event]:
    events: list[Event] = []
    with executor:
        executor.run(tasks, events.append, **options)
    return events


def values(events: list[Event]) -> dict[str, Any]:
    return {event.task.name: event.value for event in events if isinstance(event, Finished)}


def alive(process: int) -> bool:
    with contextlib.suppress(FileNotFoundError):  # a zombie is dead, whoever has not waited for it
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def wait_until(condition: Callable[[], bool], seconds: float = 30) -> float:
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < seconds
        time.sleep(0.01)
    return time.monotonic() - started


def test_every_task_starts_reports_and_finishes_in_this_order(make: Callable[..., Executor]) -> None:
    tasks = [Task(str(i), work.square, {"number": i / 7}) for i in range(6)]
    events = run(make(), tasks)
    assert values(events) == {str(i): (i / 7) ** 2 for i in range(6)}
    for task in tasks:
        own = [event for event in events if event.task == task]
        assert [type(event) for event in own] == [Started, Reported, Finished]
        assert own[1].values == {"number": task.arguments["number"]}  # type: ignore[attr-defined]


def test_the_set_up_is_shared_by_the_tasks_of_a_process(make: Callable[..., Executor]) -> None:
    found = values(run(make({"a": [1.5, None]}), [Task(str(i), work.shared_value) for i in range(5)]))
    assert all(shared["value"] == {"a": [1.5, None]} for shared in found.values())
    assert len({shared["process"] for shared in found.values()}) <= 2


def test_a_failing_task_does_not_stop_the_others(make: Callable[..., Executor]) -> None:
    tasks = [
        Task("kind", work.fail, {"kindly": True}),
        Task("unkind", work.fail, {"kindly": False}),
        Task("good", work.square, {"number": 3.0}),
    ]
    events = run(make(), tasks)
    failed = {event.task.name: event for event in events if isinstance(event, Failed)}
    assert failed["kind"].reason == "the loss is no number\nin epoch 3"
    assert failed["kind"].details == ""
    assert failed["unkind"].reason == "ZeroDivisionError: by zero"
    assert "in fail" in failed["unkind"].details
    assert values(events) == {"good": 9.0}


def test_one_task_is_stopped_and_the_next_goes_on(make: Callable[..., Executor]) -> None:
    executor, events = make(), []

    def stop(event: Event) -> None:
        events.append(event)
        if isinstance(event, Reported) and event.task.name == "pruned":
            executor.stop("pruned", "not promising")

    with executor:
        executor.run([Task("pruned", work.until_stopped), Task("other", work.square, {"number": 2.0})], stop)
    assert values(events) == {"pruned": "not promising", "other": 4.0}


def test_an_interruption_ends_what_runs_and_starts_nothing_more(make: Callable[..., Executor]) -> None:
    asked: list[str] = []
    events: list[Event] = []

    def note(event: Event) -> None:
        events.append(event)
        if isinstance(event, Reported):
            asked.append("Ctrl-C")

    with make() as executor:
        tasks = [Task(str(i), work.until_stopped) for i in range(4)]
        executor.run(tasks, note, interruption=lambda: asked[0] if asked else None)
    started = {event.task.name for event in events if isinstance(event, Started)}
    assert set(values(events)) <= started < {"0", "1", "2", "3"}
    assert set(values(events).values()) <= {"Ctrl-C"}


def test_tasks_are_taken_when_a_worker_is_idle(make: Callable[..., Executor]) -> None:
    """A search decides on the next trial by what the earlier ones gave."""
    finished: list[float] = []
    known_when_taken: list[int] = []

    def tasks() -> Iterator[Task]:
        for i in range(8):
            known_when_taken.append(len(finished))
            yield Task(str(i), work.square, {"number": float(i)})

    with make() as executor:
        executor.run(tasks(), lambda event: finished.append(1.0) if isinstance(event, Finished) else None)
    assert known_when_taken[-1] >= 6


def test_what_runs_is_heard_while_the_next_task_is_not_decided(make: Callable[..., Executor]) -> None:
    """None stands for such a task; here the end of the first decides on the second."""
    finished: list[str] = []

    def tasks() -> Iterator[Task | None]:
        yield None
        yield Task("first", work.square, {"number": 2.0})
        while not finished:
            yield None
        yield Task("second", work.square, {"number": 3.0})

    with make() as executor:
        executor.run(tasks(), lambda event: finished.append(event.task.name) if isinstance(event, Finished) else None)
    assert finished == ["first", "second"]


@pytest.mark.parametrize(
    ("kind", "said"),
    [("python", ""), ("torch", " (DefaultCPUAllocator: can't allocate memory")],
    ids=["python", "torch"],
)
def test_a_task_that_runs_out_of_memory_says_what_to_do(make: Callable[..., Executor], kind: str, said: str) -> None:
    tasks = [Task("large", work.run_out_of_memory, {"kind": kind}), Task("good", work.square, {"number": 2.0})]
    events = run(make(), tasks)
    (failed,) = (event for event in events if isinstance(event, Failed))
    assert failed.reason.startswith(f"Memory ran out{said}")
    assert failed.reason.endswith(". A smaller batch_size, image_size or network needs less, as do fewer --jobs.")
    assert not failed.died
    assert not failed.details
    assert values(events) == {"good": 4.0}


def test_workers_are_reused() -> None:
    found = values(run(make_local(), [Task(str(i), work.process) for i in range(8)]))
    assert len(set(found.values())) == 2
    assert os.getpid() not in found.values()


@POSIX
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM] if os.name == "posix" else [])
def test_the_task_of_a_killed_worker_is_started_once_more(tmp_path: Path, number: int) -> None:
    killed = Task("killed", work.kill_first, {"marker": str(tmp_path / "marker"), "number": int(number)})
    events = run(make_local(), [killed, *(Task(str(i), work.process) for i in range(6))])
    (retried,) = (event for event in events if isinstance(event, Retried))
    assert signal.Signals(number).name in retried.reason
    assert [event.attempt for event in events if isinstance(event, Started) and event.task == killed] == [1, 2]
    assert values(events)["killed"] == "second time"
    assert len(values(events)) == 7


@LINUX
def test_the_place_of_a_killed_worker_is_taken_again_when_some_tasks_have_returned(tmp_path: Path) -> None:
    """With its CPU; after another death soon after that, when twice as many have."""
    available = sorted(os.sched_getaffinity(0))
    cpus = [[available[0]], [available[-1]]]
    said: list[str] = []
    at_once: list[tuple[int, int]] = []
    executor = LocalExecutor(2, cpus=cpus, say=said.append)

    def tasks() -> Iterator[Task]:
        for n in (1, 2):
            yield Task(f"killed {n}", work.kill_first, {"marker": str(tmp_path / f"{n}"), "number": signal.SIGKILL})
            for i in range(40):
                yield Task(f"{n} {i}", work.process)
                if len(said) == 2 * n:
                    break
        for i in range(4):
            yield Task(f"CPU {i}", work.affinity)

    def note(event: Event) -> None:
        if isinstance(event, Finished):
            at_once.append((len(said), len(executor.workers)))
        events.append(event)

    events: list[Event] = []
    with executor:
        executor.run(tasks(), note)
    assert said == [
        "1 at once for now instead of 2; one more again when 3 have ended well",
        "2 at once again",
        "1 at once for now instead of 2; one more again when 6 have ended well",
        "2 at once again",
    ]
    assert {n for words, n in at_once if words in (1, 3)} == {1}
    assert at_once[-1] == (4, 2)
    found = values(events)
    assert found["killed 1"] == found["killed 2"] == "second time"
    assert sorted({tuple(cpus) for name, cpus in found.items() if name.startswith("CPU")}) == sorted(
        {(available[0],), (available[-1],)}
    )


@pytest.mark.parametrize("what", ["process", "thread"])
def test_places_that_the_system_has_no_room_for_stay_empty_until_it_has(
    what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes may be there at first, whose four threads count like processes in some systems; later all may."""
    said: list[str] = []
    begun: list[Any] = []
    if what == "process":
        owner, name, allowed, error = subprocess, "Popen", 2, OSError(errno.EAGAIN, "Resource temporarily unavailable")
    else:  # the third process is there, and one of its threads
        owner, name, allowed, error = threading.Thread, "start", 5, RuntimeError("can't start new thread")
    original: Any = getattr(owner, name)

    def start(*args: Any, **options: Any) -> Any:
        if len(begun) >= allowed and len(said) < 3:
            raise error
        begun.append(args)
        return original(*args, **options)

    def tasks() -> Iterator[Task]:
        for i in range(60):
            yield Task(str(i), work.process)
            if len(said) == 4 and len(executor.workers) == 4:
                return

    monkeypatch.setattr(owner, name, start)
    executor = LocalExecutor(4, say=said.append)
    events: list[Event] = []
    with executor:
        executor.run(tasks(), events.append)
        n_processes = len(executor.workers)
    assert str(error) in said[0]
    assert "--jobs" in said[0]
    assert said[1:] == [
        "2 at once for now instead of 4; one more again when 3 have ended well",
        "3 at once again",
        "4 at once again",
    ]
    assert n_processes == 4
    started = [event.task.name for event in events if isinstance(event, Started)]
    assert sorted(started, key=int) == sorted(values(events), key=int) == [str(i) for i in range(len(started))]


@pytest.mark.parametrize("jobs", [1, 3])
def test_a_system_that_starts_no_process_is_one_error(jobs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def start(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr(subprocess, "Popen", start)
    with pytest.raises(NetloomError, match=r"starts no other process \(.*Cannot allocate memory\).*fewer --jobs"):
        run(LocalExecutor(jobs), [Task("a", work.process)])


@POSIX
def test_a_task_that_always_crashes_is_given_up() -> None:
    events = run(make_local(), [Task("crash", work.kill_always), Task("good", work.square, {"number": 2.0})])
    (failed,) = (event for event in events if isinstance(event, Failed))
    assert failed.task.name == "crash"
    assert "SIGSEGV" in failed.reason
    assert values(events) == {"good": 4.0}


@LINUX
@pytest.mark.parametrize("task", ["until_stopped", "deaf"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_killed_driver_leaves_no_worker_and_no_folder(task: str, number: int) -> None:
    command = [sys.executable, str(Path(work.__file__).with_name("driver.py")), task]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as driver:
        assert driver.stdout is not None
        folder = Path(driver.stdout.readline().strip())
        workers = [int(driver.stdout.readline()) for _ in range(2)]
        assert all(map(alive, workers))
        driver.send_signal(number)
        driver.wait(timeout=10)
        assert wait_until(lambda: not any(map(alive, workers))) < 10
    if number != signal.SIGINT:  # a driver that is not killed removes what is its own
        wait_until(lambda: not folder.exists(), 10)


@LINUX
def test_a_deaf_task_is_killed_soon_after_an_interruption() -> None:
    asked: list[float] = []
    executor = make_local()
    with executor:
        tasks = [Task(str(i), work.deaf) for i in range(2)]
        executor.run(tasks, lambda _: asked.append(time.monotonic()), interruption=lambda: "now" if asked else None)
        assert time.monotonic() - asked[0] < 6
        assert executor.workers == []  # type: ignore[attr-defined]


def test_a_set_up_that_fails_is_one_error() -> None:
    with pytest.raises(NetloomError, match="the pictures are gone"):
        run(LocalExecutor(2, setup=work.refuse_setup), [Task("a", work.process)])


@POSIX
def test_a_worker_killed_while_it_starts_is_replaced(tmp_path: Path) -> None:
    executor = LocalExecutor(1, setup=work.killed_setup, arguments={"marker": str(tmp_path / "marker")})
    events = run(executor, [Task("a", work.square, {"number": 3.0})])
    assert [type(event) for event in events] == [Started, Retried, Started, Reported, Finished]


@POSIX
def test_a_replacement_that_cannot_be_set_up_costs_its_task_only(tmp_path: Path) -> None:
    executor = LocalExecutor(1, setup=work.setup_once, arguments={"marker": str(tmp_path / "marker")})
    tasks = [Task("good", work.square, {"number": 3.0}), Task("crash", work.kill_always), Task("last", work.process)]
    events = run(executor, tasks)
    assert values(events) == {"good": 9.0}
    failed = {event.task.name: event.reason for event in events if isinstance(event, Failed)}
    assert failed.keys() == {"crash", "last"}
    assert all("the pictures are gone" in reason for reason in failed.values())


def test_a_function_that_other_processes_cannot_import_is_refused() -> None:
    def inside(context: Any) -> None: ...

    with pytest.raises(NetloomError, match=r"inside.*cannot be imported"):
        run(LocalExecutor(1), [Task("a", inside)])


@LINUX
def test_workers_stay_on_their_cpus() -> None:
    available = sorted(os.sched_getaffinity(0))
    cpus = [[available[0]], [available[-1]]]
    found = values(run(LocalExecutor(2, cpus=cpus), [Task(str(i), work.affinity) for i in range(2)]))
    assert sorted(found.values()) == sorted(cpus)


@LINUX
@pytest.mark.parametrize("from_file", [True, False])
def test_pictures_are_not_copied(tmp_path: Path, from_file: bool) -> None:
    """20 MB read by two processes: neither holds them for itself."""
    pixels = np.random.default_rng(0).integers(0, 256, (500, 100, 134, 3), dtype=np.uint8)
    pictures = ImageSet.from_arrays(pixels, np.arange(500) % 3, weights=np.linspace(0, 1, 500))
    pictures = replace(
        pictures,
        groups=tuple(f"{i % 9}" for i in range(500)),
        content_hashes=tuple(f"{i % 400:064x}" for i in range(500)),
    )
    np.save(tmp_path / "pixels.npy", pixels)
    with sharing(pictures, tmp_path / "pixels.npy" if from_file else None) as shared:
        tasks = [Task(str(i), work.own_megabytes, {"shared": shared.to_json()}) for i in range(2)]
        found = values(run(LocalExecutor(2), tasks))
        mapped = map_pictures(**shared.to_json())
        for name in ("images", "targets", "weights"):
            assert (getattr(mapped, name) == getattr(pictures, name)).all()
        for name in ("ids", "class_names", "groups", "content_hashes"):
            assert getattr(mapped, name) == getattr(pictures, name)
    for figures in found.values():
        assert figures["sum"] == int(pixels.sum(dtype=np.int64))
        assert figures["grown"] < 0.3 * figures["all"]
    assert not Path(shared.folder).exists()
    assert (tmp_path / "pixels.npy").exists()
