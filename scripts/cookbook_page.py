"""docs/cookbook.md, from docs/experiments.yaml and the recorded results in docs/results/."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

DOCS = Path(__file__).parent.parent / "docs"


def cookbook_page(note: str) -> str:
    """One row for each experiment: what it was, our command, our figure with its spread."""
    experiments = yaml.safe_load((DOCS / "experiments.yaml").read_text(encoding="utf-8"))
    lines = [
        "# Cookbook",
        "",
        note,
        "Experiments that well-known Keras notebooks and course notes make, each as one command. Accuracies are means",
        "over seeds on one split, ± the standard deviation over the seeds; test accuracy is of the kept weights on",
        "pictures that took no part in any choice. CIFAR-10 here is a copy re-encoded as JPEG, on which every network",
        "scores several points lower than on the original. `python benchmarks/cookbook.py RECIPE` records a row anew.",
        "",
        "| experiment | what they did | what they got | our command | parameters | validation | test | seeds "
        "| images/s |",
        "|---|---|---|---|---|---|---|---|---|",
        *(_row(experiment) for experiment in experiments),
        "",
        *_machines(experiments),
    ]
    return "\n".join(lines) + "\n"


def _result(experiment: dict[str, Any]) -> dict[str, Any] | None:
    path = DOCS / "results" / f"{experiment['recipe']}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _row(experiment: dict[str, Any]) -> str:
    command = f"`netloom train {experiment['source']} --recipe {experiment['recipe']}`"
    start = f"| {experiment['title']} | {experiment['theirs']} | {experiment['figure']} | {command} |"
    result = _result(experiment)
    if result is None:
        return f"{start} – | not measured yet | not measured yet | – | – |"
    return (
        f"{start} {result['parameters']:,} | {_share(result['validation_accuracy'])} | "
        f"{_share(result['test_accuracy'])} (n = {result['test_n']:,}) | {result['test_accuracy']['n']} | "
        f"{result['train_images_per_second']['mean']:,.0f} |"
    )


def _share(figures: dict[str, Any]) -> str:
    return f"{figures['mean']:.2%} ± {figures['standard_deviation']:.2%}"


def _machines(experiments: list[dict[str, Any]]) -> list[str]:
    """Where the figures were recorded."""
    results = [result for experiment in experiments if (result := _result(experiment))]
    machines = {
        f"{m['processor']} ({m['cpu_capability']}, {m['usable_cpus']} CPUs), torch {m['versions']['torch']}"
        for m in (result["machine"] for result in results)
    }
    return [f"Recorded on: {'; '.join(sorted(machines))}."] if machines else []
