"""Functions written as instructions of LLVM, which makes machine code of them for the processor at hand.

Who imports this module needs llvmlite.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from llvmlite import binding, ir

INTEGER, FLOAT = ir.IntType(64), ir.FloatType()
POINTER = FLOAT.as_pointer()
_FLOAT_BYTES = 4  # what numbers in memory are aligned to
_PARALLEL = "GOMP_parallel"
_BARRIER, _THREAD_NUMBER, _N_THREADS = "GOMP_barrier", "omp_get_thread_num", "omp_get_num_threads"


def whole(number: int) -> Any:
    """A constant integer."""
    return ir.Constant(INTEGER, number)


def lanes_here() -> int:
    """Numbers that a register holds: as wide ones as the processor has, or torch is told to take."""
    return 16 if torch.backends.cpu.get_cpu_capability() == "AVX512" else 8


class Routine:
    """A function under construction: it takes pointers to float32 numbers and integers, and returns nothing.

    Args:
        module: Where it is added.
        name: In the module.
        pointers: Names of the arguments that point; no two to the same memory, but for what is only read.
        integers: Names of the arguments behind those.

    Attributes:
        build: llvmlite's builder, for arithmetic of integers.
        lanes: Numbers of a vector. LLVM makes several instructions where a register holds fewer.
    """

    lanes = 8

    def __init__(self, module: Any, name: str, *, pointers: Sequence[str], integers: Sequence[str]) -> None:
        types = [POINTER] * len(pointers) + [INTEGER] * len(integers)
        self.function = ir.Function(module, ir.FunctionType(ir.VoidType(), types), name)
        self.function.attributes.add("nounwind")
        self.function.attributes.add("noinline")
        self.build = ir.IRBuilder(self.function.append_basic_block())
        self._names = [*pointers, *integers]
        for argument in self.function.args[: len(pointers)]:
            argument.add_attribute("noalias")

    def arguments(self) -> dict[str, Any]:
        """By name."""
        return dict(zip(self._names, self.function.args, strict=True))

    def call(self, other: Routine, values: Mapping[str, Any]) -> None:
        """Call another routine with those of the values that it names."""
        self.build.call(other.function, [values[name] for name in other._names])

    def end(self) -> None:
        """Nothing follows."""
        self.build.ret_void()

    def loop(
        self, start: Any, stop: Any, step: int, body: Callable[..., Sequence[Any] | None], carried: Sequence[Any] = ()
    ) -> list[Any]:
        """`for i in range(start, stop, step)`, and what is carried from one turn to the next.

        Args:
            start: First value.
            stop: Behind the last one.
            step: At least 1.
            body: Takes the number and the carried values, and returns the latter's successors.
            carried: Before the first turn.

        Returns:
            The carried values behind the last turn.
        """
        build = self.build
        before = build.block
        turn, behind = self.function.append_basic_block(), self.function.append_basic_block()
        build.cbranch(build.icmp_signed("<", start, stop), turn, behind)
        build.position_at_end(turn)
        number = build.phi(INTEGER)
        number.add_incoming(start, before)
        current = [self._joined(value, before) for value in carried]
        successors = list(body(number, list(current)) or [])
        following = build.add(number, whole(step))
        last = build.block
        for value, successor in zip([number, *current], [following, *successors], strict=True):
            value.add_incoming(successor, last)
        build.cbranch(build.icmp_signed("<", following, stop), turn, behind)
        build.position_at_end(behind)
        results = [self._joined(value, before) for value in carried]
        for result, successor in zip(results, successors, strict=True):
            result.add_incoming(successor, last)
        return results

    def _joined(self, value: Any, block: Any) -> Any:
        joined = self.build.phi(value.type)
        joined.add_incoming(value, block)
        return joined

    def sum(self, *values: Any) -> Any:
        """Of integers."""
        total = values[0]
        for value in values[1:]:
            total = self.build.add(total, value)
        return total

    def product(self, *values: Any) -> Any:
        """Of integers."""
        total = values[0]
        for value in values[1:]:
            total = self.build.mul(total, value)
        return total

    def largest(self, a: Any, b: Any) -> Any:
        """Of two integers."""
        return self.build.select(self.build.icmp_signed(">", a, b), a, b)

    def is_null(self, pointer: Any) -> Any:
        """Whether it points nowhere."""
        return self.build.icmp_unsigned("==", self.build.ptrtoint(pointer, INTEGER), whole(0))

    @contextlib.contextmanager
    def vectors_of(self, lanes: int) -> Iterator[None]:
        """Within it vectors are of so many numbers."""
        before, self.lanes = self.lanes, lanes
        yield
        self.lanes = before

    def clear(self, pointer: Any, n: Any) -> None:
        """Store so many zeros, a multiple of `lanes`."""
        self.loop(whole(0), n, self.lanes, lambda i, _: self.store(self.zeros(), self.at(pointer, i)))

    def at(self, pointer: Any, place: Any) -> Any:
        """Where the number at this place is."""
        return self.build.gep(pointer, [place])

    def load(self, pointer: Any) -> Any:
        """A vector."""
        return self.build.load(self.build.bitcast(pointer, self._vector.as_pointer()), align=_FLOAT_BYTES)

    def store(self, vector: Any, pointer: Any) -> None:
        """A vector, of however many numbers."""
        self.build.store(vector, self.build.bitcast(pointer, vector.type.as_pointer()), align=_FLOAT_BYTES)

    def store_number(self, number: float, pointer: Any) -> None:
        """One."""
        self.build.store(ir.Constant(FLOAT, number), pointer)

    def copy(self, source: Any, target: Any, n: int) -> None:
        """So many numbers."""
        filled = n - n % self.lanes
        self.loop(
            whole(0),
            whole(filled),
            self.lanes,
            lambda i, _: self.store(self.load(self.at(source, i)), self.at(target, i)),
        )
        for i in range(filled, n):
            self.build.store(self.build.load(self.at(source, whole(i))), self.at(target, whole(i)))

    def piece(self, vector: Any, start: int, n: int) -> Any:
        """A vector of `n` numbers of a vector, from `start` on."""
        places = ir.Constant(ir.VectorType(ir.IntType(32), n), list(range(start, start + n)))
        return self.build.shuffle_vector(vector, ir.Constant(vector.type, ir.Undefined), places)

    def spread(self, pointer: Any) -> Any:
        """A vector of the one number there."""
        return self.all_alike(self.build.load(pointer))

    def gather(self, pointer: Any, stride: Any) -> Any:
        """A vector of numbers that lie so far apart."""
        vector = ir.Constant(self._vector, ir.Undefined)
        for lane in range(self.lanes):
            one = self.build.load(self.at(pointer, self.product(stride, whole(lane))))
            vector = self.build.insert_element(vector, one, ir.Constant(ir.IntType(32), lane))
        return vector

    def scatter(self, vector: Any, pointer: Any, stride: Any) -> None:
        """A vector's numbers to places that lie so far apart."""
        for lane in range(self.lanes):
            one = self.build.extract_element(vector, ir.Constant(ir.IntType(32), lane))
            self.build.store(one, self.at(pointer, self.product(stride, whole(lane))))

    def zeros(self) -> Any:
        """A vector."""
        return ir.Constant(self._vector, [0.0] * self.lanes)

    def either(self, condition: Any, number: float, other: float) -> Any:
        """A vector of one number where an integer is not zero, and of another where it is."""
        vectors = [ir.Constant(self._vector, [value] * self.lanes) for value in (number, other)]
        return self.build.select(self.build.icmp_signed("!=", condition, whole(0)), *vectors)

    def at_least(self, vector: Any, least: Any) -> Any:
        """The larger ones of two vectors' numbers; what is no number in the first one stays that."""
        return self.build.select(self.build.fcmp_ordered("<", vector, least), least, vector)

    def multiply_add(self, a: Any, b: Any, c: Any) -> Any:
        """`a * b + c` of vectors, rounded once."""
        name = f"llvm.fma.v{a.type.count}f32"
        instruction = self.function.module.globals.get(name)
        if instruction is None:
            instruction = ir.Function(self.function.module, ir.FunctionType(a.type, [a.type] * 3), name)
        return self.build.call(instruction, [a, b, c])

    def square_root(self, a: Any) -> Any:
        """Of each number of a vector."""
        name = f"llvm.sqrt.v{a.type.count}f32"
        instruction = self.function.module.globals.get(name)
        if instruction is None:
            instruction = ir.Function(self.function.module, ir.FunctionType(a.type, [a.type]), name)
        return self.build.call(instruction, [a])

    def all_alike(self, number: Any) -> Any:
        """A vector of one number."""
        undefined, first = ir.Constant(self._vector, ir.Undefined), ir.Constant(ir.IntType(32), 0)
        places = ir.Constant(ir.VectorType(ir.IntType(32), self.lanes), [0] * self.lanes)
        return self.build.shuffle_vector(self.build.insert_element(undefined, number, first), undefined, places)

    def combine(self, weights: Sequence[float], vectors: Sequence[Any]) -> Any:
        """The sum of vectors with constant weights, of which at least one is not zero."""
        terms = [(weight, vector) for weight, vector in zip(weights, vectors, strict=True) if weight]
        total = None
        for weight, vector in sorted(terms, key=lambda term: abs(term[0]) != 1):
            factor = ir.Constant(vector.type, [float(weight)] * vector.type.count)
            if total is None:
                total = vector if weight == 1 else self.build.fmul(vector, factor)
            elif weight == 1:
                total = self.build.fadd(total, vector)
            elif weight == -1:
                total = self.build.fsub(total, vector)
            else:
                total = self.multiply_add(vector, factor, total)
        return total

    @property
    def _vector(self) -> Any:
        return ir.VectorType(FLOAT, self.lanes)


class Part(Routine):
    """A routine that threads run at once, each its part of the work; it is given one block of 64-bit numbers.

    Args:
        module: Where it is added.
        name: In the module.
        pointers: Names of the first numbers, which are addresses.
        integers: Names of the numbers behind those; the last one is that of the threads.

    Attributes:
        number: Of the thread, from 0 on.
    """

    def __init__(self, module: Any, name: str, *, pointers: Sequence[str], integers: Sequence[str]) -> None:
        self.function = ir.Function(module, ir.FunctionType(ir.VoidType(), [INTEGER.as_pointer()]), name)
        self.build = ir.IRBuilder(self.function.append_basic_block())
        numbers = {
            name: self.build.load(self.build.gep(self.function.args[0], [whole(place)]))
            for place, name in enumerate((*pointers, *integers))
        }
        self._given = {
            name: self.build.inttoptr(number, POINTER) if name in pointers else number
            for name, number in numbers.items()
        }
        self._n_threads = numbers[integers[-1]]
        self.number = self._of_team(_THREAD_NUMBER, alone=0)
        self._n_threads = self._of_team(_N_THREADS, alone=1)  # there may be fewer than were asked for

    def arguments(self) -> dict[str, Any]:
        """By name."""
        return dict(self._given)

    def share(self, n: Any) -> tuple[Any, Any]:
        """Of so many things the first of this thread's, and what is behind its last."""
        following = self.sum(self.number, whole(1))
        first, behind = (self.build.sdiv(self.product(n, i), self._n_threads) for i in (self.number, following))
        return first, behind

    def meet(self) -> None:
        """Wait until all threads are here."""
        with self.build.if_then(self._are_several()):
            self.build.call(_outside(self.function.module, _BARRIER, ir.VoidType()), [])

    def _are_several(self) -> Any:
        return self.build.icmp_signed(">", self._n_threads, whole(1))

    def _of_team(self, name: str, *, alone: int) -> Any:
        place = self.build.alloca(INTEGER)
        self.build.store(whole(alone), place)
        with self.build.if_then(self._are_several()):
            number = self.build.call(_outside(self.function.module, name, ir.IntType(32)), [])
            self.build.store(self.build.zext(number, INTEGER), place)
        return self.build.load(place)


def _outside(module: Any, name: str, result: Any) -> Any:
    """A function without arguments that is not of the module."""
    return module.globals.get(name) or ir.Function(module, ir.FunctionType(result, []), name)


class Threads:
    """The threads that torch divides its operations among, where these are GNU's or can be called like them.

    They wait, spinning, for what comes next, so that nobody has to be woken.
    """

    def __init__(self) -> None:
        self._library = _openmp()

    @property
    def are_several(self) -> bool:
        """Whether more than one can be had."""
        return self._library is not None

    def define_symbols(self) -> None:
        """Let LLVM know what parts call; without threads nobody calls it."""
        for name in (_BARRIER, _THREAD_NUMBER, _N_THREADS):
            function = getattr(self._library, name) if self._library is not None else ctypes.pythonapi.Py_IsInitialized
            binding.add_symbol(name, ctypes.cast(function, ctypes.c_void_p).value)

    def run(self, address: int, numbers: ctypes.Array[ctypes.c_int64], n_threads: int) -> None:
        """Run a part on as many threads at once, the calling one among them."""
        if self._library is None:
            raise RuntimeError("there are no threads that machine code could run on")
        getattr(self._library, _PARALLEL)(ctypes.c_void_p(address), numbers, n_threads, 0)


def _openmp() -> ctypes.CDLL | None:
    folder = Path(torch.__file__).parent
    for path in sorted([*(folder / "lib").glob("libgomp*"), *folder.with_name("torch.libs").glob("libgomp*")]):
        with contextlib.suppress(OSError, AttributeError):
            library = ctypes.CDLL(str(path))
            if all(hasattr(library, name) for name in (_BARRIER, _THREAD_NUMBER, _N_THREADS, _PARALLEL)):
                return library
    return None


class Program:
    """Machine code of a module's routines.

    Args:
        module: Whose routines have ended.
        names: Of the parts that are called from outside.

    Raises:
        RuntimeError: LLVM cannot make code for this processor.
    """

    def __init__(self, module: Any, names: Sequence[str]) -> None:
        binding.initialize_native_target()
        binding.initialize_native_asmprinter()
        features = binding.get_host_cpu_features().flatten()
        target = binding.Target.from_default_triple().create_target_machine(
            cpu=binding.get_host_cpu_name(), features=features, opt=3
        )
        parsed = binding.parse_assembly(str(module))
        # Vectors are written out; what LLVM would find to vectorize or to unroll only takes it time.
        options = binding.create_pipeline_tuning_options(speed_level=2)
        options.loop_vectorization = options.slp_vectorization = options.loop_unrolling = False
        passes = binding.create_pass_builder(target, options)
        passes.getModulePassManager().run(parsed, passes)
        self._threads = Threads()
        self._engine = binding.create_mcjit_compiler(parsed, target)
        self._threads.define_symbols()
        self._engine.finalize_object()
        self._addresses = {name: self._engine.get_function_address(name) for name in names}
        alone = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
        self._parts = {name: alone(address) for name, address in self._addresses.items()}

    def address(self, name: str) -> int:
        """Of a part's machine code."""
        address: int = self._addresses[name]
        return address

    @property
    def most_threads(self) -> int:
        """How many can run a part at once: those of torch, or one where these cannot be had."""
        return torch.get_num_threads() if self._threads.are_several else 1

    def run(self, name: str, numbers: Sequence[int]) -> None:
        """Run a part on as many threads as its last number says; other threads of Python run meanwhile.

        Args:
            name: Of the part.
            numbers: What it is given.
        """
        block = (ctypes.c_int64 * len(numbers))(*numbers)
        if numbers[-1] > 1:
            self._threads.run(self._addresses[name], block, numbers[-1])
        else:
            self._parts[name](block)
