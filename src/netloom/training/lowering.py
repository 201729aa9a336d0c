"""Which operations of a captured step have machine code of ours, and what that is given.

A node is lowered to calls of parts. What they read and write are operands: nodes whose memory they are, or room for
one call. Nodes that only look at another one's memory (`detach`, `t`, views) have none of their own. A few nodes are
lowered together: pooling with the ReLU behind it, and their gradients; a convolution or a dense layer with its ReLU.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.fx import Graph, Node

from netloom.kernels import direct, parts, winograd
from netloom.kernels.calls import PartCall
from netloom.kernels.pictures import turned_round
from netloom.training.loss_lowering import lower_cross_entropy
from netloom.training.operands import (
    VIEWS,
    Lowered,
    Operand,
    base_of,
    is_channels_last,
    is_dense,
    is_float,
    is_pictures,
    is_vector,
    relu_behind,
    result_of,
    shape_of,
    strides_of,
    writing,
)

aten = torch.ops.aten
netloom_ops = torch.ops.netloom


def lower(graph: Graph, n_threads: int) -> dict[Node, Lowered]:
    """What can be lowered, by the node behind which all that it writes is there.

    Args:
        graph: A step with its gradients, with what `make_fx` tells of each node.
        n_threads: That run the parts.
    """
    lowering = _Lowering(n_threads)
    for node in graph.nodes:
        lower_node = _LOWERINGS.get(node.target) if node.op == "call_function" else None
        if lower_node is not None and node not in lowering.done:
            lowered = lower_node(lowering, node)
            if lowered is not None:
                lowering.found[node] = lowered
    return lowering.found


class _Lowering:
    """What is lowered so far.

    Attributes:
        n_threads: That run the parts.
        found: By node.
        done: Nodes that are lowered with others.
        with_relu: Pooling by its second result, where the ReLU behind it is lowered with it.
    """

    def __init__(self, n_threads: int) -> None:
        self.n_threads = n_threads
        self.found: dict[Node, Lowered] = {}
        self.done: set[Node] = set()
        self.with_relu: set[Node] = set()

    def reading(self, lowered: Lowered, node: Node, *, as_pictures: bool = False, as_planes: bool = False) -> Operand:
        """What reads a node's memory: for pictures in channels-last memory, or plane by plane, a copy if need be."""
        base = base_of(node)
        lowered.reads.append(base)
        is_planes = bool(node.meta["val"].is_contiguous())
        if not (as_pictures and not is_channels_last(node)) and not (as_planes and not is_planes):
            return Operand(base)
        n, channels, height, width = shape_of(node)
        room = Operand(None, math.prod(shape_of(node)), f"turned_{len(lowered.calls)}")
        rows, columns = (channels, height * width) if as_pictures else (height * width, channels)
        lowered.calls.append((parts.turn(n, rows, columns, self.n_threads), [Operand(base), room]))
        return room


def _bias(lowering: _Lowering, lowered: Lowered, bias: Any) -> Operand | None:
    return None if bias is None else lowering.reading(lowered, bias)


def _convolution(lowering: _Lowering, node: Node) -> Lowered | None:
    pictures, kernel, bias, padding, *_ = node.args
    if not (is_pictures(pictures) and is_channels_last(node) and is_vector(bias, shape_of(node)[1])):  # type: ignore[arg-type]
        return None
    relu = relu_behind(node)
    shapes = shape_of(pictures), shape_of(kernel), strides_of(kernel), tuple(padding)  # type: ignore[arg-type]
    call = _convolve_call(node.target, *shapes, lowering.n_threads, relu=relu is not None)
    return _convolve(lowering, call, pictures, (kernel, 0), bias, relu or node)


def _input_gradient(lowering: _Lowering, node: Node) -> Lowered | None:
    gradient, kernel, padding = node.args
    if not (is_pictures(gradient) and is_channels_last(node)):  # type: ignore[arg-type]
        return None
    first, strides, around = turned_round(shape_of(kernel), strides_of(kernel), padding)  # type: ignore[arg-type]
    kernels, channels, *size = shape_of(kernel)  # type: ignore[arg-type]
    shapes = shape_of(gradient), (channels, kernels, *size), strides, around  # type: ignore[arg-type]
    call = _convolve_call(node.target, *shapes, lowering.n_threads, relu=False)
    return _convolve(lowering, call, gradient, (kernel, first), None, node)


def _convolve_call(
    target: object,
    pictures: tuple[int, ...],
    kernel: tuple[int, ...],
    strides: tuple[int, ...],
    padding: tuple[int, int],
    n_threads: int,
    *,
    relu: bool,
) -> PartCall:
    if target in (netloom_ops.winograd_convolution.default, netloom_ops.winograd_input_gradient.default):
        return winograd.convolve_call(pictures, kernel[0], strides, padding, n_threads, relu=relu)
    return direct.convolve_call(pictures, kernel, strides, padding, n_threads, relu=relu)


def _convolve(
    lowering: _Lowering, call: PartCall, pictures: Any, kernel: tuple[Any, int], bias: Any, result: Node
) -> Lowered:
    lowered = Lowered()
    of_pictures = lowering.reading(lowered, pictures, as_pictures=True)
    of_kernel = Operand(lowering.reading(lowered, kernel[0]).node, offset=kernel[1])
    operands = [of_pictures, of_kernel, _bias(lowering, lowered, bias), writing(lowered, result)]
    lowered.calls.append((call, operands))
    lowering.done.add(result)
    return lowered


def _weight_gradient(lowering: _Lowering, node: Node) -> Lowered | None:
    pictures, gradient, *_, padding = node.args
    if not (is_pictures(pictures) and is_pictures(gradient) and is_channels_last(node)):  # type: ignore[arg-type]
        return None
    around = tuple(padding)  # type: ignore[arg-type]
    if node.target == netloom_ops.winograd_weight_gradient.default:
        of_kernel = shape_of(node)
        strides = (of_kernel[1] * math.prod(of_kernel[2:]), 1, of_kernel[1] * of_kernel[3], of_kernel[1])
        call = winograd.weight_gradient_call(shape_of(pictures), of_kernel[0], strides, around, lowering.n_threads)  # type: ignore[arg-type]
    else:
        call = direct.weight_gradient_call(shape_of(pictures), shape_of(node), around, lowering.n_threads)  # type: ignore[arg-type]
    lowered = Lowered()
    given = [lowering.reading(lowered, value, as_pictures=True) for value in (pictures, gradient)]  # type: ignore[arg-type]
    lowered.calls.append((call, [*given, writing(lowered, node)]))
    return lowered


def _is_2x2(node: Node, first: int) -> bool:
    """Whether the arguments from `first` on are those of a pooling of 2x2 and stride 2."""
    defaults: tuple[Any, ...] = ([2, 2], [], [0, 0], [1, 1], False)
    given = [*node.args[first:], *defaults[len(node.args[first:]) :]][:5]
    kernel, stride, padding, dilation, ceil = ([*v] if isinstance(v, (list, tuple)) else v for v in given)
    return (kernel, stride or kernel, padding, dilation, ceil) == ([2, 2], [2, 2], [0, 0], [1, 1], False)


def _pool(lowering: _Lowering, node: Node) -> Lowered | None:
    pictures, maxima, chosen = node.args[0], result_of(node, 0), result_of(node, 1)
    if not (is_pictures(pictures) and _is_2x2(node, 1) and maxima is not None and is_channels_last(maxima)):  # type: ignore[arg-type]
        return None
    n, channels, height, width = shape_of(pictures)  # type: ignore[arg-type]
    if chosen is None or min(height, width) < 2 or any(not _is_gradient_of(user, chosen) for user in chosen.users):
        return None
    relu = relu_behind(maxima)
    with_relu = relu is not None and all(_relu_gradient_before(user, relu) is not None for user in chosen.users)
    lowered = Lowered()
    given = lowering.reading(lowered, pictures, as_pictures=True)  # type: ignore[arg-type]
    result = relu if with_relu and relu is not None else maxima
    call = parts.pool(n, height, width, channels, lowering.n_threads, relu=with_relu)
    lowered.calls.append((call, [given, writing(lowered, result), writing(lowered, chosen, bytes_of_number=1)]))
    lowering.done.add(result)
    if with_relu:
        lowering.with_relu.add(chosen)
    return lowered


def _is_gradient_of(node: Node, chosen: Node) -> bool:
    is_pool = node.target == aten.max_pool2d_with_indices_backward.default
    if not (is_pool and node.args[7] is chosen and is_pictures(node.args[0])):  # type: ignore[arg-type]
        return False
    return _is_2x2(node, 2) and is_channels_last(node) and is_float(node)


def _relu_gradient_before(gradient: Node, relu: Node) -> Node | None:
    """The gradient of the ReLU that a pooling's gradient alone looks at."""
    before = gradient.args[0]
    if not (isinstance(before, Node) and before.target == aten.threshold_backward.default and len(before.users) == 1):
        return None
    given, result, threshold = before.args
    are_pictures = is_pictures(before) and is_pictures(given)  # type: ignore[arg-type]
    return before if base_of(result) is relu and threshold == 0 and are_pictures else None  # type: ignore[arg-type]


def _pool_gradient(lowering: _Lowering, node: Node) -> Lowered | None:
    chosen = node.args[7]
    assert isinstance(chosen, Node)
    if chosen.args[0] not in lowering.found:
        return None
    given = node.args[0]
    if chosen in lowering.with_relu:
        given = given.args[0]  # type: ignore[union-attr]
    n, channels, height, width = shape_of(node)
    lowered = Lowered()
    gradient = lowering.reading(lowered, given, as_pictures=True)  # type: ignore[arg-type]
    lowered.reads.append(chosen)
    call = parts.pool_gradient(n, height, width, channels, lowering.n_threads)
    lowered.calls.append((call, [gradient, Operand(chosen), writing(lowered, node)]))
    return lowered


def _relu(lowering: _Lowering, node: Node) -> Lowered | None:
    return _element_wise(lowering, node, parts.relu, [node.args[0]])


def _relu_gradient(lowering: _Lowering, node: Node) -> Lowered | None:
    gradient, result, threshold = node.args
    pools = [user for user in node.users if _takes_relu(lowering, user)]
    if threshold != 0 or (pools and len(pools) == len(node.users)):
        return None  # those look at what is before it
    return _element_wise(lowering, node, parts.relu_gradient, [gradient, result])


def _takes_relu(lowering: _Lowering, node: Node) -> bool:
    return node.target == aten.max_pool2d_with_indices_backward.default and node.args[7] in lowering.with_relu


def _multiply(lowering: _Lowering, node: Node) -> Lowered | None:
    return _element_wise(lowering, node, parts.multiply, list(node.args))


def _add(lowering: _Lowering, node: Node) -> Lowered | None:
    return None if node.kwargs else _element_wise(lowering, node, parts.add, list(node.args))


def _element_wise(
    lowering: _Lowering, node: Node, make: Callable[[int, int], PartCall], given: Sequence[Any]
) -> Lowered | None:
    if not is_float(node, *given) or not all(is_dense(n) for n in (node, *given)):
        return None
    if any(shape_of(value) != shape_of(node) for value in given):
        return None
    n = math.prod(shape_of(node))
    if len(shape_of(node)) < 2:  # of losses, one for each sample, which torch has to look at anyway
        return None
    alike = all(strides_of(value) == strides_of(node) for value in given)
    is_last = is_channels_last(node)
    if not alike and not is_last and len(shape_of(node)) != 4:
        return None
    layout = {} if alike else {"as_pictures": is_last, "as_planes": not is_last}
    lowered = Lowered()
    operands: list[Operand | None] = [lowering.reading(lowered, value, **layout) for value in given]
    lowered.calls.append((make(n, lowering.n_threads), [*operands, writing(lowered, node)]))
    return lowered


def _sum(lowering: _Lowering, node: Node) -> Lowered | None:
    value, dimensions, *keeps = node.args
    if dimensions is None or not is_float(value, node) or node.kwargs:
        return None
    shape = shape_of(value)  # type: ignore[arg-type]
    if [*dimensions] == [0, 2, 3] and is_pictures(value) and not any(keeps):  # type: ignore[misc, arg-type]
        rows, channels, pictures = math.prod(shape) // shape[1], shape[1], True
    elif [*dimensions] == [0] and len(shape) == 2 and value.meta["val"].is_contiguous():  # type: ignore[misc, union-attr]
        (rows, channels), pictures = shape, False
    else:
        return None
    lowered = Lowered()
    given = lowering.reading(lowered, value, as_pictures=pictures)  # type: ignore[arg-type]
    call = parts.sum_rows(rows, channels, lowering.n_threads)
    lowered.calls.append((call, [given, writing(lowered, node)]))
    return lowered


def _norm(lowering: _Lowering, node: Node) -> Lowered | None:
    """Batch normalization whose running statistics, in zeros of its own, become those of the batch."""
    values, weight, bias, mean, variance, trains, momentum, eps = node.args
    outputs, saved, inverse = (result_of(node, number) for number in range(3))
    if not trains or momentum != 1.0 or outputs is None or inverse is None or not _is_normal(values, outputs):
        return None
    if not (_is_own_zeros(mean, node) and _is_own_zeros(variance, node)):
        return None
    if not all(is_vector(value, shape_of(outputs)[1]) for value in (weight, bias)):
        return None
    if saved is not None and not all(map(_is_norm_gradient, saved.users)):
        return None
    lowered = Lowered()
    given = lowering.reading(lowered, values, as_pictures=outputs.meta["val"].ndim == 4)  # type: ignore[arg-type]
    affine = [_bias(lowering, lowered, value) for value in (weight, bias)]
    results = [writing(lowered, value) for value in (outputs, mean, inverse, variance)]  # type: ignore[arg-type]
    rows, channels = _rows_of(outputs)
    call = parts.batch_norm(rows, channels, float(eps), lowering.n_threads)  # type: ignore[arg-type]
    lowered.calls.append((call, [given, *affine, *results]))
    return lowered


def _norm_gradient(lowering: _Lowering, node: Node) -> Lowered | None:
    gradient, values, weight, _, _, saved, inverse, *_ = node.args
    forward = saved.args[0] if isinstance(saved, Node) else None
    if forward not in lowering.found or not _is_norm_gradient(node):
        return None
    outputs, of_weight, of_bias = (result_of(node, number) for number in range(3))
    assert outputs is not None
    lowered, is_pictures = Lowered(), outputs.meta["val"].ndim == 4
    given = [lowering.reading(lowered, value, as_pictures=is_pictures) for value in (gradient, values)]  # type: ignore[arg-type]
    of_channels = [_bias(lowering, lowered, value) for value in (weight, forward.args[3], inverse)]  # type: ignore[union-attr]
    rows, channels = _rows_of(outputs)
    results = [writing(lowered, outputs)]
    for name, value in (("of_weight", of_weight), ("of_bias", of_bias)):
        is_wanted = value is not None and value.meta.get("val") is not None
        results.append(writing(lowered, value) if is_wanted else Operand(None, channels, name))  # type: ignore[arg-type]
    call = parts.batch_norm_gradient(rows, channels, lowering.n_threads)
    lowered.calls.append((call, [*given, *of_channels, *results]))
    return lowered


def _is_norm_gradient(node: Node) -> bool:
    """Whether it is a gradient that can be lowered, if what it is the gradient of is."""
    outputs = result_of(node, 0)
    if node.target != aten.native_batch_norm_backward.default or outputs is None:
        return False
    gradient, values, weight = node.args[:3]
    return all(_is_normal(v, outputs) for v in (gradient, values)) and is_vector(weight, shape_of(outputs)[1])


def _is_normal(values: Any, outputs: Node) -> bool:
    """Whether values may be normalized: pictures, or a row for each sample."""
    if outputs.meta["val"].ndim == 4:
        return is_pictures(values) and is_channels_last(outputs)
    is_row = values.meta["val"].ndim == 2 and values.meta["val"].is_contiguous()
    return bool(is_row and is_float(values, outputs) and outputs.meta["val"].is_contiguous())


def _rows_of(outputs: Node) -> tuple[int, int]:
    shape = shape_of(outputs)
    return math.prod(shape) // shape[1], shape[1]


def _is_own_zeros(node: Any, norm: Node) -> bool:
    """Whether it is zeros that a batch normalization alone looks at, and whoever wants its statistics."""
    made = (aten.new_zeros.default, aten.zeros_like.default)
    if not (isinstance(node, Node) and node.target in made and is_float(node)):
        return False
    return all(user in (norm, *norm.args) or user.op == "output" or user.target in VIEWS for user in node.users)


def _product(lowering: _Lowering, node: Node) -> Lowered | None:
    bias, (left, right) = (node.args[0], node.args[1:]) if len(node.args) == 3 else (None, node.args)
    given = [value for value in (bias, left, right) if value is not None]
    if not is_float(node, *given) or node.kwargs or not node.meta["val"].is_contiguous():
        return None
    (m, k), (_, n) = shape_of(left), shape_of(right)  # type: ignore[arg-type]
    if not is_vector(bias, n):
        return None
    relu = relu_behind(node)
    of_left, of_right, threads = strides_of(left), strides_of(right), lowering.n_threads  # type: ignore[arg-type]
    lowered, result = Lowered(), relu or node
    operands = [lowering.reading(lowered, value) for value in (left, right)]  # type: ignore[arg-type]
    of_bias = _bias(lowering, lowered, bias)
    if of_right[1] == 1 and bias is None:
        call = parts.product(m, n, k, a_strides=of_left, b_row=of_right[0], n_threads=threads, relu=relu is not None)
        lowered.calls.append((call, [*operands, None, writing(lowered, result)]))
    elif of_right[0] == 1 and of_left == (k, 1):  # rows of weights times columns of inputs, all turned
        inputs, outputs = Operand(None, m * k, "inputs"), Operand(None, m * n, "outputs")
        strides = (of_right[1], 1)
        call = parts.product(n, m, k, a_strides=strides, b_row=m, n_threads=threads, relu=relu is not None)
        lowered.calls += [
            (parts.turn(1, m, k, threads), [operands[0], inputs]),
            (call, [operands[1], inputs, of_bias, outputs]),
            (parts.turn(1, n, m, threads), [outputs, writing(lowered, result)]),
        ]
    else:
        return None
    lowering.done.add(result)
    return lowered


def _cross_entropy(lowering: _Lowering, node: Node) -> Lowered | None:
    return lower_cross_entropy(node, lowering.n_threads)


def _clone(lowering: _Lowering, node: Node) -> Lowered | None:
    (pictures,) = node.args
    if not is_pictures(pictures) or not node.meta["val"].is_contiguous():  # type: ignore[arg-type]
        return None
    n, channels, height, width = shape_of(node)
    columns, rows = (channels, height * width) if is_channels_last(pictures) else (height * width * channels, 1)  # type: ignore[arg-type]
    lowered = Lowered()
    given = lowering.reading(lowered, pictures)  # type: ignore[arg-type]
    lowered.calls.append((parts.turn(n, rows, columns, lowering.n_threads), [given, writing(lowered, node)]))
    return lowered


_LOWERINGS: dict[object, Callable[[_Lowering, Node], Lowered | None]] = {
    netloom_ops.winograd_convolution.default: _convolution,
    netloom_ops.direct_convolution.default: _convolution,
    netloom_ops.winograd_input_gradient.default: _input_gradient,
    netloom_ops.direct_input_gradient.default: _input_gradient,
    netloom_ops.winograd_weight_gradient.default: _weight_gradient,
    netloom_ops.direct_weight_gradient.default: _weight_gradient,
    aten.max_pool2d_with_indices.default: _pool,
    aten.max_pool2d_with_indices_backward.default: _pool_gradient,
    aten.relu.default: _relu,
    aten.threshold_backward.default: _relu_gradient,
    aten.mul.Tensor: _multiply,
    aten.add.Tensor: _add,
    aten.sum.dim_IntList: _sum,
    aten.mm.default: _product,
    aten.addmm.default: _product,
    aten.clone.default: _clone,
    aten._log_softmax_backward_data.default: _cross_entropy,
    aten.native_batch_norm.default: _norm,
    aten.native_batch_norm_backward.default: _norm_gradient,
}
