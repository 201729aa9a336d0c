"""netloom's command line in a process of its own, timed as a user would time it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

BACKBONE = "mobilenetv1_100"
"""The pretrained network of the benchmarks of transfer."""
_IMPORT = re.compile(r"import time:\s+(\d+) \|")


def run_command(arguments: Sequence[str], cache: Path) -> tuple[dict[str, Any], float]:
    """Run `netloom ARGUMENTS --json`.

    Args:
        arguments: Verb, source and options.
        cache: Folder of decoded pictures and features; empty or not.

    Returns:
        What it prints, and the seconds of the whole process.
    """
    found, seconds, _ = _run(arguments, cache)
    return found, seconds


def scores_of_test(result: Mapping[str, Any]) -> dict[str, Any]:
    """Accuracy of the test part, with its interval and n, of what a command printed."""
    return {key: result["test"][key] for key in ("accuracy", "interval", "n")}


def import_seconds(arguments: Sequence[str], cache: Path) -> float:
    """Seconds that a command spends importing modules, in a run of its own, as Python's `-X importtime` counts them."""
    _, _, said = _run(arguments, cache, "-X", "importtime")
    return sum(int(microseconds) for microseconds in _IMPORT.findall(said)) / 1e6


def _run(arguments: Sequence[str], cache: Path, *python: str) -> tuple[dict[str, Any], float, str]:
    line = [sys.executable, *python, "-m", "netloom", *arguments, "--json"]
    environment = {**os.environ, "NETLOOM_CACHE": str(cache)}
    started = time.perf_counter()
    done = subprocess.run(line, env=environment, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - started
    if done.returncode:
        raise SystemExit(f"{' '.join(line)} failed:\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found, seconds, done.stderr
