"""What a search may change: dimensions, their ranges and choices, and how people write them."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from netloom.errors import RecipeError, did_you_mean
from netloom.plain_yaml import parse_yaml

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

KeyProblem = Callable[[str, Any], str | None]
"""What is wrong with a value for a key, or None."""

_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_RANGE = re.compile(rf"({_NUMBER})\s*\.\.\s*({_NUMBER})((?:\s*:\s*[a-z]+(?:\s*=\s*[^:\s]+)?)*)")
_CONDITION = re.compile(r"\s+if\s+([A-Za-z_][\w.]*)\s*=\s*(.+)$")
_HOW = "Write KEY=LOW..HIGH, KEY=LOW..HIGH:log, KEY=LOW..HIGH:step=S or KEY=CHOICE,CHOICE,…"


@dataclass(frozen=True)
class Condition:
    """When a dimension matters: only if another one has one of these values."""

    key: str
    values: tuple[Any, ...]


@dataclass(frozen=True)
class Dimension:
    """One key that a search changes.

    Attributes:
        key: Of the recipe, or any name in a search over a function.
        kind: `float` and `int` have a range, `choice` has choices.
        low: Least value of a range.
        high: Greatest value of a range, included.
        log: The range is searched on a logarithmic scale.
        step: Values are `low`, `low + step`, …; None for all.
        choices: Plain values.
        when: None where it always matters.
    """

    key: str
    kind: Literal["float", "int", "choice"]
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    step: float | None = None
    choices: tuple[Any, ...] = ()
    when: Condition | None = None

    def matters(self, values: Mapping[str, Any]) -> bool:
        """Whether it has a value beside these of the dimensions before it."""
        return self.when is None or (self.when.key in values and values[self.when.key] in self.when.values)

    def distribution(self) -> BaseDistribution:
        """The same for Optuna; choices by their labels, since its storages hold no lists."""
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        if self.kind == "choice":
            return CategoricalDistribution([label_of(choice) for choice in self.choices])
        if self.kind == "float":
            return FloatDistribution(self.low, self.high, log=self.log, step=self.step)
        return IntDistribution(int(self.low), int(self.high), log=self.log, step=int(self.step or 1))

    def from_storage(self, value: Any) -> Any:
        """The plain value for what Optuna holds."""
        if self.kind != "choice":
            return value
        return self.choices[[label_of(choice) for choice in self.choices].index(value)]

    def to_storage(self, value: Any) -> Any:
        """What Optuna holds for a plain value.

        Raises:
            ValueError: It is outside of the dimension.
        """
        if self.kind == "choice":
            if value not in self.choices:
                raise ValueError(f"{value!r} is none of the choices")
            return label_of(self.choices[self.choices.index(value)])
        if isinstance(value, bool) or not isinstance(value, int | float) or not self.low <= value <= self.high:
            raise ValueError(f"{value!r} is not between {self.low:g} and {self.high:g}")
        if self.step and not math.isclose(steps := (value - self.low) / self.step, round(steps), abs_tol=1e-9):
            raise ValueError(f"{value!r} is no step of {self.step:g} from {self.low:g}")
        return float(value) if self.kind == "float" else int(value)

    def at(self, position: float) -> Any:
        """The plain value at `position` in [0, 1) of the range, or among the choices."""
        if self.kind == "choice":
            return self.choices[min(int(position * len(self.choices)), len(self.choices) - 1)]
        if self.step:
            n = round((self.high - self.low) / self.step) + 1
            value = self.low + self.step * min(int(position * n), n - 1)
            return value if self.kind == "float" else round(value)
        if self.kind == "float":
            return min(self._between(self.low, self.high, position), self.high)
        value = math.floor(self._between(self.low, self.high + 1, position))
        return min(max(value, int(self.low)), int(self.high))

    def _between(self, low: float, high: float, position: float) -> float:
        if self.log:
            return math.exp(math.log(low) + position * (math.log(high) - math.log(low)))
        return low + position * (high - low)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "key": self.key,
            "kind": self.kind,
            "low": None if self.kind == "choice" else self.low,
            "high": None if self.kind == "choice" else self.high,
            "log": self.log,
            "step": self.step,
            "choices": list(self.choices) if self.kind == "choice" else None,
            "when": None if self.when is None else {"key": self.when.key, "values": list(self.when.values)},
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Dimension:
        """What `to_json` gave.

        Raises:
            KeyError: Something is missing.
            TypeError: Something is of another kind.
        """
        when = value["when"]
        return cls(
            key=str(value["key"]),
            kind=value["kind"],
            low=value["low"] or 0.0,
            high=value["high"] or 0.0,
            log=bool(value["log"]),
            step=value["step"],
            choices=tuple(value["choices"] or ()),
            when=None if when is None else Condition(str(when["key"]), tuple(when["values"])),
        )

    def __str__(self) -> str:
        if self.kind == "choice":
            text = ", ".join(map(label_of, self.choices))
        else:
            text = f"{self.low:g}..{self.high:g}{':log' if self.log else ''}"
            text += f":step={self.step:g}" if self.step else ""
        condition = ""
        if self.when is not None:
            condition = f" if {self.when.key}={','.join(map(label_of, self.when.values))}"
        return f"{self.key}={text}{condition}"


def label_of(choice: Any) -> str:
    """How a choice is shown and stored: `null`, `true`, `32-64-128`, `adam`."""
    if choice is None:
        return "null"
    if isinstance(choice, bool):
        return str(choice).lower()
    if isinstance(choice, list | tuple):
        return "-".join(map(label_of, choice))
    if isinstance(choice, float):
        return f"{choice:g}" if float(f"{choice:g}") == choice else repr(choice)
    return str(choice)


def cell_of(value: Any) -> str:
    """A value in a table that a person reads while a search runs: numbers with four digits."""
    return f"{value:.4g}" if isinstance(value, float) else label_of(value)


def parse_dimension(key: str, value: Any, problem_of: KeyProblem) -> Dimension:
    """One dimension as people write it.

    Args:
        key: What it changes.
        value: A text such as `0.1..0.5`, `1e-4..1e-2:log`, `16..128:step=16`, `adam,sgd`, any of them followed by
            ` if optimizer=sgd`; or a tuple of a range's ends; or a list of choices; or a mapping with `low` and `high`
            or `choices`, and optionally `log`, `step` and `when: {key: [values]}`.
        problem_of: Says what is wrong with a value for the key.

    Raises:
        RecipeError: It is not understood, or the key does not take such values.
    """
    if (problem := problem_of(key, None)) is not None and "there is no such key" in problem:
        raise RecipeError(f"The space names {problem}")
    if isinstance(value, Mapping):
        return _from_mapping(key, value, problem_of)
    if isinstance(value, tuple) and len(value) == 2 and all(type(end) in (int, float) for end in value):
        return _range(key, value[0], value[1], log=False, step=None, when=None, problem_of=problem_of)
    if isinstance(value, list | tuple):
        return _choices(key, list(value), None, problem_of)
    text, when = str(value).strip(), None
    if found := _CONDITION.search(text):
        text, when = text[: found.start()], Condition(found[1], tuple(_values(key, found[2])))
    if (match := _RANGE.fullmatch(text)) is not None:
        options = _options(key, match[3])
        log = "log" in options
        return _range(key, match[1], match[2], log=log, step=options.get("step"), when=when, problem_of=problem_of)
    if ".." in text:
        raise RecipeError(f"The space of {key} is not understood: {text!r}. {_HOW}.")
    return _choices(key, _values(key, text), when, problem_of)


def _options(key: str, text: str) -> dict[str, str]:
    options: dict[str, str] = {}
    for part in filter(None, (p.strip() for p in text.split(":"))):
        name, _, value = part.partition("=")
        name, value = name.strip(), value.strip()
        if (name, bool(value)) not in (("log", False), ("step", True)):
            raise RecipeError(f"The space of {key} has {part!r} behind its range; it takes `log` or `step=S`.")
        options[name] = value
    return options


def _values(key: str, text: str) -> list[Any]:
    """`adam,sgd` or `[32, 64],[64]` as a list of plain values."""
    try:
        values = parse_yaml(f"[{text}]")
    except ValueError as error:
        raise RecipeError(f"The choices of {key} are not understood: {text!r}. {_HOW}.") from error
    assert isinstance(values, list)
    # YAML takes 1e-4 for a text, since it has no point.
    return [float(v) if isinstance(v, str) and re.fullmatch(_NUMBER, v) else v for v in values]


def _from_mapping(key: str, value: Mapping[str, Any], problem_of: KeyProblem) -> Dimension:
    if foreign := set(value) - {"low", "high", "log", "step", "choices", "when"}:
        raise RecipeError(
            f"The space of {key} has {', '.join(map(repr, sorted(map(str, foreign))))}; it takes low and high, or "
            "choices, and log, step and when."
        )
    when = None
    if value.get("when") is not None:
        given = value["when"]
        if not isinstance(given, Mapping) or len(given) != 1:
            raise RecipeError(f"The space of {key}: when must be one `key: [values]`, found {given!r}.")
        ((other, values),) = given.items()
        when = Condition(str(other), tuple(values) if isinstance(values, list | tuple) else (values,))
    if "choices" in value:
        if not isinstance(value["choices"], list | tuple) or {"low", "high", "log", "step"} & set(value):
            raise RecipeError(f"The space of {key}: choices must be a list, and have no low, high, log or step.")
        return _choices(key, list(value["choices"]), when, problem_of)
    if not {"low", "high"} <= set(value):
        raise RecipeError(f"The space of {key} needs low and high, or choices, found {dict(value)!r}.")
    log, step = bool(value.get("log", False)), value.get("step")
    return _range(key, value["low"], value["high"], log=log, step=step, when=when, problem_of=problem_of)


def _range(
    key: str, low: Any, high: Any, *, log: bool, step: Any, when: Condition | None, problem_of: KeyProblem
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
    whole = problem_of(key, first + 0.5) is not None and problem_of(key, first + 0.25) is not None
    whole = whole and first.is_integer() and last.is_integer() and problem_of(key, int(first)) is None
    for end in (first, last):
        if (problem := problem_of(key, int(end) if whole else end)) is not None:
            raise RecipeError(f"The space names a value that the key does not take: {problem}.")
    if whole and stride is not None and not stride.is_integer():
        raise RecipeError(f"The space of {key}: its values are whole numbers, so the step must be one, not {stride:g}.")
    if stride is not None:  # up to the last value that is a step from the first
        last = first + stride * math.floor((last - first) / stride + 1e-9)
    return Dimension(key, "int" if whole else "float", first, last, log, stride, when=when)


def _choices(key: str, values: Sequence[Any], when: Condition | None, problem_of: KeyProblem) -> Dimension:
    if not values:
        raise RecipeError(f"The space of {key} has no choices. {_HOW}.")
    labels = [label_of(value) for value in values]
    if len(set(labels)) < len(labels):
        raise RecipeError(f"The space of {key} names a choice twice: {', '.join(labels)}.")
    for value in values:
        if (problem := problem_of(key, value)) is not None:
            raise RecipeError(f"The space names a value that the key does not take: {problem}.")
    return Dimension(key, "choice", choices=tuple(values), when=when)


def arrange(dimensions: Iterable[Dimension]) -> tuple[Dimension, ...]:
    """The dimensions, each behind the one that its condition looks at.

    Raises:
        RecipeError: A condition looks at something that is not searched over, or at itself in a circle.
    """
    waiting = list(dimensions)
    if not waiting:
        raise RecipeError(f"There is nothing to search over: give a space with --space. {_HOW}.")
    known = {dimension.key: dimension for dimension in waiting}
    for dimension in waiting:
        if (when := dimension.when) is None:
            continue
        other = known.get(when.key)
        if other is None:
            raise RecipeError(
                f"{dimension.key} is searched only if {when.key} has some value, but {when.key} is not searched over."
                f"{did_you_mean(when.key, known)} Set it with --set, or give it a space, too."
            )
        if other.kind == "choice" and (foreign := [v for v in when.values if v not in other.choices]):
            raise RecipeError(
                f"{dimension.key} is searched only if {when.key} is {', '.join(map(label_of, foreign))}, which is none "
                f"of its choices: {', '.join(map(label_of, other.choices))}."
            )
    for dimension in waiting:
        group = known.get(dimension.key.partition(".")[0])
        if group is not None and group is not dimension:
            raise RecipeError(
                f"{group.key} and {dimension.key} cannot both be searched over: one replaces the other. Search "
                f"over the keys of {group.key} alone, with values that turn each of them off."
            )
    arranged: dict[str, Dimension] = {}
    while waiting:
        ready = [d for d in waiting if d.when is None or d.when.key in arranged]
        if not ready:
            names = ", ".join(d.key for d in waiting)
            raise RecipeError(f"The conditions of the space look at each other in a circle: {names}.")
        arranged |= {d.key: d for d in ready}
        waiting = [d for d in waiting if d.key not in arranged]
    return tuple(arranged.values())


def grid_of(dimensions: Sequence[Dimension], points: int) -> list[dict[str, Any]]:
    """All combinations, in order; ranges without a step give `points` values, the ends among them.

    A dimension that does not matter beside the others of a combination is absent from it.
    """
    combinations: list[dict[str, Any]] = [{}]
    for dimension in dimensions:
        combinations = [
            {**combination, dimension.key: value} if dimension.matters(combination) else combination
            for combination in combinations
            for value in (_grid_values(dimension, points) if dimension.matters(combination) else [None])
        ]
    return combinations


def _grid_values(dimension: Dimension, points: int) -> list[Any]:
    if dimension.kind == "choice" or dimension.step:
        return values_of_dimension(dimension)
    values = [dimension._between(dimension.low, dimension.high, i / (points - 1)) for i in range(points)]
    values[-1] = dimension.high
    return list(dict.fromkeys(round(v) if dimension.kind == "int" else v for v in values))


def values_of_dimension(dimension: Dimension) -> list[Any]:
    """All values of choices, steps, and whole numbers.

    Raises:
        RecipeError: There is no end of them.
    """
    if dimension.kind == "choice":
        return list(dimension.choices)
    if dimension.kind == "float" and not dimension.step:
        raise RecipeError(f"The values of {dimension} cannot be listed; give it a step, or choices.")
    step = dimension.step or 1
    n = round((dimension.high - dimension.low) / step) + 1
    values = [dimension.low + i * step for i in range(n)]
    return [round(value) for value in values] if dimension.kind == "int" else values
