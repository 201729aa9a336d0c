"""The callbacks that recipe keys and options switch on, and the page that documents them."""

from __future__ import annotations

import re
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

import netloom
from netloom.cli import app
from netloom.errors import TrainingError
from netloom.inference import Prediction
from netloom.training.callbacks.base import HOOKS
from netloom.training.state import TrainingState
from netloom.workflows.training_run import InterruptedTrainingError

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


class Ratio(netloom.Callback):
    """Puts a figure of its own beside those of each epoch."""

    def __init__(self, figure: Callable[[dict[str, float]], Any]) -> None:
        self.figure = figure

    def on_epoch_end(self, state: TrainingState) -> None:
        state.history[-1]["ratio"] = self.figure(state.history[-1])


@pytest.mark.parametrize("kind", [float, np.float32, torch.tensor])
def test_a_figure_of_ones_own_is_recorded_like_the_others(photos: Path, tmp_path: Path, kind: Any) -> None:
    tensorboard = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", reason="not installed")
    ratio = Ratio(lambda row: kind(row["validation_loss"] / row["train_loss"]))
    settings = {**QUICK, "tensorboard": True}
    run = netloom.train(photos, out=tmp_path, quiet=True, epochs=2, callbacks=[ratio], settings=settings)
    again = Ratio(ratio.figure)
    run = netloom.resume(run.path, epochs=3, quiet=True, callbacks=[again])
    expected = [row["validation_loss"] / row["train_loss"] for row in run.history]
    assert len(expected) == 3
    assert [row["ratio"] for row in run.history] == pytest.approx(expected, rel=1e-6)
    events = tensorboard.EventAccumulator(str(run.tensorboard_path / "train"))
    events.Reload()
    shown = {
        event.step: event.value for event in events.Scalars("epoch/ratio")
    }  # files of one second come in any order
    assert [shown[epoch] for epoch in (1, 2, 3)] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("figure", ["good", None, np.zeros(2)], ids=["text", "nothing", "several"])
def test_what_is_no_figure_is_told_by_its_name(photos: Path, tmp_path: Path, figure: object) -> None:
    with pytest.raises(TrainingError, match="The figure 'ratio' of an epoch must be one number; found"):
        netloom.train(photos, out=tmp_path, quiet=True, epochs=1, callbacks=[Ratio(lambda row: figure)], settings=QUICK)


def test_a_figure_of_a_classifier_fitted_in_one_go_is_a_number_too(photos: Path, tmp_path: Path) -> None:
    backbone = netloom.train(photos, out=tmp_path, quiet=True, epochs=1, settings=QUICK).path
    transfer = {**QUICK, "transfer.weights": str(backbone), "transfer.mode": "features"}
    options: dict[str, Any] = {"out": tmp_path, "quiet": True, "settings": transfer}
    run = netloom.train(photos, callbacks=[Ratio(lambda row: torch.tensor(0.5))], **options)
    assert [row["ratio"] for row in run.history] == [0.5]
    with pytest.raises(TrainingError, match="The figure 'ratio' of an epoch must be one number; found"):
        netloom.train(photos, callbacks=[Ratio(lambda row: "good")], **options)


def test_going_on_without_ones_own_callbacks_is_told(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Stops(Ratio):
        def on_batch_end(self, state: TrainingState) -> None:
            if state.step == 2:
                signal.raise_signal(signal.SIGINT)

    def constant(row: dict[str, float]) -> float:
        return 1.0

    with pytest.raises(InterruptedTrainingError, match=r"netloom\.resume\(.*callbacks=callbacks\)") as caught:
        netloom.train(photos, out=tmp_path, quiet=True, epochs=1, callbacks=[Stops(constant)], settings=QUICK)
    path = caught.value.run.path
    copy = tmp_path / "copy"
    shutil.copytree(path, copy)
    capsys.readouterr()
    lost = netloom.resume(path)
    assert "callbacks of your own (Stops)" in capsys.readouterr().err
    assert lost.result["departures"] == ["It went on without callbacks that it began with: Stops."]

    class Stops(Ratio):  # type: ignore[no-redef]  # the same, in another process, say
        pass

    kept = netloom.resume(copy, quiet=True, callbacks=[Stops(constant)])
    assert kept.result["departures"] == []
    assert kept.history[0]["ratio"] == 1.0


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
