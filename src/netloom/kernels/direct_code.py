"""The machine code of convolutions with few input channels, for `direct.py`: sums of products, for one shape each.

Pictures and gradients lie in channels-last memory. So a row of a kernel meets numbers that lie beside each other, and
what is summed stays in registers: outputs of some places beside each other, or gradients of some weights, each for as
many kernels as fill one or two registers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from llvmlite import ir

from netloom.kernels.llvm import POINTER, Part, Program, Routine, whole

# Sums that are kept in registers at once, of which there are 16 of 8 numbers or 32 of 16.
_SUMS = {8: 12, 16: 24}
_MOST_VECTORS = 2
_MOST_BLOCKS = 32  # of pictures, whose shares of a kernel's gradient are summed apart


@dataclass(frozen=True)
class DirectShape:
    """A convolution of stride 1.

    Attributes:
        channels: Of the pictures.
        kernels: How many.
        kernel_size: Height and width.
        size: Of the pictures, height and width.
        padding: Of zeros, above and below, left and right.
        lanes: Numbers of a register.
    """

    channels: int
    kernels: int
    kernel_size: tuple[int, int]
    size: tuple[int, int]
    padding: tuple[int, int]
    lanes: int

    @property
    def out_size(self) -> tuple[int, int]:
        """Of the outputs."""
        height, width = (s + 2 * p - k + 1 for s, p, k in zip(self.size, self.padding, self.kernel_size, strict=True))
        return height, width

    @property
    def padded(self) -> tuple[int, int]:
        """Size of the pictures with their zeros."""
        height, width = (s + 2 * p for s, p in zip(self.size, self.padding, strict=True))
        return height, width

    @property
    def vector(self) -> int:
        """Numbers of the vectors that are taken."""
        return min(self.lanes, 8) if self.kernels <= 8 else self.lanes

    @property
    def room(self) -> int:
        """Kernels, up to whole vectors."""
        return -(-self.kernels // self.vector) * self.vector

    @property
    def row(self) -> int:
        """Numbers of a kernel's row."""
        return self.kernel_size[1] * self.channels

    @property
    def rows(self) -> int:
        """Numbers of a kernel."""
        return self.kernel_size[0] * self.row

    @property
    def fills(self) -> bool:
        """Whether kernels fill whole vectors."""
        return self.room == self.kernels

    @property
    def own(self) -> int:
        """Numbers that a thread has room for: biases, a row of outputs, and a picture with its zeros."""
        height, width = self.padded
        return self.room * (1 + self.out_size[1]) + height * width * self.channels * any(self.padding)

    def blocks(self, n: int) -> int:
        """Into how many `n` pictures are divided for the kernel's gradient, however many threads there are."""
        return min(n, _MOST_BLOCKS)

    def convolve_numbers(self, n_threads: int) -> int:
        """How many numbers the part `convolve` has room for: its kernels, and each thread's own."""
        return self.rows * self.room + n_threads * self.own

    def weight_gradient_numbers(self, n: int, n_threads: int) -> int:
        """How many numbers the part `weight_gradient` has room for: each block's gradient, and each thread's own."""
        return self.blocks(n) * self.rows * self.room + n_threads * self.own


def compile_direct(shape: DirectShape) -> Program:
    """The parts `convolve` and `weight_gradient`.

    `convolve` takes addresses of pictures, kernels, bias (or 0), outputs and room, and then the number of pictures,
    distances in the kernels' memory (by kernel, channel, row and column), whether outputs below zero become zero, and
    threads. `weight_gradient` takes addresses of pictures, the outputs' gradient, the kernels' gradient (in
    channels-last memory) and room, and then the number of pictures, that of blocks of them, and threads.
    """
    module = ir.Module("direct")
    _add_convolve(module, shape)
    _add_weight_gradient(module, shape)
    return Program(module, ["convolve", "weight_gradient"])


def _groups(shape: DirectShape) -> list[tuple[int, int]]:
    """Vectors that are taken at once: the first of them, and how many."""
    n = shape.room // shape.vector
    return [(first, min(_MOST_VECTORS, n - first)) for first in range(0, n, _MOST_VECTORS)]


def _add_convolve(module: Any, shape: DirectShape) -> None:
    sizes = ("n", "of_kernels", "of_channels", "of_rows", "of_columns", "relu", "n_threads")
    part = Part(module, "convolve", pointers=("pictures", "weights", "bias", "outputs", "scratch"), integers=sizes)
    given = part.arguments()
    _pack_kernels(part, shape, given)
    own = part.at(
        given["scratch"], part.sum(whole(shape.rows * shape.room), part.product(part.number, whole(shape.own)))
    )
    bias, buffer, picture = _own_parts(part, shape, own)
    with part.build.if_then(part.build.not_(part.is_null(given["bias"]))):
        part.copy(given["bias"], bias, shape.kernels)
    rows = [_convolve_row(module, shape, first, count) for first, count in _groups(shape)]
    part.meet()
    first, stop = part.share(given["n"])
    (out_height, out_width), width = shape.out_size, shape.padded[1] * shape.channels

    def do_picture(number: Any, _: Any) -> None:
        source = _padded_picture(part, shape, given["pictures"], number, picture)
        target = part.at(given["outputs"], part.product(number, whole(out_height * out_width * shape.kernels)))

        def do_row(y: Any, _: Any) -> None:
            begin = part.at(source, part.product(y, whole(width)))
            end = part.at(target, part.product(y, whole(out_width * shape.kernels)))
            values = {"pictures": begin, "weights": given["scratch"], "outputs": end if shape.fills else buffer}
            for row in rows:
                part.call(row, {**values, "bias": bias, "relu": given["relu"]})
            if not shape.fills:
                _close_ranks(part, shape, buffer, end)

        part.loop(whole(0), whole(out_height), 1, do_row)

    part.loop(first, stop, 1, do_picture)
    part.end()


def _close_ranks(part: Part, shape: DirectShape, row: Any, target: Any) -> None:
    """Copy a row without what lies between the kernels of one place and those of the next."""
    part.lanes = shape.vector
    n = shape.out_size[1]
    n_vectors = max(0, n - -(-shape.room // shape.kernels) + 1)  # whose vectors end within the row

    def do_place(x: Any, _: Any) -> None:
        source, place = (part.at(p, part.product(x, whole(n))) for p, n in ((row, shape.room), (target, shape.kernels)))
        for start in range(0, shape.room, shape.vector):  # what is too much the next place writes over
            part.store(part.load(part.at(source, whole(start))), part.at(place, whole(start)))

    part.loop(whole(0), whole(n_vectors), 1, do_place)
    for x in range(n_vectors, n):
        part.copy(part.at(row, whole(x * shape.room)), part.at(target, whole(x * shape.kernels)), shape.kernels)


def _own_parts(part: Part, shape: DirectShape, own: Any) -> tuple[Any, Any, Any]:
    """Room for biases and for a row, and for a picture with its zeros; zeros are there already."""
    part.loop(whole(0), whole(shape.own), 1, lambda i, _: part.store_number(0.0, part.at(own, i)))
    return own, part.at(own, whole(shape.room)), part.at(own, whole(shape.room * (1 + shape.out_size[1])))


def _padded_picture(part: Part, shape: DirectShape, pictures: Any, number: Any, room: Any) -> Any:
    """Where a picture begins, copied between its zeros if it has some."""
    height, width = shape.size
    row = width * shape.channels
    source = part.at(pictures, part.product(number, whole(height * row)))
    if not any(shape.padding):
        return source
    (top, left), padded_row = shape.padding, shape.padded[1] * shape.channels
    target = part.at(room, whole(top * padded_row + left * shape.channels))

    def do_row(y: Any, _: Any) -> None:
        part.copy(
            part.at(source, part.product(y, whole(row))), part.at(target, part.product(y, whole(padded_row))), row
        )

    part.loop(whole(0), whole(height), 1, do_row)
    return room


def _pack_kernels(part: Part, shape: DirectShape, given: dict[str, Any]) -> None:
    """Kernels by (row, column, channel, kernel), zeros behind the last kernel."""
    first, stop = part.share(whole(shape.rows))

    def do_place(place: Any, _: Any) -> None:
        down, within = part.build.sdiv(place, whole(shape.row)), part.build.srem(place, whole(shape.row))
        across, channel = (f(within, whole(shape.channels)) for f in (part.build.sdiv, part.build.srem))
        offsets = [(down, "of_rows"), (across, "of_columns"), (channel, "of_channels")]
        source = part.at(given["weights"], part.sum(*(part.product(i, given[name]) for i, name in offsets)))
        target = part.at(given["scratch"], part.product(place, whole(shape.room)))

        def do_kernel(kernel: Any, _: Any) -> None:
            number = part.build.load(part.at(source, part.product(kernel, given["of_kernels"])))
            part.build.store(number, part.at(target, kernel))

        part.loop(whole(0), whole(shape.kernels), 1, do_kernel)
        for kernel in range(shape.kernels, shape.room):
            part.store_number(0.0, part.at(target, whole(kernel)))

    part.loop(first, stop, 1, do_place)


def _convolve_row(module: Any, shape: DirectShape, first: int, count: int) -> Routine:
    """A row of outputs for the kernels of `count` vectors, from the vector `first` on."""
    pointers = ("pictures", "weights", "outputs", "bias")
    routine = Routine(module, f"convolve_row_{first}", pointers=pointers, integers=("relu",))
    given, build, out_width = routine.arguments(), routine.build, shape.out_size[1]
    routine.lanes = shape.vector
    starts = [(first + v) * shape.vector for v in range(count)]
    n_blocks = -(-out_width // (_SUMS[shape.lanes] // count))
    places = -(-out_width // n_blocks)
    least = routine.either(given["relu"], 0.0, -math.inf)
    biases = [routine.load(routine.at(given["bias"], whole(start))) for start in starts]

    def do_block(block: Any, _: Any) -> None:
        wanted, last = routine.product(block, whole(places)), whole(out_width - places)
        x = build.select(build.icmp_signed("<", wanted, last), wanted, last)  # the last block may overlap another
        begin = routine.at(given["pictures"], routine.product(x, whole(shape.channels)))

        def do_kernel_row(down: Any, sums: list[Any]) -> list[Any]:
            numbers = routine.at(begin, routine.product(down, whole(shape.padded[1] * shape.channels)))
            weights = routine.at(given["weights"], routine.product(down, whole(shape.row * shape.room)))

            def do_place(place: Any, sums: list[Any]) -> list[Any]:
                row, here = routine.at(weights, routine.product(place, whole(shape.room))), routine.at(numbers, place)
                vectors = [routine.load(routine.at(row, whole(start))) for start in starts]
                for i in range(places):
                    number = routine.spread(routine.at(here, whole(i * shape.channels)))
                    for v, vector in enumerate(vectors):
                        sums[i * count + v] = routine.multiply_add(number, vector, sums[i * count + v])
                return sums

            return routine.loop(whole(0), whole(shape.row), 1, do_place, sums)

        sums = routine.loop(whole(0), whole(shape.kernel_size[0]), 1, do_kernel_row, biases * places)
        for i in range(places):
            target = routine.at(given["outputs"], routine.product(routine.sum(x, whole(i)), whole(shape.room)))
            for v, start in enumerate(starts):
                routine.store(routine.at_least(sums[i * count + v], least), routine.at(target, whole(start)))

    routine.loop(whole(0), whole(n_blocks), 1, do_block)
    routine.end()
    return routine


def _add_weight_gradient(module: Any, shape: DirectShape) -> None:
    pointers, sizes = ("pictures", "gradient", "outputs", "scratch"), ("n", "n_blocks", "n_threads")
    part = Part(module, "weight_gradient", pointers=pointers, integers=sizes)
    given, size = part.arguments(), shape.rows * shape.room
    behind = part.product(given["n_blocks"], whole(size))
    own = part.at(given["scratch"], part.sum(behind, part.product(part.number, whole(shape.own))))
    _, buffer, picture = _own_parts(part, shape, own)
    rows = [_sum_row(module, shape, first, count) for first, count in _groups(shape)]
    out_height, out_width = shape.out_size
    of_row, width = out_width * shape.kernels, shape.padded[1] * shape.channels
    last = part.build.sub(part.product(given["n"], whole(out_height)), whole(1))
    first, stop = part.share(given["n_blocks"])

    def do_block(block: Any, _: Any) -> None:
        sums = part.at(given["scratch"], part.product(block, whole(size)))
        part.lanes = shape.vector
        part.clear(sums, whole(size))
        begin, end = (
            part.build.sdiv(part.product(i, given["n"]), given["n_blocks"]) for i in (block, part.sum(block, whole(1)))
        )

        def do_picture(number: Any, _: Any) -> None:
            source = _padded_picture(part, shape, given["pictures"], number, picture)

            def do_row(y: Any, _: Any) -> None:
                place = part.sum(part.product(number, whole(out_height)), y)
                gradient = part.at(given["gradient"], part.product(place, whole(of_row)))
                if not shape.fills:  # vectors read beyond the last number of a row
                    n_last = -(-(shape.room - shape.kernels) // of_row)
                    is_last = part.build.icmp_signed(">", place, part.build.sub(last, whole(n_last)))
                    with part.build.if_then(is_last):
                        part.copy(gradient, buffer, of_row)
                    gradient = part.build.select(is_last, buffer, gradient)
                values = {
                    "pictures": part.at(source, part.product(y, whole(width))),
                    "gradient": gradient,
                    "sums": sums,
                }
                for row in rows:
                    part.call(row, values)

            part.loop(whole(0), whole(out_height), 1, do_row)

        part.loop(begin, end, 1, do_picture)

    part.loop(first, stop, 1, do_block)
    part.meet()
    _add_blocks(part, shape, given)
    part.end()


def _sum_row(module: Any, shape: DirectShape, first: int, count: int) -> Routine:
    """Add to a kernel's gradient what a row of outputs tells, for `count` vectors of kernels from `first` on."""
    routine = Routine(module, f"sum_row_{first}", pointers=("pictures", "gradient", "sums"), integers=())
    given = routine.arguments()
    routine.lanes = shape.vector
    starts = [(first + v) * shape.vector for v in range(count)]
    weights = max(n for n in range(1, _SUMS[shape.lanes] // count + 1) if shape.row % n == 0)

    def do_kernel_row(down: Any, _: Any) -> None:
        numbers = routine.at(given["pictures"], routine.product(down, whole(shape.padded[1] * shape.channels)))
        of_row = routine.at(given["sums"], routine.product(down, whole(shape.row * shape.room)))

        def do_weights(place: Any, _: Any) -> None:
            here = routine.at(numbers, place)
            own = routine.at(of_row, routine.product(place, whole(shape.room)))
            targets = [routine.at(own, whole(i * shape.room + start)) for i in range(weights) for start in starts]

            def do_output(x: Any, sums: list[Any]) -> list[Any]:
                of_place = routine.at(given["gradient"], routine.product(x, whole(shape.kernels)))
                vectors = [routine.load(routine.at(of_place, whole(start))) for start in starts]
                pixel = routine.at(here, routine.product(x, whole(shape.channels)))
                for i in range(weights):
                    number = routine.spread(routine.at(pixel, whole(i)))
                    for v, vector in enumerate(vectors):
                        sums[i * count + v] = routine.multiply_add(number, vector, sums[i * count + v])
                return sums

            sums = [routine.load(target) for target in targets]
            sums = routine.loop(whole(0), whole(shape.out_size[1]), 1, do_output, sums)
            for target, vector in zip(targets, sums, strict=True):
                routine.store(vector, target)

        routine.loop(whole(0), whole(shape.row), weights, do_weights)

    routine.loop(whole(0), whole(shape.kernel_size[0]), 1, do_kernel_row)
    routine.end()
    return routine


def _add_blocks(part: Part, shape: DirectShape, given: dict[str, Any]) -> None:
    """The sum of all blocks' gradients, in their order, as `[K, h, w, C]`."""
    first, stop = part.share(whole(shape.rows))
    part.lanes = shape.vector
    place_of = part.build.alloca(part.zeros().type)

    def do_weight(place: Any, _: Any) -> None:
        for start in range(0, shape.room, shape.vector):
            here = part.at(given["scratch"], part.sum(part.product(place, whole(shape.room)), whole(start)))

            def do_block(block: Any, total: list[Any], here: Any = here) -> list[Any]:
                own = part.load(part.at(here, part.product(block, whole(shape.rows * shape.room))))
                return [part.build.fadd(total[0], own)]

            (total,) = part.loop(whole(0), given["n_blocks"], 1, do_block, [part.zeros()])
            part.build.store(total, place_of)
            numbers = part.build.bitcast(place_of, POINTER)
            for i in range(min(shape.vector, shape.kernels - start)):
                target = part.sum(whole((start + i) * shape.rows), place)
                part.build.store(part.build.load(part.at(numbers, whole(i))), part.at(given["outputs"], target))

    part.loop(first, stop, 1, do_weight)
