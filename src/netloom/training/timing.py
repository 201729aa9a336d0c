"""The time that short pieces of work take, one after the other."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Sequence

import torch

_SECONDS_PER_CANDIDATE = 0.03
_REPETITIONS = 20
# Steps behind one another that are timed as one: what ran before (spinning threads, other memory) is little of that.
_SECONDS_PER_BLOCK = 0.05
_FEWEST_PER_BLOCK = 2


def fastest_seconds(
    runs: Sequence[Callable[[], object]],
    device: str,
    *,
    warmed_up: bool = False,
    seconds_for_each: float = _SECONDS_PER_CANDIDATE,
) -> list[float]:
    """The fastest repetition of each, in seconds, taken in turn; a first one does not count."""
    best = [float("inf")] * len(runs)
    spent = [0.0] * len(runs)
    for run in () if warmed_up else runs:
        run()
    for _ in range(_REPETITIONS):
        for i, run in enumerate(runs):
            if spent[i] < seconds_for_each:
                seconds = seconds_of(run, device)
                best[i], spent[i] = min(best[i], seconds), spent[i] + seconds
    return best


def seconds_of(run: Callable[[], object], device: str) -> float:
    """Seconds that one call takes, with what it left an accelerator to do."""
    start = time.perf_counter()
    run()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter() - start


def steady_seconds(run: Callable[[], object], device: str, *, lead: float = 0.0) -> float:
    """Seconds of one of many calls behind one another, as in a training: their median, without the first ones.

    Args:
        run: What is called.
        device: A torch device name. A GPU is not waited for after every call, so that there it is their mean.
        lead: Seconds of calls that do not count; at least one does not.
    """
    run()
    run_for(lead, run)
    ends = [time.perf_counter()]
    while len(ends) <= _FEWEST_PER_BLOCK or ends[-1] - ends[0] < _SECONDS_PER_BLOCK:
        run()
        ends.append(time.perf_counter())
    if device.startswith("cuda"):
        torch.cuda.synchronize()
        return (time.perf_counter() - ends[0]) / (len(ends) - 1)
    return statistics.median(end - start for start, end in itertools.pairwise(ends))


def run_for(seconds: float, run: Callable[[], object]) -> None:
    """Call again and again for so long; not at all for less than nothing."""
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        run()


def block_seconds(step_seconds: float, lead: float = 0.0) -> float:
    """What `steady_seconds` takes to time steps that take so long."""
    return max(lead, step_seconds) + max(_SECONDS_PER_BLOCK, _FEWEST_PER_BLOCK * step_seconds)
