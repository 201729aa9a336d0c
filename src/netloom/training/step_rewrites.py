"""Rewrites of a captured step's graph, before and after its gradients are in it; see `capture.py`."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn
from torch.fx import Graph, GraphModule, Node

from netloom.errors import TrainingError
from netloom.kernels import parts
from netloom.kernels.calls import most_threads, numbers, usable
from netloom.randomness import words
from netloom.runtime import ConvolutionMethods
from netloom.training.batch_norm import sharded_batch_norm
from netloom.training.convolution import ConvolutionShape, convolution_by

aten = torch.ops.aten
# Numbers of a dense layer's gradient from which on it is computed once for all shards: waking the threads once more for
# it takes some tenths of a millisecond.
_LARGE_GRADIENT = 2**20
CHANGES_STATE = "it changes its own state in training"


class CaptureError(TrainingError):
    """The model's step cannot be captured; the message says why."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"its batches cannot be divided among threads: {reason}")

    @classmethod
    def by(cls, error: Exception, what: str) -> CaptureError:
        """Of an error of any kind, by its first line; `what` says what failed."""
        lines = str(error).strip().splitlines()
        return cls(f"{what}: {lines[0] if lines else repr(error)}")


class MissingCompilerError(CaptureError):
    """The plan takes machine code, which cannot be made here."""


@dataclass(frozen=True)
class Mask:
    """A random mask that the model multiplies with: 0, or `scale` with probability `keep`.

    Attributes:
        shape: Of the mask of one sample.
        keep: Probability that an element is not 0.
        scale: Value of the elements that are not 0.
        dtype: Of the mask.
    """

    shape: tuple[int, ...]
    keep: float
    scale: float
    dtype: torch.dtype

    def draw(self, seed: int, n_samples: int) -> torch.Tensor:
        """The masks of `n_samples` samples, `[n_samples, *shape]`, in channels-last memory: a function of `seed`.

        Sixteen random bits make an element, so that its probability is met within 1/131,072.
        """
        shape = (n_samples, *self.shape)
        n = math.prod(shape)
        level = round(self.keep * 2**16) - 2**15
        if level == 2**15:  # which is no integer of sixteen bits
            mask = torch.full((n,), self.scale, dtype=self.dtype)
        elif self.dtype == torch.float32 and usable():
            mask = numbers(parts.mask_numbers(n))
            parts.mask(n, seed, level, self.scale, min(torch.get_num_threads(), most_threads())).run(mask)
            mask = mask[:n]
        else:
            bits = torch.from_numpy(words(seed, (n + 3) // 4).view(np.int16)[:n])
            mask = torch.mul(bits < level, torch.tensor(self.scale, dtype=self.dtype))
        if len(shape) == 4:  # in the memory format of what it is multiplied with
            return mask.view(shape[0], shape[2], shape[3], shape[1]).permute(0, 3, 1, 2)
        return mask.view(shape)

    def full(self, n_samples: int) -> torch.Tensor:
        """The masks of `n_samples` samples that drop nothing."""
        return torch.full((n_samples, *self.shape), self.scale, dtype=self.dtype)


@dataclass
class RewrittenStep:
    """A rewritten forward pass, with what `StepGraph` tells of it."""

    module: GraphModule
    masks: list[Mask] = field(default_factory=list)
    counters: list[int] = field(default_factory=list)
    norms: list[tuple[int, int, float]] = field(default_factory=list)


def rewrite(
    traced: GraphModule, model: nn.Module, n_shards: int, *, n_samples: int, methods: Sequence[ConvolutionMethods]
) -> RewrittenStep:
    """Rewrite a traced forward pass in place, and tell what it takes and gives beside what it did.

    Args:
        traced: With its loss; as `StepGraph.graph` takes its values, without masks.
        model: That was traced.
        n_shards: Over how many shards batch normalization takes its statistics.
        n_samples: Of the shard.
        methods: How convolutions compute, in their order; those behind the last stay torch's.

    Raises:
        CaptureError: The model does what a graph cannot hold.
    """
    graph, result = traced.graph, RewrittenStep(traced)
    n_parameters = len(list(model.parameters()))
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    buffers = {node: i for i, node in enumerate(placeholders[n_parameters:][: len(list(model.buffers()))])}
    of_weights = set(graph.nodes) - _depending_on(placeholders[n_parameters + len(buffers) :])
    for convolution, of_it in zip(_convolutions(graph), methods, strict=False):
        shape = _shape_of(convolution)
        if of_it != ConvolutionMethods() and shape is not None and shape.takes(of_it):
            if {"winograd", "direct"} & set(of_it) and not usable():
                raise MissingCompilerError(
                    "the plan takes convolutions by machine code, which llvmlite cannot make here"
                )
            convolution.target, convolution.args = convolution_by, (*convolution.args[:5], list(of_it))
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        if node.target == aten.copy_.default and node.args[0] in buffers:
            result.counters.append(_counter(node, buffers))
        elif node.target == aten.native_batch_norm.default and node.args[5]:
            if node.args[0] not in of_weights:
                _rewrite_norm(node, buffers, n_shards, result)
            elif node.args[3] is not None:  # else it may stay: weights are the same in every shard
                raise CaptureError(CHANGES_STATE)
        elif node.target == aten.bernoulli.p:
            _rewrite_mask(node, n_samples, result)
        elif node.target == aten.max_pool2d_with_indices.default:
            _move_relu_behind(node)
        elif _draws(node):
            raise CaptureError(f"it draws random numbers by {node.target}")
    _check_state_is_read_only(graph, set(buffers))
    outputs = graph.output_node()
    norms = [node for node in graph.nodes if node.target is sharded_batch_norm]
    with graph.inserting_before(outputs):
        statistics = [graph.call_function(operator.getitem, (norm, i)) for norm in norms for i in (1, 2)]
    values: list[Node] = outputs.args[0]  # type: ignore[assignment]
    outputs.args = ([*values, *statistics],)
    graph.eliminate_dead_code()
    traced.recompile()
    return result


def _convolutions(graph: Graph) -> list[Node]:
    return [node for node in graph.nodes if node.target == aten.convolution.default]


def convolution_shapes_of(graph: Graph) -> list[ConvolutionShape | None]:
    """For each convolution of a traced forward pass its shape; None where it can only be torch's."""
    return [_shape_of(node) for node in _convolutions(graph)]


def _depending_on(sources: Sequence[Node]) -> set[Node]:
    """These nodes and all that are computed from them."""
    found = set(sources)
    for node in sources[0].graph.nodes if sources else ():
        if not found.isdisjoint(node.all_input_nodes):
            found.add(node)
    return found


def _draws(node: Node) -> bool:
    """Whether an operation draws random numbers: by its tag, but attention does so only for its dropout."""
    if torch.Tag.nondeterministic_seeded not in getattr(node.target, "tags", ()):
        return False
    if node.target == aten._scaled_dot_product_flash_attention_for_cpu.default:
        return bool(node.args[3:4]) and float(node.args[3]) > 0.0  # type: ignore[arg-type]
    return True


def _counter(node: Node, buffers: dict[Node, int]) -> int:
    """The buffer that is counted up by one; the node is taken out."""
    target, value = node.args
    assert isinstance(target, Node)
    if not (isinstance(value, Node) and value.target == aten.add.Tensor and value.args == (target, 1)):
        raise CaptureError(CHANGES_STATE)
    node.graph.erase_node(node)
    return buffers[target]


def _shape_of(node: Node) -> ConvolutionShape | None:
    pictures, kernel, _, stride, padding, dilation, transposed, _, groups = node.args
    of_pictures, of_kernel = pictures.meta["val"], kernel.meta["val"]  # type: ignore[union-attr]
    if transposed or groups != 1 or list(dilation) != [1, 1] or of_pictures.ndim != 4:  # type: ignore[arg-type]
        return None
    return ConvolutionShape(
        tuple(of_pictures.shape),
        tuple(of_kernel.shape),
        tuple(stride),  # type: ignore[arg-type]
        tuple(padding),  # type: ignore[arg-type]
        of_pictures.dtype,
    )


def _rewrite_norm(node: Node, buffers: dict[Node, int], n_shards: int, result: RewrittenStep) -> None:
    """Normalize over all shards; whoever runs the graph updates the running statistics."""
    x, weight, bias, mean, variance, _, momentum, eps = node.args
    if mean is None:
        result.norms.append((-1, -1, 0.0))
    elif mean in buffers and variance in buffers:
        result.norms.append((buffers[mean], buffers[variance], momentum))  # type: ignore[index, arg-type]
    else:
        raise CaptureError("the running statistics of a batch normalization are not its buffers")
    with node.graph.inserting_before(node):
        new = node.graph.call_function(sharded_batch_norm, (x, weight, bias, eps, n_shards))
    for user in list(node.users):
        if user.users and user.args[1] != 0:
            raise CaptureError("it uses the statistics of a batch normalization")
    node.replace_all_uses_with(new)
    node.graph.erase_node(node)


def _rewrite_mask(node: Node, n_samples: int, result: RewrittenStep) -> None:
    """Take the mask of a dropout as an input, with its scale where that follows at once."""
    value, keep = node.meta["val"], float(node.args[1])  # type: ignore[arg-type]
    shape = tuple(int(n) for n in value.shape)
    if not shape or shape[0] != n_samples:
        raise CaptureError("it draws random numbers that are not a sample's own")
    last, scale = node, 1.0
    users = list(node.users)
    if len(users) == 1 and users[0].target == aten.div.Scalar:
        last, scale = users[0], 1.0 / float(users[0].args[1])  # type: ignore[arg-type]
    last_placeholder = [n for n in node.graph.nodes if n.op == "placeholder"][-1]
    with node.graph.inserting_after(last_placeholder):
        mask = node.graph.placeholder(f"mask_{len(result.masks)}")
    last.replace_all_uses_with(mask)
    for done in (last, node):
        if not done.users and done in node.graph.nodes:
            node.graph.erase_node(done)
    result.masks.append(Mask(shape[1:], keep, scale, value.dtype))


def _move_relu_behind(pool: Node) -> None:
    """max(relu(x)) is relu(max(x)), and its gradient the same, on a quarter of the elements."""
    relu = pool.args[0]
    maxima = [user for user in pool.users if user.target is operator.getitem and user.args[1] == 0]
    alone = isinstance(relu, Node) and relu.target == aten.relu.default and len(relu.users) == 1
    if not alone or len(maxima) != 1 or any(user not in maxima and user.users for user in pool.users):
        return
    assert isinstance(relu, Node)
    (maximum,) = maxima
    pool.replace_input_with(relu, relu.args[0])  # type: ignore[arg-type]
    graph = pool.graph
    with graph.inserting_after(maximum):
        behind = graph.call_function(aten.relu.default, (maximum,))
    maximum.replace_all_uses_with(behind, delete_user_cb=lambda user: user is not behind)
    graph.erase_node(relu)


def _check_state_is_read_only(graph: Graph, buffers: set[Node]) -> None:
    placeholders = {node for node in graph.nodes if node.op == "placeholder"}
    for node in graph.nodes:
        schema = getattr(node.target, "_schema", None)
        if node.op != "call_function" or schema is None:
            continue
        for argument, value in zip(schema.arguments, node.args, strict=False):
            if argument.alias_info is not None and argument.alias_info.is_write and value in placeholders:
                raise CaptureError(CHANGES_STATE if value in buffers else "it changes its input")


def give_each_its_own(graph: Graph, n_gradients: int) -> None:
    """Copy gradients that lie in the memory of another one, or of an input: what follows changes them in place."""
    outputs = graph.output_node()
    values: list[Node] = list(outputs.args[0])  # type: ignore[arg-type]
    taken = {node for node in graph.nodes if node.op in ("placeholder", "get_attr")}
    for number in range(2, 2 + n_gradients):
        memory = _memory_of(values[number])
        if memory in taken:
            with graph.inserting_before(outputs):
                copied = graph.call_function(aten.clone.default, (values[number],))
            copied.meta["val"] = values[number].meta["val"]
            values[number] = copied
        taken.add(memory)
    outputs.args = ([*values],)


def _memory_of(node: Node) -> Node:
    """Whose memory a node's value lies in."""
    while node.op == "call_function":
        schema = getattr(node.target, "_schema", None)
        aliases = schema is not None and schema.returns and schema.returns[0].alias_info is not None
        if not aliases or not node.all_input_nodes:
            break
        node = node.all_input_nodes[0]
    return node


def leave_products(graph: Graph, n_gradients: int, n_shards: int) -> list[bool]:
    """Return the factors of large dense layers' gradients in place of the gradients; which of them.

    A shard has few rows, so that the sum of all shards' products moves several times the memory of one product over all
    rows, and each shard would need room for as many numbers as the layer has.
    """
    outputs = graph.output_node()
    values: list[Node] = list(outputs.args[0])  # type: ignore[arg-type]
    found, inputs = [False] * n_gradients, []
    for number in range(n_gradients if n_shards > 1 else 0):
        factors = _factors_of(values[2 + number])
        if factors is not None and _is_worth_leaving(*factors, n_shards):
            values[2 + number], of_inputs = factors
            inputs.append(of_inputs)
            found[number] = True
    outputs.args = ([*values, *inputs],)
    return found


def _factors_of(gradient: Node) -> tuple[Node, Node] | None:
    """Gradients of a dense layer's outputs and its inputs, a row for each, where their product is the gradient."""
    node, transposed = gradient, False
    while node.target in (aten.t.default, aten.detach.default) or _is_cast(node):
        transposed ^= node.target == aten.t.default
        node = node.all_input_nodes[0]
    if node.target != aten.mm.default:
        return None
    left, right = node.all_input_nodes if len(node.all_input_nodes) == 2 else (node, node)
    if left.target != aten.t.default:
        return None
    rows = left.all_input_nodes[0]
    return (right, rows) if transposed else (rows, right)


def _is_cast(node: Node) -> bool:
    return node.target == aten._to_copy.default and set(node.kwargs) == {"dtype"}


def _is_worth_leaving(of_outputs: Node, of_inputs: Node, n_shards: int) -> bool:
    """Whether the gradient is large, and far larger than what shards exchange for it."""
    (n, k), (_, d) = of_outputs.meta["val"].shape, of_inputs.meta["val"].shape
    return bool(k * d >= _LARGE_GRADIENT and n * n_shards * (k + d) <= k * d)
