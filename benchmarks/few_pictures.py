"""Cats and dogs from scratch and from a pretrained network, on all pictures and on few, for docs/cookbook.md.

    python -m benchmarks.few_pictures ARCHIVE --weights mobilenetv1_100.safetensors [--ways W ...] [--amounts N ...]

Each figure is one `netloom train` or `netloom transfer` as a user would type it, in a process of its own that finds
nothing in any cache: seconds are those of the whole command, from the start of Python to the report. The pictures of
`--per-class N` are the same for all ways, and all ways are tested on the same pictures. There is no validation part
(that of the archive is left out of a copy), and every way keeps the weights of its last epoch: no labels beside those N
of each class have a say, and no time goes into looking at them. What is measured is added to
docs/results/programs/few_pictures.json as it comes. The amount 0 stands for all pictures.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import netloom
from benchmarks.netloom_command import BACKBONE, run_command, scores_of_test
from benchmarks.suite.machine import OtherWork
from benchmarks.whole_programs import save

RECIPES = {
    "scratch": "cats-dogs-scratch",
    "augmented": "cats-dogs-augmented",
    "features": "transfer-features",
    "frozen": "transfer-frozen",
    "finetune": "transfer-finetune",
}
AMOUNTS = (20, 100, 500, 0)


def arguments_of(way: str, amount: int, archive: Path, weights: Path) -> list[str]:
    """The command of a way."""
    recipe = RECIPES[way]
    if recipe.startswith("transfer-"):
        line = ["transfer", str(archive), "--backbone", BACKBONE, "--mode", way, "--weights", str(weights)]
    else:
        line = ["train", str(archive), "--recipe", recipe]
    kept = [] if way == "features" else ["--set", "keep=last"]
    return [*line, "--set", "validation_fraction=0", *kept, *(["--per-class", str(amount)] if amount else [])]


def without_validation(archive: Path, folder: Path) -> Path:
    """A copy of a zip archive in that folder that lacks its validation part."""
    copy = folder / archive.name
    with zipfile.ZipFile(archive) as whole, zipfile.ZipFile(copy, "w") as kept:
        for member in whole.infolist():
            if "validation" not in member.filename.split("/"):
                kept.writestr(member, whole.read(member))
    return copy


def measure(way: str, amount: int, archive: Path, weights: Path) -> dict[str, Any]:
    """One command; what it reached, with how many steps, and how long it took."""
    with tempfile.TemporaryDirectory() as scratch:
        line = [*arguments_of(way, amount, archive, weights), "--out", f"{scratch}/runs"]
        result, seconds = run_command(line, Path(scratch) / "cache")
    test = scores_of_test(result)
    batch_size = netloom.load_recipe(RECIPES[way]).batch_size
    steps = 0 if way == "features" else result["epochs"] * math.ceil(result["train_n"] / batch_size)
    about = {"epochs": result["epochs"], "steps": steps, "train_n": result["train_n"]}
    return {"test": test, "seconds": seconds, **about}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive", type=Path)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--ways", nargs="+", choices=[*RECIPES], default=[*RECIPES])
    parser.add_argument("--amounts", nargs="+", type=int, default=[*AMOUNTS])
    arguments = parser.parse_args()
    about = {"source": arguments.archive.name, "backbone": BACKBONE, "validation": False}
    with tempfile.TemporaryDirectory() as folder:
        archive = without_validation(arguments.archive, Path(folder))
        for amount in arguments.amounts:
            for way in arguments.ways:
                others = OtherWork()
                found = measure(way, amount, archive, arguments.weights)
                print(way, amount or "all", f"{found['test']['accuracy']:.2%} in {found['seconds']:.1f} s", flush=True)
                save("few_pictures", {f"{way}, {amount or 'all'}": [found]}, about, others)


if __name__ == "__main__":
    main()
