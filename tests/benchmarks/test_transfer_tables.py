"""The cookbook's tables on few pictures and pretrained networks: what was measured, where, and with how much work."""

from __future__ import annotations

import importlib
import json
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from benchmarks import few_pictures, netloom_command, whole_programs

HOW = {"command": "python -m benchmarks.x", "date": "2026-01-01", "other_work_cpus": 0.0}
MACHINE = {"processor": "A processor", "cpu_flags": ["avx2"], "cuda_devices": [], "usable_cpus": 4}
TEST = {"accuracy": 0.75, "interval": [0.72, 0.78], "n": 1000}


@pytest.fixture
def tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "scripts"))
    monkeypatch.setattr(whole_programs, "RESULTS", tmp_path)
    return importlib.import_module("transfer_tables")


def record(tmp_path: Path, name: str, about: dict[str, Any], contenders: dict[str, Any], **how: Any) -> None:
    measured = {one: {**HOW, **how, "rounds": [found]} for one, found in contenders.items()}
    text = json.dumps({"about": about, "machine": MACHINE, "contenders": measured})
    (tmp_path / f"{name}.json").write_text(text, encoding="utf-8")


def test_what_is_not_measured_says_how_it_is(tables: ModuleType) -> None:
    lines = tables.transfer_tables()
    for name in ("few_pictures", "transfer_folds", "backbone_limits"):
        assert f"Not measured yet: see `python -m benchmarks.{name} --help`." in lines


def test_few_pictures_tell_their_steps_and_machine(tables: ModuleType, tmp_path: Path) -> None:
    scratch = {"test": TEST, "seconds": 30.0, "steps": 60, "epochs": 30, "train_n": 40}
    features = {"test": TEST, "seconds": 12.0, "steps": 0, "epochs": 1, "train_n": 2000}
    record(tmp_path, "few_pictures", {}, {"scratch, 20": scratch, "features, all": features}, other_work_cpus=1.5)
    lines = tables.transfer_tables()
    (row,) = [line for line in lines if line.startswith("| scratch |")]
    assert "| 75.0% (72.0% to 78.0%), time not known, 60 steps | not measured yet |" in row
    (row,) = [line for line in lines if line.startswith("| features |")]
    assert row.endswith("| 75.0% (72.0% to 78.0%), time not known |")
    record(tmp_path, "few_pictures", {}, {"scratch, 20": scratch})
    assert any("(72.0% to 78.0%), 30 s, 60 steps" in line for line in tables.transfer_tables())
    assert any("A processor; avx2; 4 processors" in line for line in lines)
    assert any("other work took up to 1.5 processors" in line for line in lines)


def test_all_pictures_may_be_those_of_the_recipes_own_row(
    tables: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = {"test_accuracy": {"mean": 0.825, "n": 1, "interval": [0.8, 0.85], "values": [0.825]}}
    own |= {"train_seconds": {"mean": 3000.0}, "jobs": 1}
    rows = {"cats-dogs-augmented": own}
    monkeypatch.setattr(tables, "load_record", rows.get)
    scratch = {"test": TEST, "seconds": 30.0, "steps": 60, "epochs": 30, "train_n": 40}
    record(tmp_path, "few_pictures", {}, {"scratch, all": scratch})
    lines = tables.transfer_tables()
    (row,) = [line for line in lines if line.startswith("| augmented |")]
    assert row.endswith("| not measured yet | 82.5% (80.0% to 85.0%), 50 min 0 s, the recipe's row above |")
    (row,) = [line for line in lines if line.startswith("| scratch |")]
    assert row.endswith("| 75.0% (72.0% to 78.0%), 30 s, 60 steps |")


def test_folds_and_limits_have_their_n(tables: ModuleType, tmp_path: Path) -> None:
    first = {"accuracy": 0.98, "interval": [0.97, 0.99], "n": 3000, "seconds": 40.0}
    second = {**first, "gain": 0.0025, "gain_interval": [-0.001, 0.006], "p_value": 0.25}
    about = {"folds": 5, "image_size": 160}
    record(tmp_path, "transfer_folds", about, {"features": first, "frozen": second})
    record(tmp_path, "backbone_limits", {}, {"mnist, 96": {"test": TEST, "train_n": 49000, "seconds": 40.0}})
    lines = tables.transfer_tables()
    assert "| features | 98.00% (97.00% to 99.00%), n = 3,000 | – | – | 40 s |" in lines
    assert "| frozen | 98.00% (97.00% to 99.00%), n = 3,000 | +0.25% (-0.10% to +0.60%) | 0.25 | 40 s |" in lines
    assert "| mnist | 96x96 | 75.0% (72.0% to 78.0%) | 1,000 | 49,000 | 40 s |" in lines


def test_no_way_is_given_more_labels_than_are_counted() -> None:
    for way in few_pictures.RECIPES:
        line = few_pictures.arguments_of(way, 20, Path("a.zip"), Path("w.safetensors"))
        assert line[-2:] == ["--per-class", "20"]
        assert "validation_fraction=0" in line
        assert ("keep=last" in line) == (way != "features")
        assert "--per-class" not in few_pictures.arguments_of(way, 0, Path("a.zip"), Path("w.safetensors"))


def test_the_validation_part_is_left_out(tmp_path: Path) -> None:
    archive = tmp_path / "pictures.zip"
    members = ["train/cats/1.jpg", "validation/cats/2.jpg", "test/cats/3.jpg"]
    with zipfile.ZipFile(archive, "w") as whole:
        for name in members:
            whole.writestr(name, name)
    (tmp_path / "copy").mkdir()
    copy = few_pictures.without_validation(archive, tmp_path / "copy")
    assert copy.name == archive.name
    with zipfile.ZipFile(copy) as kept:
        assert {name: kept.read(name).decode() for name in kept.namelist()} == {n: n for n in members if "va" not in n}


def test_a_command_is_timed_with_its_imports(tmp_path: Path) -> None:
    found, seconds = netloom_command.run_command(["summary", "lenet5", "--input", "1x28x28"], tmp_path)
    assert found["parameters"] > 0
    assert netloom_command.import_seconds(["summary", "lenet5", "--input", "1x28x28"], tmp_path) > 0
    with pytest.raises(SystemExit, match=r"failed:\n(.|\n)*lenet55"):
        netloom_command.run_command(["summary", "lenet55", "--input", "1x28x28"], tmp_path)
    assert seconds > 0
