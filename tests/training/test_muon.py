"""Muon against torch.optim.Muon, NumPy's singular value decomposition, and torch's AdamW and SGD for the rest."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from netloom.training.muon import Muon, MuonOptions, orthogonalized
from netloom.training.optim import classifier_parameters, create_optimizer, rate_factors


def matrices(n: int, rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, rows, columns, generator=torch.Generator().manual_seed(seed))


def polynomial(value: float, steps: int) -> float:
    """What the iteration of Jordan et al. 2024 makes of one singular value."""
    for _ in range(steps):
        value = 3.4445 * value - 4.7750 * value**3 + 2.0315 * value**5
    return value


@pytest.mark.parametrize(("rows", "columns"), [(6, 20), (20, 6), (8, 8)])
@pytest.mark.parametrize("steps", [1, 3, 5])
def test_orthogonalization_is_its_polynomial_on_numpys_singular_values(rows: int, columns: int, steps: int) -> None:
    given = matrices(3, rows, columns)
    for found, matrix in zip(orthogonalized(given, steps=steps).double().numpy(), given.double().numpy(), strict=True):
        u, s, vt = np.linalg.svd(matrix / np.linalg.norm(matrix), full_matrices=False)
        expected = u @ np.diag([polynomial(value, steps) for value in s]) @ vt
        assert found == pytest.approx(expected, abs=2e-5)


def test_five_steps_bring_singular_values_near_one() -> None:
    values = torch.linalg.svdvals(orthogonalized(matrices(4, 30, 100), steps=5))
    assert values.min() > 0.65
    assert values.max() < 1.25


def test_a_matrix_of_zeros_stays_zero() -> None:
    assert not orthogonalized(torch.zeros(1, 3, 5), steps=5).any()


class Matrix(nn.Module):
    """Three dense kernels, two of one shape, and a classifier that is not used."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.first, self.second, self.third = (nn.Linear(i, o, bias=False) for i, o in ((9, 4), (4, 9), (9, 4)))
            self.classifier = nn.Linear(4, 2)

    def kernels(self) -> list[nn.Parameter]:
        return [self.first.weight, self.second.weight, self.third.weight]

    def loss(self, target: torch.Tensor) -> torch.Tensor:
        return sum(((w - target[: w.shape[0], : w.shape[1]]) ** 2).sum() for w in self.kernels())  # type: ignore[return-value]


def steps(model: Matrix, optimizer: torch.optim.Optimizer, n: int = 6) -> list[np.ndarray]:
    target = matrices(1, 9, 9, seed=3)[0]
    for _ in range(n):
        optimizer.zero_grad()
        model.loss(target).backward()
        optimizer.step()
    return [w.detach().double().numpy().copy() for w in model.kernels()]


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize(("ours", "theirs"), [("shape", "original"), ("rms", "match_rms_adamw")])
def test_kernels_move_as_torchs_muon_moves_them(nesterov: bool, ours: Any, theirs: str) -> None:
    """torch's iteration is bfloat16, 8 bits of mantissa, ours float32; so the tolerance is that of bfloat16."""
    options = MuonOptions(update_scale=ours, momentum=0.9, nesterov=nesterov)
    mine, reference = Matrix(), Matrix()
    start = [w.detach().double().numpy().copy() for w in mine.kernels()]
    found = steps(mine, create_optimizer(mine, "muon", learning_rate=0.02, weight_decay=0.1, muon=options))
    expected = steps(
        reference,
        torch.optim.Muon(
            reference.kernels(), lr=0.02, weight_decay=0.1, momentum=0.9, nesterov=nesterov, adjust_lr_fn=theirs
        ),
    )
    for before, a, b in zip(start, found, expected, strict=True):
        assert np.linalg.norm(a - b) < 0.03 * np.linalg.norm(b - before)


def test_a_convolution_is_the_matrix_of_its_filters() -> None:
    """The same kernel as a convolution [4, 3, 2, 2], in channels-last memory, and as a dense layer [4, 12]."""
    weight, gradient = matrices(1, 4, 12)[0], matrices(1, 4, 12, seed=1)[0]
    results = []
    for shape in ((4, 12), (4, 3, 2, 2)):
        parameter = nn.Parameter(weight.reshape(shape).clone())
        if len(shape) == 4:
            parameter = nn.Parameter(parameter.detach().contiguous(memory_format=torch.channels_last))
        optimizer = Muon([{"params": [parameter], "lr": 0.1, "orthogonal": True}], MuonOptions())
        for factor in (1.0, -0.5):
            parameter.grad = factor * gradient.reshape(shape)
            optimizer.step()
        results.append(parameter.detach().reshape(4, 12))
    torch.testing.assert_close(results[1], results[0])


def test_normalized_kernels_have_one_per_filter_before_the_step() -> None:
    """Jordan's airbench: weights to the norm sqrt(rows), then minus the rate times the orthogonal update."""
    parameter = nn.Parameter(matrices(1, 4, 12)[0] * 7)
    start, gradient = parameter.detach().clone(), matrices(1, 4, 12, seed=1)
    parameter.grad = gradient[0].clone()
    options = MuonOptions(normalize_kernels=True, update_scale="none", momentum=0.0, newton_schulz_steps=3)
    Muon([{"params": [parameter], "lr": 0.25, "orthogonal": True}], options).step()
    expected = start * 2.0 / torch.linalg.vector_norm(start) - 0.25 * orthogonalized(gradient, steps=3)[0]
    torch.testing.assert_close(parameter.detach(), expected)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(1)
            self.conv = nn.Conv2d(1, 4, 3)
            self.norm = nn.BatchNorm2d(4)
            self.classifier = nn.Linear(16, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.norm(self.conv(x)).flatten(1))  # type: ignore[no-any-return]


@pytest.mark.parametrize("rest", ["adamw", "sgd"])
@pytest.mark.parametrize("nesterov", [True, False])
def test_the_rest_moves_as_torchs_optimizers_move_it(rest: Any, nesterov: bool) -> None:
    mine, reference = Net(), Net()
    options = MuonOptions(rest=rest, rest_momentum=0.8, nesterov=nesterov)
    optimizer = create_optimizer(
        mine, "muon", learning_rate=0.02, weight_decay=0.1, muon=options, rest_learning_rate=0.05
    )
    others = [p for n, p in reference.named_parameters() if n not in ("conv.weight", "classifier.weight")]
    groups = [{"params": [reference.classifier.weight], "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    theirs = (
        torch.optim.AdamW(groups, lr=0.05)
        if rest == "adamw"
        else torch.optim.SGD(groups, lr=0.05, momentum=0.8, nesterov=nesterov)
    )
    x = torch.randn(5, 1, 4, 4, generator=torch.Generator().manual_seed(2))
    for _ in range(5):
        for model in (mine, reference):
            model.zero_grad()
            model(x).square().mean().backward()
        optimizer.step()
        theirs.step()
        with torch.no_grad():
            reference.conv.weight.copy_(mine.conv.weight)
    for (name, a), b in zip(mine.named_parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(a, b, msg=lambda text, name=name: f"{name}: {text}")


def test_groups_are_kernels_first_each_with_its_rate() -> None:
    model = Net()
    optimizer = create_optimizer(
        model,
        "muon",
        learning_rate=0.2,
        rest_learning_rate=0.01,
        weight_decay=0.3,
        rate_for=rate_factors(model, bias=64, classifier=3),
    )
    names = {id(p): n for n, p in model.named_parameters()}
    found = [({names[id(p)] for p in g["params"]}, g["base_lr"], g["weight_decay"]) for g in optimizer.param_groups]
    assert found == [
        ({"conv.weight"}, 0.2, 0.3),
        ({"conv.bias", "norm.weight", "norm.bias"}, pytest.approx(0.64), 0.0),
        ({"classifier.weight"}, pytest.approx(0.03), 0.3),
        ({"classifier.bias"}, pytest.approx(0.03), 0.0),
    ]


def test_the_output_layer_is_the_classifier_or_the_last_kernel() -> None:
    assert classifier_parameters(Net()) == {"classifier.weight", "classifier.bias"}
    plain = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Linear(2, 3), nn.BatchNorm1d(3))
    assert classifier_parameters(plain) == {"1.weight", "1.bias"}
    assert classifier_parameters(nn.Linear(2, 3)) == {"weight", "bias"}


def test_options_that_do_not_exist_are_refused() -> None:
    with pytest.raises(ValueError, match="'adam'"):
        MuonOptions(rest="adam")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="starts at 1, got 0"):
        MuonOptions(newton_schulz_steps=0)
    with pytest.raises(ValueError, match="muon"):
        create_optimizer(Net(), "moun", learning_rate=0.1)


def test_rms_scale_gives_updates_of_adams_size() -> None:
    """Liu et al. 2025: entries of an orthogonal [rows, columns] matrix have the root mean square 1/sqrt(max)."""
    parameter = nn.Parameter(torch.zeros(30, 200))
    parameter.grad = matrices(1, 30, 200)[0]
    Muon([{"params": [parameter], "lr": 1.0, "orthogonal": True}], MuonOptions(momentum=0.0)).step()
    assert parameter.detach().square().mean().sqrt().item() == pytest.approx(0.2, rel=0.15)
