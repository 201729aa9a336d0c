"""Calls of parts for what lies between convolutions, and for dense layers.

Each function tells the tensors that its part takes, all of float32 in dense memory; pictures are channels-last.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from netloom.kernels.calls import PartCall, compiled_once

if TYPE_CHECKING:
    from netloom.kernels.llvm import Program


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

    (bits,) = struct.unpack("<i", struct.pack("<f", eps))
    blocks = sum_blocks(rows)
    return PartCall(
        _norm(_lanes()), "batch_norm", (rows, channels, blocks, bits, n_threads), norm_numbers(channels, blocks)
    )


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


def _lanes() -> int:
    from netloom.kernels.llvm import lanes_here  # it needs llvmlite, which may be missing

    return lanes_here()


@compiled_once
def _norm(lanes: int) -> Program:
    from netloom.kernels.norm_code import compile_norm

    return compile_norm(lanes)


@compiled_once
def _values(lanes: int) -> Program:
    from netloom.kernels.value_code import compile_values

    return compile_values(lanes)


@compiled_once
def _product(lanes: int) -> Program:
    from netloom.kernels.product_code import compile_product

    return compile_product(lanes)
