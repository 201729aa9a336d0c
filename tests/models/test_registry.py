from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import nn

from netloom.errors import ModelError
from netloom.models import (
    ImageModel,
    create_model,
    describe_models,
    model_names,
    model_options,
    register_model,
    registry,
    validate_options,
)
from netloom.models.layers import Count


def test_the_models_promised_exist() -> None:
    promised = {"convnet", "lenet5", "alexnet", "alexnet-small", "mlp"}
    promised |= {"vgg11", "vgg13", "vgg16", "vgg19", "resnet20", "resnet32", "resnet56"}
    assert promised <= set(model_names())
    assert model_names() == sorted(model_names())


def test_each_model_is_described_with_paper_and_defaults() -> None:
    for model in describe_models():
        assert model.description
        assert "\n" not in model.description
        assert model.paper[-4:].isdigit() or "section" in model.paper
        assert dict(model.options) == model_options(model.name)
    assert model_options("mlp")["dense_units"] == (300, 100)
    assert model_options("alexnet")["dense_units"] == (4096, 4096)
    assert model_options("alexnet-small")["dense_units"] == (1024, 1024)
    assert "depth" not in model_options("vgg16")


def test_unknown_model_names_the_closest() -> None:
    with pytest.raises(ModelError, match=r"Unknown model 'resnet21'\. Did you mean 'resnet"):
        create_model("resnet21", in_channels=3, num_outputs=2, image_size=(32, 32), seed=0)
    with pytest.raises(ModelError, match="convnet, lenet5"):
        model_options("x")


def test_all_wrong_options_are_reported_at_once() -> None:
    options = {"filter": [32], "padding": "full", "dropout": 1.0, "filters": [], "kernel_size": 3}
    options["activation"] = "rleu"
    with pytest.raises(ModelError) as caught:
        validate_options("convnet", options)
    message = str(caught.value)
    assert "filter: convnet has no such option. Did you mean 'filters'?" in message
    assert "padding: should be 'same' or 'valid', got 'full'." in message
    assert "dropout: should be less than 1, got 1.0." in message
    assert "filters: " in message
    assert "activation: should be 'relu', " in message
    assert "got 'rleu'. Did you mean 'relu'?" in message
    assert "kernel_size: " not in message


@pytest.mark.parametrize("value", [0, -1, 2.0, "2", True, [3, "x"], None])
def test_counts_are_positive_whole_numbers(value: object) -> None:
    with pytest.raises(ModelError, match="kernel_size: "):
        validate_options("convnet", {"kernel_size": value})


def test_lists_from_a_configuration_become_tuples() -> None:
    valid = validate_options("convnet", {"filters": [8, 16], "pooling": ["max", "none"]})
    assert valid == {"filters": (8, 16), "pooling": ("max", "none")}


@pytest.mark.parametrize("bad", [{"in_channels": 0}, {"num_outputs": 0}, {"image_size": (32, 0)}], ids=str)
def test_impossible_inputs_and_outputs_are_refused(bad: dict[str, object]) -> None:
    given = {"in_channels": 3, "num_outputs": 2, "image_size": (32, 32)} | bad
    with pytest.raises(ModelError, match="start at 1"):
        create_model("mlp", seed=0, **given)  # type: ignore[arg-type]


def _tiny(
    *,
    in_channels: int,
    num_outputs: int,
    image_size: tuple[int, int],
    stages: int,
    width: Count = 4,
) -> ImageModel:
    return ImageModel(
        trunk=nn.Sequential(*(nn.Conv2d(in_channels, width, 1) for _ in range(stages))),
        head=nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        num_features=width,
        classifier_features=width,
        num_outputs=num_outputs,
    )


def test_a_users_builder_is_created_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_ENTRIES", {})
    register_model("tiny", description="Tiny", paper="Mine, 2024", fixed={"stages": 1}, defaults={"width": 6})(_tiny)
    assert model_names() == ["tiny"]
    assert model_options("tiny") == {"width": 6}
    for options, width in (({}, 6), ({"width": 3}, 3)):
        model = create_model("tiny", in_channels=1, num_outputs=2, image_size=(4, 4), seed=0, options=options)
        assert model.num_features == width
        assert model(torch.zeros(5, 1, 4, 4)).shape == (5, 2)
    with pytest.raises(ModelError, match="stages: tiny has no such option"):
        validate_options("tiny", {"stages": 2})


def test_a_users_builder_is_checked_when_it_is_registered() -> None:
    with pytest.raises(ValueError, match="already registered"):
        register_model("mlp", description="", paper="")(_tiny)
    with pytest.raises(ValueError, match="'stages' of _tiny needs a type and a default"):
        register_model("mine", description="", paper="")(_tiny)
    assert "mine" not in model_names()


@pytest.mark.parametrize(
    ("name", "image_size", "options"),
    [
        ("mlp", (32, 32), {"dense_units": [1_000_000, 1_000_000]}),
        ("convnet", (32, 32), {"filters": [1_000_000] * 3, "kernel_size": 1_000_000}),
        ("convnet", (100_000, 100_000), {}),
    ],
)
def test_networks_that_fit_no_memory_are_refused_before_they_take_any(
    name: str, image_size: tuple[int, int], options: dict[str, Any]
) -> None:
    with pytest.raises(ModelError, match=r"at most 1,000,000,000 are built"):
        create_model(name, in_channels=3, num_outputs=10, image_size=image_size, seed=0, options=options)


@pytest.mark.parametrize(
    "options", [{"convs_per_block": 10**8}, {"filters": [1] * 1000}, {"filters": [10**9]}, {"dense_units": [1] * 1000}]
)
def test_numbers_beyond_any_network_are_mistakes(options: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match=next(iter(options))):
        create_model("convnet", in_channels=3, num_outputs=10, image_size=(32, 32), seed=0, options=options)


def test_a_network_is_made_without_importing_torchs_compiler() -> None:
    """Which takes more than a second of every prediction's start."""
    code = (
        "import sys, torch\n"
        "from netloom.models import create_model\n"
        "for name in ('mlp', 'lenet5', 'vgg11', 'resnet20', 'speednet'):\n"
        "    create_model(name, in_channels=3, num_outputs=10, image_size=(32, 32), seed=0)\n"
        "assert 'torch._dynamo' not in sys.modules, name"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
