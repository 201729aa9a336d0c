"""Optimizers against formulas written out in NumPy (Kingma and Ba 2014; Dozat 2016; Hinton's lecture 6e)."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from netloom.data.batches import Batch
from netloom.models import create_model, model_names
from netloom.models.backbones import timm
from netloom.models.heads import Head
from netloom.runtime import ExecutionPlan
from netloom.training.callbacks import CallbackList, ReduceOnPlateau
from netloom.training.checkpoint import Checkpointer, EpochProgress, load_checkpoint
from netloom.training.optim import create_optimizer, kernel_names, rate_factors
from netloom.training.regularize import MaxNorm, WeightPenalty
from netloom.training.state import TrainingState
from netloom.training.step import TrainingStep

RATE, STEPS = 0.1, 5


class Quadratic(nn.Module):
    """Loss sum(a * w^2) / 2, whose gradient is a * w."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([[1.0, -2.0, 0.5]]))
        self.scale = torch.tensor([[1.0, 0.3, 4.0]])

    def loss(self) -> torch.Tensor:
        return (self.scale * self.weight.square()).sum() / 2


def trained(name: str, **options: float) -> np.ndarray:
    model = Quadratic()
    optimizer = create_optimizer(model, name, learning_rate=RATE, **options)  # type: ignore[arg-type]
    for _ in range(STEPS):
        optimizer.zero_grad()
        model.loss().backward()
        optimizer.step()
    return model.weight.detach().double().numpy()


def reference(update: Callable[[np.ndarray, np.ndarray, dict[str, np.ndarray], int], np.ndarray]) -> np.ndarray:
    w, a = np.array([[1.0, -2.0, 0.5]]), np.array([[1.0, 0.3, 4.0]])
    memory = {"m": np.zeros_like(w), "v": np.zeros_like(w)}
    for step in range(1, STEPS + 1):
        w = update(w, a * w, memory, step)
    return w


def test_sgd_with_momentum_and_nesterov() -> None:
    def plain(w: np.ndarray, g: np.ndarray, s: dict[str, np.ndarray], _: int) -> np.ndarray:
        s["m"] = 0.9 * s["m"] + g
        return w - RATE * s["m"]

    def nesterov(w: np.ndarray, g: np.ndarray, s: dict[str, np.ndarray], _: int) -> np.ndarray:
        s["m"] = 0.9 * s["m"] + g
        return w - RATE * (g + 0.9 * s["m"])

    assert trained("sgd", momentum=0.9) == pytest.approx(reference(plain), rel=1e-5)
    assert trained("sgd", momentum=0.9, nesterov=True) == pytest.approx(reference(nesterov), rel=1e-5)


@pytest.mark.parametrize(("name", "decay", "epsilon"), [("adam", 0.0, 1e-7), ("adamw", 0.1, 1e-8)])
def test_adam_and_adamw(name: str, decay: float, epsilon: float) -> None:
    def update(w: np.ndarray, g: np.ndarray, s: dict[str, np.ndarray], t: int) -> np.ndarray:
        s["m"] = 0.9 * s["m"] + 0.1 * g
        s["v"] = 0.999 * s["v"] + 0.001 * g**2
        step = s["m"] / (1 - 0.9**t) / (np.sqrt(s["v"] / (1 - 0.999**t)) + epsilon)
        return w * (1 - RATE * decay) - RATE * step

    assert trained(name, weight_decay=decay) == pytest.approx(reference(update), rel=1e-4)


def test_rmsprop_averages_with_09_as_keras_does() -> None:
    def update(w: np.ndarray, g: np.ndarray, s: dict[str, np.ndarray], _: int) -> np.ndarray:
        s["v"] = 0.9 * s["v"] + 0.1 * g**2
        return w - RATE * g / (np.sqrt(s["v"]) + 1e-7)

    assert trained("rmsprop") == pytest.approx(reference(update), rel=1e-4)


@pytest.mark.parametrize("decay", [0.0, 0.2])
def test_nadam(decay: float) -> None:
    product = [1.0]

    def update(w: np.ndarray, g: np.ndarray, s: dict[str, np.ndarray], t: int) -> np.ndarray:
        g = g + decay * w
        mu, following = (0.9 * (1 - 0.5 * 0.96 ** (i * 4e-3)) for i in (t, t + 1))
        product[0] *= mu
        s["m"] = 0.9 * s["m"] + 0.1 * g
        s["v"] = 0.999 * s["v"] + 0.001 * g**2
        denominator = np.sqrt(s["v"] / (1 - 0.999**t)) + 1e-7
        now = (1 - mu) * g / (1 - product[0])
        ahead = following * s["m"] / (1 - product[0] * following)
        return w - RATE * (now + ahead) / denominator

    assert trained("nadam", weight_decay=decay) == pytest.approx(reference(update), rel=1e-4)


DECAY = 0.2


def test_sgd_adds_its_decay_to_the_gradient_before_momentum() -> None:
    def update(w: np.ndarray, g: np.ndarray, s: dict[str, np.ndarray], _: int) -> np.ndarray:
        s["m"] = 0.9 * s["m"] + g + DECAY * w
        return w - RATE * s["m"]

    assert trained("sgd", momentum=0.9, weight_decay=DECAY) == pytest.approx(reference(update), rel=1e-5)


def test_adam_adds_its_decay_to_the_gradient_before_its_averages() -> None:
    """Which AdamW does not: Loshchilov and Hutter 2019."""

    def update(w: np.ndarray, g: np.ndarray, s: dict[str, np.ndarray], t: int) -> np.ndarray:
        g = g + DECAY * w
        s["m"] = 0.9 * s["m"] + 0.1 * g
        s["v"] = 0.999 * s["v"] + 0.001 * g**2
        return w - RATE * s["m"] / (1 - 0.9**t) / (np.sqrt(s["v"] / (1 - 0.999**t)) + 1e-7)

    assert trained("adam", weight_decay=DECAY) == pytest.approx(reference(update), rel=1e-4)


@pytest.mark.parametrize("decay", [0.0, DECAY])
def test_rmsprop_with_momentum_sums_what_it_divided(decay: float) -> None:
    def update(w: np.ndarray, g: np.ndarray, s: dict[str, np.ndarray], _: int) -> np.ndarray:
        g = g + decay * w
        s["v"] = 0.9 * s["v"] + 0.1 * g**2
        s["m"] = 0.8 * s["m"] + g / (np.sqrt(s["v"]) + 1e-7)
        return w - RATE * s["m"]

    assert trained("rmsprop", momentum=0.8, weight_decay=decay) == pytest.approx(reference(update), rel=1e-4)


@pytest.mark.parametrize("limit", [0.05, 100.0])
def test_the_whole_gradient_is_clipped_with_the_penalty_in_it(limit: float) -> None:
    """Pascanu, Mikolov and Bengio 2013: of loss and penalty together, over kernel and bias; a small one is left."""
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(6, 4)), np.array([0, 1, 2, 0, 1, 2])
    w, b = generator.normal(size=(3, 4)), generator.normal(size=3)
    model = nn.Linear(4, 3)
    with torch.no_grad():
        model.weight.copy_(torch.from_numpy(w))
        model.bias.copy_(torch.from_numpy(b))
    step = TrainingStep(
        model,
        [Head(class_names=("a", "b", "c"))],
        create_optimizer(model, "sgd", learning_rate=RATE),
        plan=ExecutionPlan("cpu", 1, "float32"),
        seed=0,
        penalty=WeightPenalty(model, l1=0.1, l2=0.5),
        gradient_clip_norm=limit,
    )
    step(Batch({"image": torch.from_numpy(x).float()}, {"label": torch.from_numpy(y)}), 0)
    exponentials = np.exp(x @ w.T + b)
    error = (exponentials / exponentials.sum(axis=1, keepdims=True) - np.eye(3)[y]) / len(y)
    of_weight = error.T @ x + 0.1 * np.sign(w) + 2 * 0.5 * w
    of_bias = error.sum(axis=0)
    norm = math.sqrt((of_weight**2).sum() + (of_bias**2).sum())
    assert 0.05 < norm < 100
    factor = min(1.0, limit / norm)
    assert model.weight.detach().numpy() == pytest.approx(w - RATE * factor * of_weight, rel=1e-4)
    assert model.bias.detach().numpy() == pytest.approx(b - RATE * factor * of_bias, rel=1e-4)


def test_decay_is_for_weights_not_for_biases_and_norms() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2))
    optimizer = create_optimizer(model, "adamw", learning_rate=1e-3, weight_decay=0.1)
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    found = {name: decays[id(p)] for name, p in model.named_parameters()}
    assert found == {
        "0.weight": 0.1,
        "0.bias": 0.0,
        "1.weight": 0.0,
        "1.bias": 0.0,
        "3.weight": 0.1,
        "3.bias": 0.0,
    }


def test_rates_by_parameter_and_frozen_parameters() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[0].bias.requires_grad_(False)
    optimizer = create_optimizer(
        model, "sgd", learning_rate=1.0, rate_for=lambda name: 0.1 if name.startswith("0.") else 1.0
    )
    rates = {id(p): group["base_lr"] for group in optimizer.param_groups for p in group["params"]}
    assert rates[id(model[0].weight)] == pytest.approx(0.1)
    assert rates[id(model[1].weight)] == 1.0
    assert id(model[0].bias) not in rates
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    with pytest.raises(ValueError, match="no trainable parameter"):
        create_optimizer(model, "sgd", learning_rate=1.0)


@pytest.mark.parametrize(("l1", "l2"), [(0.01, 0.0), (0.0, 0.02), (0.01, 0.02)])
def test_penalty_gradient_is_autograds_of_the_penalty_in_the_loss(l1: float, l2: float) -> None:
    """The reference puts the penalty into the loss, over kernels only, as Keras' kernel regularizers do."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2))
    images = torch.randn(5, 1, 4, 4)
    penalty = WeightPenalty(model, l1=l1, l2=l2)
    model(images).square().sum().backward()
    penalty.add_gradient()
    ours = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    kernels = [model[0].weight, model[3].weight]
    added = sum(l1 * w.abs().sum() + l2 * w.square().sum() for w in kernels)
    (model(images).square().sum() + added).backward()
    for mine, parameter in zip(ours, model.parameters(), strict=True):
        torch.testing.assert_close(mine, parameter.grad)
    assert penalty.value() == pytest.approx(added.item(), rel=1e-5)  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ["adam", "adamw", "nadam", "rmsprop", "sgd", "muon"])
@pytest.mark.parametrize("switch", ["fused", "capturable", None])
def test_a_checkpoint_restores_counts_beside_the_parameters_of_a_kernel_that_reads_them(
    name: str, switch: str | None, tmp_path: Path
) -> None:
    """Reference: torch's own `load_state_dict`. The device `meta` stands for a GPU: nothing is computed on it."""
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    optimizer = create_optimizer(model, name, learning_rate=0.1)
    model(torch.ones(5, 3)).sum().backward()
    optimizer.step()
    path = tmp_path / "checkpoint.safetensors"
    Checkpointer(path).save(TrainingState(model, optimizer, 1, 1), CallbackList([]), EpochProgress())

    def elsewhere() -> torch.optim.Optimizer:
        there = create_optimizer(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)).to("meta"), name, learning_rate=0.1)
        for group in there.param_groups:
            group |= {key: key == switch for key in ("fused", "capturable") if key in group}
        return there

    ours, theirs = elsewhere(), elsewhere()
    load_checkpoint(path).restore(TrainingState(model, ours, 1, 1), CallbackList([]))
    saved = optimizer.state_dict()
    theirs.load_state_dict({**saved, "param_groups": theirs.state_dict()["param_groups"]})
    for mine, reference in zip(states(ours), states(theirs), strict=True):
        assert mine.keys() == reference.keys()
        for key in mine.keys() - {"mu_product"}:  # NAdam's product starts on the CPU, like its count of steps
            assert mine[key].device == reference[key].device, key


def states(optimizer: torch.optim.Optimizer) -> list[dict[str, torch.Tensor]]:
    return [optimizer.state.get(p, {}) for group in optimizer.param_groups for p in group["params"]]


def test_the_rate_that_is_told_is_without_the_factor_of_its_group() -> None:
    """Of the first group, which is the norm's here, then that of a classifier that trains alone."""
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4, 2))
    for factors, frozen in (({"bias": 64.0}, 0), ({"classifier": 10.0}, 4)):
        for i, parameter in enumerate(model.parameters()):
            parameter.requires_grad_(i >= frozen)
        optimizer = create_optimizer(model, "sgd", learning_rate=0.1, rate_for=rate_factors(model, **factors))
        assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1 * next(iter(factors.values())))
        assert TrainingState(model, optimizer, 1, 1).learning_rate == pytest.approx(0.1)
        plateau = ReduceOnPlateau(monitor="loss", patience=1, factor=0.1, min_learning_rate=0.02)
        state = TrainingState(model, optimizer, 9, 1, history=[{"loss": 1.0}])
        for _ in range(3):
            plateau.on_epoch_end(state)
        assert state.learning_rate_scale == pytest.approx(0.2)


def test_tables_that_a_network_exempts_are_no_kernels() -> None:
    """timm's `param_groups_weight_decay` with the network's own list is the reference."""
    model = create_model("timm/test_vit", in_channels=3, num_outputs=2, image_size=(32, 32), seed=0)
    net = model.trunk.net  # type: ignore[union-attr]
    timm()
    groups = importlib.import_module("timm.optim").param_groups_weight_decay
    _, decaying = groups(net, 0.1, no_weight_decay_list=net.no_weight_decay())  # type: ignore[operator]
    ours = kernel_names(model)
    names = {id(p): name for name, p in model.named_parameters()}
    assert {name for name in ours if name.startswith("trunk.")} == {names[id(p)] for p in decaying["params"]}
    assert {"trunk.net.pos_embed", "trunk.net.cls_token"} <= set(names.values()) - ours
    limit = MaxNorm(model, limit=1.0)
    assert {id(p) for p in limit.weights} == {id(p) for name, p in model.named_parameters() if name in ours}
    assert rate_factors(model, bias=5.0)("trunk.net.pos_embed") == 1.0


def test_kernels_of_the_shipped_networks_are_their_layers_weights() -> None:
    for name in model_names():
        side = 67 if name == "alexnet" else 32
        model = create_model(name, in_channels=3, num_outputs=2, image_size=(side, side), seed=0)
        layers = {
            f"{place}.weight" for place, module in model.named_modules() if isinstance(module, (nn.Conv2d, nn.Linear))
        }
        assert kernel_names(model) == layers, name
