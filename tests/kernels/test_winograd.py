"""Winograd's convolution against torch's in float64, which sums products."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from netloom.kernels import calls, llvm, winograd
from netloom.kernels.calls import usable


@pytest.fixture(params=[8, 16], autouse=True)
def lanes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Registers of so many numbers, whatever this processor has."""

    def forget() -> None:
        for kept in (winograd.convolve_call, winograd.weight_gradient_call):
            kept.cache_clear()

    monkeypatch.setattr(llvm, "lanes_here", lambda: request.param)
    forget()
    yield request.param
    forget()


SHAPES = [
    # pictures, input channels, kernels, height, width, padding
    (2, 8, 8, 5, 7, (1, 1)),
    (3, 24, 40, 9, 9, (0, 0)),
    (1, 16, 8, 1, 1, (2, 2)),
    (2, 64, 32, 17, 3, (1, 0)),
    (2, 8, 24, 30, 31, (0, 2)),
    (9, 32, 16, 4, 4, (1, 1)),
]
ROUNDING = 1e-5  # relative error of all numbers as one vector; torch's own is about 5e-7


def example(
    n: int, channels: int, kernels: int, height: int, width: int, padding: tuple[int, int]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Pictures, kernel, bias and the outputs' gradient."""
    torch.manual_seed(1)
    out = (height + 2 * padding[0] - 2, width + 2 * padding[1] - 2)
    return (
        torch.randn(n, channels, height, width).to(memory_format=torch.channels_last),
        torch.randn(kernels, channels, 3, 3).to(memory_format=torch.channels_last),
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
    assert_close(winograd.convolution(images, kernel, bias, padding), expected.detach())
    assert_close(
        winograd.convolution(images, kernel, None, padding), expected.detach() - bias.double().view(1, -1, 1, 1)
    )
    rectified = winograd.convolution(images, kernel, bias, padding, relu=True)
    assert torch.equal(rectified, winograd.convolution(images, kernel, bias, padding).relu())
    assert_close(winograd.input_gradient(gradient, kernel, padding), of_images)
    assert_close(winograd.weight_gradient(images, gradient, padding), of_kernel)


@pytest.mark.parametrize("shape", SHAPES)
def test_threads_change_no_bit(shape: Any) -> None:
    images, kernel, bias, gradient = example(*shape)
    results, threads = [], torch.get_num_threads()
    try:
        for n_threads in (1, 2, 3, 4, 1):
            torch.set_num_threads(n_threads)
            results.append(
                (
                    winograd.convolution(images, kernel, bias, shape[-1]),
                    winograd.input_gradient(gradient, kernel, shape[-1]),
                    winograd.weight_gradient(images, gradient, shape[-1]),
                )
            )
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))


def test_nothing_is_written_beyond_what_is_returned() -> None:
    """Of outputs and kernels that lie within larger memory."""
    images, kernel, bias, gradient = example(3, 8, 24, 7, 6, (1, 1))
    kept = [value.clone() for value in (images, kernel, bias, gradient)]
    padded = torch.full((5, 7, 6, 8), torch.nan)  # pictures between others that are no numbers
    padded[1:4] = images.permute(0, 2, 3, 1)
    between = padded[1:4].permute(0, 3, 1, 2)
    assert torch.equal(
        winograd.convolution(between, kernel, bias, (1, 1)), winograd.convolution(images, kernel, bias, (1, 1))
    )
    winograd.weight_gradient(images, gradient, (1, 1))
    winograd.input_gradient(gradient, kernel, (1, 1))
    assert all(torch.equal(a, b) for a, b in zip((images, kernel, bias, gradient), kept, strict=True))


def test_a_number_that_is_none_stays_where_its_window_is() -> None:
    """As in a sum of products, but for the other outputs of its tile of four by four."""
    images, kernel, _, _ = example(2, 8, 8, 16, 16, (1, 1))
    clean = winograd.convolution(images, kernel, None, (1, 1))
    images[1, 3, 9, 9] = torch.nan
    found = winograd.convolution(images, kernel, None, (1, 1))
    assert torch.isnan(found[1, :, 8:11, 8:11]).all()
    assert torch.equal(found[0], clean[0])
    assert torch.equal(found[1, :, :4], clean[1, :, :4])


@pytest.mark.parametrize(
    ("pictures", "kernel", "stride", "padding", "dtype", "expected"),
    [
        ((2, 8, 5, 5), (8, 8, 3, 3), (1, 1), (1, 1), torch.float32, True),
        ((2, 3, 5, 5), (8, 3, 3, 3), (1, 1), (1, 1), torch.float32, False),
        ((2, 8, 5, 5), (12, 8, 3, 3), (1, 1), (1, 1), torch.float32, False),
        ((2, 8, 5, 5), (8, 8, 5, 5), (1, 1), (1, 1), torch.float32, False),
        ((2, 8, 5, 5), (8, 8, 3, 3), (2, 1), (1, 1), torch.float32, False),
        ((2, 8, 5, 5), (8, 8, 3, 3), (1, 1), (3, 1), torch.float32, False),
        ((2, 8, 5, 5), (8, 8, 3, 3), (1, 1), (1, 1), torch.bfloat16, False),
        ((2, 8, 2, 5), (8, 8, 3, 3), (1, 1), (0, 0), torch.float32, False),
        ((0, 8, 5, 5), (8, 8, 3, 3), (1, 1), (0, 0), torch.float32, False),
    ],
)
def test_what_suits(pictures: Any, kernel: Any, stride: Any, padding: Any, dtype: torch.dtype, expected: bool) -> None:
    assert winograd.suits(pictures, kernel, stride, padding, dtype) == expected


def test_shapes_are_known_without_computing() -> None:
    images, kernel, bias, gradient = (value.to("meta") for value in example(2, 8, 24, 30, 31, (0, 2)))
    assert winograd.convolution(images, kernel, bias, (0, 2)).shape == gradient.shape
    assert winograd.input_gradient(gradient, kernel, (0, 2)).shape == images.shape
    assert winograd.weight_gradient(images, gradient, (0, 2)).shape == kernel.shape


def test_without_llvm_it_is_not_usable(monkeypatch: pytest.MonkeyPatch) -> None:
    assert usable()
    with monkeypatch.context() as without:
        for name in [name for name in sys.modules if name.startswith(("llvmlite", "netloom.kernels.winograd_code"))]:
            without.delitem(sys.modules, name)
        without.setitem(sys.modules, "llvmlite", None)
        without.delitem(sys.modules, "netloom.kernels.llvm")
        calls._runner.forget()
        assert not usable()
    calls._runner.forget()
    assert usable()
