"""What a search tries before its sampler proposes: the recipe itself, and the best of earlier studies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from netloom.errors import RunError
from netloom.files import read_json
from netloom.progress import Reporter
from netloom.tuning.samplers import is_in_grid
from netloom.tuning.space import Dimension
from netloom.tuning.study import SearchStudy
from netloom.workflows.study import RESULT_FILE

_FIRST_FROM_EARLIER = 5
_NOT_IN_GRID = "it is none of the grid's combinations"


def best_of_earlier(folder: str | Path) -> list[tuple[str, Mapping[str, Any]]]:
    """The best trials of an earlier study: where they come from, and their values by key.

    Raises:
        RunError: It is no finished study.
    """
    path = Path(folder) / RESULT_FILE
    if not path.is_file():
        raise RunError(f"{folder} is no finished study: it has no {RESULT_FILE}. --warm-start takes what tune made.")
    result = read_json(path)
    try:
        sign = 1 if result["direction"] == "maximize" else -1
        complete = [t for t in result["trials"] if t["state"] == "complete"]
        complete.sort(key=lambda t: -sign * t["value"])
        return [(f"study {result['study']}", dict(t["overrides"])) for t in complete[:_FIRST_FROM_EARLIER]]
    except (KeyError, TypeError) as error:
        raise RunError(f"{path} is damaged ({type(error).__name__}: {error}).") from error


def enqueue_first(
    study: SearchStudy,
    sampler: str,
    dimensions: Sequence[Dimension],
    of_recipe: Mapping[str, Any],
    earlier: Sequence[Sequence[tuple[str, Mapping[str, Any]]]],
    reporter: Reporter,
) -> None:
    """Have the recipe itself tried first, and what was best in earlier studies; say what cannot be.

    Args:
        study: New.
        sampler: Its name; a grid visits its own combinations only.
        dimensions: Of the space.
        of_recipe: What the recipe has for them.
        earlier: Of each earlier study what `best_of_earlier` gave.
        reporter: Told what is not tried.
    """
    in_place = sampler != "grid" or is_in_grid(of_recipe, dimensions)
    why_not = study.enqueue(of_recipe, "recipe") if in_place else _NOT_IN_GRID
    if why_not is not None:
        reporter.say(f"  note: the recipe itself is not among the trials: {why_not}")
    for found in earlier:
        refused: list[str] = []
        filled: set[str] = set()
        for origin, values in found:
            completed = _completed(values, of_recipe, dimensions)
            in_place = sampler != "grid" or is_in_grid(completed, dimensions)
            why_not = study.enqueue(completed, origin) if in_place else _NOT_IN_GRID
            if why_not is None:
                filled |= completed.keys() - values.keys()
            else:
                refused.append(why_not)
        if filled:
            reporter.say(f"  note: {', '.join(sorted(filled))} is as in the recipe in the trials of {found[0][0]}")
        if refused:
            reporter.say(f"  note: {len(refused)} of the best trials of {found[0][0]} are not tried: {refused[0]}")


def _completed(
    values: Mapping[str, Any], of_recipe: Mapping[str, Any], dimensions: Sequence[Dimension]
) -> dict[str, Any]:
    """Values of a trial of another space, and what the recipe has for keys that it did not search."""
    completed = dict(values)
    for dimension in dimensions:
        has_one = dimension.key in completed or of_recipe.get(dimension.key) is None
        if not has_one and dimension.matters(completed):
            completed[dimension.key] = of_recipe[dimension.key]
    return completed
