"""Networks as published: exact parameter counts, order of layers, and their own formulas."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from netloom.errors import ModelError
from netloom.models import ImageModel, create_model
from netloom.models.alexnet import local_response_norm
from netloom.models.resnet import ResidualBlock


def build(name: str, input_shape: tuple[int, int, int], outputs: int, **options: Any) -> ImageModel:
    """On the meta device: shapes without memory."""
    channels, *image_size = input_shape
    with torch.device("meta"):
        return create_model(
            name,
            in_channels=channels,
            num_outputs=outputs,
            image_size=(image_size[0], image_size[1]),
            seed=0,
            options=options,
        )


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def dense(inputs: int, outputs: int) -> int:
    return inputs * outputs + outputs


def conv(inputs: int, outputs: int, kernel: int) -> int:
    return inputs * outputs * kernel * kernel + outputs


MNIST = {"filters": [32, 64, 64], "padding": "valid", "dense_units": [64]}
CATS_DOGS = {"filters": [32, 64, 128, 128], "padding": "valid", "dense_units": [512]}
IMPROVED = {
    "filters": [32, 64, 128],
    "normalization": "after",
    "block_dropout": 0.25,
    "dense_units": [256],
    "dense_dropout": 0.5,
}


@pytest.mark.parametrize(
    ("name", "input_shape", "outputs", "options", "parameters"),
    [
        # Printed by Keras's model.summary() in the notebooks these networks come from.
        ("convnet", (1, 28, 28), 10, MNIST | {"pooling": ["max", "max", "none"]}, 93_322),
        ("convnet", (3, 150, 150), 1, CATS_DOGS, 3_453_121),
        # The same arithmetic, by hand.
        ("convnet", (3, 32, 32), 10, {"filters": [32, 64], "padding": "valid"}, 42_442),
        (
            "convnet",
            (3, 32, 32),
            10,
            {"filters": [10], "dropout": 0.5, "dense_units": [100]},
            conv(3, 10, 3) + dense(10 * 16 * 16, 100) + dense(100, 10),
        ),
        (
            "convnet",
            (3, 32, 32),
            10,
            IMPROVED,
            conv(3, 32, 3)
            + conv(32, 64, 3)
            + conv(64, 128, 3)
            + dense(128 * 4 * 4, 256)
            + dense(256, 10)
            + 2 * (32 + 64 + 128 + 256),
        ),
        ("mlp", (1, 28, 28), 10, {}, 266_610),
        ("lenet5", (3, 32, 32), 10, {}, 62_006),
        ("lenet5", (3, 32, 32), 10, {"normalization": "after"}, 62_006 + 2 * (400 + 120 + 84)),
        ("lenet5", (3, 32, 32), 10, {"normalization": "before"}, 62_006 + 2 * (6 + 16 + 120 + 84)),
        # Krizhevsky et al. 2012: "60 million parameters"; the sum of their layers.
        ("alexnet", (3, 227, 227), 1000, {}, 60_965_224),
        # Simonyan and Zisserman 2014, table 2: 133, 133, 138, 144 million; torchvision's exact
        # figures for vgg11, vgg13, vgg16, vgg19, vgg16_bn.
        ("vgg11", (3, 224, 224), 1000, {}, 132_863_336),
        ("vgg13", (3, 224, 224), 1000, {}, 133_047_848),
        ("vgg16", (3, 224, 224), 1000, {}, 138_357_544),
        ("vgg19", (3, 224, 224), 1000, {}, 143_667_240),
        ("vgg16", (3, 224, 224), 1000, {"normalization": "before"}, 138_365_992),
        # He et al. 2015, table 6: 0.27, 0.46 and 0.85 million.
        ("resnet20", (3, 32, 32), 10, {}, 269_722),
        ("resnet32", (3, 32, 32), 10, {}, 464_154),
        ("resnet56", (3, 32, 32), 10, {}, 853_018),
    ],
)
def test_parameter_counts_are_the_published_ones(
    name: str, input_shape: tuple[int, int, int], outputs: int, options: dict, parameters: int
) -> None:
    assert count(build(name, input_shape, outputs, **options)) == parameters


def test_trunk_counts_are_the_published_ones() -> None:
    assert count(build("convnet", (1, 28, 28), 10, **MNIST, pooling="none").trunk) == 55_744
    assert count(build("vgg16", (3, 150, 150), 10).trunk) == 14_714_688


def test_vgg16_features_of_150_pixels_are_4x4x512() -> None:
    with torch.device("meta"):
        features = build("vgg16", (3, 150, 150), 2).forward_features(torch.empty(1, 3, 150, 150))
    assert features.shape == (1, 512, 4, 4)


def types(module: nn.Module) -> list[str]:
    return [type(m).__name__ for m in module.modules() if not any(m.children())]


def test_layers_come_in_the_order_of_the_improved_conv2() -> None:
    """Conv2D(relu), BatchNormalization, MaxPooling2D, Dropout; Dense(relu), BN, Dropout, Dense."""
    model = build("convnet", (3, 32, 32), 10, **IMPROVED)
    assert types(model.trunk) == 3 * ["Conv2d", "ReLU", "BatchNorm2d", "MaxPool2d", "Dropout"]
    assert types(model.head) == ["Flatten", "Linear", "ReLU", "BatchNorm1d", "Dropout"]


def test_lenet5_batch_norm_sits_where_its_option_says() -> None:
    before = build("lenet5", (3, 32, 32), 10, normalization="before", dropout=0.4)
    assert types(before.trunk) == 2 * ["Conv2d", "BatchNorm2d", "ReLU", "MaxPool2d"]
    assert types(before.head) == ["Flatten", "Dropout", *2 * ["Linear", "BatchNorm1d", "ReLU"]]
    after = build("lenet5", (3, 32, 32), 10, normalization="after")
    assert types(after.trunk) == 2 * ["Conv2d", "ReLU", "MaxPool2d"]
    assert types(after.head) == ["Flatten", "BatchNorm1d", *2 * ["Linear", "ReLU", "BatchNorm1d"]]


def test_vgg19_with_normalized_and_dropped_out_head() -> None:
    model = build(
        "vgg19",
        (3, 32, 32),
        10,
        normalization="before",
        dense_units=[4096, 4096, 1000],
        dense_normalization="after",
        dropout=0.6,
        dense_dropout=0,
    )
    conv = ["Conv2d", "BatchNorm2d", "ReLU"]
    convs = [[*n * conv, "MaxPool2d"] for n in (2, 2, 4, 4, 4)]
    assert types(model.trunk) == [layer for block in convs for layer in block]
    assert types(model.head) == ["Flatten", "Dropout", *3 * ["Linear", "ReLU", "BatchNorm1d"]]
    assert [name for name, _ in model.stages()] == [
        *("block1", "block2", "block3", "block4", "block5", "head", "classifier")
    ]


def test_options_per_block() -> None:
    model = build(
        "convnet",
        (1, 40, 40),
        5,
        filters=[8, 16],
        convs_per_block=[1, 2],
        kernel_size=[5, 3],
        pooling=["average", "none"],
        activation="elu",
        block_dropout=0.1,
        spatial_dropout=True,
        head_pooling="average",
        dropout=0.2,
    )
    assert types(model.trunk.block1) == ["Conv2d", "ELU", "AvgPool2d", "Dropout2d"]
    assert types(model.trunk.block2) == ["Conv2d", "ELU", "Conv2d", "ELU", "Dropout2d"]
    assert types(model.head) == ["AdaptiveAvgPool2d", "Flatten", "Dropout"]
    assert model.trunk.block1.conv1.kernel_size == (5, 5)
    assert model.classifier.in_features == 16
    with pytest.raises(ModelError, match="kernel_size: expected one value, or one for each of the 3"):
        build("convnet", (1, 40, 40), 5, kernel_size=[3, 5])


def test_dense_normalization_differs_where_asked() -> None:
    options = {"filters": [8], "dense_units": [4], "normalization": "before"}
    assert "BatchNorm1d" in types(build("convnet", (1, 8, 8), 2, **options).head)
    model = build("convnet", (1, 8, 8), 2, **options, dense_normalization="none")
    assert "BatchNorm2d" in types(model.trunk)
    assert "BatchNorm1d" not in types(model.head)


@pytest.mark.parametrize(
    ("options", "side"),
    [
        # Backwards from one position: x2 for a pooling, +2 for a valid 3x3, +4 for a 5x5.
        ({"filters": [8, 8, 8, 8], "padding": "valid"}, 46),
        ({"filters": [8, 8], "padding": "valid", "convs_per_block": 2, "kernel_size": 5}, 28),
        ({"filters": [8, 8], "padding": "valid", "pooling": "none"}, 5),
        ({"filters": [8, 8], "kernel_size": 4}, 4),
        ({"filters": [8, 8], "pooling": "none", "kernel_size": 7}, 1),
    ],
)
def test_smallest_picture_follows_the_options(options: dict, side: int) -> None:
    model = build("convnet", (1, side, side + 3), 2, **options)
    with torch.device("meta"):
        assert model(torch.empty(2, 1, side, side + 3)).shape == (2, 2)
    if side > 1:
        with pytest.raises(ModelError, match=rf"at least {side}x{side} .*got {side}x{side - 1} "):
            build("convnet", (1, side, side - 1), 2, **options)


def test_mlp_takes_feature_vectors() -> None:
    model = create_model("mlp", in_channels=8, num_outputs=1, image_size=(1, 1), seed=0)
    assert model(torch.zeros(4, 8)).shape == (4, 1)
    linear = create_model("mlp", in_channels=8, num_outputs=3, image_size=(1, 1), seed=0, options={"dense_units": []})
    assert count(linear) == dense(8, 3)


def test_alexnet_layers_are_the_papers() -> None:
    """Section 3.5 and figure 2: feature maps of 55, 27, 13, 13, 13 and at last 6 pixels."""
    model = build("alexnet", (3, 227, 227), 1000)
    convs = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert [m.groups for m in convs] == [1, 2, 1, 2, 2]
    x = torch.empty(1, 3, 227, 227, device="meta")
    sides = []
    for _, block in model.trunk.named_children():
        sides.append(block[:2](x).shape[-1])
        x = block(x)
    assert sides == [55, 27, 13, 13, 13]
    assert x.shape == (1, 256, 6, 6)
    response = ["Conv2d", "ReLU", "LocalResponseNorm", "MaxPool2d"]
    assert types(model.trunk)[:8] == 2 * response
    assert types(model.head) == ["Flatten", *2 * ["Linear", "ReLU", "Dropout"]]
    batch_norm = build("alexnet-small", (3, 32, 32), 10, normalization="before")
    assert types(batch_norm.trunk)[:4] == ["Conv2d", "BatchNorm2d", "ReLU", "MaxPool2d"]


def test_local_response_norm_is_the_papers_formula() -> None:
    """Krizhevsky et al. 2012, section 3.3: b = a / (2 + 1e-4 * sum of five squares) ^ 0.75."""
    a = 30 * np.random.default_rng(0).standard_normal((2, 9, 3, 3))
    squares = np.pad(a**2, ((0, 0), (2, 2), (0, 0), (0, 0)))
    total = sum(squares[:, i : i + 9] for i in range(5))
    expected = a / (2 + 1e-4 * total) ** 0.75
    actual = local_response_norm()(torch.from_numpy(a)).numpy()
    np.testing.assert_allclose(actual, expected, rtol=1e-6)


@pytest.mark.parametrize("side", [8, 7])
def test_residual_shortcut_subsamples_and_pads_with_zeros(side: int) -> None:
    """He et al. 2015, option A: with a residual of zero the block is ReLU of its shortcut."""
    block = ResidualBlock(4, 8, stride=2, activation="relu").eval()
    nn.init.zeros_(block.conv2.weight)
    x = np.random.default_rng(0).standard_normal((2, 4, side, side)).astype(np.float32)
    expected = np.pad(np.maximum(x[:, :, ::2, ::2], 0), ((0, 0), (0, 4), (0, 0), (0, 0)))
    with torch.no_grad():
        actual = block(torch.from_numpy(x)).numpy()
    np.testing.assert_array_equal(actual, expected)


def test_resnet_stages_have_16_32_64_channels() -> None:
    model = build("resnet20", (3, 32, 32), 10)
    x = torch.empty(1, 3, 32, 32, device="meta")
    shapes = []
    for _, stage in model.trunk.named_children():
        x = stage(x)
        shapes.append(tuple(x.shape[1:]))
    assert shapes == [(16, 32, 32), (16, 32, 32), (32, 16, 16), (64, 8, 8)]
