"""Logistic regression on features, fitted in one go, as the last layer of a network.

What such a classifier leaves open, here the strength of the regularization, is chosen by pictures that are held out of
the training part, never by the validation or test part.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor
from torch.nn import functional as F

from netloom.data.folds import fold_numbers

IntArray = npt.NDArray[np.int64]

# In scikit-learn's sense, from hardly anything learned to hardly any penalty; then what lies beside the best of them.
REGULARIZATIONS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)
_HALF_A_DECADE = 10**0.5

_FOLDS = 5
_FEW_FOLDS = 2
# Folds are left out once so many pictures have answered: their mean loss is then known to a few per cent.
_ENOUGH_HELD_OUT = 10_000
_RISES_BEFORE_STOP = 2
_DEFAULT_REGULARIZATION = 0.01
_TOLERANCE, _FINAL_TOLERANCE = 1e-4, 1e-6  # largest derivative of the mean loss
_MOST_ITERATIONS = 2_000
# Deviations below this part of the usual one are noise of rounding, which would be blown up.
_LEAST_DEVIATION = 1e-3


@dataclass(frozen=True)
class Candidate:
    """One value that was tried.

    Attributes:
        value: C, or the number of neighbours.
        log_loss: Mean over held-out pictures, weighted as in training.
        accuracy: Of the same, every picture counted once.
    """

    value: float
    log_loss: float
    accuracy: float


@dataclass(frozen=True)
class Choice:
    """How what a classifier leaves open was chosen.

    Attributes:
        name: Of what was chosen, for figures: `C` or `neighbours`.
        value: What was taken.
        candidates: Tried, in their order; none where there were too few pictures to hold any out.
        held_out: Pictures that answered.
        scheme: How they were held out, in words.
    """

    name: str
    value: float
    candidates: tuple[Candidate, ...]
    held_out: int
    scheme: str

    def to_json(self) -> dict[str, Any]:
        """Plain values for `result.json`."""
        return {
            self.name: self.value,
            "scheme": self.scheme,
            "held_out": self.held_out,
            "candidates": [
                {self.name: c.value, "log_loss": c.log_loss, "accuracy": c.accuracy} for c in self.candidates
            ],
        }

    def in_words(self) -> str:
        """A sentence for people."""
        value = f"{self.name} = {self.value:g}" if self.name == "C" else f"{self.value:g} neighbours"
        if not self.candidates:
            return f"{value} was taken without trying others: there are too few training pictures to hold any out."
        best = next(c for c in self.candidates if c.value == self.value)
        tried = f"{self.candidates[0].value:g} to {self.candidates[-1].value:g}"
        return (
            f"{value}: of {len(self.candidates)} values from {tried} the one with the lowest log loss on "
            f"{self.held_out:,} held-out training pictures ({self.scheme}), {best.log_loss:.4f}; "
            f"{best.accuracy:.2%} of them right."
        )


@dataclass(frozen=True)
class LogisticRegression:
    """A linear classifier of features as they are: the standardization is in its weights.

    Attributes:
        weight: Float32 `[num_outputs, D]`.
        bias: Float32 `[num_outputs]`.
        choice: How C was chosen.
    """

    weight: Tensor
    bias: Tensor
    choice: Choice


def fit_logistic(
    features: Tensor,
    targets: Tensor,
    *,
    num_classes: int,
    num_outputs: int,
    weights: Tensor | None = None,
    pictures: IntArray | None = None,
    units: IntArray | None = None,
    seed: int = 0,
) -> LogisticRegression:
    """Multinomial logistic regression with an L2 penalty, on standardized features.

    It minimizes sum_i weight_i loss_i + |W|^2 / (2 C), W without the bias, of features with mean 0 and deviation 1 over
    the rows given; for two classes that is the binary problem, as in scikit-learn. C is the one of `REGULARIZATIONS`,
    or half a decade beside the best of them, whose weighted log loss on held-out rows is the lowest: five folds in
    which classes are in proportion and units whole, fewer of them where the training part is large. The strongest
    penalty is tried first, each solution begins where the one before it ended, and the search ends when two values in
    turn are no better. Features are standardized once, by all rows, held out or not: no class enters that.

    Args:
        features: Float32 `[M, D]`, on the CPU.
        targets: Class indices of the rows, int64 `[M]`.
        num_classes: K.
        num_outputs: K, or 1 for a sigmoid between two classes.
        weights: Of the rows in the loss, float32 `[M]`; None where all weigh 1.
        pictures: Of which picture each row is a version, int64 `[M]`; a picture's first row is itself, and held out
            only rows of that kind answer. None where every row is a picture of its own.
        units: Of the pictures, by number: those of one unit are held out together, see `splits.tie_into_units`.
        seed: Of the folds.
    """
    mean, scale = standardization(features)
    rows = (features - mean) * scale
    weight_of = torch.ones(len(rows)) if weights is None else weights.float()
    problem = functools.partial(_solve, n_outputs=1 if num_classes == 2 else num_classes)
    held_out = _held_out(targets.numpy(), pictures, units, seed)
    # SciPy's steps between two passes over the rows take 20 microseconds, and 1.3 ms with the threads of its OpenBLAS.
    with threadpool_limits(limits=1, user_api="blas"):
        choice = _choose_regularization(rows, targets, weight_of, held_out, problem)
        solution = problem(rows, targets, weight_of, choice.value, tolerance=_FINAL_TOLERANCE)
    inner, bias = solution[:, :-1], solution[:, -1]
    if num_classes == 2 and num_outputs == 2:  # of two outputs with one penalty for both, each takes half
        inner, bias = torch.cat([-inner, inner]) / 2, torch.cat([-bias, bias]) / 2
    inner = inner * scale.double()
    bias = bias - inner @ mean.double()
    return LogisticRegression(inner.float(), bias.float(), choice)


def standardization(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean `[D]`, and what to multiply with for a deviation of 1 `[D]`; 0 for features that are the same everywhere."""
    deviation, mean = torch.std_mean(features, dim=0, correction=0)
    least = _LEAST_DEVIATION * deviation.square().mean().sqrt()
    return mean, torch.where(deviation > least, 1.0 / deviation.clamp_min(least), 0.0)


def _held_out(targets: IntArray, pictures: IntArray | None, units: IntArray | None, seed: int) -> list[_Fold]:
    """Who answers and who teaches in each fold; none where there are too few pictures."""
    of_picture = np.arange(len(targets)) if pictures is None else pictures
    first = np.sort(np.unique(of_picture, return_index=True)[1])
    labels, number_of = targets[first], of_picture[first]
    own_units = number_of if units is None else units[number_of]
    counts = np.bincount(labels)
    if len(counts[counts > 0]) < 2 or counts[counts > 0].max() < _FEW_FOLDS:
        return []
    folds = int(min(_FOLDS, counts.max()))
    fold = fold_numbers(labels, own_units, folds, seed)
    for label in np.flatnonzero(counts):
        of_class = labels == label
        if len(np.unique(fold[of_class])) < _FEW_FOLDS:  # held out as a whole, nobody could learn it
            fold[of_class] = -1
    by_picture = np.full(int(of_picture.max()) + 1, -1, dtype=np.int64)
    by_picture[number_of] = fold
    found: list[_Fold] = []
    for number in range(folds):
        answers = first[fold == number]
        if len(answers) and sum(len(f.answers) for f in found) < _ENOUGH_HELD_OUT:
            teaches = np.flatnonzero(by_picture[of_picture] != number)
            found.append(_Fold(torch.from_numpy(answers), torch.from_numpy(teaches), folds))
    return found


@dataclass(frozen=True)
class _Fold:
    answers: Tensor
    teaches: Tensor
    of: int


def _scheme(folds: Sequence[_Fold]) -> str:
    n, of = len(folds), folds[0].of
    return f"{of} folds" if n == of else f"{n} of {of} folds"


def _choose_regularization(
    rows: Tensor, targets: Tensor, weights: Tensor, folds: Sequence[_Fold], problem: functools.partial[Tensor]
) -> Choice:
    if not folds:
        return Choice("C", _DEFAULT_REGULARIZATION, (), 0, "")
    search = _Search(rows, targets, weights, folds, problem)
    for value in REGULARIZATIONS:
        search.try_(value)
        if len(search.candidates) - search.candidates.index(search.best) > _RISES_BEFORE_STOP:
            break
    middle = search.best.value
    for value in (middle / _HALF_A_DECADE, middle * _HALF_A_DECADE):
        search.try_(float(f"{value:.2g}"))
    candidates = tuple(sorted(search.candidates, key=lambda candidate: candidate.value))
    return Choice("C", search.best.value, candidates, len(search.answered), _scheme(folds))


class _Search:
    """Values of C tried on the same folds."""

    def __init__(
        self, rows: Tensor, targets: Tensor, weights: Tensor, folds: Sequence[_Fold], problem: functools.partial[Tensor]
    ) -> None:
        self.candidates: list[Candidate] = []
        self.answered = torch.cat([fold.answers for fold in folds])
        self._rows, self._targets, self._problem = rows, targets, problem
        self._folds = [(fold.answers, *(part[fold.teaches] for part in (rows, targets, weights))) for fold in folds]
        total = weights[self.answered].sum().clamp_min(torch.finfo(torch.float32).tiny)
        self._shares = weights[self.answered] / total
        self._solutions: list[Tensor | None] = [None] * len(folds)

    @property
    def best(self) -> Candidate:
        """The one with the lowest log loss so far."""
        return min(self.candidates, key=lambda candidate: candidate.log_loss)

    def try_(self, value: float) -> None:
        """Solve every fold with C = `value`, from where the last one ended."""
        losses, right = [], 0
        for number, (answers, *part) in enumerate(self._folds):
            start = self._solutions[number]
            solution = self._problem(*part, value, start=start, tolerance=_TOLERANCE)
            self._solutions[number] = solution
            outputs = _with_bias(self._rows[answers], solution)
            losses.append(_losses(outputs, self._targets[answers]))
            right += int((_predicted(outputs) == self._targets[answers]).sum())
        loss = float((torch.cat(losses) * self._shares).sum())
        self.candidates.append(Candidate(value, loss, right / len(self.answered)))


def _solve(
    rows: Tensor,
    targets: Tensor,
    weights: Tensor,
    regularization: float,
    *,
    n_outputs: int,
    tolerance: float,
    start: Tensor | None = None,
) -> Tensor:
    """Coefficients with the bias last, float64 `[n_outputs, D + 1]`, by L-BFGS.

    Byrd, Lu, Nocedal and Zhu, "A limited memory algorithm for bound constrained optimization", 1995, as in SciPy. The
    products with the rows are float32, which they take all the time; what is added up is float64.
    """
    from scipy.optimize import minimize

    total = float(weights.sum())
    penalty = 1.0 / (regularization * max(total, torch.finfo(torch.float32).tiny))
    share = (weights / max(total, torch.finfo(torch.float32).tiny)).double()
    shape = (n_outputs, rows.shape[1] + 1)

    def objective(flat: npt.NDArray[np.float64]) -> tuple[float, npt.NDArray[np.float64]]:
        solution = torch.from_numpy(flat).view(shape)
        outputs = _with_bias(rows, solution)
        loss = (share * _losses(outputs, targets).double()).sum() + 0.5 * penalty * solution[:, :-1].square().sum()
        residual = _residual(outputs, targets).double() * share.unsqueeze(1)
        gradient = torch.empty(shape, dtype=torch.float64)
        gradient[:, :-1] = (residual.float().T @ rows).double() + penalty * solution[:, :-1]
        gradient[:, -1] = residual.sum(dim=0)
        return float(loss), gradient.flatten().numpy()

    begin = torch.zeros(shape, dtype=torch.float64) if start is None else start
    found = minimize(
        objective,
        begin.flatten().numpy(),
        jac=True,
        method="L-BFGS-B",
        options={"gtol": tolerance, "ftol": 1e-12, "maxiter": _MOST_ITERATIONS, "maxfun": 2 * _MOST_ITERATIONS},
    )
    return torch.from_numpy(np.array(found.x)).view(shape)


def _with_bias(rows: Tensor, solution: Tensor) -> Tensor:
    """Outputs `[n, n_outputs]`, float32."""
    own = solution.float()
    return torch.addmm(own[:, -1], rows, own[:, :-1].T)


def _losses(outputs: Tensor, targets: Tensor) -> Tensor:
    if outputs.shape[1] == 1:
        return F.binary_cross_entropy_with_logits(outputs[:, 0], targets.float(), reduction="none")
    return F.cross_entropy(outputs, targets, reduction="none")


def _residual(outputs: Tensor, targets: Tensor) -> Tensor:
    """Probabilities minus truth, `[n, n_outputs]`."""
    if outputs.shape[1] == 1:
        return torch.sigmoid(outputs) - targets.float().unsqueeze(1)
    residual = torch.softmax(outputs, dim=1)
    residual[torch.arange(len(targets)), targets] -= 1.0
    return residual


def _predicted(outputs: Tensor) -> Tensor:
    return (outputs[:, 0] > 0).long() if outputs.shape[1] == 1 else outputs.argmax(dim=1)
