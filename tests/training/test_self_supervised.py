from __future__ import annotations

import numpy as np
import pytest
import torch

from netloom.data.augment import AugmentationSpec
from netloom.data.batches import InputScaling
from netloom.errors import ModelError
from netloom.models.registry import create_model
from netloom.training.self_supervised import (
    PAIR,
    ConstantSizes,
    Embedder,
    PairBatches,
    PairHead,
    check_views,
    spread_of,
)


def head(**options: float | int) -> PairHead:
    return PairHead(PAIR, "regression", num_outputs=8, **options)  # type: ignore[arg-type]


def nt_xent(first: np.ndarray, second: np.ndarray, temperature: float) -> float:
    """Equation 1 of Chen et al. 2020 and the mean of Algorithm 1, written out with loops."""
    views = np.concatenate([first, second])
    n = len(first)

    def similarity(i: int, j: int) -> float:
        return float(views[i] @ views[j] / np.linalg.norm(views[i]) / np.linalg.norm(views[j]))

    def loss(i: int, j: int) -> float:
        others = sum(np.exp(similarity(i, k) / temperature) for k in range(2 * n) if k != i)
        return float(-np.log(np.exp(similarity(i, j) / temperature) / others))

    return sum(loss(k, n + k) + loss(n + k, k) for k in range(n)) / (2 * n)


def test_loss_is_that_of_the_paper() -> None:
    generator = np.random.default_rng(0)
    first, second = generator.normal(size=(2, 5, 8))
    outputs = torch.from_numpy(np.concatenate([first, second])).float()
    numbers = torch.tensor([7, 3, 9, 1, 4]).repeat(2)
    for temperature in (0.1, 0.5):
        found = head(temperature=temperature).loss(outputs, numbers).item()
        assert found == pytest.approx(nt_xent(first, second, temperature), rel=1e-5)


def test_outputs_of_several_batches_are_compared_within_each() -> None:
    outputs = torch.randn(20, 8, generator=torch.Generator().manual_seed(1))
    numbers = torch.cat([torch.arange(4).repeat(2), torch.arange(4, 8).repeat(2), torch.arange(8, 10).repeat(2)])
    alone, together = head(), head(views_at_once=8)
    parts = [slice(0, 8), slice(8, 16), slice(16, 20)]
    losses = [alone.loss(outputs[part], numbers[part]) * (part.stop - part.start) for part in parts]
    assert together.loss(outputs, numbers).item() == pytest.approx(sum(losses).item() / 20, rel=1e-6)  # type: ignore[union-attr]
    correct = sum(int(alone.correct(outputs[part], numbers[part])) for part in parts)
    assert int(together.correct(outputs, numbers)) == correct


def test_a_view_is_right_where_its_partner_is_the_nearest() -> None:
    outputs = torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 0.1], [-1.0, -1.0]])
    assert int(head().correct(outputs, torch.tensor([0, 1, 0, 1]))) == 2  # both of the first; neither of the second


def test_weights_and_smoothing_are_refused() -> None:
    outputs, numbers = torch.randn(4, 8), torch.arange(2).repeat(2)
    with pytest.raises(ModelError, match="neither weights nor labels"):
        head().loss(outputs, numbers, weights=torch.ones(4))
    with pytest.raises(ModelError, match="neither weights nor labels"):
        head().loss(outputs, numbers, label_smoothing=0.1)


def batches(n: int = 11, batch_size: int = 4, *, shuffle: bool = True, side: int = 16) -> PairBatches:
    pixels = np.random.default_rng(2).integers(0, 256, (n + 3, side, side, 3), dtype=np.uint8)
    return PairBatches(
        torch.from_numpy(pixels).permute(0, 3, 1, 2),
        np.arange(3, n + 3),
        batch_size=batch_size,
        scaling=InputScaling.unit(3),
        spec=AugmentationSpec(horizontal_flip=True, zoom=(0.5, 1.0), brightness=0.4, fill_mode="reflect"),
        seed=5,
        shuffle=shuffle,
        sizes=ConstantSizes(0.75),
    )


def test_a_batch_holds_two_different_views_of_each_picture() -> None:
    found = list(batches().epoch(2))
    assert len(found) == len(batches()) == 2  # of 11 pictures 3 wait
    for batch in found:
        views, numbers = batch.inputs["image"], batch.targets[PAIR]
        assert views.shape == (8, 3, 12, 12)
        assert numbers[:4].tolist() == numbers[4:].tolist()
        assert all(not torch.equal(views[i], views[4 + i]) for i in range(4))
    used = torch.cat([batch.targets[PAIR] for batch in found]).tolist()
    assert len(set(used)) == 8
    assert set(used) <= set(range(3, 14))


def test_views_are_functions_of_the_epoch() -> None:
    first, again, later = (list(batches().epoch(epoch)) for epoch in (0, 0, 1))
    entered = list(batches().epoch(0, skip=1))
    assert torch.equal(first[1].inputs["image"], again[1].inputs["image"])
    assert len(entered) == 1
    assert torch.equal(first[1].inputs["image"], entered[0].inputs["image"])
    assert not torch.equal(first[0].inputs["image"], later[0].inputs["image"])


@pytest.mark.parametrize(("n", "size"), [(11, 4), (9, 4), (3, 4), (8, 4)])
def test_indices_are_in_the_order_of_the_views(n: int, size: int) -> None:
    plain = batches(n, size, shuffle=False)
    found = torch.cat([batch.targets[PAIR] for batch in plain.epoch()])
    assert found.tolist() == plain.indices.tolist()
    assert len(found) == 2 * min(n, n // size * size or n)


def test_all_but_the_classifier_learns() -> None:
    network = create_model("resnet20", in_channels=3, num_outputs=1, image_size=(16, 16), seed=0)
    embedder = Embedder(network, hidden=16, size=8, seed=0)
    outputs = embedder(torch.randn(8, 3, 12, 12))
    head().loss(outputs, torch.arange(4).repeat(2)).backward()  # type: ignore[no-untyped-call]
    missing = [name for name, p in embedder.named_parameters() if p.grad is None or not p.grad.any()]
    assert missing == ["backbone.classifier.weight", "backbone.classifier.bias"]


def test_a_network_that_flattens_is_refused_views_of_another_size() -> None:
    flattens = create_model("convnet", in_channels=3, num_outputs=1, image_size=(16, 16), seed=0)
    pools = create_model(
        "convnet", in_channels=3, num_outputs=1, image_size=(16, 16), seed=0, options={"head_pooling": "average"}
    )
    embedder = Embedder(flattens, hidden=16, size=8, seed=0)
    check_views(embedder, 3, (16, 16))
    check_views(Embedder(pools, hidden=16, size=8, seed=0), 3, (12, 12))
    with pytest.raises(ModelError, match=r"12x12 pixels .*head_pooling: average"):
        check_views(embedder, 3, (12, 12))
    assert embedder.training


def test_spread_is_one_of_even_and_zero_of_equal_outputs() -> None:
    even = torch.randn(4000, 32, generator=torch.Generator().manual_seed(0))
    assert spread_of(even) == pytest.approx(1.0, abs=0.02)
    assert spread_of(torch.ones(10, 32)) == pytest.approx(0.0, abs=1e-6)
    assert spread_of(even + 20) < 0.1
