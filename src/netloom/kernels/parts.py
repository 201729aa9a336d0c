"""Calls of parts for what lies between convolutions, and for dense layers.

Each function tells the tensors that its part takes, all of float32 in dense memory; pictures are channels-last.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import TYPE_CHECKING

from netloom.kernels.calls import PartCall, compiled_once

if TYPE_CHECKING:
    from netloom.kernels.llvm import Program

# Of a parameter in the table of an `update`.
MOST_AVERAGES, MOST_COEFFICIENTS = 2, 8


def relu(n: int, n_threads: int) -> PartCall:
    """`n` numbers, outputs."""
    return PartCall(_values(_lanes()), "relu", (n, n_threads))


def relu_gradient(n: int, n_threads: int) -> PartCall:
    """The outputs' gradient, the ReLU's `n` outputs, and the gradient of what it was given."""
    return PartCall(_values(_lanes()), "relu_gradient", (n, n_threads))


def multiply(n: int, n_threads: int) -> PartCall:
    """`n` numbers, as many others, and their products."""
    return PartCall(_values(_lanes()), "multiply", (n, n_threads))


def add(n: int, n_threads: int) -> PartCall:
    """`n` numbers, as many others, and their sums."""
    return PartCall(_values(_lanes()), "add", (n, n_threads))


def turn(n: int, rows: int, columns: int, n_threads: int) -> PartCall:
    """`[n, rows, columns]`, and the same as `[n, columns, rows]`."""
    return PartCall(_values(_lanes()), "turn", (n, rows, columns, n_threads))


def sum_rows(rows: int, channels: int, n_threads: int) -> PartCall:
    """`[rows, channels]`, and the sums over the rows."""
    from netloom.kernels.value_code import sum_blocks

    blocks = sum_blocks(rows)
    return PartCall(_values(_lanes()), "sum_rows", (rows, channels, blocks, n_threads), blocks * channels)


def pool(n: int, height: int, width: int, channels: int, n_threads: int, *, relu: bool) -> PartCall:
    """Pictures, the maxima of their windows of 2x2 (of which ReLU is taken), and a byte for each: where it was."""
    return PartCall(_values(_lanes()), "pool_relu" if relu else "pool", (n, height, width, channels, n_threads))


def pool_gradient(n: int, height: int, width: int, channels: int, n_threads: int) -> PartCall:
    """The gradient of the maxima, where these were, and the gradient of the pictures, whose sizes are given."""
    return PartCall(_values(_lanes()), "pool_gradient", (n, height, width, channels, n_threads))


def mask(n: int, key: int, level: int, scale: float, n_threads: int) -> PartCall:
    """A mask of at least `n` numbers, see `mask_numbers`: `scale` where sixteen random bits are below `level`, else 0.

    Args:
        n: Numbers.
        key: Of the random words, as `netloom.randomness.words` takes it.
        level: As a signed integer of sixteen bits.
        scale: Of what is kept.
        n_threads: Among which the work is divided.
    """
    from netloom.kernels.mask_code import MASK_UNIT

    return PartCall(_mask(), "mask", (key, level, _bits(scale), mask_numbers(n) // MASK_UNIT, n_threads))


def mask_numbers(n: int) -> int:
    """How many numbers a mask of `n` has room for."""
    from netloom.kernels.mask_code import MASK_UNIT

    return -(-n // MASK_UNIT) * MASK_UNIT


def product(
    m: int, n: int, k: int, *, a_strides: tuple[int, ...], b_row: int, n_threads: int, relu: bool = False
) -> PartCall:
    """`[m, k]`, `[k, n]`, a number for each row or nothing, and their product `[m, n]` plus that.

    Args:
        m: Rows.
        n: Columns.
        k: Products that are summed.
        a_strides: Of the first one.
        b_row: Distance of the second one's rows, whose columns lie beside each other.
        n_threads: Among which the work is divided.
        relu: Whether outputs below zero become zero.
    """
    return PartCall(_product(_lanes()), "product", (m, n, k, *a_strides, b_row, int(relu), n_threads))


def batch_norm(rows: int, channels: int, eps: float, n_threads: int) -> PartCall:
    """Batch normalization of `[rows, channels]` in training.

    It takes those, weight and bias (or nothing), outputs, and for each channel mean, the reciprocal of the standard
    deviation (with `eps`) and the unbiased variance.
    """
    from netloom.kernels.norm_code import norm_numbers
    from netloom.kernels.value_code import sum_blocks

    blocks = sum_blocks(rows)
    integers = (rows, channels, blocks, _bits(eps), n_threads)
    return PartCall(_norm(_lanes()), "batch_norm", integers, norm_numbers(channels, blocks))


def batch_norm_gradient(rows: int, channels: int, n_threads: int) -> PartCall:
    """Its gradients.

    It takes the outputs' gradient, what was normalized, weight (or nothing), mean, the reciprocal of the standard
    deviation, and the gradients of what was normalized, weight and bias.
    """
    from netloom.kernels.norm_code import norm_numbers
    from netloom.kernels.value_code import sum_blocks

    blocks = sum_blocks(rows)
    integers = (rows, channels, blocks, 0, n_threads)
    return PartCall(_norm(_lanes()), "batch_norm_gradient", integers, norm_numbers(channels, blocks))


def cross_entropy(n: int, classes: int, scale: float, n_threads: int) -> PartCall:
    """Softmax and cross-entropy, with its gradient.

    It takes logits `[classes, n]`, targets (int64 `[n]`), a factor (a number), the logits' gradient, the loss, which is
    the mean over the samples times the factor and `scale`, and how many targets have the largest logit (int64).
    """
    integers = (n, classes, _bits(scale), n_threads)
    return PartCall(_loss(_lanes()), "cross_entropy", integers, 2 * n)


def update(formula: str, *, decays: bool, momentum: bool, nesterov: bool) -> Callable[[int, int, int], None]:
    """What takes the address of a table of parameters, how many there are, and a number of threads; see `update_code`.

    Args:
        formula: `sgd`, `rmsprop`, `adam`, `adamw` or `nadam`.
        decays: Whether parameters decay.
        momentum: Of `sgd` and `rmsprop`, whether there is some.
        nesterov: Of `sgd`, whether it is Nesterov's.
    """
    program = _update(formula, decays, momentum, nesterov, _lanes())
    return lambda table, n, n_threads: program.run("update", (table, n, n_threads))


def _bits(number: float) -> int:
    """Those of a number of 32 bits."""
    bits: int
    (bits,) = struct.unpack("<i", struct.pack("<f", number))
    return bits


def _lanes() -> int:
    from netloom.kernels.llvm import lanes_here  # it needs llvmlite, which may be missing

    return lanes_here()


@compiled_once
def _mask() -> Program:
    from netloom.kernels.mask_code import compile_mask

    return compile_mask()


@compiled_once
def _norm(lanes: int) -> Program:
    from netloom.kernels.norm_code import compile_norm

    return compile_norm(lanes)


@compiled_once
def _values(lanes: int) -> Program:
    from netloom.kernels.value_code import compile_values

    return compile_values(lanes)


@compiled_once
def _loss(lanes: int) -> Program:
    from netloom.kernels.loss_code import compile_loss

    return compile_loss(lanes)


@compiled_once
def _update(formula: str, decays: bool, momentum: bool, nesterov: bool, lanes: int) -> Program:
    from netloom.kernels.update_code import Rule, compile_update

    return compile_update(Rule(formula, decays, momentum, nesterov), lanes)


@compiled_once
def _product(lanes: int) -> Program:
    from netloom.kernels.product_code import compile_product

    return compile_product(lanes)
