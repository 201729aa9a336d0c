"""Muon: momentum whose matrices are made orthogonal before they are applied."""

from __future__ import annotations

import functools
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch

from netloom.training.crew import Crew, pieces_of

UpdateScale = Literal["rms", "shape", "none"]
Rest = Literal["adamw", "sgd"]

# The quintic of Jordan et al. 2024: its slope at zero is as steep as it can be while singular values, once they are
# near one, stay within about 0.7 and 1.2. It does not converge to one, which costs no accuracy and saves iterations.
_QUINTIC = (3.4445, -4.7750, 2.0315)
_SMALLEST_NORM = 1e-7
# With so many multiplications of matrices by their own transposes it is worth waking other threads twice an iteration.
_WORTH_SHARING = 2**25
_ADAMW_BETAS, _ADAMW_EPSILON = (0.9, 0.999), 1e-8  # torch's AdamW


@dataclass(frozen=True)
class MuonOptions:
    """How Muon updates kernels, and what updates everything else.

    Attributes:
        momentum: Of the kernels, in [0, 1).
        nesterov: Look one step ahead along the momentum, of the kernels and of `rest: sgd`.
        newton_schulz_steps: Iterations of `orthogonalized`, at least 1.
        update_scale: What the orthogonal update is multiplied by, for a kernel flattened to rows x columns. `rms`:
            0.2 sqrt(max(rows, columns)), by which its entries are as large as AdamW's updates usually are, so that
            AdamW's learning rates fit (Liu et al., "Muon is scalable for LLM training", 2025). `shape`:
            sqrt(max(1, rows / columns)), Jordan's own. `none`: 1.
        normalize_kernels: Before each step, scale every kernel to the norm sqrt(rows), which keeps its filters at
            norm 1 on average and makes the learning rate a relative one; for kernels that a batch normalization
            follows, whose scale does not matter.
        rest: What updates biases, norms and the classifier.
        rest_momentum: Of `rest: sgd`, in [0, 1).
    """

    momentum: float = 0.95
    nesterov: bool = True
    newton_schulz_steps: int = 5
    update_scale: UpdateScale = "rms"
    normalize_kernels: bool = False
    rest: Rest = "adamw"
    rest_momentum: float = 0.9

    def __post_init__(self) -> None:
        if self.update_scale not in get_args(UpdateScale) or self.rest not in get_args(Rest):
            raise ValueError(
                f"Muon has the scales {', '.join(get_args(UpdateScale))} and the optimizers "
                f"{', '.join(get_args(Rest))} for the rest, not {self.update_scale!r} and {self.rest!r}."
            )
        if self.newton_schulz_steps < 1:
            raise ValueError(f"newton_schulz_steps starts at 1, got {self.newton_schulz_steps}.")


def orthogonalized(matrices: torch.Tensor, *, steps: int) -> torch.Tensor:
    """The nearest semi-orthogonal matrices, roughly: `U S' V^T` for `U S V^T`, with `S'` about 0.7 to 1.2.

    A Newton-Schulz iteration with a quintic polynomial, all matrices of a shape at once (Jordan et al., "Muon: an
    optimizer for hidden layers in neural networks", 2024). Five steps bring singular values of 1% of the Frobenius
    norm there; smaller ones stay smaller. A matrix of zeros stays zero.

    Args:
        matrices: Float `[n, rows, columns]`.
        steps: Iterations.

    Returns:
        The same shape and dtype. The arithmetic is float32 on the CPU, whose bfloat16 is several times slower
        without AMX, and bfloat16, as published, on a GPU.
    """
    a, b, c = _QUINTIC
    x = matrices.to(torch.bfloat16 if matrices.device.type == "cuda" else torch.float32)
    tall = x.shape[1] > x.shape[2]
    if tall:
        x = x.mT
    x = x / torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True).clamp_min(_SMALLEST_NORM)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).to(matrices.dtype)


class Muon(torch.optim.Optimizer):
    """Muon for the groups with `orthogonal: True`, AdamW or SGD for the others, each group with its learning rate.

    A kernel `[rows, ...]` is taken as the matrix `[rows, columns]`. Weight decay is decoupled for kernels and for
    AdamW, and an L2 gradient for SGD, as torch's optimizers have it.

    Args:
        groups: With `params`, `lr`, `weight_decay` and `orthogonal`.
        options: See `MuonOptions`.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], options: MuonOptions) -> None:
        self.options = options
        super().__init__(groups, {"lr": 1e-3, "weight_decay": 0.0, "orthogonal": False})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None, *, crew: Crew | None = None) -> float | None:  # type: ignore[override]
        """One update of every parameter that has a gradient; its matrices are divided among the threads of a crew."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        rest = {"adamw": self._adamw, "sgd": self._sgd}[self.options.rest]
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if parameters:
                update = functools.partial(self._orthogonal, crew=crew) if group["orthogonal"] else rest
                update(parameters, [p.grad for p in parameters], group["lr"], group["weight_decay"])
        return loss

    def _orthogonal(
        self,
        parameters: list[torch.Tensor],
        gradients: list[torch.Tensor],
        rate: float,
        decay: float,
        *,
        crew: Crew | None,
    ) -> None:
        options = self.options
        directions = self._with_momentum(parameters, gradients, options.momentum)
        if options.normalize_kernels:
            norms = torch._foreach_norm(parameters)
            torch._foreach_mul_(parameters, [len(p) ** 0.5 / n for p, n in zip(parameters, norms, strict=True)])
        if decay:
            torch._foreach_mul_(parameters, 1 - rate * decay)
        matrices = [direction.reshape(len(direction), -1) for direction in directions]
        steps = options.newton_schulz_steps
        if crew is not None and sum(map(_multiplications, matrices)) >= _WORTH_SHARING:
            updates = _divided(matrices, steps, crew)
        else:
            updates = _together(matrices, steps)
        for parameter, update in zip(parameters, updates, strict=True):
            scale = _scale(options.update_scale, *update.shape)
            parameter.add_(update.view(parameter.shape), alpha=-rate * scale)

    def _sgd(self, parameters: list[torch.Tensor], gradients: list[torch.Tensor], rate: float, decay: float) -> None:
        if decay:
            gradients = list(torch._foreach_add(gradients, parameters, alpha=decay))
        directions = self._with_momentum(parameters, gradients, self.options.rest_momentum)
        torch._foreach_add_(parameters, directions, alpha=-rate)

    def _adamw(self, parameters: list[torch.Tensor], gradients: list[torch.Tensor], rate: float, decay: float) -> None:
        means = [self._memory(p, "exp_avg") for p in parameters]
        squares = [self._memory(p, "exp_avg_sq") for p in parameters]
        steps = [self.state[p].setdefault("step", torch.zeros(())) for p in parameters]
        torch._foreach_add_(steps, 1)
        counts = [int(step.item()) for step in steps]
        if decay:
            torch._foreach_mul_(parameters, 1 - rate * decay)
        first, second = _ADAMW_BETAS
        torch._foreach_lerp_(means, gradients, 1 - first)
        torch._foreach_mul_(squares, second)
        torch._foreach_addcmul_(squares, gradients, gradients, 1 - second)
        roots = torch._foreach_sqrt(squares)
        torch._foreach_div_(roots, [math.sqrt(1 - second**n) for n in counts])
        torch._foreach_add_(roots, _ADAMW_EPSILON)
        torch._foreach_addcdiv_(parameters, means, roots, [-rate / (1 - first**n) for n in counts])

    def _with_momentum(
        self, parameters: list[torch.Tensor], gradients: list[torch.Tensor], momentum: float
    ) -> list[torch.Tensor]:
        """The directions of SGD with momentum, whose memory moves on."""
        if not momentum:
            return gradients
        buffers = [self._memory(p, "momentum_buffer") for p in parameters]
        torch._foreach_mul_(buffers, momentum)
        torch._foreach_add_(buffers, gradients)
        if not self.options.nesterov:
            return buffers
        return list(torch._foreach_add(gradients, buffers, alpha=momentum))

    def _memory(self, parameter: torch.Tensor, name: str) -> torch.Tensor:
        state = self.state[parameter]
        if name not in state:
            state[name] = torch.zeros_like(parameter)
        memory: torch.Tensor = state[name]
        return memory


def _multiplications(matrix: torch.Tensor) -> int:
    """Of one `X X^T`."""
    return min(matrix.shape) * matrix.numel()


def _together(matrices: Sequence[torch.Tensor], steps: int) -> list[torch.Tensor]:
    """Each made orthogonal, those of the same shape in the same operations."""
    alike: dict[torch.Size, list[int]] = defaultdict(list)
    for i, matrix in enumerate(matrices):
        alike[matrix.shape].append(i)
    updates = {
        i: update
        for members in alike.values()
        for i, update in zip(
            members, orthogonalized(torch.stack([matrices[i] for i in members]), steps=steps), strict=True
        )
    }
    return [updates[i] for i in range(len(matrices))]


def _divided(matrices: Sequence[torch.Tensor], steps: int, crew: Crew) -> list[torch.Tensor]:
    """Each made orthogonal: each thread takes some columns of all, since `X X^T` is a sum over columns."""
    a, b, c = _QUINTIC
    lying = [matrix.mT if matrix.shape[0] > matrix.shape[1] else matrix for matrix in matrices]
    wholes = [x / torch.linalg.vector_norm(x).clamp_min(_SMALLEST_NORM) for x in lying]
    pieces = [[x[:, pieces_of(x.shape[1], crew.n_threads)[number]] for x in wholes] for number in range(crew.n_threads)]

    def grams(number: int) -> list[torch.Tensor]:
        return [x @ x.mT for x in pieces[number]]

    def multiply(polynomials: list[torch.Tensor], number: int) -> None:
        pieces[number] = [
            torch.addmm(x, polynomial, x, beta=a) for x, polynomial in zip(pieces[number], polynomials, strict=True)
        ]

    for _ in range(steps):
        parts = crew.share([functools.partial(grams, number) for number in range(crew.n_threads)])
        totals = [functools.reduce(torch.Tensor.add_, of_one) for of_one in zip(*parts, strict=True)]
        polynomials = [torch.addmm(gram, gram, gram, beta=b, alpha=c) for gram in totals]
        crew.share([functools.partial(multiply, polynomials, number) for number in range(crew.n_threads)])
    updates = [torch.cat(of_one, dim=1) for of_one in zip(*pieces, strict=True)]
    return [
        update.mT if matrix.shape[0] > matrix.shape[1] else update
        for update, matrix in zip(updates, matrices, strict=True)
    ]


def _scale(kind: UpdateScale, rows: int, columns: int) -> float:
    if kind == "rms":
        return 0.2 * math.sqrt(max(rows, columns))
    return math.sqrt(max(1.0, rows / columns)) if kind == "shape" else 1.0
