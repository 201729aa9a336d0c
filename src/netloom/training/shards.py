"""A training step divided among threads: each takes a shard of the batch through the captured step.

Small networks leave most of a processor idle when each of their operations is divided among its cores. Here every
core takes some of the batch's pictures through the whole network instead; or, with a single shard, the captured step of
the whole batch is taken, whose operations torch divides. Gradients are added in the order of the
shards and batch normalization sees the whole batch, so the result depends on the number of shards, in its last bits,
but not on which thread was when where.
"""

from __future__ import annotations

import functools
import threading
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from netloom.data.batches import Batch
from netloom.kernels.calls import most_threads, usable
from netloom.models.heads import Head
from netloom.randomness import derive_seed
from netloom.runtime import ExecutionPlan
from netloom.training.capture import StepGraph, capture, convolution_shapes, flat_batch, split_parameters
from netloom.training.compiled_graph import CompiledGraph, compile_graph
from netloom.training.convolution import ConvolutionShape
from netloom.training.crew import FLAT, Crew, flat_views, pieces_of
from netloom.training.machine_code import Piece, original_of
from netloom.training.script import Segment, compile_segments
from netloom.training.step_rewrites import CaptureError, MissingCompilerError

# Gradients of so many numbers are added by all threads, where there is so much of them in all that it is worth waking
# these, which takes some tenths of a millisecond.
_LARGE_SUM = 2**16
_WORTH_SHARING = 2**20
_NUMBERS_AT_ONCE = 2**16
_WHOLE = torch.ones(())
# Of a shard: torch's batch normalization refuses to be traced with one vector, whose spread it could not tell.
_FEWEST_SAMPLES = 2


@dataclass(frozen=True)
class _Compiled:
    graph: StepGraph
    inputs: list[str]
    segments: list[Segment]
    results: list[str]
    constants: list[torch.Tensor]
    pieces: list[Piece]


class ShardedGradients:
    """Loss and gradients of a batch, shard by shard, on `plan.shards` threads; used as a context manager.

    Args:
        model: In training mode, on the CPU.
        heads: What the outputs mean.
        plan: Number of shards, precision.
        seed: Of dropout.
        label_smoothing: In [0, 1).

    Attributes:
        crew: The threads.
        drops: Whether dropout drops anything; without it, it only scales, so that steps can be compared with others
            that draw otherwise.
    """

    def __init__(
        self, model: nn.Module, heads: Sequence[Head], *, plan: ExecutionPlan, seed: int, label_smoothing: float
    ) -> None:
        self.model, self.heads, self.plan, self.seed = model, heads, plan, seed
        self.label_smoothing = label_smoothing
        self.drops = True
        self.crew = Crew(plan.shards)
        self.renew()

    def renew(self) -> None:
        """Capture the step anew, of other parameters than before: no gradient of a frozen one is in the graph."""
        self._trained, self._frozen = split_parameters(self.model)
        for parameter in self._frozen:  # no step will look at it, but optimizers would
            parameter.grad = None
        self._buffers = list(self.model.buffers())
        self._compiled: dict[tuple[object, ...], _Compiled | CaptureError] = {}

    def close(self) -> None:
        """End the threads, and leave gradients in memory of their own."""
        self.crew.close()
        for parameter in self._trained if self.plan.compiled else ():
            if parameter.grad is not None:
                parameter.grad = parameter.grad.clone()

    @torch.no_grad()
    def __call__(self, batch: Batch, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Loss and number of correct predictions of `batch`; the gradients are in the parameters' `grad`.

        Running statistics are updated. `step` is that of the optimizer: masks are a function of it and the seed.

        Raises:
            CaptureError: The model cannot be captured.
        """
        shards = self._divide(batch)
        compiled = [self._compile(shard, len(shards)) for shard in shards]
        masks = self._masks(compiled[0].graph, step, [len(shard) for shard in shards])
        shares = _shares(batch, shards)
        state = [p.detach() for p in (*self._trained, *self._frozen)] + self._buffers
        values = [
            dict(zip(c.inputs, [*state, *flat_batch(shard, self.heads), share, *own, *c.constants], strict=True))
            for c, shard, share, own in zip(compiled, shards, shares, masks, strict=True)
        ]
        for parameter in self._trained:  # the last step's: their memory is taken again
            parameter.grad = None
        results = self._run(compiled, values)
        return self._join(compiled[0].graph, results)

    def _run(
        self, compiled: Sequence[_Compiled], values: Sequence[dict[str, torch.Tensor]]
    ) -> list[list[torch.Tensor]]:
        """The results of each shard, after all of its segments, at whose ends the shards meet."""
        meeting = _Meeting(len(values))
        return self.crew.share(
            [
                functools.partial(_take_through, meeting, c.segments, own, c.results, number)
                for number, (c, own) in enumerate(zip(compiled, values, strict=True))
            ],
            on_error=meeting.abort,
        )

    def convolutions(self, batch: Batch) -> list[ConvolutionShape | None]:
        """Shapes of the convolutions of the first shard of `batch`, as `convolution_shapes` tells them.

        Raises:
            CaptureError: The model cannot be captured.
        """
        return convolution_shapes(
            self.model, self._divide(batch)[0], self.heads, plan=self.plan, label_smoothing=self.label_smoothing
        )

    def _divide(self, batch: Batch) -> list[Batch]:
        n = len(batch)
        n_shards = max(1, min(self.plan.shards, n // _FEWEST_SAMPLES))
        return _split(batch, [(n + i) // n_shards for i in range(n_shards)][::-1])

    def _compile(self, shard: Batch, n_shards: int) -> _Compiled:
        values = flat_batch(shard, self.heads)
        key = (n_shards, shard.weights is None, *((tuple(v.shape), v.dtype) for v in values))
        if key not in self._compiled:
            try:
                self._compiled[key] = self._compile_anew(shard, n_shards)
            except CaptureError as error:
                self._compiled[key] = error
        compiled = self._compiled[key]
        if isinstance(compiled, CaptureError):
            raise compiled
        return compiled

    def _compile_anew(self, shard: Batch, n_shards: int) -> _Compiled:
        graph = capture(
            self.model,
            shard,
            self.heads,
            plan=self.plan,
            label_smoothing=self.label_smoothing,
            n_shards=n_shards,
        )
        try:
            code = CompiledGraph(graph.graph, [], [])
            if self.plan.compiled and n_shards == 1:
                code = self._machine_code(graph)
            constants = [*graph.constants, *code.memory]
            return _Compiled(graph, *compile_segments(code.graph), constants, code.pieces)
        except CaptureError:
            raise
        except Exception as error:  # of any kind: what a graph may hold has no end
            raise CaptureError.by(error, "it has no script") from error

    def _machine_code(self, graph: StepGraph) -> CompiledGraph:
        """The step with machine code in place of what has some."""
        if not usable():
            raise MissingCompilerError("the plan takes machine code, which llvmlite cannot make here")
        return compile_graph(graph.graph, min(torch.get_num_threads(), most_threads()))

    def _masks(self, graph: StepGraph, step: int, sizes: Sequence[int]) -> list[list[torch.Tensor]]:
        """Masks by shard: those of the whole batch, divided, so that they do not depend on how it is."""
        whole = [
            mask.draw(derive_seed(self.seed, "mask", step, number), sum(sizes)) if self.drops else mask.full(sum(sizes))
            for number, mask in enumerate(graph.masks)
        ]
        divided = [torch.split(mask, list(sizes)) for mask in whole]
        return [[parts[i] for parts in divided] for i in range(len(sizes))]

    def _join(self, graph: StepGraph, results: list[list[torch.Tensor]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Add the shards' losses and gradients in their order, and update the running statistics."""
        is_product = [False, False, *graph.products]
        added = [i for i, product in enumerate(is_product) if not product]
        with_gradient = [p for p, has in zip(self._trained, graph.has_gradient, strict=True) if has]
        behind_statistics = len(is_product) + 2 * len(graph.norms)
        factors = []
        for number, i in enumerate(i for i, product in enumerate(is_product) if product):
            of_outputs, of_inputs = (
                torch.cat([result[place] for result in results]) for place in (i, behind_statistics + number)
            )
            factors.append((with_gradient[i - 2], of_outputs, of_inputs))
        loss, correct, *gradients = self._add_and_multiply([[result[i] for i in added] for result in results], factors)
        for i, gradient in zip(added[2:], gradients, strict=True):
            parameter = with_gradient[i - 2]
            parameter.grad = _laid_out_as(parameter, gradient)
        for place in graph.counters:
            self._buffers[place] += 1
        self._follow(graph, results[0][len(is_product) : behind_statistics])
        return loss, correct

    def _follow(self, graph: StepGraph, statistics: Sequence[torch.Tensor]) -> None:
        """Let running statistics follow those of the batch, mean and variance of each normalization."""
        by_momentum = defaultdict[float, list[tuple[torch.Tensor, torch.Tensor]]](list)
        pairs_of_norms = zip(statistics[::2], statistics[1::2], strict=True)
        for (of_mean, of_variance, momentum), (mean, variance) in zip(graph.norms, pairs_of_norms, strict=True):
            for place, value in ((of_mean, mean), (of_variance, variance)):
                if place >= 0:
                    buffer = self._buffers[place]
                    by_momentum[momentum].append((buffer, value.to(buffer.dtype)))
        for momentum, pairs in by_momentum.items():
            torch._foreach_lerp_([buffer for buffer, _ in pairs], [value for _, value in pairs], momentum)

    def _add_and_multiply(
        self,
        parts: Sequence[Sequence[torch.Tensor]],
        factors: Sequence[tuple[nn.Parameter, torch.Tensor, torch.Tensor]],
    ) -> Sequence[torch.Tensor]:
        """The sums of all shards' parts, in their order, in the first one's memory; and gradients of dense layers.

        Of what is large, each thread takes a piece. Weights `[K, D]` get for their gradient the product of `[n, K]`,
        turned, with `[n, D]`.
        """
        if len(parts) == 1:  # whose large dense layers have their gradients already
            return parts[0]
        flat = [flat_views(same) if same[0].numel() >= _LARGE_SUM else None for same in zip(*parts, strict=True)]
        large = [views for views in flat if views is not None]
        if not (factors or sum(len(views[0]) for views in large) >= _WORTH_SHARING):
            flat, large = [None] * len(flat), []
        small = [same for same, views in zip(zip(*parts, strict=True), flat, strict=True) if views is None]
        totals, *others = ([same[shard] for same in small] for shard in range(len(parts)))
        for other in others:
            torch._foreach_add_(totals, other)
        for weight, *_ in factors:
            weight.grad = torch.empty_like(weight, memory_format=torch.contiguous_format)
        n = self.crew.n_threads

        def do(number: int) -> None:
            for same in large:
                _add([tensor[pieces_of(len(tensor), n, unit=FLAT)[number]] for tensor in same])
            for weight, of_outputs, of_inputs in factors:
                assert weight.grad is not None
                rows = pieces_of(len(weight), n)[number]
                some = of_outputs[:, rows].t()
                if of_inputs.dtype == weight.dtype:
                    torch.mm(some, of_inputs, out=weight.grad[rows])
                else:  # of half precision
                    weight.grad[rows] = torch.mm(some, of_inputs)

        if large or factors:
            self.crew.share([functools.partial(do, number) for number in range(n)])
        return parts[0]


def _add(tensors: Sequence[torch.Tensor]) -> None:
    """Add to the first all others, in pieces that stay in the processor's cache."""
    for start in range(0, len(tensors[0]), _NUMBERS_AT_ONCE):
        total, *others = (tensor[start : start + _NUMBERS_AT_ONCE] for tensor in tensors)
        for other in others:
            total.add_(other)


def _laid_out_as(parameter: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """The gradient in the parameter's memory layout: fused optimizers take both as they lie in memory."""
    if gradient.stride() == parameter.stride():
        return gradient
    return torch.empty_strided(parameter.shape, parameter.stride(), dtype=gradient.dtype).copy_(gradient)


def _split(batch: Batch, sizes: list[int]) -> list[Batch]:
    inputs = {name: torch.split(value, sizes) for name, value in batch.inputs.items()}
    targets = {name: torch.split(value, sizes) for name, value in batch.targets.items()}
    weights = None if batch.weights is None else torch.split(batch.weights, sizes)
    return [
        Batch(
            {name: parts[i] for name, parts in inputs.items()},
            {name: parts[i] for name, parts in targets.items()},
            None if weights is None else weights[i],
        )
        for i in range(len(sizes))
    ]


def _shares(batch: Batch, shards: Sequence[Batch]) -> list[torch.Tensor]:
    """What part of the batch's mean loss each shard's mean is: its part of the samples, or of their weight."""
    if batch.weights is None and len(shards) == 1:
        return [_WHOLE]
    if batch.weights is None:
        return [torch.tensor(len(shard) / len(batch)) for shard in shards]
    total = batch.weights.sum().clamp_min(torch.finfo(torch.float32).tiny)
    return [shard.weights.sum() / total for shard in shards if shard.weights is not None]


class _Meeting:
    """Where the shards of one step exchange values."""

    def __init__(self, n_shards: int) -> None:
        self._barrier = threading.Barrier(n_shards)
        self._parts: list[torch.Tensor | None] = [None] * n_shards

    def exchange(self, number: int, part: torch.Tensor) -> torch.Tensor:
        """All shards' parts in their order, `[n_shards, *part.shape]`."""
        self._parts[number] = part
        self._barrier.wait()
        gathered = torch.stack([p for p in self._parts if p is not None])
        self._barrier.wait()  # nobody may write the next part before all have read this one
        return gathered

    def abort(self) -> None:
        """Let nobody wait for a shard that failed."""
        self._barrier.abort()


def _take_through(
    meeting: _Meeting, segments: list[Segment], values: dict[str, torch.Tensor], wanted: list[str], number: int
) -> list[torch.Tensor]:
    for segment in segments:
        try:
            outputs = segment.run(*[values[name] for name in segment.inputs])
        except RuntimeError as error:  # an interruption, too, where it came while machine code ran
            raise original_of(error) from None
        values.update(zip(segment.outputs, outputs, strict=True))
        if segment.gathered:
            values[segment.gathered] = meeting.exchange(number, outputs[-1])
        del outputs  # else they would live beside the next segment's
        for name in segment.done_with:
            values.pop(name, None)
    return [values[name] for name in wanted]
