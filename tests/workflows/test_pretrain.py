"""`netloom pretrain`: from pictures without labels to a run that `transfer` starts from."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import netloom
from html_page import Page
from netloom.cli import app
from netloom.errors import DataError, ModelError, RecipeError, RunError
from netloom.progress import Reporter
from netloom.training.callbacks import Callback
from netloom.training.state import TrainingState
from netloom.workflows.pretraining_data import prepare_unlabelled
from netloom.workflows.pretraining_run import collapse_in_words
from netloom.workflows.training_run import InterruptedTrainingError
from netloom.workflows.transfer import backbone_settings
from picture_folders import write_folder

pytestmark = pytest.mark.usefixtures("one_thread")

SETTINGS: dict[str, Any] = {
    "model": "convnet",
    "filters": [8, 16],
    "normalization": "before",
    "head_pooling": "average",
    "batch_size": 16,
    "epochs": 2,
    "precision": "float32",
    "self_supervised.hidden_units": 32,
    "self_supervised.embedding_size": 16,
}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("photos") / "photos", per_class=40)


@pytest.fixture(scope="module")
def flat(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same pictures without class folders."""
    folder = tmp_path_factory.mktemp("flat") / "flat"
    folder.mkdir()
    for number, file in enumerate(sorted(photos.rglob("*.png"))):
        shutil.copy(file, folder / f"{number:03}.png")
    return folder


def pretrain(source: Path, out: Path, callback: Callback | None = None, **changes: Any) -> netloom.Run:
    callbacks = [] if callback is None else [callback]
    return netloom.pretrain(source, out=out, quiet=True, callbacks=callbacks, settings={**SETTINGS, **changes})


@pytest.fixture(scope="module")
def run(flat: Path, tmp_path_factory: pytest.TempPathFactory) -> netloom.Run:
    return pretrain(flat, tmp_path_factory.mktemp("runs"))


def test_a_flat_folder_gives_a_network_without_classifier(run: netloom.Run) -> None:
    result = run.result
    assert result["status"] == "finished"
    assert run.data.class_names == ()
    assert (result["train_n"], result["views"]) == (114, 2 * 2 * 7 * 16)  # of 120 pictures 6 show how it goes
    assert [row["epoch"] for row in run.history] == [1, 2]
    names = load_file(run.weights_path).keys()
    assert names
    assert all(name.startswith("trunk.") for name in names)
    assert 0 < result["spread"] < 2
    assert result["verdict"] == collapse_in_words(result["spread"])


def test_the_report_tells_of_collapse_in_words(run: netloom.Run) -> None:
    page = Page(run.report_path.read_text(encoding="utf-8"))
    assert run.result["verdict"] in page.words
    assert "no labels were looked at" in page.words
    assert f"--backbone {run.path}" in page.words


@pytest.mark.parametrize(
    ("spread", "words"),
    [(0.02, "collapsed"), (float("nan"), "collapsed"), (0.3, "close together"), (0.9, "No collapse")],
)
def test_spreads_in_words(spread: float, words: str) -> None:
    assert words in collapse_in_words(spread)


def test_training_teaches_to_find_partners(flat: Path, tmp_path: Path) -> None:
    run = pretrain(flat, tmp_path, epochs=12)
    first, last = run.history[0], run.history[-1]
    assert last["train_loss"] < 0.9 * first["train_loss"]
    assert last["validation_accuracy"] > 1.5 / 11  # chance is one of eleven


def test_a_figure_of_ones_own_is_in_the_table(flat: Path, tmp_path: Path) -> None:
    class Halves(Callback):
        def on_epoch_end(self, state: Any) -> None:
            state.history[-1]["half"] = 0.5

    assert [row["half"] for row in pretrain(flat, tmp_path, Halves()).history] == [0.5, 0.5]


def test_the_number_of_epochs_follows_from_that_of_pictures(flat: Path, tmp_path: Path) -> None:
    settings = {key: value for key, value in SETTINGS.items() if key != "epochs"}
    settings["self_supervised.pictures"] = 400
    run = netloom.pretrain(flat, out=tmp_path, quiet=True, settings=settings)
    assert run.result["epochs"] == run.recipe.epochs == 4  # 400 / 114


def test_epochs_that_a_recipe_says_itself_win(flat: Path, tmp_path: Path) -> None:
    written = tmp_path / "mine.yaml"
    small = {key: value for key, value in SETTINGS.items() if key != "epochs"}
    for text in ("extends: pretrain\nepochs: 3\n", "self_supervised: {}\naugmentation: {hue: 0.1}\nepochs: 3\n"):
        written.write_text(text, encoding="utf-8")
        assert netloom.pretrain(flat, written, out=tmp_path, quiet=True, settings=small).result["epochs"] == 3
    shipped = netloom.load_recipe("pretrain", small)
    assert netloom.pretrain(flat, shipped.replace(epochs=1), out=tmp_path, quiet=True).result["epochs"] == 1


@pytest.mark.parametrize(
    ("changes", "pictures"),
    [
        ({"seed": 1}, 300_000),
        ({"epochs": 5}, None),
        ({"epochs": 50}, None),
        ({"epochs": 5, "self_supervised.pictures": 400}, 400),
        ({"epochs": 5, "self_supervised": {"pictures": 400}}, 400),
        ({"epochs": 5, "self_supervised": {"temperature": 0.5}}, None),
    ],
)
def test_what_says_the_length(changes: dict[str, Any], pictures: int | None) -> None:
    for recipe in (netloom.load_recipe("pretrain", changes), netloom.load_recipe("pretrain").replace(**changes)):
        assert recipe.self_supervised is not None
        assert recipe.self_supervised.pictures == pictures
        again = netloom.load_recipe(recipe)
        assert again == recipe


class Interrupt(Callback):
    """Asks for the end of the training after a step, or with `epoch` during that one's validation."""

    def __init__(self, step: int = 0, *, epoch: int = 0, number: int = signal.SIGINT) -> None:
        self.step, self.epoch, self.number = step, epoch, number

    def on_batch_end(self, state: TrainingState) -> None:
        if state.step == self.step:
            signal.raise_signal(self.number)

    def on_validation_start(self, state: TrainingState) -> None:
        if state.epoch + 1 == self.epoch:
            signal.raise_signal(self.number)


@pytest.mark.parametrize("step", [3, 7, 10])
def test_a_resumed_pretraining_has_the_bits_of_a_whole_one(
    run: netloom.Run, flat: Path, tmp_path: Path, step: int
) -> None:
    with pytest.raises(InterruptedTrainingError, match="netloom pretrain --resume") as error:
        pretrain(flat, tmp_path, Interrupt(step))
    path = error.value.run.path
    assert error.value.run.result["status"] == "interrupted"
    resumed = netloom.resume_pretraining(path, quiet=True)
    assert resumed.result["status"] == "finished"
    for name in ("weights_path", "checkpoint_path"):
        ours, theirs = load_file(getattr(resumed, name)), load_file(getattr(run, name))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert resumed.result["spread"] == run.result["spread"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_during_the_last_validation_is_heard(
    run: netloom.Run, flat: Path, tmp_path: Path, number: int
) -> None:
    """SIGTERM leaves no time for a verdict and a report."""
    with pytest.raises(InterruptedTrainingError, match="after 2 of 2 epochs") as error:
        pretrain(flat, tmp_path, Interrupt(epoch=2, number=number))
    cut = error.value.run
    at_once = number == signal.SIGTERM
    assert ("spread" not in cut.result, not cut.report_path.is_file()) == (at_once, at_once)
    resumed = netloom.resume_pretraining(cut.path, quiet=True)
    assert (resumed.result["status"], resumed.result["spread"]) == ("finished", run.result["spread"])
    ours, theirs = load_file(resumed.weights_path), load_file(run.weights_path)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_a_finished_run_without_its_report_gets_it(run: netloom.Run, tmp_path: Path) -> None:
    """As if it had been killed while the report was drawn."""
    copy = shutil.copytree(run.path, tmp_path / "copy")
    (copy / "report.html").unlink()
    assert netloom.resume_pretraining(copy, quiet=True).result == run.result
    assert "No collapse" in (copy / "report.html").read_text("utf-8")


def test_labelled_pictures_are_split_as_a_training_splits_them(photos: Path, tmp_path: Path) -> None:
    """So that no picture that a classifier on the run is tested with was learned from."""
    run = pretrain(photos, tmp_path / "a", epochs=1)
    trained = netloom.train(photos, out=tmp_path / "b", quiet=True, settings={"filters": [4], "epochs": 1})
    for part in ("train", "validation", "test"):
        assert run.split[part] == trained.split[part]
    assert run.data.class_names == ()
    assert run.result["train_n"] == len(run.split["train"])


def test_a_test_folder_without_classes_is_left_alone(flat: Path, tmp_path: Path) -> None:
    folder = tmp_path / "parts"
    files = sorted(flat.glob("*.png"))
    for part, chosen in (("train", files[:100]), ("Test", files[100:])):
        (folder / part).mkdir(parents=True)
        for file in chosen:
            shutil.copy(file, folder / part)
    run = pretrain(folder, tmp_path / "runs", epochs=1)
    assert len(run.split["test"]) == 20
    assert all(name.startswith("Test/") for name in run.split["test"])
    assert len(run.split["train"]) + len(run.split["validation"]) == 100


def test_how_pictures_are_read_is_said(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Class folders are split as a training splits them; with a picture beside them all are learned from."""
    recipe, folder = netloom.load_recipe("pretrain"), tmp_path / "photos"
    shutil.copytree(photos, folder)
    labelled = prepare_unlabelled(folder, recipe, Reporter())
    assert "120 pictures of 3 classes, split as `netloom train` does, at 12x12" in capsys.readouterr().err
    assert len(labelled.split.test) == 24
    shutil.copy(next(photos.rglob("*.png")), folder / "beside.png")
    unlabelled = prepare_unlabelled(folder, recipe, Reporter())
    said = capsys.readouterr().err
    assert "121 pictures without classes, at 12x12" in said
    assert "note: 1 picture lies beside the folders 'across', 'down', 'plain', which are therefore not taken" in said
    assert (len(unlabelled.split.test), len(unlabelled.image_set)) == (0, 121)


def test_transfer_starts_from_the_run(run: netloom.Run, photos: Path, tmp_path: Path) -> None:
    classifier = netloom.transfer(photos, run.path, mode="features", out=tmp_path, quiet=True)
    ours, theirs = load_file(classifier.weights_path), load_file(run.weights_path)
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())
    assert classifier.data.mean == run.data.mean
    assert classifier.data.image_size == run.data.image_size
    assert classifier.result["test"]["n"] == 24


def test_the_weights_file_stands_alone(run: netloom.Run, photos: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.safetensors"
    shutil.copy(run.weights_path, file)
    classifier = netloom.transfer(photos, "convnet", weights=file, out=tmp_path / "runs", quiet=True)
    assert (classifier.data.mean, classifier.data.std) == (run.data.mean, run.data.std)
    assert classifier.data.image_size == run.data.image_size
    recipe = classifier.recipe
    for key in ("model", "filters", "normalization", "head_pooling"):
        assert getattr(recipe, key) == SETTINGS[key]
    ours, theirs = load_file(classifier.weights_path), load_file(file)
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())
    arguments = [str(photos), "--backbone", "convnet", "--weights", str(file), "--out", str(tmp_path / "runs")]
    told = CliRunner().invoke(app, ["transfer", *arguments, "--json", "--quiet"])
    assert told.exit_code == 0
    assert json.loads(told.output)["test"] == classifier.result["test"]


def test_what_is_asked_for_of_a_weights_file_wins(run: netloom.Run, photos: Path, tmp_path: Path) -> None:
    options = {"weights": run.weights_path, "out": tmp_path, "quiet": True}
    dropping = netloom.transfer(photos, "convnet", mode="frozen", dropout=0.5, epochs=1, **options)
    assert (dropping.recipe.dropout, dropping.recipe.filters) == (0.5, [8, 16])
    with pytest.raises(ModelError, match="belong to another network than convnet"):
        netloom.transfer(photos, "convnet", filters=[8, 8], **options)
    with pytest.raises(ModelError, match="belong to another network than resnet20"):
        netloom.transfer(photos, "resnet20", **options)
    with pytest.raises(ModelError, match="no published weights of convnet"):
        netloom.transfer(photos, "convnet", out=tmp_path, quiet=True)


def test_of_two_networks_of_a_name_the_file_says_which(tmp_path: Path) -> None:
    """There is a vgg11 of netloom's and one of timm's."""
    own, other = tmp_path / "own.safetensors", tmp_path / "published.safetensors"
    save_file({"a": torch.zeros(1)}, own, metadata={"model": '"vgg11"'})
    save_file({"a": torch.zeros(1)}, other)
    assert backbone_settings("vgg11", weights=own)["model"] == "vgg11"
    assert backbone_settings("vgg11", weights=other)["model"] == "timm/vgg11"
    assert backbone_settings("timm/vgg11", weights=own)["model"] == "timm/vgg11"
    assert backbone_settings("vgg11")["model"] == "timm/vgg11"


def test_a_network_of_timm_at_the_size_of_the_pictures(flat: Path, tmp_path: Path) -> None:
    settings = {"model": "timm/resnet10t", "epochs": 1, "batch_size": 57, "precision": "float32"}
    run = netloom.pretrain(flat, out=tmp_path, quiet=True, settings={**settings, "self_supervised.view_size": 1})
    assert run.data.image_size == (12, 12)
    assert run.result["status"] == "finished"


def test_a_whitened_first_layer_stays_as_it_is(flat: Path, tmp_path: Path) -> None:
    settings = {"model": "speednet", "filters": [8, 16], "normalization": None, "head_pooling": None, "image_size": 16}
    runs = [pretrain(flat, tmp_path, first_layer="frozen_whitening", epochs=n, **settings) for n in (1, 2)]
    first, second = (load_file(run.weights_path) for run in runs)
    assert torch.equal(first["trunk.stem.conv1.weight"], second["trunk.stem.conv1.weight"])
    assert not torch.equal(first["trunk.block1.conv1.weight"], second["trunk.block1.conv1.weight"])


def test_pictures_in_memory(photos: Path, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (90, 12, 12, 1), dtype=np.uint8)
    pictures = netloom.ImageSet.from_arrays(pixels, np.zeros(90, dtype=np.int64))
    with pytest.raises(InterruptedTrainingError) as error:
        netloom.pretrain(pictures, out=tmp_path, quiet=True, settings=SETTINGS, callbacks=[Interrupt(2)])
    path = error.value.run.path
    with pytest.raises(RunError, match="resume it from Python"):
        netloom.resume_pretraining(path, quiet=True)
    assert netloom.resume_pretraining(path, source=pictures, quiet=True).data.channels == 1


def test_what_cannot_be_is_refused_before_anything_is_written(flat: Path, photos: Path, tmp_path: Path) -> None:
    few = tmp_path / "few"
    few.mkdir()
    for file in sorted(flat.glob("*.png"))[:20]:
        shutil.copy(file, few)
    out = tmp_path / "runs"
    with pytest.raises(DataError, match="19 pictures to learn from; without labels that takes at least 64"):
        pretrain(few, out)
    empty = tmp_path / "empty"
    (empty / "a").mkdir(parents=True)
    (empty / "a" / "notes.txt").write_text("nothing")
    with pytest.raises(DataError, match="holds no pictures"):
        pretrain(empty, out)
    with pytest.raises(RecipeError, match="no group self_supervised"):
        netloom.pretrain(flat, "photos", out=out, quiet=True)
    with pytest.raises(RecipeError, match="augmentation: self_supervised learns from how views"):
        pretrain(flat, out, augmentation=None)
    with pytest.raises(RecipeError, match=r"(?s)per_class: .*validation_fraction: "):
        pretrain(flat, out, per_class=5, validation_fraction=0)
    with pytest.raises(RecipeError, match="cannot be divided"):
        pretrain(flat, out, shards=2)
    with pytest.raises(ModelError, match="views of 8x8 pixels"):
        pretrain(flat, out, head_pooling="flatten")
    vit = {"image_size": 32, "out": out, "quiet": True, "model": "timm/test_vit"}
    with pytest.raises(ModelError, match=r"views of 24x24 pixels \(Input height .*view_size: 1"):
        netloom.pretrain(flat, **vit)
    with pytest.raises(ModelError, match=r"has pictures of 20x20 pixels, .* \(Input height"):
        netloom.train(photos, progressive_resizing={}, **vit)
    with pytest.raises(RecipeError, match="`netloom pretrain SOURCE` trains it"):
        netloom.train(photos, "pretrain", out=out, quiet=True)
    assert not out.exists()


def test_verbs_that_need_classes_say_what_to_do(run: netloom.Run, photos: Path) -> None:
    for arguments in (["evaluate", str(run.path)], ["predict", str(run.path), str(photos)]):
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 2, result.output
        assert f"netloom transfer SOURCE --backbone {run.path}" in result.output


def test_the_command_line(flat: Path, tmp_path: Path) -> None:
    sets = [f"--set={key}={json.dumps(value)}" for key, value in SETTINGS.items() if key != "model"]
    command = ["pretrain", str(flat), "--model", "convnet", "--out", str(tmp_path), "--json", "--quiet", *sets]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert (found["model"], found["status"]) == ("convnet", "finished")
    finished = CliRunner().invoke(app, ["pretrain", "--resume", found["run"]])
    assert finished.exit_code == 0
    assert "is finished" in finished.output
    for wrong in (["pretrain"], ["pretrain", str(flat), "--resume", found["run"]], ["pretrain", str(tmp_path / "no")]):
        assert CliRunner().invoke(app, wrong).exit_code == 2
    refused = CliRunner().invoke(app, ["train", "--resume", found["run"]])
    assert refused.exit_code == 2
    assert "pretrain" in refused.output
