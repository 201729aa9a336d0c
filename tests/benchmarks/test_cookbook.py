"""The cookbook: its commands give its rows again, and a row says what it was recorded with."""

from __future__ import annotations

import importlib
import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import netloom
from benchmarks import cookbook
from netloom.data.archives import ARCHIVE_SUFFIXES
from netloom.data.named import NAMED_SETS
from netloom.data.sources import open_source
from netloom.recipe import load_recipe, parse_overrides

SCRIPTS = Path(__file__).parents[2] / "scripts"
ROW = {"title": "An experiment", "theirs": "something", "figure": "0.5", "source": "digits", "recipe": "digits"}


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return importlib.import_module("cookbook_page")


def told(page: ModuleType, experiment: dict[str, Any], record: dict[str, Any] | None) -> dict[str, str]:
    """The cells of a row by their columns."""
    return dict(zip(page._COLUMNS, page.row(experiment, record), strict=True))


def spread(*values: float) -> dict[str, Any]:
    """Of one value, as of a single training."""
    mean = sum(values) / len(values)
    one = {"standard_deviation": None, "interval": [0.4, 0.6]}
    return {"mean": mean, "n": len(values), "values": values, **(one if len(values) == 1 else one | SPREAD)}


SPREAD = {"standard_deviation": 0.01}


def recorded(experiment: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """What a repetition over three seeds leaves."""
    accuracy = spread(0.5, 0.5, 0.5)
    recipe = load_recipe(experiment["recipe"], experiment.get("settings", {}))
    return {
        "recipe": recipe.to_mapping(),
        "model": recipe.model,
        "parameters": 1234,
        "epochs": [recipe.epochs] * 3,
        "test_n": 100,
        "test_accuracy": accuracy,
        "validation_n": 100,
        "validation_accuracy": accuracy,
        "best_validation_accuracy": accuracy,
        "validation_loss": spread(0.75, 0.75, 0.75),
        "train_images_per_second": spread(1000.0, 1100.0, 1050.0),
        "date": "2026-01-01",
        "commit": "0123456789ab",
        **changes,
    }


def of_before(experiment: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """The same in the form that records had first: the recipe's name, and the settings."""
    record = recorded(experiment, **{"recipe": experiment["recipe"], "settings": experiment.get("settings"), **changes})
    del record["date"], record["commit"], record["validation_loss"]
    return record


def test_each_command_names_what_there_is_and_as_many_seeds_as_were_recorded(page: ModuleType) -> None:
    text = page.cookbook_page("")
    experiments = cookbook.load_experiments()
    commands = re.findall(r"\| `(netloom train [^`]+)` \|", text)
    assert len(commands) == len(experiments)
    n_recorded = 0
    for command, experiment in zip(commands, experiments, strict=True):
        _, _, source, *options = shlex.split(command)
        given = {name: value for name, value in zip(options[::2], options[1::2], strict=True) if name != "--set"}
        settings = [value for name, value in zip(options[::2], options[1::2], strict=True) if name == "--set"]
        assert source in NAMED_SETS or (source.endswith(ARCHIVE_SUFFIXES) and f"`{source}` is a file, " in text)
        recipe = load_recipe(given["--recipe"], parse_overrides(settings))
        assert recipe == load_recipe(experiment["recipe"], experiment.get("settings", {}))
        record = cookbook.load_record(experiment["recipe"])
        n_recorded += record is not None
        n_seeds = cookbook.seeds_of(experiment) if record is None else record["test_accuracy"]["n"]
        assert int(given.get("--seeds", "1")) == n_seeds
    assert n_recorded


@pytest.mark.data
def test_files_hold_the_pictures_that_the_page_says(shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NETLOOM_DATA", str(shared_data))
    files = {e["source"] for e in cookbook.load_experiments()} - set(NAMED_SETS)
    assert files == {"cats_and_dogs_small.zip"}
    for name in files:
        parts = [sample.split for sample in open_source(cookbook.source_of(name)).samples]
        assert [parts.count(part) for part in ("train", "validation", "test")] == [2000, 1000, 1000]


def test_sources_are_named_sets_or_files_of_the_folder_of_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("cifar10.zip", "pictures.zip"):
        (tmp_path / name).touch()
    assert cookbook.source_of("pictures.zip") == "pictures.zip"
    monkeypatch.setenv("NETLOOM_DATA", str(tmp_path))
    assert cookbook.source_of("pictures.zip") == str(tmp_path / "pictures.zip")
    assert (cookbook.source_of("cifar10"), cookbook.source_of("other.zip")) == ("cifar10", "other.zip")


@pytest.mark.parametrize("n_seeds", [1, 2])
def test_a_record_holds_what_was_trained(
    n_seeds: int, page: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cookbook, "DOCS", tmp_path)
    (tmp_path / "results").mkdir()
    settings = {"epochs": 1, "model": "mlp", "dense_units": [8]}
    experiment = {**ROW, "settings": settings, "seeds": n_seeds, "compare": [2.5, "validation_loss"]}
    cookbook.run(experiment, None, 2, tmp_path / "runs", "0123456789ab")
    record = cookbook.load_record("digits")
    assert record is not None
    runs = [netloom.load(path.parent) for path in sorted((tmp_path / "runs").glob("**/recipe.yaml"))]
    assert [run.recipe.seed for run in runs] == [0, 1][:n_seeds]
    assert record["recipe"] == runs[0].recipe.to_mapping()
    assert (record["recipe"]["model"], record["recipe"]["dense_units"]) == ("mlp", [8])
    assert record["jobs"] == n_seeds
    assert record["plan"] == json.loads(json.dumps(runs[0].plan.to_json()))
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", record["date"])
    # As measured at the end of the epoch, before the weights were kept and scored.
    losses = [run.history[-1]["validation_loss"] for run in runs]
    assert record["validation_loss"]["values"] == pytest.approx(losses, rel=1e-3)
    assert record["validation_loss"]["mean"] == pytest.approx(sum(losses) / n_seeds, rel=1e-3)
    cells = told(page, experiment, record)
    assert cells["seeds"] == str(n_seeds)
    assert cells["recorded"] == f"{record['date']}, 0123456789ab"
    loss = record["validation_loss"]["mean"]
    assert cells["gap"] == f"{loss - 2.5:+.4f} (validation loss {loss:.4f})"
    # Gone on with, there is nothing left to train, and the record is the same.
    (folder,) = (tmp_path / "runs").iterdir()
    cookbook.run(experiment, None, 2, tmp_path / "none", "0123456789ab", folder)
    assert cookbook.load_record("digits") == record
    assert not (tmp_path / "none").exists()


def test_a_recipe_that_has_changed_since_is_told(page: ModuleType) -> None:
    experiment = {**ROW, "recipe": "cats-dogs-augmented", "compare": [0.45, "test"]}
    record = recorded(experiment)
    assert told(page, experiment, record)["recorded"] == "2026-01-01, 0123456789ab"
    # A training notes the size that it found, and what a recipe is for may be said in other words.
    recipe = {**record["recipe"], "image_size": [150, 150], "description": "other words"}
    assert cookbook.changed_since({**record, "recipe": recipe}, experiment) == []
    recipe |= {"epochs": 100, "augmentation": {**recipe["augmentation"], "shear": 0.2}}
    cells = told(page, experiment, {**record, "recipe": recipe})
    assert "2026-01-01, 0123456789ab, **with an earlier form of the recipe** (augmentation, epochs)" in cells.values()
    assert cells["gap"] == "+5.0 (test 50.00%)"
    # Keys that are newer than a record are their defaults in it; those that are gone make it another recipe.
    del recipe["muon"], recipe["augmentation"]["cutout"]
    assert cookbook.changed_since({**record, "recipe": recipe}, experiment) == ["augmentation", "epochs"]
    assert "gone" in cookbook.changed_since({**record, "recipe": {**recipe, "gone": 1}}, experiment)
    assert cookbook.changed_since(record, {**experiment, "settings": {"keep": "best"}}) == ["keep"]


def test_records_of_before_are_compared_by_what_they_hold(page: ModuleType) -> None:
    experiment = {**ROW, "recipe": "cifar10-vgg", "settings": {"epochs": 4}, "compare": [0.6, "validation_loss"]}
    record = of_before(experiment)
    cells = told(page, experiment, record)
    assert (cells["recorded"], cells["gap"]) == ("before records had a date and a recipe", "–")
    assert cookbook.changed_since({**record, "settings": {"epochs": 4, "batch_size": 64}}, experiment) == ["batch_size"]
    assert cookbook.changed_since({**record, "epochs": [20] * 3}, experiment) == ["epochs"]
    assert cookbook.changed_since({**record, "model": "vgg16"}, experiment) == ["model"]
    stopped = {**ROW, "recipe": "cifar10-vgg-early-stopping"}
    assert cookbook.changed_since(of_before(stopped, settings=None, epochs=[12, 9]), stopped) == []


def test_speeds_that_lie_apart_are_not_told(page: ModuleType) -> None:
    assert told(page, ROW, recorded(ROW))["images/s"] == "1,050"
    apart = recorded(ROW, train_images_per_second=spread(2996.0, 1695.0, 2356.0))
    assert told(page, ROW, apart)["images/s"] == "–"


def test_speeds_of_trainings_beside_each_other_are_not_told(page: ModuleType) -> None:
    assert told(page, ROW, recorded(ROW, jobs=1))["images/s"] == "1,050"
    assert told(page, ROW, recorded(ROW, jobs=3))["images/s"] == "–"


def test_what_is_not_measured_says_how_it_differs_all_the_same(page: ModuleType) -> None:
    cells = told(page, {**ROW, "why": "half as many epochs"}, None)
    assert cells["our command"] == "`netloom train digits --recipe digits --seeds 3`"
    assert (cells["test"], cells["how ours differs, and why"]) == ("not measured yet", "half as many epochs")


@pytest.mark.skipif(shutil.which("git") is None, reason="there is no git")
def test_the_commit_is_told_with_whether_the_code_has_changed_beside_it(tmp_path: Path) -> None:
    def git(*arguments: str) -> None:
        who = ["-c", "user.name=A", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
        subprocess.run(["git", *who, *arguments], cwd=tmp_path, check=True, capture_output=True)

    assert cookbook.commit_of(tmp_path) is None
    (tmp_path / "src").mkdir()
    code = tmp_path / "src" / "code.py"
    code.write_text("x = 1\n")
    git("init")
    git("add", ".")
    git("commit", "-m", "Code")
    (tmp_path / "results.json").touch()
    commit = cookbook.commit_of(tmp_path)
    assert commit is not None
    assert re.fullmatch("[0-9a-f]{12}", commit)
    code.write_text("x = 2\n")
    assert cookbook.commit_of(tmp_path) == f"{commit}+"
