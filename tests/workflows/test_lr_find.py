"""`netloom lr-find` leaves no trace: a training after it has the same bits, and no file appears but the plot."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner, Result

import netloom
from netloom.cli import app
from netloom.data.batches import Batch
from netloom.errors import RecipeError, RunError
from netloom.features import FeatureExtractor
from netloom.training.step import TrainingStep
from picture_folders import write_folder

pytestmark = pytest.mark.usefixtures("one_thread")

SETTINGS = {
    "filters": [4, 8],
    "batch_size": 8,
    "epochs": 1,
    "precision": "float32",
    "dropout": 0.3,
    "max_norm": 2.0,
    "l2": 1e-4,
    "class_weight": "auto",
    "augmentation.mixup": 0.2,
}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("photos") / "photos", per_class=12)


def lr_find(*arguments: object) -> Result:
    settings = ["--set", "filters=[4,8]", "--set", "batch_size=8", "--set", "precision=float32"]
    return CliRunner().invoke(app, ["lr-find", *map(str, arguments), *settings, "--steps", "50", "-q"])


def train(photos: Path, out: Path) -> tuple[bytes, list[list[float]]]:
    run = netloom.train(photos, "photos", out=out, quiet=True, settings=SETTINGS)
    figures = [[v for k, v in row.items() if k not in ("seconds", "images_per_second")] for row in run.history]
    return run.weights_path.read_bytes(), figures


def test_a_training_after_it_has_the_same_bits(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = train(photos, tmp_path / "without")
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    torch.manual_seed(3)
    drawn = torch.rand(3)
    torch.manual_seed(3)
    found = netloom.lr_find(photos, "photos", n_steps=60, quiet=True, settings=SETTINGS)
    assert len(found.rates) > 10
    assert torch.equal(torch.rand(3), drawn)
    assert not list(folder.iterdir())
    assert train(photos, tmp_path / "after") == expected


def test_a_network_of_the_users_own_stays_as_it_is(photos: Path) -> None:
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Flatten(), torch.nn.Linear(400, 3)
    )
    model[1].eval()
    before = copy.deepcopy(model.state_dict())
    netloom.lr_find(photos, model=model, n_steps=60, quiet=True, batch_size=8)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == [True, True, False, True, True]
    assert model[0].weight.is_contiguous()


def test_the_command_names_rates_to_set_and_marks_them_in_the_plot(photos: Path, tmp_path: Path) -> None:
    plot = tmp_path / "rates.svg"
    result = lr_find(photos, "--plot", plot, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert len(found["rates"]) == len(found["losses"]) == len(found["smoothed_losses"])
    rate = found["suggestions"]["steepest"]
    assert found["rates"][0] <= rate <= found["rates"][-1]
    drawing = ElementTree.fromstring(plot.read_text(encoding="utf-8"))
    groups = {element.get("id") for element in drawing.iter()}
    assert {"smoothed", "losses", "steepest descent"} <= groups
    assert f"{rate:.2g}" in "".join(drawing.itertext())
    text = lr_find(photos).stdout
    assert f"--set learning_rate={rate:.2g}" in text


@pytest.mark.parametrize("ending", ["png", "html"])
def test_plots_are_files_of_their_kind_and_replaced_only_by_force(photos: Path, tmp_path: Path, ending: str) -> None:
    plot = tmp_path / f"rates.{ending}"
    plot.write_text("mine")
    refused = lr_find(photos, "--plot", plot)
    assert (refused.exit_code, plot.read_text()) == (2, "mine")
    assert "--force" in refused.stderr
    assert lr_find(photos, "--plot", plot, "--force").exit_code == 0
    if ending == "png":
        with Image.open(plot) as image:
            assert image.format == "PNG"
    else:
        page = plot.read_text(encoding="utf-8")
        assert "data:image/svg+xml;base64," in page
        assert "default-src 'none'" in page
        assert "://" not in page


def test_mistakes_are_told_before_anything_is_computed(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"ends in \.svg, \.png, \.html"):
        netloom.lr_find(photos, plot=tmp_path / "rates.jpg")
    assert "min_rate < max_rate" in lr_find(photos, "--min-rate", 1, "--max-rate", 0.1).stderr


def test_the_plots_folder_is_made_and_one_that_cannot_be_is_told_before_the_work(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert lr_find(photos, "--plot", tmp_path / "missing" / "rates.svg").exit_code == 0
    assert (tmp_path / "missing" / "rates.svg").is_file()

    def working(*_: object, **__: object) -> None:
        raise AssertionError("nothing is computed before the file is looked at")

    monkeypatch.setattr("netloom.workflows.lr_find.find_learning_rate", working)
    monkeypatch.setattr("netloom.workflows.lr_find.prepare_data", working)
    (tmp_path / "file").write_text("mine")
    result = lr_find(photos, "--plot", tmp_path / "file" / "rates.svg")
    assert result.exit_code == 2, result.exception
    assert f"Cannot write {tmp_path / 'file'}" in result.stderr


def test_a_head_on_features_is_tested_on_them(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it is trained: one pass through the network, in evaluation mode, and no augmented picture."""
    quick = {"filters": [4, 8], "head_pooling": "average", "epochs": 1, "precision": "float32", "shards": 0}
    backbone = netloom.train(photos, out=tmp_path, quiet=True, settings=quick)
    looked_at: list[int] = []
    own = FeatureExtractor.forward

    def counted(self: FeatureExtractor, x: torch.Tensor) -> torch.Tensor:
        assert not self.training
        looked_at.append(len(x))
        return own(self, x)

    monkeypatch.setattr(FeatureExtractor, "forward", counted)
    settings = {
        **{key: getattr(backbone.recipe, key) for key in ("model", "filters", "normalization", "head_pooling")},
        "augmentation": {"mixup": 0.2, "rotation": 20},
        "dense_units": [8],
        "batch_size": 8,
        "precision": "float32",
        "transfer.weights": str(backbone.path),
        "transfer.classifier": "network",
    }
    steps: list[set[str]] = []
    own_step = TrainingStep.__call__

    def stepped(self: TrainingStep, batch: Batch, step: int) -> Batch:
        steps.append(set(batch.inputs))
        return own_step(self, batch, step)

    monkeypatch.setattr(TrainingStep, "__call__", stepped)
    found = netloom.lr_find(photos, "transfer-features", n_steps=50, quiet=True, settings=settings)
    assert sum(looked_at) == 36
    assert len(steps) >= len(found.rates)
    assert all(names == {"features"} for names in steps)
    assert len(found.rates) > 10


def test_a_classifier_that_is_fitted_in_one_go_has_no_learning_rate(tmp_path: Path) -> None:
    settings = {"transfer.mode": "features", "transfer.weights": "random"}
    with pytest.raises(RecipeError, match="no learning rate"):
        netloom.lr_find(write_folder(tmp_path / "photos"), quiet=True, settings=settings)
