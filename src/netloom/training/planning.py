"""Choose the execution plan of a training by measuring on this machine."""

from __future__ import annotations

import contextlib
import copy
import functools
import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from netloom.data.batches import Batch
from netloom.errors import TrainingError
from netloom.inference import forward
from netloom.models.backbones import BackboneTrunk
from netloom.models.contract import ImageModel
from netloom.models.heads import Head
from netloom.runtime import ExecutionPlan, Precision, executing, on_device, training_threads
from netloom.training.capture import CaptureError, refuse_hooks
from netloom.training.convolution import ConvolutionShape, own_weight_gradient, unfolded_weight_gradient
from netloom.training.gradients import WholeBatchGradients, total_loss
from netloom.training.shards import ShardedGradients

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
# Capturing a step takes up to a second; a training shorter than this would lose more than it gains.
_SHORT_SECONDS = 15.0
# Relative difference of whole gradients that rounding explains, in the same operations and in others: those of the
# model's own code and those captured of it (batch normalization, ReLU and pooling) round elsewhere.
_TOLERANCE = {"float32": 1e-3, "bfloat16": 5e-2}
_SAME_FORMULA = {"float32": 2e-2, "bfloat16": 2e-1}
_SAME_STATISTICS = 5e-2


def choose_plan(
    model: nn.Module,
    batch: Batch,
    heads: Sequence[Head],
    *,
    device: str,
    precision: str = "auto",
    shards: int | str = "auto",
    label_smoothing: float = 0.0,
    n_steps: int = 0,
    threads: int | None = None,
) -> ExecutionPlan:
    """The plan for training `model` on batches like `batch`.

    On a CPU the network's step is timed with all threads, half of them and one, and then with its batch divided among
    all threads (see `shards.py`), if the training is long enough to make up for the time that preparing this takes.
    bfloat16 autocast is several times
    faster than float32 on processors with AMX and on recent GPUs, and several times slower on a processor with AVX2
    only; so a single convolution is timed first, and only if bfloat16 wins there is the network itself timed both
    ways. Weights, statistics and generators are left untouched.

    Args:
        model: On `device`, in the mode in which most steps find it: what is frozen then costs no gradients.
        batch: A typical one, on `device`.
        heads: What the outputs mean.
        device: A torch device name.
        precision: `float32`, `bfloat16`, or `auto` to measure.
        shards: Among how many threads to divide a step's batch, 0 for not at all, or `auto` to measure.
        label_smoothing: As in training.
        n_steps: Optimizer steps of the training.
        threads: How many of the CPU's are the training's, where that is decided already; None to measure.

    Raises:
        TrainingError: Shards are asked for, but the model cannot be divided.
    """
    plan = _plan_of_whole_batches(model, batch, heads, device=device, precision=precision, threads=threads)
    if device != "cpu" or shards == 0:
        return plan
    if shards != "auto":
        divided = replace(plan, shards=int(shards))
        with executing(divided), _ShardedStep(model, batch, heads, divided, label_smoothing) as step:
            step.check()
            return replace(divided, unfolded=step.faster_unfolded())
    divided = replace(plan, shards=min(threads or training_threads(), len(batch)))
    return _divided_if_faster(plan, divided, model, batch, heads, label_smoothing, n_steps)


def _divided_if_faster(
    plan: ExecutionPlan,
    divided: ExecutionPlan,
    model: nn.Module,
    batch: Batch,
    heads: Sequence[Head],
    label_smoothing: float,
    n_steps: int,
) -> ExecutionPlan:
    with executing(plan):
        whole = fastest_seconds([_step(model, batch, heads, plan)], "cpu")[0]
    if n_steps * whole < _SHORT_SECONDS:
        return plan
    try:
        with executing(divided), _ShardedStep(model, batch, heads, divided, label_smoothing) as step:
            # Of the registry's models only this house's are checked by tests.
            if not isinstance(model, ImageModel) or isinstance(model.trunk, BackboneTrunk):
                step.check()
            divided = replace(divided, unfolded=step.faster_unfolded())
        with executing(divided), _ShardedStep(model, batch, heads, divided, label_smoothing) as step:
            torch.set_num_threads(divided.threads_between_steps)
            seconds = fastest_seconds([step], "cpu")[0]
    except TrainingError as error:
        return replace(plan, reason=f"{plan.reason}; {error}")
    if whole < seconds * _WORTHWHILE:
        return plan
    return replace(
        divided, reason=f"{plan.reason}; a step is {whole / seconds:.1f} times faster in {divided.shards} shards"
    )


class _ShardedStep:
    """Sharded gradients of a copy of the model on one batch."""

    def __init__(
        self, model: nn.Module, batch: Batch, heads: Sequence[Head], plan: ExecutionPlan, label_smoothing: float
    ) -> None:
        self.batch, self.heads, self.plan, self.label_smoothing = batch, heads, plan, label_smoothing
        refuse_hooks(model)
        self.replica = copy.deepcopy(model)
        self.gradients = ShardedGradients(self.replica, heads, plan=plan, seed=0, label_smoothing=label_smoothing)

    def __enter__(self) -> _ShardedStep:
        return self

    def __exit__(self, *exception: object) -> None:
        self.gradients.close()

    def __call__(self) -> None:
        self.gradients(self.batch, 0)

    def faster_unfolded(self) -> tuple[int, ...]:
        """Convolutions whose weights' gradient comes clearly faster from unfolded pictures, on one thread."""
        torch.set_num_threads(1)
        shapes = self.gradients.convolutions(self.batch)
        return tuple(i for i, shape in enumerate(shapes) if shape is not None and _is_faster_unfolded(shape))

    def check(self) -> None:
        """Compare with the same step in one piece, captured and not: a model may do what no graph tells.

        Raises:
            TrainingError: The model cannot be captured, its own code goes another way to its gradients, or these
                depend on how a batch is divided.
        """
        plan, precision = replace(self.plan, shards=1), self.plan.precision
        options = {"plan": plan, "seed": 0, "label_smoothing": self.label_smoothing}
        replica, own = copy.deepcopy(self.replica), copy.deepcopy(self.replica)
        with contextlib.closing(ShardedGradients(replica, self.heads, **options)) as whole:  # type: ignore[arg-type]
            whole.drops = False
            whole(self.batch, 0)
            drawn = _drawn_elsewhere()
            with torch.enable_grad(), _DroppingNothing():  # type: ignore[no-untyped-call]
                WholeBatchGradients(own, self.heads, **options)(self.batch, 0)  # type: ignore[arg-type]
            if not (_gradients_agree(replica, own, _SAME_FORMULA[precision]) and _buffers_agree(replica, own)):
                raise CaptureError("its code treats gradients or buffers in a way that its operations do not tell")
            if drawn != _drawn_elsewhere():
                raise CaptureError("it draws random numbers that are not torch's")
            whole.drops = True
            whole(self.batch, 0)
        self()
        if not _gradients_agree(self.replica, replica, _TOLERANCE[precision]):
            raise TrainingError("its gradients depend on how a batch is divided")


def _drawn_elsewhere() -> tuple[object, ...]:
    """Where the global generators of Python and NumPy are."""
    state: Any = np.random.get_state(legacy=False)  # noqa: NPY002 - nothing is drawn from it
    return random.getstate(), state["state"]["key"].tobytes(), state["state"]["pos"]


class _DroppingNothing(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Random masks keep everything, so that dropout only scales."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.bernoulli_.float:
            return args[0].fill_(1)
        return func(*args, **(kwargs or {}))


def _gradients_agree(mine: nn.Module, other: nn.Module, tolerance: float) -> bool:
    pairs = [(a.grad, b.grad) for a, b in zip(mine.parameters(), other.parameters(), strict=True)]
    if any((a is None) != (b is None) for a, b in pairs):
        return False
    return _agree([(a, b) for a, b in pairs if a is not None and b is not None], tolerance)


def _buffers_agree(mine: nn.Module, other: nn.Module) -> bool:
    a, b = dict(mine.named_buffers()), dict(other.named_buffers())
    if {name: value.shape for name, value in a.items()} != {name: value.shape for name, value in b.items()}:
        return False
    pairs = [(a[name], value) for name, value in b.items()]
    counted = all(torch.equal(x, y) for x, y in pairs if not y.is_floating_point())
    return counted and _agree([(x, y) for x, y in pairs if y.is_floating_point()], _SAME_STATISTICS)


def _agree(pairs: Sequence[tuple[torch.Tensor, torch.Tensor]], tolerance: float) -> bool:
    """Whether tensors are the same but for rounding, taken together as one vector; infinities are equal or not."""
    difference = math.sqrt(sum(float(torch.where(a == b, 0.0, a - b).square().sum()) for a, b in pairs))
    size = math.sqrt(sum(float(torch.where(b.isinf(), 0.0, b).square().sum()) for _, b in pairs))
    return difference <= tolerance * size


@functools.lru_cache
def _is_faster_unfolded(shape: ConvolutionShape) -> bool:
    """Cached, since deep networks repeat their shapes."""
    example = shape.example()
    pictures, kernel, gradient = example
    own, unfolded = fastest_seconds(
        [
            lambda: own_weight_gradient(shape, example),
            lambda: unfolded_weight_gradient(gradient, pictures, kernel.shape[2:], shape.stride, shape.padding),
        ],
        "cpu",
    )
    return own > unfolded * _WORTHWHILE


def _plan_of_whole_batches(
    model: nn.Module, batch: Batch, heads: Sequence[Head], *, device: str, precision: str, threads: int | None
) -> ExecutionPlan:
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
    return ExecutionPlan(device, threads, chosen, _comparison(what, speedup))


def choose_feature_plan(
    model: nn.Module, batch: Batch, *, device: str, precision: str = "auto", threads: int | None = None
) -> ExecutionPlan:
    """The plan for a training that runs `model` over every picture once, and a small head over what that gives.

    Args:
        model: Gives the features, on `device`.
        batch: A typical one, on `device`.
        device: A torch device name.
        precision: `float32`, `bfloat16`, or `auto` to measure.
        threads: How many of the CPU's are the training's, where that is decided already.
    """
    threads = threads or training_threads()
    if precision != "auto":
        return ExecutionPlan(device, threads, "bfloat16" if precision == "bfloat16" else "float32", "as asked")
    if device.startswith("mps"):
        return ExecutionPlan(device, threads, "float32", "float32 on MPS")
    what, speedup = "a convolution", convolution_speedup(device, threads)
    if speedup >= _WORTHWHILE:
        plans = _both_precisions(device, threads)
        with executing(plans[0]):
            seconds = fastest_seconds([_pass(model, batch, plan) for plan in plans], device)
        what, speedup = "this network", seconds[0] / seconds[1]
    chosen: Precision = "bfloat16" if speedup >= _WORTHWHILE else "float32"
    return ExecutionPlan(device, threads, chosen, _comparison(what, speedup))


def _pass(model: nn.Module, batch: Batch, plan: ExecutionPlan) -> Callable[[], None]:
    def run() -> None:
        with torch.inference_mode(), plan.autocast():
            model.eval()(*batch.inputs.values())

    return run


def _comparison(what: str, speedup: float) -> str:
    comparison = f"{speedup:.1f} times faster" if speedup >= 1 else f"{1 / speedup:.1f} times slower"
    return f"{what} is {comparison} in bfloat16 than in float32 here"


def convolution_speedup(device: str, threads: int) -> float:
    """How many times faster a convolution, forward and backward, is in bfloat16 than in float32."""
    if device.startswith("mps"):
        return 1.0
    plans = _both_precisions(device, threads)
    with executing(plans[0]):
        seconds = fastest_seconds([_convolution(plan) for plan in plans], device)
    return seconds[0] / seconds[1]


def fastest_seconds(runs: Sequence[Callable[[], object]], device: str, *, warmed_up: bool = False) -> list[float]:
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


def _seconds(run: Callable[[], object], device: str) -> float:
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
    """Seconds of a training step on the CPU in float32 with each of the `candidates` for a number of threads.

    The model is in the mode in which most steps find it.
    """
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
    replica = copy.deepcopy(model)

    def run() -> None:
        replica.zero_grad(set_to_none=True)
        with plan.autocast():
            outputs = forward(replica, batch.inputs, [head.name for head in heads])
        torch.autograd.backward(total_loss(outputs, batch, heads, 0.0))

    return run
