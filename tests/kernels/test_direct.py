"""Convolutions with few channels against torch's in float64."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from netloom.kernels import direct, llvm

SHAPES = [
    # pictures, input channels, kernels, kernel size, height, width, padding
    (2, 3, 32, (3, 3), 12, 13, (1, 1)),
    (3, 1, 16, (5, 5), 9, 30, (0, 0)),
    (40, 3, 6, (5, 5), 8, 7, (2, 2)),
    (2, 6, 16, (5, 5), 14, 14, (0, 0)),
    (2, 16, 6, (3, 2), 5, 6, (2, 1)),
    (3, 3, 40, (2, 2), 5, 40, (0, 0)),
    (1, 2, 1, (1, 1), 1, 1, (0, 0)),
    (2, 5, 19, (7, 1), 7, 3, (6, 0)),
]
ROUNDING = 2e-6  # relative error of all numbers as one vector


@pytest.fixture(params=[8, 16], autouse=True)
def lanes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Registers of so many numbers, whatever this processor has."""

    def forget() -> None:
        for kept in (direct.convolve_call, direct.weight_gradient_call):
            kept.cache_clear()

    monkeypatch.setattr(llvm, "lanes_here", lambda: request.param)
    forget()
    yield request.param
    forget()


def example(
    n: int, channels: int, kernels: int, size: tuple[int, int], height: int, width: int, padding: tuple[int, int]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Pictures, kernel, bias and the outputs' gradient."""
    torch.manual_seed(1)
    out = (height + 2 * padding[0] - size[0] + 1, width + 2 * padding[1] - size[1] + 1)
    return (
        torch.randn(n, channels, height, width).to(memory_format=torch.channels_last),
        torch.randn(kernels, channels, *size).to(memory_format=torch.channels_last),
        torch.randn(kernels),
        torch.randn(n, kernels, *out).to(memory_format=torch.channels_last),
    )


def assert_close(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert found.shape == expected.shape
    assert found.dtype == torch.float32
    assert float((found - expected).norm() / expected.norm()) < ROUNDING


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
def test_outputs_and_gradients_are_those_of_a_sum_of_products(shape: Any, memory_format: torch.memory_format) -> None:
    padding = shape[-1]
    images, kernel, bias, gradient = (
        value.contiguous(memory_format=memory_format) if value.ndim == 4 else value for value in example(*shape)
    )
    exact, weights = images.double().requires_grad_(), kernel.double().requires_grad_()
    expected = F.conv2d(exact, weights, bias.double(), padding=padding)
    of_images, of_kernel = torch.autograd.grad(expected, [exact, weights], gradient.double())
    without = expected.detach() - bias.double().view(1, -1, 1, 1)
    assert_close(direct.convolution(images, kernel, bias, padding), expected.detach())
    assert_close(direct.convolution(images, kernel, None, padding), without)
    assert_close(direct.input_gradient(gradient, kernel, padding), of_images)
    assert_close(direct.weight_gradient(images, gradient, kernel.shape[2:], padding), of_kernel)


@pytest.mark.parametrize("shape", SHAPES)
def test_threads_change_no_bit(shape: Any) -> None:
    images, kernel, bias, gradient = example(*shape)
    results, threads = [], torch.get_num_threads()
    try:
        for n_threads in (1, 2, 3, 4, 1):
            torch.set_num_threads(n_threads)
            results.append(
                (
                    direct.convolution(images, kernel, bias, shape[-1]),
                    direct.input_gradient(gradient, kernel, shape[-1]),
                    direct.weight_gradient(images, gradient, kernel.shape[2:], shape[-1]),
                )
            )
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))


@pytest.mark.parametrize("shape", SHAPES)
def test_nothing_is_read_or_written_beside_what_is_given(shape: Any) -> None:
    """Each lies between numbers that are none, which must neither come into the results nor change."""
    images, kernel, bias, gradient = example(*shape)
    padding = shape[-1]
    expected = direct.convolution(images, kernel, bias, padding)
    of_kernel = direct.weight_gradient(images, gradient, kernel.shape[2:], padding)
    around = [_between_nan(value) for value in (images, kernel, bias, gradient)]
    held, given = [memory for memory, _ in around], [value for _, value in around]
    kept = [memory.clone() for memory in held]
    assert torch.equal(direct.convolution(*given[:3], padding), expected)
    assert torch.equal(direct.weight_gradient(given[0], given[3], kernel.shape[2:], padding), of_kernel)
    assert all(torch.equal(a.nan_to_num(7.0), b.nan_to_num(7.0)) for a, b in zip(held, kept, strict=True))
    out, call = (
        _between_nan(torch.zeros_like(expected)),
        direct.convolve_call(tuple(images.shape), tuple(kernel.shape), kernel.stride(), padding, 3),
    )
    call.run(images, kernel, bias, out[1])
    assert torch.equal(out[1], expected)
    assert out[0].isnan().sum() == out[0].numel() - expected.numel()


def _between_nan(value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Memory with no numbers before and behind the value's, and the value in it."""
    memory = torch.full((value.numel() + 64,), torch.nan)
    inner = memory.as_strided(value.shape, value.stride(), 32)
    return memory, inner.copy_(value)


def test_shapes_are_known_without_computing() -> None:
    images, kernel, bias, gradient = (value.to("meta") for value in example(2, 3, 24, (5, 3), 30, 31, (0, 2)))
    assert direct.convolution(images, kernel, bias, (0, 2)).shape == gradient.shape
    assert direct.input_gradient(gradient, kernel, (0, 2)).shape == images.shape
    assert direct.weight_gradient(images, gradient, (5, 3), (0, 2)).shape == kernel.shape


@pytest.mark.parametrize(
    ("pictures", "kernel", "stride", "padding", "dtype", "expected"),
    [
        ((2, 3, 9, 9), (8, 3, 5, 5), (1, 1), (2, 2), torch.float32, True),
        ((2, 32, 9, 9), (8, 32, 3, 3), (1, 1), (1, 1), torch.float32, False),
        ((2, 3, 9, 9), (96, 3, 3, 3), (1, 1), (1, 1), torch.float32, False),
        ((2, 3, 29, 29), (8, 3, 11, 11), (1, 1), (1, 1), torch.float32, False),
        ((2, 3, 9, 9), (8, 3, 3, 3), (2, 2), (1, 1), torch.float32, False),
        ((2, 3, 9, 9), (8, 3, 3, 3), (1, 1), (3, 1), torch.float32, False),
        ((2, 3, 9, 9), (8, 3, 3, 3), (1, 1), (1, 1), torch.bfloat16, False),
        ((2, 3, 2, 9), (8, 3, 3, 3), (1, 1), (0, 0), torch.float32, False),
        ((2, 16, 600, 600), (8, 16, 3, 3), (1, 1), (0, 0), torch.float32, False),
    ],
)
def test_what_suits(pictures: Any, kernel: Any, stride: Any, padding: Any, dtype: torch.dtype, expected: bool) -> None:
    assert direct.suits(pictures, kernel, stride, padding, dtype) == expected
