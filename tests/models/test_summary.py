from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from netloom.errors import ModelError
from netloom.models import ImageModel, create_model, summarize


def mnist_convnet() -> ImageModel:
    return create_model(
        "convnet",
        in_channels=1,
        num_outputs=10,
        image_size=(28, 28),
        seed=0,
        options={
            "filters": [32, 64, 64],
            "padding": "valid",
            "pooling": ["max", "max", "none"],
            "dense_units": [64],
        },
    )


def test_layers_are_those_that_keras_prints() -> None:
    """`model.summary()` of the same network, activations apart; shapes channels first here."""
    summary = summarize(mnist_convnet(), input_shape=(1, 28, 28))
    layers = [(layer.output_shape, layer.parameters) for layer in summary.layers if layer.type != "ReLU"]
    assert layers == [
        ((32, 26, 26), 320),
        ((32, 13, 13), 0),
        ((64, 11, 11), 18_496),
        ((64, 5, 5), 0),
        ((64, 3, 3), 36_928),
        ((576,), 0),
        ((64,), 36_928),
        ((10,), 650),
    ]
    assert summary.parameters == summary.trainable_parameters == 93_322
    assert summary.trunk_parameters == 55_744
    kernels = 26 * 26 * 32 * 9 + 11 * 11 * 64 * 32 * 9 + 3 * 3 * 64 * 64 * 9
    assert summary.multiply_adds == kernels + 576 * 64 + 64 * 10


def test_trunk_alone() -> None:
    summary = summarize(mnist_convnet(), input_shape=(1, 28, 28), trunk_only=True)
    assert summary.parameters == 55_744
    assert summary.layers[0].name == "block1.conv1"
    assert summary.layers[-1].output_shape == (64, 3, 3)
    with pytest.raises(ModelError, match="Linear has no trunk"):
        summarize(nn.Linear(2, 2), input_shape=(2,), trunk_only=True)


def test_vgg16_on_the_meta_device_has_the_published_arithmetic() -> None:
    """15.5 billion multiply-adds: torchvision's model page gives 15.47 for vgg16."""
    with torch.device("meta"):
        model = create_model("vgg16", in_channels=3, num_outputs=1000, image_size=(224, 224), seed=0)
        summary = summarize(model, input_shape=(3, 224, 224))
    assert summary.parameters == 138_357_544
    assert summary.multiply_adds == pytest.approx(15.47e9, rel=1e-3)


def test_json_and_table_hold_the_same_figures() -> None:
    model = mnist_convnet()
    model.trunk.requires_grad_(False)
    summary = summarize(model, input_shape=(1, 28, 28))
    loaded = json.loads(json.dumps(summary.to_json()))
    assert loaded["parameters"] == 93_322
    assert loaded["trainable_parameters"] == 93_322 - 55_744
    assert loaded["layers"][0] == {
        "name": "trunk.block1.conv1",
        "type": "Conv2d",
        "output_shape": [32, 26, 26],
        "parameters": 320,
        "trainable": False,
    }
    columns, conv1, act1, *_ = summary.rows()
    assert columns == ("layer", "type", "output", "parameters", "trainable")
    assert conv1 == ("trunk.block1.conv1", "Conv2d", "32x26x26", "320", "no")
    assert act1 == ("trunk.block1.act1", "ReLU", "32x26x26", "", "")
    assert summary.rows()[-1] == ("classifier", "Linear", "10", "650", "yes")


def test_model_and_generators_are_left_as_they_were() -> None:
    model = create_model(
        "lenet5",
        in_channels=3,
        num_outputs=4,
        image_size=(32, 32),
        seed=0,
        options={"normalization": "before", "dropout": 0.5},
    )
    model.trunk.block1.eval()
    modes = {name: module.training for name, module in model.named_modules()}
    state = {key: value.clone() for key, value in model.state_dict().items()}
    generator = torch.get_rng_state()
    summarize(nn.Sequential(Noise(), model), input_shape=(3, 32, 32))
    assert torch.equal(torch.get_rng_state(), generator)
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


class Noise(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.randn_like(x)


class Odd(nn.Module):
    """Parameters of its own, tied weights, a layer that is never called, several outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))
        self.encode = nn.Linear(3, 3, bias=False)
        self.decode = nn.Linear(3, 3, bias=False)
        self.decode.weight = self.encode.weight
        self.idle = nn.Linear(3, 5)

    def forward(self, x: Tensor) -> dict[str, Any]:
        return {"kind": "odd", "pair": (self.decode(self.encode(x * self.scale)), x)}


def test_any_module_is_summarized() -> None:
    summary = summarize(Odd(), input_shape=(3,))
    assert summary.parameters == 3 + 9 + 20
    assert sum(layer.parameters for layer in summary.layers) == summary.parameters
    assert summary.trunk_parameters is None
    assert summary.multiply_adds == 9 + 9
    shapes = {layer.name: layer.output_shape for layer in summary.layers}
    assert shapes == {"Odd": (3,), "encode": (3,), "decode": (3,), "idle": None}
    assert summary.rows()[-1][2] == ""


def test_wrong_input_is_said_so() -> None:
    with pytest.raises(ModelError, match=r"ImageModel does not take inputs of shape \(3, 28, 28\)"):
        summarize(mnist_convnet(), input_shape=(3, 28, 28))


def test_networks_whose_head_asks_with_a_parameter_are_counted() -> None:
    """Attention that pools begins with a view of a parameter, which has no gradient function here."""
    with torch.device("meta"):
        model = create_model(
            "timm/vit_base_patch16_siglip_224", in_channels=3, num_outputs=2, image_size=(224, 224), seed=0
        )
        model.classifier.requires_grad_(False)
    found = summarize(model, input_shape=(3, 224, 224))
    assert found.multiply_adds > 17e9
    assert found.trainable_parameters == found.parameters - 2 * 768 - 2
    assert {name for name, p in model.named_parameters() if not p.requires_grad} == {
        "classifier.weight",
        "classifier.bias",
    }
