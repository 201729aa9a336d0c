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
_SECONDS_PER_CANDIDATE = 0.3


def choose_plan(
    model: nn.Module,
    batch: Batch,
    heads: Sequence[Head],
    *,
    device: str,
    precision: str = "auto",
) -> ExecutionPlan:
    """The plan for training `model` on batches like `batch`.

    bfloat16 autocast is several times faster than float32 on processors with AMX and on recent GPUs, and several
    times slower on a processor with AVX2 only; so a single convolution is timed first, and only if bfloat16 wins
    there is the network itself timed both ways. Weights, statistics and generators are left untouched.
    """
    threads = training_threads()
    base = ExecutionPlan(device, threads, "float32", "as asked")
    if precision != "auto":
        chosen: Precision = "bfloat16" if precision == "bfloat16" else "float32"
        return ExecutionPlan(device, threads, chosen, "as asked")
    if device.startswith("mps"):
        return ExecutionPlan(device, threads, "float32", "float32 on MPS")
    ratio = convolution_speedup(device, threads)
    if ratio < _WORTHWHILE:
        return ExecutionPlan(device, threads, "float32", _reason("a convolution", ratio))
    with executing(base):
        ratio = _ratio(lambda plan: _step(model, batch, heads, plan), device, threads)
    chosen = "bfloat16" if ratio >= _WORTHWHILE else "float32"
    return ExecutionPlan(device, threads, chosen, _reason("this network's step", ratio))


def convolution_speedup(device: str, threads: int) -> float:
    """How many times faster a convolution, forward and backward, is in bfloat16 than in float32."""
    if device.startswith("mps"):
        return 1.0
    with executing(ExecutionPlan(device, threads, "float32")):
        return _ratio(lambda plan: _convolution(plan.torch_device, plan), device, threads)


def _reason(what: str, ratio: float) -> str:
    comparison = f"{ratio:.1f} times faster" if ratio >= 1 else f"{1 / ratio:.1f} times slower"
    return f"{what} is {comparison} in bfloat16 than in float32 here"


def _ratio(prepare: Callable[[ExecutionPlan], Callable[[], None]], device: str, threads: int) -> float:
    """Seconds in float32 over seconds in bfloat16, the fastest repetition of each, taken in turn."""
    runs = [prepare(ExecutionPlan(device, threads, p)) for p in ("float32", "bfloat16")]
    best = [float("inf"), float("inf")]
    spent = [0.0, 0.0]
    for run in runs:
        run()
    for _ in range(20):
        for i, run in enumerate(runs):
            if spent[i] < _SECONDS_PER_CANDIDATE:
                seconds = _timed(run, device)
                best[i], spent[i] = min(best[i], seconds), spent[i] + seconds
    return best[0] / best[1]


def _timed(run: Callable[[], None], device: str) -> float:
    start = time.perf_counter()
    run()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _convolution(device: torch.device, plan: ExecutionPlan) -> Callable[[], None]:
    layer = on_device(nn.Conv2d(32, 32, 3, padding=1), str(device))
    pixels = torch.ones(8, 32, 16, 16, device=device).to(memory_format=torch.channels_last)

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
