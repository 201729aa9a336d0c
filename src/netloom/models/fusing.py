"""A folded network on a CPU: convolutions together with what follows them, and faster pooling.

oneDNN applies an activation, and the addition of a shortcut, to what it has just computed, before that leaves the
caches, and takes kernels in the blocks that it computes with instead of rearranging them in every call. torch's own
compiler uses these operations (`torch.ops.mkldnn`) for the same purpose; they are not documented, so whoever fuses
compares outputs, and what this build of torch does not know stays as it was. Convolutions of 3x3 may be taken by
Winograd's transformation instead (`kernels/winograd.py`).
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from netloom.kernels import winograd
from netloom.kernels.calls import usable
from netloom.models.folding import (
    SUMMED,
    SUMS,
    alike,
    argument,
    called_module,
    constant,
    put_constant,
    tidy,
    works_in_place,
)


class _Following(NamedTuple):
    """An activation as oneDNN's operations name it."""

    name: str
    numbers: tuple[float, ...] = ()
    algorithm: str = ""


_FUNCTIONS: dict[Any, _Following] = {
    F.relu: _Following("relu"),
    torch.relu: _Following("relu"),
    F.relu6: _Following("hardtanh", (0.0, 6.0)),
    F.hardswish: _Following("hardswish"),
    F.silu: _Following("swish"),
    torch.sigmoid: _Following("sigmoid"),
    torch.tanh: _Following("tanh"),
}
_MODULES: dict[Any, _Following] = {
    nn.ReLU: _FUNCTIONS[F.relu],
    nn.Hardswish: _FUNCTIONS[F.hardswish],
    nn.SiLU: _FUNCTIONS[F.silu],
    nn.Sigmoid: _FUNCTIONS[torch.sigmoid],
    nn.Tanh: _FUNCTIONS[torch.tanh],
}
_NOTHING = _Following("none")

# Winograd's transformation is taken where so many additions and multiplications of a batch would be spared products:
# its machine code is made in half a second.
_LEAST_ARITHMETIC = 2e10
# Transformed kernels of more channels than that, from and to, do not fit caches; with fewer there is little to gain.
_MOST_KERNEL, _FEWEST_CHANNELS = 2**16, 16
_SMALLEST_OUTPUT = 4  # each way, of a tile


def fuse_convolutions(folded: fx.GraphModule) -> bool:
    """Fuse the convolutions of a network from `fold`, in place, where it has float32 weights on an x86 processor.

    Outputs differ in their last bits. Returns whether anything was fused. Where it raises an error, of whatever kind,
    the graph may be half done, and must not be used.
    """
    has_onednn: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    if not (has_onednn and torch.backends.cpu.get_cpu_capability().startswith("AVX")):
        return False
    try:
        operations = torch.ops.mkldnn._reorder_convolution_weight, torch.ops.mkldnn._convolution_pointwise.binary
    except (AttributeError, RuntimeError):
        return False  # this build of torch has them not
    fused = [_fuse(folded, node, *operations) for node in list(folded.graph.nodes) if node.target is torch.conv2d]
    tidy(folded)
    return any(fused)


def replace_convolutions(folded: fx.GraphModule, n_pictures: int) -> bool:
    """Take 3x3 convolutions of a network from `fold` by Winograd's transformation, in place, where that is faster.

    That is on processors with AVX2 or AVX-512, for batches of `n_pictures` that are worth it; for others everything
    stays as it was. No measurement decides, so that the same network always has the same outputs. They
    differ from the folded network's as rounding does. Returns whether anything was replaced. Where it raises an error,
    of whatever kind, the graph must not be used.
    """
    if torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
        return False
    suited = {node: spared for node in folded.graph.nodes if (spared := _arithmetic(folded, node))}
    if n_pictures * sum(suited.values()) < _LEAST_ARITHMETIC or not usable():
        return False
    for node in suited:
        following = _activation(folded, node)
        relu = following is not None and following == _FUNCTIONS[F.relu]
        last = (_only_user(node) or node) if relu else node
        given = (argument(node, 0, "input"), argument(node, 1, "weight"), argument(node, 2, "bias"))
        with folded.graph.inserting_before(node):
            padding = _pair(argument(node, 4, "padding", 0))
            call = folded.graph.call_function(torch.ops.netloom.winograd_convolution.default, (*given, padding, relu))
        call.meta.update(last.meta)
        last.replace_all_uses_with(call)
        if last is not node:
            folded.graph.erase_node(last)
        folded.graph.erase_node(node)
    tidy(folded)
    return True


def _arithmetic(folded: fx.GraphModule, node: fx.Node) -> float:
    """Additions and multiplications that a convolution needs for one picture; 0 where it stays as it is."""
    if node.target is not torch.conv2d:
        return 0.0
    pictures, weight = argument(node, 0, "input"), constant(folded, argument(node, 1, "weight"))
    given_bias, padding = argument(node, 2, "bias"), argument(node, 4, "padding", 0)
    shape = pictures.meta.get("shape", ()) if isinstance(pictures, fx.Node) else ()
    if weight is None or len(shape) != 4 or len(node.meta.get("shape", ())) != 4 or isinstance(padding, str):
        return 0.0
    if given_bias is not None and constant(folded, given_bias) is None:
        return 0.0
    if argument(node, 6, "groups", 1) != 1 or _pair(argument(node, 5, "dilation", 1)) != [1, 1]:
        return 0.0
    stride, (n_kernels, channels) = _pair(argument(node, 3, "stride", 1)), weight.shape[:2]
    height, width = node.meta["shape"][2:]
    if not winograd.suits(shape, weight.shape, stride, _pair(padding), weight.dtype):
        return 0.0
    if n_kernels * channels > _MOST_KERNEL or min(n_kernels, channels) < _FEWEST_CHANNELS:
        return 0.0
    return 2.0 * height * width * weight.numel() if min(height, width) >= _SMALLEST_OUTPUT else 0.0


def max_pool_2x2(x: Tensor) -> Tensor:
    """What `nn.MaxPool2d(2)` gives for `[B, C, H, W]`, the same bits, and faster in channels-last memory on a CPU.

    torch's pooling notes where each maximum was, even if nobody asks, and works on the channels of one position at a
    time: 5.9 ms for 256 pictures of 6x28x28 where this takes 1.2, and 6.0 of 32x30x30 where this takes 4.2.
    """
    height, width = x.shape[2] // 2 * 2, x.shape[3] // 2 * 2
    pixels = x.permute(0, 2, 3, 1)[:, :height, :width]
    rows = torch.maximum(pixels[:, ::2], pixels[:, 1::2])
    return torch.maximum(rows[:, :, ::2], rows[:, :, 1::2]).permute(0, 3, 1, 2)


def replace_pooling(folded: fx.GraphModule) -> None:
    """Let `max_pool_2x2` do what it can in a network from `fold`, in place."""
    for node in list(folded.graph.nodes):
        pool, pictures = called_module(folded, node), argument(node, 0, "input")
        shape = pictures.meta.get("shape", ()) if isinstance(pictures, fx.Node) else ()
        if isinstance(pool, nn.MaxPool2d) and _is_2x2(pool) and len(shape) == 4 and min(shape[2:]) >= 2:
            with folded.graph.inserting_before(node):
                maxima = folded.graph.call_function(max_pool_2x2, (pictures,))
            maxima.meta.update(node.meta)
            node.replace_all_uses_with(maxima)
            folded.graph.erase_node(node)
    tidy(folded)


def _is_2x2(pool: nn.MaxPool2d) -> bool:
    settings = [_pair(value) for value in (pool.kernel_size, pool.stride, pool.padding, pool.dilation)]
    return settings == [[2, 2], [2, 2], [0, 0], [1, 1]] and not (pool.return_indices or pool.ceil_mode)


def _fuse(folded: fx.GraphModule, node: fx.Node, pack: Any, with_sum: Any) -> bool:
    """Replace one convolution, and what follows it if oneDNN has that."""
    pictures, given_bias = argument(node, 0, "input"), argument(node, 2, "bias")
    weight, bias = constant(folded, argument(node, 1, "weight")), constant(folded, given_bias)
    padding = argument(node, 4, "padding", 0)
    if weight is None or weight.dtype != torch.float32 or (given_bias is not None and bias is None):
        return False
    if not isinstance(pictures, fx.Node) or len(pictures.meta.get("shape", ())) != 4 or isinstance(padding, str):
        return False
    stride, dilation = _pair(argument(node, 3, "stride", 1)), _pair(argument(node, 5, "dilation", 1))
    settings = (_pair(padding), stride, dilation, argument(node, 6, "groups", 1))
    try:
        packed = pack(weight.detach().contiguous(), *settings, list(pictures.meta["shape"]))
    except (RuntimeError, NotImplementedError):
        return False  # oneDNN has no kernel of this kind
    given = (put_constant(folded, packed, "packed", before=node), given_bias, *settings)
    following, shortcut = _activation(folded, node), _shortcut(node)
    with folded.graph.inserting_before(node):
        if shortcut is not None:
            last = _only_user(node)
            assert last is not None
            relu = _activation(folded, last) == _FUNCTIONS[F.relu]
            arguments: tuple[Any, ...] = (pictures, shortcut, *given, "add", 1.0, "relu" if relu else None, [], None)
            call = folded.graph.call_function(with_sum, arguments)
            last = (_only_user(last) or last) if relu else last
        else:
            last = node if following is None else _only_user(node) or node
            name, numbers, algorithm = following or _NOTHING
            plain = torch.ops.mkldnn._convolution_pointwise.default
            call = folded.graph.call_function(plain, (pictures, *given, name, list(numbers), algorithm))
    call.meta.update(last.meta)
    last.replace_all_uses_with(call)
    while last is not node:
        before = next(one for one in last.all_input_nodes if one is not shortcut)
        folded.graph.erase_node(last)
        last = before
    folded.graph.erase_node(node)
    return True


def _pair(value: Any) -> list[int]:
    return [value, value] if isinstance(value, int) else list(value)


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _activation(folded: fx.GraphModule, node: fx.Node) -> _Following | None:
    """The activation that alone reads a value, where oneDNN has it."""
    user = _only_user(node)
    if user is None or user.args[:1] != (node,):
        return None
    if user.op == "call_function":
        return _FUNCTIONS.get(user.target)
    module = called_module(folded, user)
    if isinstance(module, nn.Hardtanh):  # ReLU6 is one, too
        return _Following("hardtanh", (float(module.min_val), float(module.max_val)))
    if isinstance(module, nn.LeakyReLU):
        return _Following("leaky_relu", (float(module.negative_slope),))
    if isinstance(module, nn.GELU):
        return _Following("gelu", (), module.approximate)
    return _MODULES.get(type(module))


def _shortcut(node: fx.Node) -> fx.Node | None:
    """What is added to a value that nothing else reads, if it is there when the value is computed, and the same."""
    user = _only_user(node)
    if user is None or user.target not in SUMS or len(user.args) != 2 or user.kwargs:
        return None
    first, second = user.args
    if user.target is operator.iadd and first is not node and SUMMED not in user.meta:
        return None  # the model itself writes over the shortcut
    other = second if first is node else first
    if not isinstance(other, fx.Node) or other is node or not alike(other, node) or node < other:
        return None
    between = list(itertools.takewhile(lambda one: one is not user, _from(node)))
    return None if any(works_in_place(one) for one in between) else other


def _from(node: fx.Node) -> Iterator[fx.Node]:
    while node.op != "output":
        yield node
        node = node.next
