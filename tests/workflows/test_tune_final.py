"""The winner of a search: on training and validation part together, for as many epochs as its trial kept."""

from __future__ import annotations

import json
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import netloom
from html_page import Page
from netloom.cli import app
from netloom.data.imageset import load_image_set
from netloom.data.sources import open_source
from netloom.errors import RecipeError, TrainingError
from netloom.run import RunFolder
from netloom.runtime import ExecutionPlan
from netloom.workflows import winner
from netloom.workflows.interruption import how_to_go_on
from netloom.workflows.study import Study
from picture_folders import stripes, write_folder

PLAN = ExecutionPlan("cpu", 1, "float32")
QUICK: dict[str, Any] = {
    "filters": [4],
    "batch_size": 8,
    "epochs": 4,
    "augmentation": None,
    "schedule": {"kind": "cosine"},
    "early_stopping": {"patience": 3},
    "precision": "float32",
    "shards": 0,
    "learning_rate": 1e-2,
}
BOTH = "train+validation"


def search(source: Any, out: Path, **changes: Any) -> Study:
    options = {"space": {"learning_rate": "1e-3..3e-2:log"}, "sampler": "random", "pruner": "none", "n_trials": 3}
    given = {"final_seeds": 2, "final_on": BOTH, "jobs": 1, "settings": QUICK, **options, **changes}
    return netloom.tune(source, plan=PLAN, out=out, quiet=True, **given)


@pytest.fixture(scope="module")
def study(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Study:
    return search(photos, tmp_path_factory.mktemp("both"))


def winner_of(study: Study) -> dict[str, Any]:
    return study.trials[study.result["best"]["number"]]


def test_the_winner_trains_on_both_parts_for_the_epochs_that_its_trial_kept(study: Study) -> None:
    searched, kept = RunFolder(study.path).split, winner_of(study)["kept_epoch"]
    assert len(study.result["trials"]) == 3
    runs = sorted(study.path.glob("*-final/seed-*"))
    assert [path.name for path in runs] == ["seed-1", "seed-2"]
    for path in runs:
        run = netloom.load(path)
        assert sorted(run.split["train"]) == sorted([*searched["train"], *searched["validation"]])
        assert (run.split["validation"], run.split["test"]) == ([], searched["test"])
        assert (run.recipe.epochs, run.recipe.keep, run.recipe.early_stopping) == (kept, "last", None)
        assert (run.result["kept_epoch"], run.result["tests"], run.result["stop_reason"]) == (kept, 1, None)
        assert "validation_loss" not in run.history[0]
    # The recipe that is handed out is that of the search, for trainings with a validation part.
    assert (study.best_recipe.epochs, study.best_recipe.keep) == (4, "best")
    assert netloom.load_recipe(study.path / "best.yaml").early_stopping is not None


def test_it_is_what_train_gives_on_these_parts(study: Study, photos: Path, tmp_path: Path) -> None:
    """Reference: `netloom.train` on pictures whose parts are given so, with the same keys."""
    assert study.run is not None
    split = study.run.split
    loaded = load_image_set(open_source(photos), image_size=study.run.data.image_size, resize="stretch", channels=3)
    part = dict.fromkeys(split["train"], "train") | dict.fromkeys(split["test"], "test")
    pictures = replace(loaded.image_set, splits=tuple(part[name] for name in loaded.image_set.ids))
    recipe = study.best_recipe.replace(
        epochs=winner_of(study)["kept_epoch"], keep="last", early_stopping=None, validation_fraction=0, seed=1
    )
    run = netloom.train(pictures, recipe, plan=PLAN, out=tmp_path, quiet=True)
    assert [row["train_loss"] for row in run.history] == [row["train_loss"] for row in study.run.history]
    assert run.result["test"]["log_loss"] == study.run.result["test"]["log_loss"]


def test_the_study_says_on_what_and_how_long(study: Study, photos: Path, tmp_path: Path) -> None:
    kept = winner_of(study)["kept_epoch"]
    assert study.result["final"] == {"on": BOTH, "train_n": 48, "epochs": kept}
    assert study.result["fresh"] is None
    assert study.result["test_over_seeds"]["n"] == 2
    text = " ".join(Page((study.path / "report.html").read_text(encoding="utf-8")).text)
    assert f"trained anew on 48 pictures, of training and validation part together, for {kept} epoch" in text
    plain = [f"--set={key}={json.dumps(value)}" for key, value in {**QUICK, "epochs": 2}.items()]
    command = ["tune", str(photos), "--space", "dropout=0..0.5", "--trials", "2", "--jobs", "1", "--sampler", "random"]
    options = ["--final-on", BOTH, "--final-seeds", "1", "--pruner", "none", "--out", str(tmp_path)]
    result = CliRunner().invoke(app, [*command, *options, *plain])
    assert result.exit_code == 0, result.output
    assert "on 48 pictures, of training and validation part together, for " in result.stderr
    assert "Nothing is left to validate on" in result.stderr


def test_no_command_is_said_to_give_a_winner_of_both_parts_again(study: Study) -> None:
    """`train` with its recipe would set a validation part aside."""
    assert study.run is not None
    page = (study.run.path / "report.html").read_text(encoding="utf-8").partition('id="made"')[2]
    assert "How to get the same again" in page
    assert "<code>netloom" not in page
    assert "netloom train" not in page
    assert "--final-on train+validation" in page


def test_a_length_that_differs_changes_what_depends_on_it(study: Study, tmp_path: Path, photos: Path) -> None:
    """A schedule over the epochs is recomputed for those that are trained, so that it ends at its end."""
    assert study.run is not None
    last = study.run.history[-1]["learning_rate"]
    assert last < 0.5 * study.best_recipe.learning_rate or study.run.recipe.epochs == 1


def test_a_warm_up_that_is_longer_than_what_was_kept_ends_with_it(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(winner, "_kept_epochs", lambda best: 2)
    settings = {**QUICK, "schedule": {"kind": "constant", "warmup_epochs": 3}}
    study = search(photos, tmp_path, n_trials=1, final_seeds=1, settings=settings)
    assert study.run is not None
    kept = study.run.recipe
    assert kept.schedule is not None
    assert kept.schedule.warmup_epochs == kept.epochs == 2


def test_of_folds_the_median_tells_how_long(photos: Path, tmp_path: Path) -> None:
    study = search(photos, tmp_path, cv=3, n_trials=2, final_seeds=1)
    folder = study.path / "trials" / f"trial-{study.result['best']['number']:04d}"
    state = json.loads((folder / "trial.json").read_text(encoding="utf-8"))
    kept = [score["kept_epoch"] for score in state["scores"]]
    assert state["outcome"]["kept_epochs"] == kept
    assert len(kept) == 3
    assert study.result["final"]["epochs"] == max(1, round(statistics.median(kept)))
    assert study.result["final"]["train_n"] == 48


def test_a_finished_search_takes_the_other_choice_without_searching_anew(photos: Path, tmp_path: Path) -> None:
    first = search(photos, tmp_path, final_on="train", final_seeds=1)
    assert first.result["final"]["on"] == "train"
    assert first.result["fresh"]["n"] == 1
    result = CliRunner().invoke(app, ["tune", "--resume", str(first.path), "--final-on", BOTH, "--json", "--quiet"])
    assert result.exit_code == 0, result.output
    second = json.loads(result.stdout)
    assert second["trials"] == first.result["trials"]
    assert (second["final"]["on"], second["final"]["train_n"]) == (BOTH, 48)
    assert second["final_run"] != first.result["final_run"]
    assert second["earlier_winners"] == 1  # whose test the choice may have been made by
    again = netloom.resume_tune(first.path, jobs=1, quiet=True)
    assert again.result["final_run"] == second["final_run"]
    assert netloom.load(second["final_run"]).result["tests"] == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"final_on": "everything"}, "--final-on is 'everything'; expected train or train\\+validation"),
        ({"final_seeds": 0}, "--final-seeds 0 trains none"),
        ({"settings": {**QUICK, "per_class": 4}}, "not on 4 pictures of each class"),
        ({"settings": {**QUICK, "reduce_on_plateau": {}}}, "which reduce_on_plateau \\(validation_loss\\) would watch"),
        (
            {"cv": 2, "settings": {**QUICK, "validation_fraction": 0, "keep": "last", "early_stopping": None}},
            "needs a validation part to add",
        ),
    ],
)
def test_what_cannot_be_is_refused_before_the_search(
    photos: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        search(photos, tmp_path / "none", **changes)
    assert not (tmp_path / "none").exists()


def test_a_winner_that_cannot_be_trained_so_leaves_the_search_whole(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"reduce_on_plateau \(validation_loss\) would watch.* --final-on train"):
        search(photos, tmp_path, space={"reduce_on_plateau.factor": [0.5]}, sampler="grid", n_trials=1)
    (folder,) = tmp_path.iterdir()
    study = netloom.resume_tune(folder, final_on="train", jobs=1, quiet=True)
    assert study.result["final"]["on"] == "train"
    assert len(study.trials) == 1


def test_what_to_do_after_an_interruption_fits_what_was_given() -> None:
    command, call = "netloom tune --resume runs/a", "netloom.resume_tune('runs/a'"
    assert how_to_go_on(command, call, in_memory=False, model=None) == command
    assert how_to_go_on(command, call, in_memory=True, model=None) == f"{call}, source=image_set)"
    assert how_to_go_on(command, call, in_memory=False, model=write_folder) == f"{call}, model=model)"
    both = how_to_go_on(command, call, in_memory=True, model=write_folder)
    assert both == f"{call}, source=image_set, model=model)"


def test_a_search_in_memory_tells_a_call_that_works(tmp_path: Path) -> None:
    pixels = np.stack([stripes(i % 3, i) for i in range(60)])
    pictures = netloom.ImageSet.from_arrays(pixels, np.arange(60) % 3, class_names=("across", "down", "plain"))
    with pytest.raises(TrainingError) as told:
        search(pictures, tmp_path, space={"reduce_on_plateau.factor": [0.5]}, sampler="grid", n_trials=1)
    (folder,) = tmp_path.iterdir()
    call = f"netloom.resume_tune({str(folder)!r}, jobs=1, final_on='train', source=image_set)"
    assert str(told.value).endswith(f"go on with: {call}")
    study = eval(call, {"netloom": netloom, "image_set": pictures})  # noqa: S307 - the very words that were told
    assert study.run is not None
