"""How long `netloom transfer --mode features` takes, from the command to its report: the first time and the second.

    python -m benchmarks.transfer_command ARCHIVE --weights mobilenetv1_100.safetensors [--rounds 3]

The first time nothing is in any cache: pictures are decoded, hashed and run through the network. The second time
pictures and features are there. Both are whole processes; what of the second one is importing Python modules (most of
it PyTorch) is measured in a third run, by `python -X importtime`.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.netloom_command import BACKBONE, import_seconds, run_command, scores_of_test
from benchmarks.suite.machine import OtherWork
from benchmarks.whole_programs import save


def measure(archive: Path, weights: Path) -> dict[str, dict[str, Any]]:
    """The first time, and the second."""
    with tempfile.TemporaryDirectory() as scratch:
        line = ["transfer", str(archive), "--backbone", BACKBONE, "--weights", str(weights), "--mode", "features"]
        line += ["--out", f"{scratch}/runs"]
        cache = Path(scratch) / "cache"
        found = {}
        for name in ("first", "second"):
            result, seconds = run_command(line, cache)
            test = scores_of_test(result)
            found[name] = {"seconds": seconds, "computed": result["features"]["computed"], "test": test}
        imports = import_seconds(line, cache)
    return {name: {**one, "import_seconds": imports} for name, one in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive", type=Path)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    others = OtherWork()
    rounds: dict[str, list[dict[str, Any]]] = {"first": [], "second": []}
    for number in range(arguments.rounds):
        for name, one in measure(arguments.archive, arguments.weights).items():
            rounds[name].append(one)
            print(number, name, f"{one['seconds']:.1f} s, {one['import_seconds']:.1f} s of it imports", flush=True)
    save("transfer_command", rounds, {"source": arguments.archive.name, "backbone": BACKBONE}, others)


if __name__ == "__main__":
    main()
