"""What a network looks like, before any data."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch

from netloom.errors import ModelError, did_you_mean
from netloom.models.backbones import is_backbone
from netloom.models.pretrained import published_input
from netloom.models.registry import is_family_member, is_model, model_names
from netloom.models.summary import ModelSummary, summarize
from netloom.recipe import Recipe, load_recipe, recipe_names
from netloom.workflows.builders import build_heads, build_model

_MOST_CLASSES = 1_000_000
_DEFAULT_SIDE = {"rgb": 3, "auto": 3, "grey": 1}


def summary(
    model: str,
    *,
    input_shape: str | None = None,
    classes: int | None = None,
    trunk: bool = False,
    settings: Mapping[str, Any] | None = None,
) -> ModelSummary:
    """Layers and parameters of a model, or of a recipe's model, and which of them a training with it would train.

    Args:
        model: A model's or a recipe's name, or a recipe file.
        input_shape: `CxHxW`; a recipe's or a pretrained network's own without one.
        classes: How many; 10, or 2 for a recipe with one sigmoid output, without it.
        trunk: Count what is in front of the dense head only.
        settings: Recipe keys to change.

    Raises:
        ModelError: The model is unknown or does not fit the shape.
    """
    recipe = _recipe_of(model, settings or {})
    channels, height, width = _shape(input_shape, recipe)
    count = classes if classes is not None else 2 if recipe.loss.startswith("binary") else 10
    if not 2 <= count <= _MOST_CLASSES:
        raise ModelError(f"--classes {count}: expected 2 to {_MOST_CLASSES:,}.")
    head = build_heads(recipe, [str(i) for i in range(count)])[0]
    with torch.device("meta"):  # shapes and counts need no numbers: vgg19 at 224x224 takes no memory
        network = build_model(recipe, in_channels=channels, num_outputs=head.num_outputs, image_size=(height, width))
        return summarize(network, input_shape=(channels, height, width), trunk_only=trunk)


def _recipe_of(name: str, settings: Mapping[str, Any]) -> Recipe:
    if is_model(name) or is_family_member(name):  # of a family, the recipe tells what is wrong with the name
        return load_recipe(Recipe.from_mapping({"model": name}), settings)
    if name in recipe_names() or name.endswith((".yaml", ".yml")):
        return load_recipe(name, settings)
    known = [*model_names(), *recipe_names()]
    raise ModelError(
        f"There is no model or recipe {name!r}.{did_you_mean(name, known)} "
        "`netloom models` and `netloom recipes` list them."
    )


def _shape(text: str | None, recipe: Recipe) -> tuple[int, int, int]:
    if text is not None:
        match = re.fullmatch(r"(\d{1,6})[x×](\d{1,6})[x×](\d{1,6})", text.strip())
        if match is None:
            raise ModelError(f"--input {text!r}: expected CHANNELSxHEIGHTxWIDTH, for example 3x32x32.")
        return int(match[1]), int(match[2]), int(match[3])
    size = recipe.image_size
    if size is None and is_backbone(recipe.model):
        size = published_input(recipe.model).image_size
    if size is None:
        raise ModelError("Say for which pictures: --input CHANNELSxHEIGHTxWIDTH, for example 3x32x32.")
    height, width = (size, size) if isinstance(size, int) else size
    return _DEFAULT_SIDE[recipe.color], height, width
