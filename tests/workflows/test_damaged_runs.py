"""Runs travel between people and disks: whatever a run's files hold, the answer is one message and exit code 2."""

from __future__ import annotations

import itertools
import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner

import netloom
from netloom.cli import app
from picture_folders import write_folder

Damage = Callable[[Path], None]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two epochs and, beside it, the pictures."""
    folder = tmp_path_factory.mktemp("whole")
    photos = write_folder(folder / "photos", per_class=10)
    return netloom.train(photos, out=folder, quiet=True, epochs=1, filters=[4, 8], augmentation=None).path


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    return shutil.copytree(whole, tmp_path / "run")


def message(*arguments: str | Path) -> str:
    """What the command says when it refuses; it must do so in its own words."""
    result = CliRunner().invoke(app, list(map(str, arguments)))
    assert result.exit_code == 2, (result.stdout, result.stderr, result.exception)
    assert isinstance(result.exception, SystemExit)
    assert len(result.stderr) < 2500
    return result.stderr


def content(name: str, data: bytes) -> Damage:
    return lambda run: (run / name).write_bytes(data) and None


def changed(name: str, **values: Any) -> Damage:
    def damage(run: Path) -> None:
        old = json.loads((run / name).read_text(encoding="utf-8"))
        (run / name).write_text(json.dumps({**old, **values}), encoding="utf-8")

    return damage


def checkpoint(**values: Any) -> Damage:
    """Other JSON values in the checkpoint, whose tensors stay."""

    def damage(run: Path) -> None:
        path = run / "checkpoint.safetensors"
        data = path.read_bytes()
        (length,) = struct.unpack("<Q", data[:8])
        header = json.loads(data[8 : 8 + length])
        training = {**json.loads(header["__metadata__"]["training"]), **values}
        header["__metadata__"]["training"] = json.dumps(training)
        packed = json.dumps(header).encode()
        path.write_bytes(struct.pack("<Q", len(packed)) + packed + data[8 + length :])

    return damage


def quantized(prefix: str) -> Damage:
    """Whole numbers of 8 bits in place of a checkpoint's floating-point ones."""

    def damage(run: Path) -> None:
        path = run / "checkpoint.safetensors"
        with safe_open(path, "np") as file:
            tensors, texts = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
        small = {k: v.astype(np.int8) if k.startswith(prefix) and v.ndim else v for k, v in tensors.items()}
        assert any(v.dtype == np.int8 for v in small.values())
        save_file(small, path, metadata=texts)

    return damage


def not_finite(run: Path) -> None:
    tensors = load_file(run / "weights.safetensors")
    save_file({k: v * np.nan if v.dtype == np.float32 else v for k, v in tensors.items()}, run / "weights.safetensors")


def a_thousand_million(anchors: str = "abcdefghi") -> bytes:
    """The YAML bomb known as billion laughs: each line is nine times the one before."""
    lines = ["a: &a [1,1,1,1,1,1,1,1,1]"]
    lines += [f"{c}: &{c} [{','.join([f'*{b}'] * 9)}]" for b, c in itertools.pairwise(anchors)]
    return "\n".join([*lines, "filters: *i"]).encode()


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (content("recipe.yaml", b'!!python/object/apply:os.system ["exit"]\n'), "not valid YAML"),
        (content("recipe.yaml", a_thousand_million()), "aliases"),
        (content("recipe.yaml", b"filters: " + b"[" * 1500), "nested too deeply"),
        (content("recipe.yaml", b"epochs: " + b"9" * 5000), "not valid YAML"),
        (content("recipe.yaml", b"filters: [1000000000]"), "filters"),
        (content("data.json", b"[]"), "expected a JSON object, found list"),
        (content("data.json", b"{}"), "source_name: Field required"),
        (content("data.json", b'{"a":' * 100_000), "not valid JSON"),
        (changed("data.json", class_names=5), "class_names"),
        (changed("data.json", class_names=["a", "a", "b"]), "two are the same"),
        (changed("data.json", image_size=[10**6, 10**6]), "less than or equal to 10000"),
        (changed("data.json", image_size=[32]), "image_size"),
        (changed("data.json", mean=[]), "one number for each of 3 channels"),
        (changed("data.json", std=[0, 0, 0]), "greater than 0"),
        (changed("data.json", channels=10**9), "channels"),
        (changed("data.json", resize="evil"), "resize"),
        (changed("data.json", class_names=["a", "b", "c", "d"]), "another network"),
        (content("weights.safetensors", b""), "weights.safetensors cannot be read"),
        (content("weights.safetensors", (2**62).to_bytes(8, "little") + b"{}"), "weights.safetensors cannot be read"),
        (not_finite, "not finite"),
    ],
)
def test_what_a_model_is_built_from(run: Path, whole: Path, damage: Damage, told: str) -> None:
    picture = next((whole.parent / "photos").rglob("*.png"))
    damage(run)
    assert told in message("predict", run, picture)


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (changed("split.json", test=["../../../etc/passwd"]), "not in the source"),
        (changed("split.json", test=[]), "a part is empty"),
        (changed("split.json", test=5), "split.json is damaged: test: Input should be a valid list, found 5"),
        (changed("data.json", source_location="/dev/null"), "no longer at /dev/null"),
        (changed("result.json", test=5), "result.json is damaged"),
        (content("result.json", b"null"), "result.json is damaged"),
    ],
)
def test_what_a_score_needs(run: Path, damage: Damage, told: str) -> None:
    damage(run)
    assert told in message("evaluate", run)


def test_a_picture_to_train_and_to_test_is_refused(run: Path) -> None:
    split = json.loads((run / "split.json").read_text(encoding="utf-8"))
    changed("split.json", test=split["train"])(run)
    assert "more than once" in message("evaluate", run)


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (content("checkpoint.safetensors", b"\x80\x04."), "it is damaged"),
        (checkpoint(epoch="x"), "epoch"),
        (checkpoint(step=-1), "step"),
        (checkpoint(step=10**400), "step"),
        (checkpoint(history=[1, 2]), "history"),
        (checkpoint(rates=[["a", "b"]]), "rates"),
        (checkpoint(rates=[]), "does not belong to this training"),
        (checkpoint(progress={"batches": "x"}), "progress"),
        (quantized("model."), "other types of numbers than weights have"),
        (quantized("optimizer."), "other types of numbers than an optimizer has"),
        (content("execution.json", b"[]"), "execution.json is damaged"),
        (changed("execution.json", threads=10**9), "1 to 1,024 threads"),
        (changed("execution.json", device="evil"), "Device 'evil' is unknown"),
        (content("metrics.csv", b"\xff\xff"), "metrics.csv is damaged"),
    ],
)
def test_what_a_resumption_needs(run: Path, damage: Damage, told: str) -> None:
    damage(run)
    assert told in message("train", "--resume", run, "--set", "epochs=2")


def test_a_checkpoint_of_another_network(run: Path, whole: Path, tmp_path: Path) -> None:
    other = netloom.train(
        whole.parent / "photos", out=tmp_path, quiet=True, epochs=1, filters=[8], augmentation=None
    ).path
    shutil.copy(other / "checkpoint.safetensors", run)
    assert "does not belong to this training" in message("train", "--resume", run, "--set", "epochs=2")


def without(name: str, *keys: str) -> Damage:
    def damage(run: Path) -> None:
        old = json.loads((run / name).read_text(encoding="utf-8"))
        (run / name).write_text(json.dumps({k: v for k, v in old.items() if k not in keys}), encoding="utf-8")

    return damage


def predictions(**change: Callable[[np.ndarray], np.ndarray]) -> Damage:
    def damage(run: Path) -> None:
        path = run / "test_predictions.safetensors"
        tensors = load_file(path)
        save_file({name: change.get(name, np.copy)(values) for name, values in tensors.items()}, path)

    return damage


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (without("split.json", "test"), "split.json is damaged: test: Field required"),
        (without("split.json", "train"), "split.json is damaged: train"),
        (changed("split.json", train=[1, 2]), "split.json is damaged: train.0"),
        (changed("result.json", test={}), "result.json is damaged: test.accuracy: Field required"),
        (changed("result.json", test={"accuracy": 2, "n": 3, "interval": [0, 1]}), "less than or equal to 1, found 2"),
        (changed("result.json", test={"accuracy": 1, "n": 0, "interval": [0, 1]}), "result.json is damaged: test.n"),
        (changed("result.json", test={"accuracy": 1, "n": 3, "interval": [1]}), "result.json is damaged"),
        (changed("result.json", validation={"accuracy": "high"}), "result.json is damaged: validation"),
        (changed("result.json", parameters="many"), "result.json is damaged: parameters"),
        (changed("result.json", kept_epoch=[1]), "result.json is damaged: kept_epoch"),
        (content("environment.json", b"{}"), "environment.json is damaged: processor: Field required"),
        (changed("environment.json", processor=5), "environment.json is damaged: processor"),
        (predictions(targets=lambda t: t + 3), "not numbers of the 3 classes"),
        (predictions(targets=lambda t: -t - 1), "not numbers of the 3 classes"),
        (predictions(targets=lambda t: t[:-1]), "expected probabilities [6, 3] and targets [6]"),
        (predictions(probabilities=lambda p: p[:, :2]), "expected probabilities [6, 3]"),
        (predictions(probabilities=lambda p: p * np.nan), "not finite"),
    ],
)
def test_what_a_comparison_needs(run: Path, whole: Path, damage: Damage, told: str) -> None:
    damage(run)
    assert told in message("compare", run, whole)
    assert told in message("compare", whole, run)


def test_a_history_without_times_is_compared(run: Path, whole: Path) -> None:
    (run / "metrics.csv").write_text("epoch,train_loss,validation_accuracy\n1,0.5,7\n", encoding="utf-8")
    without("result.json", "validation", "test")(run)
    result = CliRunner().invoke(app, ["compare", str(run), str(whole)])
    assert result.exit_code == 0, result.exception


def test_names_in_a_strangers_run_cannot_steer_the_terminal(run: Path, whole: Path) -> None:
    """A name that clears the screen and one that turns the text around it, wherever a verb shows names."""
    evil = "\x1b[2J\u202eplain"
    changed("data.json", class_names=["across", "down", evil], source_name=evil)(run)
    recipe = run / "recipe.yaml"
    recipe.write_text(f'{recipe.read_text(encoding="utf-8")}\nname: "\\e[2J"\n'.replace("name: photos\n", ""), "utf-8")
    picture = next((whole.parent / "photos" / "plain").rglob("*.png"))
    for arguments in (["predict", run, picture, "--top", "3"], ["compare", run, whole], ["evaluate", run]):
        result = CliRunner().invoke(app, list(map(str, arguments)))
        assert result.exception is None or isinstance(result.exception, SystemExit)
        assert "\x1b[2J" not in result.output
        assert "\u202e" not in result.output
        assert "\\x1b[2J" in result.output
