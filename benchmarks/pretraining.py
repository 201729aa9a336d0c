"""What pretraining without labels is worth: a linear probe on its features, and on those of random weights.

Pretrains on a source's training part, then fits the logistic regression of `netloom transfer --mode features` to the
features of both networks, with all labels or some of each class, and tests it on the test part. Processor time is what
is compared with a budget, since wall times of a busy machine say nothing. Run as

    python -m benchmarks.pretraining SOURCE [--set KEY=VALUE ...] [--per-class 20 100 0] [--draws N] [--run RUN]
        [--out FILE]

where 0 stands for all labels; prints JSON. What lies in docs/results/pretraining/NAME.json is
shown by docs/pretrain.md, between the comments that name it (scripts/generate_docs.py).
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch

import netloom
from benchmarks.suite.machine import QUIET_CPUS, OtherWork, machine_record
from netloom.data.imageset import ImageSet, load_image_set
from netloom.data.splits import Split
from netloom.recipe import parse_overrides
from netloom.recipe.groups import MODEL_OPTIONS
from netloom.run import RunFolder
from netloom.runtime import package_versions

DOCS = Path(__file__).resolve().parents[1] / "docs"


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
    others = OtherWork()
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
            "command": f"python -m benchmarks.pretraining {' '.join(_argument(text) for text in sys.argv[1:])}",
            "date": date.today().isoformat(),
            "machine": machine_record(),
            "other_work_cpus": others.cpus(),
            "recipe": run.recipe.to_yaml(),
            "pretraining": {key: value for key, value in run.result.items() if key not in ("run", "source")},
            "cpu_seconds": None if arguments.run else seconds,
            "threads": torch.get_num_threads(),
            "probes": rows,
            "versions": package_versions(),
        }
    text = json.dumps(result, indent=1)
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n", encoding="utf-8")


def _argument(text: str) -> str:
    """An argument of the command as the page shows it: of paths, the name alone."""
    return Path(text).name if "/" in text else text


def page(docs: Path = DOCS) -> str:
    """docs/pretrain.md with what is recorded, each record between the comments that name it.

    Raises:
        ValueError: The page has no such place for a record.
    """
    text = (docs / "pretrain.md").read_text(encoding="utf-8")
    for path in sorted((docs / "results" / "pretraining").glob("*.json")):
        begin, end = f"<!-- Measured: {path.stem} -->\n", f"<!-- End of {path.stem} -->\n"
        place = re.compile(f"(?<={re.escape(begin)}).*?(?={re.escape(end)})", re.DOTALL)
        if len(place.findall(text)) != 1:
            raise ValueError(f"docs/pretrain.md has no place for {path.name}: write {begin.strip()} and {end.strip()}.")
        lines = "\n".join(_measured(json.loads(path.read_text(encoding="utf-8")))) + "\n"
        text = place.sub(lambda _, lines=lines: lines, text)
    return text


def _measured(record: Mapping[str, Any]) -> Iterator[str]:
    """The lines of a record: how it was measured, and a table with a row for each number of labelled pictures."""
    pretraining, machine, probes = record["pretraining"], record["machine"], record["probes"]
    n = probes[0]["random"]["n"]
    shares = [one[weights]["accuracy"] for one in probes for weights in ("random", "pretrained")]
    error = max(math.sqrt(share * (1 - share) / n) for share in shares)
    seconds = record["cpu_seconds"]
    yield f"`{record['command']}`, {record['date']}:"
    yield (
        f"{pretraining['epochs']} epochs of {pretraining['train_n']:,} training pictures"
        f"{'' if seconds is None else f', {seconds:.0f} s of processor time ({_threads(record)})'}, on "
        f"{machine['processor']} ({machine['cpu_capability']}), torch {record['versions']['torch']}; a network of "
        f"{pretraining['parameters']:,} parameters; {n:,} test pictures, so that a standard error is "
        f"{100 * error:.1f} points."
    )
    if (record["other_work_cpus"] or 0.0) > QUIET_CPUS:
        yield f"The machine was not quiet: other work took {record['other_work_cpus']:.1f} processors."
    yield ""
    yield "| labelled pictures | random weights | pretrained | gain in points |"
    yield "|---|---:|---:|---:|"
    for per_class in dict.fromkeys(one["per_class"] for one in probes):
        of_row = [one for one in probes if one["per_class"] == per_class]
        labelled = f"{per_class:,} of each class" if per_class else f"all {pretraining['train_n']:,}"
        gains = ", ".join(f"{100 * one['gain']:+.1f}" for one in of_row)
        yield f"| {labelled} | {_accuracies(of_row, 'random')} | {_accuracies(of_row, 'pretrained')} | {gains} |"


def _accuracies(probes: Sequence[Mapping[str, Any]], weights: str) -> str:
    return ", ".join(f"{one[weights]['accuracy']:.1%}" for one in probes)


def _threads(record: Mapping[str, Any]) -> str:
    return "one thread" if record["threads"] == 1 else f"{record['threads']} threads"


if __name__ == "__main__":
    main()
