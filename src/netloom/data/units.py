"""Pictures that belong together, and the drawing of parts that never divides them.

Pictures with the same content, and pictures of one group (a patient, a video, a burst of photographs), are tied into
one *unit*.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from netloom.randomness import permutation

IntArray = npt.NDArray[np.int64]


def tie_into_units(n: int, groups: Sequence[str | None] | None, content_hashes: Sequence[str] | None) -> IntArray:
    """The unit of each picture, int64 `[n]`, in the order of the units' first pictures.

    Units are the connected components of equal content and equal group, by union-find.
    """
    parent = list(range(n))

    def root(picture: int) -> int:
        while parent[picture] != picture:
            parent[picture] = picture = parent[parent[picture]]
        return picture

    for keys in (groups, content_hashes):
        first: dict[str, int] = {}
        for picture, key in enumerate(keys or ()):
            if key is not None and (earlier := first.setdefault(key, picture)) != picture:
                one, other = root(earlier), root(picture)
                parent[max(one, other)] = min(one, other)
    roots = np.fromiter(map(root, range(n)), dtype=np.int64, count=n)
    return np.unique(roots, return_inverse=True)[1].astype(np.int64)


def part_quotas(labels: IntArray, fraction: float, seed: int) -> IntArray:
    """Pictures wanted in training and in the part that is taken out of it, per class, int64 `[2, K]`.

    Shares are rounded by largest remainder, and a class always keeps one picture for training.
    """
    counts = np.bincount(labels)
    order = permutation(seed, "split/classes", 0, len(counts))
    total = max(1, round(fraction * len(labels)))
    share = _largest_remainder(fraction * counts, total, np.maximum(counts - 1, 0), order)
    return np.stack([counts - share, share])


def draw_parts(
    labels: IntArray,
    units: IntArray,
    quotas: IntArray,
    seed: int,
    *,
    first_is_training: bool = False,
    turn: int = 0,
) -> IntArray:
    """Distribute whole units over the rows of `quotas`; the row of each picture, int64 `[N]`.

    Units of several pictures go where their classes are scarcest, largest first; single pictures
    fill up what is then missing, class by class. Where the first row is a training part, the
    smallest unit of each class goes there before all.

    Args:
        labels: Class indices `[N]`.
        units: The unit of each picture `[N]`.
        quotas: Pictures wanted per row and class, int64 `[R, K]`.
        seed: The same seed gives the same parts.
        first_is_training: Every class must be in row 0.
        turn: Another number gives an independent draw with the same seed.
    """
    units = np.unique(units, return_inverse=True)[1]
    members = _Members.of(labels, units, permutation(seed, "split/units", turn, int(units.max()) + 1))
    row_of_unit = np.full(len(members.sizes), -1, dtype=np.int64)
    filled = np.zeros(quotas.shape, dtype=np.int64)
    if first_is_training:
        row_of_unit[members.smallest_per_class()] = 0
        np.add.at(filled[0], labels, (row_of_unit[units] == 0).astype(np.int64))
    _place_large_units(members, quotas, filled, row_of_unit)
    _place_single_pictures(members, labels, units, quotas - filled, row_of_unit)
    if first_is_training:
        _fill_empty_rows(members, labels, units, row_of_unit, rows=range(1, len(quotas)))
    return row_of_unit[units]


def fill_empty_parts(labels: IntArray, units: IntArray, row: IntArray, seed: int, *, rows: Iterable[int]) -> IntArray:
    """Move a small unit into each of `rows` that has none, where one can be spared.

    Args:
        labels: Class indices `[N]`.
        units: The unit of each picture `[N]`.
        row: Of each picture, int64 `[N]`; row 0 is training.
        seed: The same seed gives the same parts.
        rows: Which must not be empty.

    Returns:
        The row of each picture `[N]`.
    """
    members = _Members.of(labels, units, permutation(seed, "split/units", 0, int(units.max()) + 1))
    row_of_unit = np.zeros(len(members.sizes), dtype=np.int64)
    row_of_unit[units] = row
    _fill_empty_rows(members, labels, units, row_of_unit, rows=rows)
    return row_of_unit[units]


def _largest_remainder(exact: npt.NDArray[np.floating[Any]], total: int, most: IntArray, order: IntArray) -> IntArray:
    """Round `exact` to integers of sum `total`, where `most` allows; ties fall in `order`."""
    shares: IntArray = np.minimum(np.floor(exact + 1e-9).astype(np.int64), most)
    remainders = np.where(shares < most, exact - shares, -1.0)
    preferred = order[np.argsort(-remainders[order].round(9), kind="stable")]
    chosen = preferred[: max(0, total - int(shares.sum()))]
    shares[chosen[remainders[chosen] >= 0]] += 1
    return shares


@dataclass(frozen=True)
class _Members:
    """The units in a random order of preference, and which classes they hold.

    `classes[u]` and `counts[u]` are parallel: unit u holds `counts[u][j]` pictures of class
    `classes[u][j]`.
    """

    order: IntArray
    sizes: IntArray
    classes: list[list[int]]
    counts: list[list[int]]

    @classmethod
    def of(cls, labels: IntArray, units: IntArray, order: IntArray) -> _Members:
        n_units, n_classes = len(order), int(labels.max()) + 1
        cells, counts = np.unique(units * n_classes + labels, return_counts=True)
        starts = np.searchsorted(cells // n_classes, np.arange(n_units + 1)).tolist()
        class_list, count_list = (cells % n_classes).tolist(), counts.tolist()
        spans = list(itertools.pairwise(starts))
        return cls(
            order=order,
            sizes=np.bincount(units, minlength=n_units),
            classes=[class_list[a:b] for a, b in spans],
            counts=[count_list[a:b] for a, b in spans],
        )

    def smallest_per_class(self) -> list[int]:
        """For each class a smallest unit that holds it, the first in the order of preference."""
        smallest: dict[int, int] = {}
        n_classes = len(set(itertools.chain.from_iterable(self.classes)))
        by_size = self.order[np.argsort(self.sizes[self.order], kind="stable")]
        for unit in by_size.tolist():
            for label in self.classes[unit]:
                smallest.setdefault(label, unit)
            if len(smallest) == n_classes:
                break
        return sorted(set(smallest.values()))


def _place_large_units(members: _Members, quotas: IntArray, filled: IntArray, row_of_unit: IntArray) -> None:
    """Greedy, largest first, to the row that its classes would fill least; updates `filled`."""
    large = members.order[(members.sizes > 1)[members.order] & (row_of_unit < 0)[members.order]]
    large = large[np.argsort(-members.sizes[large], kind="stable")]
    # Plain lists: 50,000 pairs take 0.2 s this way and 2 s with NumPy calls on arrays of two
    # elements.
    now, goal = filled.tolist(), quotas.tolist()
    for unit in large.tolist():
        held = list(zip(members.classes[unit], members.counts[unit], strict=True))
        costs = [
            sum(count * (now[row][c] + count) / (goal[row][c] + 0.5) for c, count in held) for row in range(len(goal))
        ]
        row = costs.index(min(costs))
        row_of_unit[unit] = row
        for c, count in held:
            now[row][c] += count
    filled[:] = now


def _place_single_pictures(
    members: _Members, labels: IntArray, units: IntArray, missing: IntArray, row_of_unit: IntArray
) -> None:
    """Give single pictures to the rows in proportion to what is missing, class by class."""
    free = np.flatnonzero(row_of_unit[units] < 0)
    rank = np.empty_like(members.order)
    rank[members.order] = np.arange(len(rank))
    free = free[np.lexsort((rank[units[free]], labels[free]))]
    starts = np.searchsorted(labels[free], np.arange(missing.shape[1] + 1))
    rows = np.arange(len(missing))
    for label in range(missing.shape[1]):
        pictures = free[starts[label] : starts[label + 1]]
        wanted = np.maximum(missing[:, label], 0)
        exact = wanted * len(pictures) / max(1, int(wanted.sum()))
        shares = _largest_remainder(exact, len(pictures), wanted, rows)
        row_of_unit[units[pictures]] = np.repeat(rows, shares)


def _fill_empty_rows(
    members: _Members, labels: IntArray, units: IntArray, row_of_unit: IntArray, *, rows: Iterable[int]
) -> None:
    """Move a small unit into each of `rows` that large units left empty, where one can be spared."""
    in_training = np.bincount(labels[row_of_unit[units] == 0])
    by_size = members.order[np.argsort(members.sizes[members.order], kind="stable")].tolist()
    for row in rows:
        units_per_row = np.bincount(row_of_unit, minlength=row + 1)
        if units_per_row[row]:
            continue
        for unit in by_size:
            origin, held, counts = row_of_unit[unit], members.classes[unit], members.counts[unit]
            spare = (in_training[held] > counts).all() if origin == 0 else units_per_row[origin] > 1
            if spare:
                if origin == 0:
                    in_training[held] -= counts
                row_of_unit[unit] = row
                break
