"""The modes of `netloom transfer` beside each other on the same folds, for docs/cookbook.md.

    python -m benchmarks.transfer_folds ARCHIVE --weights mobilenetv1_100.safetensors [--folds 5] [--image-size 224]
        [--modes frozen finetune]

Each mode is cross-validated with its shipped recipe: `netloom cv ARCHIVE --recipe transfer-MODE --folds K` on all
pictures, with a cache of its own that is empty. Recorded are each mode's accuracies and how the later modes differ from
`features`, which always comes first, with the corrected interval and the exact test by which `--mode auto` decides.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import netloom
from benchmarks.netloom_command import BACKBONE
from benchmarks.suite.machine import OtherWork
from benchmarks.whole_programs import save
from netloom.evaluation.cross_validation import gain

MODES = ("features", "frozen", "finetune")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive", type=Path)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--modes", nargs="+", choices=MODES[1:], default=[*MODES[1:]])
    arguments = parser.parse_args()
    about = {"source": arguments.archive.name, "backbone": BACKBONE}
    about |= {"folds": arguments.folds, "image_size": arguments.image_size}
    settings = {"transfer.weights": str(arguments.weights.resolve()), "image_size": arguments.image_size}
    first = None
    with tempfile.TemporaryDirectory() as scratch:
        for mode in (MODES[0], *arguments.modes):
            os.environ["NETLOOM_CACHE"] = f"{scratch}/cache-{mode}"
            others, started = OtherWork(), time.perf_counter()
            found = netloom.cross_validate(
                arguments.archive, f"transfer-{mode}", folds=arguments.folds, settings=settings, out=f"{scratch}/runs"
            )
            first = first or found.scores
            accuracy = found.scores.accuracy
            one: dict[str, Any] = {
                "accuracy": accuracy.mean,
                "interval": [accuracy.interval.low, accuracy.interval.high],
                "n": len(found.scores.answers.right),
                "seconds": time.perf_counter() - started,
            }
            if mode != MODES[0]:
                over = gain(found.scores, first)
                interval = [over.interval.low, over.interval.high]
                one |= {"gain": over.mean, "gain_interval": interval, "p_value": over.p_value}
            save("transfer_folds", {mode: [one]}, about, others)


if __name__ == "__main__":
    main()
