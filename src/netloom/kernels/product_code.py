"""The machine code of products of matrices, for `parts.py`."""

from __future__ import annotations

import math
from typing import Any

from llvmlite import ir

from netloom.kernels.llvm import Part, Program, Routine, whole

# Rows whose sums are kept in registers at once, each for two vectors of columns, by the numbers of a register.
_ROWS = {8: 6, 16: 12}
_NARROW = 8
_MANY = 2  # vectors


def compile_product(lanes: int) -> Program:
    """The part `product`: rows times columns, plus a number for each row.

    It takes `[m, k]` with any strides, `[k, n]` with columns beside each other, a number for each row (or 0), outputs
    `[m, n]`, and then m, n, k, the first one's strides, the second one's distance of rows, whether outputs below zero
    become zero, and threads.
    """
    module = ir.Module("product")
    sizes = ("m", "n", "k", "a_row", "a_column", "b_row", "relu", "n_threads")
    rows = _ROWS[lanes]
    widths = [(lanes, _MANY), (_NARROW, 1), (1, 1)]
    tiles = {(width, count, n): _tile(module, n, width, count) for width, count in widths for n in (rows, 1)}
    part = Part(module, "product", pointers=("a", "b", "bias", "outputs"), integers=sizes)
    given, build = part.arguments(), part.build
    strips = build.sdiv(part.sum(given["m"], whole(rows - 1)), whole(rows))
    panel = lanes * _MANY
    panels = build.sdiv(part.sum(given["n"], whole(panel - 1)), whole(panel))
    first, stop = part.share(part.product(panels, strips))

    def do_item(item: Any, _: Any) -> None:
        column = part.product(build.sdiv(item, strips), whole(panel))
        row = part.product(build.srem(item, strips), whole(rows))
        left = [build.sub(given["n"], column), build.sub(given["m"], row)]
        columns, n_rows = (
            build.select(build.icmp_signed("<", n, whole(most)), n, whole(most))
            for n, most in zip(left, (panel, rows), strict=True)
        )
        behind = part.sum(row, n_rows)
        is_full = build.icmp_signed("==", n_rows, whole(rows))
        start = column
        for width, count in widths:
            step = width * count
            n = build.sub(part.sum(column, columns), start)
            end = part.sum(start, build.sub(n, build.srem(n, whole(step))))

            def do_columns(place: Any, _: Any, width: int = width, count: int = count) -> None:
                values = {**given, "column": place}
                with build.if_else(is_full) as (full, some):
                    with full:
                        part.call(tiles[width, count, rows], {**values, "row": row})
                    with some:
                        one = tiles[width, count, 1]
                        part.loop(row, behind, 1, lambda r, _: part.call(one, {**values, "row": r}))

            part.loop(start, end, step, do_columns)
            start = end

    part.loop(first, stop, 1, do_item)
    part.end()
    return Program(module, ["product"])


def _tile(module: Any, n_rows: int, width: int, count: int) -> Routine:
    """So many rows from `row` on, and vectors of columns from `column` on."""
    integers = ("n", "k", "a_row", "a_column", "b_row", "relu", "row", "column")
    name = f"tile_{n_rows}_{count}_{width}"
    routine = Routine(module, name, pointers=("a", "b", "bias", "outputs"), integers=integers)
    given, build = routine.arguments(), routine.build
    routine.lanes = width
    rows = [routine.sum(given["row"], whole(i)) for i in range(n_rows)]
    lefts = [routine.at(given["a"], routine.product(row, given["a_row"])) for row in rows]
    right = routine.at(given["b"], given["column"])
    no_bias = build.alloca(ir.FloatType())
    routine.store_number(0.0, no_bias)
    is_null = routine.is_null(given["bias"])
    biases = [build.select(is_null, no_bias, routine.at(given["bias"], row)) for row in rows]

    def do_column(place: Any, sums: list[Any]) -> list[Any]:
        row = routine.at(right, routine.product(place, given["b_row"]))
        vectors = [routine.load(routine.at(row, whole(v * width))) for v in range(count)]
        offset = routine.product(place, given["a_column"])
        for i, left in enumerate(lefts):
            number = routine.spread(routine.at(left, offset))
            for v, vector in enumerate(vectors):
                sums[i * count + v] = routine.multiply_add(number, vector, sums[i * count + v])
        return sums

    begin = [bias for pointer in biases for bias in [routine.spread(pointer)] * count]
    sums = routine.loop(whole(0), given["k"], 1, do_column, begin)
    least = routine.either(given["relu"], 0.0, -math.inf)
    for i, row in enumerate(rows):
        target = routine.at(given["outputs"], routine.sum(routine.product(row, given["n"]), given["column"]))
        for v in range(count):
            routine.store(routine.at_least(sums[i * count + v], least), routine.at(target, whole(v * width)))
    routine.end()
    return routine
