"""How many trainings share a card. Processes on the CPU stand for those on a card: they meet and are timed alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import netloom
from netloom.parallel.tasks import Event, Failed, Finished, Started, Task
from netloom.progress import Reporter
from netloom.recipe import Recipe, load_recipe
from netloom.runtime import ExecutionPlan
from netloom.workflows import card_sharing, trainings
from netloom.workflows.card_sharing import trainings_per_card
from netloom.workflows.prepare import PreparedData, prepare_data

PLAN = ExecutionPlan("cpu", 1, "float32")
QUICK: dict[str, Any] = {"filters": [4], "batch_size": 8, "epochs": 2, "early_stopping": None}


@pytest.fixture
def recipe() -> Recipe:
    return load_recipe("photos", QUICK)


@pytest.fixture
def data(recipe: Recipe, photos: Path) -> PreparedData:
    return prepare_data(photos, recipe, Reporter(quiet=True))


class Told:
    """Stands for the processes: what each of `n` at once tells."""

    def __init__(self, rates: dict[int, float | None], *, free: int | None = None) -> None:
        self.rates, self.free, self.asked = rates, free, []  # type: ignore[var-annotated]

    def __call__(self, *_: Any, **__: Any) -> Told:
        return self

    def __enter__(self) -> Told:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def run(self, tasks: list[Task], on_event: Any) -> None:
        n = len(tasks)
        self.asked.append(n)
        rate = self.rates[n]
        for task in tasks:
            event: Event = Started(task, 1)
            on_event(event)
            if rate is None:
                on_event(Failed(task, "out of memory"))
            else:
                on_event(Finished(task, {"steps_per_second": rate, "bytes": 2**30, "free": self.free}))


@pytest.mark.parametrize(
    ("rates", "n_trainings", "most", "chosen", "asked"),
    [
        ({1: 10.0, 2: 9.0, 4: 8.0, 8: 3.0}, 50, None, 4, [1, 2, 4, 8]),
        ({1: 10.0, 2: 5.5}, 50, None, 1, [1, 2]),
        ({1: 10.0, 2: 9.0, 4: None}, 50, None, 2, [1, 2, 4]),
        ({1: 10.0, 2: 9.0, 4: 9.0}, 50, 5, 4, [1, 2, 4]),
        ({1: 10.0, 2: 9.0}, 3, None, 2, [1, 2]),
        ({}, 1, None, 1, []),
    ],
    ids=["busy at eight", "no gain", "no memory", "at most five", "three trainings", "one training"],
)
def test_as_many_share_a_card_as_do_more_together(
    recipe: Recipe,
    data: PreparedData,
    monkeypatch: pytest.MonkeyPatch,
    rates: dict[int, float | None],
    n_trainings: int,
    most: int | None,
    chosen: int,
    asked: list[int],
) -> None:
    told = Told(rates)
    monkeypatch.setattr(card_sharing, "LocalExecutor", told)
    monkeypatch.setattr(card_sharing, "usable_cpus", lambda: 16)
    monkeypatch.setattr(card_sharing, "_LEAST_SECONDS", 0.0)
    assert trainings_per_card(recipe, data, PLAN, n_trainings=n_trainings, most=most) == chosen
    assert told.asked == asked


def test_short_trainings_and_a_full_card_are_left_alone(
    recipe: Recipe, data: PreparedData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(card_sharing, "usable_cpus", lambda: 16)
    short = Told({1: 10.0, 2: 10.0})
    monkeypatch.setattr(card_sharing, "LocalExecutor", short)
    assert trainings_per_card(recipe, data, PLAN, n_trainings=4) == 1  # four trainings of ten steps
    full = Told({1: 10.0, 2: 10.0}, free=2**30)  # beside the one that is there, each a gigabyte and what CUDA holds
    monkeypatch.setattr(card_sharing, "LocalExecutor", full)
    monkeypatch.setattr(card_sharing, "_LEAST_SECONDS", 0.0)
    assert trainings_per_card(recipe, data, PLAN, n_trainings=4) == 1
    assert (short.asked, full.asked) == ([1], [1])


def test_processes_meet_and_are_timed_together(
    recipe: Recipe, data: PreparedData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(card_sharing, "_AT_ONCE", (1, 2))
    monkeypatch.setattr(card_sharing, "_LEAST_SECONDS", 0.0)
    monkeypatch.setattr(card_sharing, "usable_cpus", lambda: 2)
    seen: list[card_sharing._Rates] = []

    class Kept(card_sharing._Rates):
        def __init__(self) -> None:
            super().__init__()
            seen.append(self)

    monkeypatch.setattr(card_sharing, "_Rates", Kept)
    assert trainings_per_card(recipe, data, PLAN, n_trainings=2) in (1, 2)
    assert [len(found.rates) for found in seen] == [1, 2]
    assert all(rate > 1 for found in seen for rate in found.rates)


def test_a_plan_for_a_card_asks_how_many_share_it(
    recipe: Recipe, data: PreparedData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainings, "trainings_per_card", lambda *_, **given: given["n_trainings"] - 1)
    plan = ExecutionPlan("cuda", 1, "bfloat16")
    network, heads = netloom.workflows.builders.build_network(recipe, data.facts)

    def jobs(asked: int | None) -> int:
        return trainings.plan_trainings(
            recipe, data, network, heads, n_trainings=5, jobs=asked, device="cuda", plan=plan
        )[1]

    assert (jobs(None), jobs(1), jobs(9)) == (4, 1, 5)


@pytest.mark.gpu
def test_trials_that_share_a_card_are_those_of_one_after_the_other(photos: Path, tmp_path: Path) -> None:
    if not torch.cuda.is_available():
        pytest.skip("there is no CUDA device")
    tables = []
    for jobs in (1, 4):
        study = netloom.tune(
            photos,
            space={"dropout": "0..0.5"},
            sampler="random",
            n_trials=8,
            final_seeds=0,
            pruner="none",
            jobs=jobs,
            device="cuda",
            out=tmp_path / str(jobs),
            quiet=True,
            settings={**QUICK, "precision": "float32"},
        )
        tables.append([(trial["overrides"], trial["value"]) for trial in study.trials])
    assert tables[0] == tables[1]


def test_who_does_not_come_ends_the_waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(card_sharing, "_SECONDS_TO_MEET", 0.05)
    with pytest.raises(TimeoutError, match="2 processes did not meet"):
        card_sharing._meet(tmp_path, 2)
