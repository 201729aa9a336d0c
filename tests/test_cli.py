"""The command line as a user types it, in a process of its own where exit codes and streams matter."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from typer.testing import CliRunner, Result

from netloom.cli import app
from picture_folders import write_folder

QUICK = ["--set", "epochs=3", "--set", "augmentation=null", "--set", "filters=[8,16]", "--set", "batch_size=8"]


def netloom(*arguments: str | Path) -> Result:
    """Run the command in this process: starting another one for each call would take most of the time."""
    return CliRunner().invoke(app, list(map(str, arguments)))


def netloom_process(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own."""
    command = [sys.executable, "-m", "netloom", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def succeed(*arguments: str | Path) -> dict[str, Any]:
    result = netloom(*arguments, "--json")
    assert result.exit_code == 0, (result.stderr, result.exception)
    return dict(json.loads(result.stdout))


def fail(*arguments: str | Path) -> str:
    result = netloom(*arguments)
    assert result.exit_code == 2, (result.stdout, result.stderr, result.exception)
    assert isinstance(result.exception, SystemExit)
    assert result.stdout == ""
    return result.stderr


def hashes(folder: Path) -> dict[str, str]:
    return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("photos") / "photos", classes=("고양이 <b>", "개", "plain"))


@pytest.fixture(scope="module")
def run(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    broken = photos / "개" / "broken.jpg"
    broken.write_bytes(b"\xff\xd8 not a picture")
    before = hashes(photos)
    result = succeed("train", photos, "--out", tmp_path_factory.mktemp("runs"), *QUICK)
    assert hashes(photos) == before
    broken.unlink()
    return result


def test_train_tells_what_it_promises(run: dict[str, Any]) -> None:
    for key in ("run", "parameters", "epochs", "train_images_per_second", "seconds"):
        assert run[key], key
    assert run["test"]["n"] == 12
    low, high = run["test"]["interval"]
    assert low <= run["test"]["accuracy"] <= high
    assert 0 <= run["validation"]["accuracy"] <= 1
    assert run["epochs"] == 3


def test_the_run_folder_is_complete(run: dict[str, Any]) -> None:
    names = {p.name for p in Path(run["run"]).iterdir()}
    assert {
        "recipe.yaml",
        "split.json",
        "environment.json",
        "execution.json",
        "metrics.csv",
        "weights.safetensors",
        "result.json",
        "report.html",
    } <= names
    assert not [name for name in names if "partial" in name]
    split = json.loads((Path(run["run"]) / "split.json").read_text(encoding="utf-8"))
    parts = [set(split[p]) for p in ("train", "validation", "test")]
    assert sum(map(len, parts)) == len(set().union(*parts)) == 60
    assert "개/broken.jpg" not in set().union(*parts)


class Texts(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)

    def handle_data(self, data: str) -> None:
        self.texts.append(data.strip())


def test_the_report_shows_class_names_literally(run: dict[str, Any]) -> None:
    page = Texts()
    page.feed((Path(run["run"]) / "report.html").read_text(encoding="utf-8"))
    assert "고양이 <b>" in page.texts
    assert "b" not in page.tags
    assert any("broken.jpg" in text for text in page.texts)


def test_a_moved_run_evaluates_and_predicts(run: dict[str, Any], photos: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere" / "run"
    shutil.copytree(run["run"], moved)
    scores = succeed("evaluate", moved)
    assert scores["accuracy"] == run["test"]["accuracy"]
    assert scores["n"] == run["test"]["n"]
    assert not scores["seen_in_training"]
    other = succeed("evaluate", moved, photos)
    assert other["n"] == 60
    assert other["seen_in_training"]
    assert other["seen"] == {"train": 38, "validation": 10, "test": 12}
    assert "trained on 38 of these 60 pictures" in netloom("evaluate", moved, photos).stdout
    pictures = [photos / "개" / "000.png", photos / "plain" / "001.png"]
    answer = succeed("predict", moved, *pictures, "--top", "3")
    for item in answer["predictions"]:
        shares = [p["probability"] for p in item["predictions"]]
        assert sum(shares) == pytest.approx(1, abs=1e-5)
        assert shares == sorted(shares, reverse=True)


def test_the_reports_command_repeats_the_run_bit_for_bit(run: dict[str, Any], photos: Path, tmp_path: Path) -> None:
    recipe = Path(run["run"]) / "recipe.yaml"
    again = succeed("train", photos, "--recipe", recipe, "--plan-of", run["run"], "--out", tmp_path)
    weights = [(Path(r["run"]) / "weights.safetensors").read_bytes() for r in (run, again)]
    assert weights[0] == weights[1]


def test_seeds_share_the_split_and_tell_their_spread(photos: Path, tmp_path: Path) -> None:
    """Mean, deviation and t-interval against SciPy."""
    found = succeed("train", photos, "--seeds", "3", "--out", tmp_path, "--set", "seed=5", *QUICK)
    assert found["seeds"] == [5, 6, 7]
    runs = [Path(run) for run in found["runs"]]
    assert len({(run / "split.json").read_bytes() for run in runs}) == 1
    assert len({(run / "weights.safetensors").read_bytes() for run in runs}) == 3
    assert len({(run / "execution.json").read_bytes() for run in runs}) == 1
    values = [json.loads((run / "result.json").read_text())["test"]["accuracy"] for run in runs]
    assert found["test_accuracy"]["values"] == values
    assert found["test_accuracy"]["mean"] == pytest.approx(np.mean(values))
    if np.std(values) > 0:
        expected = stats.t.interval(0.95, 2, loc=np.mean(values), scale=stats.sem(values))
        assert found["test_accuracy"]["interval"] == pytest.approx(np.clip(expected, 0, 1))
    assert "two seeds" in fail("train", photos, "--seeds", "1")


def test_one_unreadable_picture_does_not_stop_prediction(run: dict[str, Any], photos: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"nothing")
    answer = succeed("predict", run["run"], bad, photos / "plain" / "000.png")
    assert "error" in answer["predictions"][0]
    assert "predictions" in answer["predictions"][1]
    assert netloom("predict", run["run"], bad).exit_code == 2


@pytest.mark.parametrize(
    ("name", "parameters", "options"),
    [
        ("mnist-convnet", 93_322, []),
        ("mnist-convnet-no-pool", 55_744, ["--trunk"]),
        ("cats-dogs-scratch", 3_453_121, []),
        ("vgg16", 14_714_688, ["--input", "3x150x150", "--trunk"]),
        ("fashion-mlp", 266_610, []),
        ("cifar10-lenet5", 62_006, []),
        ("lenet5", 62_006, ["--input", "3x32x32", "--classes", "10"]),
        ("cifar10-bayes-cnn", 42_442, []),
    ],
)
def test_summaries_give_the_published_parameter_counts(name: str, parameters: int, options: list[str]) -> None:
    found = succeed("summary", name, *options)
    assert found["parameters"] == found["trainable_parameters"] == parameters
    assert found["layers"]


@pytest.mark.parametrize("verb", ["models", "backbones", "recipes", "datasets", "doctor"])
def test_lists_are_one_json_object(verb: str) -> None:
    assert succeed(verb)
    assert netloom(verb).stdout.strip()


def test_audit_lists_what_is_wrong(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "photos", per_class=5)
    (folder / "plain" / "broken.png").write_bytes((folder / "plain" / "000.png").read_bytes()[:60])
    shutil.copy(folder / "plain" / "001.png", folder / "down" / "copy.png")
    found = succeed("audit", folder)
    assert [item["path"] for item in found["rejected"]] == ["plain/broken.png"]
    assert found["duplicates"] == [["down/copy.png", "plain/001.png"]]
    assert found["conflicting_labels"]
    assert "broken.png" in netloom("audit", folder).stdout


def test_mistakes_in_settings_are_told_all_at_once(photos: Path) -> None:
    message = fail("train", photos, "--set", "epocs=3", "--set", "optimizer=adamm", "--set", "model=lenet")
    assert "3 mistakes" in message
    assert "'epochs'" in message
    assert "'lenet5'" in message


def test_sources_that_cannot_be_used(tmp_path: Path, photos: Path) -> None:
    assert "Did you mean 'digits'" in fail("train", "digit")
    (tmp_path / "empty").mkdir()
    fail("train", tmp_path / "empty")
    one_class = write_folder(tmp_path / "one", classes=("only",))
    assert "only" in fail("train", one_class)
    junk = tmp_path / "junk"
    for name in ("a", "b"):
        (junk / name).mkdir(parents=True)
        for i in range(3):
            (junk / name / f"{i}.jpg").write_bytes(b"junk")
    assert "a/0.jpg" in fail("train", junk)
    table = tmp_path / "labels.csv"
    table.write_text("image,label\nx.png,a\n", encoding="utf-8")
    assert "image_path" in fail("train", table)
    table.write_text("image_path,label\nx.png,a\ny.png,b\n", encoding="utf-8")
    assert "x.png" in fail("train", table)
    assert "lenet5" in fail("train", write_folder(tmp_path / "tiny", side=8), "--set", "model=lenet5", "-q")


def test_runs_that_are_none(tmp_path: Path) -> None:
    assert "no run folder" in fail("evaluate", tmp_path / "nothing")
    assert "not a run" in fail("predict", tmp_path, "x.png")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_devices_that_are_not_there(photos: Path) -> None:
    assert "cuda" in fail("train", photos, "--device", "cuda")


@pytest.mark.skipif(os.name == "nt", reason="permissions of folders mean something else on Windows")
def test_a_folder_that_cannot_be_written(photos: Path, tmp_path: Path) -> None:
    occupied = tmp_path / "file"
    occupied.write_text("not a folder")
    assert str(occupied) in fail("train", photos, "--out", occupied / "runs", *QUICK)


def test_errors_are_one_json_object_where_json_is_asked(tmp_path: Path) -> None:
    result = netloom_process("train", tmp_path / "nothing", "--json")
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    assert json.loads(result.stdout)["error"]["kind"] == "DataError"


def test_a_loss_that_is_no_number(photos: Path, tmp_path: Path) -> None:
    settings = ["--set", "learning_rate=1e6", "--set", "optimizer=sgd", "--set", "schedule=null"]
    message = fail("train", photos, "--out", tmp_path, "-q", *QUICK, *settings, "--set", "normalization=none")
    assert "learning rate" in message
    (folder,) = tmp_path.iterdir()
    assert json.loads((folder / "result.json").read_text())["status"] == "failed"


@pytest.mark.skipif(os.name == "nt", reason="sends POSIX signals")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_stays_usable(photos: Path, tmp_path: Path, number: signal.Signals, code: int) -> None:
    command = [sys.executable, "-m", "netloom", "train", str(photos), "--out", str(tmp_path)]
    settings = [*QUICK, "--set", "epochs=100000", "--set", "schedule=null"]
    with subprocess.Popen([*command, *settings], stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 120
        while not list(tmp_path.glob("*/weights.safetensors")):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == code, errors
    assert "Traceback" not in errors
    (folder,) = tmp_path.iterdir()
    assert json.loads((folder / "result.json").read_text())["status"] == "interrupted"
    assert "test" not in json.loads((folder / "result.json").read_text())
    assert (folder / "report.html").is_file() == (number == signal.SIGINT)  # SIGTERM leaves no time for it
    assert succeed("evaluate", folder, "--part", "validation")["n"] == 10


def test_a_picture_of_another_size_and_mode_is_predicted(run: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "big.webp"
    Image.new("RGBA", (300, 40), (10, 200, 30, 128)).save(path)
    assert succeed("predict", run["run"], path)["predictions"][0]["predictions"]


@pytest.mark.skipif(sys.platform != "linux", reason="such names are not possible elsewhere")
def test_a_file_whose_name_is_no_text_is_predicted(run: dict[str, Any], photos: Path, tmp_path: Path) -> None:
    name = os.fsdecode(b"\xff\x1b[31m.png")
    shutil.copy(next((photos / "plain").iterdir()), tmp_path / name)
    told = netloom_process("predict", run["run"], tmp_path)
    assert told.returncode == 0, told.stderr
    assert "\\x1b[31m.png: " in told.stdout
    as_json = netloom_process("predict", run["run"], tmp_path, "--json")
    assert json.loads(as_json.stdout)["predictions"][0]["path"] == str(tmp_path / name)


def test_a_resumed_run_keeps_its_recipe(run: dict[str, Any]) -> None:
    for more in (["--recipe", "digits"], ["--plan-of", run["run"]], ["--set", "batch_size=4"], ["--name", "other"]):
        assert "--resume goes on with what the run holds" in fail("train", "--resume", run["run"], *more)


def test_a_lack_of_memory_is_told(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The exception is the real one: torch asks the system for 2^60 bytes."""
    monkeypatch.setattr("netloom.workflows.builders.models.build_model", lambda *_, **__: torch.empty(2**58))
    assert "not enough memory" in fail("train", photos, "--out", tmp_path, "--quiet")


def test_an_output_folder_that_cannot_be_made(photos: Path, tmp_path: Path) -> None:
    long = tmp_path / ("x" * 300)
    assert "too long" in fail("train", photos, "--out", long, *QUICK)


def test_names_of_runs_fit_file_systems(photos: Path, tmp_path: Path) -> None:
    """Most allow 255 bytes; a Hangul syllable takes three."""
    result = succeed("train", photos, "--out", tmp_path, "--name", "가" * 200, "--quiet", *QUICK, "--set", "epochs=1")
    assert len(Path(result["run"]).name.encode()) <= 255


def test_a_summary_takes_no_memory_for_weights() -> None:
    found = succeed("summary", "convnet", "--input", "3x100000x100000", "--set", "head_pooling=average")
    assert found["layers"][0]["output_shape"] == [32, 100_000, 100_000]
    assert "expected 2 to 1,000,000" in fail("summary", "convnet", "--input", "3x32x32", "--classes", "1000000000")


def test_a_recipe_key_given_as_an_option_is_told_how_to_be_set() -> None:
    assert "--batch-size. It is a key of recipes; write: --set batch_size=VALUE." in fail(
        "train", "digits", "--batch-size", "3"
    )
    assert "--set" not in fail("train", "digits", "--cloud", "3")


def test_a_profile_of_several_seeds_is_refused() -> None:
    assert "--profile traces one training" in fail("train", "digits", "--seeds", "2", "--profile")


@pytest.mark.skipif(os.name == "nt", reason="needs a POSIX shell")
def test_streams_that_are_closed_end_nothing() -> None:
    command = [sys.executable, "-m", "netloom", "audit", "digits", "--json"]
    without = subprocess.run(["sh", "-c", '"$@" 2>&-', "sh", *command], capture_output=True, check=False, timeout=300)
    assert without.returncode == 0
    assert json.loads(without.stdout)


@pytest.mark.skipif(os.name == "nt", reason="a pipe without a reader is another error on Windows")
@pytest.mark.parametrize(("stream", "code"), [("stderr", 2), ("stdout", 1)])
def test_a_reader_that_is_gone_leaves_a_clean_exit(stream: str, code: int) -> None:
    arguments = ["predict", "nothing", "here"] if stream == "stderr" else ["recipes", "--json"]
    command = [sys.executable, "-m", "netloom", *arguments]
    read, write = os.pipe()
    os.close(read)
    try:
        other = "stdout" if stream == "stderr" else "stderr"
        result = subprocess.run(command, **{stream: write, other: subprocess.PIPE}, check=False, timeout=300)
    finally:
        os.close(write)
    assert result.returncode == code
    assert not getattr(result, other)


@pytest.mark.parametrize(
    "arguments",
    [
        ("train", "--resume", "runs/a", "--out", "elsewhere"),
        ("cv", "--resume", "runs/a", "--out", "elsewhere"),
        ("pretrain", "--resume", "runs/a", "--out", "elsewhere"),
        ("pretrain", "--resume", "runs/a", "--recipe", "pretrain"),
        ("tune", "--dashboard", "runs/a", "--jobs", "2"),
        ("tune", "--dashboard", "runs/a", "--device", "cpu"),
        ("tune", "--dashboard", "runs/a", "--quiet"),
        ("tune", "digits", "--port", "8000"),
    ],
    ids=" ".join,
)
def test_an_option_that_would_be_ignored_is_refused(arguments: tuple[str, ...]) -> None:
    message = fail(*arguments)
    assert "can be given" in message or "--port is for the dashboard" in message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("predict", "nosuchrun", "--json"), "pictures"),
        (("evaluat", "runs/a", "--json"), "No such command 'evaluat'"),
        (("--cloud", "train", "--json"), "--cloud"),
        (("train", "digits", "--batch-size", "3", "--json"), "write: --set batch_size=VALUE"),
        (("lr-find", "digits", "--steps", "many", "--json"), "'--steps'"),
    ],
)
def test_a_mistaken_command_line_is_one_json_object_too(arguments: tuple[str, ...], message: str) -> None:
    result = netloom(*arguments)
    assert result.exit_code == 2
    assert message.casefold() in json.loads(result.stdout)["error"]["message"].casefold()
    assert "Error: " in result.stderr
    fail(*arguments[:-1])
