from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from benchmarks.suite.contender import MARK
from benchmarks.suite.errors import MeasuringError, UnequalNetworksError
from benchmarks.suite.plans import Case, Contender
from benchmarks.suite.turns import Processes, _outcome, best_variant, take_turns

CASE: Case = {"network": "cifar10-lenet5", "batch_size": 32, "pictures": 512, "processors": 1}
ONE = Contender("one", "pytorch")


def figures(pictures_per_second: float, *, parameters: int = 7, start: float = 2.0) -> dict[str, Any]:
    return {
        "pictures_per_second": pictures_per_second,
        "epoch_seconds": 512 / pictures_per_second,
        "first_seconds": 1.0,
        "start_seconds": start,
        "peak_memory_bytes": None,
        "parameters": parameters,
        "device": "cpu",
        "note": "a way",
    }


class Recorded:
    """Stands for the processes: gives each contender's figures and remembers who was asked."""

    def __init__(self, **by_name: list[Any] | dict[str, Any]) -> None:
        self.by_name, self.asked, self.epochs = by_name, list[str](), list[int | None]()
        self.pictures: list[int] = []

    def __call__(self, contender: Contender, variant: dict[str, Any], case: Case) -> dict[str, Any]:
        self.asked.append(contender.name)
        self.epochs.append(case.get("epochs"))
        self.pictures.append(case["pictures"])
        found = self.by_name[contender.name]
        return found.pop(0) if isinstance(found, list) else found


def turns(measure: Recorded, repeats: int = 3) -> dict[str, Any]:
    known = {name: Contender(name, "netloom" if name == "netloom" else "pytorch") for name in measure.by_name}
    return take_turns([(known[name], {}) for name in measure.by_name], CASE, measure, repeats=repeats)


def test_contenders_take_turns_and_medians_are_over_the_turns() -> None:
    measure = Recorded(one=[figures(v) for v in (5.0, 30.0, 10.0)], two=[figures(v) for v in (10.0, 12.0, 11.0)])
    found = turns(measure)
    assert measure.asked == ["one", "two"] * 3
    assert found["one"]["pictures_per_second"]["median"] == 10.0
    assert found["two"]["pictures_per_second"]["values"] == [10.0, 12.0, 11.0]
    assert found["one"]["n"] == 3
    assert "peak_memory_bytes" not in found["one"], "it is not known"


def test_who_is_hopelessly_slow_is_measured_once() -> None:
    measure = Recorded(one=figures(100.0), two=figures(66.0), three=figures(67.0))
    found = turns(measure)
    assert measure.asked == ["one", "two", "three", "one", "three", "one", "three"]
    assert found["two"]["n"] == 1


def test_no_peer_is_hopeless_beside_netloom() -> None:
    """Whatever it is compared with needs its median, the more so the larger the ratio."""
    measure = Recorded(netloom=figures(1000.0), one=figures(100.0), two=figures(70.0))
    assert {name: result["n"] for name, result in turns(measure).items()} == {"netloom": 3, "one": 3, "two": 3}


def test_who_is_the_best_of_a_family_is_measured_in_every_turn() -> None:
    speeds = {"PyTorch tuned": (100.0, 3.0), "PyTorch": (40.0, 1.0), "PyTorch workers": (45.0, 2.0)}
    speeds |= {"Keras TensorFlow": (30.0, 9.0), "Keras torch": (20.0, 9.5), "fastai": (10.0, 8.0)}
    speeds |= {"Lightning": (9.0, 8.5)}
    found = turns(Recorded(**{name: figures(speed, start=start) for name, (speed, start) in speeds.items()}))
    once = {name for name, result in found.items() if result["n"] == 1}
    assert once == {"PyTorch workers", "Keras torch", "fastai", "Lightning"}, "PyTorch ends its first epoch first"


@pytest.mark.parametrize("reason", [{"missing": "fastai is not installed"}, {"failed": "ValueError: no"}])
def test_who_cannot_be_measured_is_told_and_not_tried_again(reason: dict[str, str]) -> None:
    measure = Recorded(one=figures(100.0), two=reason)
    found = turns(measure)
    assert found["two"] == reason
    assert measure.asked.count("two") == 1


def test_who_fails_in_a_later_turn_has_no_figures() -> None:
    measure = Recorded(one=figures(100.0), two=[figures(90.0), {"failed": "killed"}])
    assert turns(measure)["two"] == {"failed": "killed"}


def test_different_networks_are_no_comparison() -> None:
    measure = Recorded(one=figures(1.0, parameters=62_006), two=figures(1.0, parameters=62_007))
    with pytest.raises(UnequalNetworksError, match=r"one 62,006, two 62,007 parameters"):
        turns(measure)


def test_the_fastest_variant_is_taken() -> None:
    many = Contender("many", "pytorch", ({"workers": 1}, {"workers": 2}, {"workers": 4}))
    measure = Recorded(many=[figures(10.0), figures(30.0), {"failed": "no memory"}])
    chosen, tried = best_variant(many, CASE, measure)
    assert chosen == {"workers": 2}
    assert [result["variant"]["workers"] for result in tried] == [1, 2, 4]
    assert measure.epochs == [2, 2, 2], "shorter than what is recorded"
    assert measure.pictures == [CASE["pictures"]] * 3


def test_a_precision_is_tried_on_fewer_pictures() -> None:
    precisions = Contender("two", "pytorch", ({"precision": "float32"}, {"precision": "bfloat16"}), trial_share=0.25)
    measure = Recorded(two=[figures(10.0), figures(1.0)])
    assert best_variant(precisions, {**CASE, "pictures": 4096}, measure)[0] == {"precision": "float32"}
    assert measure.pictures == [1024, 1024]


def test_a_single_variant_is_not_tried_and_a_missing_library_once() -> None:
    measure = Recorded(one=[], many={"missing": "not installed"})
    assert best_variant(ONE, CASE, measure) == ({}, [])
    many = Contender("many", "pytorch", ({"workers": 1}, {"workers": 2}))
    assert best_variant(many, CASE, measure)[0] == {"workers": 1}
    assert measure.asked == ["many"]


def outcome(code: str, limit_seconds: float = 60.0) -> dict[str, Any]:
    return _outcome([sys.executable, "-S", "-c", code], dict(os.environ), limit_seconds)


def test_the_last_marked_line_of_a_process_is_its_result() -> None:
    assert outcome(f"print('noise'); print({MARK!r} + '{{\"a\": 1}}'); print('more noise')") == {"a": 1}


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("raise ValueError('no such thing')", "ValueError: no such thing"),
        ("import sys; sys.exit(3)", "exit code 3"),
        (f"print({MARK!r} + '{{}}'); raise SystemExit('too late')", "too late"),
        ("pass", "exit code 0"),
    ],
)
def test_a_process_without_result_failed(code: str, reason: str) -> None:
    assert outcome(code) == {"failed": reason}


def test_a_process_that_takes_too_long_is_ended() -> None:
    began = time.perf_counter()
    assert outcome("import time; time.sleep(60)", limit_seconds=0.3) == {"failed": "took longer than 0.3 s"}
    assert time.perf_counter() - began < 30


def test_without_the_peers_environment_peers_are_missing(tmp_path: Path) -> None:
    processes = Processes("train", tmp_path / "python", tmp_path, epochs=2)
    assert processes(ONE, {}, CASE) == {"missing": "the peers' environment is not there"}


def test_versions_are_those_of_either_environment(tmp_path: Path) -> None:
    own = Processes("train", tmp_path / "python", tmp_path, epochs=2).versions()
    assert own.keys() == {"netloom"}
    assert own["netloom"].keys() >= {"python", "netloom", "torch"}
    both = Processes("train", Path(sys.executable), tmp_path, epochs=2).versions()
    assert both["pytorch"]["torch"] == own["netloom"]["torch"] == both["netloom"]["torch"]
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\necho no such thing >&2\nexit 1\n", encoding="utf-8")
    broken.chmod(0o755)
    if os.name != "nt":
        with pytest.raises(MeasuringError, match="no such thing"):
            Processes("train", broken, tmp_path, epochs=2).versions()


def test_a_process_gets_the_folder_of_its_case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs: list[dict[str, Any]] = []
    monkeypatch.setattr("benchmarks.suite.turns._outcome", lambda command, *more: jobs.append(json.loads(command[-1])))
    processes = Processes("folder", tmp_path, tmp_path, epochs=3, folder_of=lambda count: tmp_path / f"{count}")
    processes(ONE, {}, CASE)
    processes(ONE, {}, {**CASE, "pictures": 64, "epochs": 2})
    assert [Path(job["folder"]).name for job in jobs] == ["512", "64"]
    assert [job["epochs"] for job in jobs] == [3, 2]


def test_a_process_gets_threads_instruction_set_and_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "somewhere")
    processes = Processes("train", tmp_path, tmp_path, epochs=2, isa="AVX2")
    ours, theirs = processes._environment(3, own=True), processes._environment(3, own=False)
    assert {ours[name] for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "TF_NUM_INTRAOP_THREADS")} == {"3"}
    assert ours["ONEDNN_MAX_CPU_ISA"] == theirs["ONEDNN_MAX_CPU_ISA"] == "AVX2"
    assert ours["CUDA_VISIBLE_DEVICES"] == ""
    assert ours["PYTHONPATH"] == "somewhere"
    assert "PYTHONPATH" not in theirs
