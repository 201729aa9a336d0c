from __future__ import annotations

import math
import sys
import threading
import time
from pathlib import Path
from typing import Any

import cmaes
import numpy as np
import pytest
from optuna.trial import Trial

from netloom.errors import RecipeError
from netloom.tuning import samplers
from netloom.tuning.grid import grid_of
from netloom.tuning.samplers import (
    SAMPLERS,
    ExhaustedError,
    check_names,
    create_pruner,
    create_sampler,
    describe_sampler,
    grid_size,
    is_in_grid,
    resolve_pruner,
    resolve_sampler,
)
from netloom.tuning.space import Dimension, arrange
from netloom.tuning.space_text import parse_dimension
from netloom.tuning.storage import in_memory, open_storage, sqlite_url
from netloom.tuning.study import SearchStudy, best_of

NAMES = [name for name in SAMPLERS if name != "auto"]
TEXTS = {
    "rate": "1e-4..1e-1:log",
    "kind": "one,two",
    "units": "1..64",
    "extra": "0.5..0.9 if kind=two",
}


def whole(key: str, value: Any) -> str | None:
    return "no fractions" if key == "units" and isinstance(value, float) and not value.is_integer() else None


DIMENSIONS = arrange(parse_dimension(key, text, whole) for key, text in TEXTS.items())


def target(values: Any) -> float:
    score = -((math.log10(values["rate"]) + 2) ** 2) - abs(values["units"] - 20) / 30
    return score + (values["extra"] if values["kind"] == "two" else 0.0)


def study_of(
    sampler: str,
    dimensions: list[Dimension] = DIMENSIONS,
    *,
    seed: int = 1,
    storage: Any = None,
    init_points: int = 5,
    n_trials: int = 24,
    pruner: str = "none",
    epochs: int = 5,
) -> SearchStudy:
    study, _ = SearchStudy.create(
        storage or in_memory(),
        "a study",
        dimensions,
        direction="maximize",
        sampler=create_sampler(sampler, dimensions, seed=seed, init_points=init_points, n_trials=n_trials),
        pruner=create_pruner(pruner, epochs=epochs),
    )
    return study


def search(study: SearchStudy, n: int) -> list[tuple[int, Any]]:
    for _ in range(n):
        proposal = study.ask()
        study.complete(proposal.number, target(proposal.overrides), {})
    return [(record.number, dict(record.overrides)) for record in study.records()]


@pytest.mark.parametrize("name", NAMES)
def test_a_sampler_stays_in_the_space_and_repeats_itself(name: str) -> None:
    first = search(study_of(name), 9)
    assert first == search(study_of(name), 9)
    if name != "grid":
        assert first != search(study_of(name, seed=2), 9)
    for number, values in first:
        assert number == first.index((number, values))
        assert ("extra" in values) == (values["kind"] == "two")
        for dimension in DIMENSIONS:
            if dimension.key in values:
                dimension.to_storage(values[dimension.key])


@pytest.mark.parametrize("name", NAMES)
def test_a_sampler_made_anew_in_the_middle_goes_on_as_if_it_had_not_been(name: str, tmp_path: Path) -> None:
    undisturbed = search(study_of(name), 9)
    storage = open_storage(sqlite_url(tmp_path / "study.db"), shared=False)
    search(study_of(name, storage=storage), 7)
    reopened = SearchStudy.open(
        storage,
        "a study",
        DIMENSIONS,
        sampler=create_sampler(name, DIMENSIONS, seed=1, init_points=5, n_trials=24),
        pruner=create_pruner("none", epochs=5),
    )
    assert search(reopened, 2) == undisturbed


@pytest.mark.parametrize("name", [pytest.param("gp", marks=pytest.mark.slow), "tpe"])
def test_bayesian_search_beats_random_search_on_average(name: str) -> None:
    def best(sampler: str, seed: int) -> float:
        study = study_of(sampler, seed=seed)
        search(study, 18)
        found = best_of(study.records(), "maximize")
        assert found is not None
        assert found.value is not None
        return found.value

    seeds = range(2)
    assert sum(best(name, s) for s in seeds) > sum(best("random", s) for s in seeds)


def test_quasi_random_points_fill_the_space_more_evenly_than_random_ones() -> None:
    def emptiest(name: str) -> int:
        places = [math.log10(values["rate"]) for _, values in search(study_of(name), 64)]
        counts = [sum(-4 + i * 3 / 16 <= p < -4 + (i + 1) * 3 / 16 for p in places) for i in range(16)]
        return min(counts)

    assert emptiest("qmc") == 4  # 64 points of a Sobol sequence lie four to each sixteenth
    assert emptiest("random") < 4


def test_a_grid_visits_everything_once_in_order_and_a_part_of_it_at_random() -> None:
    small: list[Dimension] = [parse_dimension("kind", "one,two,three", whole), parse_dimension("a", "1,2", whole)]
    assert grid_size(small) == 6

    def visited(n_trials: int) -> list[Any]:
        study = study_of("grid", small, seed=0, init_points=1, n_trials=n_trials)
        return [tuple(study.ask().overrides.values()) for _ in range(n_trials)]

    assert visited(6) == [("one", 1), ("one", 2), ("two", 1), ("two", 2), ("three", 1), ("three", 2)]
    assert len(set(visited(4))) == 4
    assert visited(4) != visited(6)[:4]


def test_auto_takes_gaussian_processes_unless_the_search_is_conditional_or_very_long() -> None:
    plain = [d for d in DIMENSIONS if d.when is None]
    assert resolve_sampler("auto", plain, 50) == "gp"
    assert resolve_sampler("auto", plain, None) == "gp"
    assert resolve_sampler("auto", DIMENSIONS, 50) == "tpe"
    assert resolve_sampler("auto", plain, 5000) == "tpe"
    assert resolve_sampler("qmc", DIMENSIONS, 50) == "qmc"


def test_unknown_names_are_told_with_the_known_ones() -> None:
    with pytest.raises(RecipeError, match="Did you mean 'random'"):
        check_names("randm", "none")
    with pytest.raises(RecipeError, match="none, median, asha, hyperband"):
        check_names("gp", "x")


@pytest.mark.parametrize("name", NAMES)
def test_every_sampler_has_words(name: str) -> None:
    assert len(describe_sampler(name, 24)) > 5


def test_gaussian_processes_hand_over_to_tpe_and_the_study_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reference: TPE's own proposals after the same trials."""

    def proposals(sampler: str, n: int) -> list[dict[str, Any]]:
        study = study_of("random", n_trials=40)
        for _ in range(n):
            proposal = study.ask()
            study.complete(proposal.number, target(proposal.overrides), {})
        study._study.sampler = create_sampler(sampler, DIMENSIONS, seed=1, init_points=5, n_trials=None)
        return [dict(study.ask().overrides) for _ in range(3)]

    assert samplers.MOST_GP_TRIALS == 300
    monkeypatch.setattr(samplers, "MOST_GP_TRIALS", 12)
    assert proposals("gp", 12) == proposals("tpe", 12)
    assert proposals("gp", 8) != proposals("tpe", 8)
    across = proposals("gp", 11)
    assert across[0] != proposals("tpe", 11)[0]  # number 11 is the last of the Gaussian process
    words = [describe_sampler("gp", n) for n in (12, 13)]
    assert words[0] == "Bayesian search with Gaussian processes"
    assert words[1] == f"{words[0]}, from trial 12 on with tree-structured Parzen estimators"
    assert describe_sampler("tpe", 1000) == "Bayesian search with tree-structured Parzen estimators"


@pytest.mark.parametrize("pruner", ["median", "asha", "hyperband"])
def test_a_pruner_ends_the_worst_and_keeps_the_best(pruner: str) -> None:
    study = study_of("random", seed=0, init_points=1, n_trials=30, pruner=pruner, epochs=27)
    ended: dict[str, list[float]] = {"pruned": [], "complete": []}
    for quality in [0.5, 0.6, 0.4, 0.7, 0.55, 0.1, 0.9, 0.2, 0.05, 0.95, 0.3, 0.15, 0.85, 0.12, 0.99]:
        number = study.ask().number
        for epoch in range(1, 28):
            if study.report(number, epoch, quality * epoch / 27):
                study.prune(number, {})
                ended["pruned"].append(quality)
                break
        else:
            study.complete(number, quality, {})
            ended["complete"].append(quality)
    assert ended["pruned"]
    assert 0.05 in ended["pruned"]
    assert 0.99 in ended["complete"]
    by_state = {record.state for record in study.records()}
    assert by_state == {"pruned", "complete"}
    assert all(record.value is not None for record in study.records())


def test_without_a_pruner_nothing_is_pruned() -> None:
    study = study_of("random")
    for value in (0.9, 0.8, 0.0, 0.0, 0.0, 0.0, 0.0):
        number = study.ask().number
        assert not any(study.report(number, epoch, value) for epoch in range(1, 6))
        study.complete(number, value, {})


def test_gaussian_processes_learn_from_pruned_trials() -> None:
    """Points near one that was pruned for its low value are not proposed again."""
    line = [parse_dimension("x", "0..1", lambda key, value: None)]

    def proposals(*, far_better: bool) -> list[float]:
        study = study_of("gp", line, seed=0, init_points=2, n_trials=10)
        for x in (0.05, 0.1, 0.9, 0.95):
            study.enqueue({"x": x}, "test")
            number = study.ask().number
            if x > 0.5:
                study.report(number, 1, 5.0 if far_better else -5.0)
                study.prune(number, {})
            else:
                study.complete(number, 0.0, {})
        return [study.ask().overrides["x"] for _ in range(3)]

    assert np.mean(proposals(far_better=True)) > 0.6
    assert np.mean(proposals(far_better=False)) < 0.6


@pytest.mark.parametrize("sampler", NAMES)
@pytest.mark.parametrize("pruner", ["median", "asha", "hyperband"])
def test_every_sampler_works_with_every_pruner(sampler: str, pruner: str) -> None:
    study = study_of(sampler, seed=0, init_points=2, n_trials=8, pruner=pruner, epochs=4)
    for _ in range(8):
        proposal = study.ask()
        value = target(proposal.overrides)
        if any(study.report(proposal.number, epoch, value + epoch) for epoch in range(1, 5)):
            study.prune(proposal.number, {})
        else:
            study.complete(proposal.number, value, {})
    assert {record.state for record in study.records()} <= {"complete", "pruned"}
    assert len(study.records()) == 8


@pytest.mark.parametrize("name", ["tpe", "evolution", "cmaes"])
def test_trials_may_end_in_one_thread_while_another_asks(name: str) -> None:
    """And the values are those of one thread, as long as what was known at each asking is the same."""

    def ask_all(study: SearchStudy, *, at_once: bool) -> list[Any]:
        open_trials = [study.ask() for _ in range(30)]
        done = threading.Event()

        def end_all() -> None:
            for proposal in open_trials:
                study.fail(proposal.number, {})
                time.sleep(0.001)
            done.set()

        teller = threading.Thread(target=end_all)
        teller.start()
        if not at_once:
            teller.join()
        asked = []
        while not done.is_set() or len(asked) < 15:
            asked.append(study.ask().overrides)
        teller.join()
        return asked

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for at_once in (True, False):
            study = study_of(name)
            search(study, 8)
            assert len(ask_all(study, at_once=at_once)) >= 15
    finally:
        sys.setswitchinterval(interval)


def test_a_grid_goes_on_where_other_trials_have_taken_combinations() -> None:
    small = [parse_dimension("kind", "one,two,three", whole), parse_dimension("a", "1,2", whole)]

    def opened(storage: Any, n_trials: int, *, new: bool) -> SearchStudy:
        options: Any = {
            "sampler": create_sampler("grid", small, seed=0, init_points=1, n_trials=n_trials),
            "pruner": create_pruner("none", epochs=1),
        }
        if new:
            return SearchStudy.create(storage, "grid", small, direction="maximize", **options)[0]
        return SearchStudy.open(storage, "grid", small, **options)

    storage = in_memory()
    study = opened(storage, 3, new=True)
    assert study.enqueue({"kind": "two", "a": 2}, "recipe") is None
    found = [tuple(study.ask().overrides.values()) for _ in range(3)]
    assert found[0] == ("two", 2)
    found += [tuple(opened(storage, 6, new=False).ask().overrides.values()) for _ in range(3)]
    assert len(set(found)) == 6


def test_drivers_that_ask_at_the_same_moment_get_different_combinations() -> None:
    """One begins a trial, and before it has written its values down another driver asks."""
    small = [parse_dimension("kind", "one,two", whole), parse_dimension("a", "1,2", whole)]
    storage = in_memory()
    options: Any = {
        "sampler": create_sampler("grid", small, seed=0, init_points=1, n_trials=4),
        "pruner": create_pruner("none", epochs=1),
    }
    study, _ = SearchStudy.create(storage, "grid", small, direction="maximize", **options)
    study.enqueue({"kind": "one", "a": 2}, "recipe")  # waits, and is begun last
    slow = [Trial(study._study, storage.create_new_trial(study._study._study_id)) for _ in range(2)]
    beside = Trial(study._study, storage.create_new_trial(study._study._study_id))
    trials = [beside, *slow]
    values = [(t.suggest_categorical("kind", ("one", "two")), t.suggest_categorical("a", ("1", "2"))) for t in trials]
    assert values == [("two", "2"), ("one", "1"), ("two", "1")]
    assert study.ask().overrides == {"kind": "one", "a": 2}
    with pytest.raises(ExhaustedError):
        study.ask()
    late = storage.create_new_trial(study._study._study_id)
    with pytest.raises(ExhaustedError) as caught:
        Trial(study._study, late).suggest_categorical("kind", ("one", "two"))
    assert caught.value.trial_id == late


def test_a_combination_is_known_without_a_list_of_all() -> None:
    """Reference: the list."""
    listed = grid_of(DIMENSIONS, 5)
    assert all(is_in_grid(combination, DIMENSIONS) for combination in listed)
    assert not is_in_grid({**listed[0], "rate": 0.012}, DIMENSIONS)
    assert not is_in_grid({}, DIMENSIONS)


@pytest.mark.parametrize("end", [0.0, 1.0])
def test_cma_es_may_propose_the_ends_of_a_range(end: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """exp(log(2e-4)) is less than 2e-4."""
    ranges = [parse_dimension(key, "2e-4..0.7:log", lambda key, value: None) for key in ("x", "y")]
    monkeypatch.setattr(cmaes.CMA, "ask", lambda self: np.full(2, end))
    study = study_of("cmaes", ranges, seed=0, init_points=1, n_trials=4)
    study.complete(study.ask().number, 0.0, {})
    assert study.ask().overrides["x"] == pytest.approx((2e-4, 0.7)[int(end)])


def test_cma_es_needs_two_ranges() -> None:
    with pytest.raises(RecipeError, match="two ranges"):
        create_sampler("cmaes", DIMENSIONS[1:2], seed=0, init_points=1, n_trials=5)


def test_the_automatic_pruner_does_not_compare_trials_of_different_lengths() -> None:
    epochs = parse_dimension("epochs", "5,50", whole)
    assert resolve_pruner("auto", DIMENSIONS) == "median"
    assert resolve_pruner("auto", [*DIMENSIONS, epochs]) == "none"
    assert resolve_pruner("asha", [epochs]) == "asha"
