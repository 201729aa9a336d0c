from __future__ import annotations

import contextlib
import json
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import netloom
from netloom.cli import app
from netloom.data.imageset import ImageSet
from netloom.errors import NetloomError, RunError
from netloom.runtime import ExecutionPlan
from netloom.workflows.study import Study
from netloom.workflows.study_views import dashboard_server
from picture_folders import stripes

SETTINGS: dict[str, Any] = {"filters": [4], "epochs": 2, "batch_size": 8, "precision": "float32", "augmentation": None}


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """Three trials, one of which fails, with event files."""
    pixels = np.stack([stripes(i % 3, i) for i in range(45)])
    pictures = ImageSet.from_arrays(pixels, np.arange(45) % 3, class_names=("across", "down", "plain"))
    return netloom.tune(
        pictures,
        space={"momentum": [0.0, 0.5], "filters": ["4", "4-8"]},
        sampler="grid",
        pruner="none",
        n_trials=4,
        final_seeds=0,
        jobs=1,
        plan=ExecutionPlan("cpu", 1, "float32"),
        out=tmp_path_factory.mktemp("studies"),
        quiet=True,
        settings={**SETTINGS, "optimizer": "adam", "tensorboard": True},
    )


def event_files(path: Path) -> Any:
    """What TensorBoard reads of a trial."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(path))
    events.Reload()
    return events


@contextlib.contextmanager
def served(path: Path) -> Iterator[str]:
    with dashboard_server(path, host="127.0.0.1", port=0, storage=None) as (url, serve):
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        server = serve.__self__  # type: ignore[attr-defined]
        try:
            yield url
        finally:
            server.shutdown()
            thread.join(10)


def test_the_dashboard_shows_the_trials_on_this_machine_alone(study: Study) -> None:
    pytest.importorskip("optuna_dashboard", reason="optuna-dashboard is not installed (netloom[dashboard])")
    with served(study.path) as url:
        assert url.startswith("http://127.0.0.1:")
        base = url.removesuffix("/dashboard")
        with urllib.request.urlopen(f"{url}") as page:
            assert b"<html" in page.read().lower()
        with urllib.request.urlopen(f"{base}/api/studies") as answer:
            summaries = json.load(answer)["study_summaries"]
        assert [s["study_name"] for s in summaries] == [study.path.name]
        with urllib.request.urlopen(f"{base}/api/studies/{summaries[0]['study_id']}") as answer:
            trials = json.load(answer)["trials"]
        for request in (
            urllib.request.Request(f"{base}/api/studies/{summaries[0]['study_id']}", method="DELETE"),
            urllib.request.Request(f"{base}/api/studies", headers={"Host": "evil.example:80"}),
        ):
            with pytest.raises(urllib.error.HTTPError, match=r"40[35]"):
                urllib.request.urlopen(request)
    states = [t["state"] for t in trials]
    assert sorted(states) == ["Complete", "Complete", "Fail", "Fail"]


def test_a_port_that_is_taken_is_told(study: Study) -> None:
    pytest.importorskip("optuna_dashboard", reason="optuna-dashboard is not installed (netloom[dashboard])")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        answer = CliRunner().invoke(app, ["tune", "--dashboard", str(study.path), "--port", str(port)])
    assert answer.exit_code == 2
    assert f"127.0.0.1:{port}" in answer.stderr
    assert "--port" in answer.stderr


def test_what_is_no_study_has_no_dashboard(study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RunError, match="no study"), dashboard_server(tmp_path, host="127.0.0.1", port=0, storage=None):
        pass
    answer = CliRunner().invoke(app, ["tune", "digits", "--dashboard", str(study.path)])
    assert answer.exit_code == 2
    monkeypatch.setitem(__import__("sys").modules, "optuna_dashboard", None)
    with pytest.raises(NetloomError, match=r"netloom\[dashboard\]"):
        dashboard_server(study.path, host="127.0.0.1", port=0, storage=None).__enter__()


def test_tensorboard_gets_the_values_and_scores_of_each_trial(study: Study) -> None:
    plugin_data_pb2 = pytest.importorskip("tensorboard.plugins.hparams.plugin_data_pb2")
    folders = sorted((study.path / "tensorboard").iterdir())
    assert [f.name for f in folders] == ["trial-0000", "trial-0001"]
    for folder in folders:
        trial = study.trials[int(folder.name[-4:])]
        events = event_files(folder)
        assert [e.value for e in events.Scalars("epoch/validation_accuracy")] == pytest.approx(trial["values"])
        assert events.Scalars("validation_accuracy")[-1].value == pytest.approx(trial["value"])
        content = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
        found = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info.hparams
        assert found["filters"].string_value == trial["overrides"]["filters"]
        assert found["momentum"].number_value == trial["overrides"]["momentum"]


def test_scores_of_folds_are_not_taken_for_those_of_epochs(tmp_path: Path) -> None:
    pixels = np.stack([stripes(i % 3, i) for i in range(45)])
    found = netloom.tune(
        ImageSet.from_arrays(pixels, np.arange(45) % 3, class_names=("across", "down", "plain")),
        space={"dropout": "0..0.5"},
        sampler="random",
        n_trials=1,
        cv=2,
        final_seeds=0,
        jobs=1,
        plan=ExecutionPlan("cpu", 1, "float32"),
        out=tmp_path,
        quiet=True,
        settings={**SETTINGS, "tensorboard": True},
    )
    events = event_files(found.path / "tensorboard" / "trial-0000")
    written = [(e.step, e.value) for e in events.Scalars("fold/validation_accuracy")]
    assert written == [(fold, pytest.approx(value)) for fold, value in enumerate(found.trials[0]["values"], 1)]
    assert len(written) == 2
    assert found.result["fresh"] is None
    assert not list(found.path.glob("*-fresh-folds"))  # nothing is trained where no winner is
    assert not [tag for tag in events.Tags()["scalars"] if tag.startswith("epoch/")]
