"""Cats and dogs from scratch and from a pretrained network, on all pictures and on few, for docs/cookbook.md.

    python benchmarks/few_pictures.py ARCHIVE --weights mobilenetv1_100.safetensors [--ways W ...] [--amounts N ...]

Each figure is one `netloom train` or `netloom transfer` as a user would type it, in a process of its own that finds
nothing in any cache: seconds are those of the whole command, from the start of Python to the report. The pictures of
`--per-class N` are the same for all ways, and all ways are tested on the same pictures. What is measured is added to
docs/results/few-pictures.json as it comes. The amount 0 stands for all pictures.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from netloom.runtime import environment_record

RESULTS = Path(__file__).parent.parent / "docs" / "results" / "few-pictures.json"
BACKBONE = "mobilenetv1_100"
WAYS = {
    "scratch": ("train", "--recipe", "cats-dogs-scratch"),
    "augmented": ("train", "--recipe", "cats-dogs-augmented"),
    "features": ("transfer", "--backbone", BACKBONE, "--mode", "features"),
    "frozen": ("transfer", "--backbone", BACKBONE, "--mode", "frozen"),
    "finetune": ("transfer", "--backbone", BACKBONE, "--mode", "finetune"),
}
AMOUNTS = (20, 100, 500, 0)


def measure(way: str, amount: int, archive: Path, weights: Path) -> dict[str, Any]:
    """One command; what it reached and how long it took."""
    verb, *options = WAYS[way]
    line = [sys.executable, "-m", "netloom", verb, str(archive), *options, "--json", "--quiet"]
    if verb == "transfer":
        line += ["--weights", str(weights)]
    if amount:
        line += ["--per-class", str(amount)]
    with tempfile.TemporaryDirectory() as scratch:
        environment = {**os.environ, "NETLOOM_CACHE": f"{scratch}/cache"}
        started = time.perf_counter()
        done = subprocess.run(
            [*line, "--out", f"{scratch}/runs"], env=environment, capture_output=True, text=True, check=False
        )
        seconds = time.perf_counter() - started
    if done.returncode:
        raise SystemExit(f"{' '.join(line)} failed:\n{done.stderr[-3000:]}")
    result = json.loads(done.stdout)
    kept = {part: {k: result[part][k] for k in ("accuracy", "interval", "n")} for part in ("validation", "test")}
    return {**kept, "epochs": result["epochs"], "train_n": result["train_n"], "seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive", type=Path)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--ways", nargs="+", choices=[*WAYS], default=[*WAYS])
    parser.add_argument("--amounts", nargs="+", type=int, default=[*AMOUNTS])
    arguments = parser.parse_args()
    environment = environment_record()
    for amount in arguments.amounts:
        for way in arguments.ways:
            found = measure(way, amount, arguments.archive, arguments.weights)
            print(way, amount or "all", f"{found['test']['accuracy']:.2%} in {found['seconds']:.1f} s", flush=True)
            record = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {"figures": {}}
            record["figures"].setdefault(way, {})[str(amount)] = found
            record["machine"] = {
                k: environment[k] for k in ("versions", "processor", "cpu_capability", "usable_cpus", "cuda_devices")
            }
            RESULTS.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
