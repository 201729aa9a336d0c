"""Which mode `transfer --mode auto` ends with, and why it says it stopped."""

from __future__ import annotations

import json
import math
import re
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import netloom
from html_page import Page
from netloom.errors import DataError, ModelError, RecipeError, RunError, TrainingError
from netloom.evaluation.cross_validation import FoldOutcome, summarize_folds
from netloom.metrics.intervals import resampled_mean_interval
from netloom.models.backbones import timm
from netloom.progress import Reporter
from netloom.runtime import ExecutionPlan
from netloom.training.callbacks import Callback
from netloom.workflows import transfer_auto
from netloom.workflows.fitting import Fitting
from netloom.workflows.interruption import BY_USER, listening
from netloom.workflows.prepare import prepare_data
from netloom.workflows.training_run import InterruptedTrainingError
from netloom.workflows.trainings import FailedTrainingsError, InterruptedTrainingsError
from picture_folders import write_folder

pytestmark = pytest.mark.usefixtures("one_thread")

NAME = "test_resnet"
QUICK: dict[str, Any] = {"image_size": 32, "epochs": 2, "batch_size": 16, "precision": "float32", "shards": 0}
# Accuracies of the five folds.
LOW = (0.80, 0.82, 0.78, 0.81, 0.79)
CLEARLY_BETTER = tuple(value + 0.1 for value in LOW)
NO_BETTER = (0.81, 0.80, 0.80, 0.80, 0.80)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / f"{NAME}.safetensors"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        save_file(timm().create_model(NAME, num_classes=0).state_dict(), path)
    return path


def fold_of(accuracy: float) -> FoldOutcome:
    """A hundred pictures that are held out, and four hundred that are not."""
    targets = np.arange(100) % 2
    answers = np.where(np.arange(100) < round(100 * accuracy), targets, 1 - targets)
    return FoldOutcome(np.eye(2, dtype=np.float32)[answers], targets, np.arange(400) % 2)


def auto(photos: Path, weights: Path, out: Path, **options: Any) -> netloom.Run:
    settings = {**QUICK, **options.pop("settings", {})}
    return netloom.transfer(
        photos, NAME, weights=weights, mode="auto", out=out, quiet=True, device="cpu", settings=settings, **options
    )


class CtrlC(Callback):
    """In the first epoch."""

    def on_batch_end(self, state: Any) -> None:
        signal.raise_signal(signal.SIGINT)


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Cross-validations whose accuracies are given, one after the other, and what they were given."""

    def script(*accuracies: Sequence[float], expected: float = 1.0) -> list[Any]:
        left, asked = list(accuracies), []

        def cross_validate(pictures: Any, recipe: Any, **options: Any) -> Any:
            asked.append((pictures, recipe, options))
            scores = summarize_folds([fold_of(accuracy) for accuracy in left.pop(0)], 2)
            return SimpleNamespace(scores=scores, result={"seconds": 1.0}, runs=[None] * 5, path=Path(options["name"]))

        monkeypatch.setattr(transfer_auto, "cross_validate", cross_validate)
        monkeypatch.setattr(transfer_auto, "expected_seconds", lambda *args, **options: expected)
        return asked

    return script


def test_climbs_as_long_as_the_gain_is_more_than_noise(
    photos: Path, weights: Path, tmp_path: Path, scripted: Any
) -> None:
    asked = scripted(LOW, CLEARLY_BETTER, [value - 0.01 for value in CLEARLY_BETTER])
    run = auto(photos, weights, tmp_path, unfreeze=1)
    told = run.result["transfer"]
    assert [step["mode"] for step in told["steps"]] == ["features", "frozen", "finetune"]
    assert told["chosen"] == "frozen"
    assert run.recipe.transfer is not None
    assert run.recipe.transfer.mode == "frozen"
    assert "finetune gains no more than noise over frozen" in told["reason"]
    assert told["steps"][1]["gain"] == pytest.approx(0.1)
    differences = np.array(CLEARLY_BETTER) - np.array(LOW)
    low, high = resampled_mean_interval(differences, test_per_train=0.25)
    # All folds gain 10 points to the picture; what is left is the luck of which 500 pictures there are.
    assert low == pytest.approx(high) == pytest.approx(0.1)
    low, high = told["steps"][1]["interval"]
    assert 0.07 < low < 0.08
    assert 0.12 < high < 0.13
    assert told["steps"][1]["p_value"] < 1e-10
    assert told == {**json.loads((Path(told["folder"]) / "transfer.json").read_text()), "folder": told["folder"]}
    assert [recipe.transfer.unfreeze for _, recipe, _ in asked] == ["all", "all", 1]


def test_stays_with_features_where_the_gain_may_be_luck(
    photos: Path, weights: Path, tmp_path: Path, scripted: Any
) -> None:
    asked = scripted(LOW, NO_BETTER)
    run = auto(photos, weights, tmp_path)
    told = run.result["transfer"]
    assert told["chosen"] == "features"
    assert told["reason"] == "frozen gains no more than noise over features"
    assert len(asked) == 2
    assert told["steps"][1]["interval"][0] < 0


def test_folds_that_gain_alike_are_not_taken_for_certainty(
    photos: Path, weights: Path, tmp_path: Path, scripted: Any
) -> None:
    """One picture of a hundred in each of five folds."""
    scripted(LOW, [value + 0.01 for value in LOW])
    told = auto(photos, weights, tmp_path).result["transfer"]
    assert told["chosen"] == "features"
    assert told["reason"] == "frozen gains no more than noise over features"
    assert told["steps"][1]["p_value"] == 0.0625


def test_a_last_training_that_is_cut_short_and_extended_still_tells_the_choice(
    photos: Path, weights: Path, tmp_path: Path, scripted: Any
) -> None:
    scripted(LOW, CLEARLY_BETTER, NO_BETTER)
    with pytest.raises(InterruptedTrainingError) as error:
        auto(photos, weights, tmp_path, callbacks=(CtrlC(),))
    path = error.value.run.path
    told = netloom.load(path).result["transfer"]
    assert (told["chosen"], told["reason"]) == ("frozen", "finetune gains no more than noise over frozen")
    for epochs in (None, 3):
        run = netloom.resume(path, epochs=epochs, quiet=True)
        assert (run.result["status"], run.result["transfer"]) == ("finished", told)
        text = Page(run.report_path.read_text(encoding="utf-8")).words
        assert "How the mode was chosen" in text
        assert f"Mode frozen was taken: {told['reason']}." in text
        assert "frozen 90.0% +10.0 points +7." in text


def test_what_the_page_says_of_the_choice_is_checked(
    photos: Path, weights: Path, tmp_path: Path, scripted: Any
) -> None:
    scripted(LOW, NO_BETTER)
    run = auto(photos, weights, tmp_path)
    choice = json.loads((run.path / "transfer.json").read_text(encoding="utf-8"))
    for broken in ([], {**choice, "steps": [{"mode": "features"}]}, {**choice, "notes": 3}):
        (run.path / "transfer.json").write_text(json.dumps(broken), encoding="utf-8")
        with pytest.raises(RunError, match=r"transfer\.json is damaged"):
            _ = netloom.load(run.path).mode_choice


def test_all_folds_leave_the_test_part_alone(photos: Path, weights: Path, tmp_path: Path, scripted: Any) -> None:
    asked = scripted(LOW, NO_BETTER)
    run = auto(photos, weights, tmp_path)
    for pictures, recipe, _ in asked:
        marked = {name for name, part in zip(pictures.ids, pictures.splits, strict=True) if part == "test"}
        assert marked == set(run.split["test"])
        assert recipe.split_seed == run.recipe.split_seed


def test_what_would_exceed_the_time_limit_is_not_begun(
    photos: Path, weights: Path, tmp_path: Path, scripted: Any
) -> None:
    asked = scripted(LOW, CLEARLY_BETTER, expected=7200.0)
    run = auto(photos, weights, tmp_path, time_limit="30m")
    told = run.result["transfer"]
    assert len(asked) == 1
    assert told["chosen"] == "features"
    assert told["reason"].startswith("frozen would take about 2 h 0 min, and ")
    assert "--time-limit gives more" in told["reason"]


def test_what_takes_longer_than_expected_is_given_up(
    photos: Path, weights: Path, tmp_path: Path, scripted: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where steps cannot be timed beforehand, as on a GPU, or took less when they were."""
    scripted(LOW, expected=0.0)
    of_features = transfer_auto.cross_validate

    def cross_validate(*pictures_and_recipe: Any, **options: Any) -> Any:
        if options["name"] == "features":
            return of_features(*pictures_and_recipe, **options)
        with listening() as interruption:
            while (reason := interruption()) is None:
                time.sleep(0.01)
        raise InterruptedTrainingsError("Go on with: netloom.resume_cross_validation(", reason)

    monkeypatch.setattr(transfer_auto, "cross_validate", cross_validate)
    started = time.perf_counter()
    told = auto(photos, weights, tmp_path, time_limit="3s").result["transfer"]
    assert time.perf_counter() - started > 2.5
    assert told["chosen"] == "features"
    assert told["reason"].startswith("the time limit was used up while frozen was cross-validated;")
    assert [step["mode"] for step in told["steps"]] == ["features"]


def test_the_time_that_a_step_would_take_grows_with_its_epochs_and_pictures(
    photos: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """60 pictures of 3 classes: 12 test; 38.4 of a fold are learned from, a fifth of them validates."""
    timed: list[ExecutionPlan] = []

    def step_seconds(self: Fitting, plans: Sequence[ExecutionPlan]) -> list[float]:
        timed[:] = plans
        return [2.0] * len(plans)

    monkeypatch.setattr(Fitting, "step_seconds", step_seconds)
    monkeypatch.setattr(transfer_auto, "usable_cpus", lambda: 1)
    monkeypatch.setattr(transfer_auto, "training_threads", lambda: 1)

    def expected(mode: str, *, plan: ExecutionPlan | None = None, **changes: Any) -> float:
        settings = {**QUICK, "model": f"timm/{NAME}", "transfer.weights": str(weights), **changes}
        recipe = netloom.load_recipe(f"transfer-{mode}", settings)
        data = prepare_data(photos, recipe, Reporter(quiet=True))
        return transfer_auto.expected_seconds(recipe, data, device="cpu", plan=plan)

    assert expected("features") == 0
    folds, last = math.ceil(38.4 * 0.8 / 16) + 38.4 * 0.2 / 16, math.ceil(38 / 16) + 10 / 16
    assert expected("frozen") == pytest.approx(1.1 * 2.0 * 2 * (5 * folds + last))
    assert {plan.precision for plan in timed} == {"float32"}
    assert expected("frozen", precision="bfloat16") == expected("frozen")
    expected("frozen", precision="bfloat16")
    assert {plan.precision for plan in timed} == {"bfloat16"}
    given = ExecutionPlan("cpu", 1, "bfloat16", shards=2)
    assert expected("frozen", plan=given) == expected("frozen")
    expected("frozen", plan=given)
    assert timed == [given]
    folds, last = math.ceil(38.4 * 0.8 / 16) + 38.4 * 0.2 / 48, math.ceil(38 / 16) + 10 / 48
    assert expected("finetune", epochs=6) == pytest.approx(1.1 * 2.0 * 6 * (5 * folds + last))
    folds, last = math.ceil(6 / 16) + 38.4 * 0.2 / 16, math.ceil(6 / 16) + 10 / 16
    assert expected("frozen", per_class=2) == pytest.approx(1.1 * 2.0 * 2 * (5 * folds + last))


def test_the_last_step_is_told(photos: Path, weights: Path, tmp_path: Path, scripted: Any) -> None:
    scripted(LOW, CLEARLY_BETTER, [value + 0.1 for value in CLEARLY_BETTER])
    told = auto(photos, weights, tmp_path).result["transfer"]
    assert told["chosen"] == "finetune"
    assert told["reason"] == "finetune is the last step"


@pytest.mark.slow
def test_the_whole_with_real_cross_validations(photos: Path, weights: Path, tmp_path: Path) -> None:
    run = auto(photos, weights, tmp_path)
    told = run.result["transfer"]
    assert told["steps"][0]["mode"] == "features"
    assert len(told["steps"]) >= 2
    for step in told["steps"]:
        found = json.loads((Path(step["folder"]) / "cv.json").read_text(encoding="utf-8"))
        assert step["accuracy"] == pytest.approx(found["accuracy"]["mean"])
    assert run.result["tests"] == 1
    assert run.evaluate()["accuracy"] == run.result["test"]["accuracy"]


def test_impossible_wishes_are_told(photos: Path, weights: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="time limit 0 is no duration"):
        auto(photos, weights, tmp_path, time_limit=0)
    with pytest.raises(RecipeError, match="--mode auto takes the shipped recipes"):
        auto(photos, weights, tmp_path, classifier="knn")
    assert list(tmp_path.iterdir()) == []


def test_with_a_cut_it_begins_with_the_frozen_network(
    photos: Path, weights: Path, tmp_path: Path, scripted: Any
) -> None:
    asked = scripted(LOW, NO_BETTER)
    run = auto(photos, weights, tmp_path, cut="block1")
    assert [options["name"] for _, _, options in asked] == ["frozen", "finetune"]
    assert run.recipe.transfer is not None
    assert (run.recipe.transfer.mode, run.recipe.transfer.cut) == ("frozen", "block1")


@pytest.fixture
def ending(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The first cross-validation is real; the one after it ends with an error."""

    def script(error: Exception) -> None:
        real, begun = transfer_auto.cross_validate, []

        def cross_validate(pictures: Any, recipe: Any, **options: Any) -> Any:
            if begun:
                raise error
            begun.append(options["name"])
            return real(pictures, recipe, **options)

        monkeypatch.setattr(transfer_auto, "cross_validate", cross_validate)

    return script


def test_a_step_that_fails_leaves_those_before_it(photos: Path, weights: Path, tmp_path: Path, ending: Any) -> None:
    ending(FailedTrainingsError("2 of 5 trainings failed. Go on with: this and that", "fold-1: the loss is nan."))
    told = auto(photos, weights, tmp_path).result["transfer"]
    assert (told["chosen"], told["reason"]) == ("features", "frozen failed: fold-1: the loss is nan.")
    assert [step["mode"] for step in told["steps"]] == ["features"]


@pytest.mark.parametrize("where", ["cross_validate", "expected_seconds"])
def test_whatever_a_step_does_not_fit_leaves_those_before_it(
    where: str, photos: Path, weights: Path, tmp_path: Path, ending: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def raising(*_: Any, **__: Any) -> float:
        raise ModelError("it does not fit.")

    if where == "cross_validate":
        ending(ModelError("it does not fit."))
    else:
        monkeypatch.setattr(transfer_auto, where, raising)
    told = auto(photos, weights, tmp_path).result["transfer"]
    assert (told["chosen"], told["reason"]) == ("features", "frozen failed: it does not fit.")


def test_keys_of_one_mode_are_for_its_step(photos: Path, weights: Path, tmp_path: Path, scripted: Any) -> None:
    asked = scripted(LOW, CLEARLY_BETTER, NO_BETTER)
    settings = {"transfer.head_epochs": 0, "transfer": {"classifier": "knn"}}
    auto(photos, weights, tmp_path, settings=settings)
    found = [(recipe.transfer.classifier, recipe.transfer.head_epochs) for _, recipe, _ in asked]
    assert found == [("knn", None), ("logistic", None), ("logistic", 0)]
    with pytest.raises(RecipeError, match=r"transfer\.classifier: is of mode features; mode frozen does not"):
        auto(photos, weights, tmp_path / "no", cut="block1", settings=settings)


def test_where_the_first_step_fails_there_is_no_run(
    photos: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cross_validate(*_: Any, **options: Any) -> Any:
        raise FailedTrainingsError("Go on with: netloom.resume_cross_validation(", "fold-1: the features are nan.")

    monkeypatch.setattr(transfer_auto, "cross_validate", cross_validate)
    with pytest.raises(TrainingError, match=r"^features failed: fold-1: the features are nan\.$"):
        auto(photos, weights, tmp_path)


def test_folds_that_a_backbone_run_has_seen_are_told(
    photos: Path, tmp_path: Path, scripted: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {"filters": [4], "head_pooling": "average", "epochs": 1, "batch_size": 16, "split_seed": 2}
    backbone = netloom.train(photos, out=tmp_path, quiet=True, settings=settings)
    scripted(LOW, NO_BETTER)
    run = netloom.transfer(photos, backbone.path, mode="auto", out=tmp_path, device="cpu")
    page = Page(run.report_path.read_text(encoding="utf-8")).words
    assert run.result["transfer"]["notes"][0] in page
    told = f"{len(backbone.split['train'])} of the 48 pictures of the held-out folds were trained on with their labels"
    assert run.result["transfer"]["notes"][0].startswith(told)
    assert told in capsys.readouterr().err
    with pytest.raises(DataError, match="of the test part were trained on"):
        netloom.transfer(
            photos, backbone.path, mode="auto", out=tmp_path / "no", quiet=True, settings={"split_seed": 0}
        )
    assert not (tmp_path / "no").exists()


def test_an_interruption_says_what_a_shell_can_do(photos: Path, weights: Path, tmp_path: Path, ending: Any) -> None:
    ending(InterruptedTrainingsError("Go on with: netloom.resume_cross_validation(", BY_USER))
    with pytest.raises(InterruptedTrainingsError, match=r"starts with features that it finds") as error:
        auto(photos, weights, tmp_path)
    assert error.value.exit_code == 130
    done = r"Cross-validated already: features with \d+\.\d\d% \(.*features-cv\); --mode features trains the last"
    assert re.search(done, str(error.value))
    assert "resume_cross_validation" not in str(error.value)


def test_few_pictures_of_a_class_mean_fewer_folds(weights: Path, tmp_path: Path, scripted: Any) -> None:
    photos = write_folder(tmp_path / "photos", per_class=8)
    for picture in sorted((photos / "down").iterdir())[4:]:
        picture.unlink()
    asked = scripted(LOW, NO_BETTER)
    auto(photos, weights, tmp_path)
    left = sum(parts is None for parts in asked[0][0].splits[8:12])  # of those that go down
    assert left == 3
    assert {options["folds"] for _, _, options in asked} == {3}
    for picture in sorted((photos / "down").iterdir())[2:]:
        picture.unlink()
    with pytest.raises(DataError, match=r"two independent pictures .* 'down' has 1\. .* --mode features"):
        auto(photos, weights, tmp_path / "refused", settings={"test_fraction": 0.4})
