"""What is particular to Ray; what all executors have in common is in test_executors.py."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from netloom.data.imageset import ImageSet
from netloom.errors import NetloomError
from netloom.parallel import ray_cluster
from netloom.parallel.pictures import labels_of, pixels_of
from netloom.parallel.ray_cluster import RayExecutor
from netloom.parallel.tasks import Event, Failed, Finished, Reported, Retried, Started, Task
from parallel import work

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@pytest.fixture
def ray_folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where Ray puts its folders; a short name, and no cluster is known there."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with tempfile.TemporaryDirectory(prefix="nl-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        monkeypatch.setenv("RAY_TMPDIR", folder)
        yield Path(folder)


def run(executor: RayExecutor, tasks: Any, on_event: Callable[[Event], None] = lambda _: None) -> list[Event]:
    events: list[Event] = []

    def note(event: Event) -> None:
        events.append(event)
        on_event(event)

    with executor:
        executor.run(tasks, note)
    return events


def run_at_once(executor: RayExecutor, tasks: list[Task]) -> list[Event]:
    """Have tasks done that stay until each of them has a worker."""
    there: set[str] = set()

    def note(event: Event) -> None:
        if isinstance(event, Reported):
            there.add(event.task.name)
            if len(there) == len(tasks):
                for task in tasks:
                    executor.stop(task.name, "all are there")

    return run(executor, tasks, note)


def values(events: list[Event]) -> dict[str, Any]:
    return {event.task.name: event.value for event in events if isinstance(event, Finished)}


def alive(process: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def wait_until(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def listening_addresses() -> set[str]:
    """Local addresses on which something of this machine listens, as /proc writes them."""
    rows = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]]
    return {row[1] for row in rows if row[3] == "0A"}


def test_all_machines_work(two_machines: Any) -> None:
    events = run_at_once(RayExecutor(two_machines.address, None), [Task(str(i), work.machine) for i in range(2)])
    assert len(set(values(events).values())) == 2


def test_a_task_whose_process_died_is_started_once_more(
    two_machines: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    killed = Task("killed", work.kill_first, {"marker": str(tmp_path / "marker"), "number": int(signal.SIGKILL)})
    others = [Task("crash", work.kill_always), Task("left", work.out_of_process), Task("good", work.process)]
    events = run(RayExecutor(two_machines.address, 2), [killed, *others])
    retried = {event.task.name: event.reason for event in events if isinstance(event, Retried)}
    assert retried.keys() == {"killed", "crash", "left"}
    assert all("crashed or was killed" in reason or "gone" in reason for reason in retried.values())
    assert [event.attempt for event in events if isinstance(event, Started) and event.task == killed] == [1, 2]
    assert values(events).keys() == {"killed", "good"}
    assert values(events)["killed"] == "second time"
    assert {event.task.name for event in events if isinstance(event, Failed)} == {"crash", "left"}
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("graceful", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_the_task_of_a_lost_machine_is_started_on_another(two_machines: Any, graceful: bool) -> None:
    third = two_machines.add_node(num_cpus=1)
    started: set[str] = set()
    retried: list[Retried] = []

    def note(event: Event) -> None:
        if isinstance(event, Retried):
            retried.append(event)
        if isinstance(event, Reported):
            started.add(event.task.name)
            if len(started) == 3 and third in two_machines.worker_nodes:
                two_machines.remove_node(third, allow_graceful=graceful)
            if retried:
                executor.stop(event.task.name, "enough")

    executor = RayExecutor(two_machines.address, 3)
    events = run(executor, [Task(str(i), work.until_stopped) for i in range(3)], note)
    (lost,) = retried
    assert "machine" in lost.reason
    assert values(events) == dict.fromkeys("012", "enough")


@LINUX
def test_pictures_lie_once_on_each_machine(two_machines: Any) -> None:
    """20 MB read by three processes on two machines: none holds them for itself."""
    pixels = np.random.default_rng(0).integers(0, 256, (500, 100, 134, 3), dtype=np.uint8)
    ids = [f"{i}\udcff" for i in range(500)]  # a file name that is no text
    pictures = ImageSet.from_arrays(pixels, np.arange(500) % 3, weights=np.linspace(0, 1, 500), ids=ids)
    executor = RayExecutor(
        two_machines.address,
        3,
        cpus_per_task=0.5,
        setup=work.pictures_on_cluster,
        arguments={"labels": labels_of(pictures)},
        arrays={"pixels": pixels_of(pictures)},
    )
    found = values(run_at_once(executor, [Task(str(i), work.read_pictures) for i in range(3)])).values()
    assert len({figures["machine"] for figures in found}) == 2
    assert len({figures["process"] for figures in found}) == 3
    for figures in found:
        assert figures["sum"] == int(pixels.sum(dtype=np.int64))
        assert figures["targets"] == pictures.targets.tolist()
        assert figures["weights"] == pictures.weights.tolist()  # type: ignore[union-attr]
        assert tuple(figures["ids"]) == pictures.ids
        assert figures["grown"] < 0.3 * pixels.nbytes / 1e6


@LINUX
def test_a_deaf_task_is_killed_soon_after_an_interruption(two_machines: Any) -> None:
    asked: list[float] = []
    processes: list[int] = []

    def note(event: Event) -> None:
        if isinstance(event, Reported):
            processes.append(event.values["process"])
            asked.append(time.monotonic())

    with RayExecutor(two_machines.address, 2) as executor:
        tasks = [Task(str(i), work.deaf) for i in range(2)]
        executor.run(tasks, note, interruption=lambda: "now" if asked else None)
        assert time.monotonic() - asked[0] < 6
        wait_until(lambda: not any(map(alive, processes)), 10)
    assert processes


def test_what_is_waited_for_is_told(two_machines: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two tasks have both CPUs; a second executor of this process, over the same connection, finds none."""
    monkeypatch.setattr(ray_cluster, "_SECONDS_BEFORE_SAYING", 0.3)
    said: list[str] = []
    second_events: list[Event] = []
    started: set[str] = set()

    def note(event: Event) -> None:
        if isinstance(event, Reported) and len(started) < 2:
            started.add(event.task.name)
            if len(started) == 2:
                find_no_room()

    def find_no_room() -> None:
        with RayExecutor("auto", 1, say=said.append) as second:
            task = Task("a", work.process)
            second.run([task], second_events.append, interruption=lambda: "told" if said else None)
        for name in "01":
            first.stop(name, "enough")

    first = RayExecutor(two_machines.address, 2)
    events = run(first, [Task(str(i), work.until_stopped) for i in range(2)], note)
    assert said == ["Waiting for the cluster: a task needs 1 CPU; of all machines together 0 CPU is free"]
    assert second_events == []
    assert values(events) == {"0": "enough", "1": "enough"}


def test_a_set_up_that_fails_is_one_error(two_machines: Any) -> None:
    with pytest.raises(NetloomError, match="the pictures are gone"):
        run(RayExecutor(two_machines.address, 2, setup=work.refuse_setup), [Task("a", work.process)])


def test_what_does_not_fit_is_one_error(two_machines: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    address = two_machines.address
    with pytest.raises(NetloomError, match=r"needs 8 CPU on one machine.*has 1 CPU; 1 CPU"):
        RayExecutor(address, 1, cpus_per_task=8)
    with pytest.raises(NetloomError, match="needs 1 CPU, 1 GPU"):
        RayExecutor(address, 1, gpus_per_task=1)
    with monkeypatch.context() as patch:
        patch.setattr(ray_cluster, "installed_version", lambda: "0.0.1")
        with pytest.raises(NetloomError, match=r"this machine 0\.0\.1. Install the same version"):
            run(RayExecutor(address, 1), [Task("a", work.process)])
    with monkeypatch.context() as patch:
        patch.setattr("ray._private.utils.compute_version_info", lambda: ("2.0.0", "3.9.1"))
        with pytest.raises(
            NetloomError, match=r"cannot be used: Version mismatch.*\n.*same versions of Ray and Python"
        ):
            RayExecutor(address, 1)


def test_an_address_where_no_cluster_is_is_told_at_once(ray: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        started = time.monotonic()
        for address in (f"127.0.0.1:{port}", f"ray://127.0.0.1:{port}"):
            with pytest.raises(NetloomError, match=r"No Ray cluster answers at .*ray start --head"):
                RayExecutor(address, 1)
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")  # is what the user means by auto
        with pytest.raises(NetloomError, match=f"No Ray cluster answers at 127.0.0.1:{port}"):
            RayExecutor("auto", 1)
        assert time.monotonic() - started < 5
    for wrong in ("cluster", "host:", ":6379", "host:99999", "http://host:8265", ""):
        with pytest.raises(NetloomError, match=r"no address of a Ray cluster: expected auto"):
            RayExecutor(wrong, 1)


def test_without_ray_it_is_said_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(NetloomError, match=r'pip install "netloom\[ray\]"'):
        RayExecutor("auto", 1)


@LINUX
@pytest.mark.slow
def test_a_cluster_of_this_machine_is_nobody_elses(ray: Any, ray_folder: Path) -> None:
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    before = listening_addresses()
    with RayExecutor("auto", 2, setup=work.make_shared, arguments={"value": 1}) as executor:
        events: list[Event] = []
        executor.run([Task("a", work.square, {"number": 3.0})], events.append)
        opened = listening_addresses() - before
        assert handlers == {number: signal.getsignal(number) for number in handlers}
    assert values(events) == {"a": 9.0}
    assert opened
    loopback = ("0100007F:", "0000000000000000FFFF00000100007F:", "00000000000000000000000001000000:")
    assert all(address.startswith(loopback) for address in opened)
    wait_until(lambda: not opened & listening_addresses(), 10)
    assert list(ray_folder.iterdir()) == []
    assert not ray.is_initialized()


@LINUX
@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_killed_driver_leaves_no_process(ray: Any, ray_folder: Path, number: int) -> None:
    command = [sys.executable, str(Path(work.__file__).with_name("driver.py")), "until_stopped", "ray"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as driver:
        assert driver.stdout is not None
        driver.stdout.readline()
        workers = [int(driver.stdout.readline()) for _ in range(2)]
        servers = processes_of(ray_folder)
        assert len(servers) >= 2
        assert all(map(alive, workers))
        driver.send_signal(number)
        wait_until(lambda: not any(map(alive, [*workers, *servers])), 15)
        driver.wait(timeout=15)
    if number == signal.SIGINT:
        assert list(ray_folder.iterdir()) == []


def processes_of(folder: Path) -> list[int]:
    """What was started with a path in that folder: Ray's servers."""
    found = []
    for commands in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if f"{folder}/".encode() in commands.read_bytes():
                found.append(int(commands.parent.name))
    return found
