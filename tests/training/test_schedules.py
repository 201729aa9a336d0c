from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.optim import lr_scheduler

from netloom.training.schedules import SCHEDULES, Schedule

EPOCHS, STEPS = 10, 7


def factors(schedule: Schedule) -> list[float]:
    at = schedule.factor(epochs=EPOCHS, steps_per_epoch=STEPS)
    return [at(step) for step in range(EPOCHS * STEPS)]


def torch_rates(make: object, steps: int) -> list[float]:
    """The rates that one of torch's schedulers gives a parameter with base rate 1."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = make(optimizer)  # type: ignore[operator]
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def test_cosine_is_torchs_cosine_annealing() -> None:
    expected = torch_rates(lambda o: lr_scheduler.CosineAnnealingLR(o, EPOCHS * STEPS, eta_min=0.1), EPOCHS * STEPS)
    assert factors(Schedule("cosine", final_fraction=0.1)) == pytest.approx(expected)


def test_step_is_torchs_step_schedule() -> None:
    expected = torch_rates(lambda o: lr_scheduler.StepLR(o, 3 * STEPS, gamma=0.2), EPOCHS * STEPS)
    assert factors(Schedule("step", step_epochs=3, decay=0.2)) == pytest.approx(expected)


def test_exponential_is_torchs_at_the_epochs() -> None:
    expected = torch_rates(lambda o: lr_scheduler.ExponentialLR(o, 0.8), EPOCHS)
    assert factors(Schedule("exponential", decay=0.8))[::STEPS] == pytest.approx(expected)


def test_one_cycle_rises_and_falls_as_two_cosines() -> None:
    """Smith 2017 with cosine halves: start, peak and end are where they should be."""
    values = factors(Schedule("one_cycle", peak_fraction=0.4, start_fraction=0.1, final_fraction=0.01))
    peak = 4 * STEPS
    assert values[0] == pytest.approx(0.1)
    assert max(values) == values[peak] == pytest.approx(1.0)
    assert values[peak // 2] == pytest.approx((0.1 + 1.0) / 2)
    last = (EPOCHS * STEPS - 1 - peak) / (EPOCHS * STEPS - peak)
    assert values[-1] == pytest.approx(0.01 + 0.99 * (1 + math.cos(math.pi * last)) / 2)


def test_linear_is_torchs_linear_schedule() -> None:
    steps = EPOCHS * STEPS
    expected = torch_rates(lambda o: lr_scheduler.LinearLR(o, 1.0, 0.2, total_iters=steps), steps)
    assert factors(Schedule("linear", final_fraction=0.2)) == pytest.approx(expected)
    assert factors(Schedule("linear")) == pytest.approx([1 - step / steps for step in range(steps)])


def test_triangular_is_numpys_interpolation_between_start_peak_and_end() -> None:
    values = factors(Schedule("triangular", start_fraction=0.2, peak_fraction=0.3, final_fraction=0.07))
    steps = EPOCHS * STEPS
    assert values == pytest.approx(np.interp(range(steps), [0, 0.3 * steps, steps], [0.2, 1.0, 0.07]))


@pytest.mark.parametrize("kind", SCHEDULES)
def test_warmup_is_a_line_in_front_of_any_kind(kind: str) -> None:
    values = factors(Schedule(kind, warmup_epochs=2))
    rise = 2 * STEPS
    short = Schedule(kind).factor(epochs=EPOCHS - 2, steps_per_epoch=STEPS)
    begins_at = 0.04 if kind in ("one_cycle", "triangular") else 1.0
    assert short(0) == pytest.approx(begins_at)
    assert values[:rise] == pytest.approx([begins_at * (i + 1) / rise for i in range(rise)])
    assert values[rise:] == pytest.approx([short(step) for step in range((EPOCHS - 2) * STEPS)])
