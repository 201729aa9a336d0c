"""docs/cookbook.md, from docs/experiments.yaml and the recorded results in docs/results/."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml
from transfer_tables import transfer_tables

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
        *_machines(experiments),
        "",
        *transfer_tables(),
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
