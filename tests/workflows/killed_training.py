"""A training that kills itself without warning; run as `killed_training.py SOURCE OUT STEP PHASE`.

PHASE says where in the step's epoch the kill comes: `step` right after the optimizer step, `validation` when the
epoch's validation starts, `save` while the checkpoint after that step is being written.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import netloom
from netloom.training.checkpoint import Checkpointer

RECIPE: dict[str, Any] = {
    "filters": [8, 16],
    "normalization": "before",
    "dropout": 0.3,
    "dense_units": [16],
    "optimizer": "adamw",
    "weight_decay": 0.01,
    "l1": 1e-5,
    "l2": 1e-5,
    "batch_size": 8,
    "epochs": 6,
    "schedule": {"kind": "cosine", "warmup_epochs": 1},
    "early_stopping": {"patience": 5},
    "reduce_on_plateau": {"patience": 1},
    "ema": {"decay": 0.9},
    "augmentation": {
        "rotation": 10,
        "horizontal_flip": True,
        "width_shift": 0.1,
        "brightness": 0.1,
        "mixup": 0.2,
        "cutmix": 1,
    },
    "class_weight": {"down": 2.0},
    "max_norm": 2.0,
    "label_smoothing": 0.05,
    "precision": "float32",
}


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Killer(netloom.Callback):
    """Kills the process at a step, or at the validation or the saving that comes after it."""

    def __init__(self, step: int, phase: str) -> None:
        self.step, self.phase = step, phase

    def on_batch_end(self, state: Any) -> None:
        if self.phase == "step" and state.step == self.step:
            kill()

    def on_validation_start(self, state: Any) -> None:
        if self.phase == "validation" and state.step >= self.step:
            kill()

    def on_epoch_end(self, state: Any) -> None:
        if self.phase == "save" and state.step >= self.step:
            os.fsync = lambda _: kill()


class EagerCheckpointer(Checkpointer):
    """Saves at every opportunity, so that short epochs have something to go on from."""

    def save_if_due(self, *arguments: Any) -> None:
        self.save(*arguments)


def main() -> None:
    source, out, step, phase = sys.argv[1:]
    from netloom.workflows import training_run

    training_run.Checkpointer = EagerCheckpointer  # type: ignore[misc]
    netloom.train(source, out=out, quiet=True, callbacks=[Killer(int(step), phase)], settings=RECIPE)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main()
