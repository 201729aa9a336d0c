"""What machine code of a captured step reads and writes, and what the graph tells of its nodes."""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass, field

import torch
from torch.fx import Node

from netloom.kernels.calls import PartCall

aten = torch.ops.aten
_FLOAT_BYTES = 4
# What looks at another one's memory, and has none of its own.
VIEWS = (aten.detach.default, aten.t.default, aten.view.default, aten._unsafe_view.default)


@dataclass(frozen=True)
class Operand:
    """What a part reads or writes.

    Attributes:
        node: Whose memory it is; None for room that is for one lowered node only.
        n_numbers: Of such room.
        name: Tells rooms of one node apart.
        offset: Numbers from the beginning of the memory on.
    """

    node: Node | None
    n_numbers: int = 0
    name: str = ""
    offset: int = 0


@dataclass
class Lowered:
    """Nodes in machine code.

    Attributes:
        calls: In their order, each with its operands, None for what is not given.
        reads: Nodes whose memory they read, bases all.
        writes: Nodes whose memory they write, and how many numbers of float32 that takes.
    """

    calls: list[tuple[PartCall, list[Operand | None]]] = field(default_factory=list)
    reads: list[Node] = field(default_factory=list)
    writes: dict[Node, int] = field(default_factory=dict)


def base_of(node: Node) -> Node:
    """Whose memory a node is a view of."""
    while node.target in VIEWS:
        node = node.all_input_nodes[0]
    return node


def shape_of(node: Node) -> tuple[int, ...]:
    """Of its value."""
    return tuple(int(n) for n in node.meta["val"].shape)


def strides_of(node: Node) -> tuple[int, ...]:
    """Of its value."""
    return tuple(int(n) for n in node.meta["val"].stride())


def writing(lowered: Lowered, node: Node, *, bytes_of_number: int | None = None) -> Operand:
    """What writes a node's memory, with numbers of as many bytes as its type has, or of these."""
    size = node.meta["val"].element_size() if bytes_of_number is None else bytes_of_number
    lowered.writes[node] = -(-math.prod(shape_of(node)) * size // _FLOAT_BYTES)
    return Operand(node)


def is_float(*nodes: object) -> bool:
    """Whether all are tensors of float32."""
    return all(isinstance(n, Node) and n.meta["val"].dtype == torch.float32 for n in nodes)


def is_channels_last(node: Node) -> bool:
    """Whether it is `[B, C, H, W]` in channels-last memory without gaps."""
    value = node.meta["val"]
    return bool(value.ndim == 4 and value.is_contiguous(memory_format=torch.channels_last))


def is_dense(node: Node) -> bool:
    """Whether it lies in memory without gaps, in one order or the other."""
    value = node.meta["val"]
    return bool(value.is_contiguous() or is_channels_last(node))


def is_pictures(node: Node) -> bool:
    """Whether it is `[B, C, H, W]` in dense memory of either order."""
    return is_float(node) and node.meta["val"].ndim == 4 and is_dense(node)


def is_vector(node: object, n: int) -> bool:
    """Whether it is a vector of `n` numbers beside each other, or nothing."""
    if node is None:
        return True
    if not isinstance(node, Node) or not is_float(node):
        return False
    return shape_of(node) == (n,) and bool(node.meta["val"].is_contiguous())


def result_of(node: Node, number: int) -> Node | None:
    """One of several results, where somebody looks at it."""
    found = [user for user in node.users if user.target is operator.getitem and user.args[1] == number]
    return found[0] if len(found) == 1 else None


def relu_behind(node: Node) -> Node | None:
    """The ReLU that alone looks at a node."""
    users = list(node.users)
    return users[0] if len(users) == 1 and users[0].target == aten.relu.default else None
