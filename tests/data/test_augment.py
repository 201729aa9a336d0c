"""The augmenter as a whole: what is drawn, for whom, and what comes out."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

from netloom.data.augment import AugmentationSpec, Augmenter

SPECS = {
    "affine": AugmentationSpec(rotation=20, width_shift=0.1, shear=5, zoom=0.2, fill_mode="wrap"),
    "alternating": AugmentationSpec(horizontal_flip="alternating", rotation=5),
    "moves": AugmentationSpec(horizontal_flip=True, vertical_flip=True, shifted_crop=3),
    "colour": AugmentationSpec(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1),
    "randaugment": AugmentationSpec(policy="randaugment"),
    "trivialaugment": AugmentationSpec(policy="trivialaugment"),
    "cutout": AugmentationSpec(cutout=0.4),
    "everything": AugmentationSpec(
        rotation=10,
        horizontal_flip=True,
        shifted_crop=2,
        policy="randaugment",
        brightness=0.2,
        cutout=0.3,
    ),
}


def pictures(n: int = 24, channels: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(11)
    drawn = torch.randint(0, 256, (n, channels, 16, 16), generator=generator, dtype=torch.uint8)
    return drawn.contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_a_sample_gets_the_same_in_whatever_batch_it_is(spec):
    augmenter, images = Augmenter(spec, seed=5), pictures()
    together = augmenter.apply(images, augmenter.draw(epoch=2, samples=np.arange(24)))
    order = np.random.default_rng(0).permutation(24)
    drawn = augmenter.draw(epoch=2, samples=order)
    shuffled = images[torch.from_numpy(order)].contiguous(memory_format=torch.channels_last)
    for start in range(0, 24, 7):
        stop = min(start + 7, 24)
        alone = augmenter.apply(shuffled[start:stop], drawn[start:stop])
        assert torch.equal(alone, together[torch.from_numpy(order[start:stop])])


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_epochs_seeds_and_samples_differ(spec):
    images = pictures(1).expand(24, -1, -1, -1).contiguous(memory_format=torch.channels_last)
    augmenter, samples = Augmenter(spec, seed=5), np.arange(24)
    first = augmenter.apply(images, augmenter.draw(epoch=0, samples=samples))
    later = augmenter.apply(images, augmenter.draw(epoch=1, samples=samples))
    other = Augmenter(spec, seed=6)
    elsewhere = other.apply(images, other.draw(epoch=0, samples=samples))
    assert not torch.equal(first, later)
    assert not torch.equal(first, elsewhere)
    assert len({picture.numpy().tobytes() for picture in first}) > 10


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_what_comes_out_is_channels_last_in_range_and_the_source_untouched(spec, channels):
    images = pictures(channels=channels)
    before, state = images.clone(), torch.get_rng_state()
    augmenter = Augmenter(spec, seed=1)
    found = augmenter.apply(images, augmenter.draw(epoch=0, samples=np.arange(24)))
    computes = spec.jitters_colour or (spec.interpolates and spec.policy == "none")
    assert found.dtype == (torch.float32 if computes else torch.uint8)
    assert found.shape == images.shape
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert found.min() >= 0
    assert found.max() <= 255
    assert torch.equal(images, before)
    assert torch.equal(torch.get_rng_state(), state)


def test_float_pictures_stay_float():
    images = pictures().float()
    augmenter = Augmenter(SPECS["moves"], seed=1)
    drawn = augmenter.draw(epoch=0, samples=np.arange(24))
    found = augmenter.apply(images, drawn)
    assert found.dtype == torch.float32
    assert torch.equal(found, augmenter.apply(pictures(), drawn).float())


def test_with_nothing_asked_for_the_pictures_themselves_come_back():
    augmenter, images = Augmenter(AugmentationSpec(), seed=0), pictures()
    assert augmenter.apply(images, augmenter.draw(epoch=0, samples=np.arange(24))) is images


def test_draws_are_uniform_over_what_was_asked_for():
    spec = AugmentationSpec(width_shift=0.2, zoom=(0.7, 1.1), brightness=0.5, contrast=1.5, hue=0.3, cutout=0.1)
    drawn = Augmenter(spec, seed=0).draw(epoch=0, samples=np.arange(20_000))
    maps = drawn.get("maps")
    ranges = {
        "width_shift": (maps[:, 0, 2], -0.2, 0.2),
        "zoom_x": (maps[:, 0, 0], 0.7, 1.1),
        "zoom_y": (maps[:, 1, 1], 0.7, 1.1),
        "brightness": (drawn.get("brightness"), 0.5, 1.5),
        "contrast": (drawn.get("contrast"), 0.0, 2.5),
        "hue": (drawn.get("hue"), -0.3, 0.3),
        "cutout": (drawn.get("cutout").flatten(), 0.0, 1.0),
    }
    for name, (values, low, high) in ranges.items():
        scaled = (values.double() - low) / (high - low)
        assert scaled.min() >= -1e-6, name
        assert scaled.max() <= 1 + 1e-6, name
        # Kolmogorov-Smirnov distance from the uniform distribution; 0.0138 at the level 0.001
        steps = torch.arange(1, len(scaled) + 1) / len(scaled)
        assert (scaled.sort().values - steps).abs().max() < 0.0145, name
    assert drawn.get("saturation") is None
    correlation = torch.corrcoef(torch.stack([maps[:, 0, 0], maps[:, 1, 1], maps[:, 0, 2]]))
    assert (correlation - torch.eye(3)).abs().max() < 0.03


def test_flips_and_crops_are_drawn_evenly():
    spec = AugmentationSpec(horizontal_flip=True, shifted_crop=2)
    moves = Augmenter(spec, seed=0).draw(epoch=0, samples=np.arange(10_000)).get("moves")
    for column in (0, 1):
        counts = moves[:, column].bincount(minlength=5)
        assert len(counts) == 5
        assert (counts - 2000).abs().max() < 160  # four standard deviations
    assert abs(moves[:, 2].float().mean() - 0.5) < 0.02
    assert moves[:, 3].sum() == 0


def test_alternating_flips_show_each_side_of_every_picture_in_turn():
    spec = AugmentationSpec(horizontal_flip="alternating", shifted_crop=2)
    augmenter, samples = Augmenter(spec, seed=4), np.arange(10_000)
    flips = [augmenter.draw(epoch=epoch, samples=samples).get("moves")[:, 2] for epoch in range(4)]
    assert abs(flips[0].float().mean() - 0.5) < 0.02
    assert torch.equal(flips[1], 1 - flips[0])
    assert torch.equal(flips[2], flips[0])
    assert torch.equal(flips[3], flips[1])
    assert not torch.equal(Augmenter(spec, seed=5).draw(epoch=0, samples=samples).get("moves")[:, 2], flips[0])
    # The other moves are those of ordinary flips, drawn anew in each epoch.
    ordinary = Augmenter(AugmentationSpec(horizontal_flip=True, shifted_crop=2), seed=4)
    for epoch in (0, 1):
        drawn = [a.draw(epoch=epoch, samples=samples).get("moves")[:, [0, 1, 3]] for a in (augmenter, ordinary)]
        assert torch.equal(*drawn)


@pytest.mark.parametrize(
    ("name", "words"), [("horizontal_flip", "true, alternating or false"), ("vertical_flip", "true or false")]
)
def test_a_flip_is_a_switch_or_alternating(name, words):
    with pytest.raises(ValueError, match=f"{name} is 'sometimes'; it must be {words}"):
        AugmentationSpec(**{name: "sometimes"})


def test_turning_one_change_on_leaves_the_others_as_drawn():
    plain = Augmenter(AugmentationSpec(rotation=10), seed=0)
    more = Augmenter(AugmentationSpec(rotation=10, brightness=0.2, cutout=0.5), seed=0)
    samples = np.arange(50)
    maps = plain.draw(epoch=0, samples=samples).get("maps")
    assert torch.equal(maps, more.draw(epoch=0, samples=samples).get("maps"))


def test_cutout_removes_a_clipped_square_about_its_centre():
    spec = AugmentationSpec(cutout=0.5, fill_value=7)
    augmenter = Augmenter(spec, seed=3)
    images = torch.full((60, 3, 16, 20), 200, dtype=torch.uint8)
    images = images.contiguous(memory_format=torch.channels_last)
    drawn = augmenter.draw(epoch=0, samples=np.arange(60))
    found = augmenter.apply(images, drawn)
    for picture, (x, y) in zip(found.numpy(), drawn.get("cutout").numpy(), strict=True):
        left, top = int(x * 20) - 4, int(y * 16) - 4
        expected = np.full((3, 16, 20), 200, dtype=np.uint8)
        expected[:, max(top, 0) : top + 8, max(left, 0) : left + 8] = 7
        np.testing.assert_array_equal(picture, expected)


def test_impossible_values_are_all_named_at_once():
    with pytest.raises(ValueError, match="rotation is 200") as caught:
        AugmentationSpec(rotation=200, zoom=1.5, fill_mode="mirror", shifted_crop=2.5, hue="a")
    message = str(caught.value)
    for field in ("zoom is 1.5", "fill_mode is 'mirror'", "shifted_crop is 2.5", "hue is 'a'"):
        assert field in message
    with pytest.raises(ValueError, match="Did you mean 'reflect'"):
        AugmentationSpec(fill_mode="reflct")
    with pytest.raises(ValueError, match="horizontal_flip is 1; it must be true, alternating or false"):
        AugmentationSpec(horizontal_flip=1)


def test_identity_is_told_from_any_change():
    assert AugmentationSpec().is_identity
    assert AugmentationSpec(fill_mode="wrap", randaugment_magnitude=3).is_identity
    assert AugmentationSpec(zoom=(1.0, 1.0)).is_identity
    changes = [
        {"rotation": 1},
        {"zoom": (1.0, 1.2)},
        {"zoom": 0.1},
        {"vertical_flip": True},
        {"shifted_crop": 1},
        {"hue": 0.1},
        {"policy": "trivialaugment"},
        {"cutout": 0.1},
        {"mixup": 0.2},
        {"cutmix": 1.0},
    ]
    assert not any(AugmentationSpec(**change).is_identity for change in changes)


def test_wrong_row_counts_and_channels_are_named():
    augmenter = Augmenter(SPECS["colour"], seed=0)
    with pytest.raises(ValueError, match="24 pictures came with 5 parameter rows"):
        augmenter.apply(pictures(), augmenter.draw(epoch=0, samples=np.arange(5)))
    with pytest.raises(ValueError, match="1 or 3 channels, found 4"):
        augmenter.apply(pictures(channels=4), augmenter.draw(epoch=0, samples=np.arange(24)))


def test_the_spec_alone_does_not_import_torch():
    code = (
        "import sys; from netloom.data.augment import AugmentationSpec; "
        "AugmentationSpec(rotation=3); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
