"""What a search tries before its sampler proposes: the recipe itself, and the best of earlier studies."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from netloom.errors import RecipeError, RunError, did_you_mean
from netloom.files import read_json
from netloom.plain_yaml import parse_yaml
from netloom.progress import Reporter
from netloom.tuning.samplers import is_in_grid
from netloom.tuning.space import Dimension, label_of
from netloom.tuning.study import SearchStudy
from netloom.workflows.spaces import side_of
from netloom.workflows.study import RESULT_FILE

_FIRST_FROM_EARLIER = 5
OF_USER = "user"
_NOT_IN_GRID = "it is none of the grid's combinations"


def checked_first(
    first: Mapping[str, Any] | Sequence[Mapping[str, Any]], dimensions: Sequence[Dimension]
) -> list[dict[str, Any]]:
    """The values that a user wants tried first, as the space has them; one mapping is a list of one.

    Raises:
        RecipeError: It holds no values by key, a key is not searched over, or a value lies outside of the space.
    """
    known = {dimension.key: dimension for dimension in dimensions}
    checked = []
    for values in [first] if isinstance(first, Mapping) or not isinstance(first, Iterable) else first:
        if not isinstance(values, Mapping):
            shown = first if isinstance(first, str) else values
            raise RecipeError(
                f"first takes values by key, such as {{'dropout': 0.3}}, or a list of such, not {shown!r}."
            )
        found: dict[str, Any] = {}
        for key, value in values.items():
            if key not in known:
                raise RecipeError(
                    f"--try names {key}, which is not searched over.{did_you_mean(key, known)} Set it with --set, or "
                    "give it a space."
                )
            found[key] = _value_in(known[key], value)
            try:
                known[key].to_storage(found[key])
            except ValueError as error:
                raise RecipeError(f"--try {key}={label_of(value)} lies outside of {known[key]}: {error}.") from error
        checked.append(found)
    return checked


def _value_in(dimension: Dimension, value: Any) -> Any:
    """A value as the space has it: one of its choices however it is written, a number that YAML takes for a text."""
    if dimension.key == "image_size":
        value = side_of(value)
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            value = float(value) if value not in dimension.choices else value
    if dimension.kind == "choice":
        return next((choice for choice in dimension.choices if label_of(choice) == label_of(value)), value)
    return value


def parse_first(texts: Sequence[str]) -> list[dict[str, Any]]:
    """`dropout=0.3 learning_rate=1e-3` to values by key.

    Raises:
        RecipeError: It is not understood.
    """
    return [dict(_parsed(part) for part in re.split(r"\s+(?=[A-Za-z_][\w.]*=)", text.strip())) for text in texts]


def _parsed(part: str) -> tuple[str, Any]:
    key, _, value = part.partition("=")
    if not key.strip() or not value.strip():
        raise RecipeError(f"--try {part!r}: expected KEY=VALUE KEY=VALUE, for example 'dropout=0.3 batch_size=64'.")
    try:
        return key.strip(), parse_yaml(value)
    except ValueError as error:
        raise RecipeError(f"The value of --try {part!r} is not valid YAML: {error}.") from error


def listed_studies(studies: str | Path | Sequence[str | Path]) -> list[str | Path]:
    """The folders of earlier studies that a user names; one alone is a list of one.

    Raises:
        RunError: It is something else.
    """
    folders = list(studies) if isinstance(studies, Iterable) and not isinstance(studies, str) else [studies]
    for folder in folders:
        if not isinstance(folder, str | Path):
            raise RunError(
                f"warm_start takes the folders of earlier studies, not {type(folder).__name__}. Of a study that is "
                "loaded it is its path."
            )
    return folders


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
        earlier: Of each earlier study what `best_of_earlier` gave, in the same form what the user wants tried.
        reporter: Told what is not tried.
    """
    in_place = sampler != "grid" or is_in_grid(of_recipe, dimensions)
    why_not = study.enqueue(of_recipe, "recipe") if in_place else _NOT_IN_GRID
    if why_not is not None:
        reporter.say(f"  note: the recipe itself is not among the trials: {why_not}")
    for found in earlier:
        of = "--try" if found and found[0][0] == OF_USER else found[0][0] if found else ""
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
            reporter.say(f"  note: {', '.join(sorted(filled))} is as in the recipe in the trials of {of}")
        if refused:
            reporter.say(f"  note: {len(refused)} of the best trials of {of} are not tried: {refused[0]}")


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
