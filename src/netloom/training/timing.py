"""The time that short pieces of work take, one after the other."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch

_SECONDS_PER_CANDIDATE = 0.03
_REPETITIONS = 20


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
