"""A captured step whose operations are machine code of ours wherever there is some; the others stay torch's.

What has machine code is run in pieces as long as possible, each by one call, its threads going from one operation to
the next by themselves. Values that only such pieces look at are no tensors, but places in a memory that all pieces of
the step have together, and that the next step takes again.
"""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch.fx import Graph, Node

from netloom.kernels.calls import PartCall, numbers
from netloom.training.arena import Lifetime, places
from netloom.training.lowering import lower
from netloom.training.machine_code import Address, Piece, View
from netloom.training.operands import Lowered, Operand, base_of, shape_of, strides_of

# With fewer lowered operations there is nothing to gain.
_FEWEST_LOWERED = 3


@dataclass(frozen=True)
class CompiledGraph:
    """A graph and what its calls need.

    Attributes:
        graph: To be run as TorchScript. Behind its other constants it takes `memory`, if it calls anything.
        pieces: That it calls by their numbers.
        memory: Of the values that pieces have for each other and for torch.
    """

    graph: Graph
    pieces: list[Piece]
    memory: list[torch.Tensor]


def compile_graph(graph: Graph, n_threads: int) -> CompiledGraph:
    """Replace what has machine code.

    Args:
        graph: A step with its gradients, as `make_fx` traces it.
        n_threads: That run the pieces.
    """
    lowered = lower(graph, n_threads)
    if len(lowered) < _FEWEST_LOWERED:
        return CompiledGraph(graph, [], [])
    return _Compilation(graph, lowered, n_threads).result()


class _Compilation:
    """One call of `compile_graph`."""

    def __init__(self, graph: Graph, lowered: dict[Node, Lowered], n_threads: int) -> None:
        self._graph, self._lowered, self._n_threads = graph, lowered, n_threads
        self._writer = {written: node for node, unit in lowered.items() for written in unit.writes}
        self._before = self._kept_in_order()
        self._order = self._schedule()
        self._for_torch = self._seen_by_torch()
        self._places, self._memory = self._placed()
        self._new, self._env = Graph(), dict[Node, Node]()
        self._pieces: list[Piece] = []

    def result(self) -> CompiledGraph:
        """The graph in its new order."""
        for node in self._graph.nodes:
            if node.op in ("placeholder", "get_attr"):
                self._env[node] = self._new.node_copy(node)
        self._of_memory = self._new.create_node("get_attr", "machine_code_memory")
        run: list[Node] = []
        for node in self._order:
            if node in self._lowered:
                run.append(node)
                continue
            self._add_piece(run)
            run = []
            self._env[node] = self._new.node_copy(node, self._get)
        self._add_piece(run)
        (output,) = (node for node in self._graph.nodes if node.op == "output")
        self._new.output([self._get(node) for node in output.args[0]])
        return CompiledGraph(self._new, self._pieces, [self._memory])

    def _get(self, node: Node) -> Node:
        """A node of the new graph; views are made where they are looked at."""
        if node not in self._env:
            self._env[node] = self._new.node_copy(node, self._get)
        return self._env[node]

    def _makers(self, node: Node) -> list[Node]:
        """Nodes that make what a node reads."""
        reads = self._lowered[node].reads if node in self._lowered else map(base_of, node.all_input_nodes)
        makers = (self._writer.get(base, base) for base in reads)
        return [maker for maker in makers if maker.op == "call_function"]

    def _kept_in_order(self) -> dict[Node, list[Node]]:
        """For each node those before it that no reader's memory tells of: what changes a value in place, or is changed.

        Whose operations have such effects are torch's, and no lowered node looks at memory that only these know but
        what reads values of theirs.
        """
        skipped = {node for unit in self._lowered.values() for node in unit.writes}
        found: dict[Node, list[Node]] = {}
        since: list[Node] = []
        changing: list[Node] = []
        for node in self._graph.nodes:
            if node.op != "call_function" or (node in skipped and node not in self._lowered) or _is_view(node):
                continue
            if node in self._lowered and all(maker in self._lowered for maker in self._makers(node)):
                continue
            if _changes_in_place(node):
                found[node] = [*since, *changing]
                since, changing = [], [node]
            else:
                found[node] = list(changing)
                since.append(node)
        return found

    def _needs(self, node: Node) -> list[Node]:
        """What must have run before a scheduled node."""
        return [*self._makers(node), *(other for other in self._before.get(node, ()) if other in self._needed)]

    def _schedule(self) -> list[Node]:
        """Lowered nodes and others, all that outputs depend on, with as few changes from one kind to the other."""
        (output,) = (node for node in self._graph.nodes if node.op == "output")
        wanted = {self._writer.get(base_of(node), base_of(node)) for node in output.args[0]}
        wanted |= {node for node in self._before if _changes_in_place(node)}
        self._needed: set[Node] = set()
        while wanted:
            node = wanted.pop()
            if node.op == "call_function" and node not in self._needed:
                self._needed.add(node)
                wanted.update(self._makers(node))
        left = [node for node in self._graph.nodes if node in self._needed]
        order, done, lowered = list[Node](), set[Node](), True
        while left:
            waiting = []
            for node in left:
                if (node in self._lowered) == lowered and done.issuperset(self._needs(node)):
                    order.append(node)
                    done.add(node)
                else:
                    waiting.append(node)
            left, lowered = waiting, not lowered
        return order

    def _seen_by_torch(self) -> set[Node]:
        """What torch's operations look at, or whoever gets the outputs."""
        (output,) = (node for node in self._graph.nodes if node.op == "output")
        others = [node for node in self._order if node not in self._lowered]
        return {base_of(node) for user in (*others, output) for node in user.all_input_nodes}

    def _placed(self) -> tuple[dict[object, int], torch.Tensor]:
        """Where each value and each room begins, and the memory."""
        keys: list[object] = []
        lifetimes: list[Lifetime] = []
        reads = defaultdict[Node, list[int]](list)
        for number, node in enumerate(self._order):
            for base in self._lowered[node].reads if node in self._lowered else ():
                reads[base].append(number)
        for number, node in enumerate(self._order):
            unit = self._lowered.get(node, Lowered())
            for written, n_numbers in unit.writes.items():
                if written in self._for_torch and 4 * n_numbers < _n_bytes(written):
                    raise RuntimeError(f"{written} is written in another form than torch reads it")
                last = len(self._order) if written in self._for_torch else max(reads[written], default=number)
                keys.append(written)
                lifetimes.append(Lifetime(n_numbers, number, last))
            for room in {(node, o.name): o.n_numbers for o in _operands(unit) if o.node is None}.items():
                keys.append(room[0])
                lifetimes.append(Lifetime(room[1], number, number))
        found, total = places(lifetimes)
        return dict(zip(keys, found, strict=True)), numbers(total)

    def _add_piece(self, run: Sequence[Node]) -> None:
        """Call the machine code of these nodes."""
        if not run:
            return
        inputs = list(
            dict.fromkeys(base for node in run for base in self._lowered[node].reads if base not in self._writer)
        )
        outputs = [base for node in run for base in self._lowered[node].writes if base in self._for_torch]
        number_of = {base: number for number, base in enumerate(inputs)}
        calls: list[tuple[PartCall, list[Address | None]]] = [
            (call, [None if operand is None else self._address(node, operand, number_of) for operand in operands])
            for node in run
            for call, operands in self._lowered[node].calls
        ]
        views = [_view_of(base) for base in inputs]
        placed = [(self._places[base], _view_of(base)) for base in outputs]
        piece = Piece(calls, self._memory, views, placed, self._n_threads)
        self._pieces.append(piece)
        target = torch.ops.netloom.run_machine_code.default
        result = self._new.call_function(target, (piece.number, self._of_memory, [self._get(base) for base in inputs]))
        for number, base in enumerate(outputs):
            self._env[base] = self._new.call_function(operator.getitem, (result, number))

    def _address(self, node: Node, operand: Operand, inputs: dict[Node, int]) -> Address:
        if operand.node in inputs:
            return Address(inputs[operand.node], True, operand.offset)
        key = (node, operand.name) if operand.node is None else operand.node
        return Address(self._places[key], False, operand.offset)


def _n_bytes(node: Node) -> int:
    value = node.meta["val"]
    return int(value.numel() * value.element_size())


def _view_of(node: Node) -> View:
    return View(shape_of(node), strides_of(node), node.meta["val"].dtype)


def _is_view(node: Node) -> bool:
    return base_of(node) is not node


def _changes_in_place(node: Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and schema.is_mutable


def _operands(unit: Lowered) -> Iterable[Operand]:
    return (operand for _, operands in unit.calls for operand in operands if operand is not None)
