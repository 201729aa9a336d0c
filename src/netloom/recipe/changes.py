"""Plain values of a recipe, and changes laid over them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from netloom.recipe.groups import MODEL_OPTIONS

# Mappings whose keys are names of the user's, which may hold dots; they are replaced whole.
BY_CLASS_NAME = ("class_weight",)


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `changes` laid over it; groups merge, dotted keys reach into them, None turns a group off."""
    values = dict(base)
    for key, value in changes.items():
        first, _, rest = key.partition(".")
        inner = values.get(first)
        group = inner if isinstance(inner, Mapping) else {}
        if first in BY_CLASS_NAME:
            values[first] = {**group, rest: value} if rest else value
        elif rest:
            values[first] = merged(group, {rest: value})
        elif isinstance(value, Mapping):
            values[first] = merged(group, value)
        else:
            values[first] = value
    return values


def changed(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `changes`; where these name another model, options of `base` that it does not have are dropped."""
    if "model" in changes and not base.keys().isdisjoint(MODEL_OPTIONS):
        from netloom.models.registry import is_model, model_options

        if is_model(str(changes["model"])):
            foreign = set(MODEL_OPTIONS) - set(model_options(changes["model"]))
            base = {k: v for k, v in base.items() if k not in foreign}
    values = merged(base, changes)
    others = not {"model", "transfer.weights"}.isdisjoint(changes) and "transfer.weights_sha256" not in changes
    if others and isinstance(values.get("transfer"), Mapping):  # the digest was that of the weights before
        values["transfer"] = {**values["transfer"], "weights_sha256": None}
    return with_own_epochs(values, changes)


def with_own_epochs(values: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """What `changes` made of a recipe; who says `epochs` there means them, and not what follows from `pictures`."""
    group, own = values.get("self_supervised"), changes.get("self_supervised")
    says_pictures = "self_supervised.pictures" in changes or (isinstance(own, Mapping) and "pictures" in own)
    if "epochs" not in changes or says_pictures or not isinstance(group, Mapping):
        return values
    return {**values, "self_supervised": {**group, "pictures": None}}
