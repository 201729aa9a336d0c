"""Optuna's samplers as functions of (seed, trial's number, earlier trials), and one after another."""

from __future__ import annotations

import contextlib
import copy
import math
import threading
import warnings
from abc import abstractmethod
from collections.abc import Callable, Container, Iterator, Sequence
from typing import Any, cast

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from netloom.randomness import derive_seed


class _Delegating(BaseSampler):
    """Has each trial's values proposed by the sampler that is this trial's."""

    @abstractmethod
    def _of(self, trial: FrozenTrial) -> BaseSampler:
        """The trial's sampler."""

    def _seen(self, study: Study) -> Study:
        """The study as that sampler shall see it."""
        return study

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """As the trial's sampler has it."""
        return self._of(trial).infer_relative_search_space(self._seen(study), trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """As the trial's sampler has it."""
        return self._of(trial).sample_relative(self._seen(study), trial, search_space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """As the trial's sampler has it."""
        return self._of(trial).sample_independent(study, trial, param_name, param_distribution)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """As the trial's sampler has it."""
        self._of(trial).before_trial(study, trial)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        """As the trial's sampler has it."""
        self._of(trial).after_trial(study, trial, state, values)


class Reseeded(_Delegating):
    """A sampler of Optuna's, made anew for every trial with a seed that depends on the trial's number.

    Args:
        seed: Of all trials.
        make: Gives a sampler of a seed and a trial's number.
        with_pruned: Pruned trials are shown to it as complete, with the last value that they reported.
    """

    def __init__(self, seed: int, make: Callable[[int, int], BaseSampler], *, with_pruned: bool = False) -> None:
        self._seed, self._make, self._with_pruned = seed, make, with_pruned
        self._asking = threading.local()  # one trial at a time in each thread that asks

    def _of(self, trial: FrozenTrial) -> BaseSampler:
        if getattr(self._asking, "number", None) != trial.number:
            self._asking.number, self._asking.sampler = trial.number, self._new(trial)
        sampler: BaseSampler = self._asking.sampler
        return sampler

    def _new(self, trial: FrozenTrial) -> BaseSampler:
        with _without_experimental_warnings():
            return self._make(derive_seed(self._seed, "sampler", trial.number) % 2**32, trial.number)

    def _seen(self, study: Study) -> Study:
        return cast(Study, _WithPruned(study)) if self._with_pruned else study

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        """As a new sampler has it; told from another thread than the one that may be asking, of another trial."""
        self._new(trial).after_trial(study, trial, state, values)


class HandingOver(_Delegating):
    """One sampler for so many trials by number, another one for those after them.

    Args:
        first: Of the first trials.
        then: Of all others.
        n_first: How many the first ones are.
    """

    def __init__(self, first: BaseSampler, then: BaseSampler, n_first: int) -> None:
        self._first, self._then, self._n_first = first, then, n_first

    def _of(self, trial: FrozenTrial) -> BaseSampler:
        return self._first if trial.number < self._n_first else self._then


class _WithPruned:
    """A study in which pruned trials are complete, with the last value that they reported.

    Optuna's Gaussian processes leave pruned trials out, and so propose again and again what was pruned before. All but
    the trials is the study's own; that may be one of Hyperband's brackets, which shows some of the trials only.
    """

    def __init__(self, study: Study) -> None:
        self._seen = study

    def __getattr__(self, name: str) -> Any:
        return getattr(self._seen, name)

    def get_trials(self, deepcopy: bool = True, states: Container[TrialState] | None = None) -> list[FrozenTrial]:
        """Trials of these states, pruned ones counting as complete."""
        return self._get_trials(deepcopy, states)

    def _get_trials(
        self, deepcopy: bool = True, states: Container[TrialState] | None = None, use_cache: bool = False
    ) -> list[FrozenTrial]:
        trials = [_completed(t) for t in self._seen._get_trials(deepcopy, None, use_cache)]
        return [t for t in trials if states is None or t.state in states]


def _completed(trial: FrozenTrial) -> FrozenTrial:
    if trial.state != TrialState.PRUNED or not trial.intermediate_values:
        return trial
    value = trial.intermediate_values[max(trial.intermediate_values)]
    if not math.isfinite(value):
        return trial
    completed = copy.copy(trial)
    completed.state, completed.value = TrialState.COMPLETE, value
    return completed


_WARNINGS = threading.Lock()


@contextlib.contextmanager
def _without_experimental_warnings() -> Iterator[None]:
    """Optuna warns of options that may change; they are pinned, and tested here."""
    with _WARNINGS, warnings.catch_warnings():  # which changes the filters of all threads
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        yield
