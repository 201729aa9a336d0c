"""What convolutions in machine code are given: nothing may be read or written beside it."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch

from netloom.kernels import direct, winograd

BOTH = pytest.mark.parametrize("module", [direct, winograd], ids=["direct", "winograd"])


def example(n: int = 2, channels: int = 8, side: int = 6) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Pictures, kernels and biases."""
    return torch.randn(n, channels, side, side), torch.randn(16, 8, 3, 3), torch.randn(16)


@BOTH
def test_no_pictures_give_no_outputs_and_no_gradient(module: ModuleType) -> None:
    images, kernel, bias = example(n=0)
    outputs = module.convolution(images, kernel, bias, (1, 1))
    assert outputs.shape == (0, 16, 6, 6)
    assert module.input_gradient(outputs, kernel, (1, 1)).shape == images.shape
    of_kernel = torch.nn.grad.conv2d_weight(images, kernel.shape, outputs, padding=1)
    sizes = ((3, 3),) if module is direct else ()
    found = module.weight_gradient(images, outputs, *sizes, (1, 1))
    assert torch.equal(found, of_kernel)


@BOTH
@pytest.mark.parametrize(
    ("images", "kernel", "bias", "message"),
    [
        (torch.zeros(2, 8, 6, 6).double(), torch.zeros(16, 8, 3, 3), None, "float32"),
        (torch.zeros(2, 8, 6, 6), torch.zeros(16, 8, 3, 3), torch.zeros(16).double(), "float32"),
        (torch.zeros(2, 16, 6, 6), torch.zeros(16, 8, 3, 3), None, "do not fit"),
        (torch.zeros(8, 6, 6), torch.zeros(16, 8, 3, 3), None, "do not fit"),
        (torch.zeros(2, 8, 2, 6), torch.zeros(16, 8, 3, 3), None, "smaller"),
        (torch.zeros(2, 8, 6, 6), torch.zeros(16, 8, 3, 3), torch.zeros(8), "bias"),
    ],
)
def test_what_does_not_fit_is_refused(
    module: ModuleType, images: torch.Tensor, kernel: torch.Tensor, bias: torch.Tensor | None, message: str
) -> None:
    with pytest.raises(RuntimeError, match=message):
        module.convolution(images, kernel, bias, (0, 0))


@BOTH
def test_gradients_that_do_not_fit_are_refused(module: ModuleType) -> None:
    images, _, _ = example()
    sizes = ((3, 3),) if module is direct else ()
    for gradient in (torch.zeros(2, 16, 6, 5), torch.zeros(3, 16, 6, 6), torch.zeros(2, 16, 6, 6).double()):
        with pytest.raises(RuntimeError, match="gradient"):
            module.weight_gradient(images, gradient, *sizes, (1, 1))
