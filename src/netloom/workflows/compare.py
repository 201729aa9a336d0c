"""Compare runs: what differs, what came out, and whether the difference is more than noise."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from netloom.errors import RunError
from netloom.files import prepare_to_write, write_atomically
from netloom.metrics.grouped import (
    count_by_groups,
    grouped_difference_interval,
    grouped_share_interval,
    sign_flip_p_value,
)
from netloom.metrics.intervals import Estimate, Interval, wilson_interval
from netloom.metrics.paired import (
    count_pairs,
    difference_of_intervals,
    holm_adjusted,
    mcnemar_p_value,
    paired_difference_interval,
)
from netloom.recipe import Recipe
from netloom.report.comparison import (
    ClassRecall,
    ComparedPair,
    ComparedRun,
    Comparison,
    render_comparison,
    runs_in_words,
)
from netloom.run import RunFolder

# Up to here every pair is tested; 10 pairs are still read at a glance, and each further test costs the others power.
_RUNS_IN_ALL_PAIRS = 5
# These keys say nothing about the training.
_LABELS = ("name", "description")
_PAGES = (".html", ".htm")


def compare(
    runs: Iterable[str | Path | RunFolder],
    *,
    out: str | Path | None = None,
    force: bool = False,
) -> Comparison:
    """Compare runs with each other.

    Runs that were tested on the same pictures are compared picture by picture. Unfinished runs, and runs of other
    data or classes, are compared as far as that goes; the notes say how far. Of more than five runs each is compared
    with the first.

    Args:
        runs: Two or more.
        out: An `.html` file to write, with the curves of all runs side by side; its folder is made.
        force: Replace `out` if it exists.

    Raises:
        RunError: There are fewer than two runs, one is named twice or is none, or `out` exists or cannot be written.
    """
    named = [runs] if isinstance(runs, (str, Path, RunFolder)) else list(runs)
    opened = _open(named)
    page = None if out is None else _checked(Path(out), force=force)
    pairs = [_compare_pair(opened, first, second) for first, second in _pairs(len(opened))]
    comparison = Comparison(
        runs=[run.describe() for run in opened],
        recipe_differences=recipe_differences([run.recipe for run in opened]),
        pairs=_with_holm(pairs),
        notes=list(_notes(opened, pairs)),
    )
    if page is not None:
        write_atomically(page, render_comparison(comparison))
    return comparison


def recipe_differences(recipes: Sequence[Recipe]) -> dict[str, list[Any]]:
    """The keys in which recipes differ, dotted within groups, with the value of each recipe.

    A group is `on` or `off` under its own name. A key that a recipe lacks, its group being off, is None; such a key is
    told only if another recipe changed it from its default.
    """
    values = [dict(_flat(recipe.to_mapping())) for recipe in recipes]
    changed = set[str]().union(*(dict(_flat(recipe.model_dump(exclude_defaults=True))) for recipe in recipes))
    order = {name: position for position, name in enumerate(Recipe.model_fields)}
    known = dict.fromkeys(key for value in values for key in value if key not in _LABELS)
    keys = sorted(known, key=lambda key: order[key.partition(".")[0]])
    found = {}
    for key in keys:
        given = [value[key] for value in values if key in value]
        if any(value != given[0] for value in given) or (len(given) < len(values) and key in changed):
            unset = "off" if "on" in given else None
            found[key] = [unset if value.get(key) is None else value[key] for value in values]
    return found


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield f"{prefix}{key}", "on"
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


@dataclass(frozen=True)
class _Answers:
    """What a run answered to its test pictures, in the order of their ids."""

    ids: list[str]
    classes: list[str]
    """True class of each."""
    right: npt.NDArray[np.bool_]
    groups: npt.NDArray[np.int64] | None
    """Of each; None where each stands for itself."""

    @property
    def interval(self) -> Interval:
        """Of the share that is right."""
        if self.groups is None:
            return wilson_interval(int(self.right.sum()), len(self.right))
        return grouped_share_interval(self.right, self.groups)


class _Opened:
    """A run with its files read once."""

    def __init__(self, folder: RunFolder, name: str) -> None:
        self.folder, self.name = folder, name
        self.recipe, self.facts = folder.recipe, folder.data
        self.split, self.result, self.history = folder.split, folder.result, folder.history

    @cached_property
    def answers(self) -> _Answers | None:
        """None where the run has not been tested."""
        if "test" not in self.result:
            return None
        probabilities, targets = self.folder.test_predictions()
        ids, names = self.split["test"], self.facts.class_names
        order = sorted(range(len(ids)), key=ids.__getitem__)
        right = probabilities.argmax(axis=1) == targets
        groups = self.folder.test_groups()
        return _Answers(
            [ids[i] for i in order],
            [names[targets[i]] for i in order],
            right[order],
            None if groups is None else groups[order],
        )

    @property
    def machine(self) -> str:
        """What the times were measured on."""
        plan = self.folder.saved_plan
        if plan is None:
            return ""
        processor = self.folder.environment["processor"] if plan.device == "cpu" else plan.device
        return f"{processor} with {plan.describe_threads()} in {plan.precision}"

    def describe(self) -> ComparedRun:
        """The run as the comparison shows it."""
        seconds = sum(row.get("seconds", 0.0) for row in self.history)
        seen = len(self.split["train"]) * len(self.history)
        return ComparedRun(
            name=self.name,
            path=str(self.folder.path),
            status=self.result["status"],
            source=self.facts.source_name,
            recipe=self.recipe.name,
            model=self.recipe.custom_model or self.recipe.model,
            parameters=self.result.get("parameters"),
            planned_epochs=self.recipe.epochs,
            kept_epoch=self.result.get("kept_epoch"),
            history=self.history,
            train_seconds=seconds,
            images_per_second=seen / seconds if seconds else None,
            validation=self._validation(),
            test=_estimate(self.result.get("test")),
        )

    def _validation(self) -> Estimate | None:
        """Of the kept weights; of the last epoch in a run that has not got to keeping any.

        Such a run knows how many answers were right but not which: there is no interval where they come in groups.
        """
        accuracy = self.history[-1].get("validation_accuracy") if self.history else None
        if "validation" in self.result or accuracy is None:
            return _estimate(self.result.get("validation"))
        n = len(self.split["validation"])
        if not (n and 0 <= accuracy <= 1):
            return None
        groups = self.folder.pictures.get("validation_groups")
        if groups is not None:
            return Estimate(accuracy, n, Interval(math.nan, math.nan), len(np.unique(groups)))
        return Estimate(accuracy, n, wilson_interval(round(accuracy * n), n))


def _estimate(scores: Mapping[str, Any] | None) -> Estimate | None:
    """None where there are no scores, or those of a training without labels, which have no interval."""
    if scores is None or "interval" not in scores:
        return None
    return Estimate(scores["accuracy"], scores["n"], Interval(*scores["interval"]), scores.get("groups"))


def _open(runs: Sequence[str | Path | RunFolder]) -> list[_Opened]:
    folders = [RunFolder.open(run.path if isinstance(run, RunFolder) else run) for run in runs]
    if len(folders) < 2:
        raise RunError(f"Comparing needs at least two runs, found {len(folders)}: netloom compare RUN RUN ...")
    places = [folder.path.resolve() for folder in folders]
    for place, folder in zip(places, folders, strict=True):
        if places.count(place) > 1:
            raise RunError(f"The run {folder.path} is named more than once; name each run once.")
    names = [folder.name for folder in folders]
    return [
        _Opened(folder, name if names.count(name) == 1 else str(folder.path))
        for folder, name in zip(folders, names, strict=True)
    ]


def _pairs(n_runs: int) -> list[tuple[int, int]]:
    if n_runs <= _RUNS_IN_ALL_PAIRS:
        return list(itertools.combinations(range(n_runs), 2))
    return [(0, second) for second in range(1, n_runs)]


def _compare_pair(runs: Sequence[_Opened], first: int, second: int) -> ComparedPair:
    """The pair of runs with these indices; its p-value not yet corrected."""
    one, other = runs[first], runs[second]
    untested = [f"run {index + 1}" for index in (first, second) if runs[index].answers is None]
    if one.answers is None or other.answers is None:
        verb = "has" if len(untested) == 1 else "have"
        return ComparedPair(
            first=first, second=second, kind="none", reason=f"{' and '.join(untested)} {verb} not been tested"
        )
    if set(one.facts.class_names) != set(other.facts.class_names):
        return ComparedPair(first=first, second=second, kind="none", reason="they tell other classes apart")
    if reason := _why_not_paired(one.answers, other.answers):
        return _compare_unpaired(one.answers, other.answers, first, second, reason)
    counts = count_pairs(one.answers.right, other.answers.right)
    # Of a source that has got its groups since, one run alone knows of them.
    groups = one.answers.groups if other.answers.groups is None else other.answers.groups
    if groups is None:
        n_groups, interval, p_value = None, paired_difference_interval(counts), mcnemar_p_value(counts)
    else:
        differences, sizes = count_by_groups(one.answers.right, other.answers.right, groups)
        n_groups, p_value = len(differences), sign_flip_p_value(differences)
        interval = grouped_difference_interval(differences, sizes)
    return ComparedPair(
        first=first,
        second=second,
        kind="paired",
        difference=counts.difference,
        interval=interval,
        n=counts.n,
        groups=n_groups,
        only_first=counts.only_first,
        only_second=counts.only_second,
        p_value=p_value,
        classes=_by_class(one.answers, other.answers, one.facts.class_names),
    )


def _by_class(one: _Answers, other: _Answers, class_names: Sequence[str]) -> list[ClassRecall]:
    """Recall of the classes that occur, of two runs with the same test pictures."""
    classes, found = np.array(one.classes, dtype=object), []
    for name in class_names:
        of_it = classes == name
        if n := int(of_it.sum()):
            found.append(ClassRecall(name, n, float(one.right[of_it].mean()), float(other.right[of_it].mean())))
    return found


def _why_not_paired(one: _Answers, other: _Answers) -> str:
    """Empty where both were tested on the same pictures, known by their ids and classes."""
    if one.ids != other.ids:
        shared = len(set(one.ids) & set(other.ids))
        return f"tested on {len(one.ids):,} and {len(other.ids):,} pictures, of which {shared:,} are the same"
    relabelled = sum(a != b for a, b in zip(one.classes, other.classes, strict=True))
    return f"{relabelled:,} of the test pictures have another class in the other run" if relabelled else ""


def _compare_unpaired(one: _Answers, other: _Answers, first: int, second: int, reason: str) -> ComparedPair:
    p_one, p_other = float(one.right.mean()), float(other.right.mean())
    return ComparedPair(
        first=first,
        second=second,
        kind="unpaired",
        reason=reason,
        difference=p_other - p_one,
        interval=difference_of_intervals(p_one, one.interval, p_other, other.interval),
    )


def _with_holm(pairs: Sequence[ComparedPair]) -> list[ComparedPair]:
    adjusted = iter(holm_adjusted([pair.p_value for pair in pairs if pair.p_value is not None]))
    return [pair if pair.p_value is None else replace(pair, adjusted_p_value=float(next(adjusted))) for pair in pairs]


def _notes(runs: Sequence[_Opened], pairs: Sequence[ComparedPair]) -> Iterator[str]:
    """What to know before believing the figures."""
    yield from _unfinished_notes(runs)
    yield from _data_notes(runs, pairs)
    if len(runs) > _RUNS_IN_ALL_PAIRS:
        yield "Each run is compared with run 1, the first one named; name the one to beat first."
    if any(pair.kind == "paired" for pair in pairs):
        yield (
            "Several runs were scored on one test part. Taking the best of them by this score chooses on the test "
            "part, and the score of the chosen one is then a little too good. Choose by validation, or test the "
            "chosen one once more on pictures that no run has seen: netloom evaluate RUN SOURCE."
        )
        yield (
            "More than noise means more than the luck of which pictures were tested. It is about these trained "
            "networks: the same recipe trained with another seed gives another network, so a statement about recipes "
            "needs several seeds of each: netloom train SOURCE --seeds 5."
        )
    for number, run in enumerate(runs, 1):
        if "test" in run.result:
            yield from (f"Run {number}: {note}" for note in run.result.get("test_notes", ()))
        if (tests := run.result.get("tests", 1)) > 1:
            yield f"Run {number} was tested {tests} times and trained on in between, so its test score may be too good."
    machines = {run.machine for run in runs if run.machine}
    if len(machines) > 1:
        yield f"Times were measured under different conditions: {'; '.join(sorted(machines))}."


def _unfinished_notes(runs: Sequence[_Opened]) -> Iterator[str]:
    for number, run in enumerate(runs, 1):
        status, epochs = run.result["status"], len(run.history)
        if status == "finished":
            continue
        reached = f"after {epochs} of {run.recipe.epochs} epochs" if epochs else "before its first epoch was complete"
        shown = (
            "; its validation accuracy is that of the last epoch" if "validation" not in run.result and epochs else ""
        )
        how = {"running": "is still running, or was killed,", "failed": "failed"}.get(status, f"was {status}")
        yield f"Run {number} {how} {reached}{shown}."


def _data_notes(runs: Sequence[_Opened], pairs: Sequence[ComparedPair]) -> Iterator[str]:
    """How the data of the runs differ."""
    by_data: dict[str, list[int]] = {}
    for index, run in enumerate(runs):
        by_data.setdefault(run.facts.fingerprint, []).append(index)
    if len(by_data) > 1:
        sources = (f"{runs_in_words(same)}: {runs[same[0]].facts.source_name}" for same in by_data.values())
        yield f"The runs are not of the same data ({'; '.join(sources)})."
    paired = [pair for pair in pairs if pair.kind == "paired"]
    if any(runs[pair.first].facts.fingerprint != runs[pair.second].facts.fingerprint for pair in paired):
        yield (
            "Test pictures of different data are matched by name and class alone; where a name stands for another "
            "picture, the paired test means nothing."
        )
    if len(by_data) == 1 and len({tuple(sorted(run.split["train"])) for run in runs}) > 1:
        yield "The runs drew their parts from the data differently, so they were not trained on the same pictures."
    if any(pair.kind == "unpaired" for pair in pairs):
        yield (
            "Where two runs were tested on different pictures, one test may simply have been the harder one. The "
            "interval of their difference knows nothing of that."
        )


def _checked(path: Path, *, force: bool) -> Path:
    if path.is_dir():
        raise RunError(f"{path} is a folder; give the name of an HTML file, such as {path / 'comparison.html'}.")
    if path.suffix.lower() not in _PAGES:
        raise RunError(f"--out {path}: expected a name that ends in {' or '.join(_PAGES)}.")
    prepare_to_write(path, force=force)
    return path
