"""Values that a recipe may have, but not with these pictures or this network: told before a run is made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn

import netloom
from netloom.errors import ModelError, NetloomError, RecipeError
from netloom.recipe import load_recipe
from netloom.runtime import ExecutionPlan
from netloom.sklearn import ImageClassifier
from picture_folders import write_folder

PLAN = ExecutionPlan("cpu", 1, "float32")
QUICK: dict[str, Any] = {"filters": [4], "epochs": 1, "early_stopping": None, "augmentation": None}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("photos") / "photos", per_class=5)


@pytest.mark.parametrize("zoom", [[1.2, 0.8], [0, 1], [0.5, 11], [-1, 1]])
def test_zoom_factors_are_a_smaller_and_a_larger_one(zoom: list[float]) -> None:
    with pytest.raises(RecipeError, match=r"augmentation\.zoom: .*the smaller first, both above 0 and at most 10"):
        load_recipe("photos", {"augmentation.zoom": zoom})
    assert load_recipe("photos", {"augmentation.zoom": [0.8, 1.2]}).augmentation is not None


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"augmentation": {"shifted_crop": 13}}, r"shifted_crop is 13 pixels, .*\(12x12\); take at most 12"),
        ({"dense_units": [8], "dense_normalization": "before", "batch_size": 1}, "batch_size of at least 2"),
    ],
)
def test_no_run_is_made_of_what_cannot_be_trained(
    photos: Path, tmp_path: Path, changes: dict[str, Any], told: str
) -> None:
    settings = {**QUICK, **changes}
    with pytest.raises(NetloomError, match=told):
        netloom.train(photos, out=tmp_path, plan=PLAN, quiet=True, settings=settings)
    with pytest.raises(NetloomError, match=told):
        netloom.cross_validate(photos, folds=2, out=tmp_path, plan=PLAN, jobs=1, quiet=True, settings=settings)
    with pytest.raises(NetloomError, match=told):
        netloom.tune(photos, space={"dropout": "0..0.5"}, out=tmp_path, plan=PLAN, quiet=True, settings=settings)
    assert list(tmp_path.iterdir()) == []
    classifier = ImageClassifier("photos", device="cpu", filters=[4], epochs=1, **changes)
    with pytest.raises(NetloomError, match=told):
        classifier.fit(np.arange(12 * 144, dtype=np.uint8).reshape(12, 12, 12) // 7, [0, 1] * 6)


def test_single_pictures_are_fine_where_a_channel_is_many_numbers(photos: Path, tmp_path: Path) -> None:
    settings = {**QUICK, "batch_size": 1, "normalization": "before", "dense_normalization": "none"}
    assert netloom.train(photos, out=tmp_path, plan=PLAN, quiet=True, settings=settings).result["test"]["n"] == 3


def test_a_network_of_ones_own_that_normalizes_single_numbers(photos: Path, tmp_path: Path) -> None:
    def network(num_outputs: int) -> nn.Module:
        return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(3, num_outputs))

    with pytest.raises(ModelError, match="no variance"):
        netloom.train(
            photos,
            model=network,
            out=tmp_path,
            plan=PLAN,
            quiet=True,
            settings={**QUICK, "batch_size": 1, "filters": None},
        )
    assert list(tmp_path.iterdir()) == []
