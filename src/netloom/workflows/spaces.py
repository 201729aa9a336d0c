"""Spaces to search: what users give, and the shipped ones."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from netloom.errors import RecipeError, did_you_mean
from netloom.plain_yaml import parse_yaml
from netloom.recipe import Recipe, key_problem
from netloom.tuning.space import Dimension, arrange, parse_dimension, values_of_dimension

DEFAULT_SPACE = "default"
SpaceLike = str | Path | Mapping[str, Any] | Sequence[str | Path | Mapping[str, Any]]

_OF_THE_DATA = ("validation_fraction", "test_fraction", "split_seed", "per_class")
OF_THE_PICTURES = ("image_size", "resize", "color")
"""Keys whose values each need a set of decoded pictures of their own."""

_MOST_SETS = 8
_OF_THE_EXECUTION = ("precision", "shards", "time_limit_minutes")
_WITHOUT_EFFECT = ("name", "description", "custom_model", "tensorboard", "keep_every", "test_time_augmentation")


@functools.cache
def space_names() -> tuple[str, ...]:
    """Names of the shipped spaces."""
    folder = resources.files("netloom") / "spaces"
    return tuple(sorted(f.name[:-5] for f in folder.iterdir() if f.name.endswith(".yaml")))


def space_for(given: SpaceLike, recipe: Recipe) -> tuple[Dimension, ...]:
    """The dimensions that a user means, arranged; of a key that is given twice the last counts.

    Keys of shipped spaces that the recipe's model does not have are left out.

    Args:
        given: A mapping by key, `KEY=VALUES`, the name of a shipped space, a YAML file, or several of these.
        recipe: What they change.

    Raises:
        RecipeError: There is no such space, or it is not understood.
    """
    parts = [given] if isinstance(given, str | Path | Mapping) else list(given)
    dimensions: dict[str, Dimension] = {}
    for part in parts:
        for key, value in _values(part, recipe).items():
            _refuse(key)
            dimensions.pop(key, None)
            dimensions[key] = parse_dimension(key, value, key_problem)
    arranged = arrange(dimensions.values())
    settings_of_pictures(arranged)
    return arranged


def settings_of_pictures(dimensions: Sequence[Dimension]) -> list[dict[str, Any]]:
    """The combinations of values for each of which pictures are decoded; just an empty one where none is searched.

    Raises:
        RecipeError: They are too many, or depend on a condition.
    """
    searched = [dimension for dimension in dimensions if dimension.key in OF_THE_PICTURES]
    for dimension in searched:
        if dimension.when is not None:
            raise RecipeError(
                f"{dimension.key} cannot be searched under a condition: all its pictures are decoded first."
            )
        if len(values_of_dimension(dimension)) > _MOST_SETS:
            raise RecipeError(
                f"{dimension.key} has {len(values_of_dimension(dimension))} values, for each of which all pictures are "
                f"decoded. Name at most {_MOST_SETS}: {dimension.key}=64,96,128"
            )
    combinations: list[dict[str, Any]] = [{}]
    for dimension in searched:
        combinations = [{**c, dimension.key: value} for c in combinations for value in values_of_dimension(dimension)]
    if len(combinations) > _MOST_SETS:
        raise RecipeError(
            f"{' and '.join(d.key for d in searched)} have {len(combinations)} combinations, for each of which all "
            f"pictures are decoded. Search over at most {_MOST_SETS}."
        )
    return combinations


def _values(part: str | Path | Mapping[str, Any], recipe: Recipe) -> dict[str, Any]:
    if isinstance(part, Mapping):
        return {str(key): value for key, value in part.items()}
    text = str(part)
    if isinstance(part, str) and "=" in text:
        key, _, value = text.partition("=")
        if not key.strip() or not value.strip():
            raise RecipeError(f"--space {text!r}: expected KEY=LOW..HIGH or KEY=CHOICE,CHOICE,… or a space's name.")
        return {key.strip(): value}
    if text in space_names():
        values = _read((resources.files("netloom") / "spaces" / f"{text}.yaml").read_text(encoding="utf-8"), text)
        return {key: value for key, value in values.items() if _fits(key, recipe)}
    path = Path(text)
    if path.suffix in (".yaml", ".yml") or path.is_file():
        try:
            return _read(path.read_text(encoding="utf-8"), str(path))
        except (OSError, UnicodeDecodeError) as error:
            raise RecipeError(f"Cannot read the space {path}: {error}.") from error
    hint = did_you_mean(text, space_names()) or f" There are {', '.join(space_names())}."
    raise RecipeError(f"There is no space {text!r}.{hint} Or write KEY=LOW..HIGH, or name a YAML file.")


def _read(text: str, where: str) -> dict[str, Any]:
    try:
        values = parse_yaml(text)
    except ValueError as error:
        raise RecipeError(f"The space {where} is not valid YAML: {error}.") from error
    if not isinstance(values, dict) or not values or not all(isinstance(key, str) for key in values):
        raise RecipeError(f"The space {where} must be `key: values` lines, found {type(values).__name__}.")
    return values


def _fits(key: str, recipe: Recipe) -> bool:
    """Whether a key of a shipped space is one that the recipe's model takes."""
    from netloom.models.registry import model_names, model_options
    from netloom.recipe import MODEL_OPTIONS

    if key not in MODEL_OPTIONS:
        return True
    return recipe.model in model_names() and key in model_options(recipe.model)


def _refuse(key: str) -> None:
    """Tell which keys cannot differ between the trials of a study.

    Raises:
        RecipeError: It is one of them.
    """
    why = None
    if key in _OF_THE_DATA:
        why = "the trials of a study are compared on the same pictures"
    elif key in _OF_THE_EXECUTION:
        why = "how a trial is executed is the same for all of them, and no part of what is searched for"
    elif key == "seed":
        why = "the luckiest seed is no better than others; --final-seeds tells how much seeds matter"
    elif key in _WITHOUT_EFFECT:
        why = "it has no effect on a trial's score"
    if why is not None:
        raise RecipeError(f"{key} cannot be searched over: {why}.")
