"""Gradients of a batch replayed from a CUDA graph: one launch where Python would start kernel after kernel.

A step of a small network is hundreds of kernels of a few microseconds, and starting one takes as long. Recorded once
for each shape of a batch, forward pass, loss and backward pass are started together (CUDA C++ Programming Guide, "CUDA
Graphs"). Masks of dropout stay functions of (seed, step): a replay takes the state of torch's generator as it is then.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from netloom.data.batches import Batch
from netloom.errors import TrainingError
from netloom.models.heads import Head
from netloom.models.kept_state import has_hooks, held_tensors, keeps_state, replica_of
from netloom.runtime import ExecutionPlan
from netloom.training.agreement import ROUNDING, buffers_agree, gradients_agree
from netloom.training.gradients import WholeBatchGradients, seed_step

# Before it is recorded: what libraries prepare in their first calls must not be part of a graph.
_WARM_UPS = 3

Figures = tuple[torch.Tensor, torch.Tensor]


class RecordingError(TrainingError):
    """The model's step cannot be recorded; the message says why."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"its steps cannot be replayed from a CUDA graph: {reason}")


@dataclass(frozen=True)
class _Recording:
    """A step whose tensors stay where they are.

    Attributes:
        batch: Where the values of a batch go before a replay.
        replay: Computes all below anew.
        figures: Loss and number of correct predictions.
        gradients: Of each parameter, None where it has none.
    """

    batch: Batch
    replay: Callable[[], None]
    figures: Figures
    gradients: list[torch.Tensor | None]


class GraphedGradients(WholeBatchGradients):
    """The same, recorded and replayed; the model is on a CUDA device."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.renew()

    def __call__(self, batch: Batch, step: int) -> Figures:
        """As `Gradients`; what it gives is overwritten by the next call.

        Raises:
            RecordingError: The model's step cannot be recorded.
        """
        places = tuple(tensor.data_ptr() for tensor in self._state)
        if places != self._places:  # somebody gave the model other tensors
            self.renew()
        key = tuple((name, value.shape, value.stride(), value.dtype) for name, value in _named_tensors(batch))
        recording = self._recordings.get(key)
        if recording is None:
            recording = self._recordings[key] = self._record(batch)
        for (_, held), (_, value) in zip(_named_tensors(recording.batch), _named_tensors(batch), strict=True):
            held.copy_(value)
        seed_step(self.seed, step, self.plan.torch_device)
        recording.replay()
        for parameter, gradient in zip(self._parameters, recording.gradients, strict=True):
            parameter.grad = gradient
        return recording.figures

    def renew(self) -> None:
        """Record anew: other parameters train, or other modules are in training mode."""
        self._parameters = list(self.model.parameters())
        self._state = [*self._parameters, *self.model.buffers()]
        self._places = tuple(tensor.data_ptr() for tensor in self._state)
        self._recordings: dict[tuple[object, ...], _Recording] = {}
        self._recorder = Recorder(self.plan.torch_device)

    def close(self) -> None:
        """Give back the memory of the recordings."""
        self._recordings.clear()

    def _record(self, batch: Batch) -> _Recording:
        if has_hooks(self.model):
            raise RecordingError("it has hooks")
        held = _copied(batch)

        def compute() -> Figures:
            return self.compute(held)

        try:
            with _unchanged(self.model):
                self._recorder.warm_up(compute)
            figures, replay = self._recorder.record(compute)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # torch's, for whatever the model's code does that no graph can hold
            raise RecordingError((str(error).strip() or repr(error)).splitlines()[0]) from error
        return _Recording(held, replay, figures, [parameter.grad for parameter in self._parameters])


class Recorder:
    """Records what a function starts on a CUDA device; all recordings share their memory.

    They can, since what one leaves is used up before the next is replayed.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool: Any = None

    def warm_up(self, compute: Callable[[], object]) -> None:
        """Call it beside the stream of the training, the last time with an error where it waits for the device.

        Raises:
            RuntimeError: It does: no graph can hold that, and an attempt to record it would leave torch's generator in
                a state in which nothing can be drawn.
        """
        beside = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        beside.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.device(self._device), torch.cuda.stream(beside):
            for _ in range(_WARM_UPS - 1):
                compute()
            with _refusing_to_wait():
                compute()
        torch.cuda.current_stream(self._device).wait_stream(beside)

    def record(self, compute: Callable[[], Figures]) -> tuple[Figures, Callable[[], None]]:
        """What it gives, to be filled by every replay, and the replay."""
        graph = torch.cuda.CUDAGraph()
        # Other threads may go on with copies and allocations of theirs.
        with (
            torch.cuda.device(self._device),
            torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"),
        ):
            figures = compute()
        self._pool = graph.pool()
        return figures, graph.replay


@contextlib.contextmanager
def _refusing_to_wait() -> Iterator[None]:
    """Have torch raise an error where the program waits for the device."""
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Synchronization debug mode")
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode(before)


def check_replayed(
    model: nn.Module, batches: Sequence[Batch], heads: Sequence[Head], plan: ExecutionPlan, label_smoothing: float
) -> None:
    """Compare replayed steps on copies of the model with the same ones by autograd.

    Args:
        model: On the plan's device, in the mode in which most steps find it; left as it is.
        batches: One after the other, of one shape; two show what a replay does not repeat.
        heads: What the outputs mean.
        plan: With `graphed`.
        label_smoothing: As in training.

    Raises:
        RecordingError: The steps cannot be recorded, or are others when they are replayed.
    """
    replayed, own = copy.deepcopy(model), copy.deepcopy(model)
    options: dict[str, Any] = {"seed": 0, "label_smoothing": label_smoothing}
    whole = WholeBatchGradients(own, heads, plan=replace(plan, graphed=False), **options)
    held = held_tensors(own)
    before = replica_of(own)
    with contextlib.closing(GraphedGradients(replayed, heads, plan=plan, **options)) as graphed:
        for step, batch in enumerate(batches):
            whole(batch, step)
            graphed(batch, step)
    if keeps_state(before, own, is_traced=lambda value: isinstance(value, torch.Tensor) and id(value) not in held):
        raise RecordingError("it keeps something of one step for the next")
    if not (gradients_agree(replayed, own, ROUNDING[plan.precision]) and buffers_agree(replayed, own)):
        raise RecordingError("its gradients or buffers are others when they are replayed")


def _named_tensors(batch: Batch) -> Iterator[tuple[str, torch.Tensor]]:
    weights = {} if batch.weights is None else {"weights": batch.weights}
    return itertools.chain(batch.inputs.items(), batch.targets.items(), weights.items())


def _copied(batch: Batch) -> Batch:
    return Batch(
        {name: value.clone() for name, value in batch.inputs.items()},
        {name: value.clone() for name, value in batch.targets.items()},
        None if batch.weights is None else batch.weights.clone(),
    )


@contextlib.contextmanager
def _unchanged(model: nn.Module) -> Iterator[None]:
    """Put the buffers back to what they were."""
    before = [buffer.clone() for buffer in model.buffers()]
    yield
    with torch.no_grad():
        for buffer, value in zip(model.buffers(), before, strict=True):
            buffer.copy_(value)
