"""A first convolution that gives whitened patches: principal components of what the network is trained on."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from netloom.errors import ModelError

# What is added to each variance, of their mean: components of JPEG's high frequencies have next to none, and would
# be blown up otherwise. Jordan's 0.0005 for inputs of variance 1.
_REGULARIZATION = 5e-4


def first_convolution(model: nn.Module) -> nn.Conv2d:
    """The first convolution in the order of the model's definition.

    Raises:
        ModelError: There is none, or it does not see all channels at once.
    """
    layer = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    if layer is None or layer.groups != 1:
        what = "has no convolution" if layer is None else "begins with a grouped convolution"
        raise ModelError(f"{type(model).__name__} {what} to be whitened. Use first_layer: random.")
    return layer


def freeze_first_convolution(model: nn.Module) -> None:
    """Leave the kernel of the first convolution out of training.

    Raises:
        ModelError: It has more filters than there are components, so that random ones would be frozen; or there is
            nothing to freeze.
    """
    layer = first_convolution(model)
    most = 2 * layer.weight[0].numel()
    if layer.out_channels > most:
        raise ModelError(
            f"The first convolution has {layer.out_channels} filters, and patches of "
            f"{'x'.join(map(str, layer.weight.shape[1:]))} numbers have {most // 2} components, which make {most} "
            "filters with their negatives; the rest would be frozen at random. Use first_layer: whitening, or fewer."
        )
    layer.weight.requires_grad_(False)


def whiten_first_convolution(model: nn.Module, blocks: Iterable[Tensor]) -> None:
    """Set filters of the first convolution, in place, to the principal components of patches and their negatives.

    Each component is divided by the deviation along it, so that the outputs are uncorrelated with variance 1 (Page,
    "How to train your ResNet 8: bag of tricks", 2019; Jordan 2024). Pairs come in the order of their variance; filters
    beyond twice the number of components stay as they are.

    Args:
        model: With a convolution.
        blocks: Network inputs, float32 `[n, C, H, W]`, of training pictures only.

    Raises:
        ModelError: There is no convolution, or the pictures are smaller than its kernel.
    """
    layer = first_convolution(model)
    height, width = layer.weight.shape[2:]
    components = whitening_components(second_moments(blocks, (height, width)))
    pairs = np.stack([components, -components], axis=1).reshape(-1, components.shape[1])[: layer.out_channels]
    with torch.no_grad():
        kernels = torch.from_numpy(pairs).to(layer.weight).view(-1, *layer.weight.shape[1:])
        layer.weight[: len(kernels)] = kernels


def second_moments(blocks: Iterable[Tensor], kernel_size: tuple[int, int]) -> npt.NDArray[np.float64]:
    """Mean of `p p^T` over all patches `p` of `C * h * w` numbers, in the order of a kernel's weights.

    Raises:
        ModelError: The pictures are smaller than the kernel.
    """
    total, count = np.zeros((1, 1)), 0
    for images in blocks:
        if min(images.shape[2] - kernel_size[0], images.shape[3] - kernel_size[1]) < 0:
            raise ModelError(
                f"Pictures of {images.shape[2]}x{images.shape[3]} pixels have no patch of "
                f"{kernel_size[0]}x{kernel_size[1]}. Use a larger image_size or first_layer: random."
            )
        patches = F.unfold(images.float(), kernel_size).transpose(0, 1).flatten(1)
        total = total + (patches @ patches.T).cpu().double().numpy()
        count += patches.shape[1]
    return total / max(1, count)


def whitening_components(moments: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Rows are eigenvectors of `moments` `[d, d]`, the largest eigenvalue's first, over the root of the eigenvalue.

    The largest entry of each row is positive, since an eigenvector's sign is arbitrary.
    """
    values, vectors = np.linalg.eigh(moments)
    values, rows = values[::-1], vectors.T[::-1]
    largest = rows[np.arange(len(rows)), np.abs(rows).argmax(axis=1)]
    # Pictures of a single colour that is scaled to zero have no variance at all, and then any scale will do.
    scales = np.sqrt(np.maximum(values, 0) + (_REGULARIZATION * values.mean() or 1.0))
    components: npt.NDArray[np.float64] = rows * (np.sign(largest) / scales)[:, None]
    return components
