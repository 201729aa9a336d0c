"""Every registered model answers the contract; a new one is covered by being registered."""

from __future__ import annotations

import copy
import random
from typing import Any

import numpy as np
import pytest
import torch

from netloom.errors import ModelError
from netloom.models import ImageModel, create_model, model_names, model_options

# Sides from the kernels, strides and paddings by hand, for default options. VGG: 2^5.
SMALLEST = {"alexnet": 67, "alexnet-small": 15, "convnet": 4, "lenet5": 16, "speednet": 9} | {
    f"vgg{depth}": 32 for depth in (11, 13, 16, 19)
}

# Built by the same function as a smaller and a larger model; VGG tests take seconds for each.
BETWEEN_SIBLINGS = {"vgg13", "vgg16", "resnet32"}


def default_side(name: str) -> int:
    return max(32, SMALLEST.get(name, 1))


def build(
    name: str,
    *,
    seed: int = 0,
    side: int | None = None,
    image_size: tuple[int, int] | None = None,
) -> ImageModel:
    """A light member of the family: a narrow dense head, pictures of two channels."""
    options: dict[str, Any] = {}
    if "dense_units" in model_options(name):
        options["dense_units"] = [16, 12]
    side = side or default_side(name)
    return create_model(
        name,
        in_channels=2,
        num_outputs=7,
        image_size=image_size or (side, side),
        seed=seed,
        options=options,
    )


def pictures(name: str) -> torch.Tensor:
    side = default_side(name)
    return torch.randn(3, 2, side, side, generator=torch.Generator().manual_seed(1))


def each_model() -> list[Any]:
    return [pytest.param(name, marks=pytest.mark.slow if name in BETWEEN_SIBLINGS else ()) for name in model_names()]


@pytest.fixture(params=each_model(), scope="module")
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def model(name: str) -> ImageModel:
    """Built once for the tests that leave it as it is: the largest take a second to draw."""
    return build(name).eval()


def test_outputs_are_the_head_of_the_features(name: str, model: ImageModel) -> None:
    x = pictures(name)
    with torch.no_grad():
        features = model.forward_features(x)
        hidden = model.forward_head(features, pre_logits=True)
        outputs = model(x)
        assert torch.equal(outputs, model.forward_head(features))
        assert torch.equal(outputs, model.classifier(hidden))
        assert torch.equal(features, model.trunk(x))
    assert outputs.shape == (3, 7)
    assert features.shape[:2] == (3, model.num_features)
    assert features.ndim == (2 if name == "mlp" else 4)
    assert hidden.shape == (3, model.classifier.in_features)


def test_every_parameter_gets_a_float32_gradient_under_autocast(name: str, model: ImageModel) -> None:
    model = copy.deepcopy(model).train()
    torch.manual_seed(0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = model(pictures(name))
    outputs.float().square().sum().backward()
    gradients = {key: p.grad for key, p in model.named_parameters()}
    assert [key for key, grad in gradients.items() if grad is None or not grad.any()] == []
    assert all(g.dtype == torch.float32 and g.isfinite().all() for g in gradients.values())


def test_bfloat16_autocast_agrees_with_float32(name: str, model: ImageModel) -> None:
    x = pictures(name)
    with torch.no_grad():
        exact = model(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rounded = model(x)
    # bfloat16 keeps 8 bits: an error of 2^-9 in each of up to 56 layers.
    assert (rounded - exact).norm() / exact.norm() < 0.1


def test_weights_are_a_function_of_the_seed_alone(name: str, model: ImageModel) -> None:
    torch.manual_seed(1)
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    python_state = random.getstate()
    again, other = build(name), build(name, seed=1)
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002
    assert random.getstate() == python_state
    weights = model.state_dict()
    assert list(again.state_dict()) == list(weights)
    assert all(torch.equal(weights[key], value) for key, value in again.state_dict().items())
    assert not torch.equal(weights["classifier.weight"], other.classifier.weight)
    other.load_state_dict(weights)
    x = pictures(name)
    with torch.no_grad():
        assert torch.equal(other.eval()(x), model(x))


def test_reset_classifier_keeps_the_trunk(name: str, model: ImageModel) -> None:
    model, x = copy.deepcopy(model), pictures(name)
    with torch.no_grad():
        before = model.forward_features(x)
        model.reset_classifier(3, generator=torch.Generator().manual_seed(0))
        assert torch.equal(model.forward_features(x), before)
        assert model(x).shape == (3, 3)
    weight = model.classifier.weight
    model.reset_classifier(3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(model.classifier.weight, weight)
    model.to(torch.bfloat16).reset_classifier(5)
    assert model.classifier.weight.dtype == torch.bfloat16
    with pytest.raises(ModelError, match="at least 1, got 0"):
        model.reset_classifier(0)


def test_stages_hold_all_parameters_in_order(model: ImageModel) -> None:
    stages = model.stages()
    staged = [p for _, stage in stages for p in stage.parameters()]
    assert [id(p) for p in staged] == [id(p) for p in model.parameters()]
    assert stages[-1] == ("classifier", model.classifier)
    assert len({stage_name for stage_name, _ in stages}) == len(stages)


def test_channels_last_gives_the_same_outputs(name: str, model: ImageModel) -> None:
    x = pictures(name)
    with torch.no_grad():
        plain = model(x)
        last = copy.deepcopy(model).to(memory_format=torch.channels_last)(
            x.contiguous(memory_format=torch.channels_last)
        )
    torch.testing.assert_close(last, plain, rtol=1e-3, atol=1e-4)


def test_can_be_traced_for_graph_rewrites(name: str, model: ImageModel) -> None:
    x = pictures(name)
    traced = torch.fx.symbolic_trace(model)
    with torch.no_grad():
        assert torch.equal(traced(x), model(x))


def test_is_built_on_the_meta_device_without_memory(name: str) -> None:
    with torch.device("meta"):
        model = build(name)
        outputs = model(torch.empty(3, 2, default_side(name), default_side(name)))
    assert {p.device.type for p in model.parameters()} == {"meta"}
    assert outputs.shape == (3, 7)


def test_the_smallest_picture_passes_and_one_pixel_less_is_refused(name: str) -> None:
    side = SMALLEST.get(name, 1)
    with torch.device("meta"):
        assert build(name, side=side)(torch.empty(2, 2, side, side)).shape == (2, 7)
        with pytest.raises(ModelError) as caught:
            build(name, image_size=(side - 1, side + 9))
    message = str(caught.value)
    assert name in message
    if side > 1:
        assert f"at least {side}x{side} pixels" in message
        assert f"got {side - 1}x{side + 9}" in message
        assert "Use a larger image_size" in message


def test_unknown_option_is_named_with_the_known_ones(name: str) -> None:
    with pytest.raises(ModelError, match=r"dropuot: .* no such option") as caught:
        create_model(
            name,
            in_channels=1,
            num_outputs=2,
            image_size=(96, 96),
            seed=0,
            options={"dropuot": 0.1},
        )
    assert "Did you mean 'dropout'?" in str(caught.value)
    assert all(option in str(caught.value) for option in model_options(name))


def test_no_module_is_left_out_of_the_three_parts(model: ImageModel) -> None:
    assert [part for part, _ in model.named_children()] == ["trunk", "head", "classifier"]
