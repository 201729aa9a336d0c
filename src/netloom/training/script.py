"""From a captured graph to TorchScript, whose interpreter runs without Python's lock, so that threads run at once.

Where shards meet (`gather_shards`) the graph is cut: the pieces between are functions of their own, and what is alive
at a cut goes from one to the next.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Graph, Node

_DTYPES = {
    torch.uint8: 0, torch.int8: 1, torch.int16: 2, torch.int32: 3, torch.int64: 4, torch.float16: 5,
    torch.float32: 6, torch.float64: 7, torch.bool: 11, torch.bfloat16: 15,
}  # fmt: skip
_MEMORY_FORMATS = {torch.contiguous_format: 0, torch.preserve_format: 1, torch.channels_last: 2}
_GATHER = torch.ops.netloom.gather_shards.default


@dataclass(frozen=True)
class Segment:
    """A piece of the step between two meetings of the shards.

    Attributes:
        run: Takes the values named `inputs` and returns those named `outputs`, the last of which is what the shards
            exchange at its end; the last segment exchanges nothing.
        inputs: Names of values.
        outputs: Names of values.
        gathered: Name of the value that the exchange gives; empty for the last segment.
        done_with: Names of values that nothing behind it needs.
    """

    run: Callable[..., list[torch.Tensor]]
    inputs: list[str]
    outputs: list[str]
    gathered: str
    done_with: list[str]


def compile_segments(graph: Graph) -> tuple[list[str], list[Segment], list[str]]:
    """Names of the graph's inputs and then of its constants, its segments, and names of its outputs.

    Raises:
        ValueError: The graph holds what TorchScript cannot.
    """
    nodes = list(graph.nodes)
    inputs = [_name(node) for op in ("placeholder", "get_attr") for node in nodes if node.op == op]
    pieces = _cut([node for node in nodes if node.op == "call_function"])
    (output,) = (node for node in nodes if node.op == "output")
    results = [_name(node) for node in output.args[0]]
    needed_later = set(results)
    segments: list[Segment] = []
    for piece, gather in reversed(pieces):
        made = {_name(node) for node in piece}
        used = {_name(argument) for node in piece for argument in node.all_input_nodes}
        sent = [_name(gather.all_input_nodes[0])] if gather is not None else []
        gathered = _name(gather) if gather is not None else ""
        wanted = needed_later - {gathered}
        outputs = [name for name in dict.fromkeys(map(_name, piece)) if name in wanted]
        taken = sorted((used | set(sent)) - made)
        run, given = _compile(piece, taken, outputs + sent), outputs + sent
        done_with = sorted(({*taken, *given}) - needed_later)
        segments.append(Segment(run, taken, given, gathered, done_with))
        needed_later = (wanted - made) | set(taken)
    return inputs, segments[::-1], results


def _cut(nodes: Iterable[Node]) -> list[tuple[list[Node], Node | None]]:
    pieces: list[tuple[list[Node], Node | None]] = []
    piece: list[Node] = []
    for node in nodes:
        if node.target is _GATHER:
            pieces.append((piece, node))
            piece = []
        else:
            piece.append(node)
    return [*pieces, (piece, None)]


def _compile(nodes: list[Node], inputs: list[str], outputs: list[str]) -> Callable[..., list[torch.Tensor]]:
    lines = [f"def run({', '.join(f'{name}: Tensor' for name in inputs)}) -> List[Tensor]:"]
    lines += [f"  {_name(node)} = {_expression(node)}" for node in nodes]
    lines += [f"  return [{', '.join(outputs)}]", ""]
    try:
        unit = torch.jit.CompilationUnit("\n".join(lines))
    except RuntimeError as error:
        raise ValueError(str(error)) from error
    return unit.run  # type: ignore[no-any-return]


def _name(node: Node) -> str:
    return f"v_{node.name}"


def _expression(node: Node) -> str:
    if node.target is operator.getitem:
        return f"{_argument(node.args[0])}[{node.args[1]}]"
    target = node.target
    if not isinstance(target, torch._ops.OpOverload):
        raise ValueError(f"{target} is no operation of torch")
    namespace, name = target._schema.name.split("::")
    if name == "detach":  # without autograd there is nothing to detach from
        return _argument(node.args[0])
    arguments = [
        _argument(value, str(declared.type))
        for value, declared in zip(node.args, target._schema.arguments, strict=False)
    ]
    types = {declared.name: str(declared.type) for declared in target._schema.arguments}
    arguments += [f"{key}={_argument(value, types[key])}" for key, value in node.kwargs.items() if key != "pin_memory"]
    return f"torch.ops.{namespace}.{name}({', '.join(arguments)})"


def _argument(value: Any, declared: str = "") -> str:
    if isinstance(value, Node):
        return _name(value)
    if isinstance(value, (list, tuple)):
        if not value and declared:
            return f"torch.jit.annotate({_list_type(declared)}, [])"
        return f"[{', '.join(_argument(item) for item in value)}]"
    if isinstance(value, torch.dtype):
        return str(_DTYPES[value])
    if isinstance(value, torch.memory_format):
        return str(_MEMORY_FORMATS[value])
    if isinstance(value, torch.device):
        return f'torch.device("{value}")'
    if isinstance(value, torch.layout):
        return "0"
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return f'float("{value}")'
    if value is None or isinstance(value, (bool, int, float, str)):
        return repr(value)
    raise ValueError(f"{value!r} has no TorchScript")


def _list_type(declared: str) -> str:
    """`List[int]` of a schema's `List[int]` or `Optional[List[int]]`."""
    return declared[len("Optional[") : -1] if declared.startswith("Optional[") else declared
