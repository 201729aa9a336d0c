"""Shapes and memory of what convolutions take and give: channels-last, without gaps."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def output_size(size: Sequence[int], kernel_size: Sequence[int], padding: Sequence[int]) -> tuple[int, int]:
    """Height and width of the outputs of a convolution of stride 1."""
    height, width = (s + 2 * p - k + 1 for s, p, k in zip(size, padding, kernel_size, strict=True))
    return height, width


def check(
    pictures: torch.Tensor, kernel_shape: Sequence[int], bias: torch.Tensor | None, padding: Sequence[int]
) -> None:
    """Refuse what machine code would read or write beyond.

    Args:
        pictures: `[B, C, H, W]`.
        kernel_shape: `[K, C, h, w]`.
        bias: `[K]`, or None.
        padding: Zeros above and below, left and right.

    Raises:
        RuntimeError: Types or shapes do not fit.
    """
    of_kernel = tuple(kernel_shape)
    if any(t.dtype != torch.float32 for t in (pictures, bias) if t is not None):
        raise RuntimeError("machine code of convolutions takes float32 only")
    if pictures.ndim != 4 or len(of_kernel) != 4 or len(padding) != 2 or pictures.shape[1] != of_kernel[1]:
        raise RuntimeError(f"pictures {tuple(pictures.shape)} do not fit kernels {of_kernel}")
    if min(output_size(pictures.shape[2:], of_kernel[2:], padding)) < 1:
        raise RuntimeError(f"pictures {tuple(pictures.shape)} are smaller than kernels {of_kernel}")
    if bias is not None and tuple(bias.shape) != of_kernel[:1]:
        raise RuntimeError(f"a bias {tuple(bias.shape)} does not fit kernels {of_kernel}")


def check_gradient(
    pictures: torch.Tensor, gradient: torch.Tensor, kernel_size: Sequence[int], padding: Sequence[int]
) -> None:
    """The same for a kernel's gradient; `gradient` is that of the outputs, `[B, K, H', W']`."""
    if gradient.ndim != 4 or gradient.dtype != torch.float32:
        raise RuntimeError("machine code of convolutions takes float32 gradients of four dimensions only")
    check(pictures, (gradient.shape[1], pictures.shape[1], *kernel_size), None, padding)
    expected = (len(pictures), gradient.shape[1], *output_size(pictures.shape[2:], kernel_size, padding))
    if tuple(gradient.shape) != expected:
        raise RuntimeError(f"a gradient {tuple(gradient.shape)} is none of outputs {expected}")


def dense(images: torch.Tensor) -> torch.Tensor:
    """In channels-last memory without gaps."""
    return images.contiguous(memory_format=torch.channels_last)


def empty_pictures(like: torch.Tensor, channels: int, size: Sequence[int]) -> torch.Tensor:
    """`[B, channels, *size]` in channels-last memory."""
    return like.new_empty((len(like), *size, channels)).permute(0, 3, 1, 2)


def empty_kernel(pictures: torch.Tensor, gradient: torch.Tensor, kernel_size: Sequence[int]) -> torch.Tensor:
    """`[K, C, *kernel_size]` in channels-last memory."""
    return pictures.new_empty((gradient.shape[1], *kernel_size, pictures.shape[1])).permute(0, 3, 1, 2)


def turned_round(
    kernel: torch.Tensor | Sequence[int], strides: Sequence[int], padding: Sequence[int]
) -> tuple[int, tuple[int, ...], tuple[int, int]]:
    """How a convolution reads a kernel `[K, C, h, w]` for the pictures' gradient, where outputs are its inputs.

    Returns:
        The place of the number that comes first, strides, and padding.
    """
    shape = kernel.shape if isinstance(kernel, torch.Tensor) else kernel
    (of_outputs, of_inputs, down, across), (last_row, last_column) = strides, (size - 1 for size in shape[2:])
    around = (last_row - padding[0], last_column - padding[1])
    return last_row * down + last_column * across, (of_inputs, of_outputs, -down, -across), around
