"""Convolutions with few channels, and their gradients, as sums of products.

torch's own spend most of their time beside the arithmetic there. float32 in channels-last memory, on the threads that
torch has, for stride 1. How many these are changes no bit.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from netloom.kernels.calls import PartCall, compiled_once, most_threads
from netloom.kernels.pictures import (
    check,
    check_gradient,
    dense,
    empty_kernel,
    empty_pictures,
    output_size,
    turned_round,
)

if TYPE_CHECKING:
    from netloom.kernels.direct_code import DirectShape
    from netloom.kernels.llvm import Program

# Beyond that many channels others are faster: there are fewer sums than what has to be read for them.
_MOST_CHANNELS, _MOST_KERNELS = 16, 64
_LARGEST_KERNEL = 7
# Pictures with their zeros that a thread has room for, in numbers.
_MOST_PADDED = 2**20


def suits(
    pictures: Sequence[int], kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], dtype: torch.dtype
) -> bool:
    """Whether a convolution of such shapes, `[B, C, H, W]` and `[K, C, h, w]`, can be taken here, and its gradients."""
    _, channels, *size = pictures
    return (
        set(stride) == {1}
        and dtype == torch.float32
        and channels <= _MOST_CHANNELS
        and kernel[0] <= _MOST_KERNELS
        and max(kernel[2:]) <= _LARGEST_KERNEL
        and all(zeros < side for zeros, side in zip(padding, kernel[2:], strict=True))
        and max(channels, kernel[0]) * math.prod(s + 2 * k for s, k in zip(size, kernel[2:], strict=True))
        <= _MOST_PADDED
        and all(size > 0 for size in (*pictures, *output_size(size, kernel[2:], padding), *kernel))
    )


def convolution(
    pictures: torch.Tensor, kernel: torch.Tensor, bias: torch.Tensor | None, padding: Sequence[int]
) -> torch.Tensor:
    """The convolution `[B, K, H', W']` of `pictures` `[B, C, H, W]` with `kernel` `[K, C, h, w]`, of stride 1."""
    return torch.ops.netloom.direct_convolution(pictures, kernel, bias, padding)  # type: ignore[no-any-return]


def input_gradient(gradient: torch.Tensor, kernel: torch.Tensor, padding: Sequence[int]) -> torch.Tensor:
    """The gradient `[B, C, H, W]` of the pictures, where that of the outputs is `gradient` `[B, K, H', W']`."""
    return torch.ops.netloom.direct_input_gradient(gradient, kernel, padding)  # type: ignore[no-any-return]


def weight_gradient(
    pictures: torch.Tensor, gradient: torch.Tensor, kernel_size: Sequence[int], padding: Sequence[int]
) -> torch.Tensor:
    """The gradient `[K, C, h, w]` of the kernel, where that of the outputs is `gradient` `[B, K, H', W']`."""
    operation = torch.ops.netloom.direct_weight_gradient
    return operation(pictures, gradient, kernel_size, padding)  # type: ignore[no-any-return]


@functools.lru_cache(maxsize=256)
def convolve_call(
    pictures: tuple[int, ...],
    kernel: tuple[int, ...],
    strides: tuple[int, ...],
    padding: tuple[int, int],
    n_threads: int,
    *,
    relu: bool = False,
) -> PartCall:
    """What takes pictures, a kernel's first number, bias and outputs.

    Args:
        pictures: Their shape, `[B, C, H, W]`.
        kernel: Its shape, `[K, C, h, w]`.
        strides: Of the kernel's memory.
        padding: Zeros above and below, left and right.
        n_threads: Among which the work is divided.
        relu: Whether outputs below zero become zero.
    """
    shape = _shape(pictures, kernel, padding)
    numbers = (pictures[0], *strides, int(relu), n_threads)
    return PartCall(_program(shape), "convolve", numbers, shape.convolve_numbers(n_threads))


@functools.lru_cache(maxsize=256)
def weight_gradient_call(
    pictures: tuple[int, ...], kernel: tuple[int, ...], padding: tuple[int, int], n_threads: int
) -> PartCall:
    """What takes pictures, the outputs' gradient and the kernel's, which is in channels-last memory."""
    shape, n = _shape(pictures, kernel, padding), pictures[0]
    numbers = (n, shape.blocks(n), n_threads)
    return PartCall(_program(shape), "weight_gradient", numbers, shape.weight_gradient_numbers(n, n_threads))


def _shape(pictures: tuple[int, ...], kernel: tuple[int, ...], padding: tuple[int, int]) -> DirectShape:
    from netloom.kernels.direct_code import DirectShape  # it needs llvmlite, which may be missing
    from netloom.kernels.llvm import lanes_here

    (_, channels, *size), (kernels, _, *kernel_size) = pictures, kernel
    return DirectShape(channels, kernels, (*kernel_size,), (*size,), padding, lanes_here())  # type: ignore[arg-type]


@compiled_once
def _program(shape: DirectShape) -> Program:
    from netloom.kernels.direct_code import compile_direct

    return compile_direct(shape)


def _convolve(
    pictures: torch.Tensor,
    first_weight: int,
    bias: torch.Tensor | None,
    kernel: tuple[int, ...],
    strides: tuple[int, ...],
    padding: tuple[int, int],
) -> torch.Tensor:
    """The outputs for a kernel of that shape whose first number is at this address."""
    check(pictures, kernel, bias, padding)
    pictures = dense(pictures)
    outputs = empty_pictures(pictures, kernel[0], output_size(pictures.shape[2:], kernel[2:], padding))
    bias = bias if bias is None else bias.contiguous()
    if not outputs.numel():
        return outputs
    call = convolve_call(tuple(pictures.shape), kernel, strides, padding, most_threads())
    call.run(pictures, first_weight, bias, outputs)
    return outputs


_library = torch.library.Library("netloom", "FRAGMENT")  # type: ignore[no-untyped-call]
for _signature in (
    "direct_convolution(Tensor pictures, Tensor kernel, Tensor? bias, int[] padding) -> Tensor",
    "direct_input_gradient(Tensor gradient, Tensor kernel, int[] padding) -> Tensor",
    "direct_weight_gradient(Tensor pictures, Tensor gradient, int[] kernel_size, int[] padding) -> Tensor",
):
    _library.define(_signature)  # type: ignore[no-untyped-call]


@torch.library.impl(_library, "direct_convolution", "CPU")
def _convolution(
    pictures: torch.Tensor, kernel: torch.Tensor, bias: torch.Tensor | None, padding: Sequence[int]
) -> torch.Tensor:
    top, left = padding
    return _convolve(pictures, kernel.data_ptr(), bias, tuple(kernel.shape), kernel.stride(), (top, left))


@torch.library.impl(_library, "direct_input_gradient", "CPU")
def _input_gradient(gradient: torch.Tensor, kernel: torch.Tensor, padding: Sequence[int]) -> torch.Tensor:
    first, strides, around = turned_round(kernel, kernel.stride(), padding)
    address = kernel.data_ptr() + kernel.element_size() * first
    shape = (kernel.shape[1], kernel.shape[0], *kernel.shape[2:])
    return _convolve(gradient, address, None, shape, strides, around)


@torch.library.impl(_library, "direct_weight_gradient", "CPU")
def _weight_gradient(
    pictures: torch.Tensor, gradient: torch.Tensor, kernel_size: Sequence[int], padding: Sequence[int]
) -> torch.Tensor:
    check_gradient(pictures, gradient, kernel_size, padding)
    pictures, gradient, (top, left) = dense(pictures), dense(gradient), padding
    out = empty_kernel(pictures, gradient, kernel_size)
    if not gradient.numel():
        return out.zero_()
    call = weight_gradient_call(tuple(pictures.shape), tuple(out.shape), (top, left), most_threads())
    call.run(pictures, gradient, out)
    return out


@torch.library.impl(_library, "direct_convolution", "Meta")
def _convolution_shape(
    pictures: torch.Tensor, kernel: torch.Tensor, bias: torch.Tensor | None, padding: Sequence[int]
) -> torch.Tensor:
    return empty_pictures(pictures, len(kernel), output_size(pictures.shape[2:], kernel.shape[2:], padding))


@torch.library.impl(_library, "direct_input_gradient", "Meta")
def _input_gradient_shape(gradient: torch.Tensor, kernel: torch.Tensor, padding: Sequence[int]) -> torch.Tensor:
    _, _, around = turned_round(kernel, kernel.stride(), padding)
    return empty_pictures(gradient, kernel.shape[1], output_size(gradient.shape[2:], kernel.shape[2:], around))


@torch.library.impl(_library, "direct_weight_gradient", "Meta")
def _weight_gradient_shape(
    pictures: torch.Tensor, gradient: torch.Tensor, kernel_size: Sequence[int], padding: Sequence[int]
) -> torch.Tensor:
    return empty_kernel(pictures, gradient, kernel_size)
