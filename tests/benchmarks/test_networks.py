"""A peer's network is the one that netloom's recipe trains."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from benchmarks.suite.libraries import with_pytorch
from benchmarks.suite.networks import NETWORKS, PHOTOS, Network

from netloom.recipe import Recipe, load_recipe
from netloom.workflows import builders

ALL = [*NETWORKS.values(), PHOTOS]


def recipe_of(network: Network) -> Recipe:
    return load_recipe(network.recipe, network.settings)


def kinds(model: torch.nn.Module) -> list[tuple[str, tuple[object, ...]]]:
    """The layers in their order, with the rate of dropouts, the window of poolings and the border of convolutions."""
    options = {"Dropout": "p", "MaxPool2d": "kernel_size", "Conv2d": "padding"}
    found = []
    for module in model.modules():
        name = type(module).__name__
        if not list(module.children()) and name not in ("Identity", "Sequential"):
            option = getattr(module, options.get(name, ""), 0)
            found.append((name, option if isinstance(option, tuple) else (option, option)))
    return found


@pytest.mark.parametrize("network", ALL, ids=lambda network: f"{network.recipe}-{len(network.layers)}")
def test_layers_and_parameters_are_the_recipes(network: Network) -> None:
    recipe = recipe_of(network)
    height, width, channels = network.shape
    ours = builders.build_model(recipe, in_channels=channels, num_outputs=network.outputs, image_size=(height, width))
    theirs = with_pytorch.build(network)
    assert [p.shape for p in ours.parameters()] == [p.shape for p in theirs.parameters()]
    assert kinds(ours) == kinds(theirs)


@pytest.mark.parametrize("network", ALL, ids=lambda network: f"{network.recipe}-{len(network.layers)}")
def test_the_training_is_the_recipes(network: Network) -> None:
    recipe = recipe_of(network)
    assert (network.optimizer, network.learning_rate) == (recipe.optimizer, recipe.learning_rate)
    assert recipe.input_scaling == "unit"
    assert recipe.augmentation is None, "the peers do not augment"
    assert recipe.ema is None, "the peers do not average weights"
    assert network.outputs == (1 if recipe.loss == "binary_cross_entropy" else network.classes)
    if network is not PHOTOS:
        assert network.batch_size == recipe.batch_size
        assert network.pictures % 128 == 0
        assert network.trained_on >= network.pictures


@pytest.mark.parametrize("network", ALL, ids=lambda network: f"{network.recipe}-{len(network.layers)}")
@pytest.mark.parametrize("fused", [False, True])
def test_the_optimizer_has_the_recipes_constants(network: Network, fused: bool) -> None:
    model = torch.nn.Linear(2, 2)
    ours = builders.build_optimizer(recipe_of(network), model).defaults
    theirs = with_pytorch.optimizer(network, model, fused=fused).defaults
    assert {k: v for k, v in ours.items() if k in ("lr", "eps", "alpha", "betas", "momentum", "momentum_decay")} == {
        k: v for k, v in theirs.items() if k in ("lr", "eps", "alpha", "betas", "momentum", "momentum_decay")
    }


def test_the_peers_have_the_versions_of_the_constraints() -> None:
    root = Path(__file__).parents[2]
    pinned = (root / "constraints.txt").read_text(encoding="utf-8").splitlines()
    peers = (root / "benchmarks" / "peers.txt").read_text(encoding="utf-8").splitlines()
    shared = [line for line in peers if line.split("==")[0] in ("torch", "torchvision", "numpy", "pillow")]
    assert len(shared) == 5
    assert set(shared) <= set(pinned)
    assert all("==" in line for line in peers if line and not line.startswith("#"))
