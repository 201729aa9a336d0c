"""A convolution that computes by other kernels than torch's own where these are faster.

Kernels of 3x3 may be taken by Winograd's transformation (see `kernels/winograd.py`), and those of few channels by sums
of products (see `kernels/direct.py`). The weights' gradient may also be a product of matrices: on processors with AVX2
only, oneDNN's own kernel for it reaches less than half of the arithmetic in channels-last memory. The product of
unfolded pictures with the gradient (Chellapilla et al., "High performance convolutional neural networks for document
processing", 2006) moves more memory and reaches two thirds and more from about 32 input channels on. For grey pictures
that kernel is slower still.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

from netloom.kernels import direct, winograd
from netloom.runtime import ConvolutionMethods


@dataclass(frozen=True)
class ConvolutionShape:
    """What a convolution's speed depends on.

    Attributes:
        pictures: Shape of its input, `[B, C, H, W]`.
        kernel: Shape of its weights, `[K, C, h, w]`.
        stride: Down and across.
        padding: Of zeros, above and below, left and right.
        dtype: Of both.
    """

    pictures: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dtype: torch.dtype

    @property
    def unfolded_bytes(self) -> int:
        """What its unfolded pictures take: a patch for each place of its output."""
        n, channels, *sides = self.pictures
        size = self.kernel[2:]
        places = [(s + 2 * p - k) // d + 1 for s, p, k, d in zip(sides, self.padding, size, self.stride, strict=True)]
        return n * math.prod(places) * channels * math.prod(size) * self.dtype.itemsize

    @property
    def suits_winograd(self) -> bool:
        """Whether it may be computed by Winograd's transformation."""
        return winograd.suits(self.pictures, self.kernel, self.stride, self.padding, self.dtype)

    @property
    def suits_direct(self) -> bool:
        """Whether our own sums of products may compute it."""
        return direct.suits(self.pictures, self.kernel, self.stride, self.padding, self.dtype)

    def takes(self, methods: ConvolutionMethods) -> bool:
        """Whether it may be computed so."""
        return (self.suits_winograd or "winograd" not in methods) and (self.suits_direct or "direct" not in methods)

    def example(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Pictures, weights and a gradient of the output, of ones, in channels-last memory."""
        pictures, kernel = (
            torch.ones(shape, dtype=self.dtype).contiguous(memory_format=torch.channels_last)
            for shape in (self.pictures, self.kernel)
        )
        return pictures, kernel, torch.ones_like(F.conv2d(pictures, kernel, None, self.stride, self.padding))


def unfolded_weight_gradient(
    gradient: torch.Tensor,
    pictures: torch.Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
) -> torch.Tensor:
    """The weights' gradient `[K, C, h, w]` of a convolution of `pictures` `[B, C, H, W]`, of dilation 1 and one group.

    `gradient` is that of its output, `[B, K, H', W']`.
    """
    if any(padding):
        pictures = F.pad(pictures, (padding[1], padding[1], padding[0], padding[0]))
    rows = pictures.permute(0, 2, 3, 1).contiguous()
    n, n_kernels, height, width = gradient.shape
    of_outputs = gradient.permute(0, 2, 3, 1).reshape(-1, n_kernels)
    step, channels, (down, across) = rows.stride(), rows.shape[3], kernel_size
    places, of_places = (n, height, width), (step[0], step[1] * stride[0], step[2] * stride[1])
    if channels == 1:  # whole rows of pictures are copied, not those of patches
        patches = rows.as_strided((down, across, *places), (step[1], step[2], *of_places)).reshape(down * across, -1)
        product = (patches @ of_outputs).t()
    else:
        patches = rows.as_strided((*places, down, across, channels), (*of_places, step[1], step[2], 1))
        product = of_outputs.t() @ patches.reshape(n * height * width, -1)
    return product.reshape(n_kernels, down, across, channels).permute(0, 3, 1, 2)


def output_by(
    method: str,
    pictures: torch.Tensor,
    kernel: torch.Tensor,
    bias: torch.Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
) -> torch.Tensor:
    """The outputs `[B, K, H', W']`."""
    if method == "winograd":
        return winograd.convolution(pictures, kernel, bias, padding)
    if method == "direct":
        return direct.convolution(pictures, kernel, bias, padding)
    return torch.ops.aten.convolution(  # type: ignore[no-any-return]
        pictures, kernel, bias, stride, padding, [1, 1], False, [0, 0], 1
    )


def input_gradient_by(
    method: str,
    gradient: torch.Tensor,
    pictures: torch.Tensor,
    kernel: torch.Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
) -> torch.Tensor:
    """The pictures' gradient `[B, C, H, W]`."""
    if method == "winograd":
        return winograd.input_gradient(gradient, kernel, padding)
    if method == "direct":
        return direct.input_gradient(gradient, kernel, padding)
    return _torch_gradients(gradient, pictures, kernel, stride, padding, [True, False, False])[0]


def weight_gradient_by(
    method: str,
    gradient: torch.Tensor,
    pictures: torch.Tensor,
    kernel: torch.Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
) -> torch.Tensor:
    """The weights' gradient `[K, C, h, w]`."""
    if method == "winograd":
        return winograd.weight_gradient(pictures, gradient, padding)
    if method == "direct":
        return direct.weight_gradient(pictures, gradient, kernel.shape[2:], padding)
    if method == "unfolded":
        return unfolded_weight_gradient(gradient, pictures, kernel.shape[2:], stride, padding)
    return _torch_gradients(gradient, pictures, kernel, stride, padding, [False, True, False])[1]


def _torch_gradients(
    gradient: torch.Tensor,
    pictures: torch.Tensor,
    kernel: torch.Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    wanted: Sequence[bool],
) -> Sequence[torch.Tensor]:
    return torch.ops.aten.convolution_backward(  # type: ignore[no-any-return]
        gradient, pictures, kernel, None, stride, padding, [1, 1], False, [0, 0], 1, wanted
    )


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        pictures: torch.Tensor,
        kernel: torch.Tensor,
        bias: torch.Tensor | None,
        stride: Sequence[int],
        padding: Sequence[int],
        methods: ConvolutionMethods,
    ) -> torch.Tensor:
        ctx.save_for_backward(pictures, kernel)
        ctx.stride, ctx.padding, ctx.methods, ctx.has_bias = stride, padding, methods, bias is not None
        return output_by(methods.output, pictures, kernel, bias, stride, padding)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (gradient,), of_pictures = gradients, None
        given = (gradient, *ctx.saved_tensors, ctx.stride, ctx.padding)
        if ctx.needs_input_grad[0]:
            of_pictures = input_gradient_by(ctx.methods.input_gradient, *given)
        of_kernel = weight_gradient_by(ctx.methods.weight_gradient, *given) if ctx.needs_input_grad[1] else None
        return of_pictures, of_kernel, gradient.sum((0, 2, 3)) if ctx.has_bias else None, None, None, None


def convolution_by(
    pictures: torch.Tensor,
    kernel: torch.Tensor,
    bias: torch.Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    methods: Sequence[str],
) -> torch.Tensor:
    """`aten.convolution` of dilation 1 and one group, which computes by these `ConvolutionMethods`."""
    return _Convolution.apply(  # type: ignore[no-any-return, no-untyped-call]
        pictures,
        kernel,
        bias,
        stride,
        padding,
        ConvolutionMethods(*methods),  # type: ignore[arg-type]
    )
