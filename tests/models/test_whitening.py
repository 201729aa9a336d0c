"""Whitening against NumPy: patches cut out one by one, `numpy.cov`'s uncentred cousin, outputs with covariance 1."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from netloom.errors import ModelError
from netloom.models import create_model
from netloom.models.whitening import (
    freeze_first_convolution,
    second_moments,
    whiten_first_convolution,
    whitening_components,
)


def pictures(n: int = 40, channels: int = 3, side: int = 9) -> torch.Tensor:
    """Smooth random pictures, whose neighbouring pixels are alike."""
    noise = torch.randn(n, channels, side + 2, side + 2, generator=torch.Generator().manual_seed(0))
    return nn.functional.avg_pool2d(noise, 3, 1) * 2 + noise[:, :, 1:-1, 1:-1] * 0.3


def patches(images: np.ndarray, side: int) -> np.ndarray:
    found = [
        image[:, top : top + side, left : left + side].ravel()
        for image in images
        for top in range(images.shape[2] - side + 1)
        for left in range(images.shape[3] - side + 1)
    ]
    return np.array(found)


@pytest.mark.parametrize("side", [2, 3])
def test_moments_are_those_of_all_patches(side: int) -> None:
    images = pictures()
    cut = patches(images.double().numpy(), side)
    found = second_moments(images.split(7), (side, side))
    assert found == pytest.approx(cut.T @ cut / len(cut), abs=1e-5)


def test_components_are_sorted_eigenvectors_over_deviations_whatever_their_sign() -> None:
    moments = second_moments([pictures()], (2, 2))
    rows = whitening_components(moments)
    values = np.linalg.eigvalsh(moments)[::-1]
    # E E^T of rows v / sqrt(l + e) is diagonal with 1 / (l + e), and E M E^T with l / (l + e).
    epsilon = 5e-4 * values.mean()
    assert rows @ rows.T == pytest.approx(np.diag(1 / (values + epsilon)), abs=1e-8)
    assert rows @ moments @ rows.T == pytest.approx(np.diag(values / (values + epsilon)), abs=1e-8)
    assert (rows[np.arange(len(rows)), np.abs(rows).argmax(axis=1)] > 0).all()


def test_outputs_of_the_first_layer_are_white_and_come_with_their_negatives() -> None:
    model = create_model("speednet", in_channels=3, num_outputs=4, image_size=(9, 9), seed=0)
    images = pictures()
    whiten_first_convolution(model, images.split(16))
    with torch.no_grad():
        outputs = model.trunk[0].conv1(images).double().transpose(0, 1).flatten(1)  # type: ignore[union-attr,operator]
    assert torch.equal(outputs[::2], -outputs[1::2])
    white = outputs[::2]
    torch.testing.assert_close(white @ white.T / white.shape[1], torch.eye(12).double(), atol=0.01, rtol=0)


def test_filters_beyond_the_components_stay_and_fewer_take_the_largest() -> None:
    wide, narrow = nn.Conv2d(1, 20, 2), nn.Conv2d(1, 3, 2)
    before = wide.weight.detach().clone()
    for layer in (wide, narrow):
        whiten_first_convolution(nn.Sequential(nn.Flatten(0, 0), layer), [pictures(channels=1)])
    assert torch.equal(wide.weight[8:], before[8:])
    assert torch.equal(narrow.weight, wide.weight[:3])
    assert not torch.equal(wide.weight[:8], before[:8])


def test_pictures_without_any_variance_give_finite_kernels() -> None:
    layer = nn.Conv2d(1, 4, 2)
    whiten_first_convolution(layer, [torch.zeros(3, 1, 5, 5)])
    assert layer.weight.isfinite().all()


def test_freezing_leaves_the_kernel_out_and_refuses_random_filters() -> None:
    model = create_model("speednet", in_channels=3, num_outputs=4, image_size=(9, 9), seed=0)
    freeze_first_convolution(model)
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == ["trunk.stem.conv1.weight"]
    with pytest.raises(ModelError, match="20 filters, and patches of 1x2x2 numbers have 4 components, which make 8"):
        freeze_first_convolution(nn.Conv2d(1, 20, 2))


def test_what_cannot_be_whitened_is_told() -> None:
    with pytest.raises(ModelError, match="has no convolution to be whitened"):
        whiten_first_convolution(nn.Linear(2, 2), [])
    with pytest.raises(ModelError, match="grouped convolution"):
        freeze_first_convolution(nn.Conv2d(4, 4, 3, groups=2))
    with pytest.raises(ModelError, match="Pictures of 2x9 pixels have no patch of 3x3"):
        whiten_first_convolution(nn.Conv2d(1, 4, 3), [torch.zeros(1, 1, 2, 9)])
