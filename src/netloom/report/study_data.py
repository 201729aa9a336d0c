"""What a search found, as its report reads it: the plain values of `tune.json`, checked and typed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from netloom.errors import NetloomError
from netloom.metrics.intervals import Interval, prediction_interval, resampled_prediction_interval
from netloom.report.axes import identity, number_text, value_text
from netloom.report.wording import percent

_STUDY = (
    *("study", "source", "recipe", "model", "objective", "direction", "sampler", "pruner", "scheme_in_words"),
    *("space", "trials", "n_trials", "seconds", "jobs"),
)
# More choices than these are counted, not listed.
_CHOICES = 12
# Trials that have not ended are in no figure.
_UNFINISHED = ("running", "waiting")
_STATES = ("complete", "pruned", "failed")


@dataclass(frozen=True, kw_only=True)
class SearchKey:
    """A recipe key that was searched, and where."""

    name: str
    kind: str
    """`float`, `int` or `choice`."""
    low: float
    """NaN for choices."""
    high: float
    log: bool
    choices: Sequence[Any]
    condition: str
    """Where it is only searched under another key's values: `only where optimizer is sgd`."""

    @property
    def range_in_words(self) -> str:
        """`0.0001 to 0.1, by its logarithm`, or the choices."""
        if self.kind == "choice":
            words = ", ".join(map(value_text, self.choices[:_CHOICES]))
            more = len(self.choices) - _CHOICES
            return f"{words} and {more} more" if more > 0 else words
        ends = f"{number_text(self.low)} to {number_text(self.high)}"
        return f"{ends}, by its logarithm" if self.log else ends


@dataclass(frozen=True, kw_only=True)
class TrialFacts:
    """One trial. Figures that it did not reach are NaN."""

    number: int
    state: str
    """`complete`, `pruned` or `failed`; a trial that completed without a finite value has failed."""
    value: float
    """Of a pruned trial what it had reached, if anything."""
    settings: Mapping[str, Any]
    """By key; a key that did not apply is absent."""
    epochs: int
    seconds: float
    finished_after: float
    """Seconds since the search began."""
    values: Sequence[float]
    """The objective after each epoch; NaN where it was no number."""
    reason: str
    origin: str
    """`sampler`, `recipe`, or `study FOLDER`, whose best trials were tried first."""


class FreshScores(NamedTuple):
    """The winning recipe, trained again with other seeds, or on other folds."""

    values: Sequence[float]
    mean: float
    standard_deviation: float
    """NaN for a single seed."""
    interval: Interval | None
    """Of the mean."""
    held_out_n: int | None = None
    """Of folds, the pictures that they hold out together; None where the validation part scores all seeds."""
    test_per_train: float = math.nan
    """Of folds, the pictures held out from a training for each that it is given."""

    @property
    def by_fold(self) -> bool:
        """Whether the values are those of folds, not of seeds."""
        return self.held_out_n is not None

    @property
    def one_more(self) -> Interval | None:
        """Where the searched figure would lie, had nothing been chosen by it; None where that cannot be told."""
        n, deviation = len(self.values), self.standard_deviation
        # Of figures that happen to be alike nobody knows how they scatter; their deviation may be a rounding error.
        if n < 2 or min(self.values) == max(self.values) or not deviation > 0:
            return None
        if self.by_fold:
            return resampled_prediction_interval(self.mean, deviation, n, test_per_train=self.test_per_train)
        # The searched figure is of one training, which scatters as each of the fresh ones does.
        return prediction_interval(self.mean, deviation, n)


class FinalTraining(NamedTuple):
    """How the winning recipe was trained again."""

    on: str
    """`train` or `train+validation`."""
    n: int
    """Pictures."""
    epochs: int


class TestFacts(NamedTuple):
    """The test pictures, looked at once."""

    accuracy: float
    n: int
    interval: Interval | None
    majority: float
    """What always guessing the commonest class gives; NaN where unknown."""
    over_seeds: Sequence[float]
    """Accuracy of each training with a fresh seed; empty where there was one only."""
    earlier_winners: int = 0
    """Of the same search when it was shorter, which were tested on the same pictures."""
    groups: int | None = None
    """How many groups the pictures come in; None where each stands for itself."""


class Winner(NamedTuple):
    """The best trial as searched."""

    number: int
    value: float
    interval: Interval | None
    settings: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class StudyFacts:
    """A search, ready to be told."""

    folder: str
    source: str
    source_location: str
    """Where the pictures are, an absolute path or a named set; empty where they are not on the disk."""
    recipe: str
    model: str
    has_own_network: bool
    """Whether the network is the user's own, of which no recipe holds the code."""
    objective: str
    maximize: bool
    sampler: str
    pruner: str
    scheme: str
    validation_n: int | None
    validation_groups: int | None
    """How many groups these pictures come in; None where each stands for itself."""
    per_class: int | None
    """Pictures of each class that trials and winner train on; None for all."""
    keys: Sequence[SearchKey]
    trials: Sequence[TrialFacts]
    """In the order of their numbers."""
    planned: int | None
    """Trials that were meant to be; None where no number limits them, or where that is not known."""
    seconds: float
    jobs: int
    plan: Mapping[str, Any]
    importances: Mapping[str, float]
    """0..1 by key; empty where trials were too few to tell."""
    best: Winner | None
    fresh: FreshScores | None
    final: FinalTraining | None
    test: TestFacts | None
    test_notes: Sequence[str]
    """By which the test pictures are not new to the winner."""
    final_run: str
    base: Mapping[str, Any]
    """What the recipe itself has for the searched keys, as far as that is known."""
    recipe_yaml: str
    recipe_file: str
    """Where the winning recipe was written; empty where it was not."""

    @property
    def metric(self) -> str:
        """What was searched for, in words: `validation accuracy`."""
        return self.objective.replace("_", " ").replace("f1", "F1")

    @property
    def complete(self) -> list[TrialFacts]:
        """Trials that ran to their end and have a value."""
        return [trial for trial in self.trials if trial.state == "complete"]

    def of_state(self, state: str) -> list[TrialFacts]:
        """Trials that ended this way."""
        return [trial for trial in self.trials if trial.state == state]

    @property
    def winner(self) -> TrialFacts | None:
        """The best trial among `trials`."""
        number = None if self.best is None else self.best.number
        return next((trial for trial in self.trials if trial.number == number), None)

    @property
    def keys_by_importance(self) -> list[SearchKey]:
        """The most important first; in the space's order where that is not known."""
        return sorted(self.keys, key=lambda key: -self.importances.get(key.name, 0.0))

    @property
    def by_fold(self) -> bool:
        """Whether the values on a trial's way are those of folds, not of epochs."""
        return self.scheme.endswith("folds")

    def advantage(self, value: float, other: float) -> float:
        """How much better `value` is than `other`; negative where it is worse."""
        return value - other if self.maximize else other - value

    def score(self, value: float, *, digits: int = 1) -> str:
        """A value of the objective for people: a share as a percentage, anything else with four digits."""
        if not math.isfinite(value):
            return "–"
        if not self.is_share:
            return number_text(value)
        return percent(value) if digits == 1 else f"{value:.{digits}%}"

    def interval_text(self, interval: Interval | None) -> str:
        """`64.1% to 66.0%`; nothing where it is not known."""
        return "" if interval is None else f"{self.score(interval.low)} to {self.score(interval.high)}"

    @property
    def is_share(self) -> bool:
        """Whether the objective is a part of 1."""
        return self.objective.endswith("accuracy")


def read_study(result: Mapping[str, Any]) -> StudyFacts:
    """Check and type the result of a search.

    Args:
        result: As `tune.json` holds it; figures that are not numbers may be NaN, infinite or None.

    Raises:
        NetloomError: Something that every search has is missing.
    """
    _require(result, _STUDY, "The result of the search")
    trials = sorted(map(_trial, _ended(result["trials"])), key=lambda trial: trial.number)
    as_it_is = next((trial.settings for trial in trials if trial.origin == "recipe"), {})
    return StudyFacts(
        folder=str(result["study"]).replace("\\", "/").rstrip("/").rpartition("/")[2],
        source=str(result["source"]),
        source_location=str(result.get("source_location") or ""),
        recipe=str(result["recipe"]),
        model=str(result["model"]),
        has_own_network=bool(result.get("custom_model")),
        objective=str(result["objective"]),
        maximize=result["direction"] == "maximize",
        sampler=str(result.get("sampler_in_words") or result["sampler"]),
        pruner=str(result["pruner"] or "none"),
        scheme=str(result["scheme_in_words"]),
        validation_n=result.get("validation_n"),
        validation_groups=result.get("validation_groups"),
        per_class=result.get("per_class"),
        keys=[_key(row) for row in result["space"]],
        trials=trials,
        planned=result.get("planned"),
        seconds=_number(result["seconds"]),
        jobs=int(result["jobs"]),
        plan=result.get("plan") or {},
        importances={key: _number(value) for key, value in (result.get("importances") or {}).items()},
        best=_winner(result.get("best")),
        fresh=_fresh(result.get("fresh")),
        final=_final(result.get("final")),
        test=_test(result),
        test_notes=[str(note) for note in result.get("test_notes") or ()],
        final_run=str(result.get("final_run") or ""),
        base=result.get("base") or as_it_is,
        recipe_file=str(result.get("best_recipe") or ""),
        recipe_yaml=str(result.get("best_recipe_yaml") or ""),
    )


def _key(row: Mapping[str, Any]) -> SearchKey:
    _require(row, ("key", "kind"), "A key of the search space")
    return SearchKey(
        name=str(row["key"]),
        kind=str(row["kind"]),
        low=_number(row.get("low")),
        high=_number(row.get("high")),
        log=bool(row.get("log")),
        choices=tuple(row.get("choices") or ()),
        condition=_condition(row.get("when")),
    )


def _condition(when: Mapping[str, Any] | None) -> str:
    if when is None:
        return ""
    return f"only where {when['key']} is {' or '.join(map(value_text, when['values']))}"


def _ended(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [row for row in rows if row.get("state") not in _UNFINISHED]


def _trial(row: Mapping[str, Any]) -> TrialFacts:
    _require(row, ("number", "state", "value", "overrides"), "A trial of the search")
    state, reason = str(row["state"]), str(row.get("reason") or "")
    if state not in _STATES:
        raise NetloomError(f"Trial {row['number']} is {state!r}; expected {', '.join(_STATES)}. The file is damaged.")
    values = [_number(value) for value in row.get("values") or ()]
    value = _number(row["value"])
    if state == "complete" and math.isnan(value):
        state, reason = "failed", reason or "its value is not a finite number"
    if state == "pruned" and math.isnan(value):
        value = next((reached for reached in reversed(values) if math.isfinite(reached)), math.nan)
    return TrialFacts(
        number=int(row["number"]),
        state=state,
        value=value,
        settings=row["overrides"] or {},
        epochs=int(row.get("epochs") or 0),
        seconds=_number(row.get("seconds")),
        finished_after=_number(row.get("finished_after")),
        values=values,
        reason=reason,
        origin=str(row.get("from") or "sampler"),
    )


def _winner(best: Mapping[str, Any] | None) -> Winner | None:
    if not best:
        return None
    _require(best, ("number", "value", "overrides"), "The best trial of the search")
    value = _number(best["value"])
    if math.isnan(value):
        return None
    return Winner(int(best["number"]), value, _interval(best.get("interval")), best["overrides"] or {})


def _fresh(fresh: Mapping[str, Any] | None) -> FreshScores | None:
    values = [_number(value) for value in (fresh or {}).get("values") or ()]
    there = [value for value in values if math.isfinite(value)]
    if fresh is None or not there:
        return None
    by_fold = fresh.get("folds") is not None
    return FreshScores(
        there,
        _number(fresh["mean"]),
        _number(fresh.get("standard_deviation")),
        _interval(fresh.get("interval")),
        int(fresh["held_out_n"]) if by_fold else None,
        _number(fresh["test_per_train"]) if by_fold else math.nan,
    )


def _final(final: Mapping[str, Any] | None) -> FinalTraining | None:
    if not final:
        return None
    _require(final, ("on", "train_n", "epochs"), "The final training of the search")
    return FinalTraining(str(final["on"]), int(final["train_n"]), int(final["epochs"]))


def _test(result: Mapping[str, Any]) -> TestFacts | None:
    test, over_seeds = result.get("test"), result.get("test_over_seeds")
    if not test:
        return None
    _require(test, ("accuracy", "n"), "The test of the search")
    majority = test.get("majority_baseline")
    if isinstance(majority, Mapping):  # as the result of a run holds it, with the class
        majority = majority["accuracy"]
    seeds = [_number(value) for value in (over_seeds or {}).get("values") or ()]
    return TestFacts(
        _number(test["accuracy"]),
        int(test["n"]),
        _interval(test.get("interval")),
        _number(majority),
        seeds,
        int(result.get("earlier_winners", 0)),
        test.get("groups"),
    )


def _interval(ends: Sequence[Any] | None) -> Interval | None:
    if ends is None:
        return None
    low, high = map(_number, ends)
    return None if math.isnan(low) or math.isnan(high) else Interval(low, high)


def _number(value: Any) -> float:
    """A finite float, or NaN."""
    if not isinstance(value, (int, float)) or not math.isfinite(value):
        return math.nan
    return float(value)


def _require(values: Mapping[str, Any], names: Sequence[str], what: str) -> None:
    if missing := [name for name in names if name not in values]:
        raise NetloomError(f"{what} lacks {', '.join(missing)}. The file is damaged or from another version.")


def same_setting(first: Any, second: Any) -> bool:
    """Whether two settings are one."""
    return identity(first) == identity(second)
