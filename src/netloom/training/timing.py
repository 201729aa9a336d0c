"""The time that short pieces of work take, one after the other."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch

_SECONDS_PER_CANDIDATE = 0.03
_REPETITIONS = 20
# Steps behind one another that are timed as one: what ran before (spinning threads, other memory) is little of that.
_SECONDS_PER_BLOCK = 0.05
_FEWEST_PER_BLOCK = 2


def fastest_seconds(runs: Sequence[Callable[[], object]], device: str, *, warmed_up: bool = False) -> list[float]:
    """The fastest repetition of each, in seconds, taken in turn; a first one does not count."""
    best = [float("inf")] * len(runs)
    spent = [0.0] * len(runs)
    for run in () if warmed_up else runs:
        run()
    for _ in range(_REPETITIONS):
        for i, run in enumerate(runs):
            if spent[i] < _SECONDS_PER_CANDIDATE:
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


def steady_seconds(run: Callable[[], object], device: str) -> float:
    """Seconds of one of many calls behind one another, as in a training: their mean, without that of the first one."""
    run()
    calls, start, elapsed = 0, time.perf_counter(), 0.0
    while calls < _FEWEST_PER_BLOCK or elapsed < _SECONDS_PER_BLOCK:
        run()
        calls, elapsed = calls + 1, time.perf_counter() - start
    if device.startswith("cuda"):
        torch.cuda.synchronize()
        elapsed = time.perf_counter() - start
    return elapsed / calls


def block_seconds(step_seconds: float) -> float:
    """What `steady_seconds` takes to time steps that take so long."""
    return step_seconds + max(_SECONDS_PER_BLOCK, _FEWEST_PER_BLOCK * step_seconds)
