"""One driver of a study: asks for trials, has an executor run them, prunes, and writes down what became of each."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any

from netloom.parallel.tasks import (
    Event,
    Executor,
    Failed,
    Finished,
    Interruption,
    Reported,
    Retried,
    Started,
    Task,
    uninterrupted,
)
from netloom.tuning.samplers import ExhaustedError
from netloom.tuning.study import FINISHED_AFTER, Proposal, SearchStudy, State

_PRUNED = "pruned"
TIME_LIMIT = "time limit"

_FIRST_TO_FAIL, _FAILURES_IN_A_ROW = 5, 10

_MOMENT = 0.05
"""Seconds that asking may take before those who run are listened to meanwhile; most samplers need less."""

_WORTHWHILE = 0.02
"""A proposal is asked for ahead, while trials run, if asking takes more than this share of a trial: it then cannot know
what the trials that run give, but no worker waits for it."""


@dataclass
class TrialEnd:
    """What the watcher of a study is told when a trial has ended.

    Attributes:
        number: Of the trial.
        state: What became of it.
        value: Of a complete one.
        overrides: Plain values by key.
        outcome: As it is written down.
    """

    number: int
    state: State
    value: float | None
    overrides: Mapping[str, Any]
    outcome: Mapping[str, Any]


class Watcher:
    """Is told how a study goes; this one does nothing."""

    def started(self, proposal: Proposal) -> None:
        """A trial was handed to a worker."""

    def progressed(self, number: int, values: Mapping[str, Any]) -> None:
        """A trial reported."""

    def retried(self, number: int, reason: str) -> None:
        """The process of a trial died; it is begun once more."""

    def ended(self, end: TrialEnd) -> None:
        """A trial ended."""


@dataclass
class Driver:
    """Runs trials until the budget is used up.

    A task's function reports mappings, of which those with `step` and `value` are intermediate values, and returns a
    mapping with `state` (`complete` or `stopped`), the `value` of a complete one, and whatever shall be written down.

    Attributes:
        study: Asked and told.
        executor: Runs the tasks.
        task_for: The task of a proposal.
        n_trials: This driver's trials in all, with those of earlier processes; None for no limit.
        seconds: From now on; None for no limit. Trials that still run then are ended, unless none is complete yet.
        pruning: Intermediate values are written down and judged by the study's pruner.
        at_once: Several trials run at once.
        gives_up: The search ends, with its open trials as after an interruption, when the first five trials, or ten one
            after the other, have failed for one reason.
        seconds_before: That the search took in earlier processes, to tell when in its course a trial ended; None where
            other drivers are at work, and the clock on the wall tells.
        watcher: Is told how it goes.
        gave_up: Why it did, after `run`; empty if it did not.
    """

    study: SearchStudy
    executor: Executor
    task_for: Callable[[Proposal], Task]
    n_trials: int | None
    seconds: float | None
    pruning: bool
    at_once: bool
    gives_up: bool = False
    seconds_before: float | None = None
    watcher: Watcher = field(default_factory=Watcher)
    gave_up: str = field(default="", init=False)
    _beside: Counter[int] = field(default_factory=Counter, init=False)  # beginnings, by how many trials ran then

    def run(self, *, interruption: Interruption = uninterrupted) -> None:
        """Ask, run and tell until the budget is used up, or `interruption` gives a reason.

        After an interruption the trials that ran stay open, and `study.unfinished` gives them to the next driver.
        """
        self._started = time.monotonic()
        self._proposals: dict[str, Proposal] = {}
        self._begun: dict[str, float] = {}
        self._stopping: dict[str, str] = {}
        records = self.study.records()
        self._complete = sum(record.state == "complete" for record in records)
        self._any_good = any(record.state in ("complete", "pruned") for record in records)
        self._failed_alike: list[str] = []
        self._out_of_time = False
        self._ask_seconds, self._trial_seconds = 0.0, 0.0
        self._interruption = interruption
        self._asked: Future[Proposal] | None = None
        self._beside.clear()
        # Before signs of life are sent: along with them trials of silent drivers are given up, as which this driver
        # itself counts until it has taken its own in hand.
        self._unfinished = self.study.unfinished()
        with ThreadPoolExecutor(1, thread_name_prefix="netloom-ask") as self._thread, self.study.alive():
            self.executor.run(self._tasks(), self._on_event, interruption=self._look)
            self._give_back()

    @property
    def ran_at_once(self) -> int:
        """How many trials ran when most of them began, itself included, the larger of equals; 0 where none has begun.

        Less than there are workers where a cluster had no room for all, or where some died.
        """
        return max(self._beside, key=lambda n: (self._beside[n], n), default=0)

    def _tasks(self) -> Iterator[Task | None]:
        left = None if self.n_trials is None else self.n_trials - self.study.n_asked()
        for proposal in self._unfinished:
            yield self._task(proposal)
        while (left is None or left > 0) and not self._is_over() and not self.gave_up:
            if self.at_once and not self._has_asked():
                yield None
                continue
            try:
                proposal = self._ask() if self._asked is None else self._asked.result()
            except ExhaustedError:
                return
            finally:
                self._asked = None
            if left is not None:
                left -= 1
            if self.at_once and left != 0 and self._ask_seconds > _WORTHWHILE * self._trial_seconds > 0:
                self._asked = self._thread.submit(self._ask)
            yield self._task(proposal)

    def _has_asked(self) -> bool:
        """Whether the next proposal is there; it is asked for in a thread, so that trials are heard meanwhile."""
        if self._asked is None:
            self._asked = self._thread.submit(self._ask)
            wait([self._asked], timeout=_MOMENT)
        return self._asked.done()

    def _ask(self) -> Proposal:
        started = time.perf_counter()
        try:
            return self.study.ask()
        finally:
            self._ask_seconds = time.perf_counter() - started

    def _task(self, proposal: Proposal) -> Task:
        task = self.task_for(proposal)
        self._proposals[task.name] = proposal
        return task

    def _is_over(self) -> bool:
        return self.seconds is not None and time.monotonic() - self._started >= self.seconds

    def _look(self) -> str | None:
        """Called many times a second: why to stop everything, or None."""
        if self._is_over() and self._complete and not self._out_of_time:
            self._out_of_time = True
            for name in self._begun:
                self._stop(name, TIME_LIMIT)
        return self._interruption() or self.gave_up or None

    def _count_failure(self, reason: str) -> None:
        """Give up, if this was one failure too many."""
        kind = re.sub(r"\d[\d.,e+-]*", "#", reason)
        if self._failed_alike and self._failed_alike[0] != kind:
            self._failed_alike.clear()
        self._failed_alike.append(kind)
        n = len(self._failed_alike)
        if self.gives_up and n >= (_FAILURES_IN_A_ROW if self._any_good else _FIRST_TO_FAIL):
            lead = f"{n} trials in a row" if self._any_good else f"The first {n} trials"
            self.gave_up = f"{lead} failed for one reason: {reason}"

    def _stop(self, name: str, reason: str) -> None:
        if name not in self._stopping:
            self._stopping[name] = reason
            self.executor.stop(name, reason)

    def _on_event(self, event: Event) -> None:
        name = event.task.name
        proposal = self._proposals[name]
        if isinstance(event, Started):
            self._begun[name] = time.monotonic()
            self._beside[len(self._begun)] += 1
            if self._out_of_time:
                self._stop(name, TIME_LIMIT)
            if event.attempt == 1:
                self.watcher.started(proposal)
        elif isinstance(event, Reported):
            self._on_report(name, proposal, event.values)
        elif isinstance(event, Retried):
            self._begun.pop(name, None)
            self._stopping.pop(name, None)  # the process that was asked is dead
            self.watcher.retried(proposal.number, event.reason)
        elif isinstance(event, Finished):
            self._on_finish(name, proposal, event.value)
        elif isinstance(event, Failed):
            if self._interruption() is not None and event.died:
                return  # killed because its time was up, or by the signal that this process got; it is gone on with
            outcome = {"reason": event.reason, "seconds": self._seconds_of(name), **self._course()}
            self.study.fail(proposal.number, outcome)
            self._count_failure(event.reason)
            self._tell(name, proposal, "failed", None, {**outcome, "details": event.details})

    def _on_report(self, name: str, proposal: Proposal, values: Mapping[str, Any]) -> None:
        if (
            self.pruning
            and "value" in values
            and name not in self._stopping
            and self.study.report(proposal.number, int(values["step"]), float(values["value"]))
        ):
            self._stop(name, _PRUNED)
        self.watcher.progressed(proposal.number, values)

    def _on_finish(self, name: str, proposal: Proposal, value: Mapping[str, Any]) -> None:
        outcome = {**{k: v for k, v in value.items() if k not in ("state", "value")}, **self._course()}
        self._any_good = True
        self._failed_alike.clear()
        if value["state"] == "complete":
            self._complete += 1
            self._trial_seconds = self._seconds_of(name)
            self.study.complete(proposal.number, float(value["value"]), outcome)
            self._tell(name, proposal, "complete", float(value["value"]), outcome)
        elif (reason := self._stopping.get(name)) is not None:
            outcome["reason"] = "by the pruner" if reason == _PRUNED else reason
            self.study.prune(proposal.number, outcome)
            self._tell(name, proposal, "pruned", None, outcome)
        # Else it was stopped with everything, and is gone on with.

    def _course(self) -> dict[str, float]:
        """When in the course of the search it is now, pauses between two processes left out."""
        if self.seconds_before is None:
            return {}
        return {FINISHED_AFTER: self.seconds_before + time.monotonic() - self._started}

    def _seconds_of(self, name: str) -> float:
        return time.monotonic() - self._begun.get(name, time.monotonic())

    def _tell(
        self, name: str, proposal: Proposal, state: State, value: float | None, outcome: Mapping[str, Any]
    ) -> None:
        self._begun.pop(name, None)
        self.watcher.ended(TrialEnd(proposal.number, state, value, proposal.overrides, outcome))

    def _give_back(self) -> None:
        """End a trial that was asked for and then not wanted any more, unless the next process is to do it."""
        if self._asked is None:
            return
        try:
            proposal = self._asked.result()
        except ExhaustedError:
            return
        if self._interruption() is None and not self.gave_up:
            outcome = {"reason": f"{TIME_LIMIT}, before it began", **self._course()}
            self.study.prune(proposal.number, outcome)
