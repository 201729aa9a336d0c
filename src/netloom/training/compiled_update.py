"""An optimizer's update in machine code of ours: all parameters of a group by one call.

The state is that of torch's optimizer, in whose place a step is taken, so that either may take the next one.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from netloom.kernels import parts
from netloom.training.optimizer_state import KEPT, Group, State, averages_of, nadam_momentum, nadam_rates, state_of

_ENTRY = parts.MOST_AVERAGES + 4  # numbers of the table for a parameter, see `update_code.py`
_FORMULAS: dict[type[torch.optim.Optimizer], str] = {
    torch.optim.SGD: "sgd",
    torch.optim.Adam: "adam",
    torch.optim.AdamW: "adamw",
    torch.optim.NAdam: "nadam",
    torch.optim.RMSprop: "rmsprop",
}


class CompiledUpdate:
    """Takes an optimizer's steps, in the last bits other than its own.

    Args:
        optimizer: Over parameters on the CPU.
        n_threads: Among which the numbers are divided.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, n_threads: int) -> None:
        self._optimizer, self._n_threads = optimizer, n_threads
        self._formula = _FORMULAS.get(type(optimizer))
        self._groups: list[_KnownGroup] = []
        self._updates: dict[tuple[bool, bool, bool], Callable[[int, int, int], None]] = {}

    def __call__(self) -> bool:
        """Take one step with the gradients that are there; false, and nothing is done, if that cannot be done here."""
        if self._formula is None:
            return False
        groups = self._optimizer.param_groups
        if len(groups) != len(self._groups) or not all(map(_KnownGroup.is_as_it_was, self._groups, groups)):
            found = [_known(self._optimizer, group) for group in groups]
            self._groups = [known for known in found if known is not None]
            if len(self._groups) < len(groups):
                self._groups = []
                return False
        for known, group in zip(self._groups, groups, strict=True):
            if known.entries:
                self._update(self._formula, known, group)
        return True

    def _update(self, formula: str, known: _KnownGroup, group: Group) -> None:
        known.count(formula, group)
        decay = group["weight_decay"] != 0
        momentum = formula in ("sgd", "rmsprop") and group["momentum"] != 0
        which = (decay, momentum, momentum and bool(group.get("nesterov")))
        if which not in self._updates:
            self._updates[which] = parts.update(formula, decays=decay, momentum=momentum, nesterov=which[2])
        self._updates[which](known.table, len(known.entries), self._n_threads)


@dataclass(frozen=True, eq=False)
class _Entry:
    """A parameter with a gradient as the last step found it.

    Attributes:
        parameter: That is updated.
        address: Of its numbers.
        gradient: That it had.
        state: Of the optimizer for it.
        averages: In that state.
        counts: Likewise.
        numbers: Of the latter.
    """

    parameter: torch.Tensor
    address: int
    gradient: torch.Tensor
    state: State
    averages: dict[str, torch.Tensor]
    counts: dict[str, torch.Tensor]
    numbers: tuple[ctypes.c_float, ...]

    def is_as_it_was(self, state: State) -> bool:
        """Whether everything lies where it lay."""
        if self.parameter.data_ptr() != self.address or state is not self.state:
            return False
        gradient = self.parameter.grad
        if gradient is not self.gradient and not _lie_alike(gradient, self.gradient):
            return False
        return all(state[name] is t for kept in (self.averages, self.counts) for name, t in kept.items())


class _KnownGroup:
    """Parameters of a group, and what the machine code is given of them.

    Attributes:
        entries: Those with gradients.
        table: Its address.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, group: Group, entries: list[_Entry]) -> None:
        self.entries = entries
        self._optimizer, self._names = optimizer, averages_of(optimizer, group)
        having = {entry.parameter for entry in entries}
        self._n_parameters = len(group["params"])
        self._without = [p for p in group["params"] if p not in having]
        self._blocks: list[ctypes.Array[ctypes.c_float]] = []
        numbers = []
        for entry in entries:
            averages = [average.data_ptr() for average in entry.averages.values()]
            averages += [0] * (parts.MOST_AVERAGES - len(averages))
            numbers += [entry.address, entry.gradient.data_ptr(), *averages, 0, entry.parameter.numel()]
        self._numbers = (ctypes.c_int64 * len(numbers))(*numbers)
        self._blocks_of_entries = [0] * len(entries)
        self.table = ctypes.addressof(self._numbers)

    def is_as_it_was(self, group: Group) -> bool:
        """Whether everything lies where it lay."""
        if len(group["params"]) != self._n_parameters or averages_of(self._optimizer, group) != self._names:
            return False
        states = self._optimizer.state
        return all(p.grad is None for p in self._without) and all(
            entry.is_as_it_was(states[entry.parameter]) for entry in self.entries
        )

    def count(self, formula: str, group: Group) -> None:
        """Count the step, and tell the table its coefficients."""
        blocks: dict[tuple[float, ...], tuple[int, tuple[float, ...]]] = {}
        for number, entry in enumerate(self.entries):
            before = tuple([count.value for count in entry.numbers])
            if before not in blocks:
                counts = _counted(before, group)
                blocks[before] = (self._block(len(blocks), _coefficients(formula, counts, group)), counts)
            address, counts = blocks[before]
            for count, value in zip(entry.numbers, counts, strict=True):
                count.value = value
            if self._blocks_of_entries[number] != address:
                self._blocks_of_entries[number] = address
                self._numbers[number * _ENTRY + _ENTRY - 2] = address

    def _block(self, number: int, coefficients: tuple[float, ...]) -> int:
        """The address of these coefficients."""
        if number == len(self._blocks):
            self._blocks.append((ctypes.c_float * parts.MOST_COEFFICIENTS)())
        self._blocks[number][: len(coefficients)] = [*coefficients]
        return ctypes.addressof(self._blocks[number])


def _known(optimizer: torch.optim.Optimizer, group: Group) -> _KnownGroup | None:
    """None if something does not lie in memory alike, or is of another type."""
    entries = []
    for parameter in group["params"]:
        if parameter.grad is None:
            continue
        state = state_of(optimizer, parameter, group)
        averages = {name: state[name] for name in averages_of(optimizer, group)}
        counts = {name: state[name] for name in KEPT[type(optimizer)].counts}
        alike = (parameter, parameter.grad, *averages.values())
        if not all(map(_is_plain, (*alike, *counts.values()))) or not _is_dense(parameter):
            return None
        if any(t.stride() != parameter.stride() for t in alike):
            return None
        numbers = tuple(ctypes.c_float.from_address(count.data_ptr()) for count in counts.values())
        entry = _Entry(parameter, parameter.data_ptr(), parameter.grad, state, averages, counts, numbers)
        entries.append(entry)
    return _KnownGroup(optimizer, group, entries)


def _counted(before: tuple[float, ...], group: Group) -> tuple[float, ...]:
    """The step, and NAdam's product of momenta, where they are counted."""
    if not before:
        return ()
    step = before[0] + 1
    product = (ctypes.c_float(before[1] * nadam_momentum(group, step)).value for _ in before[1:])
    return (step, *product)


def _coefficients(formula: str, counts: tuple[float, ...], group: Group) -> tuple[float, ...]:
    """In the order of `update_code.COEFFICIENTS`."""
    rate, decay = float(group["lr"]), float(group["weight_decay"])
    if formula == "sgd":
        return decay, group["momentum"], -rate
    if formula == "rmsprop":
        return decay, group["momentum"], -rate, group["alpha"], 1 - group["alpha"], group["eps"]
    (beta1, beta2), step = group["betas"], counts[0]
    of_averages = (1 - beta1, beta2, 1 - beta2)
    if formula == "nadam":
        correction, of_gradient, of_mean = nadam_rates(step, counts[1], group)
        return decay, *of_averages, 1 / correction, group["eps"], of_gradient, of_mean
    decay = 1 - rate * decay if formula == "adamw" else decay
    return decay, *of_averages, 1 / (1 - beta2**step), group["eps"], -rate / (1 - beta1**step)


def _is_plain(tensor: torch.Tensor) -> bool:
    return tensor.dtype == torch.float32 and tensor.layout == torch.strided and tensor.device.type == "cpu"


def _lie_alike(tensor: torch.Tensor | None, other: torch.Tensor) -> bool:
    """Whether a tensor is another view of the same numbers."""
    if tensor is None or tensor.data_ptr() != other.data_ptr() or tensor.stride() != other.stride():
        return False
    return tensor.dtype == other.dtype and tensor.layout == other.layout


def _is_dense(tensor: torch.Tensor) -> bool:
    """Whether it lies in memory without gaps, in whatever order."""
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1 and stride != expected:
            return False
        expected *= size
    return math.prod(tensor.shape) > 0
