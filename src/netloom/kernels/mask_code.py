"""The machine code of dropout's masks, for `parts.py`: random words as `netloom.randomness` has them, many at once."""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from netloom.kernels.llvm import FLOAT, INTEGER, Part, Program, whole
from netloom.randomness import SPLITMIX_FACTORS, SPLITMIX_INCREMENT, SPLITMIX_SHIFTS

_WORDS = 8  # of a vector
MASK_UNIT = 4 * _WORDS  # numbers that are written at once
# Of such units a thread takes several, at least.
_UNITS_OF_PIECE = 32


def compile_mask() -> Program:
    """The part `mask`.

    It takes outputs, the key of the words, the level below which sixteen bits of a word keep a number, the bits of what
    a kept number is, and how many units there are.
    """
    module = ir.Module("mask")
    integers = ("key", "level", "scale", "units", "n_threads")
    part = Part(module, "mask", pointers=("outputs",), integers=integers)
    given, build = part.arguments(), part.build
    scale = build.bitcast(build.trunc(given["scale"], ir.IntType(32)), FLOAT)
    kept = _all_alike(part, scale, MASK_UNIT)
    level = _all_alike(part, build.trunc(given["level"], ir.IntType(16)), MASK_UNIT)
    nothing = ir.Constant(kept.type, [0.0] * MASK_UNIT)
    counts = [(i + 1) * SPLITMIX_INCREMENT % 2**64 for i in range(_WORDS)]
    first_words = build.add(_all_alike(part, given["key"], _WORDS), ir.Constant(ir.VectorType(INTEGER, _WORDS), counts))
    pieces = build.sdiv(part.sum(given["units"], whole(_UNITS_OF_PIECE - 1)), whole(_UNITS_OF_PIECE))
    first, stop = (part.product(i, whole(_UNITS_OF_PIECE)) for i in part.share(pieces))
    stop = build.select(build.icmp_signed("<", stop, given["units"]), stop, given["units"])

    def do_unit(unit: Any, _: Any) -> None:
        offset = part.product(unit, whole(_WORDS * SPLITMIX_INCREMENT % 2**64))
        words = _mixed(build, build.add(first_words, _all_alike(part, offset, _WORDS)))
        bits = build.bitcast(words, level.type)
        values = build.select(build.icmp_signed("<", bits, level), kept, nothing)
        part.store(values, part.at(given["outputs"], part.product(unit, whole(MASK_UNIT))))

    part.loop(first, stop, 1, do_unit)
    part.end()
    return Program(module, ["mask"])


def _mixed(build: Any, words: Any) -> Any:
    """As `netloom.randomness` mixes them."""

    def alike(number: int) -> Any:
        return ir.Constant(words.type, [number] * _WORDS)

    *before, last = SPLITMIX_SHIFTS
    for shift, factor in zip(before, SPLITMIX_FACTORS, strict=True):
        words = build.mul(build.xor(words, build.lshr(words, alike(shift))), alike(factor))
    return build.xor(words, build.lshr(words, alike(last)))


def _all_alike(part: Part, number: Any, n: int) -> Any:
    """A vector of `n` times the number."""
    index = ir.IntType(32)
    undefined = ir.Constant(ir.VectorType(number.type, n), ir.Undefined)
    one = part.build.insert_element(undefined, number, ir.Constant(index, 0))
    return part.build.shuffle_vector(one, undefined, ir.Constant(ir.VectorType(index, n), [0] * n))
