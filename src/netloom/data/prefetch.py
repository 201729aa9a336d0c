"""Making the next batches while the network is at this one."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

Item = TypeVar("Item")

_AHEAD = 3
"""Batches that wait ready: one to be used next, and two for when one takes longer than a step."""


@contextlib.contextmanager
def prefetched(make: Callable[[], Iterator[Item]], *, ahead: int = _AHEAD) -> Iterator[Iterator[Item]]:
    """The items of `make()`, which runs in a thread of its own, up to `ahead` items before they are taken.

    Items and their order are those of `make()`; what it raises is raised where the item would have come. Leaving the
    `with` block ends the thread, once it has made the item it is at.
    """
    maker = _Maker(make, ahead)
    maker.start()
    try:
        yield maker.items()
    finally:
        maker.stop()


class _End(Generic[Item]):
    """Put behind the last item, with what ended the iteration too early if anything did."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error


class _Maker(Generic[Item]):
    def __init__(self, make: Callable[[], Iterator[Item]], ahead: int) -> None:
        self._make = make
        self._ready: queue.Queue[Item | _End[Item]] = queue.Queue(ahead)
        self._stopped = False
        self._thread = threading.Thread(target=self._work, name="netloom-batches", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def items(self) -> Iterator[Item]:
        while not isinstance(item := self._ready.get(), _End):
            yield item
        if item.error is not None:
            raise item.error

    def stop(self) -> None:
        self._stopped = True
        while self._thread.is_alive():
            with contextlib.suppress(queue.Empty):  # makes room where the thread waits for it
                self._ready.get(timeout=0.01)
        self._thread.join()

    def _work(self) -> None:
        end: _End[Item] = _End()
        try:
            for item in self._make():
                self._ready.put(item)
                if self._stopped:
                    break
        except BaseException as error:
            end = _End(error)
        self._ready.put(end)
