"""Axes of a figure: where a value lies between the ends, and which ticks say so."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from matplotlib.ticker import MaxNLocator

# Left free at both ends, so that a mark at an end is whole.
_PADDING = 0.035
# Beyond so many times the range of the better values, a bad one would squash all others into a line.
_SQUASHED = 4
_FENCE_QUARTILES = 3
# Integers are so few that equal ones are drawn beside, not onto, each other.
_FEW_INTEGERS = 16
_MINUTE, _HOUR, _DAY = 60, 3600, 86400
_TIME_STEPS = (
    *(0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30),
    *(step * _MINUTE for step in (1, 2, 5, 10, 20, 30)),
    *(step * _HOUR for step in (1, 2, 3, 6, 12)),
    *(step * _DAY for step in (1, 2, 5, 10, 20, 50, 100)),
)


class Tick(NamedTuple):
    """A mark on an axis: where, 0..1, and what it says."""

    place: float
    text: str


@dataclass(frozen=True)
class Axis:
    """Where values lie.

    Attributes:
        ticks: In order.
        place: From a value to its place, 0..1; None for what has none (missing, not a number, another type).
        slot: How much room equal values share, as a part of the axis; 0 where values are continuous.
        label: What is measured.
    """

    ticks: Sequence[Tick]
    place: Callable[[Any], float | None]
    slot: float = 0.0
    label: str = ""


def linear_axis(
    low: float, high: float, *, form: Callable[[float], str], label: str = "", integers: bool = False, n_ticks: int = 6
) -> Axis:
    """From `low` to `high`; values beyond are placed at the end.

    Args:
        low: Lower end, finite.
        high: Upper end, finite; where it equals `low`, everything is in the middle.
        form: Writes the value of a tick.
        label: What is measured.
        integers: Ticks are whole numbers.
        n_ticks: At most one more than these.
    """
    if not high > low:
        return Axis((Tick(0.5, form(low)),), lambda value: None if _finite(value) is None else 0.5, 0.0, label)

    few = integers and high - low <= _FEW_INTEGERS

    def at(value: float) -> float:
        if few:  # each integer in the middle of its slot, as choices are
            return min(1.0, max(0.0, (value - low + 0.5) / (high - low + 1)))
        return _padded((value - low) / (high - low))

    def place(value: Any) -> float | None:
        finite = _finite(value)
        return None if finite is None else at(finite)

    found = MaxNLocator(nbins=n_ticks, integer=integers, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
    reach = (high - low) * 1e-6
    ticks = [Tick(at(value), form(value)) for value in map(float, found) if low - reach <= value <= high + reach]
    # Values that differ less than their digits tell share one tick.
    ticks = list({tick.text: tick for tick in ticks}.values())
    return Axis(ticks, place, 1 / (high - low + 1) if few else 0.0, label)


def log_axis(low: float, high: float, *, form: Callable[[float], str], label: str = "", n_ticks: int = 6) -> Axis:
    """As `linear_axis`, by the logarithm; `low` is above 0, and what is not is placed at the lower end."""
    if not high > low:
        return linear_axis(low, low, form=form, label=label)
    span = math.log(high / low)

    def share(value: float) -> float:
        return math.log(value / low) / span if value > 0 else 0.0

    def place(value: Any) -> float | None:
        finite = _finite(value)
        return None if finite is None else _padded(share(finite))

    return Axis([Tick(_padded(share(at)), form(at)) for at in log_ticks(low, high, n_ticks)], place, 0.0, label)


def log_ticks(low: float, high: float, n_ticks: int) -> list[float]:
    """Round numbers between two ends: powers of ten, of those every second or third, or 1, 2 and 5 times them."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    for factors, step in (((1, 2, 5), 1), ((1, 3), 1), *(((1,), step) for step in range(1, last - first + 1))):
        exponents = range(first - first % step, last + 1, step)
        ticks = [float(f"{factor}e{exponent}") for exponent in exponents for factor in factors]
        inside = [tick for tick in ticks if low * (1 - 1e-9) <= tick <= high * (1 + 1e-9)]
        if len(inside) <= n_ticks:
            return inside if len(inside) > 1 else [low, high]
    return [low, high]


def choice_axis(choices: Sequence[Any], *, label: str = "") -> Axis:
    """A place of its own for each choice, whatever its type; a list is a choice like any other."""
    n = max(1, len(choices))
    places = {identity(choice): (index + 0.5) / n for index, choice in enumerate(choices)}
    ticks = [Tick(places[identity(choice)], value_text(choice)) for choice in choices]
    return Axis(ticks, lambda value: places.get(identity(value)), 1 / n, label)


def time_axis(seconds: float, *, label: str = "") -> Axis:
    """From 0 to `seconds`, with ticks in the unit that people would use."""
    step = next((step for step in _TIME_STEPS if seconds / step <= 6), seconds / 6)
    unit, name = next(
        (unit, name)
        for unit, name in ((_DAY, "d"), (_HOUR, "h"), (_MINUTE, "min"), (1, "s"))
        if step >= unit or unit == 1
    )
    reach = max(seconds, step)
    plain = linear_axis(0, reach, form=str, label=label)
    ticks = [
        Tick(_padded(count * step / reach), f"{count * step / unit:g} {name}")
        for count in range(int(reach / step + 1e-9) + 1)
    ]
    return Axis(ticks, plain.place, 0.0, label)


def score_range(values: Sequence[float], *, maximize: bool) -> tuple[float, float]:
    """Ends of an axis for scores: all of them, unless a few hopeless ones would squash the rest.

    Where the worst lies more than four times farther from the best than Tukey's outer fence (three interquartile
    ranges beyond the worse quartile; "Exploratory data analysis", 1977), the fence is the end.

    Args:
        values: Finite, at least one.
        maximize: Whether more is better.
    """
    ordered = sorted(values, reverse=not maximize)
    worst, best = ordered[0], ordered[-1]
    lower, upper = ordered[len(ordered) // 4], ordered[(3 * len(ordered)) // 4]
    fence = lower - _FENCE_QUARTILES * (upper - lower)
    if upper != lower and abs(best - worst) > _SQUASHED * abs(best - fence):
        worst = fence
    return (worst, best) if maximize else (best, worst)


def identity(value: Any) -> str:
    """What tells one choice from another: `1`, `true` and `"1"` are three."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)


def value_text(value: Any) -> str:
    """A setting for people, as a recipe writes it: `0.0003`, `adam`, `true`, `null`, `[32, 64]`."""
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        return number_text(value)
    return json.dumps(value, ensure_ascii=False, default=str)


def number_text(value: float) -> str:
    """Four significant digits, without padding: `0.1`, `3e-5`, `12345`."""
    if not math.isfinite(value):
        return str(value)
    if value == round(value) and abs(value) < 1e6:
        return str(round(value))
    mantissa, _, exponent = f"{value:.4g}".partition("e")
    return f"{mantissa}e{int(exponent)}" if exponent else mantissa


def _finite(value: Any) -> float | None:
    """As a float; None where it is none. A boolean is a choice, not a number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)


def _padded(share: float) -> float:
    return _PADDING + (1 - 2 * _PADDING) * min(1.0, max(0.0, share))
