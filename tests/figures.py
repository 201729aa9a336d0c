"""What slow tests count, for documents to quote."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any


def note(what: str, **figures: Any) -> None:
    """Add one line of JSON to the file that NETLOOM_TEST_FIGURES names; without it, print the line (`pytest -s`)."""
    line = json.dumps({"what": what, **figures})
    if path := os.environ.get("NETLOOM_TEST_FIGURES"):
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(line + "\n")
    else:
        sys.stdout.write(line + "\n")
