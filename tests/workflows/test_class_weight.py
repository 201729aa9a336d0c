"""Class weights: scikit-learn's `balanced`, a mapping by name, and what the report says of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss
from sklearn.utils.class_weight import compute_sample_weight
from typer.testing import CliRunner

import netloom
from html_page import Page
from netloom.cli import app
from netloom.data.batches import InputScaling
from netloom.errors import RecipeError
from netloom.recipe import Recipe, load_recipe, parse_overrides
from netloom.workflows import builders
from picture_folders import write_folder

NAMES = ("a", "b.c", "고양이")
QUICK = {"epochs": 1, "filters": [4], "augmentation": None, "batch_size": 8, "precision": "float32"}


def imbalanced(*, weights: np.ndarray | None = None) -> netloom.ImageSet:
    targets = np.repeat([0, 1, 2], [40, 12, 4])
    images = np.random.default_rng(0).integers(0, 256, (len(targets), 6, 6, 3), dtype=np.uint8)
    return netloom.ImageSet.from_arrays(images, targets, class_names=NAMES, weights=weights)


def recipe(class_weight: object) -> Recipe:
    return Recipe.from_mapping({"class_weight": class_weight, "batch_size": 7})


def weights_in_training(chosen: Recipe, image_set: netloom.ImageSet, train: np.ndarray) -> dict[bytes, float]:
    """Weight of every picture that the batches of an epoch hold."""
    batches = builders.training_batches(chosen, image_set, train, scaling=InputScaling.none(3))
    found = {}
    for batch in batches.epoch():
        assert batch.weights is not None
        for image, weight in zip(batch.inputs["image"], batch.weights.tolist(), strict=True):
            found[image.to(torch.uint8).numpy().tobytes()] = weight
    return found


@pytest.mark.parametrize("with_own", [False, True])
def test_auto_is_scikit_learns_balanced_over_the_training_part(with_own: bool) -> None:
    own = np.linspace(0.5, 2, 56, dtype=np.float32) if with_own else None
    image_set = imbalanced(weights=own)
    train = np.r_[0:30, 40:50, 52:55]
    expected = compute_sample_weight("balanced", image_set.targets.numpy()[train])
    expected = expected * (1 if own is None else own[train])
    found = weights_in_training(recipe("auto"), image_set, train)
    pictures = [image_set.images[i].numpy().tobytes() for i in train]
    assert [found[p] for p in pictures] == pytest.approx(expected.tolist(), rel=1e-6)


def test_a_mapping_weighs_the_named_classes_and_leaves_the_others_at_one() -> None:
    found = builders.class_weights(recipe({"고양이": 5, "b.c": 0.5}), np.array([0, 1, 2]), NAMES)
    assert found is not None
    assert found.tolist() == [1.0, 0.5, 5.0]
    assert builders.class_weights(recipe(None), np.array([0]), NAMES) is None


def test_names_with_dots_and_numbers_come_through_every_door(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("extends: digits\nclass_weight: {b.c: 2, 3: 4.5}\n", encoding="utf-8")
    assert load_recipe(path).class_weight == {"b.c": 2.0, "3": 4.5}
    assert load_recipe("digits", {"class_weight": {"b.c": 2}}).class_weight == {"b.c": 2.0}
    settings = parse_overrides(["class_weight.b.c=2", "class_weight.a=3"])
    assert load_recipe("digits", settings).class_weight == {"b.c": 2.0, "a": 3.0}
    changed = load_recipe(path).replace(class_weight={"a": 1.5})
    assert changed.class_weight == {"a": 1.5}


def test_the_training_loss_is_the_weighted_mean_and_the_validation_loss_the_plain_one(tmp_path: Path) -> None:
    """Against scikit-learn's log loss of a network that stays as it is."""
    image_set = imbalanced()
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(108, 3))
    run = netloom.train(
        image_set,
        "photos",
        model=model,
        out=tmp_path,
        quiet=True,
        settings={**QUICK, "filters": None, "batch_size": 64, "learning_rate": 1e-30, "schedule": None},
        class_weight="auto",
        label_smoothing=0,
        input_scaling="unit",
    )
    with torch.no_grad():
        probabilities = model(image_set.images.float() / 255).double().softmax(1).numpy()
    targets = image_set.targets.numpy()
    for part, weighting in (("train", "balanced"), ("validation", None)):
        rows = [image_set.ids.index(name) for name in run.split[part]]
        weights = compute_sample_weight(weighting, targets[rows])
        expected = log_loss(targets[rows], probabilities[rows], sample_weight=weights, labels=[0, 1, 2])
        assert run.history[0][f"{part}_loss"] == pytest.approx(expected, rel=1e-5)


def test_an_unknown_class_is_told_before_a_run_is_made(tmp_path: Path) -> None:
    photos = write_folder(tmp_path / "photos", per_class=6)
    runs = tmp_path / "runs"
    with pytest.raises(RecipeError, match=r"no class 'acros'\. Did you mean 'across'"):
        netloom.train(photos, out=runs, quiet=True, settings={**QUICK, "class_weight": {"acros": 2}})
    assert not runs.exists()
    with pytest.raises(RecipeError, match=r"class_weight.*greater than 0"):
        Recipe.from_mapping({"class_weight": {"a": 0}})


@pytest.mark.parametrize("class_weight", [None, "auto"])
def test_the_report_shows_what_pictures_weigh_themselves(class_weight: str | None, tmp_path: Path) -> None:
    own = np.linspace(0.5, 2, 56, dtype=np.float32)
    run = netloom.train(
        imbalanced(weights=own), out=tmp_path, quiet=True, settings={**QUICK, "class_weight": class_weight}
    )
    rows = [int(name) for name in run.split["train"]]
    targets = np.repeat([0, 1, 2], [40, 12, 4])[rows]
    weights = own[rows] * (compute_sample_weight("balanced", targets) if class_weight else 1)
    shown = {row[0]: row[-1] for row in Page(run.report_path.read_text(encoding="utf-8")).table("class", "F1")}
    assert shown == {name: f"{weights[targets == k].mean():.3g}" for k, name in enumerate(NAMES)}


def test_the_report_shows_the_weight_of_every_class(tmp_path: Path) -> None:
    photos = write_folder(tmp_path / "photos", per_class=8)
    for path in sorted((photos / "plain").iterdir())[5:]:
        path.unlink()
    settings = [f"{k}={json.dumps(v)}" for k, v in QUICK.items()] + ["class_weight=auto"]
    arguments = [a for setting in settings for a in ("--set", setting)]
    result = CliRunner().invoke(app, ["train", str(photos), "--out", str(tmp_path), "--json", "-q", *arguments])
    assert result.exit_code == 0, result.output
    run = netloom.load(json.loads(result.stdout)["run"])
    labels = [name.split("/")[0] for name in run.split["train"]]
    balanced = dict(zip(labels, compute_sample_weight("balanced", labels), strict=True))
    page = run.report_path.read_text(encoding="utf-8")
    section = page[page.index('id="data"') :]
    for name, weight in balanced.items():
        row = section[section.index(f"<bdi>{name}</bdi></th>") :].split("</tr>")[0]
        assert f'<td class="number">{weight:.3g}</td>' in row
    assert "weighted mean" in section
    by_class = Page(page).table("class", "F1")
    assert {row[0]: row[-1] for row in by_class} == {name: f"{weight:.3g}" for name, weight in balanced.items()}
