"""kill -9 while checkpoints are being written: there is always a loadable one."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from figures import note
from netloom.training.callbacks import CallbackList
from netloom.training.checkpoint import Checkpointer, EpochProgress, load_checkpoint
from netloom.training.optim import create_optimizer
from netloom.training.state import TrainingState

# For each that is to come while saving: more than enough where saving takes a tenth of the time.
_KILLS_AT_MOST = 20

pytestmark = pytest.mark.skipif(os.name == "nt", reason="forks and SIGKILL are POSIX")


def state_of(value: float) -> TrainingState:
    """A state whose every weight is `value`: a checkpoint that mixes two saves would show."""
    model = nn.Linear(400, 400)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(value)
    return TrainingState(model, create_optimizer(model, "sgd", learning_rate=0.1), 10, 10, step=int(value))


def save_for_ever(path: Path) -> None:
    """Write checkpoints 1, 2, 3, … until killed."""
    torch.set_num_threads(1)
    checkpointer, number = Checkpointer(path), 0
    while True:
        number += 1
        checkpointer.save(state_of(float(number)), CallbackList([]), EpochProgress())


def kill_a_saver(path: Path, seconds: float) -> None:
    """Let a forked process save and kill it `seconds` after its first checkpoint."""
    before = path.stat().st_mtime_ns if path.exists() else 0
    child = os.fork()
    if child == 0:
        save_for_ever(path)
    deadline = time.monotonic() + 30
    while not path.exists() or path.stat().st_mtime_ns == before:
        assert time.monotonic() < deadline
        time.sleep(0.0005)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


@pytest.mark.parametrize("while_saving", [2, pytest.param(100, marks=pytest.mark.slow)])
def test_a_loadable_checkpoint_after_every_kill(tmp_path: Path, while_saving: int) -> None:
    """A half-written file beside the checkpoint shows that a kill came while saving; so many are to do so."""
    path, draw = tmp_path / "checkpoint.safetensors", random.Random(while_saving)
    kills = interrupted = 0
    state_of(0.0)  # what optimizers import takes a second, in every process that is forked without it
    while interrupted < while_saving and kills < _KILLS_AT_MOST * while_saving:
        kill_a_saver(path, draw.uniform(0, 0.02))
        kills += 1
        checkpoint = load_checkpoint(path)
        weights = checkpoint.tensors["model.weight"]
        assert bool((weights == weights[0, 0]).all())
        assert checkpoint.values["step"] == int(weights[0, 0])
        partial = list(tmp_path.glob(".*.partial"))
        interrupted += bool(partial)
        for leftover in partial:
            leftover.unlink()
    note("savings killed", kills=kills, while_saving=interrupted, loadable=kills)
    assert interrupted == while_saving, f"only {interrupted} of {kills} kills came while saving"
