"""Threads that share the work of a step, and the pieces of tensors that each of them takes."""

from __future__ import annotations

import itertools
import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from netloom.runtime import keep_to_one_thread

_Result = TypeVar("_Result")

# What lies flat is cut at multiples of so many numbers, so that vector instructions find the same ones beside each
# other as in the whole.
FLAT = 64


class Crew:
    """Threads that each do a part of what is to be done, the calling one among them.

    Args:
        n_threads: How many, at least 1.
    """

    def __init__(self, n_threads: int) -> None:
        self.n_threads = n_threads
        self._threads = [_Thread() for _ in range(n_threads - 1)]

    def close(self) -> None:
        """End the threads."""
        for thread in self._threads:
            thread.close()

    def share(
        self, parts: Sequence[Callable[[], _Result]], *, on_error: Callable[[], object] | None = None
    ) -> list[_Result]:
        """What the parts return, at most `n_threads`, each done by a thread of its own, the first by the calling one.

        Operations of torch have one thread in them, but in a single part those of the caller, and no gradients. An
        error of a part is raised when all have ended; `on_error` is called at once, so that the others wait for nothing
        that does not come any more.
        """
        others = self._threads[: len(parts) - 1]
        for thread, part in zip(others, parts[1:], strict=True):
            thread.work.put((part, on_error))
        threads, grad = torch.get_num_threads(), torch.is_grad_enabled()
        if others:
            torch.set_num_threads(1)
        try:
            ends = [_end_of(parts[0], on_error)]
        finally:
            torch.set_num_threads(threads)
            torch.set_grad_enabled(grad)
        ends += [thread.done.get() for thread in others]
        errors = [end for end in ends if isinstance(end, _Failure)]
        if errors:
            causes = [end for end in errors if not isinstance(end.error, threading.BrokenBarrierError)]
            raise (causes or errors)[0].error
        return ends  # type: ignore[return-value]


def pieces_of(n: int, n_pieces: int, *, unit: int = 1) -> list[slice]:
    """Of `n` things that lie behind each other so many pieces, of whole units; some may be empty."""
    units = -(-n // unit)
    bounds = [min(n, units * number // n_pieces * unit) for number in range(n_pieces + 1)]
    return [slice(start, stop) for start, stop in itertools.pairwise(bounds)]


def flat_views(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor] | None:
    """Views of them of one dimension, in the order of their memory; None where they do not lie alike, without gaps."""
    first = tensors[0]
    if any(tensor.layout != torch.strided or tensor.stride() != first.stride() for tensor in tensors):
        return None
    if first.is_contiguous():
        return [tensor.view(-1) for tensor in tensors]
    if first.ndim == 4 and first.is_contiguous(memory_format=torch.channels_last):
        return [tensor.permute(0, 2, 3, 1).view(-1) for tensor in tensors]
    return None


@dataclass(frozen=True)
class _Failure:
    error: BaseException


_Work = tuple[Callable[[], object], Callable[[], object] | None]


def _end_of(part: Callable[[], object], on_error: Callable[[], object] | None) -> object:
    """What it returns, or its failure."""
    try:
        with torch.no_grad():
            return part()
    except BaseException as error:
        if on_error is not None:
            on_error()
        return _Failure(error)


class _Thread(threading.Thread):
    """Waits for parts, does them without gradients on one thread, and hands over how they ended."""

    def __init__(self) -> None:
        super().__init__(daemon=True, name="netloom-crew")
        self.work: queue.SimpleQueue[_Work | None] = queue.SimpleQueue()
        self.done: queue.SimpleQueue[object] = queue.SimpleQueue()
        self.start()

    def run(self) -> None:
        keep_to_one_thread()
        while (work := self.work.get()) is not None:
            self.done.put(_end_of(*work))

    def close(self) -> None:
        self.work.put(None)
        self.join()
