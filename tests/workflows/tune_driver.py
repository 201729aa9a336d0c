"""A search to be killed: `tune_driver.py JSON` with the arguments of `netloom.tune`, or of `resume_tune` with `folder`.

With `deadly`, the number of a trial, that one ends the process it runs in with its first step.

Says `ready` when everything is imported, which takes longer than all the rest.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import netloom
import netloom.workflows.tune  # names are looked up late
from netloom.runtime import ExecutionPlan
from netloom.workflows import trial_folder, trial_task

PLAN = ExecutionPlan("cpu", 1, "float32")


def end_with(number: int) -> None:
    on_batch_end = trial_task._Reports.on_batch_end

    def deadly(self: Any, state: Any) -> None:
        if self._score.trial.path.name == trial_folder.trial_name(number):
            os._exit(3)
        on_batch_end(self, state)

    trial_task._Reports.on_batch_end = deadly  # type: ignore[method-assign]


def main() -> None:
    options = json.loads(sys.argv[1])
    if "deadly" in options:
        end_with(options.pop("deadly"))
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    if "folder" in options:
        netloom.resume_tune(**options)
    else:
        netloom.tune(**options, plan=PLAN)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main()
