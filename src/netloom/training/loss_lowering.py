"""Softmax cross-entropy of a captured step, forward and backward, as one part of machine code.

In the graph it is a dozen operations: logarithms of probabilities, the mean of those of the targets, the factors of a
loss, the same backward, and how many predictions are correct.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Node

from netloom.kernels import parts
from netloom.training.operands import VIEWS, Lowered, Operand, base_of, is_float, result_of, shape_of, writing

aten = torch.ops.aten
_MEAN = 1  # of nll_loss, how losses are joined


@dataclass(frozen=True)
class _Scaled:
    """A value times numbers, and one scalar tensor.

    Attributes:
        value: Before the first product, or behind the last one.
        number: Product of the numbers.
        factor: The tensor.
    """

    value: Node
    number: float = 1.0
    factor: Node | None = None

    def times(self, other: Any, value: Node) -> _Scaled | None:
        """With another factor; None for a second tensor, or one that is no scalar."""
        if isinstance(other, (int, float)):
            return _Scaled(value, self.number * other, self.factor)
        if self.factor is None and isinstance(other, Node) and is_float(other) and shape_of(other) == ():
            return _Scaled(value, self.number, other)
        return None


def lower_cross_entropy(node: Node, n_threads: int) -> Lowered | None:
    """All of it, by the gradient of the logits.

    Args:
        node: A call of `_log_softmax_backward_data`.
        n_threads: That run the part.
    """
    of_losses, of_softmax = node.args[0], base_of(node.args[1])  # type: ignore[arg-type]
    if not (isinstance(of_losses, Node) and of_losses.target == aten.nll_loss_backward.default):
        return None
    of_loss, softmax_given, target, weight, joined, _, total = of_losses.args
    logits, dimension, *_ = of_softmax.args
    forward = total.args[0] if isinstance(total, Node) else None
    if not (isinstance(logits, Node) and isinstance(target, Node) and isinstance(forward, Node)):
        return None
    is_simple = weight is None and joined == _MEAN and dimension == 1 and node.args[2] == 1
    if not is_simple or forward.args[:4] != (of_softmax, target, None, _MEAN):
        return None
    if base_of(softmax_given) is not of_softmax:  # type: ignore[arg-type]
        return None
    if not _only_seen_by(of_softmax, {forward, of_losses, node}) or list(of_losses.users) != [node]:
        return None
    if not (is_float(logits, node) and all(_is_matrix(n) for n in (logits, node)) and _are_classes(target)):
        return None
    loss = _loss_behind(forward)
    if loss is None or loss.factor is None or _factors_before(of_loss, loss.value) != (loss.number, loss.factor):
        return None
    return _lowered(node, logits, target, loss, n_threads)


def _lowered(node: Node, logits: Node, target: Node, loss: _Scaled, n_threads: int) -> Lowered:
    assert loss.factor is not None
    n, classes = shape_of(logits)
    lowered = Lowered(reads=[base_of(logits), base_of(target), base_of(loss.factor)])
    columns, of_columns = Operand(None, n * classes, "logits"), Operand(None, n * classes, "gradient")
    hits = _correct(logits, target)
    correct = Operand(None, 2, "correct") if hits is None else writing(lowered, hits)
    results = [of_columns, writing(lowered, loss.value), correct]
    given = [columns, Operand(base_of(target)), Operand(base_of(loss.factor))]
    lowered.calls += [
        (parts.turn(1, n, classes, n_threads), [Operand(base_of(logits)), columns]),
        (parts.cross_entropy(n, classes, loss.number, n_threads), [*given, *results]),
        (parts.turn(1, classes, n, n_threads), [of_columns, writing(lowered, node)]),
    ]
    return lowered


def _only_seen_by(node: Node, known: set[Node]) -> bool:
    """Whether nobody else looks at it or at a view of it."""
    return all(user in known or (user.target in VIEWS and _only_seen_by(user, known)) for user in node.users)


def _is_matrix(node: Node) -> bool:
    value = node.meta["val"]
    return bool(value.ndim == 2 and value.is_contiguous() and value.numel())


def _are_classes(target: Node) -> bool:
    value = target.meta["val"]
    return bool(value.dtype == torch.int64 and value.ndim == 1 and value.is_contiguous())


def _loss_behind(forward: Node) -> _Scaled | None:
    """The mean loss, times what it is multiplied with at once; None where others look at what is between."""
    mean = result_of(forward, 0)
    scaled = None if mean is None else _Scaled(mean)
    while scaled is not None:
        users = list(scaled.value.users)
        if len(users) != 1 or users[0].target != aten.mul.Tensor or users[0].args[0] is not scaled.value:
            return scaled
        scaled = scaled.times(users[0].args[1], users[0])
    return None


def _factors_before(of_loss: Any, loss: Node) -> tuple[float, Node | None] | None:
    """By what ones, the gradient of the loss, are multiplied."""
    scaled: _Scaled | None = _Scaled(of_loss)
    while scaled is not None and scaled.value.target == aten.mul.Tensor:
        before, other = scaled.value.args
        scaled = scaled.times(other, before)  # type: ignore[arg-type]
    if scaled is None or scaled.value.target != aten.ones_like.default or scaled.value.args[0] is not loss:
        return None
    return scaled.number, scaled.factor


def _correct(logits: Node, target: Node) -> Node | None:
    """The number of targets that have the largest logit, where somebody asks for it."""
    for node in logits.graph.nodes:
        if node.target != aten.sum.default or len(node.args) != 1 or node.kwargs:
            continue
        equal = node.args[0]
        if equal.target != aten.eq.Tensor or equal.args[1] is not target or len(equal.users) != 1:
            continue
        largest = equal.args[0]
        if largest.target == aten.argmax.default and largest.args[1:] == (1,) and len(largest.users) == 1:
            seen = largest.args[0]
            if base_of(seen) is base_of(logits) and shape_of(seen) == shape_of(logits):
                return node  # type: ignore[no-any-return]
    return None
