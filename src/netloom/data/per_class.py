"""Train on few pictures of each class: which of a training part's pictures are used.

To learn how many pictures a task needs, or to try a recipe where labels are scarce, a training uses N pictures of each
class. Only the training part shrinks: scores of different N stay comparable, since validation and test are the same.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from netloom.errors import DataError
from netloom.randomness import permutation

IntArray = npt.NDArray[np.int64]

_CLASSES_SHOWN = 10


def draw_per_class(
    parts: Sequence[IntArray],
    n: int,
    *,
    labels: IntArray,
    units: IntArray,
    content_hashes: Sequence[str] | None,
    class_names: Sequence[str],
    seeds: Sequence[int],
) -> list[IntArray]:
    """From each training part `n` pictures of each class, int64, ascending.

    Copies of one picture count once, and of pictures that are tied together (a patient, a burst of photographs) one is
    drawn before any second one, so that `n` pictures are as many different things as they can be. A smaller `n` draws
    some of those that a larger one draws from the same part with the same seed.

    Args:
        parts: Indices of training parts.
        n: At least 1.
        labels: Class indices of all pictures, int64 `[N]`.
        units: Which pictures are tied together, int64 `[N]`, as `tie_into_units` gives them.
        content_hashes: Of all pictures; None where none is known to be a copy.
        class_names: For messages.
        seeds: Of the draw, one for each part.

    Raises:
        DataError: A class has fewer than `n` different pictures in one of the parts.
    """
    contents = _numbered(content_hashes, len(labels))
    orders = [_in_order(part, labels, units, contents, seed) for part, seed in zip(parts, seeds, strict=True)]
    _refuse_scarce(orders, n, labels, class_names)
    return [np.sort(order[_place_among_equals(labels[order]) < n]) for order in orders]


def _numbered(content_hashes: Sequence[str] | None, n: int) -> IntArray:
    """A number for each content, int64 `[n]`."""
    if content_hashes is None:
        return np.arange(n)
    return np.unique(np.array(content_hashes), return_inverse=True)[1].astype(np.int64)


def _in_order(part: IntArray, labels: IntArray, units: IntArray, contents: IntArray, seed: int) -> IntArray:
    """The part's different pictures in the order in which they are drawn, class by class."""
    order = np.empty(len(labels), dtype=np.int64)
    order[permutation(seed, "split/per class", 0, len(labels))] = np.arange(len(labels))
    pictures = part[np.argsort(order[part])]
    pictures = pictures[_place_among_equals(labels[pictures], contents[pictures]) == 0]
    turn = _place_among_equals(labels[pictures], units[pictures])
    drawn: IntArray = pictures[np.lexsort((turn, labels[pictures]))]
    return drawn


def _place_among_equals(*keys: IntArray) -> IntArray:
    """How many entries before each one have the same keys, int64 `[n]`."""
    by_key = np.lexsort(keys)  # stable: equals stay in their order
    rows = np.stack(keys)[:, by_key]
    starts = np.flatnonzero(np.r_[True, (rows[:, 1:] != rows[:, :-1]).any(axis=0)]) if len(by_key) else by_key
    lengths = np.diff(np.r_[starts, len(by_key)])
    places = np.empty(len(by_key), dtype=np.int64)
    places[by_key] = np.arange(len(by_key)) - np.repeat(starts, lengths)
    return places


def _refuse_scarce(orders: Sequence[IntArray], n: int, labels: IntArray, class_names: Sequence[str]) -> None:
    occurring = np.unique(labels)
    counts = np.stack([np.bincount(labels[order], minlength=len(class_names)) for order in orders]).min(axis=0)
    scarce = occurring[counts[occurring] < n]
    if not len(scarce):
        return
    scarce = scarce[np.argsort(counts[scarce], kind="stable")]
    shown = ", ".join(f"{class_names[c]!r} ({counts[c]:,})" for c in scarce[:_CLASSES_SHOWN].tolist())
    more = f" and {len(scarce) - _CLASSES_SHOWN:,} more classes" if len(scarce) > _CLASSES_SHOWN else ""
    parts = "the training part has" if len(orders) == 1 else "the training parts of the folds have"
    most = int(counts[scarce[0]])
    remedy = f"Take at most {most:,}, the largest number possible" if most else "Leave it out to train on all"
    raise DataError(
        f"per_class is {n:,}, but {parts} fewer pictures of {shown}{more}; copies of one picture count once. "
        f"{remedy}, or add pictures."
    )
