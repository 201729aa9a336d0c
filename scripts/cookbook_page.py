"""docs/cookbook.md, from docs/experiments.yaml and the recorded results in docs/results/."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from netloom.durations import duration

DOCS = Path(__file__).parent.parent / "docs"
_COLUMNS = (
    "experiment",
    "what they did",
    "what they got",
    "our command",
    "parameters",
    "epochs",
    "validation",
    "test",
    "seeds",
    "images/s",
    "gap",
    "why",
)

_WAYS = (
    ("scratch", "0.70 to 0.72", "cats-dogs-scratch"),
    ("augmented", "0.82", "cats-dogs-augmented"),
    ("features", "0.90 (VGG16)", None),
    ("frozen", "about the same, less overfitting (VGG16)", None),
    ("finetune", "1 to 2 points more (VGG16)", None),
)
_AMOUNTS = (20, 100, 500, 0)


def cookbook_page(note: str) -> str:
    """One row for each experiment: what it was, our command, our figure with its spread, the gap and why."""
    experiments = yaml.safe_load((DOCS / "experiments.yaml").read_text(encoding="utf-8"))
    lines = [
        "# Cookbook",
        "",
        note,
        "Experiments that well-known Keras notebooks and course notes make, each as one command. Accuracies are means",
        "over seeds on one split, ± the standard deviation over the seeds, or of one training with its 95% interval;",
        "test accuracy is of the kept weights on pictures that took no part in any choice. The gap is our figure less",
        "theirs, of the part that theirs is of, in points. CIFAR-10 here is a copy re-encoded as JPEG, on which every",
        "network scores several points lower than on the original. `python benchmarks/cookbook.py RECIPE` records a",
        "row anew.",
        "",
        f"| {' | '.join(_COLUMNS)} |",
        "|" + "---|" * len(_COLUMNS),
        *(f"| {' | '.join(_row(experiment))} |" for experiment in experiments),
        "",
        *_few_pictures(experiments),
        *_machines(experiments),
    ]
    return "\n".join(lines) + "\n"


def _result(experiment: dict[str, Any]) -> dict[str, Any] | None:
    path = DOCS / "results" / f"{experiment['recipe']}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _row(experiment: dict[str, Any]) -> list[str]:
    settings = "".join(f" --set {key}={value}" for key, value in experiment.get("settings", {}).items())
    command = f"`netloom train {experiment['source']} --recipe {experiment['recipe']}{settings}`"
    start = [experiment["title"], experiment["theirs"], experiment["figure"], command]
    result = _result(experiment)
    if result is None:
        return [*start, "–", "–", "not measured yet", "not measured yet", "–", "–", "–", "–"]
    if result.get("settings", {}) != experiment.get("settings", {}):
        raise ValueError(
            f"{experiment['recipe']}: recorded with other settings than experiments.yaml has; record it anew"
        )
    epochs = result["epochs"]
    return [
        *start,
        f"{result['parameters']:,}",
        str(epochs[0]) if len(set(epochs)) == 1 else f"{min(epochs)} to {max(epochs)}",
        f"{_share(result['validation_accuracy'])} (n = {result['validation_n']:,})",
        f"{_share(result['test_accuracy'])} (n = {result['test_n']:,})",
        str(result["test_accuracy"]["n"]),
        f"{result['train_images_per_second']['mean']:,.0f}",
        *_gap(experiment, result),
    ]


def _few_pictures(experiments: list[dict[str, Any]]) -> list[str]:
    """A table over the ways to a classifier of cats and dogs and the number of pictures, if any of it is recorded."""
    path = DOCS / "results" / "few-pictures.json"
    if not path.is_file():
        return []
    figures = json.loads(path.read_text(encoding="utf-8"))["figures"]
    head = ("way", "what they got (validation)", *("all" if not n else f"{n} of each class" for n in _AMOUNTS))
    rows = []
    for way, theirs, recipe in _WAYS:
        cells = []
        for amount in _AMOUNTS:
            found = figures.get(way, {}).get(str(amount))
            if found is not None:
                low, high = found["test"]["interval"]
                cells.append(f"{found['test']['accuracy']:.1%} ({low:.1%} to {high:.1%}), {duration(found['seconds'])}")
            elif not amount and recipe and (result := _result({"recipe": recipe})):
                seconds = duration(result["train_seconds"]["mean"])
                cells.append(f"{_share(result['test_accuracy'])}, {seconds}")
            else:
                cells.append("not measured yet")
        rows.append(f"| {way} | {theirs} | {' | '.join(cells)} |")
    return [
        "## From few pictures, and from a pretrained network",
        "",
        "Cats and dogs again, 1,000 training pictures of each class or so many of each as `--per-class` says, always",
        "the same. `scratch` and `augmented` are the recipes above; the others are `netloom transfer",
        "cats_and_dogs_small.zip --backbone mobilenetv1_100 --mode features`, `frozen` and `finetune` with their",
        "defaults; mobilenetv1_100 was pretrained on ImageNet, of whose 1,000 classes 118 are breeds of dogs and five",
        "domestic cats. Test accuracy on the same 1,000 pictures, with its 95% interval (one training each, so that",
        "the interval is that of the test pictures alone; over seeds, ± the deviation), and the time of the whole",
        "command with empty caches, `python benchmarks/few_pictures.py`; of the rows above, of training alone.",
        "",
        f"| {' | '.join(head)} |",
        "|" + "---|" * len(head),
        *rows,
        "",
    ]


def _gap(experiment: dict[str, Any], result: dict[str, Any]) -> list[str]:
    """Our figure less theirs, and the reason; a dash where they print none."""
    why = experiment.get("why", "–")
    if "compare" not in experiment:
        return ["–", why]
    theirs, part = experiment["compare"]
    ours = result[f"{part}_accuracy"]["mean"]
    of_what = "best epoch's validation" if part == "best_validation" else part
    return [f"{100 * (ours - theirs):+.1f} ({of_what} {ours:.2%})", why]


def _share(figures: dict[str, Any]) -> str:
    if figures["standard_deviation"] is None:
        low, high = figures["interval"]
        return f"{figures['mean']:.2%} ({low:.2%} to {high:.2%})"
    return f"{figures['mean']:.2%} ± {figures['standard_deviation']:.2%}"


def _machines(experiments: list[dict[str, Any]]) -> list[str]:
    """Where the figures were recorded."""
    results = [result for experiment in experiments if (result := _result(experiment))]
    machines = {
        f"{m['processor']} ({m['cpu_capability']}, {m['usable_cpus']} CPUs), torch {m['versions']['torch']}"
        for m in (result["machine"] for result in results)
    }
    return [f"Recorded on: {'; '.join(sorted(machines))}."] if machines else []
