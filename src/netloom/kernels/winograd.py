"""Convolutions of 3x3 kernels, and their gradients, with a quarter of the multiplications.

Winograd's minimal filtering, F(4x4, 3x3) of Lavin and Gray, "Fast algorithms for convolutional neural networks", 2016:
six by six numbers of a picture and a kernel of three by three are transformed, multiplied number by number and summed
over channels, and transformed back to four by four outputs. float32 in channels-last memory, on the threads that torch
has. How many these are changes no bit. Rounding is about three times that of a sum of products.
"""

from __future__ import annotations

import functools
import sys
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
    from netloom.kernels.llvm import Program
    from netloom.kernels.winograd_code import Registers

_KERNEL_SIZE = (3, 3)
_CHANNEL_UNIT = 8  # what channels, of inputs and outputs, must be a multiple of
# Transformed tiles that a thread keeps at once, for outputs and for weights' gradients. Between 18 and 60 they hardly
# differ, but for multiples of 12: numbers of a tile then lie where a cache cannot keep them beside each other.
_TILES_AT_ONCE, _TILES_OF_GRADIENT = 18, 42
# Where kernels have no more numbers at each frequency, and strands so many tiles, tiles are divided into so many
# strands, whose gradients are added: threads that share frequencies in place of tiles wait for one another.
_MOST_IN_STRANDS, _FEWEST_IN_STRAND, _STRANDS = 2**13, 48, 8


def suits(
    pictures: Sequence[int], kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], dtype: torch.dtype
) -> bool:
    """Whether a convolution of such shapes, `[B, C, H, W]` and `[K, C, h, w]`, can be taken here, and its gradients."""
    return (
        tuple(kernel[2:]) == _KERNEL_SIZE
        and set(stride) == {1}
        and max(padding) < _KERNEL_SIZE[0]
        and dtype == torch.float32
        and kernel[0] % _CHANNEL_UNIT == 0
        and kernel[1] % _CHANNEL_UNIT == 0
        and all(size > 0 for size in (*pictures, *output_size(pictures[2:], _KERNEL_SIZE, padding), *kernel))
    )


def convolution(
    pictures: torch.Tensor,
    kernel: torch.Tensor,
    bias: torch.Tensor | None,
    padding: Sequence[int],
    *,
    relu: bool = False,
) -> torch.Tensor:
    """The convolution `[B, K, H', W']` of `pictures` `[B, C, H, W]` with `kernel` `[K, C, 3, 3]`, of stride 1.

    With `relu`, outputs below zero are zero.
    """
    operation = torch.ops.netloom.winograd_convolution
    return operation(pictures, kernel, bias, padding, relu)  # type: ignore[no-any-return]


def input_gradient(gradient: torch.Tensor, kernel: torch.Tensor, padding: Sequence[int]) -> torch.Tensor:
    """The gradient `[B, C, H, W]` of the pictures, where that of the outputs is `gradient` `[B, K, H', W']`."""
    return torch.ops.netloom.winograd_input_gradient(gradient, kernel, padding)  # type: ignore[no-any-return]


def weight_gradient(pictures: torch.Tensor, gradient: torch.Tensor, padding: Sequence[int]) -> torch.Tensor:
    """The gradient `[K, C, 3, 3]` of the kernel, where that of the outputs is `gradient` `[B, K, H', W']`."""
    return torch.ops.netloom.winograd_weight_gradient(pictures, gradient, padding)  # type: ignore[no-any-return]


@functools.lru_cache(maxsize=1024)
def convolve_call(
    pictures: tuple[int, ...],
    kernels: int,
    strides: tuple[int, ...],
    padding: tuple[int, int],
    n_threads: int,
    *,
    relu: bool = False,
) -> PartCall:
    """What takes pictures, a kernel's first number, bias and outputs.

    Args:
        pictures: Their shape, `[B, C, H, W]`.
        kernels: How many.
        strides: Of the kernels' memory, by kernel, channel, row and column.
        padding: Rows of zeros above, and columns to the left.
        n_threads: Among which the work is divided.
        relu: Whether outputs below zero become zero.
    """
    from netloom.kernels import winograd_code as code  # it needs llvmlite, which may be missing

    registers = _registers()
    n_tiles, panels, numbers = _sizes(pictures, kernels, padding, registers)
    room = min(-(-n_tiles // registers.tiles) * registers.tiles, _TILES_AT_ONCE)
    return PartCall(
        _program(registers),
        "convolve",
        (*numbers, n_tiles, room, *strides, int(relu), 1, n_threads),
        code.convolve_numbers(pictures[1], panels, room, n_threads),
        needs_zeros=panels != kernels,
    )


@functools.lru_cache(maxsize=1024)
def weight_gradient_call(
    pictures: tuple[int, ...], kernels: int, strides: tuple[int, ...], padding: tuple[int, int], n_threads: int
) -> PartCall:
    """What takes pictures, the outputs' gradient and the kernels'; arguments are those of `convolve_call`."""
    from netloom.kernels import winograd_code as code

    registers = _registers()
    n_tiles, panels, numbers = _sizes(pictures, kernels, padding, registers)
    needed = -(-n_tiles // registers.tiles) * registers.tiles
    if pictures[1] * panels <= _MOST_IN_STRANDS and n_tiles >= _STRANDS * _FEWEST_IN_STRAND:
        name, room, strands = "strands", min(needed, _TILES_OF_GRADIENT), _STRANDS
        n_scratch = code.strands_numbers(pictures[1], panels, room, strands, n_threads)
    else:
        name, room, strands = "weight_gradient", min(needed, _TILES_OF_GRADIENT * n_threads), 1
        n_scratch = code.weight_gradient_numbers(pictures[1], panels, room)
    integers = (*numbers, n_tiles, room, *strides, 0, strands, n_threads)
    return PartCall(_program(registers), name, integers, n_scratch, needs_zeros=panels != kernels)


def _sizes(
    pictures: tuple[int, ...], kernels: int, padding: tuple[int, int], registers: Registers
) -> tuple[int, int, tuple[int, ...]]:
    """Tiles, kernels up to whole panels, and the first numbers that machine code is told."""
    from netloom.kernels.winograd_code import TILE

    n, channels, *size = pictures
    panels = -(-kernels // registers.panel) * registers.panel
    out_size = output_size(size, _KERNEL_SIZE, padding)
    down, across = (-(-side // TILE) for side in out_size)
    return n * down * across, panels, (*size, channels, *out_size, kernels, panels, *padding, down, across)


def _convolve(
    pictures: torch.Tensor,
    first_weight: int,
    bias: torch.Tensor | None,
    n_kernels: int,
    n_channels: int,
    padding: tuple[int, int],
    strides: tuple[int, ...],
    *,
    relu: bool = False,
) -> torch.Tensor:
    """The outputs `[B, n_kernels, H', W']` for kernels whose first number is at this address."""
    check(pictures, (n_kernels, n_channels, *_KERNEL_SIZE), bias, padding)
    pictures = dense(pictures)
    outputs = empty_pictures(pictures, n_kernels, output_size(pictures.shape[2:], _KERNEL_SIZE, padding))
    bias = bias if bias is None else bias.contiguous()
    if not outputs.numel():
        return outputs
    threads = most_threads()
    call = convolve_call(tuple(pictures.shape), n_kernels, tuple(strides), padding, threads, relu=relu)
    call.run(pictures, first_weight, bias, outputs)
    return outputs


_library = torch.library.Library("netloom", "FRAGMENT")  # type: ignore[no-untyped-call]
for _signature in (
    "winograd_convolution(Tensor pictures, Tensor kernel, Tensor? bias, int[] padding, bool relu=False) -> Tensor",
    "winograd_input_gradient(Tensor gradient, Tensor kernel, int[] padding) -> Tensor",
    "winograd_weight_gradient(Tensor pictures, Tensor gradient, int[] padding) -> Tensor",
):
    _library.define(_signature)  # type: ignore[no-untyped-call]


@torch.library.impl(_library, "winograd_convolution", "CPU")
def _convolution(
    pictures: torch.Tensor,
    kernel: torch.Tensor,
    bias: torch.Tensor | None,
    padding: Sequence[int],
    relu: bool = False,
) -> torch.Tensor:
    top, left = padding
    return _convolve(
        pictures, kernel.data_ptr(), bias, len(kernel), kernel.shape[1], (top, left), kernel.stride(), relu=relu
    )


@torch.library.impl(_library, "winograd_input_gradient", "CPU")
def _input_gradient(gradient: torch.Tensor, kernel: torch.Tensor, padding: Sequence[int]) -> torch.Tensor:
    """A convolution with the same kernels turned round, from outputs to inputs."""
    first, strides, around = turned_round(kernel, kernel.stride(), padding)
    address = kernel.data_ptr() + kernel.element_size() * first
    return _convolve(gradient, address, None, kernel.shape[1], kernel.shape[0], around, strides)


@torch.library.impl(_library, "winograd_weight_gradient", "CPU")
def _weight_gradient(pictures: torch.Tensor, gradient: torch.Tensor, padding: Sequence[int]) -> torch.Tensor:
    check_gradient(pictures, gradient, _KERNEL_SIZE, padding)
    pictures, gradient, (top, left) = dense(pictures), dense(gradient), padding
    out, threads = empty_kernel(pictures, gradient, _KERNEL_SIZE), most_threads()
    if not gradient.numel():
        return out.zero_()
    call = weight_gradient_call(tuple(pictures.shape), gradient.shape[1], out.stride(), (top, left), threads)
    call.run(pictures, gradient, out)
    return out


@torch.library.impl(_library, "winograd_convolution", "Meta")
def _convolution_shape(
    pictures: torch.Tensor,
    kernel: torch.Tensor,
    bias: torch.Tensor | None,
    padding: Sequence[int],
    relu: bool = False,
) -> torch.Tensor:
    return empty_pictures(pictures, len(kernel), output_size(pictures.shape[2:], _KERNEL_SIZE, padding))


@torch.library.impl(_library, "winograd_input_gradient", "Meta")
def _input_gradient_shape(gradient: torch.Tensor, kernel: torch.Tensor, padding: Sequence[int]) -> torch.Tensor:
    _, _, around = turned_round(kernel, kernel.stride(), padding)
    return empty_pictures(gradient, kernel.shape[1], output_size(gradient.shape[2:], _KERNEL_SIZE, around))


@torch.library.impl(_library, "winograd_weight_gradient", "Meta")
def _weight_gradient_shape(pictures: torch.Tensor, gradient: torch.Tensor, padding: Sequence[int]) -> torch.Tensor:
    return empty_kernel(pictures, gradient, _KERNEL_SIZE)


@compiled_once
def _program(registers: Registers) -> Program:
    if sys.maxsize < 2**32:
        raise RuntimeError("it is written for addresses of 64 bits")
    from netloom.kernels.winograd_code import compile_winograd

    return compile_winograd(registers)


def _registers() -> Registers:
    """Of this processor."""
    from netloom.kernels import winograd_code as code
    from netloom.kernels.llvm import lanes_here

    return code.THIRTY_TWO_OF_16 if lanes_here() == code.THIRTY_TWO_OF_16.lanes else code.SIXTEEN_OF_8
