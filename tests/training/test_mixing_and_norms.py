"""Mixing and max-norm within a training step, against sums and formulas written out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from netloom.data.augment import mix_batch
from netloom.data.batches import Batch
from netloom.models.heads import Head
from netloom.runtime import ExecutionPlan
from netloom.training.gradients import total_loss
from netloom.training.optim import create_optimizer
from netloom.training.regularize import MaxNorm
from netloom.training.step import TrainingStep, mixed
from training.helpers import HEAD, pictures

PLAN = ExecutionPlan("cpu", 1, "float32")
SIGMOID = Head(name="label", kind="sigmoid", class_names=("no", "yes"))


def batch(n: int = 6, *, weighted: bool = False, classes: int = 3) -> Batch:
    images, _ = pictures(n)
    weights = torch.linspace(0.2, 3.0, n) if weighted else None
    return Batch({"image": images.float() / 255}, {"label": torch.arange(n) % classes}, weights)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("head", [HEAD, SIGMOID], ids=["softmax", "sigmoid"])
def test_the_loss_of_a_mixture_is_that_of_both_pictures_each_with_its_weight(head: Head, weighted: bool) -> None:
    """Zhang et al. 2017: the loss is linear in the target, so it is the shares' sum of two plain losses."""
    plain = batch(weighted=weighted, classes=head.num_classes)
    found = mixed(plain, [head], seed=3, step=5, mixup_alpha=0.8, cutmix_alpha=0.0)
    _, shares = mix_batch(plain.inputs["image"], torch.eye(6), seed=3, step=5, mixup_alpha=0.8)
    share = shares[0, 0].item()
    assert 0.01 < share < 0.99
    outputs = torch.randn(6, head.num_outputs, generator=torch.Generator().manual_seed(0))
    weights = torch.ones(6) if plain.weights is None else plain.weights
    labels = plain.targets["label"]
    own, before = head.losses(outputs, labels), head.losses(outputs, labels.roll(1))
    w, w_before = share * weights, (1 - share) * weights.roll(1)
    expected = (w * own + w_before * before).sum() / (w + w_before).sum()
    torch.testing.assert_close(total_loss({"label": outputs}, found, [head], 0.0), expected)
    images = plain.inputs["image"]
    torch.testing.assert_close(found.inputs["image"], share * images + (1 - share) * images.roll(1, 0))


def test_soft_targets_are_float32_rows_that_sum_to_one() -> None:
    found = mixed(batch(weighted=True), [HEAD], seed=0, step=0, mixup_alpha=0.0, cutmix_alpha=1.0)
    targets = found.targets["label"]
    assert targets.dtype == torch.float32
    torch.testing.assert_close(targets.sum(1), torch.ones(6))


def test_a_step_trains_on_the_mixture_and_counts_the_larger_share_as_its_class() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    optimizer = create_optimizer(model, "sgd", learning_rate=0.1)
    step = TrainingStep(model, [HEAD], optimizer, plan=PLAN, seed=2, mixup_alpha=1.0)
    plain = batch()
    step(plain, 4)
    one_hot = F.one_hot(plain.targets["label"], 3).float()
    images, targets = mix_batch(plain.inputs["image"], one_hot, seed=2, step=4, mixup_alpha=1.0)
    reference = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    reference.load_state_dict(before)
    outputs = reference(images)
    loss = -(targets * outputs.log_softmax(1)).sum(1).mean()
    loss.backward()
    for name, parameter in reference.named_parameters():
        torch.testing.assert_close(model.state_dict()[name], before[name] - 0.1 * parameter.grad)
    figures = step.figures()
    assert figures["train_loss"] == pytest.approx(loss.item(), rel=1e-6)
    right = (outputs.argmax(1) == targets.argmax(1)).float().mean().item()
    assert figures["train_accuracy"] == pytest.approx(right)


def test_max_norm_is_keras_formula_on_kernels_only() -> None:
    """Keras' MaxNorm, w * clip(norm, 0, limit) / (epsilon + norm), with the axes of one output unit."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(32, 4))
    with torch.no_grad():
        model[3].weight[0].zero_()
        model[3].bias.fill_(9.0)
    before = {name: value.clone() for name, value in model.named_parameters()}
    MaxNorm(model, limit=0.55).apply()
    n_limited = 0
    for name, value in model.named_parameters():
        old = before[name].detach().double().numpy()
        if old.ndim > 1:
            norms = np.sqrt((old**2).sum(axis=tuple(range(1, old.ndim)), keepdims=True))
            n_limited += int((norms > 0.55).sum())
            old = old * np.clip(norms, 0, 0.55) / (1e-7 + norms)
        np.testing.assert_allclose(value.detach().numpy(), old, rtol=1e-5)
    assert 0 < n_limited < 11  # some rows are over the limit and some are not


def test_max_norm_holds_after_every_step() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    optimizer = create_optimizer(model, "sgd", learning_rate=5.0)
    limit = MaxNorm(model, limit=0.3)
    step = TrainingStep(model, [HEAD], optimizer, plan=PLAN, seed=0, max_norm=limit)
    for number in range(3):
        step(batch(), number)
        assert model[1].weight.norm(dim=1).max() <= 0.3 * (1 + 1e-6)
    free = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    TrainingStep(free, [HEAD], create_optimizer(free, "sgd", learning_rate=5.0), plan=PLAN, seed=0)(batch(), 0)
    assert free[1].weight.norm(dim=1).max() > 0.3
