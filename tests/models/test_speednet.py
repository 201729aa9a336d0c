"""The speed record's network: its arithmetic by hand, its start, and the layers that are its own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from netloom.models import ImageModel, create_model, summarize
from netloom.models.layers import identity_start
from netloom.models.speednet import ShiftNorm2d


def speednet(side: int = 32, **options: Any) -> ImageModel:
    return create_model("speednet", in_channels=3, num_outputs=10, image_size=(side, side), seed=0, options=options)


def test_arithmetic_and_parameters_are_those_counted_by_hand() -> None:
    summary = summarize(speednet(), input_shape=(3, 32, 32))
    places = [31 * 31, 31 * 31, 15 * 15, 15 * 15, 7 * 7, 7 * 7, 3 * 3]
    kernels = [12 * 24, *(9 * i * o for i, o in ((24, 64), (64, 64), (64, 256), (256, 256), (256, 256), (256, 256)))]
    assert summary.multiply_adds == sum(p * k for p, k in zip(places, kernels, strict=True)) + 256 * 10
    assert summary.parameters == sum(kernels) + 2 * (64 + 256 + 256) + 256 * 10 + 10


def test_the_features_of_jordans_network_at_its_size_are_the_maximum_of_three_by_three() -> None:
    model = speednet().eval()
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        features = model.forward_features(x)
        hidden = model.forward_head(features, pre_logits=True)
    assert features.shape == (2, 256, 3, 3)
    torch.testing.assert_close(hidden, nn.functional.max_pool2d(features, 3).flatten(1) / 16)


@pytest.mark.parametrize("side", [9, 16, 23, 40])
def test_one_network_takes_pictures_of_any_size(side: int) -> None:
    with torch.no_grad():
        assert speednet().eval()(torch.zeros(1, 3, side, side)).shape == (1, 10)


@pytest.mark.parametrize("convs", [2, 3])
def test_channels_pass_through_all_convolutions_at_the_start(convs: int) -> None:
    """Of an identity start the first channels of every convolution's output are its input's."""
    model = speednet(filters=[32, 40], convs_per_block=convs)
    layers = [m for m in model.trunk.modules() if isinstance(m, nn.Conv2d)][1:]
    assert len(layers) == 2 * convs
    for layer in layers:
        x = torch.randn(2, layer.in_channels, 5, 5, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            torch.testing.assert_close(layer(x)[:, : layer.in_channels], x)
    plain = speednet(filters=[32, 40], convs_per_block=convs, identity_start=False)
    drawn = [m for m in plain.trunk.modules() if isinstance(m, nn.Conv2d)][1:]
    assert not any(torch.equal(a.weight[0], b.weight[0]) for a, b in zip(layers, drawn, strict=True))


def test_an_identity_start_leaves_new_channels_random() -> None:
    layer = nn.Conv2d(2, 5, 3)
    before = layer.weight.detach().clone()
    identity_start(layer)
    assert torch.equal(layer.weight[2:], before[2:])
    narrowing = nn.Conv2d(5, 2, 3, padding=1, bias=False)
    identity_start(narrowing)
    x = torch.randn(1, 5, 4, 4)
    torch.testing.assert_close(narrowing(x), x[:, :2])


def test_the_normalization_is_torchs_with_its_scale_left_at_one() -> None:
    mine, reference = ShiftNorm2d(4), nn.BatchNorm2d(4, momentum=0.4)
    assert [name for name, _ in mine.named_parameters()] == ["bias"]
    with torch.no_grad():
        mine.bias.copy_(torch.arange(4.0))
        reference.bias.copy_(torch.arange(4.0))
    x = torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(0)) * 3 + 1
    for _ in range(2):
        torch.testing.assert_close(mine(x), reference(x))
    torch.testing.assert_close(mine.eval()(x), reference.eval()(x))


def test_three_convolutions_have_a_residual() -> None:
    """With the last convolution of a block zero, the block is its first convolution."""
    model = speednet(filters=[8], convs_per_block=3, activation="relu").eval()
    block = model.trunk[1]
    with torch.no_grad():
        block.conv3.weight.zero_()  # type: ignore[union-attr,operator]
        x = torch.randn(2, 24, 8, 8, generator=torch.Generator().manual_seed(0))
        expected = block.act1(block.norm1(block.pool(block.conv1(x))))  # type: ignore[union-attr,operator]
        torch.testing.assert_close(block(x), expected)
