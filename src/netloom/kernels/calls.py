"""Calls of machine code: which part, with what numbers, and what room it needs."""

from __future__ import annotations

import ctypes
import functools
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ParamSpec

import torch

if TYPE_CHECKING:
    from netloom.kernels.llvm import Program


_Arguments = ParamSpec("_Arguments")
_compiling = threading.RLock()


@dataclass(frozen=True)
class PartCall:
    """A part with all it is given but addresses.

    Attributes:
        program: Whose part it is.
        name: Of the part.
        integers: Behind the addresses; the last one is the number of threads.
        n_scratch: Numbers that it needs room for, whose address is the last one; 0 for none.
        needs_zeros: Whether that room must have been zeros before the first call, and be nobody else's.
    """

    program: Program
    name: str
    integers: tuple[int, ...]
    n_scratch: int = 0
    needs_zeros: bool = False

    def run(self, *tensors: torch.Tensor | int | None) -> None:
        """Run it on these: tensors, for None nothing, or an address."""
        addresses = [t if isinstance(t, int) else 0 if t is None else t.data_ptr() for t in tensors]
        room = self.room() if self.n_scratch else None
        if room is not None:
            addresses.append(room.data_ptr())
        self.program.run(self.name, (*addresses, *self.integers))

    def room(self) -> torch.Tensor:
        """For one call."""
        return numbers(self.n_scratch, zeros=self.needs_zeros)


class CallSequence:
    """Calls that threads take one behind the other, without returning in between.

    Args:
        calls: Each with its addresses, all but that of its room.
        n_threads: That all of them are given.
    """

    def __init__(self, calls: Sequence[tuple[PartCall, Sequence[int]]], n_threads: int) -> None:
        self._calls = [call for call, _ in calls]  # so that their machine code is kept
        shared = numbers(max((call.n_scratch for call in self._calls if not call.needs_zeros), default=0))
        self._rooms = [shared]
        self._blocks: list[ctypes.Array[ctypes.c_int64]] = []
        self._n_threads = n_threads
        table: list[int] = []
        for call, addresses in calls:
            own = shared
            if call.needs_zeros:
                own = call.room()
                self._rooms.append(own)
            given = (*addresses, *([own.data_ptr()] if call.n_scratch else []), *call.integers)
            block = (ctypes.c_int64 * len(given))(*given)
            self._blocks.append(block)
            table += [call.program.address(call.name), ctypes.addressof(block)]
        self._table = (ctypes.c_int64 * len(table))(*table)
        self._numbers = (ctypes.addressof(self._table), len(calls), n_threads)

    def put(self, call: int, place: int, address: int) -> None:
        """Give a call another address."""
        self._blocks[call][place] = address

    def run(self) -> None:
        """All calls."""
        _runner().run("run_calls", self._numbers)


def numbers(n: int, *, zeros: bool = False) -> torch.Tensor:
    """Memory for so many, float32 whatever torch's default is."""
    return (torch.zeros if zeros else torch.empty)(n, dtype=torch.float32, device="cpu")


def usable() -> bool:
    """Whether machine code can be made on this machine."""
    try:
        _runner()
    except (ImportError, AttributeError, OSError, RuntimeError):
        return False
    return True


def most_threads() -> int:
    """How many can run a part at once: those of torch, or one where these cannot be had."""
    return _runner().most_threads


def compiled_once(compile_program: Callable[_Arguments, Program]) -> Callable[_Arguments, Program]:
    """The function, which makes the same program once, whichever thread is the first to ask for it."""
    kept = functools.lru_cache(maxsize=64)(compile_program)

    @functools.wraps(compile_program)
    def program(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> Program:
        with _compiling:
            return kept(*args, **kwargs)  # type: ignore[arg-type]

    program.forget = kept.cache_clear  # type: ignore[attr-defined]
    return program


@compiled_once
def _runner() -> Program:
    from llvmlite import ir

    from netloom.kernels.llvm import INTEGER, Part, Program, whole

    module = ir.Module("calls")
    part = Part(module, "run_calls", pointers=("table",), integers=("n", "n_threads"))
    given, build = part.arguments(), part.build
    block = INTEGER.as_pointer()
    table = build.bitcast(given["table"], block)
    function = ir.FunctionType(ir.VoidType(), [block]).as_pointer()

    def do_call(number: object, _: object) -> None:
        place = part.product(number, whole(2))
        address, block_address = (build.load(build.gep(table, [part.sum(place, whole(i))])) for i in (0, 1))
        build.call(build.inttoptr(address, function), [build.inttoptr(block_address, block)])
        part.meet()

    part.loop(whole(0), given["n"], 1, do_call)
    part.end()
    return Program(module, ["run_calls"])
