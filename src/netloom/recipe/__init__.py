"""The Recipe: everything that determines a training, its validation, shipped recipes, YAML in and out."""

from __future__ import annotations

from netloom.recipe.files import (
    DEFAULT_RECIPE,
    describe_recipes,
    load_own_recipe,
    load_recipe,
    parse_overrides,
    recipe_names,
)
from netloom.recipe.recipe import Recipe, key_problem, recipe_keys, wanted_channels

__all__ = [
    "DEFAULT_RECIPE",
    "Recipe",
    "describe_recipes",
    "key_problem",
    "load_own_recipe",
    "load_recipe",
    "parse_overrides",
    "recipe_keys",
    "recipe_names",
    "wanted_channels",
]
