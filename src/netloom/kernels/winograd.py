"""Convolutions of 3x3 kernels, and their gradients, with a quarter of the multiplications.

Winograd's minimal filtering, F(4x4, 3x3) of Lavin and Gray, "Fast algorithms for convolutional neural networks", 2016:
six by six numbers of a picture and a kernel of three by three are transformed, multiplied number by number and summed
over channels, and transformed back to four by four outputs. float32 in channels-last memory, on the threads that torch
has. How many these are changes no bit. Rounding is about three times that of a sum of products.
"""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch

if TYPE_CHECKING:
    from netloom.kernels.llvm import Program

_KERNEL_SIZE = (3, 3)
_CHANNEL_UNIT = 8  # channels that the code takes at a time, of inputs and outputs
# Transformed tiles that a thread keeps at once, for outputs and for weights' gradients. Between 18 and 60 they hardly
# differ, but for multiples of 12: numbers of a tile then lie where a cache cannot keep them beside each other.
_TILES_AT_ONCE, _TILES_OF_GRADIENT = 18, 42

_compiling = threading.Lock()


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
        and all(size > 0 for size in (*pictures, *_output_size(pictures[2:], padding), *kernel))
    )


def usable() -> bool:
    """Whether machine code can be made on this machine; it is then made already, in half a second."""
    try:
        _program()
    except (ImportError, OSError, RuntimeError):
        return False
    return True


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
def _sizes(
    pictures: tuple[int, ...],
    out_size: tuple[int, int],
    kernels: int,
    padding: tuple[int, int],
    strides: tuple[int, ...],
    n_threads: int,
    *,
    room_for_each: bool,
    relu: bool = False,
) -> _Sizes:
    """Of a convolution of pictures `[B, C, H, W]`, with kernels of these strides.

    Args:
        pictures: Their shape.
        out_size: Height and width of the outputs.
        kernels: How many.
        padding: Rows of zeros above, and columns to the left.
        strides: Of the kernels' memory, by kernel, channel, row and column.
        n_threads: Among which the work is divided.
        room_for_each: Whether each of them has room for its own tiles, or all have it together.
        relu: Whether outputs below zero become zero.
    """
    from netloom.kernels import winograd_code as code  # it needs llvmlite, which may be missing

    n, channels, *size = pictures
    panels = -(-kernels // code.PANEL) * code.PANEL
    down, across = (-(-side // code.TILE) for side in out_size)
    n_tiles = n * down * across
    needed = -(-n_tiles // code.TILES_AT_ONCE) * code.TILES_AT_ONCE
    room = min(needed, _TILES_AT_ONCE if room_for_each else _TILES_OF_GRADIENT * n_threads)
    if room_for_each:
        n_numbers = code.convolve_numbers(channels, panels, room, n_threads)
    else:
        n_numbers = code.weight_gradient_numbers(channels, panels, room)
    numbers = (*size, channels, *out_size, kernels, panels, *padding, down, across, n_tiles, room, *strides)
    return _Sizes((*numbers, int(relu), n_threads), n_numbers, panels == kernels)


class _Sizes(NamedTuple):
    """What machine code is told of a convolution.

    Attributes:
        numbers: In its order.
        n_scratch: Numbers that it needs room for.
        fills_panels: Whether products are of all that is in them; else what is not must be zeros.
    """

    numbers: tuple[int, ...]
    n_scratch: int
    fills_panels: bool

    def scratch(self, like: torch.Tensor) -> torch.Tensor:
        """Room for its numbers."""
        return like.new_empty(self.n_scratch) if self.fills_panels else like.new_zeros(self.n_scratch)


def _convolve(
    pictures: torch.Tensor,
    first_weight: int,
    bias: torch.Tensor | None,
    n_kernels: int,
    padding: tuple[int, int],
    strides: tuple[int, ...],
    *,
    relu: bool = False,
) -> torch.Tensor:
    """The outputs `[B, n_kernels, H', W']` for kernels whose first number is at this address."""
    program, pictures = _program(), _dense(pictures)
    out_size = _output_size(pictures.shape[2:], padding)
    n_threads = program.most_threads
    sizes = _sizes(
        tuple(pictures.shape), out_size, n_kernels, padding, strides, n_threads, room_for_each=True, relu=relu
    )
    outputs, scratch = _empty(pictures, n_kernels, out_size), sizes.scratch(pictures)
    bias = bias if bias is None else bias.contiguous()
    of_bias = 0 if bias is None else bias.data_ptr()
    addresses = (pictures.data_ptr(), first_weight, of_bias, outputs.data_ptr(), scratch.data_ptr())
    program.run("convolve", (*addresses, *sizes.numbers))
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
    return _convolve(pictures, kernel.data_ptr(), bias, len(kernel), (top, left), kernel.stride(), relu=relu)


@torch.library.impl(_library, "winograd_input_gradient", "CPU")
def _input_gradient(gradient: torch.Tensor, kernel: torch.Tensor, padding: Sequence[int]) -> torch.Tensor:
    """A convolution with the same kernels turned round, from outputs to inputs."""
    of_outputs, of_inputs, down, across = kernel.stride()
    last_row, last_column = (size - 1 for size in _KERNEL_SIZE)
    last = kernel.data_ptr() + kernel.element_size() * (last_row * down + last_column * across)
    around = (last_row - padding[0], last_column - padding[1])
    return _convolve(gradient, last, None, kernel.shape[1], around, (of_inputs, of_outputs, -down, -across))


@torch.library.impl(_library, "winograd_weight_gradient", "CPU")
def _weight_gradient(pictures: torch.Tensor, gradient: torch.Tensor, padding: Sequence[int]) -> torch.Tensor:
    program, pictures, gradient, (top, left) = _program(), _dense(pictures), _dense(gradient), padding
    out = _empty_kernel(pictures, gradient)
    _, n_kernels, height, width = gradient.shape
    n_threads = program.most_threads
    sizes = _sizes(
        tuple(pictures.shape), (height, width), n_kernels, (top, left), out.stride(), n_threads, room_for_each=False
    )
    scratch = sizes.scratch(pictures)
    addresses = (pictures.data_ptr(), gradient.data_ptr(), out.data_ptr(), scratch.data_ptr())
    program.run("weight_gradient", (*addresses, *sizes.numbers))
    return out


@torch.library.impl(_library, "winograd_convolution", "Meta")
def _convolution_shape(
    pictures: torch.Tensor,
    kernel: torch.Tensor,
    bias: torch.Tensor | None,
    padding: Sequence[int],
    relu: bool = False,
) -> torch.Tensor:
    return _empty(pictures, len(kernel), _output_size(pictures.shape[2:], padding))


@torch.library.impl(_library, "winograd_input_gradient", "Meta")
def _input_gradient_shape(gradient: torch.Tensor, kernel: torch.Tensor, padding: Sequence[int]) -> torch.Tensor:
    other = [size - 1 - zeros for size, zeros in zip(_KERNEL_SIZE, padding, strict=True)]
    return _empty(gradient, kernel.shape[1], _output_size(gradient.shape[2:], other))


@torch.library.impl(_library, "winograd_weight_gradient", "Meta")
def _weight_gradient_shape(pictures: torch.Tensor, gradient: torch.Tensor, padding: Sequence[int]) -> torch.Tensor:
    return _empty_kernel(pictures, gradient)


def _output_size(size: Sequence[int], padding: Sequence[int]) -> tuple[int, int]:
    height, width = (s + 2 * p - k + 1 for s, p, k in zip(size, padding, _KERNEL_SIZE, strict=True))
    return height, width


def _dense(images: torch.Tensor) -> torch.Tensor:
    """In channels-last memory without gaps."""
    return images.contiguous(memory_format=torch.channels_last)


def _empty(like: torch.Tensor, channels: int, size: Sequence[int]) -> torch.Tensor:
    """`[B, channels, *size]` in channels-last memory."""
    return like.new_empty((len(like), *size, channels)).permute(0, 3, 1, 2)


def _empty_kernel(pictures: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """`[K, C, 3, 3]` in channels-last memory."""
    return pictures.new_empty((gradient.shape[1], *_KERNEL_SIZE, pictures.shape[1])).permute(0, 3, 1, 2)


@functools.lru_cache
def _compiled() -> Program:
    if sys.maxsize < 2**32:
        raise RuntimeError("it is written for addresses of 64 bits")
    from netloom.kernels.winograd_code import compile_winograd

    return compile_winograd()


def _program() -> Program:
    with _compiling:  # several threads may be the first
        return _compiled()
