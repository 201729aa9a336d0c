"""What torch's optimizers keep for a parameter from step to step, for those who take their steps in their place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

Group = dict[str, Any]
State = dict[str, torch.Tensor]

ADAM_AVERAGES = ("exp_avg", "exp_avg_sq")
_STEP = {"step": 0.0}


@dataclass(frozen=True)
class Kept:
    """Names of what is kept.

    Attributes:
        averages: For each number of the parameter, at first zero.
        counts: For the parameter, with their first values.
    """

    averages: tuple[str, ...]
    counts: dict[str, float]


KEPT: dict[type[torch.optim.Optimizer], Kept] = {
    torch.optim.SGD: Kept(("momentum_buffer",), {}),
    torch.optim.Adam: Kept(ADAM_AVERAGES, _STEP),
    torch.optim.AdamW: Kept(ADAM_AVERAGES, _STEP),
    torch.optim.NAdam: Kept(ADAM_AVERAGES, {**_STEP, "mu_product": 1.0}),
    torch.optim.RMSprop: Kept(("square_avg", "momentum_buffer"), _STEP),
}


def averages_of(optimizer: torch.optim.Optimizer, group: Group) -> list[str]:
    """Names of what is kept for each number of this group's parameters."""
    return [name for name in KEPT[type(optimizer)].averages if name != "momentum_buffer" or group["momentum"]]


def state_of(optimizer: torch.optim.Optimizer, parameter: torch.Tensor, group: Group) -> State:
    """A parameter's state, begun where it has none."""
    state: State = optimizer.state[parameter]
    for name in averages_of(optimizer, group):
        if state.get(name) is None:
            state[name] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
    for name, value in KEPT[type(optimizer)].counts.items():
        if name not in state:
            state[name] = torch.tensor(value)
    return state


def nadam_momentum(group: Group, step: float) -> float:
    """Of this step (Dozat, "Incorporating Nesterov momentum into Adam", 2016)."""
    return float(group["betas"][0] * (1.0 - 0.5 * (0.96 ** (step * group["momentum_decay"]))))


def nadam_rates(step: float, product: float, group: Group) -> tuple[float, float, float]:
    """By what squares are divided, and with what gradients and means are added.

    Args:
        step: Number of the step, from 1 on.
        product: Of the momenta of all steps so far, this one's included.
        group: Of the parameter.
    """
    rate, (_, beta2) = group["lr"], group["betas"]
    now, then = nadam_momentum(group, step), nadam_momentum(group, step + 1)
    return 1 - beta2**step, -rate * (1.0 - now) / (1.0 - product), -rate * then / (1.0 - product * then)
