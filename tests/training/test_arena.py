"""Memory for values that follow one another."""

from __future__ import annotations

import random

from netloom.training.arena import Lifetime, places


def test_values_that_live_at_once_do_not_overlap() -> None:
    draw = random.Random(1)
    for _ in range(50):
        lifetimes = []
        for _ in range(draw.randint(1, 30)):
            first = draw.randint(0, 20)
            lifetimes.append(Lifetime(draw.randint(0, 200), first, first + draw.randint(0, 5)))
        found, total = places(lifetimes)
        spans = list(zip(lifetimes, found, strict=True))
        assert all(place % 16 == 0 and place + value.n <= total for value, place in spans)
        for i, (one, at) in enumerate(spans):
            for other, beside in spans[:i]:
                apart = at + one.n <= beside or beside + other.n <= at
                assert apart or one.last < other.first or other.last < one.first


def test_who_is_needed_no_longer_makes_room() -> None:
    chain = [Lifetime(100, step, step + 1) for step in range(10)]
    _, total = places(chain)
    assert total == 2 * 112


def test_nothing_needs_no_memory() -> None:
    assert places([]) == ([], 0)
