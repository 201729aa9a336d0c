"""Optimizers by name, with the field's practice on what decays."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from netloom.compiler_import import optimizers_without_compiler
from netloom.training.freezing import Freezing
from netloom.training.muon import Muon, MuonOptions

MUON = "muon"
OPTIMIZERS: dict[str, tuple[type[torch.optim.Optimizer], dict[str, Any]]] = {
    "sgd": (torch.optim.SGD, {}),
    "adam": (torch.optim.Adam, {"eps": 1e-7}),
    "adamw": (torch.optim.AdamW, {}),
    "nadam": (torch.optim.NAdam, {"eps": 1e-7}),
    # rho 0.9 as in Hinton's lecture and in Keras; torch's own default of 0.99 averages over ten times as many steps.
    "rmsprop": (torch.optim.RMSprop, {"alpha": 0.9, "eps": 1e-7}),
}
_FUSED = {"sgd", "adam", "adamw"}


def kernel_names(model: nn.Module) -> frozenset[str]:
    """Names of the kernels that penalties, limits and decay apply to: not biases, norms and other vectors.

    Neither are tables such as position embeddings and class tokens, as far as the network says so: by
    `no_weight_decay()` of any of its modules, that module's names or patterns of them, as timm's networks have it.
    """
    patterns = [
        f"{place}.{pattern}" if place else pattern
        for place, module in model.named_modules()
        if callable(tables := getattr(module, "no_weight_decay", None))
        for pattern in tables()
    ]
    exempt = re.compile("|".join(map(fnmatch.translate, patterns)) or "(?!)")
    return frozenset(n for n, p in model.named_parameters() if not _is_vector(n, p) and not exempt.match(n))


def _is_vector(name: str, parameter: nn.Parameter) -> bool:
    return parameter.ndim < 2 or name.endswith("bias")


def classifier_parameters(model: nn.Module) -> frozenset[str]:
    """Names of the output layer's parameters: of `classifier`, or of the last module that has a kernel of its own."""
    place = "classifier" if isinstance(getattr(model, "classifier", None), nn.Module) else None
    if place is None:
        owners = [n for n, m in model.named_modules() if any(p.ndim >= 2 for p in m.parameters(recurse=False))]
        place = owners[-1] if owners else ""
    prefix = f"{place}." if place else ""
    return frozenset(name for name, _ in model.named_parameters() if name.startswith(prefix))


def rate_factors(
    model: nn.Module,
    *,
    bias: float = 1.0,
    classifier: float = 1.0,
    depth: float = 1.0,
    new: float = 1.0,
    freezing: Freezing | None = None,
) -> Callable[[str], float]:
    """Factors on the learning rate by parameter name: `classifier` for the output layer, `bias` for biases and norms.

    Biases bear far higher rates than kernels where those are normalized: 64 times in Jordan, "94% on CIFAR-10 in 3.29
    seconds on a single GPU", 2024. With `freezing` that is multiplied by `depth` for each stage from the head down
    (Howard and Ruder, "Universal language model fine-tuning for text classification", 2018, section 3.2), and by `new`
    for the head and all that is drawn anew, in front of which the rest is pretrained.
    """
    last = classifier_parameters(model)
    factors = {n: classifier if n in last else bias if _is_vector(n, p) else 1.0 for n, p in model.named_parameters()}
    if freezing is None:
        return factors.__getitem__
    depth_of = freezing.depth_of()
    return lambda name: factors[name] * (depth ** depth_of(name) if depth_of(name) else new)


def create_optimizer(
    model: nn.Module,
    name: str,
    *,
    learning_rate: float,
    momentum: float = 0.0,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    rate_for: Callable[[str], float] | None = None,
    muon: MuonOptions | None = None,
    rest_learning_rate: float | None = None,
    freezing: Freezing | None = None,
) -> torch.optim.Optimizer:
    """The optimizer `name` over the trainable parameters of `model`.

    `weight_decay` means what torch's optimizer of that name means by it (decoupled for AdamW, an L2 gradient for the
    others) and applies to weights only, not to biases and norms. `momentum` and `nesterov` are SGD's and RMSprop's;
    Muon has its own. `muon` is for kernels; biases, norms and the classifier are left to another rule.

    Parameters that train later, by `freezing`, are the optimizer's from the beginning, in groups of their stage's own.
    As long as they have no gradient nothing happens to them, no decay either; their momentum, averages and count of
    steps start with their first gradient, so that averages are freed of their bias as at the start of a training. The
    order of groups does not depend on when they join, and neither does, therefore, what a checkpoint names.

    Args:
        model: The network.
        name: One of `OPTIMIZERS`, or `muon`.
        learning_rate: Base learning rate of every group.
        momentum: In [0, 1).
        nesterov: Nesterov's momentum; needs a momentum above 0.
        weight_decay: At least 0.
        rate_for: Factor on the learning rate by parameter name, for rates that differ per depth.
        muon: For `muon`, how kernels and the rest are updated.
        rest_learning_rate: For `muon`, the base rate of what is no kernel; None for `learning_rate`.
        freezing: Which parameters train when; each group's `joins` is the epoch of its first step.

    Raises:
        ValueError: The name is unknown, or nothing is trainable.
    """
    if name != MUON and name not in OPTIMIZERS:
        raise ValueError(f"Optimizer {name!r} is unknown: one of {', '.join([*OPTIMIZERS, MUON])}.")
    kernels = kernel_names(model)
    orthogonal = kernels - classifier_parameters(model) if name == MUON else frozenset()
    rest_rate = learning_rate if rest_learning_rate is None or name != MUON else rest_learning_rate
    joins_of, depth_of = (freezing.joins_of(), freezing.depth_of()) if freezing else (_at_once, _at_once)
    grouped: dict[tuple[bool, int, int, float, float, float], list[nn.Parameter]] = {}
    for parameter_name, parameter in model.named_parameters():
        if parameter.requires_grad:
            own = parameter_name in orthogonal
            factor = 1.0 if rate_for is None else rate_for(parameter_name)
            decay = weight_decay if parameter_name in kernels else 0.0
            rate = (learning_rate if own else rest_rate) * factor
            key = (own, depth_of(parameter_name), joins_of(parameter_name), rate, decay, factor)
            grouped.setdefault(key, []).append(parameter)
    if not grouped:
        raise ValueError("The model has no trainable parameter.")
    # The first group's rate is the one that is reported and searched, without its factor: see `learning_rate_of`.
    groups = [
        {
            "params": parameters,
            "lr": rate,
            "base_lr": rate,
            "rate_factor": factor,
            "weight_decay": decay,
            "orthogonal": own,
            "joins": joins,
        }
        for (own, _, joins, rate, decay, factor), parameters in sorted(
            grouped.items(), key=lambda item: (not item[0][0], item[0][1])
        )
    ]
    optimizers_without_compiler()
    if name == MUON:
        return Muon(groups, muon or MuonOptions())
    for group in groups:
        del group["orthogonal"]
    kind, options = OPTIMIZERS[name]
    options = dict(options)
    if name == "sgd":
        options |= {"momentum": momentum, "nesterov": nesterov and momentum > 0}
    elif name == "rmsprop":
        options |= {"momentum": momentum}
    if name in _FUSED and not any(p.device.type == "mps" for p in model.parameters()):
        options["fused"] = True
    return kind(groups, lr=learning_rate, **options)  # type: ignore[call-arg]


def learning_rate_of(optimizer: torch.optim.Optimizer, key: str = "lr") -> float:
    """The rate that people mean: the first group's, of kernels near the output, without the factor that group has.

    Args:
        optimizer: From `create_optimizer`, or of a user's own, whose groups have no factors.
        key: `lr` for the present rate, `base_lr` for that in front of schedules.
    """
    group = optimizer.param_groups[0]
    return float(group[key] / group.get("rate_factor", 1.0))


def _at_once(_name: str) -> int:
    """Without freezing all parameters train from the first epoch on, and are of one depth."""
    return 0
