"""docs/cookbook.md, from docs/experiments.yaml and the recorded results in docs/results/."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.cookbook import (
    Experiment,
    Record,
    changed_since,
    holds_recipe,
    load_experiments,
    load_record,
    seeds_of,
)
from transfer_tables import transfer_tables

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
    "recorded",
    "gap",
    "how ours differs, and why",
)
_ABOUT = """\
Experiments that well-known Keras notebooks and course notes make, each as one command. Accuracies are means over
seeds on one split, ± the standard deviation over the seeds, or of one training with its 95% interval; test accuracy
is of the kept weights on pictures that took no part in any choice. The gap is our figure less theirs, of the part
that theirs is of, in points, or of a loss in nats. Everywhere, hidden weights start as He et al. draw them (Keras: as
Glorot and Bengio do), batch normalization has PyTorch's constants, and validation pictures are drawn at random where
a set brings none.

Sources without a suffix are named sets: they are downloaded, unless the folder that the environment variable
`NETLOOM_DATA` names holds pictures of that name, such as `cifar10.zip`. CIFAR-10 was recorded on such a copy,
re-encoded as JPEG, on which every network scores several points lower than on the original, which is what is
downloaded. `cats_and_dogs_small.zip` is a file, to be made of 2,000, 1,000 and 1,000 pictures of Kaggle's Dogs vs.
Cats in the folders `{train,validation,test}/{cats,dogs}`.

images/s is that of a training that had the machine to itself: it is left out where seeds were trained at once, and
where they differ by more than 15%. `python benchmarks/cookbook.py RECIPE` records a row anew; *recorded* tells when
that was done, with which commit (`+`: with changes), and whether the recipe has changed since."""
# Seeds whose speeds lie further apart than this were not alone on the machine.
_ALIKE = 1.15
_MISSING = ["–", "–", "not measured yet", "not measured yet", "–", "–", "–", "–"]


def cookbook_page(note: str) -> str:
    """One row for each experiment: what it was, our command, our figure with its spread, the gap and why."""
    experiments = load_experiments()
    lines = [
        "# Cookbook",
        "",
        note,
        *_ABOUT.splitlines(),
        "",
        f"| {' | '.join(_COLUMNS)} |",
        "|" + "---|" * len(_COLUMNS),
        *(f"| {' | '.join(row(experiment, load_record(experiment['recipe'])))} |" for experiment in experiments),
        "",
        *_machines(experiments),
        "",
        *transfer_tables(),
    ]
    return "\n".join(lines) + "\n"


def row(experiment: Experiment, record: Record | None) -> list[str]:
    """The cells of an experiment, of which something may be recorded."""
    n_seeds = seeds_of(experiment) if record is None else record["test_accuracy"]["n"]
    start = [experiment["title"], experiment["theirs"], experiment["figure"], f"`{_command(experiment, n_seeds)}`"]
    why = experiment.get("why", "–")
    if record is None:
        return [*start, *_MISSING, why]
    epochs = record["epochs"]
    return [
        *start,
        f"{record['parameters']:,}",
        str(epochs[0]) if len(set(epochs)) == 1 else f"{min(epochs)} to {max(epochs)}",
        f"{_share(record['validation_accuracy'])} (n = {record['validation_n']:,})",
        f"{_share(record['test_accuracy'])} (n = {record['test_n']:,})",
        str(n_seeds),
        _speed(record),
        _recorded(experiment, record),
        _gap(experiment, record),
        why,
    ]


def _command(experiment: Experiment, n_seeds: int) -> str:
    seeds = f" --seeds {n_seeds}" if n_seeds > 1 else ""
    settings = "".join(f" --set {key}={value}" for key, value in experiment.get("settings", {}).items())
    return f"netloom train {experiment['source']} --recipe {experiment['recipe']}{seeds}{settings}"


def _speed(record: Record) -> str:
    figures = record["train_images_per_second"]
    values = figures["values"]
    alone = record.get("jobs", 1) == 1 and max(values) <= _ALIKE * min(values)
    return f"{figures['mean']:,.0f}" if alone else "–"


def _recorded(experiment: Experiment, record: Record) -> str:
    """When and with which code, and whether the recipe was another one then."""
    when = "before records had a date and a recipe"
    if holds_recipe(record):
        when = ", ".join(text for text in (record["date"], record["commit"]) if text)
    changed = changed_since(record, experiment)
    return f"{when}, **with an earlier form of the recipe** ({', '.join(changed)})" if changed else when


def _gap(experiment: Experiment, record: Record) -> str:
    """Our figure less theirs; a dash where they print none, or where ours was not recorded."""
    if "compare" not in experiment:
        return "–"
    theirs, part = experiment["compare"]
    is_loss = part.endswith("_loss")
    figures = record.get(part if is_loss else f"{part}_accuracy")
    if figures is None:
        return "–"
    ours = figures["mean"]
    if is_loss:
        return f"{ours - theirs:+.4f} ({part.replace('_', ' ')} {ours:.4f})"
    of_what = "best epoch's validation" if part == "best_validation" else part
    return f"{100 * (ours - theirs):+.1f} ({of_what} {ours:.2%})"


def _share(figures: dict[str, Any]) -> str:
    if figures["standard_deviation"] is None:
        low, high = figures["interval"]
        return f"{figures['mean']:.2%} ({low:.2%} to {high:.2%})"
    return f"{figures['mean']:.2%} ± {figures['standard_deviation']:.2%}"


def _machines(experiments: Sequence[Experiment]) -> list[str]:
    """Where the figures were recorded."""
    results = [record for experiment in experiments if (record := load_record(experiment["recipe"]))]
    machines = {
        f"{m['processor']} ({m['cpu_capability']}, {m['usable_cpus']} CPUs), torch {m['versions']['torch']}"
        for m in (result["machine"] for result in results)
    }
    return [f"Recorded on: {'; '.join(sorted(machines))}."] if machines else []
