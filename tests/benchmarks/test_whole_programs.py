"""Figures of whole programs: what is kept of them, and what the page says."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from benchmarks.suite.machine import OtherWork

from benchmarks import search, whole_programs

HOW = {"command": "python -m benchmarks.x", "date": "2026-01-01", "other_work_cpus": 0.0}
MACHINE = {"processor": "A processor", "cpu_flags": ["avx2"], "cuda_devices": [], "usable_cpus": 4}


def page(tmp_path: Path, name: str, about: dict[str, Any], contenders: dict[str, list[dict[str, Any]]]) -> list[str]:
    record = {
        "about": about,
        "machine": MACHINE,
        "contenders": {one: {**HOW, "rounds": rounds} for one, rounds in contenders.items()},
    }
    (tmp_path / f"{name}.json").write_text(json.dumps(record), encoding="utf-8")
    return list(whole_programs.sections(tmp_path))


def test_a_search_is_told_by_its_time_and_its_time_to_the_others_best(tmp_path: Path) -> None:
    contenders = {
        "bayes_opt": [{"seconds": 600.0, "best": 0.6, "reached": [[100.0, 0.5], [400.0, 0.6], [500.0, 0.55]]}],
        "keras_tuner": [{"seconds": 400.0, "best": 0.7, "trials": 9, "reached": [[300.0, 0.7]]}],
        "netloom_pruned": [
            {"seconds": 150.0, "best": 0.65, "reached": [[40.0, 0.58], [80.0, 0.65]]},
            {"seconds": 250.0, "best": 0.59, "reached": [[40.0, 0.59]]},
        ],
    }
    lines = page(tmp_path, "search", {"trials": 7, "epochs": 5}, contenders)
    assert "| bayes_opt | 1 | 7 | 600 | ×1.0 | 0.6000 | 400 | 80 (1 of 2), ×5.0 |" in lines
    assert "| keras_tuner | 1 | 9 | 400 | ×1.5 | 0.7000 | 300 | not reached |" in lines
    assert "| netloom_pruned | 2 | 7 | 200 | ×3.0 | 0.6500, 0.5900 | 60 | – |" in lines


def test_augmentation_is_told_by_the_ratios_within_a_round(tmp_path: Path) -> None:
    affine = [{"netloom": 400.0, "torchvision": 100.0, "keras": 50.0}] * 2
    crop = [{"netloom": rate, "torchvision": 1000.0} for rate in (3000.0, 5000.0, 2000.0)]
    lines = page(tmp_path, "augmentation", {"threads": 1}, {"affine": affine, "crop": crop})
    assert "| affine | 2 | 400 | 100 | ×4.0 | 50 | ×8.0 |" in lines
    assert "| crop | 3 | 3,000 | 1,000 | ×3.0 | – | – |" in lines
    assert "With 1 thread." in lines


def test_a_peers_own_trials_are_repeated() -> None:
    line = search.command("netloom_same_trials", "", Path(), Path("out"), 2, 5, [[0.3, 1e-4], [0.25, 0.01]])
    assert line[-6:] == [
        "--set",
        "dropout=0.3",
        "--set",
        "learning_rate=0.0001",
        "--try",
        "dropout=0.25 learning_rate=0.01",
    ]


def test_what_a_program_says_is_told_by_whole_trials(tmp_path: Path) -> None:
    said = "print('POINT 0.5 0.001'); print('REACHED 0.25'); print('REACHED 0.125'); print('TRIALS 3')"
    found = search.measure("bayes_opt", [sys.executable, "-c", said], tmp_path)
    assert (found["best"], found["points"], found["trials"]) == (0.25, [[0.5, 0.001]], 3)
    assert [value for _, value in found["reached"]] == [0.25, 0.125]


def test_trials_folds_and_features_are_told_by_medians(tmp_path: Path) -> None:
    rates = {"1 workers": [90.0], "2 workers": [160.0, 180.0, 170.0], "2 processes": [200.0]}
    trials = {way: [{"seconds": 1.0, "per_hour": rate} for rate in found] for way, found in rates.items()}
    lines = page(tmp_path, "trials_per_hour", {"trials": 16, "epochs": 1, "jobs": [1, 2]}, trials)
    assert "| 1 | 1 | 90.0 | – | – |" in lines
    assert "| 2 | 3 | 170.0 | 200.0 | 85% |" in lines
    about = {"trials": {"gp": 40}, "seconds": {"gp": 1.0}}
    overhead = {
        "gp, 2 at once": [{"overhead_ms": 3.0, "driver_cpu_ms": 1.0}, {"overhead_ms": 5.0, "driver_cpu_ms": 2.0}]
    }
    lines = page(tmp_path, "search_overhead", about, overhead)
    assert "| gp, 2 at once | 2 x 40 | 1 | 4.0 | 1.5 |" in lines
    one = {"jobs": 1, "threads": 4, "accuracy": 0.5}
    folds = {
        "one after the other": [{**one, "seconds": 100.0}],
        "at once": [{**one, "jobs": 4, "threads": 1, "seconds": 40.0}],
    }
    lines = page(tmp_path, "cross_validation", {"folds": 5}, folds)
    assert "| at once | 1 | 4 | 1 | 40 | 0.5000 |" in lines
    assert "At once is 2.50 times as fast." in lines
    features = {
        "netloom": [{"n": 100, "seconds": 2.0, "network_seconds": 1.0}],
        "keras": [{"n": 100, "seconds": 8.0}],
    }
    lines = page(tmp_path, "features", {}, features)
    assert "| keras | 1 | 12.5 | ×4.00 | 8.0 s |" in lines
    assert "netloom's pass of the network alone: 100.0 pictures a second." in lines


def test_the_speed_record_is_told_by_mean_accuracy_and_by_times_within_a_seed(tmp_path: Path) -> None:
    def measured(*pairs: tuple[float, float]) -> list[dict[str, Any]]:
        return [{"accuracy": share, "seconds": time, "process_seconds": time + 5} for share, time in pairs]

    contenders = {
        "netloom": measured((0.90, 40.0), (0.91, 50.0), (0.92, 90.0)),
        "airbench94_muon": measured((0.9, 100.0), (0.9, 100.0), (0.9, 200.0)),
    }
    about = {"device": "cpu", "peer_precision": "float32", "peer_compiled": False}
    lines = page(tmp_path, "cifar10_fast", about, contenders)
    # Student's t of three values with a deviation of 1 point: 4.303 / sqrt(3).
    assert "| netloom | 3 | 91.00% (88.52% to 93.48%) | 50.0 | ×0.45 | 55.0 |" in lines
    assert "| airbench94_muon | 3 | 90.00% (90.00% to 90.00%) | 100.0 | – | 105.0 |" in lines
    assert "On cpu; the peer in float32, not compiled." in lines
    alone = page(tmp_path, "cifar10_fast", about, {name: rounds[:1] for name, rounds in contenders.items()})
    assert "| netloom | 1 | 90.00% | 40.0 | ×0.40 | 45.0 |" in alone


def test_what_was_not_measured_says_how(tmp_path: Path) -> None:
    said = "Not measured yet: `python -m benchmarks.features ARCHIVE --weights FILE`."
    assert said in list(whole_programs.sections(tmp_path))


def test_contenders_of_one_way_of_measuring_are_kept_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(whole_programs, "RESULTS", tmp_path)
    monkeypatch.setattr("sys.argv", ["search.py", "--peers", "/home/someone/bin/python"])
    others = OtherWork()

    def saved(about: dict[str, Any], **contenders: Any) -> dict[str, Any]:
        whole_programs.save("search", contenders, about, others)
        found: dict[str, Any] = json.loads((tmp_path / "search.json").read_text(encoding="utf-8"))["contenders"]
        return found

    saved({"trials": 7}, a=[{"seconds": 1.0}], b=[{"seconds": 1.0}])
    found = saved({"trials": 7}, b=[{"seconds": 2.0}])
    assert [found[name]["rounds"][0]["seconds"] for name in ("a", "b")] == [1.0, 2.0]
    assert found["a"]["command"] == "python -m benchmarks.search --peers python"
    recorded = whole_programs.load("search")
    assert recorded is not None
    whole_programs.save("search", {"b": [{"seconds": 3.0}]}, {"trials": 7}, others, beside=recorded)
    added = whole_programs.load("search")
    assert added is not None
    assert [one["seconds"] for one in added["contenders"]["b"]["rounds"]] == [2.0, 3.0]
    assert list(saved({"trials": 9}, b=[{"seconds": 2.0}])) == ["b"]


@pytest.mark.parametrize("name", list(whole_programs._SECTIONS))
def test_the_command_of_what_is_not_measured_has_all_that_is_required(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Reference: what the script's own argparse says of the words."""
    lines = [line.split("`")[1].split() for line in whole_programs.sections(tmp_path) if "Not measured yet" in line]
    (words,) = [rest for _, _, module, *rest in lines if module == f"benchmarks.{name}"]
    parsed: list[Any] = []

    def parse(self: argparse.ArgumentParser, *_: Any, **__: Any) -> Any:
        parsed.append(original(self, words))
        raise SystemExit(0)

    original = argparse.ArgumentParser.parse_args
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse)
    with pytest.raises(SystemExit) as end:
        importlib.import_module(f"benchmarks.{name}").main()
    assert end.value.code == 0, capsys.readouterr().err
    assert parsed
