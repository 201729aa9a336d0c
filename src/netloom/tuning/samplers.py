"""Where the next trial's values come from, and which trials end early.

Every sampler here is a function of (seed, trial's number, what earlier trials gave): none keeps a state of its own, so
that a study that was cut short goes on as if it had not been. Gaussian processes, TPE and the evolutionary search are
Optuna's, made anew with a seed of its own for each trial. Random, grid and quasi-random search depend on the trial's
number alone.
"""

from __future__ import annotations

import math
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import optuna
from optuna.distributions import BaseDistribution
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner, SuccessiveHalvingPruner
from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, TPESampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState
from scipy.stats import qmc

from netloom.errors import RecipeError, did_you_mean
from netloom.randomness import derive_seed, permutation
from netloom.tuning.delegating import HandingOver, Reseeded
from netloom.tuning.grid import grid_length, grid_of, grid_values
from netloom.tuning.space import Dimension

SamplerName = Literal["auto", "gp", "tpe", "random", "grid", "qmc", "cmaes", "evolution"]
PrunerName = Literal["auto", "none", "median", "asha", "hyperband"]
SAMPLERS: tuple[str, ...] = get_args(SamplerName)
PRUNERS: tuple[str, ...] = get_args(PrunerName)

_GRID_POINTS = 5
MOST_GP_TRIALS = 300
"""A Gaussian process takes time with the cube of the trials: on one thread, of five keys, 0.15 s for a proposal after
100 trials, 0.35 s after 300 and 0.6 s after 400, where tree-structured Parzen estimators take 0.01 s."""
_POPULATION = 16
_TRIALS_BEFORE_PRUNING = 4
_RESULTS_FOR_A_MODEL = 2
"""A model of fewer has no scale; what it does not know it takes from where trials run."""
LEARNING = ("gp", "tpe", "cmaes", "evolution")
"""Samplers that propose by what earlier trials gave."""
_LEAST_AT_ONCE, _TRIALS_PER_JOB = 4, 5
_TRIALS_IF_UNKNOWN = 50


def most_at_once(sampler: str, n_trials: int | None) -> int | None:
    """Trials that should run at once at the most, where nobody says how many; None for any number.

    What runs at once cannot learn from one another: on 64 CPUs nearly all of 50 trials would begin before a model knew
    anything. A fifth of them leaves a model four generations to learn from.
    """
    if sampler not in LEARNING:
        return None
    return max(_LEAST_AT_ONCE, (n_trials or _TRIALS_IF_UNKNOWN) // _TRIALS_PER_JOB)


def check_names(sampler: str, pruner: str) -> None:
    """See that there are such a sampler and pruner.

    Raises:
        RecipeError: There is none of that name.
    """
    for what, name, known in (("sampler", sampler, SAMPLERS), ("pruner", pruner, PRUNERS)):
        if name not in known:
            raise RecipeError(f"There is no {what} {name!r}.{did_you_mean(name, known)} There are {', '.join(known)}.")


def resolve_sampler(sampler: str, dimensions: Sequence[Dimension], n_trials: int | None) -> str:
    """What `auto` means: Gaussian processes where they do best, TPE for conditional and very long searches."""
    if sampler != "auto":
        return sampler
    conditional = any(dimension.when is not None for dimension in dimensions)
    return "tpe" if conditional or (n_trials or 0) > MOST_GP_TRIALS else "gp"


def resolve_pruner(pruner: str, dimensions: Sequence[Dimension]) -> str:
    """What `auto` means: the median, but nothing where trials differ in length, of which it would end the longer."""
    if pruner != "auto":
        return pruner
    return "none" if any(dimension.key == "epochs" for dimension in dimensions) else "median"


def grid_size(dimensions: Sequence[Dimension]) -> int:
    """Combinations of `--sampler grid`."""
    return grid_length(dimensions, _GRID_POINTS)


def is_in_grid(values: Mapping[str, Any], dimensions: Sequence[Dimension]) -> bool:
    """Whether these values are one of the grid's combinations."""
    seen: dict[str, Any] = {}
    for dimension in dimensions:
        if dimension.matters(seen):
            if values.get(dimension.key) not in grid_values(dimension, _GRID_POINTS):
                return False
            seen[dimension.key] = values[dimension.key]
    return True


def create_sampler(
    name: str, dimensions: Sequence[Dimension], *, seed: int, init_points: int, n_trials: int | None
) -> BaseSampler:
    """A sampler by name.

    Args:
        name: One of `SAMPLERS`, but `auto`.
        dimensions: Of the space, arranged.
        seed: Of all that is random in it.
        init_points: Random trials before a model of the earlier ones proposes. They are counted as they begin: one that
            begins after them is the model's even while they run, as soon as a few have ended.
        n_trials: How many there will be, where that is known: a grid that is longer is visited in random order.

    Raises:
        RecipeError: The sampler is not for such a space.
    """
    if name == "random":
        return _ByNumber(dimensions, lambda number: _random_row(seed, number, len(dimensions)))
    if name == "qmc":
        return _ByNumber(dimensions, _Sobol(seed, len(dimensions)))
    if name == "grid":
        return GridSampler(dimensions, seed, n_trials)
    if name == "cmaes":
        if sum(dimension.kind != "choice" and dimension.when is None for dimension in dimensions) < 2:
            raise RecipeError("--sampler cmaes needs at least two ranges to search over; use gp, tpe or random here.")
        return _Cmaes(dimensions, seed, init_points)
    start = _ByNumber(dimensions, lambda number: _random_row(seed, number, len(dimensions)))
    parzen = Reseeded(
        seed,
        lambda s, number: TPESampler(
            seed=s,
            n_startup_trials=_results_needed(number, init_points),
            multivariate=True,
            group=True,
            constant_liar=True,
        ),
    )
    if name == "tpe":
        return parzen
    if name == "gp":
        gaussian = Reseeded(
            seed,
            lambda s, number: GPSampler(
                seed=s,
                independent_sampler=start,
                n_startup_trials=_results_needed(number, init_points),
                warn_independent_sampling=False,
            ),
            with_pruned=True,
        )
        return HandingOver(gaussian, parzen, MOST_GP_TRIALS)
    population = max(4, min(_POPULATION, (n_trials or 100) // 4))
    return Reseeded(seed, lambda s, _: NSGAIISampler(seed=s, population_size=population))


def _results_needed(number: int, init_points: int) -> int:
    """Trials that must have ended before a model proposes the trial of that number."""
    return init_points if number < init_points else min(init_points, _RESULTS_FOR_A_MODEL)


def create_pruner(name: str, *, epochs: int) -> BasePruner:
    """A pruner by name, for trials that report up to `epochs` values."""
    if name == "median":
        return MedianPruner(n_startup_trials=_TRIALS_BEFORE_PRUNING, n_warmup_steps=max(1, epochs // 5) - 1)
    if name == "asha":
        return SuccessiveHalvingPruner(min_resource=max(1, epochs // 27), reduction_factor=3)
    if name == "hyperband":
        return HyperbandPruner(min_resource=max(1, epochs // 27), max_resource=epochs, reduction_factor=3)
    return NopPruner()


def _random_row(seed: int, number: int, n: int) -> npt.NDArray[np.float64]:
    return np.random.default_rng([seed, number]).random(n)


class _Sobol:
    """Points of a scrambled Sobol sequence (Owen, 1998) by their number."""

    def __init__(self, seed: int, n_dimensions: int) -> None:
        self._seed, self._n_dimensions = seed, n_dimensions
        self._points: npt.NDArray[np.float64] = np.empty((0, n_dimensions))

    def __call__(self, number: int) -> npt.NDArray[np.float64]:
        if number >= len(self._points):
            generator = np.random.default_rng([self._seed])
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # `seed` is `rng` from SciPy 1.15 on, and still taken
                sequence = qmc.Sobol(self._n_dimensions, seed=generator)
            self._points = sequence.random_base2(max(6, math.ceil(math.log2(number + 1))))
        row: npt.NDArray[np.float64] = self._points[number]
        return row


class _ByNumber(BaseSampler):
    """Values from a row of numbers in [0, 1), one for each dimension, that depends on the trial's number alone."""

    def __init__(self, dimensions: Sequence[Dimension], row: Callable[[int], npt.NDArray[np.float64]]) -> None:
        self._places = {dimension.key: (i, dimension) for i, dimension in enumerate(dimensions)}
        self._row = row

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """None: each dimension is drawn by itself."""
        return {}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Nothing."""
        return {}

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """The value of one dimension."""
        column, dimension = self._places[param_name]
        return dimension.to_storage(dimension.at(float(self._row(trial.number)[column])))


class ExhaustedError(Exception):
    """There is nothing left to try.

    Attributes:
        trial_id: Of the trial that was begun for it; None where none was.
    """

    def __init__(self, trial_id: int | None = None) -> None:
        super().__init__("Every combination of the grid has been tried.")
        self.trial_id = trial_id


class GridSampler(_ByNumber):
    """All combinations, each once: the first in order that no earlier trial has, whoever asked for that.

    A search that is shorter than the grid takes them in an order that depends on the seed. What a trial has is a
    function of the trials of lower numbers, so that drivers that ask at the same moment get different combinations.
    """

    def __init__(self, dimensions: Sequence[Dimension], seed: int, n_trials: int | None) -> None:
        super().__init__(dimensions, lambda number: np.zeros(len(dimensions)))
        combinations = grid_of(dimensions, _GRID_POINTS)
        n = len(combinations)
        in_order = n_trials is None or n_trials >= n
        order = np.arange(n) if in_order else permutation(seed, "grid", 0, n)
        self._combinations = [
            {key: self._places[key][1].to_storage(value) for key, value in combinations[i].items()} for i in order
        ]
        self._known_as = [frozenset(combination.items()) for combination in self._combinations]
        self._chosen: dict[int, dict[str, Any]] = {}
        self._asking = threading.Lock()

    def is_exhausted(self, study: Study) -> bool:
        """Whether trials that have ended, run or wait have all combinations."""
        trials = study.get_trials(deepcopy=False)
        return len(trials) >= len(self._combinations) and self._next(trials, {}) is None

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """The value of one dimension."""
        with self._asking:
            if trial.number not in self._chosen:
                earlier = [t for t in study.get_trials(deepcopy=False) if t.number < trial.number]
                found = self._next(earlier, trial.params)
                if found is None:
                    raise ExhaustedError(trial._trial_id)
                self._chosen = {trial.number: found}
            return self._chosen[trial.number][param_name]

    def _next(self, earlier: Sequence[FrozenTrial], given: Mapping[str, Any]) -> dict[str, Any] | None:
        """The first combination with the `given` values that these trials leave, or None."""
        taken: set[frozenset[tuple[str, Any]]] = set()
        in_order = zip(self._known_as, self._combinations, strict=True)
        for trial in sorted(earlier, key=lambda t: t.number):
            params = {**trial.system_attrs.get("fixed_params", {}), **trial.params}
            if not self._is_whole(params):  # another driver has just begun it, and will take the first that is left
                params = next((c for known, c in in_order if known not in taken), {})
            taken.add(frozenset(params.items()))
        left = (c for known, c in zip(self._known_as, self._combinations, strict=True) if known not in taken)
        return next((c for c in left if c.items() >= given.items()), None)

    def _is_whole(self, params: Mapping[str, Any]) -> bool:
        """Whether a trial with these values has one for every dimension that matters."""
        seen: dict[str, Any] = {}
        for key, (_, dimension) in self._places.items():
            if dimension.matters(seen):
                if key not in params:
                    return False
                seen[key] = dimension.from_storage(params[key])
        return True


class _Cmaes(_ByNumber):
    """CMA-ES (Hansen, "The CMA Evolution Strategy: A Tutorial", 2016) by the cmaes library, replayed for every trial.

    The distribution is what all finished trials, by number and in whole populations, made of the first one; choices
    and conditional dimensions are drawn at random. Optuna's own keeps its state in the storage as a pickle, which
    nothing here reads.
    """

    def __init__(self, dimensions: Sequence[Dimension], seed: int, init_points: int) -> None:
        super().__init__(dimensions, lambda number: _random_row(seed, number, len(dimensions)))
        self._seed, self._init_points = seed, init_points
        self._numeric = [d for d in dimensions if d.kind != "choice" and d.when is None]

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """The ranges, once there are enough trials."""
        if trial.number < self._init_points or len(self._numeric) < 2:
            return {}
        return {d.key: d.distribution() for d in self._numeric}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """A point of the distribution that the earlier trials lead to."""
        if not search_space:
            return {}
        from cmaes import CMA

        n = len(self._numeric)
        strategy = CMA(
            mean=np.full(n, 0.5),
            sigma=0.25,
            bounds=np.tile([0.0, 1.0], (n, 1)),
            seed=derive_seed(self._seed, "cmaes", trial.number) % 2**32,
        )
        sign = 1.0 if study.direction == optuna.study.StudyDirection.MINIMIZE else -1.0
        told = [
            (np.array([_position(d, t.params[d.key]) for d in self._numeric]), sign * t.value)
            for t in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
            if t.value is not None and all(d.key in t.params for d in self._numeric)
        ]
        for start in range(0, len(told) - strategy.population_size + 1, strategy.population_size):
            strategy.tell(told[start : start + strategy.population_size])
        point = strategy.ask()
        return {d.key: d.to_storage(d.at(min(float(x), 1 - 1e-12))) for d, x in zip(self._numeric, point, strict=True)}


def _position(dimension: Dimension, value: float) -> float:
    """Where in [0, 1] of its range a value is."""
    low, high = dimension.low, dimension.high
    if dimension.kind == "int" and not dimension.step:
        value, high = value + 0.5, high + 1
    if dimension.log:
        return (math.log(value) - math.log(low)) / (math.log(high) - math.log(low))
    return (value - low) / (high - low)


def describe_sampler(name: str, n_trials: int, *, at_random: int | None = None) -> str:
    """The sampler of a study of `n_trials` trials, in words; of those that learn also how many were random."""
    words = _IN_WORDS[name]
    if name == "gp" and n_trials > MOST_GP_TRIALS:
        words += f", from trial {MOST_GP_TRIALS} on with tree-structured Parzen estimators"
    if name in LEARNING and at_random is not None:
        words += f"; {at_random} of {n_trials} trials at random"
    return words


_IN_WORDS: Mapping[str, str] = {
    "gp": "Bayesian search with Gaussian processes",
    "tpe": "Bayesian search with tree-structured Parzen estimators",
    "random": "random search",
    "grid": "grid search",
    "qmc": "quasi-random search (Sobol)",
    "cmaes": "CMA-ES",
    "evolution": "evolutionary search",
}
