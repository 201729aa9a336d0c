"""Features of pictures: what they are, that nothing is computed twice, and that nothing is lost."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from netloom.data.augment import AugmentationSpec, Augmenter
from netloom.data.batches import InputScaling
from netloom.data.feature_cache import FeatureCache
from netloom.errors import ModelError
from netloom.features import (
    FeatureBatches,
    FeatureExtractor,
    FeatureHead,
    View,
    extract_features,
    feature_space,
    picture_keys,
    view_keys,
)
from netloom.models.registry import create_model
from netloom.runtime import ExecutionPlan

PLAN = ExecutionPlan("cpu", 1, "float32")
SCALING = InputScaling.unit(3)


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NETLOOM_CACHE", str(tmp_path / "cache"))


def network(name: str = "convnet", seed: int = 0, **options) -> nn.Module:
    return create_model(
        name, in_channels=3, num_outputs=2, image_size=(32, 32), seed=seed, options=options or None
    ).eval()


def pictures(n: int = 12, side: int = 32) -> torch.Tensor:
    pixels = np.random.default_rng(0).integers(0, 256, size=(n, side, side, 3), dtype=np.uint8)
    return torch.from_numpy(pixels).permute(0, 3, 1, 2)


class Counted:
    """An extractor that counts the pictures it looks at."""

    def __init__(self, model: nn.Module) -> None:
        self.extractor = FeatureExtractor(model)
        self.seen = 0
        self.extractor.trunk.register_forward_hook(self._count)

    def _count(self, _module: nn.Module, inputs: tuple[torch.Tensor], _output: torch.Tensor) -> None:
        self.seen += len(inputs[0])

    def __call__(self, images: torch.Tensor, indices: list[int], *, cached: bool = True, **given):
        rows = np.array(indices, dtype=np.int64)
        space = feature_space(self.extractor, identity="", scaling=SCALING, plan=PLAN)
        return extract_features(
            self.extractor,
            images,
            rows,
            keys=picture_keys(images, rows),
            scaling=SCALING,
            plan=PLAN,
            cache=FeatureCache(space) if cached else None,
            **given,
        )


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("convnet", {"dense_units": [8], "dropout": 0.5, "head_pooling": "average"}),
        ("convnet", {"dense_units": [8, 4], "dense_dropout": 0.5}),
        ("lenet5", {}),
        ("resnet20", {}),
        ("vgg11", {}),
        ("mlp", {}),
    ],
)
def test_extractor_and_head_are_the_network(name: str, options: dict) -> None:
    model = network(name, **options)
    extractor, head = FeatureExtractor(model), FeatureHead(model)
    inputs = torch.rand(3, 3, 32, 32)
    features = extractor(inputs)
    assert features.shape == (3, extractor.num_features)
    assert torch.allclose(head(features), model(inputs), atol=1e-6)
    names = set(model.state_dict())
    assert set(head.state_dict()) <= names
    assert all(model.state_dict()[k].data_ptr() == v.data_ptr() for k, v in head.state_dict().items())


def test_features_are_those_of_a_plain_pass() -> None:
    model, images = network(), pictures()
    found = Counted(model)(images, [3, 0, 7])
    with torch.inference_mode():
        expected = FeatureExtractor(model)(images[[3, 0, 7]].float() / 255)
    assert found.features == pytest.approx(expected.numpy(), abs=1e-5)
    assert found.computed == 3


def test_no_picture_is_looked_at_twice() -> None:
    images = pictures()
    images[5] = images[2]
    first = Counted(network())
    assert first(images, list(range(8))).computed == first.seen == 7  # two are the same
    second = Counted(network())
    every = second(images, list(range(12)))
    assert every.computed == second.seen == 4
    third = Counted(network())
    again = third(images, [11, 2, 0])
    assert again.computed == third.seen == 0
    assert np.array_equal(again.features, every.features[[11, 2, 0]])
    fresh = Counted(network())(images, list(range(12)), cached=False)
    assert every.features == pytest.approx(fresh.features, abs=1e-6)


@pytest.mark.parametrize(
    "changed",
    [
        lambda: feature_space(FeatureExtractor(network(seed=1)), identity="", scaling=SCALING, plan=PLAN),
        lambda: feature_space(FeatureExtractor(network(activation="elu")), identity="", scaling=SCALING, plan=PLAN),
        lambda: feature_space(
            FeatureExtractor(network(head_pooling="average")), identity="", scaling=SCALING, plan=PLAN
        ),
        lambda: feature_space(FeatureExtractor(network()), identity="other", scaling=SCALING, plan=PLAN),
        lambda: feature_space(
            FeatureExtractor(network()), identity="", scaling=InputScaling((0.5,) * 3, (1.0,) * 3), plan=PLAN
        ),
        lambda: feature_space(
            FeatureExtractor(network()), identity="", scaling=SCALING, plan=ExecutionPlan("cpu", 1, "bfloat16")
        ),
    ],
    ids=["weights", "architecture", "pooling", "name", "scaling", "precision"],
)
def test_whatever_changes_features_changes_their_space(changed) -> None:
    own = feature_space(FeatureExtractor(network()), identity="", scaling=SCALING, plan=PLAN)
    assert own == feature_space(FeatureExtractor(network()), identity="", scaling=SCALING, plan=PLAN)
    assert changed() != own


@pytest.mark.parametrize("package", ["timm", "torch", "netloom"])
def test_another_version_of_what_computes_features_is_another_space(
    package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = feature_space(FeatureExtractor(network()), identity="", scaling=SCALING, plan=PLAN)
    version = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "0.0.1" if name == package else version(name))
    assert feature_space(FeatureExtractor(network()), identity="", scaling=SCALING, plan=PLAN) != own


def test_the_head_and_threads_do_not_change_the_space() -> None:
    own = feature_space(FeatureExtractor(network()), identity="", scaling=SCALING, plan=PLAN)
    other = network(dense_units=[8], dropout=0.5)
    other.trunk.load_state_dict(network().trunk.state_dict())
    threads = ExecutionPlan("cpu", 4, "float32")
    assert feature_space(FeatureExtractor(other), identity="", scaling=SCALING, plan=threads) == own


def test_keys_are_of_the_pixels_and_their_shape() -> None:
    images = pictures()
    changed = images.clone()
    changed[1, 0, 0, 0] ^= 1
    keys, others = picture_keys(images, np.arange(12)), picture_keys(changed, np.arange(12))
    assert (keys != others).any(axis=1).tolist() == [False, True] + [False] * 10
    tall = torch.from_numpy(images.permute(0, 2, 3, 1).numpy().reshape(12, 64, 16, 3)).permute(0, 3, 1, 2)
    assert (picture_keys(tall, np.arange(12)) != keys).any(axis=1).all()


def test_views_are_the_augmented_pictures_and_cached_for_their_own() -> None:
    images = pictures()
    augmenter = Augmenter(AugmentationSpec(horizontal_flip=True, brightness=0.5), seed=3)
    found = Counted(network())(images, [4, 1], view=View(augmenter, 2))
    keys = [key.tobytes() for key in picture_keys(images, np.array([4, 1]))]
    numbers = [int.from_bytes(key[:8], "little", signed=True) for key in keys]
    drawn = augmenter.draw(epoch=2, samples=np.array(numbers))
    with torch.inference_mode():
        expected = FeatureExtractor(network())(SCALING(augmenter.apply(images[[4, 1]], drawn)))
    assert found.features == pytest.approx(expected.numpy(), abs=1e-5)
    assert Counted(network())(images, [1], view=View(augmenter, 2)).computed == 0
    for other in (View(augmenter, 1), View(Augmenter(augmenter.spec, seed=4), 2)):
        assert Counted(network())(images, [1], view=other).computed == 1
    assert Counted(network())(images, [1]).computed == 1


def test_a_picture_has_the_same_views_at_another_place() -> None:
    images, view = pictures(), View(Augmenter(AugmentationSpec(brightness=0.5), seed=0), 0)
    found = Counted(network())(images, [0, 1], view=view)
    assert not np.array_equal(found.features[0], found.features[1])
    keys = view_keys(picture_keys(images, np.array([0, 1])), view)
    assert not np.array_equal(keys[0], keys[1])
    moved = images[[5, 1, 0]].permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    assert np.array_equal(view_keys(picture_keys(moved, np.array([2, 1])), view), keys)
    again = Counted(network())(moved, [2, 1], view=view, cached=False)
    assert np.array_equal(again.features, found.features)


def test_what_was_computed_before_an_interruption_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("netloom.features.inference_batch_size", lambda *_: 4)
    asked: list[int] = []

    def interruption() -> str | None:
        asked.append(1)
        return "enough" if len(asked) == 2 else None

    first = Counted(network())
    assert first(pictures(), list(range(12)), interruption=interruption) is None
    assert first.seen == 8
    rest = Counted(network())(pictures(), list(range(12)))
    assert rest.computed == 4
    fresh = Counted(network())(pictures(), list(range(12)), cached=False)
    assert rest.features == pytest.approx(fresh.features, abs=1e-6)


def test_an_error_keeps_what_was_computed_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("netloom.features.inference_batch_size", lambda *_: 4)

    def broken(done: int, _total: int) -> None:
        if done == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Counted(network())(pictures(), list(range(12)), on_progress=broken)
    assert Counted(network())(pictures(), list(range(12))).computed == 4


def test_progress_counts_all_pictures() -> None:
    Counted(network())(pictures(), [0, 1, 2])
    told: list[tuple[int, int]] = []
    Counted(network())(pictures(), list(range(12)), on_progress=lambda done, total: told.append((done, total)))
    assert told[-1] == (12, 12)


def test_features_that_are_no_numbers_are_refused_and_not_kept() -> None:
    model = network()
    with torch.no_grad():
        next(model.trunk.parameters())[0] = float("nan")
    with pytest.raises(ModelError, match="not finite"):
        Counted(model)(pictures(), [0, 1])
    with pytest.raises(ModelError, match="not finite"):
        Counted(model)(pictures(), [0, 1])


def test_batches_of_features_are_shuffled_weighted_and_can_be_entered_anywhere() -> None:
    features = torch.arange(10.0).unsqueeze(1)
    targets, weights = torch.arange(10), torch.arange(10.0) / 10
    batches = FeatureBatches(
        features, {"label": targets}, np.arange(9), batch_size=4, seed=5, shuffle=True, weights=weights
    )
    epoch = list(batches.epoch(1))
    assert [len(batch) for batch in epoch] == [4, 5]  # a remainder of one joins the batch before it
    rows = torch.cat([batch.inputs["features"][:, 0] for batch in epoch])
    assert sorted(rows.tolist()) == list(range(9))
    assert rows.tolist() != list(range(9))
    assert torch.equal(torch.cat([batch.targets["label"] for batch in epoch]).float(), rows)
    assert torch.allclose(torch.cat([b.weights for b in epoch]), rows / 10)
    later = next(batches.epoch(1, skip=1))
    assert torch.equal(later.inputs["features"], epoch[1].inputs["features"])
    assert not torch.equal(next(batches.epoch(2)).targets["label"], epoch[0].targets["label"])
