"""Recipes by name, from YAML files, and changed by `key=value`."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from netloom.errors import RecipeError, did_you_mean
from netloom.plain_yaml import parse_yaml
from netloom.recipe.changes import changed, with_own_epochs, without_other_modes
from netloom.recipe.groups import FIRST_MODE
from netloom.recipe.recipe import Recipe

DEFAULT_RECIPE = "photos"
"""For sources of a user's own, where none is named."""


@functools.cache
def recipe_names() -> tuple[str, ...]:
    """Names of the shipped recipes."""
    folder = resources.files("netloom") / "recipes"
    return tuple(sorted(f.name[:-5] for f in folder.iterdir() if f.name.endswith(".yaml")))


def describe_recipes() -> list[dict[str, str]]:
    """Name, model and description of the shipped recipes."""
    values = [{"name": name, **_read(name)} for name in recipe_names()]
    default = Recipe.model_fields["model"].default
    return [{"name": v["name"], "model": v.get("model", default), "description": v["description"]} for v in values]


def load_recipe(name_or_file: str | Path | Recipe, overrides: Mapping[str, Any] | None = None) -> Recipe:
    """A shipped recipe by name, or one from a YAML file, with some keys changed.

    A file may name another recipe under `extends` and give only what differs.

    Raises:
        RecipeError: No such recipe, or mistakes in it or in the changes; all of them are listed.
    """
    if isinstance(name_or_file, Recipe):
        values, where = name_or_file.to_mapping(), "the recipe"
    else:
        values, where = _read(name_or_file), f"recipe {str(name_or_file)!r}"
    return Recipe.from_mapping(changed(values, overrides or {}), where=where)


def load_own_recipe(path: Path) -> Recipe:
    """The recipe that a run was trained with, without keys that no verb has looked at.

    Raises:
        RecipeError: It is damaged.
    """
    values = _read(path)
    if isinstance(group := values.get("transfer"), Mapping):
        values = without_other_modes(values, group.get("mode", FIRST_MODE))
    return Recipe.from_mapping(values, where=f"recipe {str(path)!r}")


def parse_overrides(settings: Iterable[str]) -> dict[str, Any]:
    """`key=value` texts to overrides; values are YAML, so `null` turns a group off.

    Raises:
        RecipeError: A text without `=`, or a value that is not YAML.
    """
    overrides: dict[str, Any] = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or not key.strip():
            raise RecipeError(f"--set {setting!r}: expected key=value, for example --set epochs=20.")
        overrides[key.strip()] = _load_yaml(text, f"The value of --set {setting!r}")
    return overrides


def _read(name_or_file: str | Path, seen: tuple[str, ...] = ()) -> dict[str, Any]:
    """The plain values of a shipped recipe or a file, with what it extends underneath."""
    text = str(name_or_file)
    if text in seen:
        raise RecipeError(f"Recipes extend each other in a circle: {' → '.join([*seen, text])}.")
    path = Path(text)
    if text in recipe_names():
        content = (resources.files("netloom") / "recipes" / f"{text}.yaml").read_text(encoding="utf-8")
        values = _parse_yaml(content, f"Recipe {text!r}")
        values.setdefault("name", text)
    elif path.suffix in (".yaml", ".yml") or path.is_file():
        try:
            values = _parse_yaml(path.read_text(encoding="utf-8"), f"Recipe file {path}")
        except (OSError, UnicodeDecodeError) as error:
            raise RecipeError(f"Cannot read the recipe file {path}: {error}.") from error
        values.setdefault("name", path.stem)
    else:
        hint = did_you_mean(text, recipe_names()) or " `netloom recipes` lists them."
        raise RecipeError(f"There is no recipe or recipe file {text!r}.{hint}")
    base = values.pop("extends", None)
    return with_own_epochs(values, values) if base is None else changed(_read(str(base), (*seen, text)), values)


def _parse_yaml(text: str, where: str) -> dict[str, Any]:
    value = _load_yaml(text, where)
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise RecipeError(f"{where} must be `key: value` lines, found {type(value).__name__}.")
    return value


def _load_yaml(text: str, where: str) -> Any:
    try:
        return parse_yaml(text)
    except ValueError as error:
        raise RecipeError(f"{where} is not valid YAML: {error}.") from error
