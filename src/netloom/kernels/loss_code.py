"""The machine code of cross-entropy with its gradient, for `parts.py`, on logits `[classes, n]`.

A vector is of samples. Exponentials and logarithms are polynomials on a small interval, as in Cephes (Moshier, "Methods
and programs for mathematical functions", 1989), within two units of the last place.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from netloom.kernels.llvm import FLOAT, INTEGER, Part, Program, whole
from netloom.kernels.value_code import in_vectors

_INT32 = ir.IntType(32)
_LOG2_OF_E = 1.44269504088896341
# ln 2 in two parts, the first one with few digits, so that its multiples are exact.
_LN2_HIGH, _LN2_LOW = 0.693359375, -2.12194440e-4
_EXP = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)
_LOG = (
    7.0376836292e-2,
    -1.1514610310e-1,
    1.1676998740e-1,
    -1.2420140846e-1,
    1.4249322787e-1,
    -1.6668057665e-1,
    2.0000714765e-1,
    -2.4999993993e-1,
    3.3333331174e-1,
)
_SMALLEST = -87.33  # whose exponential is hardly above the smallest normal number
_ROOT_OF_HALF = 0.707106781186547524


def compile_loss(lanes: int) -> Program:
    """The part `cross_entropy`.

    It takes logits `[classes, n]`, targets (integers of 64 bits), a factor (one number), the gradient `[classes, n]`,
    the loss, how many are correct (an integer of 64 bits), room for two numbers of each sample, `n`, `classes` and the
    bits of another factor. The loss is the mean, times both factors. A target that is no class gives a loss that is no
    number.
    """
    module = ir.Module("loss")
    pointers = ("logits", "targets", "factor", "gradient", "loss", "correct", "scratch")
    part = Part(module, "cross_entropy", pointers=pointers, integers=("n", "classes", "scale", "n_threads"))
    given, build = part.arguments(), part.build
    n = given["n"]
    constant = build.bitcast(build.trunc(given["scale"], _INT32), FLOAT)
    factor = build.fdiv(build.fmul(build.load(given["factor"]), constant), build.sitofp(n, FLOAT))
    targets = build.bitcast(given["targets"], INTEGER.as_pointer())
    of_hits = part.at(given["scratch"], n)

    def do_samples(sample: Any) -> None:
        losses, hits = _of_samples(part, given, targets, factor, sample)
        part.store(losses, part.at(given["scratch"], sample))
        part.store(hits, part.at(of_hits, sample))

    vectors = build.sdiv(part.sum(n, whole(lanes - 1)), whole(lanes))
    first, stop = (part.product(i, whole(lanes)) for i in part.share(vectors))
    stop = build.select(build.icmp_signed("<", stop, n), stop, n)
    in_vectors(part, first, stop, lanes, do_samples)
    part.meet()
    with build.if_then(build.icmp_signed("==", part.number, whole(0))):
        zero = ir.Constant(FLOAT, 0.0)

        def add(sample: Any, sums: list[Any]) -> list[Any]:
            values = (build.load(part.at(pointer, sample)) for pointer in (given["scratch"], of_hits))
            return [build.fadd(total, value) for total, value in zip(sums, values, strict=True)]

        total, hits = part.loop(whole(0), n, 1, add, [zero, zero])
        build.store(build.fmul(total, factor), given["loss"])
        build.store(build.fptosi(hits, INTEGER), build.bitcast(given["correct"], INTEGER.as_pointer()))
    part.end()
    return Program(module, ["cross_entropy"])


def _of_samples(part: Part, given: dict[str, Any], targets: Any, factor: Any, sample: Any) -> tuple[Any, Any]:
    """Losses of a vector of samples, and ones where the target's logit is the largest; their gradient is written."""
    build, n, classes = part.build, given["n"], given["classes"]
    integers = ir.VectorType(INTEGER, part.lanes)
    place = build.bitcast(build.gep(targets, [sample]), integers.as_pointer())
    target = build.load(place, align=8)
    one, none = _alike(part, 1.0), part.zeros()

    def at(values: str, number: Any) -> Any:
        return part.at(given[values], part.sum(part.product(number, n), sample))

    def is_target(number: Any) -> Any:
        spread = build.insert_element(ir.Constant(integers, ir.Undefined), number, ir.Constant(_INT32, 0))
        zeros = ir.Constant(ir.VectorType(_INT32, part.lanes), [0] * part.lanes)
        return build.icmp_signed("==", target, build.shuffle_vector(spread, spread, zeros))

    def find_largest(number: Any, found: list[Any]) -> list[Any]:
        """The first one of the largest, whether that is the target's, and the target's logit."""
        value, mine = part.load(at("logits", number)), is_target(number)
        is_larger = build.fcmp_ordered(">", value, found[0])
        hit = build.select(mine, one, none)
        largest = build.select(is_larger, value, found[0])
        return [largest, build.select(is_larger, hit, found[1]), build.select(mine, value, found[2])]

    nowhere = _alike(part, float("nan"))
    begin = part.load(at("logits", whole(0)))
    is_first = is_target(whole(0))
    carried = [begin, build.select(is_first, one, none), build.select(is_first, begin, nowhere)]
    largest, hits, of_target = part.loop(whole(1), classes, 1, find_largest, carried)

    def add_exponential(number: Any, sums: list[Any]) -> list[Any]:
        power = _exponential(part, build.fsub(part.load(at("logits", number)), largest))
        part.store(power, at("gradient", number))
        return [build.fadd(sums[0], power)]

    (total,) = part.loop(whole(0), classes, 1, add_exponential, [none])
    scale = build.fdiv(part.all_alike(factor), total)

    def finish(number: Any, _: Any) -> None:
        share = build.fmul(part.load(at("gradient", number)), scale)
        subtracted = build.select(is_target(number), part.all_alike(factor), none)
        part.store(build.fsub(share, subtracted), at("gradient", number))

    part.loop(whole(0), classes, 1, finish)
    return build.fsub(_logarithm(part, total), build.fsub(of_target, largest)), hits


def _alike(part: Part, number: float) -> Any:
    """A vector of one constant."""
    return ir.Constant(ir.VectorType(FLOAT, part.lanes), [number] * part.lanes)


def _integers(part: Part, number: int) -> Any:
    return ir.Constant(ir.VectorType(_INT32, part.lanes), [number] * part.lanes)


def _polynomial(part: Part, coefficients: tuple[float, ...], x: Any) -> Any:
    total = _alike(part, coefficients[0])
    for coefficient in coefficients[1:]:
        total = part.multiply_add(total, x, _alike(part, coefficient))
    return total


def _exponential(part: Part, x: Any) -> Any:
    """Of numbers that are not above zero; of what is no number that, and zero where it is too small."""
    build = part.build
    is_tiny = build.fcmp_ordered("<", x, _alike(part, _SMALLEST))
    bounded = build.select(is_tiny, _alike(part, _SMALLEST), x)
    halves = build.fsub(build.fmul(bounded, _alike(part, _LOG2_OF_E)), _alike(part, 0.5))
    # Of what is no number no integer can be made: the polynomial passes it on.
    is_number = build.fcmp_ordered("ord", x, x)
    power = build.fptosi(build.select(is_number, halves, part.zeros()), _integers(part, 0).type)
    n = build.sitofp(power, x.type)
    rest = part.multiply_add(n, _alike(part, -_LN2_HIGH), bounded)
    rest = part.multiply_add(n, _alike(part, -_LN2_LOW), rest)
    result = part.multiply_add(_polynomial(part, _EXP, rest), build.fmul(rest, rest), rest)
    result = build.fadd(result, _alike(part, 1.0))
    two = build.bitcast(build.shl(build.add(power, _integers(part, 127)), _integers(part, 23)), x.type)
    return build.select(is_tiny, part.zeros(), build.fmul(result, two))


def _logarithm(part: Part, x: Any) -> Any:
    """Of numbers of at least one, or that are no numbers, which stay that."""
    build = part.build
    bits = build.bitcast(x, _integers(part, 0).type)
    exponent = build.sub(build.lshr(bits, _integers(part, 23)), _integers(part, 126))
    mantissa = build.bitcast(
        build.or_(build.and_(bits, _integers(part, 0x007FFFFF)), _integers(part, 0x3F000000)), x.type
    )
    is_low = build.fcmp_ordered("<", mantissa, _alike(part, _ROOT_OF_HALF))
    n = build.sitofp(build.sub(exponent, build.select(is_low, _integers(part, 1), _integers(part, 0))), x.type)
    rest = build.fsub(build.select(is_low, build.fadd(mantissa, mantissa), mantissa), _alike(part, 1.0))
    square = build.fmul(rest, rest)
    result = build.fmul(build.fmul(_polynomial(part, _LOG, rest), square), rest)
    result = part.multiply_add(n, _alike(part, _LN2_LOW), result)
    result = part.multiply_add(_alike(part, -0.5), square, result)
    result = part.multiply_add(n, _alike(part, _LN2_HIGH), build.fadd(rest, result))
    return build.select(build.fcmp_ordered("ord", x, x), result, x)
