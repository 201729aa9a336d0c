"""The machine code of what lies between convolutions and dense layers, for `parts.py`: pooling, ReLU, sums, copies.

Pictures lie in channels-last memory; what works on numbers one by one takes them as they lie. Vectors are as wide as
registers, then of eight, and then of one number.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir

from netloom.kernels.llvm import FLOAT, Part, Program, Routine, whole

_NARROW = 8
_PLACE = ir.IntType(8)
NO_PLACE = 4  # of a pooling's window: its gradient goes nowhere
# Into so many blocks rows are divided, whose sums are then added in their order, however many threads there are.
_MOST_BLOCKS = 64
_ROWS_AT_ONCE = 4
# Numbers that a thread takes of values that it works on one by one, at least.
PIECE = 1024


def sum_blocks(rows: int) -> int:
    """Into how many blocks `sum_rows` divides so many rows."""
    return max(1, min(_MOST_BLOCKS, rows // _ROWS_AT_ONCE))


def compile_values(lanes: int) -> Program:
    """All parts.

    `relu` takes numbers and outputs; `relu_gradient` a gradient, the ReLU's results and outputs; `multiply` and `add`
    two factors or summands and outputs; each of them how many numbers. `turn` takes `[n, rows, columns]` and outputs
    `[n, columns, rows]`. `sum_rows` takes `[rows, channels]`, the sums and room for those of each block. `pool` and
    `pool_relu` take pictures, outputs and places, a byte each, `pool_gradient` a gradient, places and outputs. Behind
    those come the sizes, and the number of threads.
    """
    module = ir.Module("values")
    for name, inputs, compute in (
        ("relu", ("a",), _relu),
        ("relu_gradient", ("a", "b"), _relu_gradient),
        ("multiply", ("a", "b"), lambda routine, a, b: routine.build.fmul(a, b)),
        ("add", ("a", "b"), lambda routine, a, b: routine.build.fadd(a, b)),
    ):
        _add_element_wise(module, name, inputs, compute, lanes)
    _add_turn(module)
    _add_sum_rows(module, lanes)
    _add_pool(module, "pool", lanes, relu=False)
    _add_pool(module, "pool_relu", lanes, relu=True)
    _add_pool_gradient(module, lanes)
    names = ["relu", "relu_gradient", "multiply", "add", "turn", "sum_rows", "pool", "pool_relu", "pool_gradient"]
    return Program(module, names)


def in_vectors(
    routine: Routine, start: Any, stop: Any, lanes: int, body: Callable[[Any], None], *, narrowest: int = 1
) -> None:
    """The body for each place from `start` to `stop` that begins a vector, of ever fewer numbers."""
    for width in dict.fromkeys((lanes, _NARROW, narrowest)):
        n = routine.build.sub(stop, start)
        end = routine.sum(start, routine.build.sub(n, routine.build.srem(n, whole(width))))
        with routine.vectors_of(width):
            routine.loop(start, end, width, lambda place, _: body(place))
        start = end


def _relu(routine: Routine, a: Any) -> Any:
    return routine.at_least(a, routine.zeros())


def _relu_gradient(routine: Routine, gradient: Any, result: Any) -> Any:
    is_cut = routine.build.fcmp_ordered("<=", result, routine.zeros())
    return routine.build.select(is_cut, routine.zeros(), gradient)


def _add_element_wise(module: Any, name: str, inputs: tuple[str, ...], compute: Callable[..., Any], lanes: int) -> None:
    part = Part(module, name, pointers=(*inputs, "outputs"), integers=("n", "n_threads"))
    given = part.arguments()
    pieces = part.build.sdiv(part.sum(given["n"], whole(PIECE - 1)), whole(PIECE))
    start, stop = (part.product(i, whole(PIECE)) for i in part.share(pieces))
    stop = part.build.select(part.build.icmp_signed("<", stop, given["n"]), stop, given["n"])

    def do_vector(place: Any) -> None:
        values = [part.load(part.at(given[name], place)) for name in inputs]
        part.store(compute(part, *values), part.at(given["outputs"], place))

    in_vectors(part, start, stop, lanes, do_vector)
    part.end()


def _add_turn(module: Any) -> None:
    part = Part(module, "turn", pointers=("values", "outputs"), integers=("n", "rows", "columns", "n_threads"))
    given, build = part.arguments(), part.build
    rows, columns, edge = given["rows"], given["columns"], whole(_NARROW)
    strips = build.sdiv(part.sum(columns, whole(_NARROW - 1)), edge)
    size = part.product(rows, columns)
    whole_rows = build.sub(rows, build.srem(rows, edge))
    first, stop = part.share(part.product(given["n"], strips))

    def do_strip(number: Any, _: Any) -> None:
        begin = part.product(build.sdiv(number, strips), size)
        column = part.product(build.srem(number, strips), edge)
        behind = part.sum(column, edge)
        is_full = build.icmp_signed("<=", behind, columns)
        source, target = part.at(given["values"], begin), part.at(given["outputs"], begin)

        def do_one(row: Any, column: Any) -> None:
            number = build.load(part.at(source, part.sum(part.product(row, columns), column)))
            build.store(number, part.at(target, part.sum(part.product(column, rows), row)))

        def do_block(row: Any, _: Any) -> None:
            places = [part.at(source, part.sum(part.product(part.sum(row, whole(i)), columns), column)) for i in _EDGE]
            for i, vector in enumerate(_transposed(part, [part.load(place) for place in places])):
                part.store(vector, part.at(target, part.sum(part.product(part.sum(column, whole(i)), rows), row)))

        with build.if_then(is_full):
            part.loop(whole(0), whole_rows, _NARROW, do_block)
        done = build.select(is_full, whole_rows, whole(0))
        last = build.select(is_full, behind, columns)
        part.loop(column, last, 1, lambda c, _: part.loop(done, rows, 1, lambda r, _: do_one(r, c)) and None)

    part.loop(first, stop, 1, do_strip)
    part.end()


_EDGE = range(_NARROW)


def _transposed(routine: Routine, vectors: list[Any]) -> list[Any]:
    """Eight vectors of eight, turned: three times pairs of them are woven, over ever larger distances."""
    for distance in (1, 2, 4):
        woven: list[Any] = [None] * _NARROW
        for low in (i for i in _EDGE if not i & distance):
            high = low + distance
            first = [i if not i & distance else i - distance + _NARROW for i in _EDGE]
            second = [i + distance if not i & distance else i + _NARROW for i in _EDGE]
            woven[low], woven[high] = (
                routine.build.shuffle_vector(
                    vectors[low], vectors[high], ir.Constant(ir.VectorType(ir.IntType(32), _NARROW), places)
                )
                for places in (first, second)
            )
        vectors = woven
    return vectors


def rows_of_block(part: Part, block: Any, rows: Any, n_blocks: Any) -> tuple[Any, Any]:
    """The first row of a block, and what is behind its last."""
    begin, end = (part.build.sdiv(part.product(i, rows), n_blocks) for i in (block, part.sum(block, whole(1))))
    return begin, end


def sum_of_rows(part: Part, begin: Any, end: Any, values: Callable[[Any], list[Any]], n_sums: int = 1) -> list[Any]:
    """Sums of the `n_sums` vectors that `values` gives for each row from `begin` to `end`."""
    build = part.build
    n = build.sub(end, begin)
    fours = part.sum(begin, build.sub(n, build.srem(n, whole(_ROWS_AT_ONCE))))

    def add(sums: list[Any], more: list[Any]) -> list[Any]:
        return [build.fadd(total, value) for total, value in zip(sums, more, strict=True)]

    def do_rows(row: Any, sums: list[Any]) -> list[Any]:
        found = []
        for i in range(_ROWS_AT_ONCE):
            found += add(sums[i * n_sums : (i + 1) * n_sums], values(part.sum(row, whole(i))))
        return found

    sums = part.loop(begin, fours, _ROWS_AT_ONCE, do_rows, [part.zeros()] * (n_sums * _ROWS_AT_ONCE))
    a, b, c, d = (sums[i * n_sums : (i + 1) * n_sums] for i in range(_ROWS_AT_ONCE))
    return part.loop(fours, end, 1, lambda row, sums: add(sums, values(row)), add(add(a, b), add(c, d)))


def _add_sum_rows(module: Any, lanes: int) -> None:
    sizes = ("rows", "channels", "n_blocks", "n_threads")
    part = Part(module, "sum_rows", pointers=("values", "outputs", "scratch"), integers=sizes)
    given, build = part.arguments(), part.build
    channels, n_blocks = given["channels"], given["n_blocks"]
    first, stop = part.share(n_blocks)

    def do_block(block: Any, _: Any) -> None:
        begin, end = rows_of_block(part, block, given["rows"], n_blocks)
        own = part.at(given["scratch"], part.product(block, channels))

        def do_channels(channel: Any) -> None:
            def row_at(row: Any) -> list[Any]:
                return [part.load(part.at(given["values"], part.sum(part.product(row, channels), channel)))]

            (total,) = sum_of_rows(part, begin, end, row_at)
            part.store(total, part.at(own, channel))

        in_vectors(part, whole(0), channels, lanes, do_channels)

    part.loop(first, stop, 1, do_block)
    part.meet()
    first, stop = part.share(channels)

    def do_channel(channel: Any, _: Any) -> None:
        def do_partial(block: Any, total: list[Any]) -> list[Any]:
            place = part.at(given["scratch"], part.sum(part.product(block, channels), channel))
            return [build.fadd(total[0], build.load(place))]

        (total,) = part.loop(whole(0), n_blocks, 1, do_partial, [ir.Constant(FLOAT, 0.0)])
        build.store(total, part.at(given["outputs"], channel))

    part.loop(first, stop, 1, do_channel)
    part.end()


_OF_PICTURES = ("n", "height", "width", "channels", "n_threads")


def _windows(part: Part, given: dict[str, Any], body: Callable[[Any, Any, Any], None]) -> None:
    """The body for each row of windows that is this thread's: its number, its picture and its first row of pixels."""
    down = part.build.sdiv(given["height"], whole(2))
    first, stop = part.share(part.product(given["n"], down))

    def do_row(number: Any, _: Any) -> None:
        body(number, part.build.sdiv(number, down), part.product(part.build.srem(number, down), whole(2)))

    part.loop(first, stop, 1, do_row)


def _pixel_row(part: Part, given: dict[str, Any], pixels: Any, picture: Any, row: Any) -> Any:
    place = part.sum(part.product(picture, given["height"]), row)
    return part.at(pixels, part.product(place, given["width"], given["channels"]))


def _place_at(part: Part, places: Any, number: Any) -> Any:
    """Where so many bytes of places lie."""
    byte = part.build.bitcast(places, _PLACE.as_pointer())
    return part.build.bitcast(part.build.gep(byte, [number]), ir.VectorType(_PLACE, part.lanes).as_pointer())


def _numbers(part: Part, value: int) -> Any:
    return ir.Constant(ir.VectorType(_PLACE, part.lanes), [value] * part.lanes)


def _add_pool(module: Any, name: str, lanes: int, *, relu: bool) -> None:
    part = Part(module, name, pointers=("pictures", "outputs", "places"), integers=_OF_PICTURES)
    given, build = part.arguments(), part.build
    across, channels = build.sdiv(given["width"], whole(2)), given["channels"]

    def do_row(number: Any, picture: Any, row: Any) -> None:
        rows = [_pixel_row(part, given, given["pictures"], picture, part.sum(row, whole(i))) for i in (0, 1)]
        begin = part.product(number, across, channels)

        def do_window(x: Any, _: Any) -> None:
            left = part.product(x, whole(2), channels)
            pixels = [part.at(r, part.sum(left, part.product(channels, whole(i)))) for r in rows for i in (0, 1)]
            own = part.sum(begin, part.product(x, channels))

            def do_channels(channel: Any) -> None:
                largest, place = part.load(part.at(pixels[0], channel)), _numbers(part, 0)
                for i, pixel in enumerate(pixels[1:], start=1):
                    value = part.load(part.at(pixel, channel))
                    is_larger = build.or_(
                        build.fcmp_ordered(">", value, largest), build.fcmp_unordered("uno", value, value)
                    )
                    largest = build.select(is_larger, value, largest)
                    place = build.select(is_larger, _numbers(part, i), place)
                if relu:
                    is_cut = build.fcmp_ordered("<=", largest, part.zeros())
                    place = build.select(is_cut, _numbers(part, NO_PLACE), place)
                    largest = part.at_least(largest, part.zeros())
                at = part.sum(own, channel)
                part.store(largest, part.at(given["outputs"], at))
                build.store(place, _place_at(part, given["places"], at), align=1)

            in_vectors(part, whole(0), channels, lanes, do_channels)

        part.loop(whole(0), across, 1, do_window)

    _windows(part, given, do_row)
    part.end()


def _add_pool_gradient(module: Any, lanes: int) -> None:
    part = Part(module, "pool_gradient", pointers=("gradient", "places", "outputs"), integers=_OF_PICTURES)
    given, build = part.arguments(), part.build
    across, channels = build.sdiv(given["width"], whole(2)), given["channels"]
    row_size = part.product(given["width"], channels)
    of_windows = part.product(across, whole(2), channels)

    def clear(pointer: Any, start: Any, stop: Any) -> None:
        in_vectors(part, start, stop, lanes, lambda i: part.store(part.zeros(), part.at(pointer, i)))

    def do_row(number: Any, picture: Any, row: Any) -> None:
        rows = [_pixel_row(part, given, given["outputs"], picture, part.sum(row, whole(i))) for i in (0, 1)]
        begin = part.product(number, across, channels)

        def do_window(x: Any, _: Any) -> None:
            left = part.product(x, whole(2), channels)
            pixels = [part.at(r, part.sum(left, part.product(channels, whole(i)))) for r in rows for i in (0, 1)]
            own = part.sum(begin, part.product(x, channels))

            def do_channels(channel: Any) -> None:
                at = part.sum(own, channel)
                value = part.load(part.at(given["gradient"], at))
                place = build.load(_place_at(part, given["places"], at), align=1)
                for i, pixel in enumerate(pixels):
                    is_here = build.icmp_unsigned("==", place, _numbers(part, i))
                    part.store(build.select(is_here, value, part.zeros()), part.at(pixel, channel))

            in_vectors(part, whole(0), channels, lanes, do_channels)

        part.loop(whole(0), across, 1, do_window)
        for pointer in rows:
            clear(pointer, of_windows, row_size)
        behind = part.sum(row, whole(2))
        with build.if_then(build.icmp_signed("==", part.sum(behind, whole(1)), given["height"])):
            clear(_pixel_row(part, given, given["outputs"], picture, behind), whole(0), row_size)

    _windows(part, given, do_row)
    part.end()
