"""Record where the time of some steps goes."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from netloom.files import write_atomically, writing
from netloom.training.callbacks.base import Callback
from netloom.training.state import TrainingState

# The profiler's own start-up falls into this step, which is thrown away.
_WARMUP_STEPS = 1
_OPERATORS = 40


class Profile(Callback):
    """Writes a trace of `steps` steps, for Perfetto, chrome://tracing or TensorBoard, and a table of the operators.

    The files are `steps-<first>-<last>.pt.trace.json` and `operators.txt`. What is computed does not change; the
    steps that are recorded take longer. A training of fewer than three steps is not recorded.

    Args:
        folder: For the files; made where it is missing.
        skip_steps: Steps that are not looked at, since the first ones fill caches; fewer in a short training.
        steps: Steps to record.
    """

    def __init__(self, folder: Path, *, skip_steps: int = 10, steps: int = 20) -> None:
        self.folder, self.skip_steps, self.steps = folder, skip_steps, steps
        self._profiler: torch.profiler.profile | None = None
        self._last_step = 0

    def on_fit_start(self, state: TrainingState) -> None:
        """Make the profiler ready."""
        left = state.epochs * state.steps_per_epoch - state.step
        skipped = min(self.skip_steps, left // 2)
        recorded = min(self.steps, left - skipped - _WARMUP_STEPS)
        if recorded < 1:
            return
        self._last_step = state.step + skipped + _WARMUP_STEPS + recorded
        first_step = self._last_step - recorded + 1
        # Its library reports its stages on stderr, in the middle of the progress bar.
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")
        self._profiler = torch.profiler.profile(
            schedule=torch.profiler.schedule(
                skip_first=skipped, wait=0, warmup=_WARMUP_STEPS, active=recorded, repeat=1
            ),
            on_trace_ready=lambda profiler: self._write(profiler, f"steps-{first_step}-{self._last_step}"),
        )
        self._profiler.start()

    def on_batch_end(self, state: TrainingState) -> None:
        """Tell the profiler that a step is over."""
        if self._profiler is not None:
            self._profiler.step()
            if state.step >= self._last_step:
                self.close()

    def close(self) -> None:
        """Stop the profiler; what it has recorded by then is written."""
        profiler, self._profiler = self._profiler, None
        if profiler is not None:
            profiler.stop()

    def _write(self, profiler: torch.profiler.profile, name: str) -> None:
        with writing(self.folder, "Free some space, or train without --profile."):
            self.folder.mkdir(parents=True, exist_ok=True)
            profiler.export_chrome_trace(str(self.folder / f"{name}.pt.trace.json"))
        order = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
        table = profiler.key_averages().table(sort_by=order, row_limit=_OPERATORS)
        write_atomically(self.folder / "operators.txt", table + "\n")
