"""Which pictures test in which training of a cross-validation.

The folds keep what a split keeps (`data/splits.py`): classes in proportion, and units (pictures of the same content or
of one group) whole. The test part that a source gives takes no part at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from netloom.data.splits import Split, listed_classes, make_split, with_few_of_each
from netloom.data.units import IntArray, draw_parts, tie_into_units
from netloom.errors import DataError
from netloom.randomness import derive_seed, permutation

UNUSED = -1


@dataclass(frozen=True)
class Scheme:
    """How a cross-validation draws its test pictures.

    Attributes:
        folds: Parts of which each tests once in every repeat; None for hold-out.
        repeats: How often all is drawn anew.
        holdout: The fraction that tests in each repeat, where there are no folds.
    """

    folds: int | None = 5
    repeats: int = 1
    holdout: float | None = None

    def __post_init__(self) -> None:
        if self.repeats < 1:
            raise DataError(f"repeats must be at least 1, not {self.repeats}.")
        if (self.folds is None) == (self.holdout is None):
            raise DataError("Give either folds or a holdout fraction, not both.")
        if self.folds is not None and self.folds < 2:
            raise DataError(f"folds must be at least 2, not {self.folds}: one part tests while the others train.")
        if self.holdout is not None and not 0 < self.holdout < 1:
            raise DataError(f"holdout is {self.holdout:g}; it must lie between 0 and 1, for example 0.2.")
        if self.holdout is not None and self.repeats < 2:
            raise DataError("holdout needs at least 2 repeats to tell a spread; one hold-out is what `train` does.")

    def __str__(self) -> str:
        times = f", repeated {self.repeats} times" if self.repeats > 1 else ""
        if self.folds is None:
            return f"{self.repeats} times {self.holdout:.0%} held out"
        return f"{self.folds} folds{times}"

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"folds": self.folds, "repeats": self.repeats, "holdout": self.holdout}


@dataclass(frozen=True)
class Fold:
    """One training of a cross-validation.

    Attributes:
        name: Of its run: `fold-2`, `repeat-1-fold-2`, `repeat-1`.
        repeat: From 1.
        fold: From 1; None for hold-out.
        split: `test` is what is held out, `validation` is carved out of the rest.
    """

    name: str
    repeat: int
    fold: int | None
    split: Split


def make_folds(
    scheme: Scheme,
    *,
    targets: npt.ArrayLike,
    parts: Sequence[str | None] | None = None,
    groups: Sequence[str | None] | None = None,
    content_hashes: Sequence[str] | None = None,
    class_names: Sequence[str] | None = None,
    validation_fraction: float = 0.2,
    per_class: int | None = None,
    seed: int,
) -> list[Fold]:
    """Draw the splits of all trainings.

    What a source gives as training and validation parts is pooled and drawn from; its test part is in no split.
    In each training `validation_fraction` of what is not held out is carved out to choose the epoch by, since a
    figure that chose something is no honest score of it. The held-out pictures choose nothing.

    Args:
        scheme: How many folds and repeats.
        targets: Class indices, int64 `[N]`.
        parts: Given part of each picture.
        groups: Pictures of one group are never on two sides.
        content_hashes: Pictures of the same content neither.
        class_names: For messages.
        validation_fraction: Of what is not held out.
        per_class: Pictures of each class that are drawn from each training part; all without it.
        seed: The same seed gives the same folds.

    Raises:
        DataError: A class has too few pictures, or groups, for so many folds, or for `per_class`.
    """
    labels = np.asarray(targets, dtype=np.int64)
    pool = np.arange(len(labels))
    if parts is not None:
        pool = np.flatnonzero([part != "test" for part in parts])
    names = class_names or [str(number) for number in range(int(labels.max()) + 1)]
    # Ties are looked for among all pictures: two may be tied by a third one, in the test part.
    units = tie_into_units(len(labels), groups, content_hashes)
    pooled = _Pool(pool, labels[pool], units[pool], names)
    found = []
    for repeat in range(scheme.repeats):
        tested = pooled.test_parts(scheme, derive_seed(seed, "folds", repeat))
        for number, test in enumerate(tested, 1):
            fold = None if scheme.folds is None else number
            split = pooled.split(test, validation_fraction, derive_seed(seed, "fold validation", repeat, number))
            words = ([] if scheme.repeats == 1 else [f"repeat {repeat + 1}"]) + ([f"fold {fold}"] if fold else [])
            method = f"{', '.join(words)} ({scheme}), stratified; validation carved out of what is not held out"
            found.append(
                Fold("-".join(words).replace(" ", "-"), repeat + 1, fold, replace(split, method=method, seed=seed))
            )
    if per_class is None:
        return found
    # A draw of its own for each training: the same pictures in all of them would hide how much the choice matters.
    few = with_few_of_each(
        [fold.split for fold in found],
        per_class,
        labels=labels,
        units=units,
        content_hashes=content_hashes,
        class_names=names,
        seeds=[derive_seed(seed, "fold pictures", fold.repeat, fold.fold or 0) for fold in found],
    )
    return [replace(fold, split=split) for fold, split in zip(found, few, strict=True)]


@dataclass(frozen=True)
class _Pool:
    """The pictures that folds are drawn from; all but `indices` is parallel to them."""

    indices: IntArray
    labels: IntArray
    units: IntArray
    names: Sequence[str]

    @property
    def groups(self) -> list[str]:
        """The units as groups of a split."""
        return [str(unit) for unit in self.units.tolist()]

    def test_parts(self, scheme: Scheme, seed: int) -> list[npt.NDArray[np.bool_]]:
        """Which pictures test, bool `[n]`, in each training of one repeat."""
        if scheme.folds is not None:
            number = self._fold_numbers(scheme.folds, seed)
            return [number == fold for fold in range(scheme.folds)]
        assert scheme.holdout is not None
        split = make_split(
            targets=self.labels,
            groups=self.groups,
            class_names=self.names,
            test_fraction=scheme.holdout,
            seed=seed,
        )
        return [np.isin(np.arange(len(self.labels)), split.test)]

    def _fold_numbers(self, folds: int, seed: int) -> IntArray:
        self._refuse_too_many(folds)
        return fold_numbers(self.labels, self.units, folds, seed)

    def _refuse_too_many(self, folds: int) -> None:
        """Every fold shall test every class, and the others teach it."""
        available = independent_pictures(self.labels, self.units)
        scarce = np.flatnonzero((available < folds) & (available > 0))
        if not len(scarce):
            return
        fewest = int(available[scarce].min())
        pictures = "1 independent picture" if fewest == 1 else f"{fewest} independent pictures"
        remedy = f"Use at most {fewest} folds" if fewest > 1 else "Leave it out"
        raise DataError(
            f"{folds} folds are too many for {listed_classes(scarce, self.names)}: the scarcest has {pictures} (those "
            f"of the same content or group count as one), and every fold must test every class. {remedy}, or add "
            "pictures."
        )

    def split(self, test: npt.NDArray[np.bool_], validation_fraction: float, seed: int) -> Split:
        drawn = make_split(
            targets=self.labels,
            parts=["test" if tested else "train" for tested in test.tolist()],
            groups=self.groups,
            class_names=self.names,
            validation_fraction=validation_fraction,
            seed=seed,
        )
        return replace(
            drawn,
            train=self.indices[drawn.train],
            validation=self.indices[drawn.validation],
            test=self.indices[drawn.test],
        )


def independent_pictures(labels: IntArray, units: IntArray) -> IntArray:
    """How many units hold pictures of each class, int64 `[K]`: no class can be in more folds than that.

    Args:
        labels: Class indices `[n]`.
        units: The unit of each picture `[n]`, see `splits.tie_into_units`.
    """
    pairs = np.unique(np.stack([labels, units]), axis=1)[0]
    return np.bincount(pairs, minlength=int(labels.max()) + 1)


def fold_numbers(labels: IntArray, units: IntArray, folds: int, seed: int) -> IntArray:
    """The fold of each picture, int64 `[n]`: classes in proportion, units whole, whatever there is of either.

    Args:
        labels: Class indices `[n]`.
        units: The unit of each picture `[n]`, see `splits.tie_into_units`.
        folds: How many.
        seed: The same seed gives the same folds.
    """
    return draw_parts(labels, units, _shares(labels, folds, seed), seed)


def _shares(labels: IntArray, folds: int, seed: int) -> IntArray:
    """Pictures wanted per fold and class, int64 `[folds, K]`: a class differs by one picture, a fold by one in all."""
    counts = np.bincount(labels)
    shares = np.tile(counts // folds, (folds, 1))
    # What is left of a class goes on where that of the class before it ended, so that no fold gets every remainder.
    turn = permutation(seed, "folds/turn", 0, folds)
    position = 0
    for label, left in enumerate((counts % folds).tolist()):
        shares[turn[(position + np.arange(left)) % folds], label] += 1
        position += left
    return shares
