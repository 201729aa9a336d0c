"""The folder of a trial: what is done of it, and how often it was begun."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from netloom.errors import NetloomError, RunError, TrainingError
from netloom.files import partial_files, read_json, write_json, writing
from netloom.training.checkpoint import Checkpoint, load_checkpoint

_STATE = "trial.json"
_MOST_BEGINNINGS = 3


def trial_name(number: int) -> str:
    """Of a trial's task and folder."""
    return f"trial-{number:04d}"


def remove_checkpoints(folder: Path) -> None:
    """Remove what a trial has left for going on."""
    for file in [*folder.glob("checkpoint-*"), *partial_files(folder)]:
        file.unlink(missing_ok=True)


def forgive_beginnings(folder: Path) -> None:
    """Note that whatever ended a trial was not the trial, so that it may be begun as often as one that never was."""
    with contextlib.suppress(NetloomError):
        state = read_json(folder / _STATE)
        if isinstance(state, dict) and state.get("begun"):
            write_json(folder / _STATE, {**state, "begun": 0})


class TrialFolder:
    """What a trial leaves on the disk: its values, the scores of folds that are done, a checkpoint of the current one.

    And how often it was begun without a step more, where it runs in the driver's own process: one that ends that would
    otherwise be the first that the next driver begins, for ever. Of a worker's deaths the executor keeps count.

    Without a folder, or where the study's is on another machine, nothing is left, and a trial whose process dies is
    begun anew.
    """

    def __init__(self, path: Path | None, overrides: Mapping[str, Any]) -> None:
        self.path = None if path is None or not path.parent.is_dir() else path
        self.overrides = json.loads(json.dumps(dict(overrides)))
        self.scores: list[dict[str, Any]] = []
        self.outcome: dict[str, Any] | None = None
        self.begun, self.reached = 0, [0, 0]
        self.epochs_of_current = 0
        self.values_of_current: list[float] = []
        if self.path is None:
            return
        with writing(self.path, "Give write permission to the study's folder."):
            self.path.mkdir(exist_ok=True)
        if not self._read():
            self._remove_checkpoints()

    def _read(self) -> bool:
        """Take up what an earlier process left; whether there was something of this very trial.

        There may be something of another one: a loss of power can take the last trials out of the study, whose numbers
        are then given again.
        """
        assert self.path is not None
        try:
            state = read_json(self.path / _STATE)
            scores, outcome = list(state["scores"]), state["outcome"]
            begun, reached = state["begun"], list(state["reached"])
            if state["overrides"] != self.overrides or not all(map(_is_score, scores)):
                return False
            if not all(isinstance(n, int) for n in (begun, *reached)):
                return False
            if outcome is not None and not (_is_score(outcome) and outcome.get("state") == "complete"):
                return False
        except (NetloomError, KeyError, TypeError):
            return False
        self.scores, self.outcome, self.begun, self.reached = scores, outcome, begun, reached
        return True

    def checkpoint(self, number: int) -> Path | None:
        """Where the state of the training on split `number` is."""
        return None if self.path is None else self.path / f"checkpoint-{number}.safetensors"

    def load_checkpoint(self, number: int) -> Checkpoint | None:
        """The state of the training on split `number`; None to begin anew, also where a disk has damaged it."""
        path = self.checkpoint(number)
        if path is None or not path.is_file():
            return None
        try:
            return load_checkpoint(path)
        except RunError:
            path.unlink()
            return None

    def begin(self, *, epoch: int, step: int, counted: bool) -> None:
        """Write down what is done, and that the training on the next split begins there.

        Args:
            epoch: Epochs that its checkpoint holds.
            step: Optimizer steps that it holds, over all epochs.
            counted: Nobody else counts how often its process dies.

        Raises:
            TrainingError: It has begun there so often that it must be what ends its process.
        """
        reached = [len(self.scores), step]
        if reached > self.reached:
            self.begun, self.reached = 0, reached
        if not counted:
            self.write()
            return
        if self.begun >= _MOST_BEGINNINGS:
            where = f" after epoch {epoch}" if epoch else ""
            raise TrainingError(
                f"Its process died each of the {self.begun} times that it was begun{where}, perhaps because memory ran "
                "out: a smaller batch_size, image_size or network needs less."
            )
        self.begun += 1
        self.write()

    def write(self) -> None:
        """Write down what is done."""
        if self.path is not None:
            keys = ("overrides", "scores", "outcome", "begun", "reached")
            write_json(self.path / _STATE, {key: getattr(self, key) for key in keys})

    def finish(self, outcome: dict[str, Any]) -> None:
        """Write down that all is done."""
        self.outcome = outcome
        self.write()
        self._remove_checkpoints()

    def _remove_checkpoints(self) -> None:
        if self.path is not None:
            remove_checkpoints(self.path)


def _is_score(value: Any) -> bool:
    """Whether it has the figures that every score and outcome has."""
    return isinstance(value, dict) and isinstance(value.get("value"), float) and isinstance(value.get("epochs"), int)
