"""Plain values of a recipe, and changes laid over them."""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import Any

from netloom.recipe.groups import FIRST_MODE, KEYS_OF_MODE, MODEL_OPTIONS

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
    """`base` with `changes`; what the old values chose for what these replace is dropped.

    Where they name another model, these are the options that it does not have, and the padding of a backbone, which is
    that of its weights; where they name another mode of `transfer`, the keys that are of the old one alone.
    """
    if "model" in changes and not base.keys().isdisjoint(MODEL_OPTIONS):
        from netloom.models.registry import is_model, model_options

        name = str(changes["model"])
        if is_model(name):
            foreign = set(MODEL_OPTIONS) - set(model_options(name))
            if name != base.get("model"):
                foreign.add("padding")
            base = {k: v for k, v in base.items() if k not in foreign}
    old_group, new_group = base.get("transfer"), merged(base, changes).get("transfer")
    if isinstance(old_group, Mapping) and isinstance(new_group, Mapping):
        mode = new_group.get("mode", FIRST_MODE)
        if mode != old_group.get("mode", FIRST_MODE):
            base = without_other_modes(base, mode)
    values = merged(base, changes)
    others = not {"model", "transfer.weights"}.isdisjoint(changes) and "transfer.weights_sha256" not in changes
    if others and isinstance(values.get("transfer"), Mapping):  # the digest was that of the weights before
        values["transfer"] = {**values["transfer"], "weights_sha256": None}
    return with_own_epochs(values, changes)


def without_other_modes(
    changes: Mapping[str, Any], mode: Any, *, among: Container[str] = frozenset(KEYS_OF_MODE)
) -> dict[str, Any]:
    """Changes, or plain values, without the keys of `transfer` that modes other than `mode`, `among` these, look at."""
    foreign = {key for other, keys in KEYS_OF_MODE.items() if other != mode and other in among for key in keys}
    dotted = {f"transfer.{key}" for key in foreign}
    kept = {key: value for key, value in changes.items() if key not in dotted}
    if isinstance(group := kept.get("transfer"), Mapping):
        kept["transfer"] = {key: value for key, value in group.items() if key not in foreign}
    return kept


def of_searched_mode(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """Values of a trial; where it searches the mode of a transfer, without those that only other modes look at."""
    mode = values.get("transfer.mode")
    return values if mode is None else without_other_modes(values, mode)


def with_own_epochs(values: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """What `changes` made of a recipe; who says `epochs` there means them, and not what follows from `pictures`."""
    group, own = values.get("self_supervised"), changes.get("self_supervised")
    says_pictures = "self_supervised.pictures" in changes or (isinstance(own, Mapping) and "pictures" in own)
    if "epochs" not in changes or says_pictures or not isinstance(group, Mapping):
        return values
    return {**values, "self_supervised": {**group, "pictures": None}}
