"""A training that kills itself without warning; run as `killed_training.py SOURCE OUT KIND PLAN_OF STEP PHASE`.

KIND is one of `KINDS`, PLAN_OF the run whose execution plan it has. PHASE says where the kill comes: `step` right after
the optimizer step, `validation` when the validation of the step's epoch starts, `save` while what comes after the step
is being written: a checkpoint, or behind the last step of an epoch the epoch's weights.
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
    "lookahead": {"every_steps": 3},
    "time_limit_minutes": 60,
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

KINDS: dict[str, dict[str, Any]] = {
    "all": {},
    # Nothing improves by 10 behind the first epoch, so that the third is the last.
    "stopping": {"early_stopping": {"patience": 2, "min_delta": 10}},
    "shards": {"shards": 2},
    "captured": {"shards": 1},
}


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Killer(netloom.Callback):
    """Kills the process at a step, or at the validation or the next saving that comes after it."""

    def __init__(self, step: int, phase: str) -> None:
        self.step, self.phase = step, phase

    def on_batch_end(self, state: Any) -> None:
        if self.phase == "step" and state.step == self.step:
            kill()
        if self.phase == "save" and state.step == self.step:
            os.fsync = lambda _: kill()

    def on_validation_start(self, state: Any) -> None:
        if self.phase == "validation" and state.step >= self.step:
            kill()


class EagerCheckpointer(Checkpointer):
    """Saves at every opportunity, which `main` makes of every step, so that a kill is gone on from the step before."""

    def save_if_due(self, *arguments: Any) -> None:
        self.save(*arguments)


def main() -> None:
    source, out, kind, plan_of, step, phase = sys.argv[1:]
    from netloom.training import loop
    from netloom.workflows import training_run

    training_run.Checkpointer = EagerCheckpointer  # type: ignore[misc]
    loop._STEPS_PER_CHECK = 1
    netloom.train(
        source,
        out=out,
        quiet=True,
        callbacks=[Killer(int(step), phase)],
        plan=netloom.load(plan_of).plan,
        settings={**RECIPE, **KINDS[kind]},
    )


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main()
