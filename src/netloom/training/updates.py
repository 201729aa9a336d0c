"""An optimizer's update of large parameters: by several threads, each with a piece of every one.

While shards are trained, an operation of torch has one thread (`ExecutionPlan.threads_between_steps`), so that the
update of a network with large dense layers would have three processors of four wait. And what torch has no fused
kernel for (RMSprop, NAdam) reads and writes memory a dozen times where it is done operation by operation; here the
operations go over numbers that stay in the processor's cache, in TorchScript, whose interpreter runs without Python's
lock.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from netloom.training.crew import FLAT, Crew, flat_views, pieces_of
from netloom.training.muon import Muon

# Of so many numbers a parameter is taken out of the optimizer's own hands.
_LARGE = 2**15
# With so many numbers in all of these it is worth waking the other threads, which takes a few tenths of a millisecond.
_WORTH_SHARING = 2**21
# Numbers that a thread takes through all operations of an update: an eighth of a megabyte of each tensor.
_NUMBERS_AT_ONCE = 2**15
# What no recipe sets, and the updates below do not know.
_OTHER_FORMULAS = ("amsgrad", "centered", "maximize", "capturable", "differentiable", "decoupled_weight_decay")

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


@functools.cache
def _scripts() -> Any:
    return torch.jit.CompilationUnit(_SCRIPTS)


@dataclass(frozen=True)
class _Piece:
    """Of one parameter what one thread updates: flat views, and the state's numbers, which all pieces share."""

    parameter: torch.Tensor
    gradient: torch.Tensor
    state: dict[str, torch.Tensor]


_Group = dict[str, Any]
_Members = tuple[_Group, list[torch.Tensor]]
_State = dict[str, torch.Tensor]


def _count_step(state: _State, group: _Group) -> None:
    state["step"] += 1
    if "mu_product" in state:
        state["mu_product"] *= _nadam_momentum(group, state["step"].item())


def _nadam_momentum(group: _Group, step: float) -> float:
    return float(group["betas"][0] * (1.0 - 0.5 * (0.96 ** (step * group["momentum_decay"]))))


def _fused_sgd(pieces: list[_Piece], group: _Group) -> None:
    torch._fused_sgd_(
        [piece.parameter for piece in pieces],
        [piece.gradient for piece in pieces],
        [piece.state["momentum_buffer"] for piece in pieces if group["momentum"]],
        lr=group["lr"],
        momentum=group["momentum"],
        dampening=group["dampening"],
        nesterov=group["nesterov"],
        weight_decay=group["weight_decay"],
        maximize=False,
        is_first_step=False,  # on a momentum of zeros it would give the same
    )


def _fused_adam(pieces: list[_Piece], group: _Group, *, kernel: Callable[..., None]) -> None:
    kernel(
        [piece.parameter for piece in pieces],
        [piece.gradient for piece in pieces],
        [piece.state["exp_avg"] for piece in pieces],
        [piece.state["exp_avg_sq"] for piece in pieces],
        [],
        [piece.state["step"] for piece in pieces],
        lr=group["lr"],
        beta1=group["betas"][0],
        beta2=group["betas"][1],
        weight_decay=group["weight_decay"],
        eps=group["eps"],
        amsgrad=False,
        maximize=False,
    )


def _rmsprop(pieces: list[_Piece], group: _Group) -> None:
    _scripts().rmsprop(
        [piece.parameter for piece in pieces],
        [piece.gradient for piece in pieces],
        [piece.state["square_avg"] for piece in pieces],
        [piece.state["momentum_buffer"] for piece in pieces if group["momentum"] > 0],
        _NUMBERS_AT_ONCE,
        *(float(group[key]) for key in ("lr", "alpha", "eps", "weight_decay", "momentum")),
    )


def _nadam(pieces: list[_Piece], group: _Group) -> None:
    rate, (beta1, beta2) = group["lr"], group["betas"]
    corrections, of_gradients, of_means = [], [], []
    for piece in pieces:
        step, product = piece.state["step"].item(), piece.state["mu_product"].item()
        now, then = _nadam_momentum(group, step), _nadam_momentum(group, step + 1)
        corrections.append(1 - beta2**step)
        of_gradients.append(-rate * (1.0 - now) / (1.0 - product))
        of_means.append(-rate * then / (1.0 - product * then))
    _scripts().nadam(
        [piece.parameter for piece in pieces],
        [piece.gradient for piece in pieces],
        [piece.state["exp_avg"] for piece in pieces],
        [piece.state["exp_avg_sq"] for piece in pieces],
        _NUMBERS_AT_ONCE,
        corrections,
        of_gradients,
        of_means,
        *(float(value) for value in (beta1, beta2, group["eps"], group["weight_decay"])),
    )


@dataclass(frozen=True)
class _Kind:
    """What torch's optimizer keeps for a parameter, and how pieces are updated.

    Attributes:
        update: Updates pieces of parameters of one group, whose steps have been counted.
        averages: Names of what is kept for each number, at first zero.
        counts: Names of what is kept for the parameter, with their first values.
        is_fused: Whether the update goes through memory once anyhow, so that one thread gains nothing here.
    """

    update: Callable[[list[_Piece], _Group], None]
    averages: tuple[str, ...]
    counts: dict[str, float]
    is_fused: bool


_STEP = {"step": 0.0}
_ADAM = ("exp_avg", "exp_avg_sq")
_KINDS: dict[type[torch.optim.Optimizer], _Kind] = {
    torch.optim.SGD: _Kind(_fused_sgd, ("momentum_buffer",), {}, is_fused=True),
    torch.optim.Adam: _Kind(functools.partial(_fused_adam, kernel=torch._fused_adam_), _ADAM, _STEP, is_fused=True),
    torch.optim.AdamW: _Kind(functools.partial(_fused_adam, kernel=torch._fused_adamw_), _ADAM, _STEP, is_fused=True),
    torch.optim.NAdam: _Kind(_nadam, _ADAM, {**_STEP, "mu_product": 1.0}, is_fused=False),
    torch.optim.RMSprop: _Kind(_rmsprop, ("square_avg", "momentum_buffer"), _STEP, is_fused=False),
}


class DividedUpdate:
    """Takes an optimizer's steps, to the same numbers as its own `step`, and in the state that it keeps.

    Small parameters and those that do not lie in memory without gaps are left to the optimizer itself, and so is
    everything where its formula is not known here, or somebody listens to its steps.

    Args:
        optimizer: Over parameters on the CPU.
        crew: Who does it.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, crew: Crew) -> None:
        self._optimizer, self._crew = optimizer, crew

    @torch.no_grad()
    def __call__(self) -> None:
        """Take one step with the gradients that are there."""
        optimizer = self._optimizer
        if isinstance(optimizer, Muon):
            optimizer.step(crew=self._crew)
            return
        kind = _KINDS.get(type(optimizer))
        large = [(group, [p for p in group["params"] if p.numel() >= _LARGE]) for group in optimizer.param_groups]
        n_numbers = sum(p.numel() for _, members in large for p in members)
        n_pieces = self._crew.n_threads if n_numbers >= _WORTH_SHARING else 1
        if kind is None or not n_numbers or (kind.is_fused and n_pieces == 1) or not self._is_plain(kind):
            optimizer.step()
        else:
            self._divide(kind, [(group, list(filter(self._lies_well, members))) for group, members in large], n_pieces)

    def _is_plain(self, kind: _Kind) -> bool:
        optimizer, groups = self._optimizer, self._optimizer.param_groups
        if "step" in vars(optimizer) or optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks:
            return False
        if any(group.get(name) for group in groups for name in _OTHER_FORMULAS):
            return False
        return not kind.is_fused or all(group["fused"] for group in groups)

    def _lies_well(self, parameter: torch.Tensor) -> bool:
        if parameter.grad is None:
            return False
        state = [value for value in self._optimizer.state.get(parameter, {}).values() if value is not None]
        tensors = [parameter, parameter.grad, *(value for value in state if value.ndim)]
        return all(tensor.dtype == torch.float32 for tensor in tensors) and flat_views(tensors) is not None

    def _divide(self, kind: _Kind, large: list[_Members], n_pieces: int) -> None:
        parts: list[list[tuple[list[_Piece], _Group]]] = [[] for _ in range(n_pieces)]
        for group, members in large:
            cut = [self._cut(parameter, kind, group, n_pieces) for parameter in members]
            for part, pieces in zip(parts, zip(*cut, strict=True), strict=False):
                part.append((list(pieces), group))
        gradients = [(parameter, parameter.grad) for _, members in large for parameter in members]

        def update(part: list[tuple[list[_Piece], _Group]], *, first: bool) -> None:
            if first:
                self._optimizer.step()
            for pieces, group in part:
                kind.update(pieces, group)

        for parameter, _ in gradients:  # so that the optimizer leaves it alone
            parameter.grad = None
        try:
            self._crew.share([functools.partial(update, part, first=part is parts[0]) for part in parts])
        finally:
            for parameter, gradient in gradients:
                parameter.grad = gradient

    def _cut(self, parameter: torch.Tensor, kind: _Kind, group: _Group, n_pieces: int) -> list[_Piece]:
        """The parameter in pieces; its state moves on to the present step."""
        state: _State = self._optimizer.state[parameter]
        averages = [name for name in kind.averages if name != "momentum_buffer" or group["momentum"]]
        for name in averages:
            if state.get(name) is None:
                state[name] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        for name, value in kind.counts.items():
            if name not in state:
                state[name] = torch.tensor(value)
        if kind.counts:
            _count_step(state, group)
        assert parameter.grad is not None
        flat = flat_views([parameter, parameter.grad, *(state[name] for name in averages)])
        assert flat is not None
        pieces = []
        for piece in pieces_of(parameter.numel(), n_pieces, unit=FLAT):
            mine, gradient, *kept = (tensor[piece] for tensor in flat)
            pieces.append(_Piece(mine, gradient, state | dict(zip(averages, kept, strict=True))))
        return pieces
