"""Pieces of a captured step in machine code: what is ready to run, and the operation by which TorchScript runs it."""

from __future__ import annotations

import itertools
import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from netloom.kernels.calls import CallSequence, PartCall


@dataclass(frozen=True)
class Address:
    """Where a part finds a value.

    Attributes:
        value: Number of an input of the piece, or of a place in its memory.
        is_input: Which of these.
        offset: Numbers from its beginning on.
    """

    value: int
    is_input: bool
    offset: int = 0


@dataclass(frozen=True)
class View:
    """How a tensor lies in memory."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype = torch.float32

    def of(self, memory: torch.Tensor, place: int) -> torch.Tensor:
        """It, at this place of a memory of float32 numbers."""
        if self.dtype == memory.dtype:
            return memory.as_strided(self.shape, self.strides, place)
        numbers = memory[: memory.numel() // 2 * 2].view(self.dtype)
        return numbers.as_strided(self.shape, self.strides, place * memory.element_size() // numbers.element_size())

    def laid_out(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor, so laid out."""
        if tensor.stride() == self.strides:
            return tensor
        return torch.empty_strided(self.shape, self.strides, dtype=tensor.dtype).copy_(tensor)


class Piece:
    """Calls of parts behind one another. What it returns is written over by the next run.

    Args:
        calls: Each with the addresses of what it is given; None for nothing.
        memory: Float32 numbers, of which places are taken.
        inputs: How those lie in memory.
        outputs: Places in the memory, and how they lie there.
        n_threads: That run it.

    Attributes:
        n_calls: How many.
        number: By which TorchScript asks for it.
    """

    def __init__(
        self,
        calls: Sequence[tuple[PartCall, Sequence[Address | None]]],
        memory: torch.Tensor,
        inputs: Sequence[View],
        outputs: Sequence[tuple[int, View]],
        n_threads: int,
    ) -> None:
        self._memory, self._inputs = memory, inputs
        self._outputs = [view.of(memory, place) for place, view in outputs]
        begin, size = memory.data_ptr(), memory.element_size()
        self._users: list[list[tuple[int, int, int]]] = [[] for _ in inputs]
        with_addresses = []
        for number, (call, addresses) in enumerate(calls):
            known = []
            for place, address in enumerate(addresses):
                if address is not None and address.is_input:
                    self._users[address.value].append((number, place, address.offset * size))
                is_known = address is not None and not address.is_input
                known.append(begin + size * (address.value + address.offset) if is_known and address else 0)
            with_addresses.append((call, known))
        self._sequence = CallSequence(with_addresses, n_threads)
        self.n_calls = len(calls)
        self._known = [0] * len(inputs)
        self.number = next(_numbers)
        _pieces[self.number] = self

    def run(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """The outputs for these inputs."""
        kept = [view.laid_out(tensor) for view, tensor in zip(self._inputs, inputs, strict=True)]
        for number, tensor in enumerate(kept):
            address = tensor.data_ptr()
            if address != self._known[number]:
                self._known[number] = address
                for call, place, offset in self._users[number]:
                    self._sequence.put(call, place, address + offset)
        self._sequence.run()
        return self._outputs


_numbers = itertools.count()
_pieces: weakref.WeakValueDictionary[int, Piece] = weakref.WeakValueDictionary()

_kept = threading.local()

_library = torch.library.Library("netloom", "FRAGMENT")  # type: ignore[no-untyped-call]
# That it writes into a memory of which its outputs are views keeps TorchScript from leaving out or reordering calls.
_SIGNATURE = "run_machine_code(int number, Tensor(a!) memory, Tensor[] inputs) -> Tensor(a)[]"
_library.define(_SIGNATURE)  # type: ignore[no-untyped-call]


@torch.library.impl(_library, "run_machine_code", "CPU")
def _run(number: int, memory: torch.Tensor, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    try:
        return _pieces[number].run(inputs)
    except BaseException as error:
        _kept.error = error
        raise


def original_of(error: BaseException) -> BaseException:
    """What was raised in machine code's operation on this thread: TorchScript makes a `RuntimeError` of everything."""
    original = getattr(_kept, "error", None)
    _kept.error = None
    return error if original is None else original
