"""Choose the execution plan of a training by measuring on this machine."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence

import torch
from torch import nn

from netloom.data.batches import Batch
from netloom.inference import forward
from netloom.models.heads import Head
from netloom.runtime import ExecutionPlan, Precision, executing, on_device, training_threads
from netloom.training.step import total_loss

# A precision must be clearly faster to be taken: below that, measurements of small steps are noise, and float32 is
# the one that repeats everywhere.
_WORTHWHILE = 1.1
# Fewer threads are taken if they are nearly as fast: they leave the machine to others, and on a busy one a step that
# waits for all cores takes a hundred times as long (measured with two busy cores of four: 2.8 s against 50 ms).
_NEARLY_AS_FAST = 1.05
# A first step this many times slower than the best so far is not repeated: other work has the cores.
_HOPELESS = 5.0
_SECONDS_PER_CANDIDATE = 0.03
_REPETITIONS = 20


def choose_plan(
    model: nn.Module,
    batch: Batch,
    heads: Sequence[Head],
    *,
    device: str,
    precision: str = "auto",
    threads: int | None = None,
) -> ExecutionPlan:
    """The plan for training `model` on batches like `batch`.

    On a CPU the network's step is timed with all threads, half of them and one. bfloat16 autocast is several times
    faster than float32 on processors with AMX and on recent GPUs, and several times slower on a processor with AVX2
    only; so a single convolution is timed first, and only if bfloat16 wins there is the network itself timed both
    ways. Weights, statistics and generators are left untouched.

    Args:
        model: On `device`.
        batch: A typical one, on `device`.
        heads: What the outputs mean.
        device: A torch device name.
        precision: `float32`, `bfloat16`, or `auto` to measure.
        threads: Where that is decided already; None to measure.
    """
    if threads is None:
        threads = _fastest_threads(model, batch, heads) if device == "cpu" else training_threads()
    chosen: Precision = "bfloat16" if precision == "bfloat16" else "float32"
    if precision != "auto":
        return ExecutionPlan(device, threads, chosen, "as asked")
    if device.startswith("mps"):
        return ExecutionPlan(device, threads, "float32", "float32 on MPS")
    what, speedup = "a convolution", convolution_speedup(device, threads)
    if speedup >= _WORTHWHILE:
        plans = _both_precisions(device, threads)
        with executing(plans[0]):
            seconds = fastest_seconds([_step(model, batch, heads, plan) for plan in plans], device)
        what, speedup = "this network's step", seconds[0] / seconds[1]
    chosen = "bfloat16" if speedup >= _WORTHWHILE else "float32"
    comparison = f"{speedup:.1f} times faster" if speedup >= 1 else f"{1 / speedup:.1f} times slower"
    return ExecutionPlan(device, threads, chosen, f"{what} is {comparison} in bfloat16 than in float32 here")


def convolution_speedup(device: str, threads: int) -> float:
    """How many times faster a convolution, forward and backward, is in bfloat16 than in float32."""
    if device.startswith("mps"):
        return 1.0
    plans = _both_precisions(device, threads)
    with executing(plans[0]):
        seconds = fastest_seconds([_convolution(plan) for plan in plans], device)
    return seconds[0] / seconds[1]


def fastest_seconds(runs: Sequence[Callable[[], None]], device: str, *, warmed_up: bool = False) -> list[float]:
    """The fastest repetition of each, in seconds, taken in turn; a first one does not count."""
    best = [float("inf")] * len(runs)
    spent = [0.0] * len(runs)
    for run in () if warmed_up else runs:
        run()
    for _ in range(_REPETITIONS):
        for i, run in enumerate(runs):
            if spent[i] < _SECONDS_PER_CANDIDATE:
                seconds = _seconds(run, device)
                best[i], spent[i] = min(best[i], seconds), spent[i] + seconds
    return best


def _seconds(run: Callable[[], None], device: str) -> float:
    start = time.perf_counter()
    run()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _fastest_threads(model: nn.Module, batch: Batch, heads: Sequence[Head]) -> int:
    most = training_threads()
    candidates = sorted({1, max(1, most // 2), most})
    if len(candidates) == 1:
        return most
    seconds = seconds_by_threads(model, batch, heads, candidates)
    return next(n for n in candidates if seconds[n] <= min(seconds.values()) * _NEARLY_AS_FAST)


def seconds_by_threads(
    model: nn.Module, batch: Batch, heads: Sequence[Head], candidates: Sequence[int]
) -> dict[int, float]:
    """Seconds of a training step on the CPU in float32 with each of the `candidates` for a number of threads."""
    seconds: dict[int, float] = {}
    for threads in candidates:
        plan = ExecutionPlan("cpu", threads, "float32")
        with executing(plan):
            step = _step(model, batch, heads, plan)
            first = _seconds(step, "cpu")
            hopeless = bool(seconds) and first > _HOPELESS * min(seconds.values())
            seconds[threads] = first if hopeless else fastest_seconds([step], "cpu", warmed_up=True)[0]
    return seconds


def _both_precisions(device: str, threads: int) -> list[ExecutionPlan]:
    return [ExecutionPlan(device, threads, "float32"), ExecutionPlan(device, threads, "bfloat16")]


def _convolution(plan: ExecutionPlan) -> Callable[[], None]:
    layer = on_device(nn.Conv2d(32, 32, 3, padding=1), plan.device)
    pixels = torch.ones(8, 32, 16, 16, device=plan.device).to(memory_format=torch.channels_last)

    def run() -> None:
        with plan.autocast():
            result = layer(pixels)
        torch.autograd.backward(result.float().sum())

    return run


def _step(model: nn.Module, batch: Batch, heads: Sequence[Head], plan: ExecutionPlan) -> Callable[[], None]:
    replica = copy.deepcopy(model).train()

    def run() -> None:
        replica.zero_grad(set_to_none=True)
        with plan.autocast():
            outputs = forward(replica, batch.inputs, [head.name for head in heads])
        torch.autograd.backward(total_loss(outputs, batch, heads, 0.0))

    return run
