"""Optimizers, gradients for them, and what changes how they take their steps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from netloom.training.optim import create_optimizer

SETTINGS: list[dict[str, Any]] = [
    {"name": "sgd"},
    {"name": "sgd", "momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
    {"name": "adam", "weight_decay": 0.1},
    {"name": "adamw", "weight_decay": 0.1},
    {"name": "nadam"},
    {"name": "nadam", "weight_decay": 0.1},
    {"name": "rmsprop"},
    {"name": "rmsprop", "momentum": 0.9, "weight_decay": 0.1},
]


def set_gradients(model: nn.Module, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for parameter in model.parameters():
        parameter.grad = torch.empty_like(parameter).copy_(torch.randn(parameter.shape, generator=generator))


def optimizer_of(model: nn.Module, **options: Any) -> torch.optim.Optimizer:
    factors = {"classifier": 3.0}
    return create_optimizer(
        model, learning_rate=0.01, rate_for=lambda name: factors.get(name.split(".")[0], 1.0), **options
    )


def amsgrad(optimizer: torch.optim.Optimizer) -> None:
    optimizer.param_groups[0]["amsgrad"] = True


def listener(optimizer: torch.optim.Optimizer) -> None:
    optimizer.register_step_post_hook(lambda *_: None)


def count_own_steps(monkeypatch: pytest.MonkeyPatch, optimizer: torch.optim.Optimizer) -> list[int]:
    """A number for each step that an optimizer of this kind takes by itself."""
    kind = type(optimizer)
    own, calls = kind.step, []

    def counted(self: torch.optim.Optimizer, closure: Any = None) -> Any:
        calls.append(id(self))
        return own(self, closure)

    monkeypatch.setattr(kind, "step", counted)
    return calls
