"""What a driver counts: trials at once, and when in the course of a search each of them ended."""

from __future__ import annotations

import time
from collections.abc import Iterable

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
from netloom.tuning.driver import Driver
from netloom.tuning.samplers import create_pruner, create_sampler
from netloom.tuning.space import arrange, parse_dimension
from netloom.tuning.storage import in_memory
from netloom.tuning.study import Proposal, SearchStudy

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


def new_study() -> SearchStudy:
    return SearchStudy.create(
        in_memory(),
        "a study",
        DIMENSIONS,
        direction="maximize",
        sampler=create_sampler("random", DIMENSIONS, seed=0, init_points=2, n_trials=5),
        pruner=create_pruner("none", epochs=1),
    )[0]


def driver_of(study: SearchStudy, *, n_trials: int, seconds_before: float | None) -> Driver:
    def task_for(proposal: Proposal) -> Task:
        return Task(str(proposal.number), time.sleep, {})

    return Driver(study, InPairs(), task_for, n_trials, None, False, False, seconds_before=seconds_before)


def test_trials_at_once_are_those_that_ran_together() -> None:
    study = new_study()
    driver = driver_of(study, n_trials=5, seconds_before=0.0)
    assert driver.most_at_once == 0
    driver.run()
    assert driver.most_at_once == 2
    assert [record.state for record in study.records()] == ["complete"] * 3 + ["failed", "complete"]
    single = driver_of(new_study(), n_trials=1, seconds_before=0.0)
    single.run()
    assert single.most_at_once == 1


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
