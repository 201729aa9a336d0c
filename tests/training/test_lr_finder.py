"""The range test on curves whose answers are known, and on a small network."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from netloom.errors import TrainingError
from netloom.runtime import ExecutionPlan
from netloom.training.lr_finder import RangeTest, find_learning_rate
from netloom.training.optim import create_optimizer, rate_factors
from netloom.training.step import TrainingStep
from netloom.workflows.lr_find import describe
from training.helpers import HEAD, batches, network

RATES = np.geomspace(1e-6, 10.0, 300)


def curve(*, fall_at: float = 1e-3, rise_at: float | None = 1e-1, noise: float = 0.0) -> RangeTest:
    """A loss of 2.3 that falls to 0.3 as a logistic function about `fall_at`, and climbs e-fold above `rise_at`."""
    log = np.log(RATES)
    losses = 2.3 - 2.0 / (1 + np.exp(-(log - np.log(fall_at)) / 0.4))
    if rise_at is not None:
        losses = losses + np.expm1(np.clip(log - np.log(rise_at), 0, None))
    losses = losses + noise * np.random.default_rng(0).standard_normal(len(losses))
    return RangeTest(RATES, losses, True)


@pytest.mark.parametrize("noise", [0.0, 0.15])
def test_suggestions_are_where_the_curve_was_made_to_fall_and_to_climb(noise: float) -> None:
    """A logistic function is steepest at its centre; 0.1 of the fall of 2 is climbed at rise_at * 1.2."""
    found = curve(noise=noise)
    assert found.steepest == pytest.approx(1e-3, rel=0.06 if noise == 0 else 0.5)
    assert found.diverging == pytest.approx(0.12, rel=0.25 if noise == 0 else 0.5)
    assert found.suggestions["half_of_diverging"] == pytest.approx(found.diverging / 2)  # type: ignore[operator]


def test_a_curve_that_never_climbs_has_no_diverging_rate_and_a_rising_one_no_suggestion() -> None:
    assert set(curve(rise_at=None).suggestions) == {"steepest"}
    assert RangeTest(RATES, np.linspace(1.0, 2.0, 300), True).suggestions == {}


def test_an_explosion_does_not_move_the_suggestions() -> None:
    calm = curve()
    losses = calm.losses.copy()
    losses[-20:] = 1e12
    assert RangeTest(RATES, losses, True).suggestions == pytest.approx(calm.suggestions, rel=1e-6)


def test_smoothing_is_a_normalized_symmetric_gaussian() -> None:
    """One outlier becomes a Gaussian about its place, here written out in NumPy."""
    losses = np.ones(300)
    losses[0] = losses[150] = 3.0
    sigma = 0.12 * 299 / 7
    bell = np.exp(-0.5 * ((np.arange(300) - 150) / sigma) ** 2)
    found = RangeTest(RATES, losses, False).smoothed[100:200]
    np.testing.assert_allclose(found, (1 + 2 * bell / bell.sum())[100:200], atol=1e-4)


def run(model: nn.Module, *, optimizer: str = "sgd", **options: float) -> RangeTest:
    def make_step(replica: nn.Module) -> TrainingStep:
        plan = ExecutionPlan("cpu", 1, "float32")
        return TrainingStep(replica, [HEAD], create_optimizer(replica, optimizer, learning_rate=0.5), plan=plan, seed=1)

    train = batches(n=45, shuffle=True, augment=True)
    return find_learning_rate(model, train=train, make_step=make_step, **options)  # type: ignore[arg-type]


def test_it_leaves_model_and_generator_as_they_were_and_repeats_itself() -> None:
    model = network()
    before = copy.deepcopy(model.state_dict())
    torch.manual_seed(11)
    expected = torch.rand(2)
    torch.manual_seed(11)
    first, second = run(model, n_steps=60), run(model, n_steps=60)
    assert torch.equal(torch.rand(2), expected)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    np.testing.assert_array_equal(first.losses, second.losses)


def test_rates_rise_by_a_constant_factor_and_groups_keep_their_ratio() -> None:
    seen: list[tuple[float, float]] = []
    model = network()

    def make_step(replica: nn.Module) -> TrainingStep:
        optimizer = create_optimizer(
            replica, "sgd", learning_rate=1.0, rate_for=lambda name: 0.1 if name.startswith("0.") else 1.0
        )
        optimizer.register_step_pre_hook(lambda o, *_: seen.append((o.param_groups[0]["lr"], o.param_groups[1]["lr"])))
        return TrainingStep(replica, [HEAD], optimizer, plan=ExecutionPlan("cpu", 1, "float32"), seed=0)

    train = batches(n=45, shuffle=True)
    found = find_learning_rate(model, train=train, make_step=make_step, min_rate=1e-5, max_rate=1e-2, n_steps=50)
    first, second = np.array(seen[-50:]).T
    np.testing.assert_allclose(second, np.geomspace(1e-5, 1e-2, 50))  # the rate without a factor
    np.testing.assert_allclose(second / first, 10.0)
    np.testing.assert_array_equal(found.rates, np.geomspace(1e-5, 1e-2, 50))
    assert not found.diverged


def test_it_stops_where_the_running_mean_is_four_times_its_best() -> None:
    """The rule of fastai, on a debiased running mean, recomputed from the losses that were recorded."""
    found = run(network(), max_rate=1e6, n_steps=200)
    assert found.diverged
    assert len(found.rates) < 200
    weights = 0.95 ** np.arange(len(found.losses))[::-1]
    means = [np.average(found.losses[: i + 1], weights=weights[-i - 1 :]) for i in range(len(found.losses))]
    over = means > 4 * np.minimum.accumulate(means)
    assert over[-1]
    assert not over[:-1].any()


def test_a_time_limit_means_fewer_steps_but_never_below_fifty() -> None:
    hurried = run(network(), max_rate=1e-3, max_seconds=1e-6)
    assert len(hurried.rates) == 50
    assert hurried.cut is not None
    assert hurried.cut[0] == 50 < hurried.cut[1]
    assert "50 of the" in " ".join(describe(hurried))
    unhurried = run(network(), max_rate=1e-3, max_seconds=math.inf)
    assert unhurried.cut is None
    assert "asked for" not in " ".join(describe(unhurried))
    with pytest.raises(TrainingError, match="seconds has no steps"):
        run(network(), max_seconds=0)


def test_rates_and_losses_that_allow_no_test_are_told() -> None:
    with pytest.raises(TrainingError, match="min_rate < max_rate"):
        run(network(), min_rate=1.0, max_rate=0.1)
    with pytest.raises(TrainingError, match="at least 50"):
        run(network(), n_steps=5)
    with pytest.raises(TrainingError, match="Start lower"):
        run(network(), min_rate=1e30, max_rate=1e31)


def test_the_rate_that_rises_is_without_the_factor_of_the_first_group() -> None:
    """A frozen network trains its classifier alone: with ten times its rate a loss is met at a tenth of the rate."""

    def losses(factor: float, lowest: float) -> np.ndarray:
        model = network()
        for parameter in list(model.parameters())[:-2]:
            parameter.requires_grad_(requires_grad=False)

        def make_step(copied: nn.Module) -> TrainingStep:
            factors = rate_factors(copied, classifier=factor)
            optimizer = create_optimizer(copied, "sgd", learning_rate=0.3, rate_for=factors)
            return TrainingStep(copied, [HEAD], optimizer, plan=ExecutionPlan("cpu", 1, "float32"), seed=1)

        options = {"min_rate": lowest, "max_rate": 100 * lowest, "n_steps": 50}
        found = find_learning_rate(model, train=batches(shuffle=True), make_step=make_step, **options)  # type: ignore[arg-type]
        assert found.rates[0] == pytest.approx(lowest)
        return found.losses

    np.testing.assert_allclose(losses(10.0, 1e-4), losses(1.0, 1e-3), rtol=1e-4)
