from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from netloom.data.prefetch import prefetched


def _threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "netloom-batches"]


@pytest.mark.parametrize("n", [0, 1, 2, 50])
def test_items_come_in_their_order_from_another_thread(n: int) -> None:
    makers = set()

    def make() -> Iterator[int]:
        for i in range(n):
            makers.add(threading.get_ident())
            yield i

    with prefetched(make) as items:
        assert list(items) == list(range(n))
    assert threading.get_ident() not in makers
    assert _threads() == []


def test_items_are_made_before_they_are_taken_and_no_more_than_allowed() -> None:
    made = threading.Semaphore(0)
    count = []

    def make() -> Iterator[int]:
        for i in range(10):
            count.append(i)
            made.release()
            yield i

    with prefetched(make, ahead=2) as items:
        assert all(made.acquire(timeout=10) for _ in range(3))  # two wait ready, the third waits for room
        assert not made.acquire(timeout=0.1)
        assert count == [0, 1, 2]
        assert next(items) == 0
        assert made.acquire(timeout=10)
        assert count == [0, 1, 2, 3]


def test_an_error_comes_where_its_item_would_have() -> None:
    def make() -> Iterator[int]:
        yield 1
        raise ValueError("the second one")

    with prefetched(make) as items:
        assert next(items) == 1
        with pytest.raises(ValueError, match="the second one"):
            next(items)
    assert _threads() == []


@pytest.mark.parametrize("taken", [0, 1, 5])
def test_leaving_early_ends_the_thread(taken: int) -> None:
    def make() -> Iterator[int]:
        i = 0
        while True:
            yield i
            i += 1

    with prefetched(make) as items:
        for _ in range(taken):
            next(items)
    assert _threads() == []
