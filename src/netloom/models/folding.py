"""A network for prediction alone: normalization folded into the layers in front of it, what only trains left out.

In evaluation mode batch normalization multiplies each channel by a number and adds another, which the layer in front
of it can do with other weights at no cost (Jacob et al., "Quantization and training of neural networks for efficient
integer-arithmetic-only inference", 2018, section 3.2): a pass over memory less for each of them.
"""

from __future__ import annotations

import copy
import inspect
import itertools
import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from netloom.models.kept_state import has_forward_hooks, keeps_state, replica_of

# Whose modules keep nothing from call to call, so that one that cannot be traced may stay in the graph as a whole.
_KNOWN_LIBRARIES = ("torch", "timm", "netloom")
_IDLE = (
    nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout,
)  # fmt: skip
_IDLE_FUNCTIONS = (F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout)
CONVOLUTIONS: tuple[Any, ...] = (torch.conv1d, torch.conv2d, torch.conv3d)
_LINEAR: Any = F.linear
# The largest of numbers that grow together, and their mean, may be taken before or after they are scaled and shifted.
_MAX_POOLS = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d)
_AVERAGE_POOLS = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d)
_ADDITIONS: tuple[Any, ...] = (operator.add, torch.add)
SUMS: tuple[Any, ...] = (*_ADDITIONS, operator.iadd)
_COMPARISONS = (operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge)
SUMMED = "summed"  # marks sums that were made to work in place here
_MAKING_NEW_MEMORY: tuple[Any, ...] = (*CONVOLUTIONS, _LINEAR, F.batch_norm, *_ADDITIONS, operator.mul, torch.mul)


def fold(model: nn.Module, example: Mapping[str, Tensor]) -> fx.GraphModule | None:
    """What `model` computes in evaluation mode, as a graph with normalization folded; None where no graph tells it.

    Weights that do not change are the model's own tensors, so that the graph is up to date as long as the model is
    not trained; the model itself is not touched. A graph holds neither hooks, nor what a model keeps from one call to
    the next, nor decisions over values; a model with one of these gives None, unless it is a module of torch or timm
    inside that decides, which then stays a whole. A graph may still be another than the model's, where that draws
    random numbers or asks for the type of its input: compare outputs.

    Folded weights are computed in float64 and rounded once.

    Args:
        model: On its device. Where it runs under autocast, this function has to, too.
        example: Inputs `[b, ...]` by name, as the model takes them; some pictures are enough.
    """
    if has_forward_hooks(model):
        return None
    try:
        return _fold(model, example)
    except Exception:  # of any kind: the model's own code has run on what is no tensor, and its graph was rewritten
        return None


def _fold(model: nn.Module, example: Mapping[str, Tensor]) -> fx.GraphModule | None:
    replica = replica_of(model).eval()
    folded = fx.GraphModule(replica, _Tracer().trace(replica), type(model).__name__)
    keeps = keeps_state(model, replica, is_traced=lambda value: isinstance(value, fx.Proxy))
    if keeps or _writes_to_weights(folded):
        return None
    _Shapes(folded).run(*example.values())
    with torch.no_grad():
        _leave_out_checks(folded)
        _leave_out_what_only_trains(folded)
        _compute_constants(folded)
        if _writes_to_weights(folded):  # in every call, and a constant is computed only once
            return None
        _fold_normalization(folded)
        _reuse_memory(folded)
    tidy(folded)
    return folded


def tidy(folded: fx.GraphModule) -> None:
    """Leave out what nothing reads, and compile the graph."""

    def is_needed(node: fx.Node) -> bool:
        return (
            node.is_impure() or works_in_place(node) or getattr(called_module(folded, node), "inplace", False) is True
        )

    folded.graph.eliminate_dead_code(is_needed)
    folded.delete_all_unused_submodules()
    folded.recompile()


def _writes_to_weights(folded: fx.GraphModule) -> bool:
    written = (_written(node) for node in folded.graph.nodes if works_in_place(node))
    return any(constant(folded, one) is not None for some in written for one in some)


def _written(node: fx.Node) -> tuple[Any, ...]:
    """What a node that works in place writes to."""
    out = node.kwargs.get("out")
    return (argument(node, 0, "input"), *(out if isinstance(out, (tuple, list)) else (out,)))


def _is_norm(module: nn.Module) -> bool:
    """Batch normalization that computes as torch's does: in timm's the activation is in it."""
    return isinstance(module, _BatchNorm) and type(module).forward in (
        _BatchNorm.forward,
        nn.SyncBatchNorm.forward,
    )


class _Tracer(fx.Tracer):
    """Looks into layers with weights, so that these are in the graph, and not into what it fails to trace."""

    proxy_buffer_attributes = True  # else a model that counts in a buffer would count while it is traced

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if isinstance(m, (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)):
            return False
        return _is_norm(m) or super().is_leaf_module(m, module_qualified_name)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        # What is remembered would outlive the nodes that `call_module` takes back.
        return super().getattr(attr, attr_val, {})

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        last, stack = next(reversed(self.graph.nodes)), self.module_stack.copy()
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception:
            if type(m).__module__.split(".")[0] not in _KNOWN_LIBRARIES:
                raise
        self.module_stack = stack
        for node in list(itertools.takewhile(lambda node: node is not last, reversed(self.graph.nodes))):
            self.graph.erase_node(node)
        return self.create_proxy("call_module", self.path_of_module(m), args, kwargs)


class _Shapes(fx.Interpreter):
    """Notes shape and type of each tensor in the graph, for a batch of the example's size."""

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, Tensor):
            n.meta["shape"], n.meta["dtype"] = result.shape, result.dtype
        return result


def argument(node: fx.Node, position: int, name: str, default: Any = None) -> Any:
    """The argument of a call, given by position or by name."""
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


def constant(folded: fx.GraphModule, node: Any) -> Tensor | None:
    """The tensor of the model that a node names, or None where it is computed."""
    if not (isinstance(node, fx.Node) and node.op == "get_attr"):
        return None
    value = operator.attrgetter(str(node.target))(folded)
    return value if isinstance(value, Tensor) else None


def put_constant(folded: fx.GraphModule, value: Tensor, what: str, *, before: fx.Node) -> fx.Node:
    """A node in front of another, that names a new tensor; `what` tells it from others of the same node."""
    name = f"netloom_{before.name}_{what}"
    folded.register_buffer(name, value)
    with folded.graph.inserting_before(before):
        return folded.graph.get_attr(name)


def called_module(folded: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    """The module that a node calls, or None where it does something else."""
    return folded.get_submodule(str(node.target)) if node.op == "call_module" else None


def _remove(node: fx.Node) -> None:
    node.replace_all_uses_with(argument(node, 0, "input"))
    node.graph.erase_node(node)


def _leave_out_what_only_trains(folded: fx.GraphModule) -> None:
    for node in list(folded.graph.nodes):
        idle_function = node.target in _IDLE_FUNCTIONS and argument(node, 2, "training", True) is False
        if (type(called_module(folded, node)) in _IDLE and len(node.all_input_nodes) == 1) or idle_function:
            _remove(node)


def _leave_out_checks(folded: fx.GraphModule) -> None:
    """Decide now what depends on the number of dimensions alone, such as timm's checks in front of normalizations."""
    for node in list(folded.graph.nodes):
        asks = (node.target is getattr and node.args[1] == "ndim") or (node.op, node.target) == ("call_method", "dim")
        if asks and "shape" in node.args[0].meta:
            _replace_by_value(node, len(node.args[0].meta["shape"]))
        elif node.target in _COMPARISONS and not node.all_input_nodes:
            _replace_by_value(node, node.target(*node.args))
        elif node.target is torch._assert and argument(node, 0, "condition") is True:
            node.graph.erase_node(node)


def _replace_by_value(node: fx.Node, value: bool | int) -> None:
    for user in list(node.users):
        user.args, user.kwargs = fx.node.map_arg((user.args, user.kwargs), lambda n: value if n is node else n)
    node.graph.erase_node(node)


def _compute_constants(folded: fx.GraphModule) -> None:
    """Compute once what depends on weights alone, such as kernels that are standardized in each call."""
    for node in list(folded.graph.nodes):
        # A call without inputs at all is that of a parametrized weight, such as a normalized one.
        alone = not node.all_input_nodes and node.op != "call_module"
        if not node.op.startswith("call_") or alone or works_in_place(node):
            continue
        if all(constant(folded, source) is not None for source in node.all_input_nodes):
            arguments = fx.node.map_arg((node.args, node.kwargs), lambda n: constant(folded, n))
            value = _computed(folded, node, *arguments)
            if isinstance(value, Tensor):
                node.replace_all_uses_with(put_constant(folded, value, "value", before=node))
                folded.graph.erase_node(node)


def works_in_place(node: fx.Node) -> bool:
    """Whether a function or a method writes to what it is given."""
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    in_place = (
        (name.endswith("_") and not name.endswith("__"))
        or name == "setitem"
        or node.target in (operator.iadd, operator.isub, operator.imul)
    )
    return in_place or node.kwargs.get("inplace") is True or "out" in node.kwargs


def _computed(folded: fx.GraphModule, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    function = called_module(folded, node) or node.target
    return function(*args, **kwargs)  # type: ignore[operator]


def _fold_normalization(folded: fx.GraphModule) -> None:
    for node in list(folded.graph.nodes):
        found = _scale_and_shift(folded, node)
        layer = None if found is None else _layer_before(folded, node, growing=bool((found[0] >= 0).all()))
        if found is not None and layer is not None and _fold_into(folded, layer, *found):
            _remove(node)


def _scale_and_shift(folded: fx.GraphModule, node: fx.Node) -> tuple[Tensor, Tensor] | None:
    """By what a normalization multiplies each channel and what it adds, float64 `[C]`; None for other nodes."""
    module = called_module(folded, node)
    values: list[Tensor | None]
    if module is not None and _is_norm(module):
        values = [module.running_mean, module.running_var, module.weight, module.bias]  # type: ignore[list-item]
        absent, eps = [value is None for value in values], float(module.eps)  # type: ignore[arg-type]
    elif node.target is F.batch_norm and argument(node, 5, "training", False) is False:
        names = ("running_mean", "running_var", "weight", "bias")
        given = [argument(node, position, name) for position, name in enumerate(names, start=1)]
        values, absent = [constant(folded, one) for one in given], [one is None for one in given]
        eps = argument(node, 7, "eps", 1e-5)
        if any(value is None and not is_absent for value, is_absent in zip(values, absent, strict=True)):
            return None
    else:
        return None
    if any(absent[:2]):  # it goes by the statistics of each batch
        return None
    mean, variance, weight, bias = (torch.zeros(()) if value is None else _exact(value) for value in values)
    scale = torch.rsqrt(variance + eps) * (1 if absent[2] else weight)
    return scale, bias - mean * scale


def _exact(value: Tensor) -> Tensor:
    """In float64, and on the CPU, since not every device has that."""
    return value.to("cpu", torch.float64)


def _layer_before(folded: fx.GraphModule, node: fx.Node, *, growing: bool) -> fx.Node | None:
    """The convolution or dense layer whose outputs go to this node alone, perhaps through pooling."""
    source = argument(node, 0, "input")
    while isinstance(source, fx.Node) and len(source.users) == 1:
        if source.target in CONVOLUTIONS:
            return source
        if source.target is _LINEAR:  # of more dimensions, its features are the last one and channels the second
            return source if len(source.meta["shape"]) == 2 else None
        pool = called_module(folded, source)
        if not (isinstance(pool, _MAX_POOLS) and growing) and not (
            isinstance(pool, _AVERAGE_POOLS) and _true_mean(pool)
        ):
            return None
        source = argument(source, 0, "input")
    return None


def _true_mean(pool: nn.Module) -> bool:
    """Of the pictures' own numbers, without zeros around them."""
    padding = getattr(pool, "padding", 0)
    padded = any(padding) if isinstance(padding, tuple) else bool(padding)
    return not (padded and getattr(pool, "count_include_pad", True)) and not getattr(pool, "divisor_override", None)


def _fold_into(folded: fx.GraphModule, layer: fx.Node, scale: Tensor, shift: Tensor) -> bool:
    weight, given = constant(folded, argument(layer, 1, "weight")), argument(layer, 2, "bias")
    bias = constant(folded, given)
    if weight is None or (given is not None and bias is None) or len(weight) != len(scale):
        return False
    new_weight = _exact(weight) * scale.view(-1, *[1] * (weight.ndim - 1))
    new_bias = shift if bias is None else shift + _exact(bias) * scale
    layout = torch.channels_last if weight.ndim == 4 else torch.contiguous_format
    nodes = [
        put_constant(folded, new_weight.to(weight.device, weight.dtype, memory_format=layout), "weight", before=layer),
        put_constant(folded, new_bias.to(weight.device, weight.dtype), "bias", before=layer),
    ]
    layer.args = (argument(layer, 0, "input"), *nodes, *layer.args[3:])
    layer.kwargs = {name: value for name, value in layer.kwargs.items() if name not in ("input", "weight", "bias")}
    return True


def _reuse_memory(folded: fx.GraphModule) -> None:
    """Let activations and sums write over an operand that nothing else reads."""
    for node in list(folded.graph.nodes):
        module = called_module(folded, node)
        if module is not None and type(module).__module__ == "torch.nn.modules.activation":
            if hasattr(module, "inplace") and _is_free(folded, argument(node, 0, "input")):
                alone = copy.copy(module)  # the module may be applied elsewhere, too
                alone.inplace = True  # type: ignore[assignment]
                node.target = f"netloom_{node.name}_in_place"
                folded.add_submodule(node.target, alone)
        elif node.op == "call_function" and getattr(node.target, "__module__", "") == F.__name__:
            names = list(inspect.signature(node.target).parameters)
            is_left_open = "inplace" in names and len(node.args) <= names.index("inplace")
            if is_left_open and _is_free(folded, argument(node, 0, "input")):
                node.kwargs = {**node.kwargs, "inplace": True}
        elif node.target in _ADDITIONS and len(node.args) == 2 and not node.kwargs:
            _add_in_place(folded, node)


def _is_free(folded: fx.GraphModule, node: Any) -> bool:
    """Whether a value is in memory of its own and is used once."""
    if not isinstance(node, fx.Node) or len(node.users) != 1:
        return False
    module = called_module(folded, node)
    makes = node.target in _MAKING_NEW_MEMORY or (module is not None and _is_norm(module))
    return "shape" in node.meta and (makes or SUMMED in node.meta)


def _add_in_place(folded: fx.GraphModule, node: fx.Node) -> None:
    first, second = node.args
    for one, other in ((first, second), (second, first)):
        if isinstance(one, fx.Node) and one is not other and _is_free(folded, one) and alike(one, node):
            node.target, node.args = operator.iadd, (one, other)
            node.meta[SUMMED] = True
            return


def alike(one: fx.Node, other: fx.Node) -> bool:
    """Whether two values have the same shape and type."""
    return all(one.meta.get(name) == other.meta.get(name) for name in ("shape", "dtype"))
