"""A step divided among threads beside the same in one piece: whether they are one step, and how to make it faster."""

from __future__ import annotations

import contextlib
import copy
import functools
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from netloom.data.batches import Batch
from netloom.errors import TrainingError
from netloom.kernels.calls import usable
from netloom.memory import free_memory_bytes
from netloom.models.heads import Head
from netloom.runtime import ConvolutionMethods, ExecutionPlan
from netloom.training.agreement import ROUNDING, SAME_FORMULA, buffers_agree, gradients_agree
from netloom.training.capture import refuse_hooks
from netloom.training.convolution import ConvolutionShape, input_gradient_by, output_by, weight_gradient_by
from netloom.training.gradients import WholeBatchGradients
from netloom.training.shards import ShardedGradients
from netloom.training.step_rewrites import CaptureError
from netloom.training.timing import fastest_seconds

# What unfolded pictures of all shards may take of the free memory.
_SHARE_OF_FREE_MEMORY = 0.25
# Another kernel for a convolution must be clearly faster to be taken: below that, measurements are noise.
_WORTHWHILE = 1.1
# Within compiled steps torch's must be so many times faster than ours to be taken: it interrupts them.
_WORTHWHILE_COMPILED = 2.5
# Each kernel is timed for so long: of a shape of convolution there are up to seven, and they differ by far more than
# the noise of a few repetitions.
_SECONDS_FOR_EACH_KERNEL = 0.01


class DividedStep:
    """Sharded gradients of a copy of the model on one batch; used as a context manager.

    Args:
        model: In the mode in which most steps find it, on the CPU.
        batch: A typical one.
        heads: What the outputs mean.
        plan: With shards.
        label_smoothing: As in training.

    Raises:
        CaptureError: The model has hooks.
    """

    def __init__(
        self, model: nn.Module, batch: Batch, heads: Sequence[Head], plan: ExecutionPlan, label_smoothing: float
    ) -> None:
        self.batch, self.heads, self.plan, self.label_smoothing = batch, heads, plan, label_smoothing
        refuse_hooks(model)
        self.replica = copy.deepcopy(model)
        self.gradients = ShardedGradients(self.replica, heads, plan=plan, seed=0, label_smoothing=label_smoothing)

    def __enter__(self) -> DividedStep:
        return self

    def __exit__(self, *exception: object) -> None:
        self.gradients.close()

    def faster_convolutions(self) -> tuple[ConvolutionMethods, ...]:
        """How each convolution computes clearly faster than by torch's own kernels, on the plan's threads.

        Pictures are not unfolded where that would take too much of the memory.

        Returns:
            Nothing, where all are fastest as they are.

        Raises:
            CaptureError: The model cannot be captured.
        """
        n_threads = self.plan.threads_between_steps
        torch.set_num_threads(n_threads)
        shapes = self.gradients.convolutions(self.batch)
        room = _SHARE_OF_FREE_MEMORY * free_memory_bytes() / max(1, self.plan.shards)
        methods = tuple(
            ConvolutionMethods()
            if shape is None
            else _fastest_methods(shape, n_threads, shape.unfolded_bytes <= room, self.plan.compiled)
            for shape in shapes
        )
        return methods if set(methods) - {ConvolutionMethods()} else ()

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
            if not (gradients_agree(replica, own, SAME_FORMULA[precision]) and buffers_agree(replica, own)):
                raise CaptureError("its code treats gradients or buffers in a way that its operations do not tell")
            if drawn != _drawn_elsewhere():
                raise CaptureError("it draws random numbers that are not torch's")
            whole.drops = True
            whole(self.batch, 0)
        self.gradients(self.batch, 0)
        if not gradients_agree(self.replica, replica, ROUNDING[precision]):
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


@functools.lru_cache
def _fastest_methods(
    shape: ConvolutionShape, n_threads: int, may_unfold: bool, is_compiled: bool
) -> ConvolutionMethods:
    """Those with so many threads, which torch has now; cached, since deep networks repeat their shapes.

    Where steps are compiled those in machine code of ours save more than their own time: they need no tensors.
    """
    pictures, kernel, gradient = shape.example()
    suited = {"winograd": shape.suits_winograd, "direct": shape.suits_direct}
    own = [method for method, suits in suited.items() if suits and usable()]
    given = (gradient, pictures, kernel, shape.stride, shape.padding)
    least = 1 / _WORTHWHILE_COMPILED if is_compiled else _WORTHWHILE
    for_weights = [*own, *["unfolded"] * (may_unfold and not is_compiled)]
    found = [
        _fastest(lambda method: output_by(method, pictures, kernel, None, shape.stride, shape.padding), own, least),
        _fastest(lambda method: input_gradient_by(method, *given), own, least),
        _fastest(lambda method: weight_gradient_by(method, *given), for_weights, least),
    ]
    return ConvolutionMethods(*found)  # type: ignore[arg-type]


def _fastest(compute: Callable[[str], object], others: Sequence[str], least: float) -> str:
    """The fastest of these methods, or torch's where none is so many times faster."""
    if not others:
        return "torch"
    runs = [functools.partial(compute, method) for method in ("torch", *others)]
    own, *seconds = fastest_seconds(runs, "cpu", seconds_for_each=_SECONDS_FOR_EACH_KERNEL)
    fastest = min(range(len(others)), key=seconds.__getitem__)
    return others[fastest] if own > seconds[fastest] * least else "torch"
