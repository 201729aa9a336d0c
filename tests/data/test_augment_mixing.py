"""Mixing against torchvision's MixUp and CutMix and the moments of the Beta distribution."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from netloom.data.augment import mix_batch


def batch(n: int = 6, side: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (n, 3, side, side), generator=generator, dtype=torch.uint8)
    targets = torch.eye(n)
    return images.contiguous(memory_format=torch.channels_last), targets


def shares(targets: torch.Tensor) -> np.ndarray:
    """What of itself each picture keeps."""
    return targets.diagonal().numpy()


def test_mixup_is_that_of_torchvision_at_the_drawn_share():
    images, targets = batch()
    mixed, soft = mix_batch(images, targets, seed=1, step=7, mixup_alpha=0.8)
    share = shares(soft)[0]
    assert 0 < share < 1
    neighbours = images.float().roll(1, 0)  # torchvision.transforms.v2.MixUp.transform
    expected = neighbours.mul(1.0 - share).add(images.float().mul(share))
    torch.testing.assert_close(mixed, expected, atol=1e-3, rtol=0)
    torch.testing.assert_close(soft, targets.roll(1, 0) * (1 - share) + targets * share)
    assert mixed.is_contiguous(memory_format=torch.channels_last)


def test_cutmix_pastes_one_box_of_the_neighbour_and_the_targets_tell_its_area():
    images, targets = batch(side=20)
    sizes = set()
    for step in range(30):
        cut, soft = mix_batch(images, targets, seed=2, step=step, cutmix_alpha=1.0)
        assert cut.dtype == torch.uint8
        pasted = ((cut == images.roll(1, 0)).all(1) & (images != images.roll(1, 0)).any(1)).any(0)
        rows, columns = pasted.any(1).sum().item(), pasted.any(0).sum().item()
        assert pasted.sum() == rows * columns  # a full rectangle
        kept = torch.where(pasted, images.roll(1, 0), images)
        assert torch.equal(cut, kept)
        np.testing.assert_allclose(shares(soft), 1 - rows * columns / 400, atol=1e-6)
        sizes.add((rows, columns))
    assert len(sizes) > 10


def test_shares_follow_the_beta_distribution():
    images, targets = batch(n=2, side=2)
    drawn = np.array([shares(mix_batch(images, targets, seed=5, step=s, mixup_alpha=0.4)[1])[0] for s in range(3000)])
    # Beta(a, a): mean 1/2, variance 1 / (4 (2 a + 1)); four standard errors of each
    assert abs(drawn.mean() - 0.5) < 0.03
    assert abs(drawn.var() - 1 / (4 * 1.8)) < 0.006


def test_a_step_repeats_itself_and_steps_and_seeds_differ():
    images, targets = batch()
    first, _ = mix_batch(images, targets, seed=1, step=3, mixup_alpha=1.0)
    again, _ = mix_batch(images, targets, seed=1, step=3, mixup_alpha=1.0)
    other_step, _ = mix_batch(images, targets, seed=1, step=4, mixup_alpha=1.0)
    other_seed, _ = mix_batch(images, targets, seed=2, step=3, mixup_alpha=1.0)
    assert torch.equal(first, again)
    assert not torch.equal(first, other_step)
    assert not torch.equal(first, other_seed)


def test_both_take_turns_and_neither_changes_nothing():
    images, targets = batch()
    floats = [mix_batch(images, targets, seed=1, step=s, mixup_alpha=1.0, cutmix_alpha=1.0)[0] for s in range(400)]
    mixups = sum(mixed.dtype == torch.float32 for mixed in floats)
    assert 160 < mixups < 240  # 200 expected, standard deviation 10
    same, unchanged = mix_batch(images, targets, seed=1, step=0)
    assert same is images
    assert unchanged is targets


def test_wrong_targets_and_alphas_are_named():
    images, targets = batch()
    with pytest.raises(ValueError, match="one-hot"):
        mix_batch(images, targets.argmax(1), seed=0, step=0, mixup_alpha=1.0)
    with pytest.raises(ValueError, match="mixup_alpha is -1"):
        mix_batch(images, targets, seed=0, step=0, mixup_alpha=-1)
