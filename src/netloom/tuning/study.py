"""A study: trials asked for, told, pruned and written down, so that nothing is lost with the process."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, TypeVar

import optuna
import torch
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage, RDBStorage
from optuna.trial import FrozenTrial, Trial, TrialState

from netloom.errors import NetloomError
from netloom.parallel.tasks import Interruption
from netloom.tuning.patience import Patience
from netloom.tuning.samplers import ExhaustedError, GridSampler
from netloom.tuning.shared import DRIVER, OUTCOME, SPACE, Heartbeats, facts_of, joined, see_that_they_agree
from netloom.tuning.space import Dimension, label_of
from netloom.tuning.storage import GRACE_SECONDS, backend_of, close_storage

_T = TypeVar("_T")
State = Literal["complete", "pruned", "failed", "running", "waiting"]
Direction = Literal["maximize", "minimize"]

_SOURCE = "netloom:source"
_MODELLED = "netloom:modelled"
_SURPLUS = "netloom:surplus"
_TESTED = "netloom:tested:"
FINISHED_AFTER = "finished_after"
"""Key of an outcome: seconds of search until the trial's end, where its driver counts them."""

_STATES: Mapping[TrialState, State] = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
    TrialState.WAITING: "waiting",
}


@dataclass(frozen=True)
class Proposal:
    """A trial to be run.

    Attributes:
        number: From 0, in the order of asking.
        overrides: Plain values by key; dimensions that do not matter beside the others are absent.
        again: It was begun before, by a process that has ended since.
    """

    number: int
    overrides: Mapping[str, Any]
    again: bool = False


@dataclass(frozen=True)
class TrialRecord:
    """A trial as it is written down.

    Attributes:
        number: From 0, in the order of asking.
        state: What became of it.
        value: Of a complete trial, or the last that a pruned one reported.
        overrides: Plain values by key.
        outcome: What else the driver wrote down of it.
        origin: Where its values come from: `sampler`, or as `enqueue` was told.
        modelled: The sampler took them from a model of the trials before, not at random or in order.
        finished_after: Seconds of search until its end; where several drivers share the study, since its first trial
            was begun. None while it runs.
    """

    number: int
    state: State
    value: float | None
    overrides: Mapping[str, Any]
    outcome: Mapping[str, Any]
    origin: str
    finished_after: float | None = None
    modelled: bool = False


class SearchStudy:
    """Trials over dimensions, in a storage.

    One driver asks and tells; several drivers may do so at once where the storage is shared between processes.

    Args:
        study: Optuna's.
        dimensions: Arranged.
        driver: A name of this driver, where there may be several; None for the only one.
        say: Tells a person of waits for a shared database.
    """

    def __init__(
        self,
        study: optuna.Study,
        dimensions: Sequence[Dimension],
        driver: str | None,
        say: Callable[[str], None] | None = None,
    ) -> None:
        self._study, self._dimensions, self._driver = study, tuple(dimensions), driver
        self._open: dict[int, Trial] = {}
        self._lock = threading.Lock()
        storage = self._shared_storage()
        self._heartbeats = None if storage is None else Heartbeats(study, storage)
        self._patience = None
        if storage is not None:
            self._patience = Patience(seconds=storage.grace_period or GRACE_SECONDS, say=say)

    @classmethod
    def create(
        cls,
        storage: BaseStorage,
        name: str,
        dimensions: Sequence[Dimension],
        *,
        direction: Direction,
        sampler: BaseSampler,
        pruner: BasePruner,
        driver: str | None = None,
        facts: Mapping[str, Any] | None = None,
        say: Callable[[str], None] | None = None,
    ) -> tuple[SearchStudy, bool]:
        """Make a study, or join the one of that name in a shared storage; whether it was made is the second value.

        Args:
            storage: Where it is written down.
            name: Unlike that of any other study there.
            dimensions: Arranged.
            direction: Of the value.
            sampler: See `create_sampler`.
            pruner: See `create_pruner`.
            driver: A name of this driver, where there may be several.
            facts: Plain values that every driver must agree on, such as the recipe.
            say: See `SearchStudy`.

        Raises:
            NetloomError: There is one of that name with another space, direction or facts.
        """
        written = {**(facts or {}), "direction": direction, "space": [d.to_json() for d in dimensions]}
        try:
            study = optuna.create_study(
                storage=storage, study_name=name, direction=direction, sampler=sampler, pruner=pruner
            )
        except optuna.exceptions.DuplicatedStudyError:
            if driver is None:
                raise NetloomError(f"There is a study {name!r} already. Give another --name, or --resume it.") from None
            study = joined(storage, name, sampler, pruner)
            see_that_they_agree(facts_of(study, say or (lambda _: None)), written, name)
            return cls(study, dimensions, driver, say), False
        study.set_user_attr(SPACE, written)
        return cls(study, dimensions, driver, say), True

    @classmethod
    def open(
        cls,
        storage: BaseStorage,
        name: str,
        dimensions: Sequence[Dimension],
        *,
        sampler: BaseSampler,
        pruner: BasePruner,
        driver: str | None = None,
        say: Callable[[str], None] | None = None,
    ) -> SearchStudy:
        """A study that exists.

        Raises:
            RunError: There is none of that name.
        """
        return cls(joined(storage, name, sampler, pruner), dimensions, driver, say)

    def enqueue(self, overrides: Mapping[str, Any], origin: str) -> str | None:
        """Have a trial with these values before any that the sampler proposes; keys outside of the space are ignored.

        Returns:
            None, or why the values do not fit the space; then nothing is done.
        """
        params: dict[str, Any] = {}
        seen: dict[str, Any] = {}
        for dimension in self._dimensions:
            if not dimension.matters(seen):
                continue
            if dimension.key not in overrides:
                return f"it says nothing of {dimension.key}"
            try:
                params[dimension.key] = dimension.to_storage(overrides[dimension.key])
            except ValueError:
                return f"{dimension.key}={label_of(overrides[dimension.key])} lies outside of {dimension}"
            seen[dimension.key] = dimension.from_storage(params[dimension.key])
        self._study.enqueue_trial(params, user_attrs={_SOURCE: origin}, skip_if_exists=True)
        return None

    def unfinished(self) -> list[Proposal]:
        """The trials of this driver that were begun by an earlier process and have no end, to be gone on with."""
        found = []
        for trial in self._trials():
            if trial.state != TrialState.RUNNING:
                continue
            if self._driver is not None and trial.user_attrs.get(DRIVER) != self._driver:
                continue
            found.append(self._begin(Trial(self._study, trial._trial_id), again=True))
        return found

    def n_asked(self) -> int:
        """How many trials this driver has begun, in this process and in earlier ones."""
        return sum(trial.state != TrialState.WAITING for trial in self._own())

    def n_ended(self) -> int:
        """How many of them have ended."""
        return sum(trial.state.is_finished() for trial in self._own())

    def _own(self) -> list[FrozenTrial]:
        trials = [t for t in self._trials() if _SURPLUS not in t.user_attrs]
        return [t for t in trials if self._driver is None or t.user_attrs.get(DRIVER) == self._driver]

    def _trials(self) -> list[FrozenTrial]:
        return self._patiently(lambda: self._study.get_trials(deepcopy=False))

    def ask(self) -> Proposal:
        """The next trial.

        Raises:
            ExhaustedError: All combinations of a grid have been tried, run or wait.
            StorageLostError: A shared database was away for too long.
        """
        return self._patiently(self._ask)

    def _ask(self) -> Proposal:
        sampler = self._study.sampler
        if isinstance(sampler, GridSampler) and not self._any_waiting() and sampler.is_exhausted(self._study):
            raise ExhaustedError
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # Gaussian processes of few trials gain nothing by more, and workers have the CPUs
        try:
            return self._begin(self._study.ask())
        except ExhaustedError as error:  # another driver took the last one meanwhile
            if error.trial_id is not None:
                self._study._storage.set_trial_user_attr(error.trial_id, _SURPLUS, True)
                self._study._storage.set_trial_state_values(error.trial_id, state=TrialState.FAIL)
            raise
        finally:
            torch.set_num_threads(threads)

    def _any_waiting(self) -> bool:
        return bool(self._study.get_trials(deepcopy=False, states=(TrialState.WAITING,)))

    def _begin(self, trial: Trial, *, again: bool = False) -> Proposal:
        if self._driver is not None:
            # At once, and before the name: whatever of a driver that dies here is found by the others (`heartbeat`).
            if (shared := self._shared_storage()) is not None:
                shared.record_heartbeat(trial._trial_id)
            if not again:
                trial.set_user_attr(DRIVER, self._driver)
        overrides: dict[str, Any] = {}
        for dimension in self._dimensions:
            if dimension.matters(overrides):
                overrides[dimension.key] = dimension.from_storage(_suggest(trial, dimension))
        if _is_modelled(trial) and not {_SOURCE, _MODELLED} & trial.user_attrs.keys():
            trial.set_user_attr(_MODELLED, True)
        with self._lock:
            self._open[trial.number] = trial
        return Proposal(trial.number, overrides, again)

    def report(self, number: int, step: int, value: float) -> bool:
        """Write down an intermediate value; whether the trial had better end."""
        return self._patiently(lambda: self._report(number, step, value))

    def _report(self, number: int, step: int, value: float) -> bool:
        trial = self._open[number]
        if step not in trial._cached_frozen_trial.intermediate_values:  # else it went on from a checkpoint before that
            try:
                trial.report(value, step)
            except optuna.exceptions.UpdateFinishedTrialError:  # given up by another driver: nobody wants more of it
                return True
        return trial.should_prune()

    def complete(self, number: int, value: float, outcome: Mapping[str, Any]) -> None:
        """The trial's value is known."""
        self._end(number, TrialState.COMPLETE, value, outcome)

    def prune(self, number: int, outcome: Mapping[str, Any]) -> None:
        """The trial was ended early; its last reported value is kept."""
        self._end(number, TrialState.PRUNED, None, outcome)

    def fail(self, number: int, outcome: Mapping[str, Any]) -> None:
        """The trial has no value."""
        self._end(number, TrialState.FAIL, None, outcome)

    def _end(self, number: int, state: TrialState, value: float | None, outcome: Mapping[str, Any]) -> None:
        trial = self._open[number]
        self._patiently(lambda: self._tell(trial, state, value, outcome))
        with self._lock:  # not before: while the database is away, the trial is not silent
            del self._open[number]

    def _tell(self, trial: Trial, state: TrialState, value: float | None, outcome: Mapping[str, Any]) -> None:
        try:
            trial.set_user_attr(OUTCOME, dict(outcome))
            self._study.tell(trial, value, state=state)
        except (optuna.exceptions.UpdateFinishedTrialError, ValueError):
            # Another driver took this one for dead and gave the trial up: that stands, since it may have acted on it.
            if not _is_finished(self._study, trial.number):
                raise

    def heartbeat(self) -> None:
        """Where the storage is shared: say that this driver's trials are alive, and give up those of dead drivers."""
        if self._heartbeats is not None:
            with self._lock:
                alive = list(self._open.values())
            self._heartbeats.send(alive)

    def alive(self) -> contextlib.AbstractContextManager[None]:
        """Say so now and then for the body, from a thread of its own: a training may look up once in minutes only."""
        return contextlib.nullcontext() if self._heartbeats is None else self._heartbeats.beating(self.heartbeat)

    def heeding(self, interruption: Interruption) -> contextlib.AbstractContextManager[None]:
        """For the body, a wait for a shared database ends when `interruption` gives a reason."""
        return contextlib.nullcontext() if self._patience is None else self._patience.heeding(interruption)

    def _patiently(self, call: Callable[[], _T]) -> _T:
        """What needs a shared database, which may be away for a moment."""
        return call() if self._patience is None else self._patience.call(call)

    def note_tested(self, winner: str) -> None:
        """Tell all drivers that this winner has met the test pictures."""
        self._patiently(lambda: self._study.set_user_attr(f"{_TESTED}{winner}", True))

    def tested(self) -> set[str]:
        """The winners, of any driver, that have met the test pictures."""
        known = self._patiently(lambda: self._study.user_attrs)
        return {key.removeprefix(_TESTED) for key in known if key.startswith(_TESTED)}

    def close(self) -> None:
        """See that all is written, and end the connections to the database."""
        close_storage(self._study._storage)

    def _shared_storage(self) -> RDBStorage | None:
        """The database, where several drivers use it."""
        backend = backend_of(self._study._storage)
        if self._driver is None or not isinstance(backend, RDBStorage) or backend.heartbeat_interval is None:
            return None
        return backend

    def records(self) -> list[TrialRecord]:
        """All trials of all drivers, by number, but those that wait."""
        trials = [t for t in self._trials() if t.state != TrialState.WAITING and _SURPLUS not in t.user_attrs]
        begun = min((t.datetime_start for t in trials if t.datetime_start is not None), default=None)
        return [self._record(trial, begun) for trial in trials]

    def _record(self, trial: FrozenTrial, begun: datetime | None) -> TrialRecord:
        overrides = {d.key: d.from_storage(trial.params[d.key]) for d in self._dimensions if d.key in trial.params}
        value, ended = trial.value, trial.datetime_complete
        outcome = dict(trial.user_attrs.get(OUTCOME, {}))
        on_the_wall = None if begun is None or ended is None else (ended - begun).total_seconds()
        if value is None and trial.intermediate_values:
            value = trial.intermediate_values[max(trial.intermediate_values)]
        return TrialRecord(
            number=trial.number,
            state=_STATES[trial.state],
            value=value,
            overrides=overrides,
            outcome=outcome,
            origin=str(trial.user_attrs.get(_SOURCE, "sampler")),
            finished_after=outcome.pop(FINISHED_AFTER, on_the_wall),
            modelled=_MODELLED in trial.user_attrs,
        )

    def importances(self) -> dict[str, float] | None:
        """How much of the values' spread each dimension explains (fANOVA's shares), or None.

        Dimensions under a condition have none: a share of all trials is not defined where most do not have the key.

        Source: Hutter, Hoos, Leyton-Brown, "An Efficient Approach for Assessing Hyperparameter Importance", 2014.
        """
        complete = self._study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        if len(complete) < max(5, len(self._dimensions) + 1) or len({t.value for t in complete}) < 2:
            return None
        unconditional = [d.key for d in self._dimensions if d.when is None]
        varied = [key for key in unconditional if len({t.params.get(key) for t in complete}) > 1]
        if not varied:
            return None
        try:
            found = optuna.importance.get_param_importances(
                self._study, evaluator=optuna.importance.FanovaImportanceEvaluator(seed=0), params=varied
            )
        except (ValueError, RuntimeError):
            return None
        return {key: float(found.get(key, 0.0)) for key in unconditional}


def best_of(records: Iterable[TrialRecord], direction: Direction) -> TrialRecord | None:
    """The complete trial with the best value, the earliest of equals; None without any."""
    complete = [r for r in records if r.state == "complete" and r.value is not None]
    sign = 1.0 if direction == "maximize" else -1.0
    return max(complete, key=lambda r: (sign * float(r.value or 0.0), -r.number), default=None)


def _is_modelled(trial: Trial) -> bool:
    """Whether its values are those that the sampler took from a model of earlier trials.

    Of a trial that is gone on with the sampler has proposed anew, which are its values only if they were then.
    """
    proposed = trial.relative_params or {}
    return bool(proposed) and all(trial.params.get(key, value) == value for key, value in proposed.items())


def _suggest(trial: Trial, dimension: Dimension) -> Any:
    if dimension.kind == "choice":
        return trial.suggest_categorical(dimension.key, dimension.distribution().choices)  # type: ignore[attr-defined]
    if dimension.kind == "float":
        return trial.suggest_float(dimension.key, dimension.low, dimension.high, log=dimension.log, step=dimension.step)
    return trial.suggest_int(
        dimension.key, int(dimension.low), int(dimension.high), log=dimension.log, step=int(dimension.step or 1)
    )


def _is_finished(study: optuna.Study, number: int) -> bool:
    return any(t.number == number and t.state.is_finished() for t in study.get_trials(deepcopy=False))
