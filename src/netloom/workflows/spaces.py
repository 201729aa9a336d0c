"""Spaces to search: what users give, and the shipped ones."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from netloom.errors import RecipeError, did_you_mean
from netloom.plain_yaml import parse_yaml
from netloom.recipe import Recipe, key_problem, load_recipe
from netloom.recipe.changes import of_searched_mode
from netloom.recipe.groups import MODEL_OPTIONS
from netloom.tuning.space import Condition, Dimension, arrange, label_of, values_of_dimension
from netloom.tuning.space_text import parse_dimension
from netloom.workflows import builders

DEFAULT_SPACE = "default"
SpaceLike = str | Path | Mapping[str, Any] | Sequence[str | Path | Mapping[str, Any]]

_OF_THE_DATA = ("validation_fraction", "test_fraction", "split_seed", "per_class")
OF_THE_PICTURES = ("image_size", "resize", "color")
"""Keys whose values each need a set of decoded pictures of their own."""

_MOST_SETS = 8
_OF_THE_EXECUTION = ("precision", "shards", "time_limit_minutes")
_WITHOUT_EFFECT = ("name", "description", "custom_model", "tensorboard", "keep_every", "test_time_augmentation")
_OF_SOLVED = (
    "model",
    "transfer",
    "image_size",
    "resize",
    "color",
    "input_scaling",
    "class_weight",
)
"""Keys and groups that a classifier which is solved at once, without epochs, can tell apart; beside them those of a
network of this house's that may be in front of it. All options of timm's networks are of the head that it replaces."""
_OF_HEADS_AND_TRAININGS = (
    "block_dropout",
    "spatial_dropout",
    "dropout",
    "dense_dropout",
    "dense_normalization",
    "dense_units",
    "head_pooling",
)
_POINTS_TRIED = 20


@functools.cache
def space_names() -> tuple[str, ...]:
    """Names of the shipped spaces."""
    folder = resources.files("netloom") / "spaces"
    return tuple(sorted(f.name[:-5] for f in folder.iterdir() if f.name.endswith(".yaml")))


def space_for(
    given: SpaceLike, recipe: Recipe, say: Callable[[str], None] = lambda line: None
) -> tuple[Dimension, ...]:
    """The dimensions that a user means, arranged; of a key that is given twice the last counts.

    Of shipped spaces, keys and choices that the recipe does not take are left out.

    Args:
        given: A mapping by key, `KEY=VALUES`, the name of a shipped space, a YAML file, or several of these.
        recipe: What they change.
        say: Told what is left out.

    Raises:
        RecipeError: There is no such space, it is not understood, or nothing in it is for the recipe.
    """
    parts = [given] if isinstance(given, str | Path | Mapping) else list(given)
    dimensions: dict[str, Dimension] = {}
    shipped: set[str] = set()
    for part in parts:
        for key, value in _values(part).items():
            _refuse(key)
            dimensions.pop(key, None)
            dimensions[key] = _with_plain_sizes(parse_dimension(key, value, key_problem))
            (shipped.add if _is_shipped(part) else shipped.discard)(key)
    own = [d for key, d in dimensions.items() if key not in shipped]
    kept = [_fitting(d, recipe, own, say) if key in shipped else d for key, d in dimensions.items()]
    arranged = arrange(_found(kept, recipe))
    settings_of_pictures(arranged)
    for dimension in own:
        if (why := _without_effect(dimension.key, recipe, own)) is not None:
            raise RecipeError(f"{dimension.key} cannot be searched over: {why}.")
    see_that_it_has_recipes(arranged, recipe)
    return arranged


def see_that_it_has_recipes(dimensions: Sequence[Dimension], recipe: Recipe) -> None:
    """See, before anything is decoded, that the values of a space can make a recipe.

    Raises:
        RecipeError: None of some random points is one.
    """
    generator, reason = np.random.default_rng(0), ""
    for _ in range(_POINTS_TRIED):
        values: dict[str, Any] = {}
        for dimension, position in zip(dimensions, generator.random(len(dimensions)), strict=True):
            if dimension.matters(values):
                values[dimension.key] = dimension.at(float(position))
        refused = _refusal(recipe, values)
        if refused is None:
            return
        reason = reason or refused
    raise RecipeError(
        f"None of {_POINTS_TRIED} random points of the space is a recipe, so no trial could be trained. The first: "
        f"{reason}"
    )


def _refusal(recipe: Recipe, values: Mapping[str, Any]) -> str | None:
    """Why the recipe with these values is none, or None."""
    try:
        load_recipe(recipe, of_searched_mode(values))
    except RecipeError as error:
        return str(error)
    return None


def _with_plain_sizes(dimension: Dimension) -> Dimension:
    """Squares as one number, which is what trials and pictures are matched by."""
    when = dimension.when
    if when is not None and when.key == "image_size":
        dimension = replace(dimension, when=Condition(when.key, tuple(map(side_of, when.values))))
    if dimension.key != "image_size" or dimension.kind != "choice":
        return dimension
    sizes = tuple(map(side_of, dimension.choices))
    if twice := {label_of(size) for size in sizes if sizes.count(size) > 1}:
        raise RecipeError(f"The space of image_size names a choice twice: {', '.join(sorted(twice))}.")
    return replace(dimension, choices=sizes)


def side_of(size: Any) -> Any:
    """An image size as a space has it: one number for squares."""
    if isinstance(size, list | tuple):
        return size[0] if len(set(size)) == 1 else list(size)
    return size


def _fitting(
    dimension: Dimension, recipe: Recipe, own: Sequence[Dimension], say: Callable[[str], None]
) -> Dimension | None:
    """A dimension of a shipped space as far as the recipe takes it; None if nothing is left to choose from."""
    from netloom.models.registry import is_model, model_options

    key = dimension.key
    if key in MODEL_OPTIONS and not (is_model(recipe.model) and key in model_options(recipe.model)):
        say(f"  note: {key} is not searched: the model {recipe.custom_model or recipe.model} has no such option")
        return None
    if (why := _without_effect(key, recipe, own)) is not None:
        say(f"  note: {key} is not searched: {why}")
        return None
    values = dimension.choices if dimension.kind == "choice" else (dimension.low, dimension.high)
    if dimension.kind == "int":
        values = tuple(map(int, values))
    refused = {label_of(value): _refusal(recipe, {key: value}) for value in values}
    reasons = [reason for reason in refused.values() if reason is not None]
    if not reasons:
        return dimension
    left = tuple(value for value in values if refused[label_of(value)] is None)
    reason = reasons[0].splitlines()[-1].strip(" -")
    if dimension.kind != "choice" or len(left) < 2:
        say(f"  note: {key} is not searched: {reason}")
        return None
    without = ", ".join(label for label, why in refused.items() if why is not None)
    say(f"  note: {key} is searched without {without}: {reason}")
    return replace(dimension, choices=left)


def _found(kept: Sequence[Dimension | None], recipe: Recipe) -> list[Dimension]:
    """The dimensions that are left.

    Raises:
        RecipeError: Of shipped spaces nothing is.
    """
    found = [dimension for dimension in kept if dimension is not None]
    if found or not kept:
        return found
    if builders.is_solved_at_once(recipe):
        raise RecipeError(
            "Nothing of the space changes a classifier that is solved at once. Search over what its features depend "
            "on (--space image_size=160,224, --space model=NAME,NAME) or over classifiers (--space "
            "transfer.classifier=logistic,knn,network), or have a head trained: --set transfer.classifier=network."
        )
    raise RecipeError(
        "Nothing of the space is for this recipe. Name keys of your own, such as --space learning_rate=1e-4..1e-2:log."
    )


def _without_effect(key: str, recipe: Recipe, own: Sequence[Dimension]) -> str | None:
    """Why every value of a key gives this recipe the same classifier, or None."""
    from netloom.models.registry import is_family_member

    searched = {dimension.key for dimension in own}
    if not builders.is_solved_at_once(recipe) or searched & {"transfer", "transfer.mode", "transfer.classifier"}:
        return None
    group = key.partition(".")[0]
    assert recipe.transfer is not None
    views = recipe.transfer.views > 0 or "transfer.views" in searched
    of_network = key in MODEL_OPTIONS and key not in _OF_HEADS_AND_TRAININGS and not is_family_member(recipe.model)
    if group in _OF_SOLVED or of_network or (group == "augmentation" and views):
        return None
    return (
        f"the classifier {recipe.transfer.classifier} is solved at once from features, without epochs, so that it "
        "changes nothing; transfer.classifier=network trains a head"
    )


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


def _is_shipped(part: str | Path | Mapping[str, Any]) -> bool:
    return not isinstance(part, Mapping) and str(part) in space_names()


def _values(part: str | Path | Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(part, Mapping):
        return {str(key): value for key, value in part.items()}
    text = str(part)
    if isinstance(part, str) and "=" in text:
        key, _, value = text.partition("=")
        if not key.strip() or not value.strip():
            raise RecipeError(f"--space {text!r}: expected KEY=LOW..HIGH or KEY=CHOICE,CHOICE,… or a space's name.")
        return {key.strip(): value}
    if text in space_names():
        return _read((resources.files("netloom") / "spaces" / f"{text}.yaml").read_text(encoding="utf-8"), text)
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
