"""What a search may change: dimensions, their ranges and choices."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Literal

from netloom.errors import RecipeError, did_you_mean
from netloom.progress import number_cell

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
HOW_TO_WRITE = "Write KEY=LOW..HIGH, KEY=LOW..HIGH:log, KEY=LOW..HIGH:step=S or KEY=CHOICE,CHOICE,…"


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
        if self.kind == "float" and self.step:
            return self.step_at(round((value - self.low) / self.step))
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
        if self.kind == "float" and self.step:
            return self.step_at(round(steps))
        return float(value) if self.kind == "float" else int(value)

    def at(self, position: float) -> Any:
        """The plain value at `position` in [0, 1) of the range, or among the choices."""
        if self.kind == "choice":
            return self.choices[min(int(position * len(self.choices)), len(self.choices) - 1)]
        if self.step:
            n = self.n_steps()
            return self.step_at(min(int(position * n), n - 1))
        if self.kind == "float":
            return self.between(self.low, self.high, position)
        value = math.floor(self.between(self.low, self.high + 1, position))
        return min(max(value, int(self.low)), int(self.high))

    def between(self, low: float, high: float, position: float) -> float:
        """A number at that place, never outside: exp(log(low)) may be less than low by its last bit."""
        if self.log:
            number = math.exp(math.log(low) + position * (math.log(high) - math.log(low)))
        else:
            number = low + position * (high - low)
        return min(max(number, low), high)

    def n_steps(self) -> int:
        """Values of a range that has a step, or of whole numbers."""
        return round((self.high - self.low) / (self.step or 1)) + 1

    def step_at(self, number: int) -> Any:
        """The value so many steps from the first, as a person would write it: 0.9, not 0.8999999999999999."""
        value = exact(self.low) + number * exact(self.step or 1)
        return float(value) if self.kind == "float" else round(value)

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


def cell_of(value: Any, width: int) -> str:
    """A value in a table that a person reads while a search runs: numbers with four digits, fewer where need be."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return label_of(value)
    return number_cell(value, width, ".4g" if isinstance(value, float) else "d")


def values_of_dimension(dimension: Dimension) -> list[Any]:
    """All values of choices, steps, and whole numbers.

    Raises:
        RecipeError: There is no end of them.
    """
    if dimension.kind == "choice":
        return list(dimension.choices)
    if dimension.kind == "float" and not dimension.step:
        raise RecipeError(f"The values of {dimension} cannot be listed; give it a step, or choices.")
    return [dimension.step_at(i) for i in range(dimension.n_steps())]


def arrange(dimensions: Iterable[Dimension]) -> tuple[Dimension, ...]:
    """The dimensions, each behind the one that its condition looks at.

    Raises:
        RecipeError: A condition looks at something that is not searched over, or at itself in a circle.
    """
    waiting = list(dimensions)
    if not waiting:
        raise RecipeError(f"There is nothing to search over: give a space with --space. {HOW_TO_WRITE}.")
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


def exact(number: float) -> Decimal:
    """The decimal number that a person wrote, of which a float is the nearest."""
    return Decimal(repr(float(number)))
