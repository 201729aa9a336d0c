"""What pretraining without labels is worth: a linear probe on its features, and on those of random weights.

Pretrains on a source's training part, then fits the logistic regression of `netloom transfer --mode features` to the
features of both networks, with all labels or some of each class, and tests it on the test part. Processor time is what
is compared with a budget, since wall times of a busy machine say nothing. Run as

    python -m benchmarks.pretraining SOURCE [--set KEY=VALUE ...] [--per-class 20 100 0] [--run RUN] [--out FILE]

where 0 stands for all labels; prints JSON.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import netloom
from netloom.data.imageset import ImageSet, load_image_set
from netloom.data.splits import Split
from netloom.recipe import parse_overrides
from netloom.recipe.groups import MODEL_OPTIONS
from netloom.run import RunFolder
from netloom.runtime import package_versions


def probed(pictures: ImageSet, folder: RunFolder, weights: str, out: Path) -> dict[str, float]:
    """Test accuracy of the logistic regression on the features of a run's network, with its weights or random ones."""
    recipe = folder.recipe
    options = {key: getattr(recipe, key) for key in MODEL_OPTIONS if getattr(recipe, key) is not None}
    settings: dict[str, Any] = {
        "model": recipe.model,
        **options,
        "image_size": list(folder.data.image_size),
        "resize": folder.data.resize,
        "color": recipe.color,
        "transfer.weights": weights,
        "input_scaling": "standardize" if weights == "random" else "pretrained",
    }
    run = netloom.train(pictures, "transfer-features", out=out, quiet=True, settings=settings)
    return {name: run.result["test"][name] for name in ("accuracy", "n")}


def with_labels(pictures: ImageSet, split: Split, per_class: int, seed: int) -> ImageSet:
    """The pictures with so many labelled ones of each class to train on and half as many to validate; 0 for all."""
    generator, targets = np.random.default_rng(seed), pictures.targets.numpy()

    def some(part: np.ndarray, n: int) -> np.ndarray:
        of_class = [part[targets[part] == label] for label in range(len(pictures.class_names))]
        return np.concatenate([generator.permutation(rows)[:n] for rows in of_class])

    parts = {"train": split.train, "validation": split.validation, "test": split.test}
    if per_class:
        parts |= {"train": some(split.train, per_class), "validation": some(split.validation, max(1, per_class // 2))}
    chosen = pictures.subset(np.concatenate(list(parts.values())))
    names = [name for name, rows in parts.items() for _ in rows]
    return ImageSet(
        images=chosen.images,
        targets=chosen.targets,
        class_names=chosen.class_names,
        ids=chosen.ids,
        splits=tuple(names),
        content_hashes=chosen.content_hashes,
    )


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source")
    parser.add_argument("--set", dest="settings", action="append", default=[])
    parser.add_argument("--per-class", type=int, nargs="+", default=[0])
    parser.add_argument("--draws", type=int, default=3, help="of labelled pictures, where not all are")
    parser.add_argument("--run", help="pretrained before")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        started = time.process_time()
        run = (
            RunFolder.open(arguments.run)
            if arguments.run
            else netloom.pretrain(arguments.source, out="runs", settings=parse_overrides(arguments.settings))
        )
        seconds = time.process_time() - started
        facts = run.data
        pictures = load_image_set(
            arguments.source, image_size=facts.image_size, resize=facts.resize, channels=facts.channels
        ).image_set
        split = Split.from_json(run.split, pictures.ids)
        rows = []
        for per_class in arguments.per_class:
            for draw in range(arguments.draws if per_class else 1):
                labelled = with_labels(pictures, split, per_class, draw)
                found = {w: probed(labelled, run, w, out) for w in ("random", str(run.weights_path))}
                pretrained, random = found[str(run.weights_path)], found["random"]
                gain = pretrained["accuracy"] - random["accuracy"]
                rows.append({"per_class": per_class, "draw": draw, "pretrained": pretrained, "random": random})
                rows[-1]["gain"] = gain
        result = {
            "source": arguments.source,
            "run": str(run.path),
            "recipe": run.recipe.to_yaml(),
            "pretraining": run.result,
            "cpu_seconds": None if arguments.run else seconds,
            "threads": torch.get_num_threads(),
            "probes": rows,
            "versions": package_versions(),
        }
    text = json.dumps(result, indent=1)
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
