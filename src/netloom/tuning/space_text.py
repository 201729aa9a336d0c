"""Dimensions as people write them, in texts, files and Python."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import Any

import numpy as np

from netloom.errors import RecipeError
from netloom.plain_yaml import parse_yaml
from netloom.tuning.space import HOW_TO_WRITE, Condition, Dimension, exact, label_of

KeyProblem = Callable[[str, Any], str | None]
"""What is wrong with a value for a key, or None."""

_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_RANGE = re.compile(rf"({_NUMBER})\s*\.\.\s*({_NUMBER})((?:\s*:\s*[a-z]+(?:\s*=\s*[^:\s]+)?)*)")
_CONDITION = re.compile(r"\s+if\s+([A-Za-z_][\w.]*)\s*=\s*(.+)$")


def parse_dimension(key: str, value: Any, problem_of: KeyProblem) -> Dimension:
    """One dimension as people write it.

    Args:
        key: What it changes.
        value: A text such as `0.1..0.5`, `1e-4..1e-2:log`, `16..128:step=16`, `1..10:int` (whole numbers alone, where
            the key does not say so), `adam,sgd`, any of them followed by ` if optimizer=sgd`; or a tuple of a range's
            ends; or a list of choices; or a mapping with `low` and `high` or `choices`, and optionally `log`, `step`,
            `int` and `when: {key: [values]}`. Numbers may be NumPy's.
        problem_of: Says what is wrong with a value for the key.

    Raises:
        RecipeError: It is not understood, or the key does not take such values.
    """
    if (problem := problem_of(key, None)) is not None and "there is no such key" in problem:
        raise RecipeError(f"The space names {problem}")
    if isinstance(value, Mapping):
        return _from_mapping(key, value, problem_of)
    if isinstance(value, tuple) and len(value) == 2 and all(map(_is_number, value)):
        return _range(key, value[0], value[1], problem_of=problem_of)
    if isinstance(value, list | tuple):
        return _choices(key, list(value), None, problem_of)
    if value is None or isinstance(value, bool | np.bool_) or _is_number(value):
        return _choices(key, [value], None, problem_of)
    if not isinstance(value, str):
        raise RecipeError(
            f"The space of {key} is a {type(value).__name__}. {HOW_TO_WRITE}; from Python also a tuple (low, "
            "high), a list of choices, or a mapping."
        )
    text, when = value.strip(), None
    if found := _CONDITION.search(text):
        text, when = text[: found.start()], Condition(found[1], tuple(_values(key, found[2])))
    if (match := _RANGE.fullmatch(text)) is not None:
        options = _options(key, match[3])
        return _range(
            key,
            match[1],
            match[2],
            log="log" in options,
            step=options.get("step"),
            whole="int" in options,
            when=when,
            problem_of=problem_of,
        )
    if ".." in text:
        raise RecipeError(f"The space of {key} is not understood: {text!r}. {HOW_TO_WRITE}.")
    return _choices(key, _values(key, text), when, problem_of)


def _options(key: str, text: str) -> dict[str, str]:
    options: dict[str, str] = {}
    for part in filter(None, (p.strip() for p in text.split(":"))):
        name, _, value = part.partition("=")
        name, value = name.strip(), value.strip()
        if (name, bool(value)) not in (("log", False), ("int", False), ("step", True)):
            raise RecipeError(f"The space of {key} has {part!r} behind its range; it takes `log`, `int` or `step=S`.")
        options[name] = value
    return options


def _values(key: str, text: str) -> list[Any]:
    """`adam,sgd` or `[32, 64],[64]` as a list of plain values."""
    try:
        values = parse_yaml(f"[{text}]")
    except ValueError as error:
        raise RecipeError(f"The choices of {key} are not understood: {text!r}. {HOW_TO_WRITE}.") from error
    assert isinstance(values, list)
    # YAML takes 1e-4 for a text, since it has no point.
    return [float(v) if isinstance(v, str) and re.fullmatch(_NUMBER, v) else v for v in values]


def _from_mapping(key: str, value: Mapping[str, Any], problem_of: KeyProblem) -> Dimension:
    if foreign := set(value) - {"low", "high", "log", "step", "int", "choices", "when"}:
        raise RecipeError(
            f"The space of {key} has {', '.join(map(repr, sorted(map(str, foreign))))}; it takes low and high, or "
            "choices, and log, step, int and when."
        )
    when = None
    if value.get("when") is not None:
        given = value["when"]
        if not isinstance(given, Mapping) or len(given) != 1:
            raise RecipeError(f"The space of {key}: when must be one `key: [values]`, found {given!r}.")
        ((other, values),) = given.items()
        listed = values if isinstance(values, list | tuple) else [values]
        when = Condition(str(other), tuple(_plain(key, v) for v in listed))
    if "choices" in value:
        if not isinstance(value["choices"], list | tuple) or {"low", "high", "log", "step", "int"} & set(value):
            raise RecipeError(f"The space of {key}: choices must be a list, and have no low, high, log, step or int.")
        return _choices(key, list(value["choices"]), when, problem_of)
    if not {"low", "high"} <= set(value):
        raise RecipeError(f"The space of {key} needs low and high, or choices, found {dict(value)!r}.")
    return _range(
        key,
        value["low"],
        value["high"],
        log=bool(value.get("log", False)),
        step=value.get("step"),
        whole=bool(value.get("int", False)),
        when=when,
        problem_of=problem_of,
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _plain(key: str, value: Any) -> Any:
    """What JSON holds for a value: NumPy's numbers become Python's, tuples lists.

    Raises:
        RecipeError: It is something else.
    """
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, np.generic):
        return _plain(key, value.item())
    if isinstance(value, list | tuple):
        return [_plain(key, part) for part in value]
    if isinstance(value, Mapping):
        return {str(name): _plain(key, part) for name, part in value.items()}
    raise RecipeError(
        f"The space of {key} has a {type(value).__name__} among its choices; they are numbers, texts, true, false, "
        "null, and lists of these."
    )


def _range(
    key: str,
    low: Any,
    high: Any,
    *,
    problem_of: KeyProblem,
    log: bool = False,
    step: Any = None,
    whole: bool = False,
    when: Condition | None = None,
) -> Dimension:
    try:
        first, last, stride = float(low), float(high), None if step is None else float(step)
    except (TypeError, ValueError) as error:
        raise RecipeError(f"The space of {key} needs numbers, found {low!r}, {high!r} and {step!r}.") from error
    if not math.isfinite(first) or not math.isfinite(last) or first >= last:
        raise RecipeError(f"The space of {key} goes from {first:g} to {last:g}; the first must be the smaller.")
    if log and first <= 0:
        raise RecipeError(f"The space of {key} starts at {first:g}; a logarithmic one must start above 0.")
    if stride is not None and (log or not 0 < stride <= last - first):
        raise RecipeError(f"The space of {key}: a step is for a linear range, above 0 and not larger than the range.")
    integral = first.is_integer() and last.is_integer()
    if whole and not integral:
        raise RecipeError(f"The space of {key} is of whole numbers, and goes from {first:g} to {last:g}.")
    takes_no_others = problem_of(key, first + 0.5) is not None and problem_of(key, first + 0.25) is not None
    whole = whole or (takes_no_others and integral and problem_of(key, int(first)) is None)
    for end in (first, last):
        if (problem := problem_of(key, int(end) if whole else end)) is not None:
            raise RecipeError(f"The space names a value that the key does not take: {problem}.")
    if whole and stride is not None and not stride.is_integer():
        raise RecipeError(f"The space of {key}: its values are whole numbers, so the step must be one, not {stride:g}.")
    if stride is not None:  # up to the last value that is a step from the first
        steps = (exact(last) - exact(first)) // exact(stride)
        last = float(exact(first) + steps * exact(stride))
    return Dimension(key, "int" if whole else "float", first, last, log, stride, when=when)


def _choices(key: str, values: Sequence[Any], when: Condition | None, problem_of: KeyProblem) -> Dimension:
    if not values:
        raise RecipeError(f"The space of {key} has no choices. {HOW_TO_WRITE}.")
    values = [_plain(key, value) for value in values]
    labels = [label_of(value) for value in values]
    if len(set(labels)) < len(labels):
        raise RecipeError(f"The space of {key} names a choice twice: {', '.join(labels)}.")
    for value in values:
        if (problem := problem_of(key, value)) is not None:
            raise RecipeError(f"The space names a value that the key does not take: {problem}.")
    return Dimension(key, "choice", choices=tuple(values), when=when)
