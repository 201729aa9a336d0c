"""Recipes that train a classifier on features: a Run like any other, and no picture looked at twice by any verb."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import netloom
from html_page import Page
from netloom.data.cache import cache_directory
from netloom.data.imageset import ImageSet
from netloom.errors import ModelError, NetloomError, RecipeError, TrainingError
from netloom.features import FeatureExtractor
from netloom.runtime import ExecutionPlan
from netloom.training import planning
from netloom.training.callbacks import Callback, TimeLimit
from netloom.workflows import starting_head, training_run
from netloom.workflows.interruption import BY_USER
from netloom.workflows.training_run import InterruptedTrainingError
from picture_folders import stripes

pytestmark = pytest.mark.usefixtures("one_thread")

PLAN = ExecutionPlan("cpu", 1, "float32")
NEVER_TESTED = {"tests": 0, "departures": []}


@pytest.fixture(scope="module")
def backbone(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose trunk gives the features."""
    settings = {
        "filters": [8, 8],
        "head_pooling": "average",
        "input_scaling": "unit",
        "image_size": 24,
        "epochs": 1,
        "augmentation": None,
        "early_stopping": None,
    }
    return netloom.train(photos, out=tmp_path_factory.mktemp("backbone"), quiet=True, plan=PLAN, settings=settings).path


def settings(backbone: Path, **changes: Any) -> dict[str, Any]:
    return {
        "filters": [8, 8],
        "head_pooling": "average",
        "input_scaling": "pretrained",
        "image_size": 24,
        "augmentation": None,
        "early_stopping": None,
        "schedule": None,
        "epochs": 4,
        "batch_size": 8,
        "precision": "float32",
        "label_smoothing": 0.0,
        "dense_normalization": "none",
        "transfer.weights": str(backbone),
        "transfer.mode": "features",
        **changes,
    }


def train(source: Any, out: Path, backbone: Path, *, callbacks: Any = (), **changes: Any) -> netloom.Run:
    chosen = settings(backbone, **changes)
    return netloom.train(source, out=out, quiet=True, plan=PLAN, settings=chosen, callbacks=callbacks)


@pytest.fixture
def looked_at(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of pictures of every pass through an extractor in this process."""
    passes: list[int] = []
    own = FeatureExtractor.forward

    def counted(self: FeatureExtractor, x: torch.Tensor) -> torch.Tensor:
        passes.append(len(x))
        return own(self, x)

    monkeypatch.setattr(FeatureExtractor, "forward", counted)
    return passes


@pytest.mark.parametrize("classifier", ["logistic", "knn", "network"])
def test_a_run_like_any_other(classifier: str, photos: Path, backbone: Path, tmp_path: Path) -> None:
    more = {"dense_units": [16], "dropout": 0.2, "learning_rate": 0.01} if classifier == "network" else {}
    run = train(photos, tmp_path, backbone, **{"transfer.classifier": classifier, **more})
    result = run.result
    assert result["status"] == "finished"
    assert result["tests"] == 1
    assert result["test"]["accuracy"] > 0.5
    assert result["features"] | {"seconds": 0} == {"numbers": 8, "rows": 60, "computed": 60, "seconds": 0}
    again = netloom.load(run.path).evaluate()
    assert again["accuracy"] == again["recorded_accuracy"] == result["test"]["accuracy"]
    assert again["log_loss"] == pytest.approx(result["test"]["log_loss"], rel=1e-4)
    picture = next(photos.rglob("*.png"))
    assert run.predict(picture)[0]["predictions"][0]["class"] in run.data.class_names
    before, after = load_file(backbone / "weights.safetensors"), load_file(run.weights_path)
    trunk = [name for name in before if name.startswith("trunk.")]
    assert trunk
    assert all(torch.equal(before[name], after[name]) for name in trunk)
    assert len(run.history) == (4 if classifier == "network" else 1)
    expected = {"logistic": 8 * 3 + 3, "knn": 0, "network": 8 * 16 + 16 + 16 * 3 + 3}
    assert result["trainable_parameters"] == expected[classifier]
    assert result["train_n"] == len(run.split["train"])


def test_the_second_training_looks_at_no_picture_and_gives_the_same_bits(
    photos: Path, backbone: Path, tmp_path: Path, looked_at: list[int]
) -> None:
    first = train(photos, tmp_path, backbone)
    assert sum(looked_at) == first.result["features"]["computed"] == 60
    looked_at.clear()
    second = train(photos, tmp_path, backbone)
    assert second.result["features"]["computed"] == sum(looked_at) == 0
    ours, theirs = load_file(first.weights_path), load_file(second.weights_path)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert first.result["test"] == second.result["test"]
    other_head = train(photos, tmp_path, backbone, **{"transfer.classifier": "network", "dense_units": [4]})
    assert other_head.result["features"]["computed"] == sum(looked_at) == 0


def test_a_measurement_that_changes_its_mind_does_not_have_all_computed_again(
    photos: Path, backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless most of the pictures are new anyway."""
    speedups: list[float] = []
    monkeypatch.setattr(planning, "convolution_speedup", lambda device, threads: 2.0)
    monkeypatch.setattr(planning, "fastest_seconds", lambda runs, device: [speedups.pop(0), 1.0])

    def train_under(speedup: float, source: Any) -> netloom.Run:
        speedups[:] = [speedup]
        chosen = settings(backbone, precision="auto")
        return netloom.train(source, out=tmp_path, quiet=True, device="cpu", settings=chosen)

    first, second = train_under(1.2, photos), train_under(1.05, photos)
    assert [run.result["features"]["computed"] for run in (first, second)] == [60, 0]
    assert [run.plan.precision for run in (first, second)] == ["bfloat16", "bfloat16"]
    assert second.plan.reason == "that of features that are kept already"
    assert speedups == [1.05]  # nothing was measured
    pixels = np.stack([stripes(i % 3, i + 100) for i in range(30)])
    others = ImageSet.from_arrays(pixels, np.arange(30) % 3, class_names=("across", "down", "plain"))
    assert train_under(1.05, others).plan.precision == "float32"


def test_new_pictures_alone_are_looked_at(backbone: Path, tmp_path: Path) -> None:
    for n, computed in ((60, 60), (63, 3)):
        pixels = np.stack([stripes(i % 3, i) for i in range(n)])
        images = ImageSet.from_arrays(pixels, np.arange(n) % 3, class_names=("across", "down", "plain"))
        assert train(images, tmp_path, backbone).result["features"]["computed"] == computed


@pytest.mark.parametrize("jobs", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_folds_find_the_features_in_the_cache(
    photos: Path, backbone: Path, tmp_path: Path, looked_at: list[int], jobs: int
) -> None:
    found = netloom.cross_validate(
        photos, folds=3, jobs=jobs, out=tmp_path, quiet=True, plan=PLAN, settings=settings(backbone)
    )
    assert sum(looked_at) == 60
    assert [run.result["features"]["computed"] for run in found.runs] == [0, 0, 0]
    assert found.result["accuracy"]["n"] == 3
    looked_at.clear()
    train(photos, tmp_path, backbone)
    assert not looked_at


def test_folds_with_a_scaling_of_their_own_compute_their_own(photos: Path, backbone: Path, tmp_path: Path) -> None:
    chosen = settings(backbone, input_scaling="standardize")
    found = netloom.cross_validate(photos, folds=3, jobs=1, out=tmp_path, quiet=True, plan=PLAN, settings=chosen)
    assert [run.result["features"]["computed"] for run in found.runs] == [60, 60, 60]


@pytest.mark.parametrize("classifier", ["logistic", "network"])
def test_seeds_share_features_and_views(
    photos: Path, backbone: Path, tmp_path: Path, looked_at: list[int], classifier: str
) -> None:
    from netloom.workflows.seeds import train_seeds

    chosen = settings(
        backbone,
        **{"transfer.classifier": classifier, "transfer.views": 2, "augmentation": {"horizontal_flip": True}},
    )
    found = train_seeds(photos, n_seeds=2, jobs=1, out=tmp_path, quiet=True, plan=PLAN, settings=chosen)
    runs = [netloom.load(path.parent) for path in sorted(Path(found["folder"]).glob("*/result.json"))]
    n_train = len(runs[0].split["train"])
    assert sum(looked_at) == 60 + 2 * n_train
    assert [run.result["features"]["computed"] for run in runs] == [0, 0]
    assert runs[0].result["features"]["rows"] == 60 + 2 * n_train


@pytest.mark.parametrize("cv", [None, 3])
def test_a_search_looks_at_every_picture_once(
    photos: Path, backbone: Path, tmp_path: Path, looked_at: list[int], cv: int | None
) -> None:
    study = netloom.tune(
        photos,
        space={"transfer.classifier": ["logistic", "knn", "network"], "learning_rate": "1e-3..1e-1:log"},
        sampler="random",
        n_trials=4,
        cv=cv,
        final_seeds=1,
        jobs=1,
        out=tmp_path,
        quiet=True,
        plan=PLAN,
        settings=settings(backbone),
    )
    assert [trial["state"] for trial in study.trials].count("complete") >= 2
    assert not [trial for trial in study.trials if trial["state"] == "failed"]
    assert sum(looked_at) == 60
    assert all(0 <= trial["value"] <= 1 for trial in study.trials if trial["state"] == "complete")


class Interruption:
    """Ctrl-C when it is asked for the third time."""

    asked = 0

    def __call__(self) -> str | None:
        self.asked += 1
        return BY_USER if self.asked >= 3 else None


def test_an_interruption_while_features_are_computed_loses_nothing(
    photos: Path, backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("netloom.features.inference_batch_size", lambda *_: 10)
    with monkeypatch.context() as patched:
        patched.setattr(training_run, "listening", lambda: contextlib.nullcontext(Interruption()))
        with pytest.raises(InterruptedTrainingError) as raised:
            train(photos, tmp_path, backbone)
    path = raised.value.run.path
    assert netloom.load(path).result["status"] == "interrupted"
    backbone.rename(backbone.with_name("moved"))  # the run holds the whole network
    resumed = netloom.resume(path, quiet=True)
    backbone.with_name("moved").rename(backbone)
    assert resumed.result["status"] == "finished"
    assert resumed.result["features"]["computed"] == 30
    whole = train(photos, tmp_path, backbone)
    assert resumed.result["test"] == whole.result["test"]


@pytest.mark.parametrize("mode", ["frozen", "finetune"])
def test_an_interruption_while_the_head_gets_its_start_leaves_a_run_that_goes_on(
    mode: str, photos: Path, backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("netloom.features.inference_batch_size", lambda *_: 10)
    changes = {"transfer.mode": mode, "dense_units": None, "epochs": 2}
    with monkeypatch.context() as patched:
        patched.setattr(training_run, "listening", lambda: contextlib.nullcontext(Interruption()))
        with pytest.raises(InterruptedTrainingError, match="after 0 of 2 epochs") as raised:
            train(photos, tmp_path, backbone, **changes)
    run = raised.value.run
    assert (run.result["status"], run.result["epochs"], run.history) == ("interrupted", 0, [])
    resumed, whole = netloom.resume(run.path, quiet=True), train(photos, tmp_path, backbone, **changes)
    assert resumed.weights_path.read_bytes() == whole.weights_path.read_bytes()


def frozen(backbone: Path, **changes: Any) -> dict[str, Any]:
    own = {"transfer.mode": "frozen", "dense_units": None, "epochs": 1, "augmentation": {"horizontal_flip": True}}
    return settings(backbone, **{**own, **changes})


def weights_of(found: Any) -> list[bytes]:
    return [run.weights_path.read_bytes() for run in found.runs]


def test_folds_and_repetitions_find_the_start_of_their_head(
    photos: Path, backbone: Path, tmp_path: Path, looked_at: list[int]
) -> None:
    def folds(**changes: Any) -> Any:
        looked_at.clear()
        chosen = frozen(backbone, **changes)
        return netloom.cross_validate(photos, folds=2, jobs=1, out=tmp_path, quiet=True, plan=PLAN, settings=chosen)

    first = folds()
    n_train = sum(len(run.split["train"]) for run in first.runs)
    assert sum(looked_at) == n_train > 40
    assert weights_of(folds()) == weights_of(first)
    assert not looked_at
    folds(**{"transfer.mode": "finetune", "epochs": 2})
    assert not looked_at


def test_what_decides_a_start_is_another(
    photos: Path, backbone: Path, tmp_path: Path, looked_at: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def looked(threads: int = 1, **changes: Any) -> int:
        looked_at.clear()
        plan = ExecutionPlan("cpu", threads, "float32")
        netloom.train(photos, out=tmp_path, quiet=True, plan=plan, settings=frozen(backbone, **changes))
        return sum(looked_at)

    assert looked() > 0
    assert looked(seed=1) == 0  # of the trainings that follow
    assert looked(threads=2) > 0
    assert looked(class_weight={"down": 2.0}) > 0
    assert looked(split_seed=1, **{"transfer.test_on_seen": True}) > 0
    own = starting_head.environment_record
    for key, differs in (("usable_cpus", False), ("cpu_capability", True)):
        monkeypatch.setattr(starting_head, "environment_record", lambda key=key: {**own(), key: 99})
        assert (looked() > 0) == differs, key


def test_a_damaged_start_is_made_anew(photos: Path, backbone: Path, tmp_path: Path, looked_at: list[int]) -> None:
    def train() -> bytes:
        looked_at.clear()
        run = netloom.train(photos, out=tmp_path, quiet=True, plan=PLAN, settings=frozen(backbone))
        return run.weights_path.read_bytes()

    whole = train()
    n_train = sum(looked_at)
    (file,) = cache_directory().glob("*/classifier-*/classifier.safetensors")
    content = file.read_bytes()
    for broken in (content[:-1], content[:-4] + bytes(4), b"", content[:20]):
        file.write_bytes(broken)
        assert train() == whole
        assert sum(looked_at) == n_train
    assert train() == whole
    assert not looked_at


def test_a_time_limit_ends_the_computing_of_features_and_keeps_them(
    photos: Path, backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("netloom.features.inference_batch_size", lambda *_: 10)
    with pytest.raises(TrainingError, match=r"while features were computed, so that there is no classifier yet"):
        train(photos, tmp_path / "cut", backbone, time_limit_minutes=1e-9)
    (cut,) = (tmp_path / "cut").iterdir()
    assert (netloom.load(cut).result["status"], (cut / "weights.safetensors").exists()) == ("failed", False)
    assert train(photos, tmp_path, backbone, time_limit_minutes=10).result["features"]["computed"] == 50


def test_the_time_that_features_take_is_the_trainings(photos: Path, backbone: Path, tmp_path: Path) -> None:
    """A head of 0.6 minutes gets what its features left of them."""
    counted: list[float] = []

    class Slow(TimeLimit):
        def count(self, seconds: float) -> None:
            counted.append(seconds)
            super().count(35.99)

    changes = {"transfer.classifier": "network", "dense_units": [8], "epochs": 500}
    run = train(photos, tmp_path, backbone, callbacks=[Slow(max_minutes=0.6)], **changes)
    assert counted[0] > 0
    assert run.result["epochs"] < 500
    assert "time limit" in run.result["stop_reason"]


class _Interrupt(Callback):
    """Ctrl-C after some steps."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_batch_end(self, state: Any) -> None:
        if state.step == self.step:
            import signal

            signal.raise_signal(signal.SIGINT)


def test_a_head_that_was_cut_short_goes_on_to_the_same_bits(photos: Path, backbone: Path, tmp_path: Path) -> None:
    changes = {
        "transfer.classifier": "network",
        "dense_units": [8],
        "dense_dropout": 0.3,
        "dense_normalization": "before",
        "ema": {"decay": 0.9},
        "max_norm": 2.0,
    }
    whole = train(photos, tmp_path, backbone, **changes)
    with pytest.raises(InterruptedTrainingError) as raised:
        train(photos, tmp_path, backbone, callbacks=[_Interrupt(7)], **changes)
    backbone.rename(backbone.with_name("moved"))
    resumed = netloom.resume(raised.value.run.path, quiet=True)
    backbone.with_name("moved").rename(backbone)
    ours, theirs = load_file(resumed.weights_path), load_file(whole.weights_path)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert resumed.result["test"] == whole.result["test"]
    assert any(name.startswith("trunk.") for name in ours)


def test_weights_kept_in_between_are_the_whole_networks(photos: Path, backbone: Path, tmp_path: Path) -> None:
    run = train(photos, tmp_path, backbone, **{"transfer.classifier": "network", "keep_every": 2})
    kept, last = load_file(run.epoch_weights_path(2)), load_file(run.weights_path)
    assert kept.keys() == last.keys()


@pytest.mark.parametrize("classifier", ["logistic", "knn", "network"])
def test_one_sigmoid_output_for_two_classes(classifier: str, backbone: Path, tmp_path: Path) -> None:
    images = ImageSet.from_arrays(
        np.stack([stripes(i % 2, i) for i in range(60)]), np.arange(60) % 2, class_names=("across", "down")
    )
    changes = {"transfer.classifier": classifier, "epochs": 20, "learning_rate": 0.05}
    run = train(images, tmp_path, backbone, loss="binary_cross_entropy", **changes)
    assert run.result["test"]["accuracy"] > 0.6
    outputs = run.model()(torch.zeros(1, 3, 24, 24) if run.data.channels == 3 else torch.zeros(1, 1, 24, 24))
    assert outputs.shape == (1, 1)


def test_class_and_sample_weights_count(backbone: Path, tmp_path: Path) -> None:
    """Classes at random: what weighs more is predicted more often."""
    pixels, targets = np.stack([stripes(2, i) for i in range(90)]), np.random.default_rng(0).permutation(90) % 2
    names = ("first", "second")
    sources = {
        "plain": ImageSet.from_arrays(pixels, targets, class_names=names),
        "weighted": ImageSet.from_arrays(pixels, targets, class_names=names, weights=1.0 + 9 * targets),
    }

    def share(source: str, **changes: Any) -> float:
        run = train(sources[source], tmp_path, backbone, **changes)
        return float(run.test_predictions()[0][:, 1].mean())

    assert 0.3 < share("plain") < 0.7
    assert share("plain", class_weight={"second": 10.0}) > 0.8
    assert share("weighted") > 0.8
    assert share("weighted", **{"transfer.classifier": "knn"}) > 0.8


def test_versions_of_pictures_are_averaged_by_the_whole_network(photos: Path, backbone: Path, tmp_path: Path) -> None:
    run = train(photos, tmp_path, backbone, test_time_augmentation="flip")
    again = run.evaluate()
    assert again["accuracy"] == run.result["test"]["accuracy"]
    assert again["log_loss"] == pytest.approx(run.result["test"]["log_loss"], rel=1e-5)
    plain = train(photos, tmp_path, backbone)
    assert plain.result["test"]["log_loss"] != run.result["test"]["log_loss"]


def test_the_report_tells_how_the_classifier_was_chosen(photos: Path, backbone: Path, tmp_path: Path) -> None:
    run = train(photos, tmp_path, backbone, **{"transfer.views": 1, "augmentation": {"horizontal_flip": True}})
    page = Page(run.report_path.read_text(encoding="utf-8"))
    text = page.words
    assert "How the classifier was fitted" in text
    assert run.result["classifier"]["how"] in text
    assert "8 features of each picture" in text
    assert "training pictures and 1 augmented view of each of them" in text
    assert "leaves out" not in text
    assert f"C = {run.result['classifier']['C']:g}" in text


def test_without_a_validation_part(photos: Path, backbone: Path, tmp_path: Path) -> None:
    run = train(photos, tmp_path, backbone, validation_fraction=0, keep="last")
    assert run.result["status"] == "finished"
    assert "validation_loss" not in run.history[0]
    assert run.result["features"]["computed"] == 60
    few = train(photos, tmp_path, backbone, per_class=2)
    assert few.result["train_n"] == 6
    assert few.result["features"]["computed"] == 0
    assert "6 held-out training pictures" in few.result["classifier"]["how"]


def test_views_without_augmentation_are_refused(photos: Path, backbone: Path, tmp_path: Path) -> None:
    for augmentation in (None, {"mixup": 0.2}):
        chosen = settings(backbone, **{"transfer.views": 2, "augmentation": augmentation})
        with pytest.raises(RecipeError, match=r"transfer\.views: .*augmentation\.horizontal_flip=true"):
            netloom.train(photos, "transfer-features", out=tmp_path, quiet=True, plan=PLAN, settings=chosen)
    assert not any(tmp_path.iterdir())


def test_views_of_new_pictures_alone_are_looked_at(backbone: Path, tmp_path: Path) -> None:
    """New ones come first, so that all the others move to another place."""
    changes = {"transfer.views": 2, "augmentation": {"rotation": 20}}
    for first, computed in ((3, 60 + 2 * 40), (0, 3 + 2 * 2)):
        numbers = np.arange(first, 63)
        splits = np.where(numbers % 3 < 2, "train", np.where(numbers % 2, "validation", "test")).tolist()
        images = ImageSet.from_arrays(
            np.stack([stripes(i // 3 % 3, i) for i in numbers]),
            numbers // 3 % 3,
            class_names=("across", "down", "plain"),
            splits=splits,
        )
        assert train(images, tmp_path, backbone, **changes).result["features"]["computed"] == computed


def test_features_that_are_no_numbers_leave_a_run_that_failed(
    photos: Path, backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FeatureExtractor, "forward", lambda self, x: torch.full((len(x), 8), float("nan")))
    with pytest.raises(ModelError, match="not finite"):
        train(photos, tmp_path, backbone)
    (run,) = tmp_path.iterdir()
    result = netloom.load(run).result
    assert (result["status"], result["tests"]) == ("failed", 0)
    assert "not finite" in result["reason"]


def test_an_error_before_the_first_step_fails_a_new_run_and_leaves_a_finished_one(
    photos: Path, backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished = train(photos, tmp_path / "finished", backbone, **{"transfer.classifier": "network"})

    def refused(*_: Any, **__: Any) -> Any:
        raise ModelError("The network does not fit.")

    monkeypatch.setattr(training_run.Fitting, "prepare", refused)
    with pytest.raises(ModelError, match="does not fit"):
        train(photos, tmp_path / "new", backbone)
    (path,) = (tmp_path / "new").iterdir()
    failed = {"status": "failed", "reason": "The network does not fit.", "callbacks": []}
    assert netloom.load(path).result == {**failed, **NEVER_TESTED}
    before = finished.result
    with pytest.raises(ModelError, match="does not fit"):
        netloom.resume(finished.path, epochs=6, quiet=True)
    assert finished.result == before


def test_a_model_that_is_not_divided_is_refused(photos: Path, tmp_path: Path) -> None:
    def model(in_channels: int, num_outputs: int) -> torch.nn.Module:
        return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.LazyLinear(num_outputs))

    with pytest.raises(NetloomError, match="models by name"):
        netloom.train(photos, model=model, out=tmp_path, quiet=True, settings={"transfer.mode": "features"})


def test_a_finished_fit_has_no_epochs_to_add(photos: Path, backbone: Path, tmp_path: Path) -> None:
    run = train(photos, tmp_path, backbone)
    with pytest.raises(NetloomError, match="no epochs"):
        netloom.resume(run.path, epochs=9, quiet=True)


def test_the_estimator_fits_on_features_too(backbone: Path) -> None:
    from netloom.sklearn import ImageClassifier

    pixels, targets = np.stack([stripes(i % 3, i) for i in range(60)]), np.arange(60) % 3
    chosen = settings(backbone)
    transfer = {key.removeprefix("transfer."): chosen.pop(key) for key in list(chosen) if key.startswith("transfer.")}
    fitted = ImageClassifier(**chosen, transfer=transfer).fit(pixels, targets)
    assert fitted.score(pixels, targets) > 0.6


@pytest.mark.slow
@pytest.mark.data
def test_cats_and_dogs_reach_98_percent(shared_data: Path, tmp_path: Path) -> None:
    """The goal on 1,000 test pictures, by the verb and its shipped recipe; a second call finds all features."""
    archive, weights = shared_data / "cats_and_dogs_small.zip", shared_data / "weights" / "mobilenetv1_100.safetensors"

    def transferred() -> netloom.Run:
        return netloom.transfer(archive, "mobilenetv1_100", mode="features", weights=weights, out=tmp_path, quiet=True)

    run = transferred()
    assert run.result["test"]["n"] == 1_000
    assert run.result["test"]["accuracy"] >= 0.98
    again = transferred()
    assert again.result["features"]["computed"] == 0
    assert json.dumps(again.result["test"]) == json.dumps(run.result["test"])
