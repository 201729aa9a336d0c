"""Optimizers by name, with the field's practice on what decays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

OPTIMIZERS: dict[str, tuple[type[torch.optim.Optimizer], dict[str, Any]]] = {
    "sgd": (torch.optim.SGD, {}),
    "adam": (torch.optim.Adam, {"eps": 1e-7}),
    "adamw": (torch.optim.AdamW, {}),
    "nadam": (torch.optim.NAdam, {"eps": 1e-7}),
    # rho 0.9 as in Hinton's lecture and in Keras; torch's own default of 0.99 averages over ten times as many steps.
    "rmsprop": (torch.optim.RMSprop, {"alpha": 0.9, "eps": 1e-7}),
}
_FUSED = {"sgd", "adam", "adamw"}


def is_weight(name: str, parameter: nn.Parameter) -> bool:
    """True for the kernels that penalties and decay apply to: not for biases, norms and other vectors."""
    return parameter.ndim >= 2 and not name.endswith("bias")


def create_optimizer(
    model: nn.Module,
    name: str,
    *,
    learning_rate: float,
    momentum: float = 0.0,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    rate_for: Callable[[str], float] | None = None,
) -> torch.optim.Optimizer:
    """The optimizer `name` over the trainable parameters of `model`.

    `weight_decay` means what torch's optimizer of that name means by it (decoupled for AdamW, an L2 gradient for the
    others) and applies to weights only, not to biases and norms. `momentum` and `nesterov` are SGD's and RMSprop's.

    Args:
        model: The network.
        name: One of `OPTIMIZERS`.
        learning_rate: Base learning rate of every group.
        momentum: In [0, 1).
        nesterov: Nesterov's momentum; needs a momentum above 0.
        weight_decay: At least 0.
        rate_for: Factor on the learning rate by parameter name, for rates that differ per depth.

    Raises:
        ValueError: The name is unknown, or nothing is trainable.
    """
    if name not in OPTIMIZERS:
        raise ValueError(f"Optimizer {name!r} is unknown: one of {', '.join(OPTIMIZERS)}.")
    kind, options = OPTIMIZERS[name]
    options = dict(options)
    if name == "sgd":
        options |= {"momentum": momentum, "nesterov": nesterov and momentum > 0}
    elif name == "rmsprop":
        options |= {"momentum": momentum}
    if name in _FUSED and not any(p.device.type == "mps" for p in model.parameters()):
        options["fused"] = True
    grouped: dict[tuple[float, float], list[nn.Parameter]] = {}
    for parameter_name, parameter in model.named_parameters():
        if parameter.requires_grad:
            factor = 1.0 if rate_for is None else rate_for(parameter_name)
            decay = weight_decay if is_weight(parameter_name, parameter) else 0.0
            grouped.setdefault((learning_rate * factor, decay), []).append(parameter)
    if not grouped:
        raise ValueError("The model has no trainable parameter.")
    groups = [
        {"params": parameters, "lr": rate, "base_lr": rate, "weight_decay": decay}
        for (rate, decay), parameters in grouped.items()
    ]
    return kind(groups, lr=learning_rate, **options)  # type: ignore[call-arg]
