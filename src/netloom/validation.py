"""Pydantic's findings in the words of the person who wrote the values."""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from netloom.errors import did_you_mean


def mistakes_in(error: ValidationError, model: type[BaseModel], *, free_keys: Sequence[str] = ()) -> list[str]:
    """One line for each key that is wrong: its dotted name, what was expected, and what was found.

    Args:
        error: From validating `model`.
        model: Its nested models are groups, whose keys have dotted names.
        free_keys: Fields of `model` whose own keys are the user's names.
    """
    unknown: list[str] = []
    expected: dict[str, list[str]] = {}
    found: dict[str, str] = {}
    for item in error.errors():
        parts = _written(item["loc"], model, free_keys)
        name = ".".join(map(str, parts))
        if item["type"] == "extra_forbidden":
            hint = did_you_mean(str(item["loc"][-1]), _keys_at(parts, model))
            name = ".".join(map(str, [*parts, item["loc"][-1]]))
            unknown.append(f"{name}: there is no such key.{hint or ' See docs/recipes.md for all of them.'}")
            continue
        # What the members of a union expected is told in one line.
        expected.setdefault(name, []).append(_expectation(item, name, _keys_at(parts, model)))
        found.setdefault(name, reprlib.repr(item["input"]))
    wrong = [f"{name}: {' or '.join(dict.fromkeys(texts))}, found {found[name]}" for name, texts in expected.items()]
    return wrong + unknown


def _expectation(item: Any, name: str, keys: Sequence[str]) -> str:
    if item["type"] == "model_type":
        return f"is a group of keys; set one of them, such as {name}.{keys[0]}, or null for none"
    text = item["msg"].replace("a valid tuple", "a list").replace("a valid dictionary", "`name: value` pairs")
    return f"{text[0].lower()}{text[1:]}"


def _written(location: Iterable[str | int], model: type[BaseModel], free_keys: Sequence[str]) -> list[str | int]:
    """The parts of `location` that a user wrote, without pydantic's names of a union's members."""
    parts: list[str | int] = []
    for part in location:
        free = bool(parts) and parts[0] in free_keys and not str(part).startswith("dict[")
        if isinstance(part, int) or part in _keys_at(parts, model) or free:
            parts.append(part)
    return parts


def _keys_at(location: Sequence[str | int], model: type[BaseModel]) -> list[str]:
    """The keys known in the group at `location`; none where there is no group."""
    for part in location:
        annotation = model.model_fields[str(part)].annotation if part in model.model_fields else None
        groups = [c for c in (annotation, *get_args(annotation)) if isinstance(c, type) and issubclass(c, BaseModel)]
        if not groups:
            return []
        model = groups[0]
    return list(model.model_fields)
