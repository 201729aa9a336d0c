"""`--per-class N`: the same few pictures in every verb that trains; run, page and terminal tell it."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

import netloom
from netloom.cli import app
from netloom.errors import NetloomError, RecipeError
from netloom.runtime import ExecutionPlan
from netloom.sklearn import ImageClassifier
from netloom.workflows.seeds import train_seeds
from picture_folders import stripes

PLAN = ExecutionPlan("cpu", 1, "float32")
QUICK: dict[str, Any] = {
    "filters": [4],
    "batch_size": 8,
    "epochs": 1,
    "augmentation": None,
    "schedule": None,
    "early_stopping": None,
    "precision": "float32",
    "shards": 0,
}
SET = [part for key, value in QUICK.items() for part in ("--set", f"{key}={json.dumps(value)}")]


def netloom_command(*arguments: object) -> Result:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.output
    return result


def classes_of(manifest: dict[str, Any], part: str) -> dict[str, int]:
    return dict(Counter(name.split("/")[0] for name in manifest[part]))


def test_train_says_it_and_everything_after_sees_the_same_pictures(photos: Path, tmp_path: Path) -> None:
    whole = netloom.train(photos, plan=PLAN, out=tmp_path, quiet=True, settings=QUICK)
    result = netloom_command("train", photos, "--per-class", 5, *SET, "--out", tmp_path, "--name", "few", "--json")
    assert result.exit_code == 0
    assert "15 to train (5 of each class), " in result.stderr
    run = netloom.load(json.loads(result.stdout)["run"])
    assert run.recipe.per_class == 5
    assert (run.split["per_class"], run.result["train_n"]) == (5, 15)
    assert classes_of(run.split, "train") == {"across": 5, "down": 5, "plain": 5}
    assert run.split["validation"] == whole.split["validation"]
    assert run.split["test"] == whole.split["test"]
    page = run.report_path.read_text(encoding="utf-8")
    assert "It was trained on 5 pictures of each class" in page
    assert "It was trained on" not in whole.report_path.read_text(encoding="utf-8")
    pictures = run.split
    netloom.resume(run.path, epochs=2, quiet=True)
    assert netloom.load(run.path).split == pictures
    compared = netloom_command("compare", run.path, whole.path, "--json")
    assert "per_class" in compared.stdout


def test_a_resumption_takes_no_other_number(photos: Path, tmp_path: Path) -> None:
    run = netloom.train(photos, plan=PLAN, out=tmp_path, quiet=True, settings={**QUICK, "per_class": 3})
    result = netloom_command("train", "--resume", run.path, "--per-class", 5)
    assert result.exit_code == 2
    assert "--resume goes on with what the run holds" in result.stderr


def test_a_class_with_fewer_is_named_before_anything_is_made(photos: Path, tmp_path: Path) -> None:
    whole = netloom.train(photos, plan=PLAN, out=tmp_path / "whole", quiet=True, settings=QUICK)
    most = min(classes_of(whole.split, "train").values())
    result = netloom_command("train", photos, "--per-class", 50, *SET, "--out", tmp_path / "runs")
    assert result.exit_code == 2
    assert "per_class is 50, but the training part has fewer pictures of 'across' (" in result.stderr
    assert f"Take at most {most}, the largest number possible" in result.stderr
    assert not (tmp_path / "runs").exists()
    with pytest.raises(RecipeError, match="per_class"):
        netloom.train(photos, plan=PLAN, out=tmp_path, quiet=True, settings=QUICK, per_class=0)
    assert netloom_command("train", photos, "--per-class", 0, *SET, "--out", tmp_path / "runs").exit_code == 2


def test_seeds_share_the_pictures(photos: Path, tmp_path: Path) -> None:
    summary = train_seeds(
        photos, n_seeds=2, jobs=1, plan=PLAN, out=tmp_path, quiet=True, settings={**QUICK, "per_class": 4}
    )
    one, other = (netloom.load(path).split for path in summary["runs"])
    assert one == other
    assert classes_of(one, "train") == {"across": 4, "down": 4, "plain": 4}


def test_each_fold_draws_from_its_own_training_part(photos: Path, tmp_path: Path) -> None:
    arguments = ("cv", photos, "--folds", 2, "--jobs", 1, *SET, "--out", tmp_path, "--json")
    few = netloom_command(*arguments, "--per-class", 4)
    assert few.exit_code == 0
    found = json.loads(few.stdout)
    assert "note: Each training uses 4 pictures of each class" in few.stderr
    assert any("4 pictures of each class" in note for note in found["notes"])
    assert "4 pictures of each class" in (Path(found["folder"]) / "report.html").read_text(encoding="utf-8")
    splits = [netloom.load(training["run"]).split for training in found["trainings"]]
    for split in splits:
        assert classes_of(split, "train") == {"across": 4, "down": 4, "plain": 4}
        assert len(split["test"]) == 30
    assert set(splits[0]["train"]) != set(splits[1]["train"])
    assert netloom_command(*arguments, "--per-class", 30).exit_code == 2


@pytest.mark.parametrize("folds", [None, 2])
def test_a_search_and_its_winner_train_on_them(photos: Path, tmp_path: Path, folds: int | None) -> None:
    """Reference: a training of the same recipe, whose epochs score as the trial's do."""
    settings = {**QUICK, "per_class": 4}
    study = netloom.tune(
        photos,
        space={"dropout": "0..0.5"},
        sampler="random",
        pruner="none",
        n_trials=1,
        final_seeds=1,
        cv=folds,
        jobs=1,
        plan=PLAN,
        out=tmp_path,
        quiet=True,
        settings=settings,
    )
    assert study.run is not None
    assert "4 pictures of each class" in (study.path / "report.html").read_text(encoding="utf-8")
    run = netloom.train(photos, plan=PLAN, out=tmp_path, quiet=True, settings={**settings, **study.best_overrides})
    assert study.run.split["train"] == run.split["train"]
    assert classes_of(run.split, "train") == {"across": 4, "down": 4, "plain": 4}
    if folds is None:
        assert study.trials[0]["values"] == [row["validation_accuracy"] for row in run.history]
    else:
        assert len(study.trials[0]["values"]) == 2


def test_it_is_no_key_to_be_searched_over(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="per_class cannot be searched over: the trials of a study are compared"):
        netloom.tune(photos, space={"per_class": "2,4"}, out=tmp_path, quiet=True)


def test_the_learning_rate_is_looked_for_on_them(photos: Path) -> None:
    arguments = ("lr-find", photos, *SET, "--steps", 50, "--json")
    result = netloom_command(*arguments, "--per-class", 5)
    assert result.exit_code == 0
    assert "15 to train (5 of each class), " in result.stderr
    assert netloom_command(*arguments, "--per-class", 500).exit_code == 2


def test_the_estimator_follows_the_recipe() -> None:
    pixels = np.stack([stripes(i % 3, i) for i in range(60)])
    estimator = ImageClassifier(**{**QUICK, "per_class": 500})
    with pytest.raises(NetloomError, match="per_class is 500"):
        estimator.fit(pixels, np.arange(60) % 3)
