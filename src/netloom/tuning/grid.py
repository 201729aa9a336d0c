"""Every combination of a space's values: how many there are, and which."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from netloom.errors import RecipeError
from netloom.tuning.space import Dimension, label_of, values_of_dimension

MOST_COMBINATIONS = 100_000
"""More than these are no grid that anybody trains, and a list of them would fill the memory."""


def grid_of(dimensions: Sequence[Dimension], points: int) -> list[dict[str, Any]]:
    """All combinations, in order; ranges without a step give `points` values, the ends among them.

    A dimension that does not matter beside the others of a combination is absent from it.

    Raises:
        RecipeError: They are more than `MOST_COMBINATIONS`.
    """
    if (n := grid_length(dimensions, points)) > MOST_COMBINATIONS:
        raise RecipeError(
            f"A grid over this space has {n:,} combinations, and at most {MOST_COMBINATIONS:,} can be visited. Use "
            "--sampler qmc or random, which cover it with any number of trials, or give fewer values."
        )
    combinations: list[dict[str, Any]] = [{}]
    for dimension in dimensions:
        values = grid_values(dimension, points)
        combinations = [
            {**combination, dimension.key: value} if dimension.matters(combination) else combination
            for combination in combinations
            for value in (values if dimension.matters(combination) else [None])
        ]
    return combinations


def grid_length(dimensions: Sequence[Dimension], points: int) -> int:
    """How many combinations `grid_of` lists, without listing them."""
    asked_for: dict[str, set[str]] = {}
    for dimension in dimensions:
        if dimension.when is not None:
            asked_for.setdefault(dimension.when.key, set()).update(map(label_of, dimension.when.values))
    # Combinations that the conditions cannot tell apart are counted together.
    groups: list[tuple[dict[str, Any], int]] = [({}, 1)]
    for dimension in dimensions:
        n = _n_grid_values(dimension, points)
        named = []
        if dimension.key in asked_for and n <= MOST_COMBINATIONS:
            named = [v for v in grid_values(dimension, points) if label_of(v) in asked_for[dimension.key]]
        counted = []
        for seen, count in groups:
            if not dimension.matters(seen):
                counted.append((seen, count))
                continue
            counted += [({**seen, dimension.key: value}, count) for value in named]
            if n > len(named):
                counted.append((seen, count * (n - len(named))))
        groups = counted
    return sum(count for _, count in groups)


def _n_grid_values(dimension: Dimension, points: int) -> int:
    return dimension.n_steps() if dimension.kind != "choice" and dimension.step else len(grid_values(dimension, points))


def grid_values(dimension: Dimension, points: int) -> list[Any]:
    """The values of one dimension that a grid visits, in order."""
    if dimension.kind == "choice" or dimension.step:
        return values_of_dimension(dimension)
    values = [dimension.between(dimension.low, dimension.high, i / (points - 1)) for i in range(points)]
    values[0], values[-1] = dimension.low, dimension.high
    return list(dict.fromkeys(round(v) if dimension.kind == "int" else v for v in values))
