"""A training step of any model as one graph of operations: traced once, rewritten, and joined with its gradients.

Three passes. The forward pass with its loss is traced to ATen operations (`make_fx`), with what models do in place made
functional. Rewrites (`step_rewrites.py`) then change that graph: random masks become inputs, so that they depend on
(seed, step) and not on how a batch is divided; batch normalization becomes one over all shards of the batch; ReLU in
front of max pooling moves behind it; convolutions get the kernel that the plan names. Finally the rewritten graph is
traced again together with its gradients.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.func import functional_call, functionalize
from torch.fx import Graph, GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

from netloom.compiler_import import import_compiler
from netloom.data.batches import Batch
from netloom.inference import forward
from netloom.models.heads import Head
from netloom.models.kept_state import has_hooks, keeps_state, replica_of
from netloom.runtime import ExecutionPlan, without_graph_sources
from netloom.training.convolution import ConvolutionShape
from netloom.training.gradients import total_loss
from netloom.training.step_rewrites import (
    CHANGES_STATE,
    CaptureError,
    Mask,
    RewrittenStep,
    convolution_shapes_of,
    give_each_its_own,
    leave_products,
    rewrite,
)

aten = torch.ops.aten


@dataclass
class StepGraph:
    """The captured step of one shard.

    `graph` takes, flat: trained parameters, other parameters, buffers, inputs, targets, weights if any, `share`, masks;
    and returns: loss, number of correct predictions, one gradient for each trained parameter that has one, mean and
    unbiased variance of each batch normalization, then the inputs of the `products`.

    Attributes:
        graph: Of ATen operations, without autograd.
        has_gradient: For each trained parameter, whether the loss depends on it.
        products: For each gradient, whether it is left to whoever has all shards: as the product of the gradients of a
            dense layer's outputs, `[n, K]`, which the graph returns in its place, and of that layer's inputs, `[n, D]`.
        masks: What to draw for the masks.
        counters: Buffers that count batches, by place.
        norms: For each batch normalization the places of its running mean and variance, and its momentum.
        constants: Tensors that the model's code makes of numbers, in the order of their `get_attr` nodes.
    """

    graph: Graph
    has_gradient: list[bool]
    products: list[bool]
    masks: list[Mask]
    counters: list[int]
    norms: list[tuple[int, int, float]]
    constants: list[torch.Tensor]


class _Step(nn.Module):
    """The model as a function that `functional_call` can give other parameters."""

    def __init__(self, model: nn.Module, names: list[str]) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return forward(self.model, inputs, self.names)


def capture(
    model: nn.Module,
    batch: Batch,
    heads: Sequence[Head],
    *,
    plan: ExecutionPlan,
    label_smoothing: float,
    n_shards: int,
) -> StepGraph:
    """Trace the training step of `model` on a shard like `batch`.

    Args:
        model: In training mode; it is left as it is, and so are generators.
        batch: A shard, with the shapes, types and memory format of those to come.
        heads: What the outputs mean.
        plan: Precision, and how convolutions compute.
        label_smoothing: In [0, 1).
        n_shards: Over how many shards batch normalization takes its statistics, and large dense layers their gradients.

    Raises:
        CaptureError: The model does what a graph cannot hold: it looks at values, draws random numbers other than
            dropout's, changes its own state, or has hooks. What it does to gradients by itself (`torch.no_grad`, a
            backward pass of its own) the graph does not hold either, and only a comparison tells.
    """
    with _tracing(model):
        traced = _trace_forward(model, batch, heads, plan, label_smoothing)
        rewritten = rewrite(traced, model, n_shards, n_samples=len(batch), methods=plan.convolutions)
        return _trace_gradients(rewritten, model, batch, heads, n_shards)


def convolution_shapes(
    model: nn.Module, batch: Batch, heads: Sequence[Head], *, plan: ExecutionPlan, label_smoothing: float
) -> list[ConvolutionShape | None]:
    """For each convolution of a step its shape; None where it is none that `convolution_by` can take.

    Raises:
        CaptureError: As `capture`, as far as the forward pass tells.
    """
    with _tracing(model):
        return convolution_shapes_of(_trace_forward(model, batch, heads, plan, label_smoothing).graph)


@contextlib.contextmanager
def _tracing(model: nn.Module) -> Iterator[None]:
    """Leave the generators as they are, and raise what goes wrong as `CaptureError`."""
    refuse_hooks(model)
    import_compiler()  # `make_fx` would, with less haste
    try:
        with torch.random.fork_rng(devices=[]), without_graph_sources():
            yield
    except CaptureError:
        raise
    except Exception as error:  # whatever a user's model raises when its tensors are traced, or its graph is rewritten
        raise CaptureError.by(error, "tracing it failed") from error


def refuse_hooks(model: nn.Module) -> None:
    """Ask the model itself: a copy has none of the hooks of its parameters.

    Raises:
        CaptureError: It has hooks.
    """
    if has_hooks(model):
        raise CaptureError("it has hooks")


def split_parameters(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Trained parameters and the others, in the order of the model."""
    parameters = list(model.parameters())
    return [p for p in parameters if p.requires_grad], [p for p in parameters if not p.requires_grad]


def flat_batch(batch: Batch, heads: Sequence[Head]) -> list[torch.Tensor]:
    """Inputs, targets in the order of the heads, and weights if any."""
    weights = [] if batch.weights is None else [batch.weights]
    return [*batch.inputs.values(), *(batch.targets[head.name] for head in heads), *weights]


def _trace_forward(
    model: nn.Module, batch: Batch, heads: Sequence[Head], plan: ExecutionPlan, label_smoothing: float
) -> GraphModule:
    replica = replica_of(model)  # what its code keeps for the next call are no tensors but traces of such
    step = _Step(replica, [head.name for head in heads])
    trained, frozen = split_parameters(model)
    names = {id(p): f"model.{name}" for name, p in model.named_parameters()}
    order = [names[id(p)] for p in (*trained, *frozen)] + [f"model.{name}" for name, _ in model.named_buffers()]
    input_names, has_weights = list(batch.inputs), batch.weights is not None

    def run(*values: torch.Tensor) -> list[torch.Tensor]:
        state, rest = dict(zip(order, values[: len(order)], strict=True)), list(values[len(order) :])
        inputs = {name: rest.pop(0) for name in input_names}
        targets = {head.name: rest.pop(0) for head in heads}
        shard = Batch(inputs, targets, rest.pop(0) if has_weights else None)
        given = dict(state)
        with plan.autocast():
            outputs = functional_call(step, state, (inputs,))
        if any(state[name] is not given[name] for name in order):  # buffers that were assigned anew
            raise CaptureError(CHANGES_STATE)
        loss = total_loss(outputs, shard, heads, label_smoothing)
        (share,) = rest
        first = heads[0]
        return [loss * share, first.correct(outputs[first.name].detach(), shard.targets[first.name])]

    values = [v.detach().clone() for v in (*trained, *frozen, *model.buffers())]
    traced = make_fx(functionalize(run, remove="mutations"), tracing_mode="fake")(
        *values, *flat_batch(batch, heads), torch.ones(())
    )
    if keeps_state(model, replica, is_traced=_is_traced):
        raise CaptureError("it keeps something of one step for the next")
    return traced


def _is_traced(value: object) -> bool:
    return isinstance(value, torch.Tensor) and (isinstance(value, FakeTensor) or torch._is_functional_tensor(value))


def _trace_gradients(
    rewritten: RewrittenStep, model: nn.Module, batch: Batch, heads: Sequence[Head], n_shards: int
) -> StepGraph:
    trained, frozen = split_parameters(model)
    has_gradient: list[bool] = []

    def run(*values: torch.Tensor) -> list[torch.Tensor]:
        parameters = list(values[: len(trained)])
        loss, correct, *statistics = rewritten.module(*values)
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        has_gradient[:] = [gradient is not None for gradient in gradients]
        return [loss.detach(), correct, *(g for g in gradients if g is not None), *statistics]

    values = [p.detach().clone().requires_grad_() for p in trained]
    others = [v.detach().clone() for v in (*frozen, *model.buffers())]
    masks = [mask.draw(0, len(batch)) for mask in rewritten.masks]
    with torch.enable_grad():
        joint = make_fx(run, tracing_mode="fake")(*values, *others, *flat_batch(batch, heads), torch.ones(()), *masks)
    give_each_its_own(joint.graph, sum(has_gradient))
    products = leave_products(joint.graph, sum(has_gradient), n_shards)
    joint.graph.eliminate_dead_code()
    _refuse_lost_statistics(joint.graph, len(rewritten.norms) if n_shards == 1 else 0)
    constants = [getattr(joint, str(node.target)) for node in joint.graph.nodes if node.op == "get_attr"]
    return StepGraph(
        joint.graph,
        has_gradient,
        products,
        rewritten.masks,
        rewritten.counters,
        rewritten.norms,
        constants,
    )


def _refuse_lost_statistics(graph: Graph, n_norms: int) -> None:
    """A whole batch's normalization fills in its statistics, of which torch does not tell: unread, it would be dropped.

    Raises:
        CaptureError: Fewer than so many are left.
    """
    found = [node for node in graph.nodes if node.target == aten.native_batch_norm.default and node.args[5]]
    if len(found) < n_norms:
        raise CaptureError("it normalizes what its loss does not depend on")
