"""A search to be killed: `tune_driver.py JSON` with the arguments of `netloom.tune`, or of `resume_tune` with `folder`.

Says `ready` when everything is imported, which takes longer than all the rest.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import netloom
import netloom.workflows.tune  # names are looked up late
from netloom.runtime import ExecutionPlan

PLAN = ExecutionPlan("cpu", 1, "float32")


def main() -> None:
    options = json.loads(sys.argv[1])
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    if "folder" in options:
        netloom.resume_tune(**options)
    else:
        netloom.tune(**options, plan=PLAN)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main()
