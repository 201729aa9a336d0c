"""What can go wrong for a user. Every message names the thing, what was expected, what was found and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class NetloomError(Exception):
    """A mistake or condition the user can act on; the command line prints it and exits with `exit_code`."""

    exit_code = 2


class DataError(NetloomError):
    """The source, its pictures or its labels cannot be used as they are."""


class NoClassesError(DataError):
    """The source holds pictures, but its folders do not tell two classes, which a classifier needs."""


class RecipeError(NetloomError):
    """A recipe holds unknown keys or impossible values; the message lists all of them."""


class ModelError(NetloomError):
    """A model is unknown, or does not fit the pictures or the options it was given."""


class TrainingError(NetloomError):
    """Training could not go on (a loss that is not a number, say); what was reached is kept."""


class RunError(NetloomError):
    """A run folder is missing, incomplete or cannot be written."""


class ArgumentError(NetloomError, ValueError):
    """What the scikit-learn estimator was given cannot be used; also a ValueError, as scikit-learn's callers expect."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`" Did you mean 'x'?"` for the closest known name, or an empty string."""
    folded = {str(k).casefold(): str(k) for k in known}
    close = difflib.get_close_matches(name.casefold(), list(folded), n=1, cutoff=0.6)
    return f" Did you mean {folded[close[0]]!r}?" if close else ""
