"""What a graph of a model's operations cannot hold: hooks, and what its own code keeps from one call to the next.

Whoever traces a model does so on a `replica_of` it, and asks afterwards whether the trace left something in there.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as every_module

_PLAIN = (bool, int, float, str, type(None))
_CONTAINERS = (list, tuple, dict, set)
# Parameters, buffers, modules and hooks, which the walk over modules compares or others do, and the mode.
_OF_TORCH = frozenset(vars(nn.Module()))


def replica_of(model: nn.Module) -> nn.Module:
    """The same modules, made anew around the same parameters and buffers, and with the same hooks on these."""
    shared = {id(tensor): tensor for tensor in itertools.chain(model.parameters(), model.buffers())}
    return copy.deepcopy(model, shared)


def has_forward_hooks(model: nn.Module) -> bool:
    """Whether something beside its own code runs when the model is called."""
    everywhere = every_module._global_forward_hooks or every_module._global_forward_pre_hooks
    return bool(everywhere) or any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def has_hooks(model: nn.Module) -> bool:
    """Whether something beside its own code runs in a training step, of modules or of parameters' gradients."""
    everywhere = every_module._global_backward_hooks or every_module._global_backward_pre_hooks
    return (
        has_forward_hooks(model)
        or bool(everywhere)
        or any(m._backward_hooks or m._backward_pre_hooks for m in model.modules())
        or any(p._backward_hooks or p._post_accumulate_grad_hooks for p in model.parameters())
    )


def held_tensors(model: nn.Module) -> set[int]:
    """The `id` of all tensors that its modules have for attributes, or in containers that they have."""
    return {
        id(value)
        for module in model.modules()
        for attribute in vars(module).values()
        for value in _values(attribute)
        if isinstance(value, torch.Tensor)
    }


def keeps_state(model: nn.Module, replica: nn.Module, *, is_traced: Callable[[Any], bool]) -> bool:
    """Whether a trace of `replica` has left something in its modules: their code does so in every call.

    Args:
        model: What the replica was made of.
        replica: After it was traced.
        is_traced: Tells values that only a trace makes.
    """
    for before, after in zip(model.modules(), replica.modules(), strict=True):
        if vars(before).keys() != vars(after).keys():
            return True
        for name, value in vars(after).items():
            if name in _OF_TORCH:
                changed = any(map(is_traced, _values(value)))
            else:
                changed = _changed(vars(before)[name], value, is_traced)
            if changed:
                return True
    return False


def fingerprint(model: nn.Module) -> list[object]:
    """What a captured step takes for granted, to be compared with that of a later moment.

    Which parameters there are and train, which modules are in training mode, and what these have for attributes: of
    numbers and texts (a dropout's `p`, a normalization's `momentum`) their values, of other things which they are.
    Values of parameters and buffers are left out: steps change them.
    """
    marks: list[object] = [(id(p), p.requires_grad) for p in model.parameters()]
    marks += [id(buffer) for buffer in model.buffers()]
    for module in model.modules():
        own = [(name, _mark(value)) for name, value in vars(module).items() if name not in _OF_TORCH]
        marks.append((type(module), module.training, own))
    return marks


def _mark(value: Any) -> object:
    """Of an attribute, or of all that a container has."""
    return (
        (type(value), [_mark_of_one(v) for v in _items(value)])
        if isinstance(value, _CONTAINERS)
        else _mark_of_one(value)
    )


def _mark_of_one(value: Any) -> object:
    if isinstance(value, torch.Tensor):
        return id(value), None if value.is_inference() else value._version
    return (type(value), repr(value)) if isinstance(value, _PLAIN) else id(value)


def _items(value: Any) -> list[Any]:
    return [*value, *value.values()] if isinstance(value, dict) else list(value)


def _changed(old: Any, new: Any, is_traced: Callable[[Any], bool]) -> bool:
    if not isinstance(new, _CONTAINERS):
        return is_traced(new) or _is_another(old, new)
    if type(old) is not type(new) or len(old) != len(new):
        return True
    in_order = not isinstance(new, set)
    return any(
        is_traced(b) or (in_order and _is_another(a, b)) for a, b in zip(_values(old), _values(new), strict=True)
    )


def _is_another(old: Any, new: Any) -> bool:
    """Of numbers and texts; of other things nobody can tell."""
    return isinstance(new, _PLAIN) and (type(old) is not type(new) or bool(old != new))


def _values(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return list(value) if isinstance(value, (list, tuple, set)) else [value]
