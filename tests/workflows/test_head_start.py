from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from netloom.data import cache, worker_pool
from netloom.progress import Reporter
from netloom.recipe import load_recipe
from netloom.workflows import head_start
from netloom.workflows.prepare import prepare_data
from netloom.workflows.train import recipe_for
from picture_corpus import encoded, endless_jpeg


@pytest.fixture(autouse=True)
def _two_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 2)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes of 30 pictures of 12 x 8 pixels."""
    for number, name in enumerate(("a", "b")):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for i in range(30):
            picture = np.full((8, 12, 3), 100 * number + i, dtype=np.uint8)
            (tmp_path / "pictures" / name / f"{i}.png").write_bytes(encoded(picture, "PNG"))
    return tmp_path / "pictures"


def _entries() -> list[Path]:
    kept = cache.cache_directory() / "pictures"
    return sorted(kept.iterdir()) if kept.is_dir() else []


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("recipe", [None, "cifar10-lenet5"])
def test_pictures_decoded_ahead_are_those_the_training_wants(
    folder: Path, recipe: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ["color=grey", "model=mlp", "resize=pad"]
    head_start.begin(str(folder), recipe, settings)
    seen: list[tuple[int, int]] = []
    head_start.wait_for(folder, lambda done, total: seen.append((done, total)))
    assert seen[-1] == (60, 60)
    assert len(_entries()) == 1

    def forbid(*_: object) -> None:
        raise AssertionError("a picture was decoded again")

    monkeypatch.setattr(worker_pool.WorkerPool, "run", forbid)
    chosen = load_recipe(recipe or "photos", {"color": "grey", "resize": "pad"})
    assert len(prepare_data(folder, chosen, Reporter(quiet=True)).image_set) == 60
    assert len(_entries()) == 1


@pytest.mark.parametrize("said", [None, [40, 56]])
def test_pictures_for_a_pretrained_network_have_its_size(
    folder: Path, tmp_path: Path, said: list[int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That of the listed network, or what its file of weights says; neither needs torch."""
    facts = {} if said is None else {"image_size": json.dumps(said), "mean": "[0, 0, 0]", "std": "[1, 1, 1]"}
    weights = tmp_path / "some.safetensors"
    save_file({"any": np.zeros(1, np.float32)}, weights, metadata=facts)
    model = "timm/mobilenetv1_100"
    head_start.begin(str(folder), "transfer-features", [f"model={model}", f"transfer.weights={weights}"])
    head_start.wait_for(folder)
    assert len(_entries()) == 1

    def forbid(*_: object) -> None:
        raise AssertionError("a picture was decoded again")

    monkeypatch.setattr(worker_pool.WorkerPool, "run", forbid)
    chosen = recipe_for(folder, "transfer-features", {"model": model, "transfer.weights": str(weights)})
    images = prepare_data(folder, chosen, Reporter(quiet=True)).image_set.images
    assert list(images.shape[1:]) == [3, *(said or [224, 224])]


@pytest.mark.parametrize("weights", ["folder", "file"])
def test_a_run_is_asked_for_the_size_of_its_pictures_by_the_training_itself(
    folder: Path, tmp_path: Path, weights: str
) -> None:
    """What is decoded ahead must not be at a size that nobody wants."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.yaml").write_text("")
    save_file({"any": np.zeros(1, np.float32)}, tmp_path / "run" / "weights.safetensors")
    given = tmp_path / "run" if weights == "folder" else tmp_path / "run" / "weights.safetensors"
    head_start.begin(str(folder), "transfer-features", ["model=timm/mobilenetv1_100", f"transfer.weights={given}"])
    head_start.wait_for(folder)
    assert _entries() == []


@pytest.mark.parametrize(
    ("recipe", "key", "value"), [("photos", "transfer", None), ("transfer-features", "transfer.weights", "random")]
)
def test_grey_pictures_for_a_network_from_scratch_are_read_once_as_colour(
    recipe: str, key: str, value: str | None, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, path in enumerate(sorted(folder.rglob("*.png"))):
        path.write_bytes(encoded(np.full((8, 12), number, dtype=np.uint8), "PNG"))
    model = "timm/mobilenetv1_100"
    head_start.begin(str(folder), recipe, [f"model={model}", f"{key}={json.dumps(value)}"])
    head_start.wait_for(folder)
    assert len(_entries()) == 1

    def forbid(*_: object) -> None:
        raise AssertionError("a picture was decoded again")

    monkeypatch.setattr(worker_pool.WorkerPool, "run", forbid)
    chosen = recipe_for(folder, recipe, {"model": model, key: value})
    assert chosen.color == "rgb"
    assert list(prepare_data(folder, chosen, Reporter(quiet=True)).image_set.images.shape[1:]) == [3, 224, 224]


@pytest.mark.parametrize(
    ("source", "recipe"), [("no such folder", None), ("{folder}", "no-such-recipe"), ("digits", None), ("MNIST", None)]
)
def test_what_cannot_be_decoded_ahead_says_nothing(
    folder: Path, source: str, recipe: str | None, capfd: pytest.CaptureFixture[str]
) -> None:
    """Mistakes are told by the training itself; named sets it may have to fetch first."""
    named = source.format(folder=folder)
    head_start.begin(named, recipe, [])
    head_start.wait_for(named)
    assert _entries() == []
    assert capfd.readouterr() == ("", "")


def test_another_source_is_not_waited_for_and_one_cpu_begins_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    head_start.begin(str(folder), None, [])
    (begun,) = head_start._running
    head_start.wait_for("another")
    assert head_start._running == [begun]
    head_start._end_all()
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    head_start.begin(str(folder), None, [])
    assert head_start._running == []


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_what_nobody_waits_for_ends_and_leaves_nothing(folder: Path) -> None:
    for i in range(8):
        (folder / "a" / f"endless{i}.jpg").write_bytes(endless_jpeg())
    head_start.begin(str(folder), "cifar10-lenet5", [])
    (begun,) = head_start._running
    deadline = time.monotonic() + 30
    while not _entries() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert [entry.suffix for entry in _entries()] == [".partial"]
    start = time.monotonic()
    head_start._end_all()
    assert time.monotonic() - start < head_start._SECONDS_TO_END
    assert not _lives(begun._process.pid)
    assert _entries() == []


_SCRIPT = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.SIG_IGN)  # as behind nohup
from netloom.workflows import head_start
head_start.begin(sys.argv[1], "cifar10-lenet5", [])
print(head_start._running[0]._process.pid, flush=True)
time.sleep(60)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_nothing_outlives_a_killed_process(folder: Path) -> None:
    for i in range(8):
        (folder / "a" / f"endless{i}.jpg").write_bytes(endless_jpeg())
    command = [sys.executable, "-c", _SCRIPT, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        while not _entries():
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 10
    while _lives(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _lives(pid)
    assert _entries() == []


def test_it_imports_no_torch() -> None:
    script = (
        "import sys; from netloom.workflows import head_start; import netloom.data.decoding, netloom.data.sources,"
        " netloom.recipe; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
