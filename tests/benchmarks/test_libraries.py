"""What runs in the process of a measurement, for the libraries that netloom's own environment has."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from benchmarks.suite import clock, contender
from benchmarks.suite.turns import ROOT, condensed

FIGURES = {"first_seconds", "start_seconds", "epoch_seconds", "pictures_per_second", "peak_memory_bytes"}
FACTS = {"parameters", "device", "note", "versions"}


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
        ("infer", {}),
    ],
)
def test_pytorch_is_measured(tmp_path: Path, benchmark: str, variant: dict[str, Any]) -> None:
    found = contender.run(job(tmp_path, "pytorch", benchmark, variant=variant))
    assert set(found) == FIGURES | FACTS
    assert found["parameters"] == 62_006
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
    assert found["versions"].keys() >= {"python", "netloom", "torch"}


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
