"""Losses against scikit-learn and SciPy; `log_loss` weights its mean by sum(w * l) / sum(w)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import scipy.special
import torch
from sklearn.metrics import log_loss, mean_squared_error

from netloom.errors import ModelError
from netloom.models import Head

SOFTMAX = Head(class_names=("a", "b", "c"))
SIGMOID = Head(kind="sigmoid", class_names=("cat", "dog"))
VALUES = Head(name="position", kind="regression", num_outputs=2)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def draw(head: Head, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Outputs, targets (class indices) and weights of 17 samples."""
    outputs = rng.normal(0, 3, (17, head.num_outputs)).astype(np.float32)
    targets = rng.integers(0, head.num_classes, 17)
    weights = rng.uniform(0, 2, 17).astype(np.float32)
    return torch.from_numpy(outputs), torch.from_numpy(targets), torch.from_numpy(weights)


@pytest.mark.parametrize("head", [SOFTMAX, SIGMOID], ids=lambda head: head.kind)
def test_loss_is_the_log_loss(head: Head, rng: np.random.Generator) -> None:
    outputs, targets, weights = draw(head, rng)
    logits = outputs.double().numpy()
    if head.kind == "sigmoid":
        logits = np.concatenate([np.zeros_like(logits), logits], axis=1)
    probabilities = scipy.special.softmax(logits, axis=1)
    labels = range(head.num_classes)
    plain = log_loss(targets, probabilities, labels=labels)
    weighted = log_loss(targets, probabilities, labels=labels, sample_weight=weights)
    assert head.loss(outputs, targets).item() == pytest.approx(plain, rel=1e-5)
    assert head.loss(outputs, targets, weights=weights).item() == pytest.approx(weighted, rel=1e-5)
    each = -np.log(probabilities[np.arange(17), targets.numpy()])
    np.testing.assert_allclose(head.losses(outputs, targets), each, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(head.probabilities(outputs), probabilities, rtol=1e-4, atol=1e-7)
    assert head.probabilities(outputs).dtype == torch.float32


@pytest.mark.parametrize("head", [SOFTMAX, SIGMOID], ids=lambda head: head.kind)
def test_label_smoothing_mixes_in_the_uniform_distribution(head: Head, rng: np.random.Generator) -> None:
    """Szegedy et al. 2016, section 7: cross-entropy with (1 - e) * target + e / K."""
    outputs, targets, weights = draw(head, rng)
    hard = np.eye(head.num_classes, dtype=np.float32)[targets.numpy()]
    smooth = 0.9 * hard + 0.1 / head.num_classes
    log_p = np.log(head.probabilities(outputs.double()).double().numpy())
    expected = -(smooth * log_p).sum(axis=1)
    actual = head.losses(outputs, targets, label_smoothing=0.1)
    np.testing.assert_allclose(actual, expected, rtol=1e-4)
    mean = head.loss(outputs, targets, weights=weights, label_smoothing=0.1).item()
    assert mean == pytest.approx(np.average(expected, weights=weights.numpy()), rel=1e-4)
    soft = head.losses(outputs, torch.from_numpy(smooth))
    torch.testing.assert_close(soft, actual, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("head", [SOFTMAX, SIGMOID], ids=lambda head: head.kind)
def test_correct_counts_the_most_probable_class(head: Head, rng: np.random.Generator) -> None:
    outputs, targets, _ = draw(head, rng)
    expected = (head.probabilities(outputs).numpy().argmax(axis=1) == targets.numpy()).sum()
    assert 0 < expected < 17
    assert head.correct(outputs, targets).item() == expected
    soft = torch.nn.functional.one_hot(targets, head.num_classes).float() * 0.8 + 0.05
    assert head.correct(outputs, soft).item() == expected


def test_a_confident_sigmoid_keeps_its_small_probability() -> None:
    probabilities = SIGMOID.probabilities(torch.tensor([[40.0]])).double().numpy()
    np.testing.assert_allclose(probabilities, [[scipy.special.expit(-40), 1.0]], rtol=1e-5)


def test_regression_is_the_mean_squared_error(rng: np.random.Generator) -> None:
    outputs, targets = rng.normal(size=(2, 17, 2)).astype(np.float32)
    weights = rng.uniform(0, 2, 17).astype(np.float32)
    o, t, w = map(torch.from_numpy, (outputs, targets, weights))
    expected = mean_squared_error(targets, outputs)
    weighted = mean_squared_error(targets, outputs, sample_weight=weights)
    assert VALUES.loss(o, t).item() == pytest.approx(expected, rel=1e-5)
    assert VALUES.loss(o, t, weights=w).item() == pytest.approx(weighted, rel=1e-5)
    assert VALUES.losses(o, t).shape == (17,)
    single = replace(VALUES, num_outputs=1)
    assert single.loss(o[:, :1], t[:, 0]).item() == pytest.approx(
        mean_squared_error(targets[:, 0], outputs[:, 0]), rel=1e-5
    )
    with pytest.raises(ModelError, match="'position' is a regression"):
        VALUES.probabilities(o)
    with pytest.raises(ModelError, match="'position' is a regression"):
        VALUES.correct(o, t)


@pytest.mark.parametrize("head", [SOFTMAX, SIGMOID], ids=lambda head: head.kind)
def test_arithmetic_is_float32_under_autocast(head: Head, rng: np.random.Generator) -> None:
    outputs, targets, weights = draw(head, rng)
    half = outputs.bfloat16().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = head.loss(half, targets, weights=weights, label_smoothing=0.1)
        probabilities = head.probabilities(half)
    exact = head.loss(half.detach().float(), targets, weights=weights, label_smoothing=0.1)
    assert loss.dtype == probabilities.dtype == torch.float32
    assert loss.item() == pytest.approx(exact.item(), rel=1e-6)
    loss.backward()
    assert half.grad is not None


def test_a_batch_without_weight_has_no_loss() -> None:
    outputs = torch.ones(2, 3, requires_grad=True)
    loss = SOFTMAX.loss(outputs, torch.tensor([0, 1]), weights=torch.zeros(2))
    loss.backward()
    assert loss.item() == 0
    assert outputs.grad is not None
    assert not outputs.grad.any()


def test_number_of_outputs_follows_from_the_classes() -> None:
    assert (SOFTMAX.num_outputs, SOFTMAX.num_classes) == (3, 3)
    assert (SIGMOID.num_outputs, SIGMOID.num_classes) == (1, 2)
    assert (VALUES.num_outputs, VALUES.num_classes) == (2, 0)
    assert Head(num_outputs=4).num_classes == 4
    assert replace(SOFTMAX, loss_weight=0.5).num_outputs == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "hinge", "num_outputs": 2}, "got 'hinge'"),
        ({"kind": "sigmoid", "class_names": ("a", "b", "c")}, "got 3. Use softmax"),
        ({"kind": "sigmoid", "num_outputs": 2}, "got num_outputs 2"),
        ({"class_names": ("a", "b"), "num_outputs": 3}, "2 class names"),
        ({}, "got num_outputs 0 and 0 class names"),
    ],
)
def test_heads_that_contradict_themselves_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        Head(**arguments)
