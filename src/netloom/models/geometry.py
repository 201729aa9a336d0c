"""How large a picture must be, by arithmetic: no network is run to find out."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from netloom.errors import ModelError


def output_size(trunk: nn.Module, image_size: tuple[int, int]) -> tuple[int, int]:
    """Height and width of the feature map that `trunk` makes of pictures of (height, width).

    A side is 0 or less where the picture is too small. `trunk` must be a chain: branches are read
    as if one followed the other (residual blocks whose shortcut has no layer are fine).
    """
    height, width = image_size
    for kernel, stride, padding in _windows(trunk):
        height = (height + padding - kernel) // stride + 1
        width = (width + padding - kernel) // stride + 1
    return height, width


def smallest_side(trunk: nn.Module) -> int:
    """The smallest side in pixels of which `trunk`, a chain, leaves at least one position."""
    side = 1
    for kernel, stride, padding in reversed(list(_windows(trunk))):
        side = max(1, (side - 1) * stride + kernel - padding)
    return side


def require_size(name: str, trunk: nn.Module, image_size: tuple[int, int], *, remedy: str = "") -> tuple[int, int]:
    """`output_size` of pictures that are large enough.

    `remedy` goes on where the message says "Use a larger image_size".

    Raises:
        ModelError: A side is smaller than the trunk of the model `name` needs.
    """
    need = smallest_side(trunk)
    height, width = image_size
    if min(image_size) < need:
        raise ModelError(
            f"{name} needs pictures of at least {need}x{need} pixels with these options, "
            f"got {height}x{width} (height x width). Use a larger image_size{remedy}."
        )
    return output_size(trunk, image_size)


def _windows(trunk: nn.Module) -> Iterator[tuple[int, int, int]]:
    """Kernel, stride and padding (of both sides together) of each layer that has them, in order."""
    for module in trunk.modules():
        if isinstance(module, nn.Conv2d):
            yield module.kernel_size[0], module.stride[0], 2 * int(module.padding[0])
        elif isinstance(module, nn.ZeroPad2d):
            yield 1, 1, module.padding[0] + module.padding[1]
        elif isinstance(module, (nn.MaxPool2d, nn.AvgPool2d)):
            yield _side(module.kernel_size), _side(module.stride), 2 * _side(module.padding)


def _side(value: int | tuple[int, ...]) -> int:
    return value if isinstance(value, int) else value[0]
