"""An optimizer's update on the CPU: large parameters by several threads, small ones all together.

While shards are trained, an operation of torch has one thread (`ExecutionPlan.threads_between_steps`), so that the
update of a network with large dense layers would have three processors of four wait: each thread takes a piece of
every large parameter. What torch has no fused kernel for (RMSprop, NAdam) goes there over numbers that stay in the
processor's cache, in TorchScript, whose interpreter runs without Python's lock. Small networks, where Python takes more
time than the numbers, are updated by one operation after the other on all parameters at once, or by the fused kernel
without what torch's optimizers do around it. In compiled steps machine code of ours does it (`compiled_update.py`).
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from netloom.training.compiled_update import CompiledUpdate
from netloom.training.crew import FLAT, Crew, flat_views, pieces_of
from netloom.training.muon import Muon
from netloom.training.optimizer_state import (
    ADAM_AVERAGES,
    Group,
    State,
    averages_of,
    nadam_momentum,
    nadam_rates,
    state_of,
)

# Of so many numbers a parameter is large.
_LARGE = 2**15
# With so many numbers in all of these it is worth waking the other threads, which takes a few tenths of a millisecond.
_WORTH_SHARING = 2**20
# Numbers that a thread takes through all operations of an update: half a megabyte of each tensor.
_NUMBERS_AT_ONCE = 2**17
# What no recipe sets, and the updates below do not know.
_OTHER_FORMULAS = (
    "amsgrad",
    "centered",
    "maximize",
    "capturable",
    "differentiable",
    "dampening",
    "decoupled_weight_decay",
)

# The module, which `torch.optim` does not show, with the hooks on all optimizers.
_TORCH_OPTIMIZER = importlib.import_module("torch.optim.optimizer")

_SCRIPTS = """
def rmsprop(parameters: List[Tensor], gradients: List[Tensor], squares: List[Tensor], momenta: List[Tensor], size: int,
            rate: float, alpha: float, eps: float, weight_decay: float, momentum: float) -> None:
  for i in range(len(parameters)):
    for start in range(0, parameters[i].numel(), size):
      parameter = parameters[i][start : start + size]
      gradient = gradients[i][start : start + size]
      square = squares[i][start : start + size]
      if weight_decay != 0.0:
        gradient = gradient.add(parameter, alpha=weight_decay)
      square.mul_(alpha).addcmul_(gradient, gradient, value=1 - alpha)
      root = square.sqrt().add_(eps)
      if momentum > 0.0:
        buffer = momenta[i][start : start + size]
        buffer.mul_(momentum).addcdiv_(gradient, root)
        parameter.add_(buffer, alpha=-rate)
      else:
        parameter.addcdiv_(gradient, root, value=-rate)

def nadam(parameters: List[Tensor], gradients: List[Tensor], means: List[Tensor], squares: List[Tensor], size: int,
          corrections: List[float], of_gradients: List[float], of_means: List[float],
          beta1: float, beta2: float, eps: float, weight_decay: float) -> None:
  for i in range(len(parameters)):
    for start in range(0, parameters[i].numel(), size):
      parameter = parameters[i][start : start + size]
      gradient = gradients[i][start : start + size]
      mean, square = means[i][start : start + size], squares[i][start : start + size]
      if weight_decay != 0.0:
        gradient = gradient.add(parameter, alpha=weight_decay)
      mean.lerp_(gradient, 1 - beta1)
      square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
      root = square.div(corrections[i]).sqrt_().add_(eps)
      parameter.addcdiv_(gradient, root, value=of_gradients[i])
      parameter.addcdiv_(mean, root, value=of_means[i])
"""


_Together = Callable[[list[torch.Tensor], list[torch.Tensor], list[State], Group], None]


@functools.cache
def _scripts() -> Any:
    return torch.jit.CompilationUnit(_SCRIPTS)


@dataclass(frozen=True)
class _Piece:
    """Of one parameter what one thread updates, as flat views; and the whole parameter's state, for its counts."""

    parameter: torch.Tensor
    gradient: torch.Tensor
    averages: dict[str, torch.Tensor]
    state: State

    def cut(self, n_pieces: int) -> list[_Piece]:
        return [
            _Piece(self.parameter[p], self.gradient[p], {n: a[p] for n, a in self.averages.items()}, self.state)
            for p in pieces_of(len(self.parameter), n_pieces, unit=FLAT)
        ]


def _count_step(state: State, group: Group) -> None:
    if "step" in state:
        state["step"] += 1
    if "mu_product" in state:
        state["mu_product"] *= nadam_momentum(group, state["step"].item())


def _nadam_rates(state: State, group: Group) -> tuple[float, float, float]:
    return nadam_rates(state["step"].item(), state["mu_product"].item(), group)


def _fused_sgd(
    parameters: list[torch.Tensor], gradients: list[torch.Tensor], states: list[State], group: Group
) -> None:
    torch._fused_sgd_(
        parameters,
        gradients,
        [state["momentum_buffer"] for state in states if group["momentum"]],
        lr=group["lr"],
        momentum=group["momentum"],
        dampening=0.0,
        nesterov=group["nesterov"],
        weight_decay=group["weight_decay"],
        maximize=False,
        is_first_step=False,  # on a momentum of zeros it would give the same
    )


def _fused_adam(
    parameters: list[torch.Tensor],
    gradients: list[torch.Tensor],
    states: list[State],
    group: Group,
    *,
    kernel: Callable[..., None],
) -> None:
    kernel(
        parameters,
        gradients,
        [state["exp_avg"] for state in states],
        [state["exp_avg_sq"] for state in states],
        [],
        [state["step"] for state in states],
        lr=group["lr"],
        beta1=group["betas"][0],
        beta2=group["betas"][1],
        weight_decay=group["weight_decay"],
        eps=group["eps"],
        amsgrad=False,
        maximize=False,
    )


def _in_pieces(together: _Together, pieces: list[_Piece], group: Group) -> None:
    states = [{**piece.state, **piece.averages} for piece in pieces]
    together([piece.parameter for piece in pieces], [piece.gradient for piece in pieces], states, group)


def _rmsprop(pieces: list[_Piece], group: Group) -> None:
    _scripts().rmsprop(
        [piece.parameter for piece in pieces],
        [piece.gradient for piece in pieces],
        [piece.averages["square_avg"] for piece in pieces],
        [piece.averages["momentum_buffer"] for piece in pieces if group["momentum"] > 0],
        _NUMBERS_AT_ONCE,
        *(float(group[key]) for key in ("lr", "alpha", "eps", "weight_decay", "momentum")),
    )


def _nadam(pieces: list[_Piece], group: Group) -> None:
    corrections, of_gradients, of_means = zip(*(_nadam_rates(piece.state, group) for piece in pieces), strict=True)
    _scripts().nadam(
        [piece.parameter for piece in pieces],
        [piece.gradient for piece in pieces],
        [piece.averages["exp_avg"] for piece in pieces],
        [piece.averages["exp_avg_sq"] for piece in pieces],
        _NUMBERS_AT_ONCE,
        list(corrections),
        list(of_gradients),
        list(of_means),
        *(float(value) for value in (*group["betas"], group["eps"], group["weight_decay"])),
    )


def _rmsprop_together(
    parameters: list[torch.Tensor], gradients: list[torch.Tensor], states: list[State], group: Group
) -> None:
    squares = [state["square_avg"] for state in states]
    if group["weight_decay"]:
        gradients = list(torch._foreach_add(gradients, parameters, alpha=group["weight_decay"]))
    torch._foreach_mul_(squares, group["alpha"])
    torch._foreach_addcmul_(squares, gradients, gradients, 1 - group["alpha"])
    roots = torch._foreach_sqrt(squares)
    torch._foreach_add_(roots, group["eps"])
    if group["momentum"]:
        momenta = [state["momentum_buffer"] for state in states]
        torch._foreach_mul_(momenta, group["momentum"])
        torch._foreach_addcdiv_(momenta, gradients, roots)
        torch._foreach_add_(parameters, momenta, alpha=-group["lr"])
    else:
        torch._foreach_addcdiv_(parameters, gradients, roots, -group["lr"])


def _nadam_together(
    parameters: list[torch.Tensor], gradients: list[torch.Tensor], states: list[State], group: Group
) -> None:
    means, squares = ([state[name] for state in states] for name in ADAM_AVERAGES)
    corrections, of_gradients, of_means = zip(*(_nadam_rates(state, group) for state in states), strict=True)
    beta1, beta2 = group["betas"]
    if group["weight_decay"]:
        gradients = list(torch._foreach_add(gradients, parameters, alpha=group["weight_decay"]))
    torch._foreach_lerp_(means, gradients, 1 - beta1)
    torch._foreach_mul_(squares, beta2)
    torch._foreach_addcmul_(squares, gradients, gradients, 1 - beta2)
    roots = torch._foreach_div(squares, corrections)
    torch._foreach_sqrt_(roots)
    torch._foreach_add_(roots, group["eps"])
    torch._foreach_addcdiv_(parameters, gradients, roots, of_gradients)
    torch._foreach_addcdiv_(parameters, means, roots, of_means)


@dataclass(frozen=True)
class _Kind:
    """How parameters of one group, whose steps are counted, change.

    Attributes:
        together: Of whole parameters, in operations on all of them at once.
        update: Of flat pieces.
        is_fused: Whether torch has one kernel for all of it, which needs no room for what lies between.
    """

    together: _Together
    update: Callable[[list[_Piece], Group], None]
    is_fused: bool = False


def _fused(together: _Together) -> _Kind:
    """Where torch has a kernel for all that is to be done to a number."""
    return _Kind(together, functools.partial(_in_pieces, together), is_fused=True)


_KINDS: dict[type[torch.optim.Optimizer], _Kind] = {
    torch.optim.SGD: _fused(_fused_sgd),
    torch.optim.Adam: _fused(functools.partial(_fused_adam, kernel=torch._fused_adam_)),
    torch.optim.AdamW: _fused(functools.partial(_fused_adam, kernel=torch._fused_adamw_)),
    torch.optim.NAdam: _Kind(_nadam_together, _nadam),
    torch.optim.RMSprop: _Kind(_rmsprop_together, _rmsprop),
}


class FasterUpdate:
    """Takes an optimizer's steps, to the same numbers as its own `step`, and in the state that it keeps.

    Where its formula is not known here, or somebody listens to its steps, it takes them itself; and so it does with
    what is to be divided and does not lie in memory without gaps.

    Args:
        optimizer: Over parameters on the CPU.
        crew: Threads that divide what is large; None where torch's own do.
        compiled_threads: Of updates in machine code of ours, which are taken where they can be; 0 for none of these.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, crew: Crew | None, *, compiled_threads: int = 0) -> None:
        self._optimizer = optimizer
        self._compiled = CompiledUpdate(optimizer, compiled_threads) if compiled_threads else None
        self._crew = crew if crew is not None and crew.n_threads > 1 else None

    @torch.no_grad()
    def __call__(self) -> None:
        """Take one step with the gradients that are there."""
        optimizer = self._optimizer
        if isinstance(optimizer, Muon):
            optimizer.step(crew=self._crew)
            return
        kind = _KINDS.get(type(optimizer))
        if kind is None or not self._is_plain():
            optimizer.step()
            return
        if self._compiled is not None and self._compiled():
            return
        n_large = sum(n for group in optimizer.param_groups for p in group["params"] if (n := p.numel()) >= _LARGE)
        if n_large >= _WORTH_SHARING and self._crew is not None:
            self._divide(kind, self._crew)
        elif n_large < _WORTH_SHARING or (self._crew is None and kind.is_fused):
            self._update_together(kind)
        else:
            optimizer.step()

    def _is_plain(self) -> bool:
        optimizer, groups = self._optimizer, self._optimizer.param_groups
        if "step" in vars(optimizer) or any(getattr(*place, None) for place in _places_of_hooks(optimizer)):
            return False
        # By which AdamW is told from Adam, whose formula it is elsewhere too.
        known = {"decoupled_weight_decay"} if type(optimizer) is torch.optim.AdamW else set()
        if any(group.get(name) for group in groups for name in _OTHER_FORMULAS if name not in known):
            return False
        return all(group.get("fused", True) for group in groups)

    def _update_together(self, kind: _Kind) -> None:
        taken = []
        for group in self._optimizer.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if any(p.dtype != torch.float32 or p.grad.layout != torch.strided for p in parameters):
                self._optimizer.step()
                return
            if parameters:
                taken.append((parameters, group))
        for parameters, group in taken:
            states = [state_of(self._optimizer, parameter, group) for parameter in parameters]
            for state in states:
                _count_step(state, group)
            kind.together(parameters, [p.grad for p in parameters], states, group)

    def _divide(self, kind: _Kind, crew: Crew) -> None:
        n_pieces = crew.n_threads
        parts: list[list[tuple[list[_Piece], Group]]] = [[] for _ in range(n_pieces)]
        gradients = []
        for group in self._optimizer.param_groups:
            cut = []
            for parameter in group["params"]:
                if parameter.numel() >= _LARGE and (whole := self._whole(parameter, group)) is not None:
                    gradients.append((parameter, parameter.grad))
                    cut.append(whole.cut(n_pieces))
            for part, pieces in zip(parts, zip(*cut, strict=True), strict=False):
                part.append((list(pieces), group))

        def update(part: list[tuple[list[_Piece], Group]], *, first: bool) -> None:
            if first:
                self._optimizer.step()
            for pieces, group in part:
                kind.update(pieces, group)

        for parameter, _ in gradients:  # so that the optimizer leaves it alone
            parameter.grad = None
        try:
            crew.share([functools.partial(update, part, first=part is parts[0]) for part in parts])
        finally:
            for parameter, gradient in gradients:
                parameter.grad = gradient

    def _whole(self, parameter: torch.Tensor, group: Group) -> _Piece | None:
        """All of the parameter, its state moved on to the present step; None if it is to be left to the optimizer."""
        if parameter.grad is None or parameter.dtype != torch.float32:
            return None
        state = state_of(self._optimizer, parameter, group)
        averages = averages_of(self._optimizer, group)
        flat = flat_views([parameter, parameter.grad, *(state[name] for name in averages)])
        if flat is None:
            return None
        _count_step(state, group)
        mine, gradient, *kept = flat
        return _Piece(mine, gradient, dict(zip(averages, kept, strict=True)), state)


def _places_of_hooks(optimizer: torch.optim.Optimizer) -> list[tuple[object, str]]:
    places = [(optimizer, f"_optimizer_step_{when}_hooks") for when in ("pre", "post")]
    return places + [(_TORCH_OPTIMIZER, f"_global_optimizer_{when}_hooks") for when in ("pre", "post")]
