"""Frozen and fine-tuned trainings as runs: what is told of them, and that they are resumed exactly."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import netloom
from html_page import Page
from netloom.errors import ModelError, RecipeError
from netloom.recipe import Recipe
from netloom.training.callbacks import TimeLimit
from netloom.training.optim import learning_rate_of
from netloom.workflows import builders
from netloom.workflows.summarize import summary
from netloom.workflows.training_run import InterruptedTrainingError

pytestmark = pytest.mark.usefixtures("one_thread")

RECIPE: dict[str, Any] = {
    "model": "convnet",
    "filters": [4, 6, 8],
    "normalization": "before",
    "dense_units": [8],
    "dense_dropout": 0.3,
    "optimizer": "adamw",
    "batch_size": 8,
    "epochs": 4,
    "schedule": {"kind": "cosine", "warmup_epochs": 0.5},
    "ema": {"decay": 0.9},
    "transfer": {"mode": "finetune", "weights": "random", "unfreeze": 2, "gradual": True, "head_epochs": 1},
    "precision": "float32",
    "keep": "last",
}
STEPS_PER_EPOCH = 5  # 60 pictures: 12 to test, 10 to validate, 38 to train in batches of 8
TIMED = ("seconds", "images_per_second")


def train(photos: Path, out: Path, callbacks: Any = (), **changes: Any) -> netloom.Run:
    return netloom.train(photos, out=out, quiet=True, callbacks=callbacks, settings={**RECIPE, **changes})


@pytest.fixture(scope="module")
def whole(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> netloom.Run:
    return train(photos, tmp_path_factory.mktemp("whole"))


def initial(run: netloom.Run) -> dict[str, torch.Tensor]:
    model, _ = builders.build_network(run.recipe, run.data)
    return {name: value.clone() for name, value in model.state_dict().items()}


def stages_changed(run: netloom.Run) -> set[str]:
    before, after = initial(run), load_file(run.weights_path)
    assert before.keys() == after.keys()
    names = [name for name in before if not torch.equal(before[name], after[name])]
    return {name.split(".")[1] if name.startswith("trunk.") else name.split(".")[0] for name in names}


def test_a_finetuned_run_tells_what_trained_when(whole: netloom.Run) -> None:
    assert stages_changed(whole) == {"block3", "block2", "head", "classifier"}
    result = whole.result
    assert result["unfreezing"] == [{"epoch": 2, "stages": ["block3"]}, {"epoch": 3, "stages": ["block2"]}]
    assert result["frozen_stages"] == ["block1"]
    model, _ = builders.build_network(whole.recipe, whole.data)
    trained = [p for n, p in model.named_parameters() if not n.startswith("trunk.block1")]
    assert result["trainable_tensors"] == len(trained)
    assert result["trainable_parameters"] == sum(p.numel() for p in trained) < result["parameters"]
    page = Page(whole.report_path.read_text(encoding="utf-8"))
    assert "The head was trained alone in epoch 1. In front of the head trained block3 from epoch 2 on" in page.words
    assert f"of which {result['trainable_parameters']:,} are trained" in page.words


def test_a_frozen_run_keeps_every_bit_of_its_trunk(photos: Path, tmp_path: Path, capsys: Any) -> None:
    augmentation = {"rotation": 10, "horizontal_flip": True}
    settings = {**RECIPE, "transfer": {"mode": "frozen", "weights": "random"}, "augmentation": augmentation}
    run = netloom.train(photos, out=tmp_path, settings=settings)
    assert stages_changed(run) == {"head", "classifier"}
    result = run.result
    assert (result["trainable_tensors"], result["unfreezing"]) == (6, [])  # a dense layer, its norm, the classifier
    assert result["frozen_stages"] == ["block1", "block2", "block3"]
    told = capsys.readouterr()
    assert f"{result['parameters']:,} parameters, of which {result['trainable_parameters']:,} train" in (
        told.out + told.err
    )
    page = Page(run.report_path.read_text(encoding="utf-8"))
    assert "The head alone was trained: the 3 stages block1 to block3 stayed as they came." in page.words


class StopAt(netloom.Callback):
    """Asks for an end as a user does."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_batch_end(self, state: Any) -> None:
        if state.step == self.step:
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.skipif(os.name == "nt", reason="there, the signal would end the process")
@pytest.mark.parametrize(
    ("steps", "frozen"),
    [(STEPS_PER_EPOCH - 1, 3), (STEPS_PER_EPOCH, 3), (STEPS_PER_EPOCH + 1, 2), (2 * STEPS_PER_EPOCH + 3, 1)],
)
def test_it_is_resumed_bit_for_bit_across_an_unfreezing(
    photos: Path, tmp_path: Path, whole: netloom.Run, steps: int, frozen: int
) -> None:
    with pytest.raises(InterruptedTrainingError) as caught:
        train(photos, tmp_path, [StopAt(steps)])
    stopped = caught.value.run
    assert stopped.result["frozen_stages"] == ["block1", "block2", "block3"][:frozen]
    resumed = netloom.resume(stopped.path, quiet=True)
    for path in ("weights_path", "checkpoint_path"):
        ours, theirs = (load_file(getattr(run, path)) for run in (resumed, whole))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    histories = [[{k: v for k, v in row.items() if k not in TIMED} for row in r.history] for r in (resumed, whole)]
    assert histories[0] == histories[1]
    told = ("test", "unfreezing", "frozen_stages", "trainable_parameters", "trainable_tensors")
    assert [resumed.result[key] for key in told] == [whole.result[key] for key in told]


def test_a_summary_tells_what_trains() -> None:
    """Chollet, "Deep learning with Python", 2018, section 5.3.1: VGG16 below 256 units and a sigmoid."""
    settings = {
        "dense_units": 256,
        "loss": "binary_cross_entropy",
        "transfer": {"mode": "frozen", "weights": "random"},
    }
    for model in ("vgg16", "timm/vgg16"):
        flat = {} if model == "vgg16" else {"head_pooling": "flatten"}
        found = summary(model, input_shape="3x150x150", settings={**settings, **flat})
        assert (found.parameters, found.trainable_parameters) == (16_812_353, 2_097_665)
        trained = [layer for layer in found.layers if layer.parameters and layer.trainable]
        assert [layer.parameters for layer in trained] == [2_097_408, 257]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"head_epochs": 4}, "4 of 4 epochs leave none"),
        ({"unfreeze": "block9"}, "no stage 'block9'.*block1, block2, block3"),
        ({"unfreeze": 7}, "7 stages are to be unfrozen, and 3 have"),
    ],
)
def test_what_cannot_be_unfrozen_is_told_before_training(
    photos: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises((RecipeError, ModelError), match=message):
        train(photos, tmp_path, transfer={**RECIPE["transfer"], **changes})
    assert not list(tmp_path.iterdir())


def test_rates_are_searched_where_all_trains_that_ever_does(photos: Path) -> None:
    found = netloom.lr_find(photos, settings=RECIPE, n_steps=50, quiet=True)
    assert len(found.rates) >= 20


@pytest.mark.parametrize("name", ["timm/mobilenetv3_small_050", "timm/vit_tiny_patch16_224"])
def test_what_comes_with_weights_behind_the_features_is_frozen_too(name: str) -> None:
    """A convolution, or a norm, between the last feature map and the classifier is published like the rest."""
    recipe = Recipe.from_mapping({"model": name, "transfer": {"mode": "frozen", "weights": "random"}})
    model = builders.build_model(recipe, in_channels=3, num_outputs=2, image_size=(224, 224))
    freezing = builders.build_freezing(recipe, model)
    assert freezing is not None
    freezing.enter(model, 0)
    assert [n for n, p in model.named_parameters() if p.requires_grad] == ["classifier.weight", "classifier.bias"]
    before = {n: v.clone() for n, v in model.state_dict().items()}
    features = model.forward_head(model.forward_features(torch.rand(2, 3, 224, 224)), pre_logits=True)  # type: ignore[operator]
    assert features.grad_fn is None
    assert all(torch.equal(before[n], v) for n, v in model.state_dict().items())


@pytest.fixture(scope="module")
def backbone(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> netloom.Run:
    """A run whose network serves as a pretrained one."""
    own = {"transfer": None, "dense_units": None, "dense_dropout": None, "ema": None, "epochs": 6}
    return train(photos, tmp_path_factory.mktemp("backbone"), learning_rate=0.01, **own)


def on_top_of(backbone: netloom.Run, **transfer: Any) -> dict[str, Any]:
    return {
        "dense_units": None,
        "dense_dropout": None,
        "input_scaling": "pretrained",
        "transfer": {"mode": "finetune", "weights": str(backbone.path), **transfer},
    }


def test_a_linear_head_starts_from_the_regression_on_the_features(
    photos: Path, tmp_path: Path, backbone: netloom.Run, capsys: Any
) -> None:
    """The regression of mode `features`, in its own file, is the reference."""
    settings = {**RECIPE, **on_top_of(backbone), "learning_rate": 1e-12, "ema": None}
    run = netloom.train(photos, out=tmp_path / "finetuned", settings=settings)
    assert "The head starts from the logistic regression on the features. C = " in capsys.readouterr().err
    features = train(photos, tmp_path / "features", **on_top_of(backbone, mode="features"))
    mine, theirs = load_file(run.weights_path), load_file(features.weights_path)
    for name in ("classifier.weight", "classifier.bias"):
        torch.testing.assert_close(mine[name], theirs[name], rtol=1e-3, atol=1e-5)


def test_starting_from_features_is_resumed_and_repeated_exactly(
    photos: Path, tmp_path: Path, backbone: netloom.Run
) -> None:
    runs = [train(photos, tmp_path / name, **on_top_of(backbone)) for name in "ab"]
    if os.name != "nt":
        with pytest.raises(InterruptedTrainingError) as caught:
            train(photos, tmp_path / "c", [StopAt(STEPS_PER_EPOCH + 2)], **on_top_of(backbone))
        runs.append(netloom.resume(caught.value.run.path, quiet=True))
    first, *others = [load_file(run.weights_path) for run in runs]
    for weights in others:
        assert all(torch.equal(first[name], weights[name]) for name in first)


def test_the_time_that_the_heads_start_takes_is_the_trainings(
    photos: Path, tmp_path: Path, backbone: netloom.Run
) -> None:
    """A training of half a minute, of which the start took all, ends after its first epoch."""

    class Slow(TimeLimit):
        def count(self, seconds: float) -> None:
            super().count(30 * (seconds > 0))

    run = train(photos, tmp_path, [Slow(max_minutes=0.5)], **on_top_of(backbone))
    assert (run.result["epochs"], run.result["stop_reason"].partition(":")[0]) == (1, "time limit")


def test_a_head_of_several_layers_or_behind_new_stages_starts_from_chance(backbone: netloom.Run) -> None:
    def starts(**changes: Any) -> bool:
        recipe = Recipe.from_mapping({**RECIPE, **on_top_of(backbone), **changes})
        return builders.starts_from_features(
            recipe, builders.build_model(recipe, in_channels=3, num_outputs=3, image_size=(12, 12))
        )

    assert starts()
    assert starts(dropout=0.5)
    assert starts(transfer=on_top_of(backbone, mode="frozen")["transfer"])
    assert not starts(dense_units=[8])
    assert not starts(transfer=on_top_of(backbone, cut="block2")["transfer"])
    assert not starts(transfer=on_top_of(backbone, weights="random")["transfer"])


@pytest.mark.parametrize(("dense_units", "rate", "alone"), [(None, 1.0, 1), ([8], 10.0, 3)])
def test_a_head_that_starts_from_chance_learns_faster_and_longer_alone(
    backbone: netloom.Run, dense_units: list[int] | None, rate: float, alone: int
) -> None:
    transfer = on_top_of(backbone)
    recipe = Recipe.from_mapping({**RECIPE, **transfer, "dense_units": dense_units, "epochs": 9})
    model = builders.build_model(recipe, in_channels=3, num_outputs=3, image_size=(12, 12))
    freezing = builders.build_freezing(recipe, model)
    assert freezing is not None
    assert freezing.unfreezing(9)[0][0] == alone
    optimizer = builders.build_optimizer(recipe, model, freezing)
    rates = {id(p): group["base_lr"] for group in optimizer.param_groups for p in group["params"]}
    assert rates[id(model.classifier.weight)] == pytest.approx(rate * recipe.learning_rate)
    assert learning_rate_of(optimizer) == pytest.approx(recipe.learning_rate)
    assert recipe.transfer is not None
    random = recipe.replace(transfer={**recipe.transfer.model_dump(), "weights": "random"})
    optimizer = builders.build_optimizer(random, model, builders.build_freezing(random, model))
    assert learning_rate_of(optimizer) == optimizer.param_groups[0]["base_lr"]
    top = dict(model.stages())[freezing.unfreezing(9)[0][1][0]]
    expected = 0.8 * recipe.learning_rate
    assert [rates[id(p)] for p in top.parameters()] == pytest.approx([expected for _ in top.parameters()])


@pytest.mark.parametrize(("epochs", "alone"), [(1, 0), (2, 1), (3, 2), (5, 3)])
def test_what_has_joined_the_head_stays_when_the_training_is_extended(
    backbone: netloom.Run, photos: Path, tmp_path: Path, epochs: int, alone: int
) -> None:
    """By itself, a longer training would have a longer time of the head alone."""
    transfer = on_top_of(backbone)["transfer"]
    settings = {"dense_units": [8], "transfer": {**transfer, "head_epochs": None}, "epochs": epochs}
    run = train(photos, tmp_path, **settings)
    assert run.result["unfreezing"][0]["epoch"] == alone + 1
    extended = netloom.resume(run.path, epochs=7, quiet=True)
    assert extended.result["unfreezing"][0] == run.result["unfreezing"][0]
