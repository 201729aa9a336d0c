"""The tables of docs/cookbook.md on few pictures and pretrained networks, from what their benchmarks recorded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks.cookbook import load_record
from benchmarks.few_pictures import RECIPES
from benchmarks.suite.machine import QUIET_CPUS

from benchmarks import whole_programs
from netloom.durations import duration

_THEIRS = {
    "scratch": "0.70 to 0.72",
    "augmented": "0.82",
    "features": "0.90 (VGG16)",
    "frozen": "about the same, less overfitting (VGG16)",
    "finetune": "1 to 2 points more (VGG16)",
}
_AMOUNTS = ("20", "100", "500", "all")


def transfer_tables() -> list[str]:
    """The lines of the page; a table of which nothing is recorded says how it is measured."""
    return [
        *_section("From few pictures, and from a pretrained network", _FEW, "few_pictures", _few_pictures),
        *_section("Features, frozen or fine-tuned", _FOLDS, "transfer_folds", _folds),
        *_section("The limits of a network of photographs", _LIMITS, "backbone_limits", _limits),
    ]


_FEW = (
    "Cats and dogs again, 1,000 training pictures of each class or so many of each as `--per-class` says, always the "
    "same. `scratch` and `augmented` are the recipes above; the others are `netloom transfer cats_and_dogs_small.zip "
    "--backbone mobilenetv1_100 --mode features`, `frozen` and `finetune`; mobilenetv1_100 was pretrained on ImageNet, "
    "of whose 1,000 classes 118 are breeds of dogs and five domestic cats. No pictures validate "
    "(`--set validation_fraction=0`, the archive without its validation part), and all keep the weights of their last "
    "epoch (`--set keep=last`), so that no labels beside those counted have a say; all train for their recipe's "
    "epochs, which with few pictures are few steps: the number is in the table, since a network from scratch lacks "
    "both. Test accuracy on the same 1,000 pictures, with its 95% interval (one training each: the interval is that of "
    "the test pictures alone), and the time of the whole command with empty caches. From scratch an epoch's accuracy "
    "differs from the next one's by several points up to the end, so that cells of a row may be out of order. Where a "
    "cell says so, it is the row of the recipe above, whose last epoch's weights are kept, too, and its time that of "
    "the training's steps."
)
_FOLDS = (
    "The shipped recipes on the same folds of the 3,000 pictures of cats and dogs outside of the test part. The gain "
    "over `features` is the mean of the folds' differences, with the interval that is corrected for overlapping "
    "training parts, and p of the exact test of the held-out answers."
)
_LIMITS = (
    "The same backbone on small pictures that are no photographs of its kind, enlarged: a logistic regression on its "
    "features, `netloom transfer SOURCE --backbone mobilenetv1_100 --mode features --set image_size=N`. The networks "
    "above, trained on these pictures from scratch, are what to compare with."
)


def _section(title: str, text: str, name: str, table: Any) -> Iterator[str]:
    yield f"## {title}"
    yield ""
    yield text
    yield ""
    record = whole_programs.load(name)
    if record is None:
        yield f"Not measured yet: see `python -m benchmarks.{name} --help`."
    else:
        yield from table(record)
        yield ""
        yield from whole_programs.how(record)
    yield ""


def _head(*cells: str) -> Iterator[str]:
    yield whole_programs.row(*cells)
    yield "|" + "---|" * len(cells)


def _accuracy(test: Mapping[str, Any]) -> str:
    low, high = test["interval"]
    return f"{test['accuracy']:.1%} ({low:.1%} to {high:.1%})"


def _time(measured: Mapping[str, Any]) -> str:
    """How long it took; what other work has slowed down tells nothing."""
    if (measured["other_work_cpus"] or 0.0) > QUIET_CPUS:
        return "time not known"
    return duration(measured["rounds"][-1]["seconds"])


def _few_pictures(record: whole_programs.Record) -> Iterator[str]:
    columns = ["all" if amount == "all" else f"{amount} of each class" for amount in _AMOUNTS]
    yield from _head("way", "what they got (validation)", *columns)
    for way, theirs in _THEIRS.items():
        cells = []
        for amount in _AMOUNTS:
            measured = record["contenders"].get(f"{way}, {amount}")
            if measured is None:
                cells.append(_of_recipe(way) if amount == "all" else "not measured yet")
                continue
            found = measured["rounds"][-1]
            steps = f", {found['steps']:,} steps" if found["steps"] else ""
            cells.append(f"{_accuracy(found['test'])}, {_time(measured)}{steps}")
        yield whole_programs.row(way, theirs, *cells)


def _of_recipe(way: str) -> str:
    """What the recipe's own row in the table of experiments has on all pictures."""
    row = load_record(RECIPES[way])
    if row is None:
        return "not measured yet"
    alone = row["jobs"] == 1  # several trainings at once tell no time
    time = duration(row["train_seconds"]["mean"]) if alone else "time not known"
    accuracy = _accuracy({**row["test_accuracy"], "accuracy": row["test_accuracy"]["mean"]})
    return f"{accuracy}, {time}, the recipe's row above"


def _folds(record: whole_programs.Record) -> Iterator[str]:
    about = record["about"]
    yield from _head("mode", f"accuracy, {about['folds']} folds at {about['image_size']} pixels", "gain", "p", "time")
    for mode in _THEIRS:
        measured = record["contenders"].get(mode)
        if measured is None:
            continue
        found = measured["rounds"][-1]
        low, high = found["interval"]
        accuracy = f"{found['accuracy']:.2%} ({low:.2%} to {high:.2%}), n = {found['n']:,}"
        gain, p_value = "–", "–"
        if "gain" in found:
            low, high = found["gain_interval"]
            gain, p_value = f"{found['gain']:+.2%} ({low:+.2%} to {high:+.2%})", f"{found['p_value']:.2g}"
        yield whole_programs.row(mode, accuracy, gain, p_value, _time(measured))


def _limits(record: whole_programs.Record) -> Iterator[str]:
    yield from _head("source", "enlarged to", "test accuracy", "test pictures", "training pictures", "time")
    for name, measured in record["contenders"].items():
        source, size = name.split(", ")
        found = measured["rounds"][-1]
        n, learned = f"{found['test']['n']:,}", f"{found['train_n']:,}"
        yield whole_programs.row(source, f"{size}x{size}", _accuracy(found["test"]), n, learned, _time(measured))
