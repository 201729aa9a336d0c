"""The machine code of batch normalization in training, for `parts.py`, on values `[rows, channels]`.

Means and sums of squares are taken of blocks of rows, each about its own mean, and joined in the order of the blocks
(Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances", 1979), so that
neither a mean far from zero nor the number of threads changes what is found.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir

from netloom.kernels.llvm import FLOAT, Part, Program, whole
from netloom.kernels.value_code import in_vectors, rows_of_block, sum_of_rows

_SIZES = ("rows", "channels", "n_blocks", "eps", "n_threads")


def norm_numbers(channels: int, n_blocks: int) -> int:
    """How many numbers either part has room for: two for each channel of a block, and two for each channel."""
    return 2 * channels * (n_blocks + 1)


def compile_norm(lanes: int) -> Program:
    """The parts `batch_norm` and `batch_norm_gradient`; see `parts.py` for what they take.

    `eps` is given as the bits of a number of 32 bits.
    """
    module = ir.Module("norm")
    _add_forward(module, lanes)
    _add_backward(module, lanes)
    return Program(module, ["batch_norm", "batch_norm_gradient"])


class _Norm:
    """What both parts do.

    Attributes:
        part: The part.
        given: Its arguments.
        n_rows: How many, as a number of 32 bits.
    """

    def __init__(self, part: Part, lanes: int) -> None:
        self.part, self.given, self._lanes = part, part.arguments(), lanes
        self.n_rows = part.build.sitofp(self.given["rows"], FLOAT)

    def of_block(self, block: Any, which: int) -> Any:
        """Where the first or second number of each channel of a block is; of the block behind the last for all."""
        place = self.part.sum(self.part.product(block, whole(2)), whole(which))
        return self.part.at(self.given["scratch"], self.part.product(place, self.given["channels"]))

    def row(self, values: str, row: Any, channel: Any) -> Any:
        """Where numbers of a row are."""
        place = self.part.sum(self.part.product(row, self.given["channels"]), channel)
        return self.part.at(self.given[values], place)

    def channel(self, values: str, channel: Any) -> Any:
        """A vector of channels."""
        return self.part.load(self.part.at(self.given[values], channel))

    def or_else(self, values: str, channel: Any, number: float) -> Any:
        """A vector of channels, or of one number where nothing is given."""
        part, pointer = self.part, self.given[values]
        alike = ir.Constant(part.zeros().type, [number] * part.lanes)
        with part.build.goto_entry_block():  # in a loop every turn would take more of the stack
            place = part.build.alloca(alike.type)
            part.build.store(alike, place)
        own = part.build.bitcast(place, pointer.type)
        is_null = part.is_null(pointer)
        return part.load(part.build.select(is_null, own, part.at(pointer, channel)))

    def for_blocks(self, body: Callable[[Any, Any, Any, Any], None]) -> None:
        """The body for each vector of channels of this thread's blocks: block, first row, end, channel."""
        part, given = self.part, self.given
        first, stop = part.share(given["n_blocks"])

        def do_block(block: Any, _: Any) -> None:
            begin, end = rows_of_block(part, block, given["rows"], given["n_blocks"])
            in_vectors(part, whole(0), given["channels"], self._lanes, lambda c: body(block, begin, end, c))

        part.loop(first, stop, 1, do_block)

    def for_channels(self, body: Callable[[Any], None]) -> None:
        """The body for each vector of this thread's channels; all threads have done their blocks before."""
        self.part.meet()
        first, stop = self.part.share(self.given["channels"])
        in_vectors(self.part, first, stop, self._lanes, body)
        self.part.meet()

    def over_blocks(self, channel: Any, values: Callable[[Any], list[Any]], n: int) -> list[Any]:
        """Sums over the blocks, in their order, of the vectors that `values` gives."""
        part = self.part

        def do_block(block: Any, sums: list[Any]) -> list[Any]:
            return [part.build.fadd(a, b) for a, b in zip(sums, values(block), strict=True)]

        return part.loop(whole(0), self.given["n_blocks"], 1, do_block, [part.zeros()] * n)

    def rows_in(self, block: Any) -> Any:
        """How many rows a block has, as a vector."""
        begin, end = rows_of_block(self.part, block, self.given["rows"], self.given["n_blocks"])
        return self.part.all_alike(self.part.build.sitofp(self.part.build.sub(end, begin), FLOAT))


def _add_forward(module: Any, lanes: int) -> None:
    pointers = ("values", "weight", "bias", "outputs", "mean", "inverse", "variance", "scratch")
    part = Part(module, "batch_norm", pointers=pointers, integers=_SIZES)
    norm = _Norm(part, lanes)
    build, given = part.build, norm.given

    def do_block(block: Any, begin: Any, end: Any, channel: Any) -> None:
        def value(row: Any) -> Any:
            return part.load(norm.row("values", row, channel))

        (total,) = sum_of_rows(part, begin, end, lambda row: [value(row)])
        mean = build.fdiv(total, norm.rows_in(block))

        def square(row: Any) -> list[Any]:
            apart = build.fsub(value(row), mean)
            return [build.fmul(apart, apart)]

        (squares,) = sum_of_rows(part, begin, end, square)
        part.store(mean, part.at(norm.of_block(block, 0), channel))
        part.store(squares, part.at(norm.of_block(block, 1), channel))

    def do_channels(channel: Any) -> None:
        n_rows = part.all_alike(norm.n_rows)

        def mean_of(block: Any) -> Any:
            return part.load(part.at(norm.of_block(block, 0), channel))

        (total,) = norm.over_blocks(channel, lambda block: [build.fmul(norm.rows_in(block), mean_of(block))], 1)
        mean = build.fdiv(total, n_rows)

        def squares_of(block: Any) -> list[Any]:
            apart = build.fsub(mean_of(block), mean)
            own = part.load(part.at(norm.of_block(block, 1), channel))
            return [part.multiply_add(build.fmul(apart, apart), norm.rows_in(block), own)]

        (squares,) = norm.over_blocks(channel, squares_of, 1)
        eps = build.bitcast(build.trunc(given["eps"], ir.IntType(32)), FLOAT)
        deviation = part.square_root(build.fadd(build.fdiv(squares, n_rows), part.all_alike(eps)))
        one = ir.Constant(deviation.type, [1.0] * part.lanes)
        found = {"mean": mean, "inverse": build.fdiv(one, deviation)}
        found["variance"] = build.fdiv(squares, build.fsub(n_rows, one))
        for name, vector in found.items():
            part.store(vector, part.at(given[name], channel))

    def normalize(block: Any, begin: Any, end: Any, channel: Any) -> None:
        mean, bias = norm.channel("mean", channel), norm.or_else("bias", channel, 0.0)
        scale = build.fmul(norm.channel("inverse", channel), norm.or_else("weight", channel, 1.0))

        def do_row(row: Any, _: Any) -> None:
            apart = build.fsub(part.load(norm.row("values", row, channel)), mean)
            part.store(part.multiply_add(apart, scale, bias), norm.row("outputs", row, channel))

        part.loop(begin, end, 1, do_row)

    norm.for_blocks(do_block)
    norm.for_channels(do_channels)
    norm.for_blocks(normalize)
    part.end()


def _add_backward(module: Any, lanes: int) -> None:
    pointers = ("gradient", "values", "weight", "mean", "inverse", "outputs", "of_weight", "of_bias", "scratch")
    part = Part(module, "batch_norm_gradient", pointers=pointers, integers=_SIZES)
    norm = _Norm(part, lanes)
    build, given = part.build, norm.given
    everything = given["n_blocks"]

    def do_block(block: Any, begin: Any, end: Any, channel: Any) -> None:
        mean = norm.channel("mean", channel)

        def products(row: Any) -> list[Any]:
            gradient = part.load(norm.row("gradient", row, channel))
            apart = build.fsub(part.load(norm.row("values", row, channel)), mean)
            return [gradient, build.fmul(gradient, apart)]

        for which, total in enumerate(sum_of_rows(part, begin, end, products, 2)):
            part.store(total, part.at(norm.of_block(block, which), channel))

    def do_channels(channel: Any) -> None:
        def of_block(block: Any) -> list[Any]:
            return [part.load(part.at(norm.of_block(block, which), channel)) for which in (0, 1)]

        total, products = norm.over_blocks(channel, of_block, 2)
        inverse, n_rows = norm.channel("inverse", channel), part.all_alike(norm.n_rows)
        part.store(build.fmul(products, inverse), part.at(given["of_weight"], channel))
        part.store(total, part.at(given["of_bias"], channel))
        slope = build.fdiv(build.fmul(build.fmul(products, inverse), inverse), n_rows)
        for which, vector in enumerate((build.fdiv(total, n_rows), slope)):
            part.store(vector, part.at(norm.of_block(everything, which), channel))

    def do_rows(block: Any, begin: Any, end: Any, channel: Any) -> None:
        mean = norm.channel("mean", channel)
        scale = build.fmul(norm.channel("inverse", channel), norm.or_else("weight", channel, 1.0))
        middle, slope = (part.load(part.at(norm.of_block(everything, which), channel)) for which in (0, 1))

        def do_row(row: Any, _: Any) -> None:
            gradient = build.fsub(part.load(norm.row("gradient", row, channel)), middle)
            apart = build.fsub(part.load(norm.row("values", row, channel)), mean)
            rest = build.fsub(gradient, build.fmul(apart, slope))
            part.store(build.fmul(rest, scale), norm.row("outputs", row, channel))

        part.loop(begin, end, 1, do_row)

    norm.for_blocks(do_block)
    norm.for_channels(do_channels)
    norm.for_blocks(do_rows)
    part.end()
