"""What runs in the process of a measurement, for the libraries that netloom's own environment has."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from benchmarks.suite import clock, contender
from benchmarks.suite.libraries.with_netloom import epochs_of_a_training
from benchmarks.suite.networks import NETWORKS, PHOTOS, Network
from benchmarks.suite.turns import ROOT, condensed

from netloom.inference import predict_outputs
from netloom.recipe import load_recipe
from netloom.runtime import ExecutionPlan
from netloom.workflows.fitting import Fitting

TIMES = {"first_seconds", "start_seconds", "epoch_seconds"}
FIGURES = {*TIMES, "pictures_per_second", "peak_memory_bytes", "peak_gpu_memory_bytes"}
FACTS = {"parameters", "device", "note"}


def job(tmp_path: Path, library: str, benchmark: str = "train", **changes: Any) -> dict[str, Any]:
    return {
        "library": library,
        "benchmark": benchmark,
        "network": "cifar10-lenet5",
        "batch_size": 32,
        "pictures": 64,
        "processors": None,
        "variant": {},
        "epochs": 3,
        "device": "cpu",
        "threads": 1,
        "scratch": str(tmp_path),
        "folder": "",
        **changes,
    }


@pytest.mark.parametrize(
    ("benchmark", "variant"),
    [
        ("train", {"loop": "tutorial", "workers": 0}),
        ("train", {"loop": "tuned", "precision": "float32"}),
        ("train", {"loop": "tuned", "precision": "bfloat16"}),
        ("infer", {"precision": "float32"}),
        ("infer", {"precision": "bfloat16"}),
    ],
)
def test_pytorch_is_measured(tmp_path: Path, benchmark: str, variant: dict[str, Any]) -> None:
    found = contender.run(job(tmp_path, "pytorch", benchmark, variant=variant))
    assert set(found) == FIGURES | FACTS
    assert found["parameters"] == 62_006
    assert variant.get("precision", "") in found["note"]
    assert found["pictures_per_second"] == pytest.approx(64 / found["epoch_seconds"])
    assert condensed([found, found])["pictures_per_second"]["n"] == 2


def test_one_output_is_trained_with_the_binary_loss(tmp_path: Path) -> None:
    variant = {"loop": "tuned", "precision": "float32"}
    found = contender.run(
        job(tmp_path, "pytorch", network="cats-dogs-scratch", batch_size=4, pictures=8, variant=variant)
    )
    assert found["parameters"] == 3_453_121, "the number that the third seed's summary of this network ends with"


@pytest.mark.slow
@pytest.mark.parametrize("benchmark", ["train", "infer"])
def test_netloom_is_measured_through_its_public_door(tmp_path: Path, benchmark: str) -> None:
    found = contender.run(job(tmp_path, "netloom", benchmark))
    assert set(found) == FIGURES | FACTS
    assert found["parameters"] == 62_006
    assert found["peak_memory_bytes"] or sys.platform == "win32"


@pytest.mark.parametrize("net", [*NETWORKS.values(), PHOTOS], ids=lambda net: f"{net.recipe}-{len(net.layers)}")
@pytest.mark.parametrize("batch_size", [32, 128])
def test_the_plan_is_that_of_a_whole_training(net: Network, batch_size: int) -> None:
    """It is chosen by the number of steps, of which only a few are measured."""
    recipe = load_recipe(net.recipe)
    pictures = 512 if net is not PHOTOS else PHOTOS.pictures
    epochs = epochs_of_a_training(net, {"epochs": 3, "pictures": pictures})
    steps = epochs * math.ceil(pictures / batch_size)
    of_the_recipe = recipe.epochs * net.trained_on / batch_size
    assert of_the_recipe <= steps < of_the_recipe + epochs + math.ceil(pictures / batch_size)


def test_a_training_is_begun_as_a_whole_one_and_ends_after_the_measured_epochs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def chosen(self: Fitting, **given: Any) -> ExecutionPlan:
        asked.append(self.recipe.epochs * len(self.train))
        time.sleep(0.2)
        return ExecutionPlan("cpu", 1, "float32", shards=2)

    monkeypatch.setattr(Fitting, "choose_plan", chosen)
    epoch_ended = clock.EpochClock.epoch_ended
    ended: list[int] = []
    monkeypatch.setattr(clock.EpochClock, "epoch_ended", lambda self: (ended.append(1), epoch_ended(self))[1])
    found = contender.run(job(tmp_path, "netloom", network="fashion-mlp"))
    assert asked == [math.ceil(30 * 55_000 / 64) * 2]
    assert len(ended) == 3
    assert min(found["first_seconds"], found["start_seconds"]) > 0.2, "choosing belongs to the first epoch"
    assert found["note"] == "float32, 2 threads with a shard of each batch"


def test_netloom_predicts_in_the_jobs_batches_with_all_of_its_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[tuple[list[int], int]] = []

    def predicted(model: Any, batches: Any, *, plan: ExecutionPlan, **given: Any) -> Any:
        batches = list(batches)
        passes.append(([len(batch) for batch in batches], plan.cpus))
        return predict_outputs(model, batches, plan=plan, **given)

    monkeypatch.setattr("benchmarks.suite.libraries.with_netloom.predict_outputs", predicted)
    monkeypatch.setattr(Fitting, "choose_plan", lambda self, **given: ExecutionPlan("cpu", 1, "bfloat16"))
    found = contender.run(job(tmp_path, "netloom", "infer", network="fashion-mlp", threads=3))
    assert passes == [([32, 32], 3)] * 3
    assert found["note"] == "bfloat16, 3 threads"


def test_memory_of_a_gpu_is_what_pytorch_says(monkeypatch: pytest.MonkeyPatch) -> None:
    watch = clock.EpochClock()
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.synchronize", lambda: None)
    monkeypatch.setattr("torch.cuda.max_memory_allocated", lambda: 123_456_789)
    watch.epoch_ended()
    watch.epoch_ended()
    assert watch.figures(100)["peak_gpu_memory_bytes"] == 123_456_789


@pytest.mark.slow
@pytest.mark.parametrize("cache", ["cold", "warm"])
def test_netloom_reads_a_folder(tmp_path: Path, cache: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks.suite.pictures import photo_folder

    monkeypatch.setenv("NETLOOM_CACHE", str(tmp_path / "cache"))
    pictures = photo_folder(tmp_path / "photos", None, 64)
    given = job(tmp_path, "netloom", "folder", network="photos", folder=str(pictures), pictures=24)
    found = contender.run({**given, "variant": {"cache": cache}})
    assert set(found) == FIGURES | FACTS


def test_a_library_that_is_not_installed_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fastai", None)
    monkeypatch.delitem(sys.modules, "benchmarks.suite.libraries.with_fastai", raising=False)
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    assert contender.run(job(tmp_path, "keras-tensorflow")) == {"missing": "tensorflow is not installed"}
    assert contender.run(job(tmp_path, "fastai"))["missing"].startswith("fastai")


def test_a_library_without_gpu_is_missing_on_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    found = contender.run(job(tmp_path, "pytorch", "infer", device="cuda"))
    assert found == {"missing": "this build of PyTorch sees no GPU"}


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system binds no process to processors")
def test_the_process_is_bound_before_anything_heavy_is_imported() -> None:
    """And prints its result behind the mark; a job for an unknown library ends it with an error."""
    first = min(os.sched_getaffinity(0))
    code = (
        "import os, sys; from benchmarks.suite import contender; "
        f"contender.bind([{first}]); print(sorted(os.sched_getaffinity(0)), 'torch' in sys.modules)"
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == f"[{first}] False"
    broken = [sys.executable, "-m", "benchmarks.suite.contender", json.dumps({"library": "no", "processors": None})]
    assert subprocess.run(broken, cwd=ROOT, capture_output=True, check=False).returncode == 1


def test_epochs_are_timed_from_the_call_and_from_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([100.0, 103.0, 110.0, 112.0, 113.0, 119.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(now))
    clock.process_started()
    clock.made_pictures(1.0)
    watch = clock.EpochClock()
    for _ in range(4):
        watch.epoch_ended()
    found = watch.figures(100)
    assert found["first_seconds"] == 7.0
    assert found["start_seconds"] == 9.0, "3 s before the call, 1 of them for the pictures"
    assert found["epoch_seconds"] == 2.0, "the median of 2, 1 and 6"
    assert found["pictures_per_second"] == 50.0


def test_one_epoch_gives_no_steady_figure() -> None:
    watch = clock.EpochClock()
    watch.epoch_ended()
    with pytest.raises(ValueError, match="two epochs"):
        watch.figures(100)
