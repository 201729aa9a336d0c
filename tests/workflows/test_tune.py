from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from sklearn.metrics import balanced_accuracy_score
from typer.testing import CliRunner

import netloom
from html_page import Page
from netloom.cli import app
from netloom.data.folds import Scheme, make_folds
from netloom.data.imageset import ImageSet
from netloom.data.splits import Split
from netloom.errors import NetloomError, RecipeError, RunError, TrainingError
from netloom.metrics.intervals import wilson_interval
from netloom.recipe import Recipe
from netloom.report.axes import number_text
from netloom.report.wording import percent
from netloom.run import RunFolder
from netloom.runtime import ExecutionPlan
from netloom.workflows.builders import split_options
from netloom.workflows.study import Study
from parallel import work
from picture_folders import stripes, write_folder

PLAN = ExecutionPlan("cpu", 1, "float32")
QUICK: dict[str, Any] = {
    "filters": [4],
    "batch_size": 8,
    "epochs": 2,
    "dropout": 0.2,
    "augmentation": None,
    "schedule": None,
    "early_stopping": None,
    "precision": "float32",
    "optimizer": "adam",
    "learning_rate": 1e-2,
}
RATE = QUICK["learning_rate"]
SPACE = {"learning_rate": "1e-3..1e-1:log", "dropout": "0..0.5", "optimizer": "adam,sgd"}


def search(source: Any, out: Path, **changes: Any) -> Study:
    options = {"space": SPACE, "sampler": "random", "pruner": "none", "n_trials": 4, "final_seeds": 0, "jobs": 1}
    given: dict[str, Any] = {**options, "settings": QUICK, "quiet": True, **changes}
    return netloom.tune(source, plan=PLAN, out=out, **given)


def without_network(settings: dict[str, Any]) -> dict[str, Any]:
    """The same for another network."""
    return {key: value for key, value in settings.items() if key not in ("filters", "dropout")}


def table(study: Study) -> list[tuple[Any, ...]]:
    return [(t["number"], t["state"], t["value"], t["overrides"], t["epochs"], t["values"]) for t in study.trials]


@pytest.fixture(scope="module")
def study(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Study:
    """Four random trials and two trainings of the winner, one after the other."""
    return search(photos, tmp_path_factory.mktemp("one by one"), final_seeds=2)


def test_trials_at_once_are_those_of_one_after_the_other(study: Study, photos: Path, tmp_path: Path) -> None:
    at_once = search(photos, tmp_path, jobs=2)
    assert at_once.result["jobs"] == 2
    assert sorted(table(at_once), key=lambda row: row[0]) == table(study)


def test_the_first_trial_is_the_recipe_itself(study: Study) -> None:
    first = study.trials[0]
    assert first["from"] == "recipe"
    assert first["overrides"] == {"learning_rate": RATE, "dropout": 0.2, "optimizer": "adam"}


def test_a_trial_is_what_train_gives_with_its_values(study: Study, photos: Path, tmp_path: Path) -> None:
    trial = study.trials[2]
    run = netloom.train(photos, plan=PLAN, out=tmp_path, quiet=True, settings={**QUICK, **trial["overrides"]})
    assert [row["validation_accuracy"] for row in run.history] == trial["values"]
    kept = run.history[run.result["kept_epoch"] - 1]
    assert kept["validation_accuracy"] == trial["value"]
    assert run.result["parameters"] == trial["parameters"]


def test_the_best_is_the_best_and_its_recipe_trains(study: Study, photos: Path, tmp_path: Path) -> None:
    values = [t["value"] for t in study.trials]
    assert study.best_value == max(values)
    assert study.best_overrides == study.trials[values.index(max(values))]["overrides"]
    written = yaml.safe_load((study.path / "best.yaml").read_text(encoding="utf-8"))
    assert written["learning_rate"] == study.best_overrides["learning_rate"]
    run = netloom.train(photos, study.path / "best.yaml", plan=PLAN, out=tmp_path, quiet=True)
    best = next(t for t in study.trials if t["number"] == study.result["best"]["number"])
    assert [row["validation_accuracy"] for row in run.history] == best["values"]


def test_the_winner_is_trained_with_fresh_seeds_and_each_training_tested_once(study: Study) -> None:
    assert study.run is not None
    fresh, result = study.result["fresh"], study.result
    assert fresh["seeds"] == [1, 2]
    assert study.run.recipe.seed == 1
    assert study.run.result["tests"] == 1
    assert result["test"]["accuracy"] == study.run.result["test"]["accuracy"]
    assert result["test"]["n"] == 12
    assert result["test_over_seeds"]["n"] == 2
    folders = sorted(study.path.glob("*-final/seed-*"))
    assert [netloom.load(f).result["tests"] for f in folders] == [1, 1]
    assert fresh["mean"] == pytest.approx(np.mean(fresh["values"]))
    assert study.run.recipe.learning_rate == study.best_overrides["learning_rate"]
    picture = Path(study.run.data.source_location) / study.run.split["test"][0]
    assert len(netloom.load(study.run.path).predict([picture])) == 1


def test_no_trial_sees_the_test_part(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pixels of the test part are changed beyond recognition: no trial's value moves."""
    names = ("across", "down", "plain")
    pixels = np.stack([stripes(i % 3, i) for i in range(60)])
    parts = ["train"] * 36 + ["validation"] * 12 + ["test"] * 12
    broken = pixels.copy()
    broken[48:] = 255 - broken[48:][:, ::-1]
    studies = [
        search(ImageSet.from_arrays(p, np.arange(60) % 3, class_names=names, splits=parts), tmp_path, n_trials=2)
        for p in (pixels, broken)
    ]
    assert table(studies[0]) == table(studies[1])
    assert studies[0].result["test"] is None


def test_the_report_and_the_figures_agree(study: Study) -> None:
    text = " ".join(Page((study.path / "report.html").read_text(encoding="utf-8")).text)
    assert percent(study.best_value) in text
    assert percent(study.result["test"]["accuracy"]) in text
    assert "learning_rate" in text
    written = json.loads((study.path / "tune.json").read_text(encoding="utf-8"))
    assert written["best"]["value"] == study.best_value
    assert written["n_trials"] == 4


def test_folds_score_a_trial_without_the_test_part(photos: Path, tmp_path: Path) -> None:
    found = search(photos, tmp_path, cv=3, n_trials=2, final_seeds=1)
    assert found.result["validation_n"] == 48
    assert found.result["best"]["interval"] is None  # the mean of three folds is no share of 48 pictures
    for trial in found.trials:
        assert len(trial["values"]) == 3
        assert trial["value"] == pytest.approx(np.mean(trial["values"]))
        assert trial["epochs"] == 6
    assert found.result["test"]["n"] == 12


def test_folds_that_the_search_has_not_seen_score_its_winner(tmp_path: Path) -> None:
    """Reference: the cross-validation of its recipe with the next seeds, on pictures with the same test part."""
    pixels = np.stack([stripes(i % 3, i) for i in range(60)])
    parts = ["train"] * 48 + ["test"] * 12
    pictures = ImageSet.from_arrays(pixels, np.arange(60) % 3, class_names=("across", "down", "plain"), splits=parts)
    found = search(pictures, tmp_path, objective="validation_loss", cv=2, n_trials=1, final_seeds=1)
    reference = netloom.cross_validate(
        pictures, found.best_recipe, folds=2, seed=1, split_seed=1, jobs=1, plan=PLAN, out=tmp_path, quiet=True
    )
    fresh = found.result["fresh"]
    assert fresh["values"] == pytest.approx(reference.scores.log_loss.values, rel=1e-9)
    assert fresh["values"] != pytest.approx(found.trials[0]["values"], rel=1e-3)
    assert (fresh["n"], fresh["folds"], fresh["held_out_n"], fresh["seeds"]) == (2, 2, 48, [1, 2])
    assert fresh["mean"] == pytest.approx(np.mean(fresh["values"]))
    assert fresh["test_per_train"] == pytest.approx(reference.scores.test_per_train)
    (folder,) = found.path.glob("*-fresh-folds")
    assert found.run is not None
    tested = set(found.run.split["test"])
    assert len(tested) == 12
    searched = [frozenset(split.test.tolist()) for split in drawn(pictures, seed=0)]
    for number, run in enumerate(map(netloom.load, sorted(folder.glob("fold-*"))), 1):
        seen = [name for part in ("train", "validation", "test") for name in run.split[part]]
        assert not tested & set(seen)
        assert frozenset(map(pictures.ids.index, run.split["test"])) not in searched
        assert run.recipe == found.best_recipe.replace(seed=number, split_seed=1)
        assert "A search chose this recipe by how it scores on these very pictures" in run.result["notes"][-1]
    text = " ".join(Page((found.path / "report.html").read_text(encoding="utf-8")).text)
    assert f"by 2 folds drawn anew, with fresh seeds, reached {number_text(fresh['mean'])} ±" in text


def drawn(pictures: ImageSet, *, seed: int) -> list[Split]:
    """The folds of a search over pictures whose parts are given."""
    options = split_options(Recipe(split_seed=seed), pictures)
    return [fold.split for fold in make_folds(Scheme(2), parts=pictures.splits, **options)]


@pytest.mark.usefixtures("fold_2_fails")
def test_fresh_folds_are_gone_on_with(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"could not be trained anew: fold-2: .*The search is whole; go on with"):
        search(photos, tmp_path, cv=2, n_trials=1, final_seeds=1)
    (folder,) = tmp_path.iterdir()
    (second,) = folder.glob("*-fresh-folds/fold-2")
    (second / "checkpoint.safetensors").rmdir()

    def trained() -> dict[Path, int]:
        runs = map(netloom.load, [*folder.glob("*-final/seed-*"), *folder.glob("*-fresh-folds/fold-*")])
        done = [run.weights_path for run in runs if run.result["status"] == "finished"]
        return {path: path.stat().st_mtime_ns for path in done}

    before = trained()
    found = netloom.resume_tune(folder, jobs=1, quiet=True)
    after = trained()
    assert len(before) == 2  # the winner's, and the first fold's
    assert {path: after[path] for path in before} == before
    assert after.keys() - before.keys() == {second / "weights.safetensors"}
    assert found.result["fresh"]["n"] == 2
    words = Page((second / "report.html").read_text(encoding="utf-8")).words
    assert "A search chose this recipe by how it scores on these very pictures" in words
    assert "in any choice" not in words
    assert "netloom cv" not in words  # it would hold out pictures of the test part, too
    again = netloom.resume_tune(folder, jobs=1, quiet=True)
    assert trained() == after
    assert again.result["fresh"] == found.result["fresh"]


def test_the_best_of_pictures_in_groups_has_no_interval_of_independent_ones(study: Study, tmp_path: Path) -> None:
    n = study.result["validation_n"]
    assert study.result["best"]["interval"] == list(wilson_interval(round(study.best_value * n), n))
    assert study.result["validation_groups"] is None
    images = ImageSet.from_arrays(
        np.stack([stripes(i % 3, i) for i in range(60)]),
        np.arange(60) % 3,
        class_names=("across", "down", "plain"),
        groups=[f"{i % 3} {i // 12}" for i in range(60)],
    )
    found = search(images, tmp_path, n_trials=1, final_seeds=1)
    result = found.result
    assert result["best"]["interval"] is None
    assert result["validation_groups"] == 3
    assert result["test"]["groups"] == 3
    page = " ".join(Page((found.path / "report.html").read_text(encoding="utf-8")).text)
    assert f"{result['test']['n']} test pictures of 3 groups" in page
    assert found.run is not None
    assert len(np.unique(found.run.pictures["validation_groups"])) == 3


def test_loss_is_minimized(photos: Path, tmp_path: Path) -> None:
    found = search(photos, tmp_path, objective="validation_loss", n_trials=3)
    assert found.result["direction"] == "minimize"
    assert found.best_value == min(t["value"] for t in found.trials)


def test_macro_f1_is_that_of_the_weights_that_a_training_keeps(photos: Path, tmp_path: Path) -> None:
    """Reference: the same training, evaluated on its validation part."""
    found = search(photos, tmp_path, objective="validation_macro_f1", n_trials=2, final_seeds=1)
    trial = found.trials[1]
    run = netloom.train(photos, plan=PLAN, out=tmp_path, quiet=True, settings={**QUICK, **trial["overrides"]})
    assert trial["value"] == pytest.approx(netloom.evaluate(run, part="validation")["macro_f1"], abs=1e-12)
    assert len(trial["values"]) == 2
    assert found.result["direction"] == "maximize"
    assert found.best_value == max(t["value"] for t in found.trials)
    assert found.run is not None
    fresh = netloom.evaluate(found.run, part="validation")["macro_f1"]
    assert found.result["fresh"]["values"] == pytest.approx([fresh], abs=1e-12)
    assert "validation macro F1" in (found.path / "report.html").read_text(encoding="utf-8")


def test_folds_can_be_scored_by_balanced_accuracy(photos: Path, tmp_path: Path) -> None:
    found = search(photos, tmp_path, objective="validation_balanced_accuracy", cv=2, n_trials=1, final_seeds=1)
    trial = found.trials[0]
    expected = []
    for path in sorted(found.path.glob("*-fresh-folds/fold-*")):
        probabilities, targets = netloom.load(path).test_predictions()
        expected.append(balanced_accuracy_score(targets, probabilities.argmax(axis=1)))
    assert found.result["fresh"]["values"] == pytest.approx(expected)
    assert trial["value"] == pytest.approx(np.mean(trial["values"]))
    assert all(0 <= value <= 1 for value in trial["values"])


def test_a_finished_search_can_be_extended(photos: Path, tmp_path: Path) -> None:
    short = search(photos, tmp_path / "short", n_trials=2)
    extended = netloom.resume_tune(short.path, n_trials=4, jobs=1, quiet=True)
    assert table(extended) == table(search(photos, tmp_path / "long", n_trials=4))
    assert extended.result["seconds"] > short.result["seconds"]
    again = netloom.resume_tune(short.path, jobs=1, quiet=True)
    assert table(again) == table(extended)


def test_a_finished_search_is_loaded_without_its_pictures(study: Study, tmp_path: Path) -> None:
    moved = shutil.copytree(study.path, tmp_path / "moved")
    loaded = netloom.load_study(moved)
    assert loaded.path == moved
    assert loaded.best_recipe == study.best_recipe
    assert loaded.best_overrides == study.best_overrides
    assert loaded.trials == study.trials
    assert loaded.run is not None
    assert study.run is not None
    assert loaded.run.path == moved / study.run.path.parent.name / study.run.path.name
    assert [run.recipe.seed for run in loaded.runs] == [1, 2]
    assert [run.path for run in study.runs] == [p.parent / f"seed-{i}" for i, p in enumerate([study.run.path] * 2, 1)]
    rows = loaded.table()
    assert [row["value"] for row in rows] == [t["value"] for t in study.trials]
    assert rows[0]["learning_rate"] == RATE
    (moved / "tune.json").unlink()
    with pytest.raises(RunError, match=r"no finished search.*--resume"):
        netloom.load_study(moved)
    (moved / "tune.json").write_text('{"best": {}}')
    with pytest.raises(RunError, match="damaged"):
        netloom.load_study(moved)


def test_a_search_whose_trials_all_fail_ends_early(photos: Path, tmp_path: Path) -> None:
    settings = {**QUICK, "optimizer": "sgd", "gradient_clip_norm": None}
    space = {"learning_rate": "9e5..1e6"}
    with pytest.raises(TrainingError, match=r"The first 5 trials failed for one reason: .*NaN.*--resume") as caught:
        search(photos, tmp_path, space=space, n_trials=40, settings=settings)
    assert caught.value.exit_code == 2
    (folder,) = tmp_path.iterdir()
    found = json.loads((folder / "tune.json").read_text(encoding="utf-8"))
    assert (len(found["trials"]), found["n_trials"], found["planned"]) == (5, 5, 40)
    assert "5 failed, of 40 planned" in Page((folder / "report.html").read_text(encoding="utf-8")).words


def test_resuming_a_finished_search_trains_nothing_again(study: Study) -> None:
    before = {f: f.stat().st_mtime_ns for f in study.path.glob("*-final/seed-*/weights.safetensors")}
    again = netloom.resume_tune(study.path, jobs=1, quiet=True)
    assert {f: f.stat().st_mtime_ns for f in study.path.glob("*-final/seed-*/weights.safetensors")} == before
    assert again.run is not None
    assert study.run is not None
    assert again.run.path == study.run.path
    assert len(before) == 2


def test_pruned_trials_end_early_and_say_so(photos: Path, tmp_path: Path) -> None:
    found = search(
        photos,
        tmp_path,
        pruner="median",
        n_trials=8,
        space={"learning_rate": [1e-2, 1.1e-2, 1.2e-2, 1.3e-2, 1e-9, 1e-8, 1e-7, 1e-6]},
        sampler="grid",
        settings={**QUICK, "epochs": 6, "dropout": 0.0},
    )
    pruned = [t for t in found.trials if t["state"] == "pruned"]
    assert pruned
    assert all(t["epochs"] < 6 and t["reason"] == "by the pruner" for t in pruned)
    assert all(t["overrides"]["learning_rate"] < 1e-5 for t in pruned)
    assert not list(found.path.glob("trials/*/checkpoint*"))
    assert found.best_overrides["learning_rate"] > 1e-3


def test_trials_that_fail_are_told_and_the_others_go_on(photos: Path, tmp_path: Path) -> None:
    found = search(
        photos,
        tmp_path,
        space={"learning_rate": [1e-2, 1e6], "momentum": [0.0, 0.9]},
        sampler="grid",
        settings={**QUICK, "optimizer": "sgd", "gradient_clip_norm": None},
    )
    states = {(t["overrides"]["learning_rate"], t["overrides"]["momentum"]): t for t in found.trials}
    assert states[1e-2, 0.9]["state"] == "complete"
    failed = [t for t in found.trials if t["state"] == "failed"]
    assert failed
    assert all(t["reason"] for t in failed)
    impossible = search(photos, tmp_path, space={"momentum": [0.0, 0.9]}, sampler="grid", n_trials=2)
    assert [t["state"] for t in impossible.trials] == ["complete", "failed"]
    assert "momentum" in impossible.trials[1]["reason"]


def test_if_all_fail_the_first_reason_is_told(photos: Path, tmp_path: Path) -> None:
    settings = {**QUICK, "optimizer": "sgd", "gradient_clip_norm": None}
    with pytest.raises(TrainingError, match=r"None of 2 trials was complete[\s\S]*became NaN"):
        search(photos, tmp_path, space={"learning_rate": [9e5, 1e6]}, sampler="grid", n_trials=2, settings=settings)


def test_a_space_without_recipes_is_refused_before_pictures_are_read(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"None of 20 random points[\s\S]*momentum: is for sgd and rmsprop"):
        search(tmp_path / "nowhere", tmp_path, space={"momentum": [0.5, 0.9]}, sampler="grid", n_trials=2)


def test_conditions_and_architectures(photos: Path, tmp_path: Path) -> None:
    found = search(
        photos,
        tmp_path,
        space=[
            "optimizer=adam,sgd",
            "momentum=0.5..0.9 if optimizer=sgd",
            "filters=4,4-8",
            "augmentation.rotation=0..20",
        ],
        n_trials=6,
    )
    for trial in found.trials:
        assert ("momentum" in trial["overrides"]) == (trial["overrides"]["optimizer"] == "sgd")
        assert trial["state"] == "complete"
    parameters = {str(t["overrides"]["filters"]): t["parameters"] for t in found.trials}
    assert len(set(parameters.values())) == len(parameters)


@pytest.mark.parametrize("jobs", [1, 2])
def test_the_size_of_the_pictures_can_be_searched_over(jobs: int, photos: Path, tmp_path: Path) -> None:
    found = search(
        photos,
        tmp_path / "study",
        space=["image_size=6,12", "color=rgb,grey", "input_scaling=standardize,unit"],
        sampler="grid",
        n_trials=8,
        final_seeds=1,
        jobs=jobs,
    )
    assert {t["state"] for t in found.trials} == {"complete"}
    assert found.trials[0]["from"] == "sampler"  # the recipe's colour is automatic, which is none of the choices
    trial = next(t for t in found.trials if t["overrides"]["image_size"] == 6 and t["overrides"]["color"] == "grey")
    run = netloom.train(photos, plan=PLAN, out=tmp_path, quiet=True, settings={**QUICK, **trial["overrides"]})
    assert [row["validation_accuracy"] for row in run.history] == trial["values"]
    assert found.run is not None
    assert found.run.data.image_size == (found.best_overrides["image_size"],) * 2
    assert found.run.data.channels == (1 if found.best_overrides["color"] == "grey" else 3)
    again = netloom.resume_tune(found.path, jobs=1, quiet=True)
    assert again.result["test"] == found.result["test"]
    more = netloom.resume_tune(found.path, n_trials=9, jobs=1, quiet=True)
    assert more.result["n_trials"] == 8  # there are no more combinations
    assert more.result["planned"] == 8


def test_the_recipes_own_size_is_the_first_trial(photos: Path, tmp_path: Path) -> None:
    found = search(photos, tmp_path, space=["image_size=6,12"], n_trials=1)
    assert found.trials[0]["from"] == "recipe"
    assert found.trials[0]["overrides"] == {"image_size": 12}


def test_the_best_of_an_earlier_study_are_tried_first(study: Study, photos: Path, tmp_path: Path) -> None:
    """Behind the recipe itself, whichever of them was the best."""
    ranked = sorted(study.trials, key=lambda t: -t["value"])
    others = [t["overrides"] for t in ranked if t["from"] != "recipe"]
    found = search(photos, tmp_path, warm_start=[study.path], n_trials=3)
    assert [t["from"] for t in found.trials] == ["recipe", *[f"study {study.path}"] * 2]
    assert [t["overrides"] for t in found.trials[1:]] == others[:2]


def test_test_pictures_that_chose_the_best_of_an_earlier_study_are_told(
    study: Study, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Known by their contents, whatever they are called now."""
    earlier = RunFolder(study.path).split
    moved = shutil.copytree(photos, tmp_path / "moved")
    for path in sorted(moved.rglob("*.png")):
        path.rename(path.with_name(f"moved-{path.name}"))
    other = {**QUICK, "split_seed": 7}
    found = search(
        moved,
        tmp_path,
        warm_start=study.path,
        n_trials=2,
        final_seeds=1,
        settings=other,
        quiet=False,
        space={"dropout": "0..0.5"},
    )
    assert found.run is not None
    test = {name.replace("moved-", "") for name in found.run.split["test"]}
    n = len(test & {*earlier["train"], *earlier["validation"]})
    assert 0 < n < len(test)
    note = (
        f"{n} of the {len(test)} pictures of the test part trained or validated trials of the study {study.path}, "
        "whose best values are tried first: figures on them may flatter."
    )
    assert found.result["test_notes"] == [note]
    assert found.run.result["test_notes"] == [note]
    told = capsys.readouterr().err
    assert f"  note: {note}\n" in told
    assert note in told.rpartition("Right on ")[2]
    assert note in Page((found.path / "report.html").read_text(encoding="utf-8")).words


def test_an_earlier_study_that_does_not_know_its_pictures_says_so(study: Study, photos: Path, tmp_path: Path) -> None:
    """Where the source is the same, their names tell."""
    earlier = RunFolder(study.path).split
    old = shutil.copytree(study.path, tmp_path / "old")
    (old / "pictures.safetensors").unlink()
    fewer: dict[str, Any] = {"n_trials": 1, "space": {"dropout": "0..0.5"}, "warm_start": old}
    assert search(photos, tmp_path, **fewer).result["test_notes"] == []
    drawn_anew = search(photos, tmp_path, **fewer, settings={**QUICK, "split_seed": 7})
    test = RunFolder(drawn_anew.path).split["test"]
    n = len({*test} & {*earlier["train"], *earlier["validation"]})
    (note,) = drawn_anew.result["test_notes"]
    assert note.startswith(f"{n} of the {len(test)} pictures of the test part trained or validated trials of the study")
    other = write_folder(tmp_path / "other", side=14)
    (note,) = search(other, tmp_path, **fewer).result["test_notes"]
    assert note.startswith("It is not known whether pictures of the test part trained or validated trials of the study")
    assert search(other, tmp_path, **{**fewer, "warm_start": study.path}).result["test_notes"] == []


def test_what_is_tried_first_may_be_one_alone(study: Study, photos: Path, tmp_path: Path) -> None:
    found = search(photos, tmp_path, first={"dropout": 0.3}, warm_start=str(study.path), n_trials=3)
    assert [t["from"] for t in found.trials] == ["recipe", "user", f"study {study.path}"]
    assert found.trials[1]["overrides"] == {**found.trials[0]["overrides"], "dropout": 0.3}


def test_the_space_is_the_third_argument(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="Did you mean 'dropout'"):
        netloom.tune(tmp_path / "nowhere", None, {"dropuot": "0..1"}, quiet=True)


def test_a_function_of_the_users_own_makes_the_network(photos: Path, tmp_path: Path) -> None:
    found = search(
        photos,
        tmp_path,
        model=work.small_network,
        space={"learning_rate": "1e-3..1e-1:log"},
        settings=without_network(QUICK),
        n_trials=2,
        final_seeds=1,
    )
    assert found.result["test"]["n"] == 12
    assert {t["state"] for t in found.trials} == {"complete"}


def test_a_time_limit_ends_the_search(photos: Path, tmp_path: Path) -> None:
    found = search(photos, tmp_path, n_trials=None, time_limit=1.5)
    assert found.result["n_trials"] >= 1
    assert found.result["planned"] is None
    assert {t["state"] for t in found.trials} <= {"complete", "pruned"}
    assert all(t["reason"].startswith("time limit") for t in found.trials if t["state"] == "pruned")


@pytest.mark.parametrize("n_trials", [5, pytest.param(30, marks=pytest.mark.slow)])  # 30 take 10 to 15 s
def test_shuffled_labels_leave_the_tested_winner_at_chance(n_trials: int, tmp_path: Path) -> None:
    """Networks that learn noise by heart: the best of them is good in validation, and right in every second test.

    Few pictures validate and many test, so that a search which looked at the test part would find none so good: chance
    has a standard deviation of 0.08 there, and of 0.025 here.
    """
    n = {"train": 60, "validation": 40, "test": 400}
    generator = np.random.default_rng(7)
    labels = generator.permutation(np.repeat([0, 1], sum(n.values()) // 2))
    pictures = ImageSet.from_arrays(
        generator.integers(0, 255, (len(labels), 8, 8, 3), dtype=np.uint8),
        labels,
        class_names=("a", "b"),
        splits=[part for part, size in n.items() for _ in range(size)],
    )
    found = search(
        pictures,
        tmp_path,
        space={"learning_rate": "3e-3..3e-2:log", "dense_units": [str(width) for width in range(32, 66, 2)]},
        n_trials=n_trials,
        final_seeds=1,
        settings={**without_network(QUICK), "model": "mlp", "epochs": 14, "batch_size": 20, "keep": "last"},
    )
    assert found.run is not None
    assert found.run.history[-1]["train_accuracy"] > 0.95
    assert len(found.trials) == n_trials
    assert found.best_value > 0.56
    assert found.result["test"]["n"] == n["test"]
    assert abs(found.result["test"]["accuracy"] - 0.5) < 3 * math.sqrt(0.25 / n["test"])


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"sampler": "rndom"}, RecipeError, "Did you mean 'random'"),
        ({"pruner": "medain"}, RecipeError, "Did you mean 'median'"),
        ({"objective": "accuracy"}, RecipeError, "validation_accuracy, validation_loss, validation_macro_f1"),
        ({"n_trials": 0}, RecipeError, "--trials must be a whole number of at least 1"),
        ({"cv": 1}, RecipeError, "--cv must be a whole number of at least 2"),
        ({"cv": 40}, NetloomError, "fold"),
        ({"cv": 2.5}, RecipeError, "--cv must be a whole number"),
        ({"sampler": "grid", "space": {"learning_rate": "0.1..1:step=1e-7"}}, RecipeError, "9,000,001 combinations"),
        ({"sampler": "cmaes", "space": {"dropout": "0..0.5"}}, RecipeError, "two ranges"),
        ({"time_limit": "soon"}, RecipeError, "no duration"),
        ({"space": {"dropuot": "0..1"}}, RecipeError, "Did you mean 'dropout'"),
        ({"warm_start": ["nowhere"]}, RunError, "no finished study"),
        ({"warm_start": "nowhere"}, RunError, "nowhere is no finished study"),
        ({"warm_start": 3}, RunError, "folders of earlier studies, not int"),
        ({"first": "dropout=0.3"}, RecipeError, "such as {'dropout': 0.3}, or a list of such, not 'drop"),
        ({"first": [0.3]}, RecipeError, "or a list of such, not 0.3"),
        ({"storage": "nonsense"}, NetloomError, "no database URL"),
        ({"storage": "sqlite://"}, NetloomError, "needs a file"),
        ({"storage": "nosuchdb://host/x"}, NetloomError, "cannot be used"),
    ],
)
def test_mistakes_are_told_and_leave_nothing_behind(
    options: dict[str, Any], error: type[NetloomError], words: str, photos: Path, tmp_path: Path
) -> None:
    with pytest.raises(error) as caught:
        search(photos, tmp_path / "out", **options)
    assert words in str(caught.value)
    assert not list(tmp_path.glob("out/*"))


@pytest.mark.parametrize("name", ["why?", "{new}", "50% #1", "가 나"])
def test_folders_of_any_name_hold_studies(name: str, photos: Path, tmp_path: Path) -> None:
    found = search(photos, tmp_path / name, n_trials=1)
    assert (found.path / "study.db").is_file()
    assert table(netloom.resume_tune(found.path, n_trials=2, jobs=1, quiet=True))[0] == table(found)[0]
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_numbers_of_numpy_are_numbers(photos: Path, tmp_path: Path) -> None:
    found = search(photos, tmp_path, n_trials=np.int64(1), final_seeds=np.int64(0))
    assert netloom.resume_tune(found.path, n_trials=np.int64(2), jobs=1, quiet=True).result["n_trials"] == 2


def test_a_typo_when_resuming_leaves_the_study_free(study: Study) -> None:
    with pytest.raises(NetloomError, match="jobs must be"):
        netloom.resume_tune(study.path, jobs="x", quiet=True)
    assert table(netloom.resume_tune(study.path, jobs=1, quiet=True)) == table(study)


def test_a_search_limited_by_time_is_not_begun_again_by_resuming(photos: Path, tmp_path: Path) -> None:
    found = search(photos, tmp_path, n_trials=None, time_limit=0.5)
    again = netloom.resume_tune(found.path, jobs=1, quiet=True)
    assert again.result["n_trials"] == found.result["n_trials"]
    assert again.result["seconds"] == found.result["seconds"]
    more = netloom.resume_tune(found.path, time_limit=0.5, jobs=1, quiet=True)
    assert more.result["n_trials"] > found.result["n_trials"]


def test_a_second_winner_says_that_the_test_part_was_met_before(photos: Path, tmp_path: Path) -> None:
    rates = {"space": {"learning_rate": [1e-7, 1e-2]}, "sampler": "grid", "final_seeds": 1}
    first = search(photos, tmp_path, n_trials=1, **rates, settings={**QUICK, "learning_rate": 1e-7})
    assert first.result["earlier_winners"] == 0
    second = netloom.resume_tune(first.path, n_trials=2, jobs=1, quiet=True)
    assert second.best_overrides != first.best_overrides
    assert second.result["earlier_winners"] == 1
    assert "1 earlier winner" in " ".join(Page((second.path / "report.html").read_text(encoding="utf-8")).text)


def test_a_damaged_study_is_told(study: Study, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"no study\.json"):
        netloom.resume_tune(tmp_path, quiet=True)
    (tmp_path / "study.json").write_text('{"kind": "study"}', encoding="utf-8")
    with pytest.raises(RunError, match="damaged"):
        netloom.resume_tune(tmp_path, quiet=True)


def test_the_command_line(photos: Path, tmp_path: Path) -> None:
    settings = [item for key, value in QUICK.items() for item in ("--set", f"{key}={json.dumps(value)}")]
    arguments = [
        *("tune", str(photos), "--space", "dropout=0..0.5", "--space", "learning_rate=1e-3..1e-1:log"),
        *("--sampler", "gp", "--init-points", "2", "--pruner", "asha", "--trials", "3", "--jobs", "1"),
        *("--final-seeds", "1", "--out", str(tmp_path), "--json", "--quiet"),
    ]
    answer = CliRunner().invoke(app, [*arguments, *settings])
    assert answer.exit_code == 0, answer.output
    found = json.loads(answer.stdout)
    assert found["n_trials"] == 3
    assert set(found["best"]["overrides"]) == {"dropout", "learning_rate"}
    assert found["test"]["n"] == 12
    assert Path(found["study"]).is_dir()
    assert found["seconds"] > 0
    more = CliRunner().invoke(app, ["tune", "--resume", found["study"], "--trials", "4", "--jobs", "1"])
    assert more.exit_code == 0, more.output
    assert "| trial |" in more.stderr
    assert "best.yaml" in more.stderr
    for option in (["--space", "dropout=0..0.1"], ["--sampler", "tpe"], ["--pruner", "none"], ["--out", "x"]):
        wrong = CliRunner().invoke(app, ["tune", "--resume", found["study"], *option])
        assert wrong.exit_code == 2
        assert "besides it only" in wrong.stderr
    nothing = CliRunner().invoke(app, ["tune"])
    assert nothing.exit_code == 2
    assert "Say what to search on" in nothing.stderr
