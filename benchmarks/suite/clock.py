"""Times the epochs of a training from outside, whatever library runs it."""

from __future__ import annotations

import itertools
import statistics
import sys
import time
from typing import Any

_process = {"started": time.perf_counter(), "making_pictures": 0.0}


def process_started() -> None:
    """Note the start of the process; to be called before anything heavy is imported."""
    _process.update(started=time.perf_counter(), making_pictures=0.0)


def made_pictures(seconds: float) -> None:
    """Note time that belongs to the measurement and not to the library."""
    _process["making_pictures"] += seconds


def synchronize() -> None:
    """Wait for the GPU, where PyTorch uses one."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.synchronize()


def peak_memory_bytes() -> int | None:
    """Most resident memory of this process so far; None where the system does not tell."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def peak_gpu_memory_bytes() -> int | None:
    """Most memory of the GPU that PyTorch's tensors took so far; None where no PyTorch uses one."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return None
    peak: int = torch.cuda.max_memory_allocated()
    return peak


class EpochClock:
    """Notes when a library was called and when each of the epochs ended.

    Any later epoch's time is what one more epoch adds, including whatever the library does between two epochs.
    """

    def __init__(self) -> None:
        self.started = time.perf_counter()
        self.before = self.started - _process["started"] - _process["making_pictures"]
        self.ends: list[float] = []
        self.peak_memory_bytes: int | None = None
        self.peak_gpu_memory_bytes: int | None = None

    def epoch_ended(self) -> None:
        """An epoch, with all that belongs to it, is over."""
        synchronize()
        self.ends.append(time.perf_counter())
        self.peak_memory_bytes, self.peak_gpu_memory_bytes = peak_memory_bytes(), peak_gpu_memory_bytes()

    def figures(self, pictures: int) -> dict[str, Any]:
        """The figures of epochs of so many pictures.

        Returns:
            `first_seconds` from the call to the end of the first epoch, `start_seconds` to there from the start of the
            process, `epoch_seconds` of the later ones (the median), `pictures_per_second` by that,
            `peak_memory_bytes` and `peak_gpu_memory_bytes`.

        Raises:
            ValueError: There are fewer than two epochs.
        """
        if len(self.ends) < 2:
            raise ValueError(f"steady figures need two epochs or more, got {len(self.ends)}")
        epoch_seconds = statistics.median(b - a for a, b in itertools.pairwise(self.ends))
        first_seconds = self.ends[0] - self.started
        return {
            "first_seconds": first_seconds,
            "start_seconds": self.before + first_seconds,
            "epoch_seconds": epoch_seconds,
            "pictures_per_second": pictures / epoch_seconds,
            "peak_memory_bytes": self.peak_memory_bytes,
            "peak_gpu_memory_bytes": self.peak_gpu_memory_bytes,
        }
