"""The callbacks that recipe keys and options switch on, and the page that documents them."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from typer.testing import CliRunner

import netloom
from netloom.cli import app
from netloom.inference import Prediction
from netloom.training.callbacks.base import HOOKS

PAGE = Path(__file__).parent.parent.parent / "docs" / "callbacks.md"
QUICK = {"filters": [4], "augmentation": None, "batch_size": 8, "precision": "float32"}


class Predictions(netloom.Callback):
    """How many pictures each pass without training had."""

    def __init__(self) -> None:
        self.pictures: list[int] = []

    def on_predict_end(self, prediction: Prediction) -> None:
        self.pictures.append(prediction.pictures)


def test_recipe_keys_switch_callbacks_on(photos: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="the package tensorboard is not installed")
    keys = ["epochs=3", "ema.decay=0.9", "keep_every=1", "time_limit_minutes=60", "tensorboard=true", "filters=[4]"]
    settings = [part for key in keys for part in ("--set", key)]
    result = CliRunner().invoke(app, ["train", str(photos), "--out", str(tmp_path), "--quiet", "--profile", *settings])
    assert result.exit_code == 0, result.stderr
    run = netloom.load(result.stdout.strip())
    kept = load_file(run.weights_path)
    of_epoch = load_file(run.epoch_weights_path(run.result["kept_epoch"]))
    assert all(kept[name].equal(of_epoch[name]) for name in kept)
    assert [run.epoch_weights_path(epoch).is_file() for epoch in (1, 2, 3, 4)] == [True, True, True, False]
    for part in ("train", "validation"):
        assert len(list((run.tensorboard_path / part).glob("events.out.tfevents.*"))) == 1
    assert (run.profile_path / "operators.txt").is_file()
    assert run.evaluate()["accuracy"] == run.result["test"]["accuracy"]


def test_without_them_nothing_is_written(photos: Path, tmp_path: Path) -> None:
    run = netloom.train(photos, out=tmp_path, quiet=True, epochs=1, settings=QUICK)
    assert not any(path.exists() for path in (run.tensorboard_path, run.profile_path, run.epoch_weights_path(1)))


def test_a_time_limit_ends_in_a_tested_run(photos: Path, tmp_path: Path) -> None:
    run = netloom.train(photos, out=tmp_path, quiet=True, epochs=50, time_limit_minutes=1e-6, settings=QUICK)
    assert (run.result["status"], run.result["epochs"]) == ("finished", 1)
    assert run.result["stop_reason"].startswith("time limit")
    assert run.result["test"]["n"] > 0


def test_a_missing_package_is_told_before_anything_is_made(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    out = tmp_path / "runs"
    result = CliRunner().invoke(app, ["train", str(photos), "--out", str(out), "--set", "tensorboard=true"])
    assert result.exit_code == 2
    assert "pip install 'netloom[tensorboard]'" in result.stderr
    assert not out.exists()


def test_callbacks_follow_test_evaluation_and_prediction(photos: Path, tmp_path: Path) -> None:
    follower = Predictions()
    run = netloom.train(photos, out=tmp_path, quiet=True, epochs=2, callbacks=[follower], settings=QUICK)
    n_validation, n_test = run.result["validation"]["n"], run.result["test"]["n"]
    assert follower.pictures == [n_validation] * 3 + [n_test]

    follower = Predictions()
    netloom.evaluate(run, callbacks=[follower])
    assert follower.pictures == [n_test]

    follower = Predictions()
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"not a picture")
    files = [broken, *sorted(p for p in photos.rglob("*.png"))[:3]]
    results = netloom.predict(run, files, callbacks=[follower])
    assert follower.pictures == [3]
    assert ["error" in item for item in results] == [True, False, False, False]
    assert netloom.predict(run, broken)[0].keys() == {"path", "error"}


def test_the_documented_callback_prints_the_ratio_of_the_losses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The code of the page, run as it stands; the ratios against the run's own metrics."""
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(compile(code, str(PAGE), "exec"), names)
    printed = capsys.readouterr().out.splitlines()
    history = names["run"].history
    assert len(history) == 3
    assert printed == [
        f"epoch {i}: validation loss / training loss = {row['validation_loss'] / row['train_loss']:.2f}"
        for i, row in enumerate(history, start=1)
    ]


def test_the_page_names_every_hook() -> None:
    from netloom.training.callbacks.base import HOOKS

    text = PAGE.read_text(encoding="utf-8")
    assert [hook for hook in HOOKS if f"`{hook}`" not in text] == []


class Diary(netloom.Callback):
    """Writes every hook into a file that it holds open from the start to `close`, as a log of one's own does."""

    def __init__(self, path: Path, *, fails_in: str = "") -> None:
        self.file, self.fails_in, self.closed = path.open("w"), fails_in, 0

    def close(self) -> None:
        self.file.close()
        self.closed += 1


def _entry(hook: str) -> Any:
    def write(self: Diary, _state: object) -> None:
        self.file.write(f"{hook}\n")
        if hook == self.fails_in:
            raise ValueError(hook)

    return write


for _hook in HOOKS:
    setattr(Diary, _hook, _entry(_hook))


def test_callbacks_are_open_until_the_last_prediction(photos: Path, tmp_path: Path) -> None:
    diary = Diary(tmp_path / "diary")
    netloom.train(photos, out=tmp_path, quiet=True, epochs=1, settings=QUICK, callbacks=[diary])
    hooks = (tmp_path / "diary").read_text().split()
    assert diary.closed == 1
    assert hooks[: hooks.index("on_fit_end")].count("on_predict_end") == 1
    assert hooks[hooks.index("on_fit_end") + 1 :].count("on_predict_end") == 2  # validation and test
    assert hooks[-1] == "on_predict_end"


@pytest.mark.parametrize("hook", ["on_fit_start", "on_epoch_end", "on_predict_end"])
def test_callbacks_are_closed_once_after_an_error(photos: Path, tmp_path: Path, hook: str) -> None:
    diary = Diary(tmp_path / "diary", fails_in=hook)
    with pytest.raises(ValueError, match=hook):
        netloom.train(photos, out=tmp_path, quiet=True, epochs=1, settings=QUICK, callbacks=[diary])
    assert diary.closed == 1


def test_a_classifier_fitted_in_one_go_is_one_epoch_to_those_who_watch(photos: Path, tmp_path: Path) -> None:
    backbone = netloom.train(photos, out=tmp_path, quiet=True, epochs=1, settings=QUICK).path
    diary = Diary(tmp_path / "diary")
    transfer = {"transfer.weights": str(backbone), "transfer.mode": "features"}
    netloom.train(photos, out=tmp_path, quiet=True, settings={**QUICK, **transfer}, callbacks=[diary])
    hooks = [h for h in (tmp_path / "diary").read_text().split() if h != "on_predict_batch_end"]
    validation = ["on_validation_start", "on_predict_start", "on_predict_end", "on_validation_end"]
    epoch = ["on_epoch_start", *validation, "on_epoch_end"]
    assert hooks == ["on_fit_start", *epoch, "on_fit_end", *["on_predict_start", "on_predict_end"] * 2]
    assert diary.closed == 1
