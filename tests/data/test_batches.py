from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from PIL import Image

from netloom.data import batches as module
from netloom.data.augment import AugmentationSpec, Augmenter
from netloom.data.batches import ImageBatches, InputScaling
from netloom.data.progressive import ProgressiveSizes


def pictures(n: int = 37) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (n, 3, 6, 5), generator=generator, dtype=torch.uint8)
    return images.contiguous(memory_format=torch.channels_last)


def make(n: int = 37, **options: object) -> ImageBatches:
    defaults = {"batch_size": 8, "scaling": InputScaling.unit(3), "seed": 4, "shuffle": True}
    return ImageBatches(pictures(n), {"label": torch.arange(n)}, np.arange(n), **{**defaults, **options})  # type: ignore[arg-type]


def labels(batches: ImageBatches, epoch: int = 0, skip: int = 0) -> list[list[int]]:
    return [batch.targets["label"].tolist() for batch in batches.epoch(epoch, skip=skip)]


def flat(lists: list[list[int]]) -> list[int]:
    return [item for part in lists for item in part]


def test_standardizing_gives_mean_zero_and_deviation_one_against_numpy() -> None:
    images = pictures(400)
    scaling = InputScaling.standardizing(images, np.arange(100, 400))
    pixels = images[100:].numpy().astype(np.float64) / 255
    assert scaling.mean == pytest.approx(pixels.mean((0, 2, 3)), abs=1e-5)
    assert scaling.std == pytest.approx(pixels.std((0, 2, 3)), abs=1e-5)
    scaled = scaling(images[100:])
    assert scaled.dtype == torch.float32
    assert scaled.mean((0, 2, 3)).numpy() == pytest.approx(np.zeros(3), abs=1e-4)
    assert scaled.std((0, 2, 3)).numpy() == pytest.approx(np.ones(3), abs=1e-3)


def test_unit_and_no_scaling() -> None:
    images = pictures(2)
    torch.testing.assert_close(InputScaling.unit(3)(images), images.float() / 255)
    torch.testing.assert_close(InputScaling.none(3)(images), images.float())


def test_an_epoch_holds_every_picture_once_in_a_new_order() -> None:
    batches = make()
    first, second = labels(batches, 0), labels(batches, 1)
    assert sorted(flat(first)) == sorted(flat(second)) == list(range(37))
    assert first != second
    assert labels(make(), 0) == first
    assert labels(make(seed=5), 0) != first
    assert len(first) == len(batches) == 5


def test_an_epoch_can_be_entered_at_any_batch() -> None:
    assert labels(make(), 3, skip=2) == labels(make(), 3)[2:]


def test_a_single_leftover_picture_joins_the_batch_before() -> None:
    assert [len(x) for x in labels(make(33))] == [8, 8, 8, 9]
    assert [len(x) for x in labels(make(34))] == [8, 8, 8, 8, 2]
    assert [len(x) for x in labels(make(1))] == [1]


def test_without_shuffling_the_order_is_that_of_the_indices() -> None:
    assert flat(labels(make(shuffle=False))) == list(range(37))


def test_pictures_keep_their_labels_and_channels_last_memory() -> None:
    images = pictures()
    for batch in make().epoch(2):
        torch.testing.assert_close(batch.inputs["image"], images[batch.targets["label"]].float() / 255)
        assert batch.inputs["image"].is_contiguous(memory_format=torch.channels_last)


def test_augmentation_of_a_picture_does_not_depend_on_its_batch() -> None:
    spec = AugmentationSpec(rotation=30, zoom=0.2, horizontal_flip=True)
    small = make(batch_size=4, augmenter=Augmenter(spec, seed=4))
    large = make(batch_size=16, augmenter=Augmenter(spec, seed=4))
    by_label = [
        {int(t): x for b in batches.epoch(1) for t, x in zip(b.targets["label"], b.inputs["image"], strict=True)}
        for batches in (small, large)
    ]
    for label, picture in by_label[0].items():
        torch.testing.assert_close(picture, by_label[1][label])


@pytest.mark.parametrize("shape", [(5, 3, 33, 47), (4, 1, 28, 28), (2, 3, 200, 100), (3, 3, 1, 1)])
@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("kind", [torch.uint8, torch.float32])
def test_scaling_is_its_formula_in_every_memory_format(
    shape: tuple[int, int, int, int], memory_format: torch.memory_format, kind: torch.dtype
) -> None:
    """Bit for bit against one broadcast multiplication and addition; the pictures given stay as they were."""
    generator = torch.Generator().manual_seed(3)
    pixels = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8).to(kind)
    pixels = pixels.contiguous(memory_format=memory_format)
    before, channels = pixels.clone(), shape[1]
    uneven = InputScaling((0.49, 0.48, 0.44)[:channels], (0.24, 0.25, 0.26)[:channels])
    for scaling in (uneven, InputScaling.unit(channels), InputScaling.none(channels)):
        factor = torch.tensor([1 / (255 * s) for s in scaling.std]).view(1, -1, 1, 1)
        offset = torch.tensor([-m / s for m, s in zip(scaling.mean, scaling.std, strict=True)]).view(1, -1, 1, 1)
        scaled = scaling(pixels)
        assert torch.equal(scaled, torch.addcmul(offset, pixels.float(), factor))
        assert scaled.is_contiguous(memory_format=memory_format)
        assert torch.equal(pixels, before)


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "netloom-batches"]


@pytest.fixture
def _small_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "fits_memory", lambda n_bytes: False)


SPEC = AugmentationSpec(rotation=30, zoom=0.2, horizontal_flip=True, brightness=0.2, contrast=0.3, hue=0.1, cutout=0.4)


@pytest.mark.parametrize("augmenter", [None, Augmenter(SPEC, seed=4)])
@pytest.mark.parametrize("skip", [0, 3])
def test_what_exceeds_the_memory_gives_the_same_bits(
    monkeypatch: pytest.MonkeyPatch, augmenter: Augmenter | None, skip: int
) -> None:
    options = {"augmenter": augmenter, "weights": torch.arange(37).float()}
    plain = list(make(**options).epoch(2, skip=skip))
    monkeypatch.setattr(module, "fits_memory", lambda n_bytes: False)
    announced: list[int] = []
    monkeypatch.setattr(module, "will_need", lambda images, rows: announced.extend(rows.tolist()))
    ahead = list(make(**options).epoch(2, skip=skip))
    assert len(plain) == len(ahead) == 5 - skip
    for one, other in zip(plain, ahead, strict=True):
        assert torch.equal(one.inputs["image"], other.inputs["image"])
        assert one.inputs["image"].stride() == other.inputs["image"].stride()
        assert torch.equal(one.targets["label"], other.targets["label"])
        assert torch.equal(one.weights, other.weights)  # type: ignore[arg-type]
    assert announced == flat([batch.targets["label"].tolist() for batch in plain])  # each picture once, in order
    assert threads() == []


@pytest.mark.usefixtures("_small_memory")
def test_an_epoch_that_is_left_early_leaves_no_thread() -> None:
    epoch = make(500).epoch(0)
    next(epoch)
    assert threads()
    del epoch
    assert threads() == []


def test_batches_for_another_device_are_placed_there() -> None:
    """The device without storage stands in for a GPU: shapes and places can be told, values cannot."""
    batches = list(make(33, device="meta", weights=torch.ones(33)).epoch(1))
    assert [batch.inputs["image"].shape for batch in batches] == [(8, 3, 6, 5)] * 3 + [(9, 3, 6, 5)]
    for batch in batches:
        places = {batch.inputs["image"].device.type, batch.targets["label"].device.type, batch.weights.device.type}  # type: ignore[union-attr]
        assert places == {"meta"}
        assert batch.inputs["image"].dtype == torch.float32


def test_pictures_grow_from_epoch_to_epoch_and_are_shrunk_as_pillow_shrinks_them() -> None:
    image = pictures(2).repeat(1, 1, 4, 4).contiguous(memory_format=torch.channels_last)  # 24x20
    options = {"batch_size": 2, "scaling": InputScaling.none(3)}
    sizes = ProgressiveSizes(start=0.5, until=0.75, epochs=4)
    batches = ImageBatches(image, {"label": torch.arange(2)}, np.arange(2), sizes=sizes, **options)  # type: ignore[arg-type]
    found = [next(batches.epoch(epoch)).inputs["image"] for epoch in range(4)]
    # 1/2, 2/3, 5/6 and the whole of each side, in steps of 4 (Python rounds 10 / 4 to the even 2)
    assert [tuple(x.shape[2:]) for x in found] == [(12, 8), (16, 12), (20, 16), (24, 20)]
    assert all(x.is_contiguous(memory_format=torch.channels_last) for x in found)
    assert torch.equal(found[3], image.float())
    for shrunken, original in zip(found[0], image, strict=True):
        picture = Image.fromarray(original.permute(1, 2, 0).numpy())
        expected = np.asarray(picture.resize((8, 12), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
        # Pillow rounds to whole numbers after each of its two passes.
        assert np.abs(shrunken.numpy() - expected).max() <= 1.01


def test_sizes_reach_the_whole_in_time_whatever_the_numbers() -> None:
    assert ProgressiveSizes(0.5, 1.0, 1).at(0, (32, 48)) == (16, 24)
    assert ProgressiveSizes(1.0, 0.5, 9).at(0, (32, 48)) == (32, 48)
    assert ProgressiveSizes(0.01, 0.5, 9).at(0, (32, 3)) == (4, 3)
    assert ProgressiveSizes(0.5, 0.6, 10).at(6, (33, 33)) == (33, 33)
    assert ProgressiveSizes(0.5, 0.6, 10).at(5, (33, 33)) == (32, 32)
