from __future__ import annotations

import math
import typing

import numpy as np
import pytest
import scipy.special
import torch
from torch import nn

from netloom.models import ImageModel, create_model
from netloom.models.blocks import named_sequence
from netloom.models.layers import ACTIVATIONS, Activation, conv_layer

_SELU_ALPHA, _SELU_SCALE = 1.6732632423543772, 1.0507009873554805

# Each from its paper, in NumPy; GELU is the exact one (Hendrycks and Gimpel 2016).
REFERENCES = {
    "relu": lambda x: np.maximum(x, 0),
    "relu6": lambda x: np.clip(x, 0, 6),
    "leaky_relu": lambda x: np.where(x > 0, x, 0.01 * x),
    "elu": lambda x: np.where(x > 0, x, np.expm1(x)),
    "selu": lambda x: _SELU_SCALE * np.where(x > 0, x, _SELU_ALPHA * np.expm1(x)),
    "gelu": lambda x: 0.5 * x * (1 + scipy.special.erf(x / math.sqrt(2))),
    "silu": lambda x: x * scipy.special.expit(x),
    "mish": lambda x: x * np.tanh(np.log1p(np.exp(x))),
    "hardswish": lambda x: x * np.clip(x + 3, 0, 6) / 6,
    "softplus": lambda x: np.log1p(np.exp(x)),
    "softsign": lambda x: x / (1 + np.abs(x)),
    "tanh": np.tanh,
    "sigmoid": scipy.special.expit,
}


@pytest.mark.parametrize("name", typing.get_args(Activation))
def test_activation_is_its_formula(name: Activation) -> None:
    x = np.linspace(-8, 8, 101)
    actual = ACTIVATIONS[name]()(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(actual, REFERENCES[name](x), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("kernel", [1, 2, 3, 4])
def test_same_padding_puts_the_odd_pixel_at_the_end(kernel: int) -> None:
    """TensorFlow's rule at stride 1: (k - 1) // 2 zeros in front, the rest behind."""
    layer = named_sequence(
        conv_layer(
            *(1, 1, 1),
            kernel_size=kernel,
            padding="same",
            activation="softplus",
            normalization="none",
        )
    ).double()
    rng = np.random.default_rng(0)
    x, weight = rng.standard_normal((6, 5)), rng.standard_normal((kernel, kernel))
    with torch.no_grad():
        layer.conv1.weight.copy_(torch.from_numpy(weight)[None, None])
        layer.conv1.bias.zero_()
        actual = layer(torch.from_numpy(x)[None, None])[0, 0].numpy()
    front = (kernel - 1) // 2
    padded = np.pad(x, (front, kernel - 1 - front))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (kernel, kernel))
    expected = REFERENCES["softplus"](np.einsum("ijkl,kl->ij", windows, weight))
    np.testing.assert_allclose(actual, expected, rtol=1e-6)


def network(activation: str) -> ImageModel:
    return create_model(
        "convnet",
        in_channels=3,
        num_outputs=10,
        image_size=(8, 8),
        seed=0,
        options={
            "filters": [64, 128],
            "dense_units": [256],
            "activation": activation,
            "normalization": "before",
        },
    )


@pytest.mark.parametrize(("activation", "gain"), [("relu", 2.0), ("gelu", 2.0), ("elu", 2.0), ("selu", 1.0)])
def test_hidden_weights_have_the_variance_of_he_or_lecun(activation: str, gain: float) -> None:
    model = network(activation)
    conv, dense = model.trunk.block2.conv1.weight, model.head.dense1.weight
    # Sampling error of a deviation from n normal numbers: 1/sqrt(2n), here under 0.5%.
    assert conv.std().item() == pytest.approx(math.sqrt(gain / (64 * 9)), rel=0.02)
    assert dense.std().item() == pytest.approx(math.sqrt(gain / (128 * 4)), rel=0.02)


@pytest.mark.parametrize("activation", ["tanh", "sigmoid"])
def test_saturating_activations_start_with_glorot_uniform(activation: str) -> None:
    weight = network(activation).head.dense1.weight
    limit = math.sqrt(6 / (128 * 4 + 256))
    assert weight.abs().max().item() == pytest.approx(limit, rel=0.001)
    assert weight.std().item() == pytest.approx(limit / math.sqrt(3), rel=0.02)


def test_classifier_is_glorot_and_biases_are_zero() -> None:
    model = network("relu")
    limit = math.sqrt(6 / (256 + 10))
    assert model.classifier.weight.abs().max().item() == pytest.approx(limit, rel=0.01)
    layers = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    assert all(not m.bias.any() for m in layers)
    norms = [m for m in model.modules() if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d))]
    assert len(norms) == 3
    assert all((m.weight == 1).all() and not m.bias.any() for m in norms)
