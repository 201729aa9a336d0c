"""Memory for values that follow one another: who is needed no longer makes room for others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

# Numbers to which places are rounded: a line of the processor's cache.
_UNIT = 16


@dataclass(frozen=True)
class Lifetime:
    """Of a value.

    Attributes:
        n: Numbers that it has.
        first: When it is written.
        last: When it is read for the last time.
    """

    n: int
    first: int
    last: int


def places(lifetimes: Sequence[Lifetime]) -> tuple[list[int], int]:
    """Where each value begins, and how many numbers all have room in together.

    No two values that live at the same time overlap. Each takes the smallest gap that it fits in.
    """
    found = [0] * len(lifetimes)
    placed: list[tuple[int, int, int]] = []  # begin, end, last
    total = 0
    for i in sorted(range(len(lifetimes)), key=lambda i: lifetimes[i].first):
        value = lifetimes[i]
        size = -(-value.n // _UNIT) * _UNIT
        placed = [other for other in placed if other[2] >= value.first]
        gaps, end = [], 0
        for begin, stop, _ in sorted(placed):
            if begin - end >= size:
                gaps.append((begin - end, end))
            end = max(end, stop)
        found[i] = min(gaps)[1] if gaps else end
        placed.append((found[i], found[i] + size, value.last))
        total = max(total, found[i] + size)
    return found, total
