"""Every family of the list of backbones keeps the promises of the model contract: one member each, random weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from netloom.errors import ModelError
from netloom.features import FeatureExtractor, FeatureHead
from netloom.models import ImageModel, create_model
from netloom.models.backbone_list import Backbone, listed_backbones
from netloom.models.backbones import HEAD_PREFIX, TRUNK_PREFIX, timm
from netloom.models.pretrained import load_pretrained
from netloom.recipe import load_recipe
from netloom.workflows import builders

SIZE = (64, 96)  # height and width differ, so that nothing can take one for the other
ODD = (75, 53)
LARGE = 12_000_000
REFUSES_ODD_SIZES = {"dinov3"}
RESAMPLED = ("pos_embed", "relative_position", "attention_bias")  # tables of positions go with the size of pictures


def cheapest_of_each_family() -> list[Backbone]:
    members: dict[str, Backbone] = {}
    for found in sorted(listed_backbones(), key=lambda b: b.parameters):
        members.setdefault(found.family, found)
    return [members[family] for family in sorted(members)]


def build(backbone: Backbone, *, size: tuple[int, int] = SIZE, seed: int = 0, **options: Any) -> ImageModel:
    return create_model(
        f"timm/{backbone.name}", in_channels=3, num_outputs=5, image_size=size, seed=seed, options=options
    )


def pictures(count: int = 2, size: tuple[int, int] = SIZE) -> torch.Tensor:
    return torch.randn(count, 3, *size, generator=torch.Generator().manual_seed(1))


def each_family() -> list[Any]:
    return [
        pytest.param(member, id=member.family, marks=pytest.mark.slow if member.parameters > LARGE else ())
        for member in cheapest_of_each_family()
    ]


@pytest.fixture(params=each_family(), scope="module")
def backbone(request: pytest.FixtureRequest) -> Backbone:
    found: Backbone = request.param
    return found


@pytest.fixture(scope="module")
def model(backbone: Backbone) -> ImageModel:
    """For tests that leave it as it is."""
    return build(backbone).eval()


def test_outputs_are_the_head_of_the_features(backbone: Backbone, model: ImageModel) -> None:
    x = pictures()
    with torch.no_grad():
        features = model.forward_features(x)
        seen = model.forward_head(features, pre_logits=True)
        outputs = model(x)
        assert torch.equal(outputs, model.forward_head(features))
        assert torch.equal(outputs, model.classifier(seen))
    assert outputs.shape == (2, 5)
    assert outputs.isfinite().all()
    assert seen.shape == (2, backbone.features)
    assert model.trunk.spatial(features).shape == (2, model.num_features, *model.trunk.grid)


def test_one_picture_alone_gives_what_it_gives_among_others(model: ImageModel) -> None:
    x = pictures(3)
    with torch.no_grad():
        torch.testing.assert_close(model(x[1:2]), model(x)[1:2], rtol=1e-4, atol=1e-5)


def test_stages_hold_every_parameter_once_and_end_with_the_classifier(model: ImageModel) -> None:
    stages = model.stages()
    names = [name for name, _ in stages]
    held = [id(p) for _, part in stages for p in part.parameters()]
    assert sorted(held) == sorted(id(p) for p in model.parameters())
    assert len(set(names)) == len(names)
    assert names[-1] == "classifier"
    trunk = [name for name in names if name not in ("head", "classifier")]
    assert [name for name in trunk if name not in ("stem", "top")] == [
        f"block{i}" for i in range(1, 1 + len(trunk) - ("stem" in trunk) - ("top" in trunk))
    ]
    assert len(trunk) >= 4
    # Unfreezing a stage is worth something: no stage behind the stem is a norm alone.
    assert all(any(p.dim() > 1 for p in part.parameters()) for name, part in stages if name not in ("stem", "head"))


def trained_names(model: ImageModel, mode: str) -> set[str]:
    """Names of what is to be trained: the classifier, and of a fine-tuning of one stage the last one.

    What the network does with its last feature map goes with that stage.
    """
    names = {"classifier.weight", "classifier.bias"}
    if mode == "frozen":
        return names
    last = [part for name, part in model.stages() if name not in ("head", "classifier")][-1]
    own = {id(p) for p in last.parameters()}
    return names | {name for name, p in model.named_parameters() if id(p) in own or name.startswith("head.")}


@pytest.mark.parametrize("mode", ["frozen", "finetune"])
def test_a_step_of_the_shipped_recipe_changes_exactly_what_is_to_be_trained(mode: str, backbone: Backbone) -> None:
    """In the last epoch of `transfer-frozen`, and of `transfer-finetune` with one stage unfrozen."""
    changes = {"model": f"timm/{backbone.name}", **({"transfer.unfreeze": 1} if mode == "finetune" else {})}
    recipe = load_recipe(f"transfer-{mode}", changes)
    model = builders.build_model(recipe, in_channels=3, num_outputs=5, image_size=SIZE)
    assert isinstance(model, ImageModel)
    freezing = builders.build_freezing(recipe, model)
    assert freezing is not None
    optimizer = builders.build_optimizer(recipe, model, freezing)
    x, trained = pictures(), trained_names(model, mode)
    with torch.no_grad():
        features = model.eval().forward_features(x)
    freezing.enter(model, recipe.epochs - 1)
    assert {name for name, p in model.named_parameters() if p.requires_grad} == trained
    assert set(freezing.trained_parameters(recipe.epochs)) == trained
    if mode == "frozen":
        assert torch.equal(model.forward_features(x), features)  # no dropout, no statistics of the batch
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model(x).square().sum().backward()
    assert all(p.grad is None for name, p in model.named_parameters() if name not in trained)
    optimizer.step()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed <= trained
    assert {"classifier.weight", "classifier.bias"} <= changed
    assert any(name.startswith("trunk.") for name in changed) == (mode == "finetune")


def test_features_and_the_head_of_features_are_the_network(backbone: Backbone, model: ImageModel) -> None:
    extractor, head = FeatureExtractor(model), FeatureHead(model)
    with torch.no_grad():
        features = extractor(pictures())
        assert features.shape == (2, extractor.num_features) == (2, backbone.features)
        assert torch.equal(head(features), model(pictures()))
    assert not set(head.state_dict()) & set(extractor.state_dict())
    assert set(head.state_dict()) <= set(model.state_dict())


def test_the_classifier_is_replaced_and_nothing_else(backbone: Backbone) -> None:
    model = build(backbone).eval()
    x = pictures()
    with torch.no_grad():
        before = model.forward_head(model.forward_features(x), pre_logits=True)
        model.reset_classifier(3, generator=torch.Generator().manual_seed(2))
        assert torch.equal(model.forward_head(model.forward_features(x), pre_logits=True), before)
        assert model(x).shape == (2, 3)
    assert model.classifier.in_features == backbone.features


def explained(model: ImageModel, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What the layer that an explanation by place looks at gives, and the outputs."""
    seen: list[torch.Tensor] = []
    handle = model.trunk.spatial_layer().register_forward_hook(lambda _m, _i, output: seen.append(output))
    try:
        outputs = model(x)
    finally:
        handle.remove()
    (features,) = seen
    return features, outputs


def test_places_of_the_explained_layer_reach_the_outputs(model: ImageModel) -> None:
    """Grad-CAM (Selvaraju et al., 2017) weighs this map by the gradient of an output: zero would explain nothing."""
    features, outputs = explained(model, pictures())
    (gradient,) = torch.autograd.grad(outputs[:, 0].sum(), features)
    by_place = model.trunk.spatial(gradient).abs().sum(1)
    assert by_place.shape == (2, *model.trunk.grid)
    assert (by_place > 0).all()


def test_places_of_the_explained_layer_are_those_of_the_picture(backbone: Backbone) -> None:
    """A change in a corner changes the map there more than in the opposite corner, in each of the four."""
    size = (2 * SIZE[0], 2 * SIZE[1])
    model = build(backbone, size=size).train()
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, torch.nn.BatchNorm2d):
                layer.weight.fill_(1.0)  # in some networks residual branches give nothing at first
                layer.momentum = 1.0
        model(pictures(2, size))  # statistics as after training: without them signals fade from layer to layer
        model.eval()
        x = pictures(1, size)
        before, _ = explained(model, x)
        for row, column in ((0, 0), (0, -1), (-1, 0), (-1, -1)):
            changed = x.clone()
            rows = slice(0, 32) if row == 0 else slice(-32, None)
            columns = slice(0, 32) if column == 0 else slice(-32, None)
            changed[:, :, rows, columns] += 2.0
            difference = model.trunk.spatial(explained(model, changed)[0] - before).abs().sum(1)[0]
            assert difference[row, column] > difference[-1 - row, -1 - column], (row, column, difference)


def test_pictures_of_odd_sizes_are_taken_or_refused(backbone: Backbone) -> None:
    if backbone.family in REFUSES_ODD_SIZES:
        with pytest.raises(ModelError, match=f"{backbone.name} does not take pictures of 75x53 pixels"):
            build(backbone, size=ODD)
        return
    model = build(backbone, size=ODD).eval()
    with torch.no_grad():
        assert model(pictures(2, ODD)).shape == (2, 5)


def test_published_names_of_tensors_are_loaded(backbone: Backbone) -> None:
    """A file of the hub holds timm's own state, with a classifier, of pictures of the network's own size."""
    theirs = timm().create_model(backbone.name)
    model = build(backbone)
    loaded = load_pretrained(model, dict(theirs.state_dict()), name=f"timm/{backbone.name}", where="FILE")
    assert loaded == [name for name, _ in model.stages() if name != "classifier"]
    state = theirs.state_dict()
    for name, value in model.state_dict().items():
        plain = name.removeprefix(TRUNK_PREFIX).removeprefix(HEAD_PREFIX)
        if plain in state and state[plain].shape == value.shape:
            assert torch.equal(value, state[plain]), name
        else:
            assert name.startswith("classifier.") or any(word in name for word in RESAMPLED), name
