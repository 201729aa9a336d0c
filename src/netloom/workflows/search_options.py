"""What a search is asked for: defaults, and checks of plain arguments. Light, since the command line needs it too."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Literal, cast, get_args

from netloom.errors import RecipeError

Objective = Literal["validation_accuracy", "validation_loss", "validation_macro_f1", "validation_balanced_accuracy"]
FinalPart = Literal["train", "train+validation"]

OBJECTIVES: Mapping[Objective, Literal["maximize", "minimize"]] = {
    "validation_accuracy": "maximize",
    "validation_loss": "minimize",
    "validation_macro_f1": "maximize",
    "validation_balanced_accuracy": "maximize",
}
"""What a trial can be scored by, and what of it is best."""

DEFAULT_OBJECTIVE: Objective = "validation_accuracy"
DEFAULT_TRIALS = 50
DEFAULT_FINAL_SEEDS = 3
DEFAULT_FINAL_PART: FinalPart = "train"
DEFAULT_PORT = 8080

_LEAST = {"n_trials": 1, "init_points": 1, "cv": 2, "final_seeds": 0}
_SHOWN = {"n_trials": "--trials", "init_points": "--init-points", "cv": "--cv", "final_seeds": "--final-seeds"}


def checked_objective(name: str) -> Objective:
    """The objective of that name.

    Raises:
        RecipeError: There is none.
    """
    if name not in OBJECTIVES:
        raise RecipeError(f"There is no objective {name!r}; there are {', '.join(OBJECTIVES)}.")
    return cast(Objective, name)


def checked_final_part(name: str) -> FinalPart:
    """What the winner is trained on.

    Raises:
        RecipeError: It is none of what there is.
    """
    if name not in get_args(FinalPart):
        raise RecipeError(f"--final-on is {name!r}; expected {' or '.join(get_args(FinalPart))}.")
    return cast(FinalPart, name)


def checked_number(what: str, number: int | None) -> int | None:
    """The number as a plain one.

    Args:
        what: `n_trials`, `init_points`, `cv` or `final_seeds`.
        number: As it was given.

    Raises:
        RecipeError: It is no whole number, or too small.
    """
    if number is None:
        return None
    try:
        plain = operator.index(number)
    except TypeError:
        plain = -1
    if isinstance(number, bool) or plain < _LEAST[what]:
        raise RecipeError(f"{_SHOWN[what]} must be a whole number of at least {_LEAST[what]}, not {number!r}.")
    return plain
