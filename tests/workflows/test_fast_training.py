"""The methods of the speed records as recipe keys: trained, interrupted, resumed, evaluated, predicted."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import netloom
from netloom.data.imageset import load_image_set
from netloom.data.sources import open_source
from netloom.errors import ModelError, NetloomError, RecipeError
from netloom.training.callbacks import Callback
from netloom.workflows.training_run import InterruptedTrainingError

pytestmark = pytest.mark.usefixtures("one_thread")

RECIPE: dict[str, Any] = {
    "model": "speednet",
    "filters": [8],
    "first_layer": "frozen_whitening",
    "progressive_resizing": {"start": 0.75, "until": 0.5},
    "test_time_augmentation": "flip_shift",
    "augmentation": {"horizontal_flip": "alternating", "shifted_crop": 1},
    "optimizer": "muon",
    "learning_rate": 0.1,
    "bias_rate": 5,
    "classifier_rate": 2,
    "weight_decay": 0.01,
    "muon": {"update_scale": "none", "normalize_kernels": True, "rest_learning_rate": 0.02},
    "schedule": {"kind": "linear"},
    "lookahead": {"every_steps": 3, "power": 1.0},
    "ema": {"decay": 0.8},
    "batch_size": 8,
    "epochs": 4,
    "keep": "last",
    "precision": "float32",
}


@pytest.fixture(scope="module")
def whole(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> netloom.Run:
    return train(photos, tmp_path_factory.mktemp("whole"))


class Sides(Callback):
    """The sides of the pictures of every step."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def on_batch_end(self, state: Any) -> None:
        self.seen.append(state.batch.inputs["image"].shape[2])


class StopAt(Callback):
    """Interrupts a training at a step, as the interruption of a user does."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_batch_end(self, state: Any) -> None:
        if state.step == self.step:
            raise KeyboardInterrupt


def train(photos: Path, out: Path, *callbacks: Callback, **changes: Any) -> netloom.Run:
    return netloom.train(photos, out=out, quiet=True, callbacks=callbacks, settings={**RECIPE, **changes})


def test_pictures_grow_to_their_whole_size(photos: Path, tmp_path: Path) -> None:
    sides = Sides()
    run = train(photos, tmp_path, sides)
    per_epoch = len(sides.seen) // 4
    assert [sides.seen[epoch * per_epoch] for epoch in range(4)] == [
        8,
        12,
        12,
        12,
    ]  # 0.75, 0.875 and 1 of 12, in steps of 4
    assert run.result["test"]["accuracy"] > 0.6  # three classes


def test_the_frozen_first_layer_is_whitened_and_stays(photos: Path, whole: netloom.Run) -> None:
    """Against NumPy: the covariance of the layer's outputs over training patches is the unit matrix."""
    weights = load_file(whole.weights_path)["trunk.stem.conv1.weight"].double().numpy().reshape(24, 12)
    images, split = pictures(photos), whole.split
    facts = whole.data
    scaled = (images.images.double().numpy() / 255 - np.reshape(facts.mean, (3, 1, 1))) / np.reshape(
        facts.std, (3, 1, 1)
    )
    chosen = [images.ids.index(name) for name in split["train"]]
    windows = np.lib.stride_tricks.sliding_window_view(scaled[chosen], (2, 2), axis=(2, 3))
    patches = windows.transpose(0, 2, 3, 1, 4, 5).reshape(-1, 12)
    outputs = patches @ weights[::2].T
    assert outputs.T @ outputs / len(patches) == pytest.approx(np.eye(12), abs=0.02)
    assert np.array_equal(weights[::2], -weights[1::2])


def pictures(photos: Path) -> netloom.ImageSet:
    return load_image_set(open_source(photos), image_size=None, resize="stretch", channels=3).image_set


def test_whitening_never_sees_validation_and_test_pictures(photos: Path, tmp_path: Path, whole: netloom.Run) -> None:
    """Other pictures in those parts, the split held by given parts, and the same first layer."""
    images = pictures(photos)
    parts = {name: part for part in ("train", "validation", "test") for name in whole.split[part]}
    held = dataclasses.replace(images, splits=tuple(parts[name] for name in images.ids), content_hashes=None)
    others = torch.tensor([part != "train" for part in held.splits or ()])
    changed = dataclasses.replace(held, images=images.images.clone())
    changed.images[others] = 255 - changed.images[others] // 2
    layers = []
    for number, given in enumerate((held, changed)):
        run = netloom.train(given, out=tmp_path / str(number), quiet=True, settings={**RECIPE, "epochs": 1})
        layers.append(load_file(run.weights_path)["trunk.stem.conv1.weight"])
    assert torch.equal(*layers)


@pytest.mark.parametrize("step", [1, 7, 12])
def test_an_interrupted_training_is_resumed_bit_for_bit(
    photos: Path, tmp_path: Path, whole: netloom.Run, step: int
) -> None:
    with pytest.raises((InterruptedTrainingError, KeyboardInterrupt)):
        train(photos, tmp_path, StopAt(step))
    (folder,) = tmp_path.iterdir()
    resumed = netloom.resume(folder, quiet=True)
    for path in ("weights_path", "checkpoint_path"):
        ours, theirs = (load_file(getattr(run, path)) for run in (resumed, whole))
        assert ours.keys() == theirs.keys()
        assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    assert resumed.result["test"] == whole.result["test"]


def test_evaluation_and_prediction_average_over_the_same_versions(photos: Path, whole: netloom.Run) -> None:
    assert whole.result["test_time_augmentation"] == "flip_shift"
    assert "averages over versions of each picture" in whole.report_path.read_text(encoding="utf-8")
    scores = whole.evaluate()
    assert scores["test_time_augmentation"] == "flip_shift"
    assert scores["log_loss"] == pytest.approx(whole.result["test"]["log_loss"], rel=1e-6)
    names = whole.split["test"]
    predicted = whole.predict([photos / name for name in names], top=3)
    probabilities, _ = whole.test_predictions()
    for row, entry in zip(probabilities, predicted, strict=True):
        by_class = {p["class"]: p["probability"] for p in entry["predictions"]}
        assert [by_class[name] for name in whole.data.class_names] == pytest.approx(row, abs=1e-5)


def test_without_it_the_picture_alone_is_scored(photos: Path, tmp_path: Path, whole: netloom.Run) -> None:
    plain = train(photos, tmp_path, test_time_augmentation="none")
    for ours, theirs in zip(*(load_file(run.weights_path).values() for run in (plain, whole)), strict=True):
        assert torch.equal(ours, theirs)
    assert plain.result["test"]["log_loss"] != whole.result["test"]["log_loss"]


def test_a_network_that_flattens_is_not_given_several_sizes(photos: Path, tmp_path: Path) -> None:
    changes = {"model": "convnet", "first_layer": "random", "head_pooling": "flatten", "filters": [8, 16]}
    with pytest.raises(ModelError, match=r"has pictures of 8x8 pixels, which the model convnet does not take"):
        train(photos, tmp_path, **changes)
    assert not list(tmp_path.iterdir())
    changes["head_pooling"] = "average"
    assert train(photos, tmp_path, **changes, epochs=1).result["status"] == "finished"


def test_any_first_convolution_is_whitened(photos: Path, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"model": "convnet", "filters": [8, 16], "progressive_resizing": None, "epochs": 1}
    run = train(photos, tmp_path / "trained", **changes, first_layer="whitening", learning_rate=1e-9, bias_rate=1e-9)
    weights = load_file(run.weights_path)["trunk.block1.conv1.weight"]
    torch.testing.assert_close(weights[::2], -weights[1::2], rtol=1e-3, atol=1e-3)
    with pytest.raises(ModelError, match="patches of 3x3x3 numbers have 27 components, which make 54"):
        train(photos, tmp_path / "wide", **{**changes, "filters": [64, 8]}, first_layer="frozen_whitening")
    with pytest.raises(ModelError, match="has no convolution to be whitened"):
        train(photos, tmp_path / "mlp", **{**changes, "filters": None, "model": "mlp"}, first_layer="whitening")


def test_extending_says_what_depends_on_the_length(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train(photos, tmp_path, epochs=2)
    netloom.resume(run.path, epochs=3)
    said = capsys.readouterr().err
    for what in ("the linear schedule depends on", "progressive resizing depends on", "lookahead depends on"):
        assert what in said


def test_the_learning_rate_is_found_with_muon_too(photos: Path) -> None:
    settings = {**RECIPE, "lookahead": None, "ema": None}
    found = netloom.lr_find(photos, quiet=True, n_steps=60, settings=settings)
    assert len(found.losses) >= 10


def test_muon_keys_are_for_muon() -> None:
    with pytest.raises(RecipeError, match="muon: is for optimizer muon, not for adam; muon=null turns it off"):
        netloom.load_recipe("digits", {"optimizer": "adam", "muon.momentum": 0.9})
    with pytest.raises(RecipeError, match=r"momentum: is for sgd and rmsprop, not for muon; muon has muon\.momentum"):
        netloom.load_recipe("digits", {"optimizer": "muon", "momentum": 0.9})
    assert netloom.load_recipe("digits", {"optimizer": "muon"}).muon is None


def test_muon_with_its_defaults_learns_at_adams_rate(photos: Path, tmp_path: Path) -> None:
    settings = {"filters": [8, 16], "normalization": "before", "optimizer": "muon", "epochs": 8, "batch_size": 8}
    run = netloom.train(photos, out=tmp_path, quiet=True, settings={**settings, "augmentation": None})
    assert run.result["test"]["accuracy"] > 0.6
    assert isinstance(run, netloom.Run)
    with pytest.raises(NetloomError, match="optimizer"):
        netloom.train(photos, out=tmp_path, quiet=True, settings={"optimizer": "moun"})
