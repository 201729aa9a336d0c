"""Find where a plain function is greatest: the same samplers, without trainings."""

from __future__ import annotations

import operator
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from netloom.errors import NetloomError
from netloom.progress import Reporter, table_row
from netloom.tuning.samplers import check_names, create_pruner, create_sampler
from netloom.tuning.space import arrange, cell_of
from netloom.tuning.space_text import parse_dimension
from netloom.tuning.storage import in_memory
from netloom.tuning.study import SearchStudy

_CELL = 9


@dataclass(frozen=True)
class Maximum:
    """What `maximize` found.

    Attributes:
        max: `{"target": value, "params": {…}}` of the best point.
        res: The same of every point, in order.
    """

    max: Mapping[str, Any]
    res: tuple[Mapping[str, Any], ...]


def maximize(
    f: Callable[..., float],
    pbounds: Mapping[str, Any],
    *,
    init_points: int = 5,
    n_iter: int = 25,
    random_state: int | None = 0,
    sampler: str = "gp",
    verbose: int = 2,
) -> Maximum:
    """Find the arguments with which `f` is greatest.

    Args:
        f: Called with a number for each name of `pbounds`, by keyword.
        pbounds: By argument: `(low, high)`, or what `netloom.tune` takes as a space, such as `"1e-4..1e-2:log"`,
            `"1..10:int"` for whole numbers, or a list of choices.
        init_points: Random points before the model of the function proposes.
        n_iter: Points after them.
        random_state: The same number gives the same points; None draws one.
        sampler: As for `netloom.tune`.
        verbose: 0 is silent, 1 shows points that are better than all before, 2 shows all, on standard error.

    Raises:
        NetloomError: A range is not understood, or `f` gives something that is no number.
    """
    seed = _seed(random_state)
    check_names(sampler, "none")
    if init_points + n_iter < 1:
        raise NetloomError("init_points and n_iter are both 0; there is nothing to do.")
    dimensions = arrange(parse_dimension(key, bounds, _any_value) for key, bounds in pbounds.items())
    total = init_points + n_iter
    study, _ = SearchStudy.create(
        in_memory(),
        "maximize",
        dimensions,
        direction="maximize",
        sampler=create_sampler(
            "gp" if sampler == "auto" else sampler,
            dimensions,
            seed=seed,
            init_points=max(init_points, 1),
            n_trials=total,
        ),
        pruner=create_pruner("none", epochs=1),
    )
    reporter = Reporter(quiet=verbose < 1)
    widths = [5, 9, *(max(len(d.key), _CELL) for d in dimensions)]
    reporter.say(table_row(["iter", "target", *(d.key for d in dimensions)], widths))
    results: list[dict[str, Any]] = []
    best: dict[str, Any] | None = None
    for _ in range(total):
        proposal = study.ask()
        target = _number(f(**proposal.overrides), f)
        study.complete(proposal.number, target, {})
        results.append({"target": target, "params": dict(proposal.overrides)})
        better = best is None or target > best["target"]
        best = results[-1] if best is None or better else best
        if verbose > 1 or better:
            values = [target, *(proposal.overrides.get(d.key) for d in dimensions)]
            cells = [str(len(results)), *map(cell_of, values, widths[1:])]
            reporter.say(table_row(cells, widths) + (" *" if better else ""))
    assert best is not None
    return Maximum(best, tuple(results))


def _any_value(_key: str, _value: Any) -> str | None:
    return None


def _seed(random_state: Any) -> int:
    if random_state is None:
        return secrets.randbits(32)
    try:
        seed = operator.index(random_state)
    except TypeError:
        seed = -1
    if seed < 0:
        raise NetloomError(f"random_state must be a whole number of at least 0, or None, not {random_state!r}.")
    return seed


def _number(value: Any, f: Callable[..., float]) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError) as error:
        name = getattr(f, "__name__", repr(f))
        raise NetloomError(f"{name} must return a number to be maximized; it returned {value!r}.") from error
    if number != number:
        raise NetloomError(f"{getattr(f, '__name__', repr(f))} returned NaN, which cannot be compared.")
    return number
