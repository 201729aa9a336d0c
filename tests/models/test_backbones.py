"""Networks of timm's behind the model contract, with random weights and small pictures."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from netloom.errors import ModelError, RecipeError
from netloom.models import ImageModel, create_model, model_names, model_options
from netloom.recipe import Recipe

# Each with a side that takes milliseconds: plain, with dense layers behind the convolutions, separable, in NHWC blocks,
# with windows, with tokens, with a convolution behind the pooling.
SIDES = {
    "resnet18": 48,
    "vgg16": 32,
    "mobilenetv1_100": 48,
    "convnext_atto": 48,
    "swin_tiny_patch4_window7_224": 64,
    "vit_tiny_patch16_224": 48,
    "mobilenetv3_small_050": 48,
    "densenet121": 48,
}


def backbone(name: str, *, side: int = 0, seed: int = 0, in_channels: int = 3, **options: Any) -> ImageModel:
    side = side or SIDES[name]
    return create_model(
        f"timm/{name}",
        in_channels=in_channels,
        num_outputs=5,
        image_size=(side, side),
        seed=seed,
        options=options,
    )


def pictures(name: str, channels: int = 3) -> torch.Tensor:
    return torch.randn(2, channels, SIDES[name], SIDES[name], generator=torch.Generator().manual_seed(1))


@pytest.fixture(params=sorted(SIDES), scope="module")
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def model(name: str) -> ImageModel:
    return backbone(name).eval()


def test_answers_the_contract(name: str, model: ImageModel) -> None:
    x = pictures(name)
    with torch.no_grad():
        features = model.forward_features(x)
        pooled = model.forward_head(features, pre_logits=True)
        outputs = model(x)
    assert torch.equal(outputs, model.classifier(pooled))
    assert outputs.shape == (2, 5)
    assert pooled.shape == (2, model.classifier.in_features)
    height, width = model.trunk.spatial(features).shape[2:]
    assert model.trunk.spatial(features).shape == (2, model.num_features, height, width)
    reduced = SIDES[name] / (16 if name.startswith("vit") else 32)
    assert height == width
    assert height in (math.floor(reduced), math.ceil(reduced))
    assert [part for part, _ in model.named_children()] == ["trunk", "head", "classifier"]


def test_features_and_head_are_timms_own(name: str, model: ImageModel) -> None:
    from netloom.models.backbones import HEAD_PREFIX, TRUNK_PREFIX, timm

    side = SIDES[name]
    fixed = timm().get_pretrained_cfg(name).fixed_input_size
    theirs = timm().create_model(name, num_classes=0, **({"img_size": (side, side)} if fixed else {})).eval()
    prefixes = (TRUNK_PREFIX, HEAD_PREFIX)
    own = {key.removeprefix(p): v for key, v in model.state_dict().items() for p in prefixes if key.startswith(p)}
    missing, unexpected = theirs.load_state_dict(own, strict=False)
    assert not unexpected
    assert all(key.startswith("pre_logits.") for key in missing)  # VGG's dense layers, which a backbone leaves out
    x = pictures(name)
    with torch.no_grad():
        features = theirs.forward_features(x)
        assert torch.equal(model.forward_features(x), features)
        if not missing:
            assert torch.equal(model.forward_head(features, pre_logits=True), theirs(x))
        else:
            assert torch.allclose(model.forward_head(features, pre_logits=True), features.mean((2, 3)))


def test_stages_hold_all_parameters_in_order(model: ImageModel) -> None:
    stages = model.stages()
    assert [id(p) for _, part in stages for p in part.parameters()] == [id(p) for p in model.parameters()]
    assert stages[-1] == ("classifier", model.classifier)
    names = [stage for stage, _ in stages]
    assert len(set(names)) == len(names)
    assert "block4" in names


def test_every_parameter_gets_a_gradient(name: str) -> None:
    model = backbone(name, dense_units=[8])
    model(pictures(name)).square().sum().backward()
    assert [key for key, p in model.named_parameters() if p.grad is None] == []


def test_weights_are_a_function_of_the_seed_alone(name: str, model: ImageModel) -> None:
    state = torch.get_rng_state()
    again, other = backbone(name), backbone(name, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    weights = model.state_dict()
    assert all(torch.equal(weights[key], value) for key, value in again.state_dict().items())
    assert not torch.equal(weights["classifier.weight"], other.classifier.weight)


def test_is_built_on_the_meta_device_without_memory(name: str) -> None:
    with torch.device("meta"):
        model = backbone(name)
        outputs = model(torch.empty(2, 3, SIDES[name], SIDES[name]))
    assert {p.device.type for p in model.parameters()} == {"meta"}
    assert outputs.shape == (2, 5)


def test_grey_pictures_and_dense_layers(name: str) -> None:
    model = backbone(name, in_channels=1, head_pooling="flatten", dense_units=[7], dropout=0.5, dense_dropout=0.5)
    assert model.eval()(pictures(name, 1)).shape == (2, 5)
    assert model.classifier.in_features == 7
    assert "pool" not in dict(model.head.named_children())


def test_vgg16_has_the_parameters_of_the_document() -> None:
    """Chollet, Deep learning with Python, 2017, section 5.3: VGG16's base, a dense layer of 256, one sigmoid."""
    with torch.device("meta"):
        model = create_model(
            "timm/vgg16",
            in_channels=3,
            num_outputs=1,
            image_size=(150, 150),
            seed=0,
            options={"head_pooling": "flatten", "dense_units": [256]},
        )
    assert sum(p.numel() for p in model.trunk.parameters()) == 14_714_688
    assert sum(p.numel() for p in model.parameters()) == 16_812_353
    assert len(list(model.parameters())) == 30
    assert [stage for stage, _ in model.stages()] == [*(f"block{i}" for i in range(1, 6)), "head", "classifier"]


def test_padding_of_tensorflow_is_an_option_where_the_network_has_it() -> None:
    model = backbone("mobilenetv1_100", padding="same").eval()
    plain = backbone("mobilenetv1_100").eval()
    plain.load_state_dict(model.state_dict())
    x = pictures("mobilenetv1_100")
    with torch.no_grad():
        assert not torch.allclose(model(x), plain(x))
    with pytest.raises(ModelError, match="padding: same"):
        backbone("resnet18", padding="same")


def test_the_list_of_models_stays_that_of_this_house() -> None:
    backbone("resnet18")
    assert not [name for name in model_names() if name.startswith("timm/")]
    assert "dense_units" in model_options("timm/resnet18")


def test_unknown_backbones_name_the_closest() -> None:
    with pytest.raises(ModelError, match=r"Unknown backbone 'resnet81'\. Did you mean 'resnet.*'\?"):
        model_options("timm/resnet81")
    with pytest.raises(ModelError, match=r"no weights 'a9_in1k' of resnet18\. Did you mean 'a._in1k'"):
        model_options("timm/resnet18.a9_in1k")
    with pytest.raises(RecipeError, match="model: Unknown backbone 'mobilenetv1_10'"):
        Recipe.from_mapping({"model": "timm/mobilenetv1_10"})


def test_options_of_other_models_are_refused() -> None:
    with pytest.raises(RecipeError, match="filters: timm/resnet18 has no such option"):
        Recipe.from_mapping({"model": "timm/resnet18", "filters": [8]})


def test_pictures_too_small_for_a_network_are_told() -> None:
    with pytest.raises(ModelError, match=r"timm/vgg16 does not take pictures of 8x8 pixels"):
        backbone("vgg16", side=8)
