"""Training without a validation part: history, callbacks, run and pages have no columns of it; monitors are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import netloom
from netloom.cli import app
from netloom.errors import RecipeError, RunError, TrainingError
from netloom.runtime import ExecutionPlan
from netloom.sklearn import ImageClassifier
from netloom.training.callbacks import Callback, EarlyStopping
from netloom.training.state import TrainingState
from netloom.workflows.seeds import train_seeds
from picture_folders import stripes, write_folder

PLAN = ExecutionPlan("cpu", 1, "float32")
QUICK: dict[str, Any] = {
    "filters": [4],
    "batch_size": 8,
    "epochs": 4,
    "augmentation": None,
    "schedule": None,
    "early_stopping": None,
    "precision": "float32",
    "shards": 0,
    "keep": "last",
    "validation_fraction": 0,
}
SET = [part for key, value in QUICK.items() for part in ("--set", f"{key}={json.dumps(value)}")]
COLUMNS = {"epoch", "train_loss", "train_accuracy", "learning_rate", "seconds", "images_per_second"}


@pytest.fixture(scope="module")
def run(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> netloom.Run:
    return netloom.train(photos, plan=PLAN, out=tmp_path_factory.mktemp("runs"), quiet=True, settings=QUICK)


def test_all_that_does_not_test_trains_and_nothing_is_measured_on_it(run: netloom.Run, photos: Path) -> None:
    assert (len(run.split["train"]), run.split["validation"], len(run.split["test"])) == (48, [], 12)
    assert [set(row) for row in run.history] == [COLUMNS] * 4
    assert "validation" not in run.metrics_path.read_text(encoding="utf-8")
    assert (run.result["kept_epoch"], run.result["status"], run.result["tests"]) == (4, "finished", 1)
    assert "validation" not in run.result
    assert run.evaluate(part="train")["n"] == 48
    with pytest.raises(RunError, match="has no validation part: it was trained without one"):
        run.evaluate(part="validation")


def test_validation_changes_nothing_of_the_training_itself(photos: Path, tmp_path: Path) -> None:
    """Reference: the same training part with a validation part, which `keep: last` looks at only."""
    parts = ("train", "validation", "test")
    given = write_folder(tmp_path / "given", parts=parts, per_class=8)
    with_part = netloom.train(given, plan=PLAN, out=tmp_path, quiet=True, settings=QUICK)
    assert "validation_loss" in with_part.history[0]
    pixels = np.stack([stripes(kind, kind * 10_000 + i) for kind in range(3) for i in range(8)])
    tested = np.stack([stripes(kind, (20 + kind) * 10_000 + i) for kind in range(3) for i in range(8)])
    without = netloom.train(
        netloom.ImageSet.from_arrays(
            np.concatenate([pixels, tested]),
            np.tile(np.repeat(np.arange(3), 8), 2),
            class_names=("across", "down", "plain"),
            splits=["train"] * 24 + ["test"] * 24,
        ),
        plan=PLAN,
        out=tmp_path,
        quiet=True,
        settings=QUICK,
    )
    assert [row["train_loss"] for row in without.history] == [row["train_loss"] for row in with_part.history]
    assert without.result["test"]["accuracy"] == with_part.result["test"]["accuracy"]


def test_the_page_and_the_terminal_speak_of_training_alone(run: netloom.Run, photos: Path, tmp_path: Path) -> None:
    page = run.report_path.read_text(encoding="utf-8")
    assert "Without a validation part nothing can be said about overfitting" in page
    assert '<th class="number">training loss</th>' in page
    assert '<th class="number">validation' not in page
    assert "</i>validation" not in page
    result = CliRunner().invoke(app, ["train", str(photos), *SET, "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert "48 to train, 0 to validate, 12 to test" in result.stderr
    assert "Epoch 1/4  loss " in result.stderr
    assert "validation loss" not in result.stderr
    assert "; no validation part (weights of epoch 4)" in result.stderr


def test_it_is_extended_as_any_other(run: netloom.Run, photos: Path, tmp_path: Path) -> None:
    short = netloom.train(photos, plan=PLAN, out=tmp_path, quiet=True, settings={**QUICK, "epochs": 2})
    longer = netloom.resume(short.path, epochs=4, quiet=True)
    assert [row["train_loss"] for row in longer.history] == [row["train_loss"] for row in run.history]


@pytest.mark.parametrize(
    ("changes", "named", "remedy"),
    [
        ({"keep": "best"}, "keep (validation_loss)", "--set keep=last,"),
        (
            {"keep": "best", "early_stopping": {"monitor": "validation_accuracy"}},
            "keep (validation_loss) and early_stopping (validation_accuracy)",
            "--set keep=last --set early_stopping=null,",
        ),
        ({"reduce_on_plateau": {}}, "reduce_on_plateau (validation_loss)", "--set reduce_on_plateau=null,"),
    ],
)
def test_what_watches_validation_is_refused_before_anything_is_made(
    photos: Path, tmp_path: Path, changes: dict[str, Any], named: str, remedy: str
) -> None:
    with pytest.raises(RecipeError) as refused:
        netloom.train(photos, out=tmp_path / "runs", quiet=True, settings={**QUICK, **changes})
    assert f"There is no validation part, which {named} would watch. Use {remedy}" in str(refused.value)
    with pytest.raises(RecipeError, match="no validation part"):
        train_seeds(photos, n_seeds=2, out=tmp_path / "runs", quiet=True, settings={**QUICK, **changes})
    assert not (tmp_path / "runs").exists()


def test_what_watches_training_is_not(photos: Path, tmp_path: Path) -> None:
    watching = {"keep": "best", "monitor": "train_loss", "early_stopping": {"monitor": "train_accuracy", "patience": 1}}
    run = netloom.train(photos, plan=PLAN, out=tmp_path, quiet=True, settings={**QUICK, **watching})
    losses = [row["train_loss"] for row in run.history]
    assert run.recipe.early_stopping is not None
    assert run.result["kept_epoch"] == 1 + int(np.argmin(losses))
    assert len(losses) >= 2


def test_a_callback_of_ones_own_that_watches_it_is_told(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"'validation_loss' is not in the history, .* There is no validation part"):
        netloom.train(photos, plan=PLAN, out=tmp_path, quiet=True, settings=QUICK, callbacks=[EarlyStopping()])


def test_hooks_of_validation_are_not_called(photos: Path, tmp_path: Path) -> None:
    class Hooks(Callback):
        def __init__(self) -> None:
            self.called: list[str] = []

        def on_validation_start(self, state: TrainingState) -> None:
            self.called.append("validation")

        def on_epoch_end(self, state: TrainingState) -> None:
            self.called.append(f"epoch, validates: {state.validates}")

    hooks = Hooks()
    netloom.train(photos, plan=PLAN, out=tmp_path, quiet=True, settings={**QUICK, "epochs": 2}, callbacks=[hooks])
    assert hooks.called == ["epoch, validates: False"] * 2


def test_event_files_have_no_run_of_validation(photos: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    run = netloom.train(photos, plan=PLAN, out=tmp_path, quiet=True, settings={**QUICK, "tensorboard": True})
    assert [path.name for path in run.tensorboard_path.iterdir()] == ["train"]


def test_seeds_folds_and_comparisons_do_without(run: netloom.Run, photos: Path, tmp_path: Path) -> None:
    quick = {**QUICK, "epochs": 1}
    summary = train_seeds(photos, n_seeds=2, jobs=1, plan=PLAN, out=tmp_path, quiet=True, settings=quick)
    assert (summary["test_n"], "validation_n" in summary) == (12, False)
    crossed = netloom.cross_validate(photos, folds=2, jobs=1, plan=PLAN, out=tmp_path, quiet=True, settings=quick)
    assert [(t["train_n"], t["validation_n"], t["test_n"]) for t in crossed.result["trainings"]] == [(30, 0, 30)] * 2
    assert "validation part carved out" not in (crossed.path / "report.html").read_text(encoding="utf-8")
    result = CliRunner().invoke(app, ["compare", str(run.path), str(crossed.runs[0].path)])
    assert result.exit_code == 0, result.output


def test_a_search_needs_folds_then(photos: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "space": {"dropout": "0..0.5"},
        "sampler": "random",
        "n_trials": 2,
        "final_seeds": 0,
        "jobs": 1,
        "plan": PLAN,
        "quiet": True,
        "settings": {**QUICK, "epochs": 1},
    }
    with pytest.raises(RecipeError, match="Trials are scored on the validation part, and there is none"):
        netloom.tune(photos, out=tmp_path / "none", **options)
    assert not (tmp_path / "none").exists()
    watching = {**options, "settings": {**QUICK, "keep": "best"}}
    with pytest.raises(RecipeError, match=r"no validation part, which keep \(validation_loss\) would watch"):
        netloom.tune(photos, out=tmp_path / "none", cv=2, **watching)
    assert not (tmp_path / "none").exists()
    study = netloom.tune(photos, out=tmp_path, cv=2, **options)
    assert [len(trial["values"]) for trial in study.trials] == [2, 2]


def test_the_estimator_trains_on_all_it_is_given() -> None:
    pixels = np.stack([stripes(i % 3, i) for i in range(60)])
    estimator = ImageClassifier(**QUICK).fit(pixels, np.arange(60) % 3)
    assert [set(row) for row in estimator.history_] == [COLUMNS] * 4
    assert estimator.kept_epoch_ == 4


@pytest.mark.parametrize("classifier", ["logistic", "knn"])
def test_a_classifier_that_is_solved_at_once_needs_no_validation_part(
    classifier: str, run: netloom.Run, photos: Path, tmp_path: Path
) -> None:
    """Nor `keep: last`: nothing is chosen by an epoch."""
    settings = {"validation_fraction": 0, "transfer.classifier": classifier}
    with_features = netloom.transfer(photos, run.path, out=tmp_path, plan=PLAN, quiet=True, settings=settings)
    assert with_features.recipe.keep == "best"
    result = with_features.result
    assert (result["status"], result["kept_epoch"], result["tests"]) == ("finished", 1, 1)
    assert "validation" not in result
    assert [set(row) for row in with_features.history] == [COLUMNS]


def test_the_estimator_solves_a_classifier_without_a_validation_part(run: netloom.Run) -> None:
    targets = np.arange(24) % 2
    pixels = np.stack([stripes(kind, number) for number, kind in enumerate(targets.tolist())])
    changes = {"model": "convnet", "filters": [4], "validation_fraction": 0.0, "input_scaling": "pretrained"}
    changes |= {"normalization": run.recipe.normalization, "transfer.weights": str(run.weights_path)}
    recipe = netloom.load_recipe("transfer-features", changes)
    fitted = ImageClassifier(recipe=recipe).fit(pixels, targets)
    assert (fitted.kept_epoch_, fitted.n_iter_) == (1, 1)
    assert fitted.score(pixels, targets) > 0.9
