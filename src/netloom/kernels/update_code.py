"""The machine code of optimizers' updates, for `updates.py`: all that is done to a number while it is in a register."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from llvmlite import ir

from netloom.kernels.llvm import INTEGER, POINTER, Part, Program, whole
from netloom.kernels.value_code import PIECE, in_vectors

# Of a parameter the table has: where it lies, its gradient, two averages, its coefficients, and its numbers.
ENTRY = 6


@dataclass(frozen=True)
class Rule:
    """How numbers are updated.

    Attributes:
        formula: One of `COEFFICIENTS`.
        decays: Whether a multiple of the parameter is added to the gradient, or, for `adamw`, the parameter shrinks.
        momentum: Of `sgd` and `rmsprop`, whether there is some.
        nesterov: Of `sgd`, whether it is Nesterov's.
    """

    formula: str
    decays: bool = False
    momentum: bool = False
    nesterov: bool = False


# In their order. `rate` and its like are added, so that they are below zero.
COEFFICIENTS = {
    "sgd": ("decay", "momentum", "rate"),
    "rmsprop": ("decay", "momentum", "rate", "alpha", "new_square", "eps"),
    "adam": ("decay", "new_mean", "beta2", "new_square", "correction", "eps", "rate"),
    "adamw": ("decay", "new_mean", "beta2", "new_square", "correction", "eps", "rate"),
    "nadam": ("decay", "new_mean", "beta2", "new_square", "correction", "eps", "rate", "rate_of_mean"),
}


def compile_update(rule: Rule, lanes: int) -> Program:
    """The part `update`: a table of parameters, and how many there are."""
    module = ir.Module("update")
    part = Part(module, "update", pointers=("table",), integers=("n", "n_threads"))
    given, build = part.arguments(), part.build
    table = build.bitcast(given["table"], INTEGER.as_pointer())

    def do_parameter(number: Any, _: Any) -> None:
        begin = part.product(number, whole(ENTRY))
        *addresses, n = (build.load(build.gep(table, [part.sum(begin, whole(i))])) for i in range(ENTRY))
        parameter, gradient, *averages, coefficients = (build.inttoptr(address, POINTER) for address in addresses)
        of_rule = {
            name: build.load(part.at(coefficients, whole(i))) for i, name in enumerate(COEFFICIENTS[rule.formula])
        }
        pieces = build.sdiv(part.sum(n, whole(PIECE - 1)), whole(PIECE))
        first, stop = (part.product(i, whole(PIECE)) for i in part.share(pieces))
        stop = build.select(build.icmp_signed("<", stop, n), stop, n)
        used = averages[: _n_averages(rule)]

        def do_vector(place: Any) -> None:
            values = [part.load(part.at(pointer, place)) for pointer in (parameter, gradient, *used)]
            spread = {name: part.all_alike(value) for name, value in of_rule.items()}
            updated = _FORMULAS[rule.formula](_Numbers(part, spread), rule, *values)
            for pointer, value in zip((parameter, *used), updated, strict=True):
                part.store(value, part.at(pointer, place))

        in_vectors(part, first, stop, lanes, do_vector)

    part.loop(whole(0), given["n"], 1, do_parameter)
    part.end()
    return Program(module, ["update"])


def _n_averages(rule: Rule) -> int:
    """How many of the two that a table has are used."""
    return {"sgd": 0, "rmsprop": 1}.get(rule.formula, 2) + rule.momentum


class _Numbers:
    """Arithmetic of vectors, and the coefficients."""

    def __init__(self, part: Part, coefficients: dict[str, Any]) -> None:
        self._part, self.of = part, coefficients

    def plus(self, a: Any, factor: str, b: Any) -> Any:
        """`a + factor * b`."""
        return self._part.multiply_add(self.of[factor], b, a)

    def times(self, factor: str, a: Any) -> Any:
        """Product."""
        return self._part.build.fmul(self.of[factor], a)

    def decayed(self, rule: Rule, parameter: Any, gradient: Any) -> Any:
        """The gradient with that of the squares of parameters, if these decay so."""
        return self.plus(gradient, "decay", parameter) if rule.decays else gradient

    def mean(self, mean: Any, gradient: Any) -> Any:
        """A moving average's next value."""
        return self.plus(mean, "new_mean", self._part.build.fsub(gradient, mean))

    def square(self, before: str, square: Any, gradient: Any) -> Any:
        """Likewise, of squares."""
        new = self.times("new_square", gradient)
        return self._part.multiply_add(new, gradient, self.times(before, square))

    def root(self, square: Any) -> Any:
        """The square root, and `eps`."""
        return self._part.build.fadd(self._part.square_root(square), self.of["eps"])

    def ratio(self, a: Any, b: Any) -> Any:
        """Quotient."""
        return self._part.build.fdiv(a, b)


def _sgd(numbers: _Numbers, rule: Rule, parameter: Any, gradient: Any, *buffers: Any) -> Iterable[Any]:
    gradient = numbers.decayed(rule, parameter, gradient)
    if not rule.momentum:
        return [numbers.plus(parameter, "rate", gradient)]
    momentum = numbers.plus(gradient, "momentum", buffers[0])
    change = numbers.plus(gradient, "momentum", momentum) if rule.nesterov else momentum
    return [numbers.plus(parameter, "rate", change), momentum]


def _rmsprop(numbers: _Numbers, rule: Rule, parameter: Any, gradient: Any, square: Any, *buffers: Any) -> Iterable[Any]:
    gradient = numbers.decayed(rule, parameter, gradient)
    square = numbers.square("alpha", square, gradient)
    change = numbers.ratio(gradient, numbers.root(square))
    if not rule.momentum:
        return [numbers.plus(parameter, "rate", change), square]
    momentum = numbers.plus(change, "momentum", buffers[0])
    return [numbers.plus(parameter, "rate", momentum), square, momentum]


def _adam(numbers: _Numbers, rule: Rule, parameter: Any, gradient: Any, mean: Any, square: Any) -> Iterable[Any]:
    if rule.formula == "adamw":
        parameter = numbers.times("decay", parameter) if rule.decays else parameter
    else:
        gradient = numbers.decayed(rule, parameter, gradient)
    mean, square = numbers.mean(mean, gradient), numbers.square("beta2", square, gradient)
    root = numbers.root(numbers.times("correction", square))
    if rule.formula == "nadam":
        parameter = numbers.plus(parameter, "rate", numbers.ratio(gradient, root))
        return [numbers.plus(parameter, "rate_of_mean", numbers.ratio(mean, root)), mean, square]
    return [numbers.plus(parameter, "rate", numbers.ratio(mean, root)), mean, square]


_FORMULAS: dict[str, Callable[..., Iterable[Any]]] = {
    "sgd": _sgd,
    "rmsprop": _rmsprop,
    "adam": _adam,
    "adamw": _adam,
    "nadam": _adam,
}
