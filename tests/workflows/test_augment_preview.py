"""The preview shows what training sees; validation and test pictures reach the network as they are."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from typer.testing import CliRunner, Result

import netloom
from netloom.cli import app
from netloom.data.batches import InputScaling
from netloom.errors import DataError, RecipeError, RunError
from netloom.recipe import load_recipe
from netloom.workflows import builders
from picture_folders import stripes, write_folder

CHANGES = {"augmentation": None, "augmentation.rotation": 25, "augmentation.brightness": 0.4}
SIDE, FACTOR, GAP = 16, 8, 12  # 16 pixels are shown eightfold, white of 12 pixels between the pictures


def image_set() -> netloom.ImageSet:
    """Thirty pictures whose weights are their numbers, so that batches tell which ones they hold."""
    pixels = np.stack([stripes(i % 3, i, side=SIDE) for i in range(30)])
    splits = ["train", "validation", "test"] * 10
    weights = np.arange(30) + 1
    return netloom.ImageSet.from_arrays(pixels, np.arange(30) // 15, weights=weights, splits=splits)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(
        tmp_path_factory.mktemp("photos") / "photos", classes=("고양이", "down"), per_class=10, side=SIDE
    )


def preview(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["augment-preview", *map(str, arguments)])


def cells(path: Path, *, rows: int, columns: int) -> np.ndarray:
    """The pictures of a grid read back from its pixels, uint8 `[rows * columns, SIDE, SIDE, 3]`."""
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB"))
    shown = SIDE * FACTOR
    top = pixels.shape[0] - rows * (shown + GAP)
    corners = [(top + r * (shown + GAP), GAP + c * (shown + GAP)) for r in range(rows) for c in range(columns)]
    return np.stack([pixels[y : y + shown : FACTOR, x : x + shown : FACTOR] for y, x in corners])


def test_the_cells_are_the_pictures_that_training_is_fed(tmp_path: Path) -> None:
    """Against the batches of a training: the same picture, epoch by epoch, pixel for pixel."""
    source, path = image_set(), tmp_path / "grid.png"
    found = netloom.augment_preview(source, "photos", picture=3, rows=2, columns=3, plot=path, settings=CHANGES)
    assert found["picture"] == "00006"  # the third of the training pictures 0, 3, 6, ...
    assert found["augmentation"] == {"rotation": 25.0, "brightness": 0.4}
    shown = cells(path, rows=2, columns=3)
    np.testing.assert_array_equal(shown[0], source.images[6].permute(1, 2, 0))
    batches = builders.training_batches(
        load_recipe("photos", CHANGES), source, np.arange(0, 30, 3), scaling=InputScaling.none(3)
    )
    for epoch in range(5):
        (fed,) = (
            picture
            for batch in batches.epoch(epoch)
            for picture, weight in zip(batch.inputs["image"], batch.weights, strict=True)  # type: ignore[arg-type]
            if weight == 7
        )
        np.testing.assert_array_equal(shown[1 + epoch], fed.round().permute(1, 2, 0).numpy())
        assert not np.array_equal(shown[1 + epoch], shown[0])


def test_a_new_file_is_made_and_none_is_replaced_unasked(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names = [json.loads(preview(photos, "--rows", 1, "--columns", 2, "--json").stdout)["plot"] for _ in range(2)]
    assert names == ["augmented-photos.png", "augmented-photos-2.png"]
    before = Path(names[0]).read_bytes()
    again = preview(photos, "--picture", "고양이/001.png", "--plot", names[0])
    assert again.exit_code == 2
    assert "--force" in again.stderr
    assert Path(names[0]).read_bytes() == before
    assert preview(photos, "--plot", names[0], "--force").exit_code == 0
    assert Path(names[0]).read_bytes() != before


def test_its_folder_is_made_and_one_that_cannot_be_is_told_before_the_work(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = netloom.augment_preview(photos, plot=tmp_path / "a" / "b" / "x.png")
    assert Path(found["plot"]).is_file()

    def working(*_: object) -> None:
        raise AssertionError("nothing is read before the file is looked at")

    monkeypatch.setattr("netloom.workflows.augment_preview.prepare_data", working)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(RunError, match=r"Cannot write .*file"):
        netloom.augment_preview(photos, plot=tmp_path / "file" / "x.png")


def test_what_cannot_be_shown_is_told(photos: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"plot": tmp_path / "x.png"}
    with pytest.raises(RecipeError, match=r"has no augmentation.*--set augmentation\.rotation=15.*horizontal_flip"):
        netloom.augment_preview(photos, "photos", settings={"augmentation": None}, **options)
    with pytest.raises(RecipeError, match="only mixes"):
        netloom.augment_preview(photos, settings={"augmentation": None, "augmentation.mixup": 1}, **options)
    with pytest.raises(DataError, match=r"no training picture 'down/0099.png'. Did you mean 'down/00"):
        netloom.augment_preview(photos, picture="down/0099.png", **options)
    with pytest.raises(DataError, match="number from 1 to"):
        netloom.augment_preview(photos, picture=0, **options)
    with pytest.raises(DataError, match="not in the training part"):
        netloom.augment_preview(image_set(), picture="00001", **options)
    with pytest.raises(RunError, match=r"ends in \.png"):
        netloom.augment_preview(photos, plot=tmp_path / "x.bmp")
    assert not list(tmp_path.iterdir())


# Pictures that reached the network, as bytes, by mode. It is outside the module: measuring works on copies of it.
_seen: dict[bool, list[bytes]] = {True: [], False: []}


class Recorder(nn.Module):
    """A linear network on unscaled pixels that notes every picture it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Linear(3 * SIDE * SIDE, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        _seen[self.training] += [picture.detach().numpy().tobytes() for picture in x.contiguous()]
        return self.dense(x.flatten(1) / 255)


def test_only_training_pictures_are_augmented(tmp_path: Path) -> None:
    """Through a whole training: measuring, epochs, validation, test."""
    source = image_set()
    originals = [image.float().contiguous().numpy().tobytes() for image in source.images]
    for pictures in _seen.values():
        pictures.clear()
    run = netloom.train(
        source,
        "photos",
        model=Recorder(),
        out=tmp_path,
        quiet=True,
        settings={**CHANGES, "augmentation.mixup": 0.5},
        input_scaling="none",
        precision="float32",
        epochs=3,
        early_stopping=None,
        keep="last",
    )
    assert run.result["epochs"] == 3
    assert len(_seen[True]) >= 3 * 10
    assert not set(_seen[True]) & set(originals)
    blank = torch.zeros(3, SIDE, SIDE).numpy().tobytes()  # what the shape of a user's network is tried with
    evaluated = Counter(picture for picture in _seen[False] if picture != blank)
    # Validation after each epoch and once at the end, test once.
    expected = {originals[i]: 4 if i % 3 == 1 else 1 for i in range(30) if i % 3}
    assert evaluated == expected
