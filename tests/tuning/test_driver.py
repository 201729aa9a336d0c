"""What a driver counts: trials at once, and when in the course of a search each of them ended."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import pytest

from netloom.parallel.local import LocalExecutor
from netloom.parallel.tasks import (
    Event,
    Executor,
    Failed,
    Finished,
    Interruption,
    OnEvent,
    Started,
    Task,
    uninterrupted,
)
from netloom.tuning.driver import Driver, TrialEnd, Watcher
from netloom.tuning.samplers import create_pruner, create_sampler, most_at_once
from netloom.tuning.space import Dimension, arrange
from netloom.tuning.space_text import parse_dimension
from netloom.tuning.storage import in_memory
from netloom.tuning.study import Proposal, SearchStudy
from parallel import work

DIMENSIONS = arrange([parse_dimension("rate", (0.0, 1.0), lambda key, value: None)])


class InPairs(Executor):
    """Starts two tasks, ends both, and so on; the fourth task fails."""

    def run(self, tasks: Iterable[Task], on_event: OnEvent, *, interruption: Interruption = uninterrupted) -> None:
        waiting = iter(tasks)
        while pair := [task for _, task in zip(range(2), waiting, strict=False)]:
            for task in pair:
                on_event(Started(task, attempt=1))
            for task in pair:
                on_event(self.end_of(task))

    def end_of(self, task: Task) -> Event:
        if task.name == "3":
            return Failed(task, reason="no luck", details="", died=False)
        return Finished(task, {"state": "complete", "value": 0.5, "epochs": 1})

    def stop(self, name: str, reason: str) -> None:
        raise AssertionError("nothing is to be stopped")

    def close(self, *, at_once: bool = False) -> None:
        """Nothing to end."""


class Rolling(Executor):
    """Keeps so many tasks going: when the oldest ends, the next begins."""

    def __init__(self, at_once: int) -> None:
        self.at_once = at_once

    def run(
        self, tasks: Iterable[Task | None], on_event: OnEvent, *, interruption: Interruption = uninterrupted
    ) -> None:
        running: list[Task] = []
        for task in tasks:
            if task is None:  # not decided yet
                time.sleep(0.001)
                continue
            on_event(Started(task, attempt=1))
            running.append(task)
            while len(running) >= self.at_once:
                self.end(running.pop(0), on_event)
        for task in running:
            self.end(task, on_event)

    def end(self, task: Task, on_event: OnEvent) -> None:
        on_event(Finished(task, {"state": "complete", "value": task.arguments["rate"]}))

    def stop(self, name: str, reason: str) -> None:
        raise AssertionError("nothing is to be stopped")

    def close(self, *, at_once: bool = False) -> None:
        """Nothing to end."""


def new_study(sampler: str = "random", dimensions: Sequence[Dimension] = DIMENSIONS, n_trials: int = 5) -> SearchStudy:
    return SearchStudy.create(
        in_memory(),
        "a study",
        dimensions,
        direction="maximize",
        sampler=create_sampler(sampler, dimensions, seed=0, init_points=4, n_trials=n_trials),
        pruner=create_pruner("none", epochs=1),
    )[0]


def driver_of(study: SearchStudy, *, n_trials: int, seconds_before: float | None) -> Driver:
    def task_for(proposal: Proposal) -> Task:
        return Task(str(proposal.number), time.sleep, {})

    return Driver(study, InPairs(), task_for, n_trials, None, False, False, seconds_before=seconds_before)


def test_the_end_of_each_trial_is_written_down() -> None:
    study = new_study()
    driver_of(study, n_trials=5, seconds_before=0.0).run()
    assert [record.state for record in study.records()] == ["complete"] * 3 + ["failed", "complete"]


@pytest.mark.parametrize(
    ("places", "n_trials", "found"),
    [
        ([4], 12, 4),
        ([4], 2, 2),  # a search need not be long enough to fill all places
        ([1], 5, 1),
        ([4, 3, 3, 3, 3, 3, 3], 12, 3),  # one was lost soon
        ([4, 3, 3, 4], 12, 4),  # it was taken again
    ],
)
def test_trials_at_once_are_as_many_as_ran_when_most_began(places: list[int], n_trials: int, found: int) -> None:
    """`places` are those that there are when a trial begins; the last holds for the rest."""

    class Shrinking(Rolling):
        def __init__(self) -> None:
            super().__init__(places[0])
            self.left = [*places]

        def end(self, task: Task, on_event: OnEvent) -> None:
            super().end(task, on_event)
            self.at_once = self.left.pop(0) if len(self.left) > 1 else self.left[0]

    def task_for(proposal: Proposal) -> Task:
        return Task(str(proposal.number), time.sleep, {"rate": proposal.overrides["rate"]})

    driver = Driver(new_study(), Shrinking(), task_for, n_trials, None, False, False)
    assert driver.ran_at_once == 0
    driver.run()
    assert driver.ran_at_once == found


@pytest.mark.parametrize(("sampler", "at_random"), [("gp", 4), ("tpe", 4), ("cmaes", 4), ("evolution", 4 + 2)])
def test_a_trial_that_begins_while_others_run_is_the_models(sampler: str, at_random: int) -> None:
    """A model knows what runs; waiting for results must not make random trials of what should be its own.

    Of the evolutionary search the first population of four is random, and what begins until its last has ended.
    """
    plane = arrange([parse_dimension(key, (0.0, 1.0), lambda key, value: None) for key in ("rate", "other")])
    study = new_study(sampler, plane, n_trials=12)

    def task_for(proposal: Proposal) -> Task:
        return Task(str(proposal.number), time.sleep, {"rate": proposal.overrides["rate"]})

    Driver(study, Rolling(3), task_for, 12, None, False, at_once=False).run()
    records = study.records()
    assert len(records) == 12
    assert [r.number for r in records[: at_random + 1] if not r.modelled] == list(range(at_random))


def test_a_search_by_a_model_does_few_trials_at_once_of_itself() -> None:
    assert most_at_once("gp", 50) == 10
    assert most_at_once("tpe", 8) == 4
    assert most_at_once("cmaes", None) == 10
    assert most_at_once("random", 50) is most_at_once("grid", 50) is most_at_once("qmc", 50) is None


def test_a_grid_ends_with_its_last_combination() -> None:
    choices = arrange([parse_dimension("rate", [1, 2, 3], lambda key, value: None)])
    study = new_study("grid", choices, n_trials=9)
    study.enqueue({"rate": 2}, "recipe")

    def task_for(proposal: Proposal) -> Task:
        return Task(str(proposal.number), time.sleep, {"rate": proposal.overrides["rate"]})

    Driver(study, Rolling(2), task_for, 9, None, False, True).run()
    assert [record.overrides["rate"] for record in study.records()] == [2, 1, 3]
    assert study.n_asked() == 3


class Failing(Rolling):
    """Fails every task that `reason_of` has a reason for, by its number."""

    def __init__(self, reason_of: Callable[[int], str | None]) -> None:
        super().__init__(1)
        self.reason_of = reason_of

    def end(self, task: Task, on_event: OnEvent) -> None:
        reason = self.reason_of(int(task.name))
        on_event(Finished(task, {"state": "complete", "value": 0.0}) if reason is None else Failed(task, reason))


@pytest.mark.parametrize(
    ("reason_of", "n_begun", "words"),
    [
        (
            lambda n: f"loss {0.5 * n} is no number",
            5,
            "The first 5 trials failed for one reason: loss 2.0 is no number",
        ),
        (lambda n: None if n < 3 else "out of memory", 13, "10 trials in a row failed for one reason: out of memory"),
        (lambda n: ("one", "another")[n % 2], 30, ""),
        (lambda n: None if n % 5 == 4 else "out of memory", 30, ""),
        (lambda n: "one" if n < 4 else None, 30, ""),
    ],
)
def test_a_hopeless_search_ends(reason_of: Callable[[int], str | None], n_begun: int, words: str) -> None:
    for gives_up in (True, False):
        study = new_study(n_trials=30)

        def task_for(proposal: Proposal) -> Task:
            return Task(str(proposal.number), time.sleep, {})

        driver = Driver(study, Failing(reason_of), task_for, 30, None, False, False, gives_up=gives_up)
        driver.run()
        assert driver.gave_up == (words if gives_up else "")
        assert len(study.records()) == (n_begun if gives_up else 30)


def slow(study: SearchStudy, seconds: float) -> list[tuple[float, float]]:
    """Have every proposal take so long; from when to when each was asked for."""
    ask, times = study.ask, []

    def slow_ask() -> Proposal:
        started = time.monotonic()
        time.sleep(seconds)
        times.append((started, time.monotonic()))
        return ask()

    study.ask = slow_ask  # type: ignore[method-assign]
    return times


def test_a_trial_that_was_asked_for_when_a_search_gives_up_is_left_to_the_next_driver() -> None:
    """It is neither pruned by a time limit that there is not, nor one of those that were asked for."""
    study = new_study(n_trials=15)
    slow(study, 0.06)
    mended = False

    def task_for(proposal: Proposal) -> Task:
        return Task(str(proposal.number), time.sleep, {})

    executor = Failing(lambda n: None if n < 3 or mended else "out of memory")
    driver = Driver(study, executor, task_for, 15, None, False, at_once=True, gives_up=True)
    driver.run()
    assert driver.gave_up.startswith("10 trials in a row failed")
    assert [record.state for record in study.records()] == ["complete"] * 3 + ["failed"] * 10 + ["running"]
    mended = True
    Driver(study, executor, task_for, 15, None, False, at_once=True, gives_up=True).run()
    assert [record.state for record in study.records()] == ["complete"] * 3 + ["failed"] * 10 + ["complete"] * 2


@pytest.mark.parametrize("sampler", ["random", "grid", "qmc"])
def test_slow_proposals_of_trials_at_once_are_those_of_one_after_the_other(sampler: str) -> None:
    plane = arrange([parse_dimension(key, (0.0, 1.0), lambda key, value: None) for key in ("rate", "other")])
    tables = []
    for at_once in (False, True):
        study = new_study(sampler, plane, n_trials=8)
        slow(study, 0.06 * at_once)

        def task_for(proposal: Proposal) -> Task:
            return Task(str(proposal.number), time.sleep, {"rate": proposal.overrides["rate"]})

        Driver(study, Rolling(3), task_for, 8, None, False, at_once).run()
        tables.append([(record.number, record.overrides, record.value) for record in study.records()])
    assert tables[0] == tables[1]
    assert len(tables[0]) == 8


def test_trials_are_heard_while_the_sampler_asks_and_workers_wait_for_nothing_else() -> None:
    seconds, n = 0.2, 9
    study, heard, begun, ended = new_study(n_trials=n), [], [], []
    asked = slow(study, seconds)

    class Listening(Watcher):
        def started(self, proposal: Proposal) -> None:
            begun.append(time.monotonic())

        def progressed(self, number: int, values: Mapping[str, Any]) -> None:
            heard.append(time.monotonic())

        def ended(self, end: TrialEnd) -> None:
            ended.append(time.monotonic())

    def task_for(proposal: Proposal) -> Task:
        return Task(str(proposal.number), work.talk, {"seconds": 5 * seconds})

    with LocalExecutor(3) as executor:
        Driver(study, executor, task_for, n, None, False, at_once=True, watcher=Listening()).run()
    assert len(begun) == len(ended) == n
    at_work = [(start, end) for start, end in asked if start > heard[0]]
    assert len(at_work) >= n - 3
    for start, end in at_work:
        assert sum(start < at < end for at in heard) >= 5
    for idle, busy in zip(ended, begun[3:], strict=False):
        asking = sum(max(0.0, min(end, busy) - max(start, idle)) for start, end in asked)
        assert busy - idle - asking < 0.75 * seconds


def test_pauses_between_two_processes_are_no_time_of_the_search() -> None:
    study = new_study()
    driver_of(study, n_trials=2, seconds_before=0.0).run()
    first = [record.finished_after for record in study.records()]
    time.sleep(0.3)
    driver_of(study, n_trials=5, seconds_before=100.0).run()
    ends = [record.finished_after for record in study.records()]
    assert ends[:2] == first
    assert all(end is not None and 0 <= end < 0.3 for end in ends[:2])
    assert all(end is not None and 100 <= end < 100.3 for end in ends[2:])
    assert all("finished_after" not in record.outcome for record in study.records())


def test_where_several_drivers_are_at_work_the_clock_on_the_wall_tells() -> None:
    study = new_study()
    driver_of(study, n_trials=2, seconds_before=None).run()
    time.sleep(0.3)
    driver_of(study, n_trials=3, seconds_before=None).run()
    end = study.records()[2].finished_after
    assert end is not None
    assert end >= 0.3
