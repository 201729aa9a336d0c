"""What is said after an interruption works: a command where all is on the disk, else a call with what is not."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn

import netloom
from netloom.errors import TrainingError
from netloom.runtime import ExecutionPlan
from netloom.training.callbacks import Callback, EpochProgress
from netloom.training.state import TrainingState
from netloom.workflows.seeds import train_seeds
from picture_folders import stripes, write_folder

pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals are POSIX")
PLAN = ExecutionPlan("cpu", 1, "float32")
QUICK: dict[str, Any] = {"batch_size": 8, "epochs": 2, "augmentation": None, "precision": "float32", "shards": 0}
OPTIONS: dict[str, Any] = {"plan": PLAN, "quiet": True, "settings": QUICK}


class Interrupting(Callback):
    def on_batch_end(self, state: TrainingState) -> None:
        if state.step == 3:
            signal.raise_signal(signal.SIGINT)


def pictures() -> netloom.ImageSet:
    pixels = np.stack([stripes(i % 3, i) for i in range(60)])
    return netloom.ImageSet.from_arrays(pixels, np.arange(60) % 3, class_names=("across", "down", "plain"))


def network(in_channels: int, num_outputs: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(in_channels * 12 * 12, num_outputs))


def interrupting_network(at: int) -> Callable[[int, int], nn.Module]:
    """Makes the network; the `at`-th time a signal comes as well."""
    made = [0]

    def network_of_mine(in_channels: int, num_outputs: int) -> nn.Module:
        made[0] += 1
        if made[0] == at:
            signal.raise_signal(signal.SIGINT)
        return network(in_channels, num_outputs)

    return network_of_mine


def told_by(error: TrainingError) -> str:
    found = re.search(r"[Gg]o on with: (.*)$", str(error))
    assert found is not None
    return found.group(1)


def follow(call: str, **given: Any) -> Any:
    """Do what was told, to the letter."""
    return eval(call, {"netloom": netloom, **given})  # noqa: S307 - the very words that were told


def test_a_training_on_the_disk_tells_a_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos = write_folder(tmp_path / "photos", per_class=8)
    monkeypatch.setattr(EpochProgress, "on_batch_end", Interrupting.on_batch_end)
    with pytest.raises(TrainingError) as error:
        netloom.train(photos, out=tmp_path / "runs", **OPTIONS)
    (run,) = (tmp_path / "runs").iterdir()
    assert told_by(error.value) == f"netloom train --resume {run}"


def test_a_training_in_memory_tells_a_call(tmp_path: Path) -> None:
    source = pictures()
    with pytest.raises(TrainingError) as error:
        netloom.train(source, model=network, out=tmp_path, callbacks=[Interrupting()], **OPTIONS)
    (run,) = tmp_path.iterdir()
    call = told_by(error.value)
    assert call == f"netloom.resume({str(run)!r}, source=image_set, model=model, callbacks=callbacks)"
    finished = follow(call, image_set=source, model=network, callbacks=[Interrupting()])
    assert (finished.result["status"], finished.result["departures"]) == ("finished", [])


def test_a_cross_validation_in_memory_tells_a_call(tmp_path: Path) -> None:
    source = pictures()
    with pytest.raises(TrainingError) as error:
        # The first network is that of the measurement.
        netloom.cross_validate(source, model=interrupting_network(3), folds=3, jobs=1, out=tmp_path, **OPTIONS)
    (folder,) = tmp_path.iterdir()
    call = told_by(error.value)
    assert call == f"netloom.resume_cross_validation({str(folder)!r}, source=image_set, model=model)"
    assert follow(call, image_set=source, model=network).result["status"] == "finished"


def test_seeds_in_memory_tell_a_call(tmp_path: Path) -> None:
    source = pictures()
    with pytest.raises(TrainingError) as error:
        train_seeds(source, model=interrupting_network(3), n_seeds=2, jobs=1, out=tmp_path, **OPTIONS)
    (folder,) = tmp_path.iterdir()
    call = told_by(error.value)
    assert call == f"netloom.workflows.seeds.resume_seeds({str(folder)!r}, source=image_set, model=model)"
    assert len(follow(call, image_set=source, model=network)["runs"]) == 2


def test_a_search_in_memory_tells_a_call(tmp_path: Path) -> None:
    source = pictures()
    options = {"space": {"learning_rate": "1e-3..1e-2"}, "sampler": "random", "n_trials": 3, "final_seeds": 1}
    with pytest.raises(TrainingError) as error:
        netloom.tune(source, model=interrupting_network(3), jobs=1, out=tmp_path, **options, **OPTIONS)
    (folder,) = tmp_path.iterdir()
    call = told_by(error.value)
    assert call == f"netloom.resume_tune({str(folder)!r}, jobs=1, source=image_set, model=model)"
    study = follow(call, image_set=source, model=network)
    assert len(study.trials) == 3
    assert study.run is not None
