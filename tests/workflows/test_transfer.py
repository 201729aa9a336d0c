"""Transfer from a network with weights in a file, and from a run; all with timm's smallest network."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import netloom
from netloom.cli import app
from netloom.errors import ModelError, NetloomError, RecipeError, RunError
from netloom.models.backbones import TRUNK_PREFIX, timm
from netloom.models.pretrained import digest_of
from netloom.models.registry import model_names
from netloom.run import RunFolder
from netloom.workflows import transfer as transfer_module
from netloom.workflows.builders import note_on_unused
from netloom.workflows.transfer import backbone_settings
from picture_folders import stripes, write_folder

pytestmark = pytest.mark.usefixtures("one_thread")

NAME = "test_resnet"
# Pictures of 32 pixels take milliseconds; its own size is 160.
QUICK: dict[str, Any] = {"image_size": 32, "epochs": 2, "batch_size": 16, "precision": "float32", "shards": 0}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / f"{NAME}.safetensors"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        save_file(timm().create_model(NAME, num_classes=0).state_dict(), path)
    return path


def transfer(photos: Path, out: Path, **options: Any) -> netloom.Run:
    settings = {**QUICK, **options.pop("settings", {})}
    return netloom.transfer(
        photos, options.pop("backbone", NAME), out=out, quiet=True, device="cpu", settings=settings, **options
    )


@pytest.fixture(scope="module")
def frozen(photos: Path, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> netloom.Run:
    return transfer(photos, tmp_path_factory.mktemp("frozen"), weights=weights, mode="frozen")


def test_a_frozen_network_keeps_the_weights_of_the_file_bit_for_bit(frozen: netloom.Run, weights: Path) -> None:
    kept, given = load_file(frozen.weights_path), load_file(weights)
    trunk = {key.removeprefix(TRUNK_PREFIX): value for key, value in kept.items() if key.startswith(TRUNK_PREFIX)}
    assert trunk
    assert all(torch.equal(value, given[key]) for key, value in trunk.items())
    result = frozen.result
    classifier = sum(value.numel() for key, value in kept.items() if key.startswith("classifier."))
    assert result["trainable_parameters"] == classifier
    assert result["parameters"] > 10 * classifier


def test_the_recipe_says_what_was_settled(frozen: netloom.Run, weights: Path) -> None:
    recipe = frozen.recipe
    assert recipe.model == f"timm/{NAME}"
    assert recipe.transfer is not None
    assert recipe.transfer.mode == "frozen"
    assert recipe.transfer.weights == str(weights.resolve())
    assert recipe.transfer.weights_sha256 == digest_of(weights)
    assert recipe.color == "rgb"
    config = timm().get_pretrained_cfg(NAME)
    assert frozen.data.mean == config.mean
    assert frozen.data.std == config.std


def test_the_run_needs_the_weights_no_more(photos: Path, weights: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(weights.read_bytes())
    run = transfer(photos, tmp_path / "runs", weights=copy, mode="finetune")
    copy.unlink()
    again = netloom.load(run.path)
    assert again.evaluate()["accuracy"] == run.result["test"]["accuracy"]
    picture = next((photos / "down").iterdir())
    assert again.predict(picture)[0]["predictions"][0]["class"] in run.data.class_names
    assert netloom.resume(run.path, epochs=3, quiet=True).result["epochs"] == 3


@pytest.mark.parametrize("classifier", ["logistic", "network", "knn"])
def test_features_of_the_weights_are_classified(
    classifier: str, photos: Path, weights: Path, tmp_path: Path, frozen: netloom.Run
) -> None:
    run = transfer(photos, tmp_path, weights=weights, classifier=classifier)
    kept, given = load_file(run.weights_path), load_file(weights)
    assert all(torch.equal(kept[TRUNK_PREFIX + key], value) for key, value in given.items())
    assert ("head.dense1.weight" in kept) == (classifier == "network")
    told = netloom.summary(str(run.recipe_path), classes=3)
    assert (told.parameters, told.trainable_parameters) == tuple(
        run.result[key] for key in ("parameters", "trainable_parameters")
    )
    assert not any(stage.trainable for stage in told.stages if stage.name.startswith(("stem", "block")))
    assert run.evaluate()["accuracy"] == run.result["test"]["accuracy"]
    assert netloom.compare([run.path, frozen.path]).pairs
    # Three kinds of texture are told apart even by random convolutions.
    assert run.result["test"]["accuracy"] > (0.3 if classifier == "network" else 0.6)


def test_fine_tuning_starts_from_the_weights_and_moves_them(photos: Path, weights: Path, tmp_path: Path) -> None:
    # The head alone, which starts from a regression, may well be the best on ten pictures.
    run = transfer(photos, tmp_path, weights=weights, mode="finetune", unfreeze=1, settings={"keep": "last"})
    kept, given = load_file(run.weights_path), load_file(weights)
    trunk = {key.removeprefix(TRUNK_PREFIX): value for key, value in kept.items() if key.startswith(TRUNK_PREFIX)}
    moved = {key for key, value in trunk.items() if not torch.equal(value, given[key])}
    assert moved
    last = max(key.partition(".")[0] for key in trunk if key.startswith("layer"))
    assert {key.partition(".")[0] for key in moved} == {last}


@pytest.mark.parametrize("cut", [None, "block3"])
def test_an_average_remembers_what_is_trained_and_forgets_what_is_drawn(
    cut: str | None, photos: Path, weights: Path, tmp_path: Path
) -> None:
    """Few steps lead the one not far from its start, and the other nearly as far as without an average."""
    given = load_file(weights)
    moved = []
    for name, ema in (("without", None), ("with", {"decay": 0.99})):
        settings = {"keep": "last", "schedule": {}, "learning_rate": 1e-3, "ema": ema}
        run = transfer(
            photos, tmp_path / name, weights=weights, mode="finetune", unfreeze="all", cut=cut, settings=settings
        )
        kept = load_file(run.weights_path)[TRUNK_PREFIX + "layer1.0.conv1.weight"]
        moved.append(float((kept - given["layer1.0.conv1.weight"]).norm()))
    share = moved[1] / moved[0]
    assert share < 0.1 if cut is None else share > 0.7


@pytest.mark.parametrize(("mode", "epochs"), [("finetune", 10), ("frozen", 15)])
def test_the_page_of_a_shipped_recipe_has_running_averages(
    mode: str, epochs: int, photos: Path, weights: Path, tmp_path: Path
) -> None:
    quick = {key: value for key, value in QUICK.items() if key != "epochs"}
    run = netloom.transfer(
        photos, NAME, weights=weights, mode=mode, out=tmp_path, quiet=True, device="cpu", settings=quick
    )
    assert len(run.history) == epochs
    page = run.report_path.read_text(encoding="utf-8")
    assert all(f'id="{name}-average"' in page for name in ("loss-validation", "loss-train", "accuracy-validation"))
    assert "Thick lines are running averages" in page


def test_few_epochs_have_none(frozen: netloom.Run) -> None:
    page = frozen.report_path.read_text(encoding="utf-8")
    assert 'id="loss-validation"' in page
    assert "-average" not in page
    assert "running average" not in page


def test_other_weights_than_noted_are_refused(frozen: netloom.Run, photos: Path, weights: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    tensors = load_file(weights)
    save_file({key: value + 1 for key, value in tensors.items()}, other)
    mapping = frozen.recipe.to_mapping()
    mapping["transfer"]["weights"] = str(other)
    with pytest.raises(ModelError, match=r"not those that this recipe was first trained with.*weights_sha256=null"):
        netloom.train(photos, netloom.Recipe.from_mapping(mapping), out=tmp_path / "runs", quiet=True)
    assert not (tmp_path / "runs").exists()
    changed = netloom.load_recipe(frozen.recipe, {"transfer.weights": str(other)})
    assert changed.transfer is not None
    assert changed.transfer.weights_sha256 is None


def test_the_recipe_of_a_run_repeats_it(frozen: netloom.Run, photos: Path, tmp_path: Path) -> None:
    again = netloom.train(photos, frozen.recipe_path, out=tmp_path, quiet=True, plan=frozen.plan)
    assert again.weights_path.read_bytes() == frozen.weights_path.read_bytes()


def test_published_weights_come_from_the_data_folder(
    photos: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / weights.name).write_bytes(weights.read_bytes())
    monkeypatch.setenv("NETLOOM_DATA", str(tmp_path))
    run = transfer(photos, tmp_path / "runs", mode="frozen", settings={"epochs": 1})
    recipe = run.recipe
    assert recipe.transfer is not None
    assert recipe.transfer.weights == "published"
    assert recipe.transfer.weights_sha256 == digest_of(weights)


def test_a_run_of_ones_own_is_a_backbone(photos: Path, tmp_path: Path) -> None:
    small = {"model": "convnet", "filters": [4, 6], "dense_units": [5], "epochs": 1, "normalization": "before"}
    first = netloom.train(photos, out=tmp_path, quiet=True, settings={**QUICK, "image_size": 16, **small})
    second = transfer(
        write_folder(tmp_path / "others", classes=("across", "plain"), side=14),
        tmp_path,
        backbone=first.path,
        mode="frozen",
        settings={"image_size": first.data.image_size, "epochs": 1},
    )
    assert second.recipe.model == "convnet"
    assert second.recipe.filters == [4, 6]
    assert second.data.mean == first.data.mean
    before, after = load_file(first.weights_path), load_file(second.weights_path)
    trunk = [key for key in before if key.startswith("trunk.")]
    assert all(torch.equal(before[key], after[key]) for key in trunk)
    assert not torch.equal(before["head.dense1.weight"], after["head.dense1.weight"])
    cut = transfer(
        photos,
        tmp_path,
        backbone=str(first.path),
        cut="block1",
        mode="frozen",
        settings={"image_size": 16},
    )
    after = load_file(cut.weights_path)
    assert torch.equal(before["trunk.block1.conv1.weight"], after["trunk.block1.conv1.weight"])
    assert not torch.equal(before["trunk.block2.conv1.weight"], after["trunk.block2.conv1.weight"])


def test_pictures_take_the_networks_own_size_and_grey_ones_become_colour(weights: Path, tmp_path: Path) -> None:
    grey = tmp_path / "grey"
    for kind, name in enumerate(("across", "down")):
        (grey / name).mkdir(parents=True)
        for i in range(12):
            Image.fromarray(stripes(kind, 100 * kind + i)[..., 0]).save(grey / name / f"{i}.png")
    run = netloom.transfer(
        grey, NAME, weights=weights, mode="frozen", out=tmp_path, quiet=True, settings={"epochs": 1, "shards": 0}
    )
    assert run.data.image_size == timm().get_pretrained_cfg(NAME).input_size[1:]
    assert run.data.channels == 3


def test_cross_validation_starts_every_fold_from_the_weights(photos: Path, weights: Path, tmp_path: Path) -> None:
    settings = {**QUICK, "epochs": 1, "model": f"timm/{NAME}", "transfer.weights": str(weights)}
    found = netloom.cross_validate(
        photos, "transfer-frozen", folds=2, jobs=1, out=tmp_path, quiet=True, settings=settings
    )
    given = load_file(weights)
    for run in found.runs:
        kept = load_file(run.weights_path)
        assert all(torch.equal(kept[TRUNK_PREFIX + key], value) for key, value in given.items())


def test_a_backbone_without_pretrained_weights_trains_from_scratch(photos: Path, tmp_path: Path) -> None:
    run = netloom.train(photos, out=tmp_path, quiet=True, settings={**QUICK, "epochs": 1, "model": f"timm/{NAME}"})
    assert run.result["trainable_parameters"] == run.result["parameters"]


def test_a_cut_has_what_follows_it_trained(photos: Path, weights: Path, tmp_path: Path) -> None:
    """Features behind random layers would tell nothing."""
    run = transfer(photos, tmp_path, weights=weights, cut="block1")
    assert run.recipe.transfer is not None
    assert run.recipe.transfer.mode == "finetune"
    kept, given = load_file(run.weights_path), load_file(weights)
    last = "layer4.0.conv1.weight"
    assert not torch.equal(kept[TRUNK_PREFIX + last], given[last])
    with pytest.raises(RecipeError, match=r"transfer\.cut: .* use mode: finetune \(--mode finetune\), or frozen"):
        transfer(photos, tmp_path, weights=weights, cut="block1", mode="features")


def test_a_recipe_keeps_its_own_mode_and_head(photos: Path, weights: Path, tmp_path: Path) -> None:
    written = tmp_path / "mine.yaml"
    written.write_text("extends: transfer-frozen\ndense_units: [7]\n", encoding="utf-8")
    chosen = transfer(photos, tmp_path, weights=weights, recipe=written).recipe
    assert chosen.transfer is not None
    assert (chosen.transfer.mode, chosen.dense_units, chosen.dense_dropout) == ("frozen", [7], None)
    said = transfer(photos, tmp_path, weights=weights, recipe=written, mode="features", classifier="network").recipe
    assert said.transfer is not None
    assert (said.transfer.mode, said.transfer.classifier) == ("features", "network")
    assert (said.dense_units, said.dense_dropout) == ([7], 0.5)
    given = netloom.load_recipe("transfer-finetune")
    tuned = transfer(photos, tmp_path, weights=weights, recipe=given, unfreeze=1).recipe
    assert tuned.transfer is not None
    assert (tuned.transfer.mode, tuned.transfer.unfreeze) == ("finetune", 1)


@pytest.mark.parametrize("name", model_names())
def test_a_network_behind_features_is_the_shipped_head_or_refused_in_words(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Never another trunk, nor a list of options that nobody has asked for."""
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(transfer_module, "train", lambda source, base, **more: asked.append(more["settings"]))
    if name in {"lenet5", "mlp", "resnet20", "resnet32", "resnet56", "speednet"}:
        with pytest.raises(RecipeError, match=rf"{name} has no such layers\. Choose --classifier logistic or knn, or"):
            netloom.transfer("photos", name, weights="random", classifier="network")
        assert not asked
        return
    netloom.transfer("photos", name, weights="random", classifier="network")
    options = netloom.load_recipe("transfer-features", asked[0]).model_options()
    assert options == {"dense_units": [256], "dense_dropout": 0.5}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"dense_units": [5]}, "dense_units changes nothing"),
        (
            {"dense_dropout": 0.5, "augmentation.zoom": 0.1, "transfer.classifier": "knn"},
            "dense_dropout and augmentation change nothing: the classifier knn",
        ),
        ({"dense_units": [5], "transfer.classifier": "network"}, None),
        (
            {"augmentation.zoom": 0.1, "transfer.classifier": "network"},
            "augmentation changes nothing: the classifier network is trained on features of the pictures as they are.",
        ),
        ({"progressive_resizing": {}, "transfer.classifier": "network"}, "progressive_resizing changes nothing"),
        ({"augmentation.zoom": 0.1, "transfer.views": 1}, None),
    ],
)
def test_what_changes_nothing_is_told(settings: dict[str, Any], words: str | None) -> None:
    told = note_on_unused(netloom.load_recipe("transfer-features", settings))
    assert told is None if words is None else told is not None and told.startswith(words)


@pytest.mark.parametrize("change", [{"depth_rate": 0.5}, {"batch_norm": "trained"}])
def test_what_is_of_another_mode_is_left_out_of_a_run_of_before(change: dict[str, Any], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    values = {"model": f"timm/{NAME}", "transfer": {"mode": "frozen", **change}}
    (folder / "recipe.yaml").write_text(json.dumps(values), encoding="utf-8")
    transfer = RunFolder(folder).recipe.transfer
    assert transfer is not None
    assert (transfer.mode, transfer.depth_rate, transfer.batch_norm) == ("frozen", 0.8, "frozen")


def test_a_recipe_of_ones_own_beside_a_backbone(photos: Path, weights: Path, tmp_path: Path) -> None:
    """It says what the head is like, but neither how the backbone's pictures are scaled nor another one's weights."""
    own = tmp_path / "own.yaml"
    own.write_text("epochs: 1\n", encoding="utf-8")
    options: dict[str, Any] = {"out": tmp_path, "quiet": True, "device": "cpu", "settings": {"image_size": 32}}
    run = netloom.transfer(photos, NAME, weights=weights, recipe=own, **options)
    assert run.recipe.input_scaling == "pretrained"
    other = netloom.load_recipe("transfer-features", {"model": "timm/test_efficientnet", "transfer.weights": "x"})
    assert transfer_module._beside_recipe({"model": f"timm/{NAME}"}, other)["transfer.weights"] == "published"
    same = {"model": "timm/test_efficientnet"}
    assert transfer_module._beside_recipe(same, other) == same
    of_run = {"model": "convnet", "dense_units": [512], "dropout": 0.5, "filters": [8]}
    wanted = netloom.load_recipe("transfer-frozen", {"model": "convnet", "dense_units": [64]})
    assert transfer_module._beside_recipe(of_run, wanted) == {"model": "convnet", "dropout": 0.5, "filters": [8]}


def test_that_it_changes_nothing_is_said(
    photos: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {**QUICK, "model": f"timm/{NAME}", "transfer.weights": str(weights), "dense_units": [5]}
    netloom.train(photos, "transfer-features", out=tmp_path, settings=settings)
    assert "note: dense_units changes nothing" in capsys.readouterr().err
    netloom.cross_validate(photos, "transfer-features", folds=2, jobs=1, out=tmp_path, settings=settings)
    assert "note: dense_units changes nothing" in capsys.readouterr().err


def invoke(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result.exit_code, result.output


def quick_settings() -> list[str]:
    return [part for key, value in QUICK.items() for part in ("--set", f"{key}={value}")]


def test_the_command_line(photos: Path, weights: Path, tmp_path: Path) -> None:
    code, output = invoke(
        "transfer", photos, "--backbone", NAME, "--weights", weights, "--mode", "finetune", "--unfreeze", "2",
        "--per-class", "5", "--out", tmp_path, "--json", "--quiet", *quick_settings(),
    )  # fmt: skip
    assert code == 0
    result = json.loads(output)
    assert result["model"] == f"timm/{NAME}"
    recipe = netloom.load(result["run"]).recipe
    assert recipe.transfer is not None
    assert recipe.transfer.unfreeze == 2
    assert result["train_n"] == 5 * 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--backbone", "test_resnt"], "Unknown backbone 'test_resnt'. Did you mean 'test_resnet'?"),
        (["--backbone", NAME, "--weights", "no.safetensors"], "There are no weights at no.safetensors"),
        (["--backbone", NAME, "--weights", "model.pth"], "must be a .safetensors file"),
        (["--backbone", NAME, "--weights", "{vit}"], "belong to another network than timm/test_resnet"),
        (["--backbone", NAME, "--weights", "{truncated}"], "truncated, damaged or no .safetensors file"),
        (["--backbone", NAME, "--weights", "{hostile}"], "truncated, damaged or no .safetensors file"),
        (["--backbone", NAME], "There are three ways"),
        (["--backbone", "runs/nothing"], "There is no run folder runs/nothing"),
        (
            ["--backbone", NAME, "--weights", "{good}", "--cut", "blok1"],
            "no stage 'blok1' with pretrained weights. Did you mean",
        ),
        (["--backbone", NAME, "--weights", "{good}", "--mode", "frozen", "--unfreeze", "1"], "--unfreeze is for mode"),
        (
            ["--backbone", NAME, "--weights", "{good}", "--mode", "finetune", "--unfreeze", "blok1"],
            "Did you mean 'block1'?",
        ),
        (
            ["--backbone", NAME, "--weights", "{good}", "--mode", "frozen", "--classifier", "knn"],
            "is for mode features",
        ),
        (["--backbone", "tv_resnet34"], "tells nothing of tv_resnet34 any more. It is called resnet34.tv_in1k by now."),
        (["--backbone", NAME, "--weights", "{vit}", "--mode", "auto"], "belong to another network than timm/test_re"),
        (
            ["--backbone", NAME, "--weights", "{good}", "--mode", "auto", "--cut", "blok1"],
            "no stage 'blok1' with pretrained weights. Did you mean",
        ),
        (
            ["--backbone", NAME, "--weights", "{good}", "--mode", "auto", "--unfreeze", "blok1"],
            "Did you mean 'block1'?",
        ),
    ],
)
def test_bad_input_is_told_and_leaves_nothing_behind(
    arguments: list[str],
    message: str,
    photos: Path,
    weights: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    files = {key: tmp_path / f"{key}.safetensors" for key in ("vit", "truncated", "hostile", "good")}
    save_file(timm().create_model("test_vit").state_dict(), files["vit"])
    files["good"].write_bytes(weights.read_bytes())
    files["truncated"].write_bytes(weights.read_bytes()[:1000])
    files["hostile"].write_bytes((2**62).to_bytes(8, "little") + b"{" * 100)
    given = [argument.format(**files) if argument.startswith("{") else argument for argument in arguments]
    code, output = invoke("transfer", photos, *given, "--out", tmp_path / "runs", *quick_settings())
    assert code == 2
    assert message in output.replace("\n", "")
    assert not (tmp_path / "runs").exists()


def test_what_a_backbone_cannot_be(frozen: netloom.Run, photos: Path, weights: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="has weights of its own"):
        transfer(photos, tmp_path, backbone=frozen.path, weights=weights)
    with pytest.raises(RecipeError, match=r"no mode 'finetun'\. Did you mean 'finetune'"):
        transfer(photos, tmp_path, weights=weights, mode="finetun")
    with pytest.raises(RunError, match="no run folder"):
        transfer(photos, tmp_path, backbone=tmp_path / "none")
    with pytest.raises(ModelError, match="no published weights of convnet"):
        netloom.train(photos, out=tmp_path, quiet=True, settings={**QUICK, "transfer.mode": "frozen"})
    with pytest.raises(ModelError, match="input_scaling: pretrained needs weights"):
        netloom.train(photos, out=tmp_path, quiet=True, settings={**QUICK, "input_scaling": "pretrained"})
    with pytest.raises(NetloomError, match="color: rgb"):
        transfer(photos, tmp_path, weights=weights, settings={"color": "grey"})
    with pytest.raises(RecipeError, match="first_layer: a pretrained network has its own"):
        transfer(photos, tmp_path, weights=weights, settings={"first_layer": "whitening"})
    assert [path.name for path in tmp_path.iterdir()] == []


def test_a_folder_of_the_networks_name_does_not_hide_it(
    frozen: netloom.Run, photos: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for _ in range(2):  # the first makes the folder
        run = transfer(photos, Path(NAME), weights=weights)
        assert run.recipe.model == f"timm/{NAME}"
    shutil.copytree(frozen.path, "mine")
    assert backbone_settings("mine")["transfer.weights"] == "mine"
    shutil.copytree(frozen.path, "resnet18")
    assert backbone_settings("resnet18")["transfer.weights"] == "resnet18"
    Path("birds").mkdir()
    with pytest.raises(RunError, match=r"birds is not a run: it has no recipe\.yaml"):
        backbone_settings("birds")


@pytest.mark.parametrize(
    ("settings", "trainable", "tensors"),
    [({}, 16_812_353, 30), ({"transfer.mode": "frozen"}, 2_097_665, 4)],
)
def test_parameters_of_vgg16_in_the_summary(settings: dict[str, Any], trainable: int, tensors: int) -> None:
    """Chollet, Deep learning with Python, 2017, section 5.3; two tensors for each of 13 + 2 layers."""
    found = netloom.summary(
        "timm/vgg16",
        input_shape="3x150x150",
        settings={"head_pooling": "flatten", "dense_units": [256], "loss": "binary_cross_entropy", **settings},
    )
    assert found.parameters == 16_812_353
    assert found.trainable_parameters == trainable
    assert 2 * sum(layer.trainable for layer in found.layers) == tensors
    assert [stage.name for stage in found.stages] == [*(f"block{i}" for i in range(1, 6)), "head", "classifier"]
    assert sum(stage.parameters for stage in found.stages if stage.trainable) == trainable
