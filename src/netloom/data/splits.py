"""Which pictures train, which choose the model and which test it, drawn from a seed.

No unit of `data/units.py` lies on two sides: otherwise the test would ask what the network has seen in training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from netloom.data.per_class import draw_per_class
from netloom.data.units import IntArray, draw_parts, fill_empty_parts, part_quotas, tie_into_units
from netloom.errors import DataError

PARTS = ("train", "validation", "test")
DRAWN_AT_ONCE = ("given", "stratified", "given test, stratified validation", "given validation, stratified test")
"""Methods of `make_split`, which gives the same split again for the same pictures and options."""
VALIDATION_TRAINS = "the validation part trains, too"
"""In the method of a split that has joined two of its parts."""
WITHOUT_TEST = "without classes"
"""Method of a split of pictures without classes, which need no test part."""


@dataclass(frozen=True)
class Split:
    """Index arrays (int64, ascending) into an ImageSet, and how they were drawn.

    `method` is one of `DRAWN_AT_ONCE` or `WITHOUT_TEST`, or says in words what else was done, by folds say; `notes`
    says in plain words what a user should know of this split, `test_notes` holds those of them by which pictures of the
    test part are not new to the network, or to the choice of its settings.
    The validation part may be empty, where nothing is chosen by it.
    Where `per_class` is a number, so many pictures of each class train, and the others of the training
    part are in no part.
    """

    train: IntArray
    validation: IntArray
    test: IntArray
    method: str
    seed: int
    notes: tuple[str, ...] = ()
    per_class: int | None = None
    test_notes: tuple[str, ...] = ()

    def to_json(self, ids: Sequence[str]) -> dict[str, Any]:
        """The manifest: ids in place of indices, so that it outlives a new order."""
        parts = {name: [ids[i] for i in getattr(self, name)] for name in PARTS}
        return {
            "method": self.method,
            "seed": self.seed,
            "per_class": self.per_class,
            "notes": list(self.notes),
            "test_notes": list(self.test_notes),
            **parts,
        }

    def with_validation_trained(self) -> Split:
        """The same test part; what validated trains, too."""
        joined = np.union1d(self.train, self.validation)
        method = f"{self.method}; {VALIDATION_TRAINS}"
        return replace(self, train=joined, validation=np.empty(0, dtype=np.int64), method=method)

    def with_test_notes(self, notes: Sequence[str]) -> Split:
        """The same split with notes by which its test pictures are not new to the network, or to its settings."""
        return replace(self, notes=(*self.notes, *notes), test_notes=(*self.test_notes, *notes))

    @classmethod
    def from_json(cls, value: Mapping[str, Any], ids: Sequence[str]) -> Split:
        """The split that `to_json` wrote, over pictures with these `ids`.

        Pictures that it does not name are in no part.

        Raises:
            DataError: The manifest is damaged, or names pictures that are not there.
        """
        try:
            names = {part: [str(i) for i in value[part]] for part in PARTS}
            method, seed = str(value["method"]), int(value["seed"])
            notes = tuple(str(note) for note in value["notes"])
            test_notes = tuple(str(note) for note in value.get("test_notes", ()))
            per_class = None if value.get("per_class") is None else int(value["per_class"])
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"The split manifest is damaged ({type(error).__name__}: {error}). It needs the "
                "keys train, validation, test (lists of picture ids), method, seed and notes."
            ) from error
        position = {name: index for index, name in enumerate(ids)}
        _refuse_impossible_ids(names, position, needed=("train", "validation" if method == WITHOUT_TEST else "test"))
        indices = {
            part: np.sort(np.array([position[name] for name in members], dtype=np.int64))
            for part, members in names.items()
        }
        return cls(**indices, method=method, seed=seed, notes=notes, per_class=per_class, test_notes=test_notes)


def _refuse_impossible_ids(
    names: Mapping[str, list[str]], position: Mapping[str, int], *, needed: Sequence[str]
) -> None:
    listed = [name for members in names.values() for name in members]
    if len(set(listed)) < len(listed):
        raise DataError("The split manifest is damaged: a picture is in it more than once.")
    if not all(names[part] for part in needed):
        raise DataError("The split manifest is damaged: a part is empty.")
    missing = [name for name in listed if name not in position]
    if missing:
        raise DataError(
            f"{len(missing):,} of the {len(listed):,} pictures of this split are not in the "
            f"source, for example {', '.join(map(repr, missing[:5]))}. Give the source that the "
            "split was drawn from, or draw a new split by training again."
        )


def make_split(
    *,
    targets: npt.ArrayLike,
    parts: Sequence[str | None] | None = None,
    groups: Sequence[str | None] | None = None,
    content_hashes: Sequence[str] | None = None,
    class_names: Sequence[str] | None = None,
    validation_fraction: float = 0.2,
    test_fraction: float | None = 0.2,
    per_class: int | None = None,
    seed: int,
) -> Split:
    """Split pictures with class indices `targets` (int64 `[N]`) into train, validation and test.

    Parts that the source gives are used as they are. Where it gives no test part, `test_fraction`
    of the rest becomes one, or none is made if that is None, because the caller holds one out; where
    it gives no validation part, `validation_fraction` of what is not test does, none if that is 0. The test part does
    not depend on `validation_fraction` (unless groups leave training nothing that could validate, and the test part
    gives it up). What is drawn has the classes in proportion (within one picture of the exact share, where no
    duplicates or groups tie pictures together), and every class is in the training part.
    With `per_class`, so many pictures of each class stay in the training part (`data/per_class.py`); the
    other parts are the same as without it.
    The result depends on the arguments alone; `class_names` serve the notes and messages.

    Raises:
        DataError: A fraction is outside (0, 1), a part would be empty, or the training part would lack
            a class, or have too few pictures of one for `per_class`.
    """
    labels = np.asarray(targets, dtype=np.int64)
    fractions = {"validation": validation_fraction} if validation_fraction else {}
    if test_fraction is not None:
        fractions["test"] = test_fraction
    for part, fraction in fractions.items():
        if not 0.0 < fraction < 1.0:
            raise DataError(f"{part}_fraction is {fraction}; it must lie between 0 and 1, for example 0.2.")
    units = tie_into_units(len(labels), groups, content_hashes)
    given = _given_parts(parts, len(labels))
    side, method = _assign(labels, units, given, fractions, seed)
    names = class_names or [str(number) for number in range(int(labels.max()) + 1)]
    _check(labels, side, names, needed=("train", *fractions))
    notes, test_notes = _notes(labels, units, side, names)
    train, validation, test = (np.flatnonzero(side == number) for number in range(len(PARTS)))
    split = Split(train, validation, test, method, seed, notes, test_notes=test_notes)
    if per_class is None:
        return split
    return with_few_of_each(
        [split], per_class, labels=labels, units=units, content_hashes=content_hashes, class_names=names, seeds=[seed]
    )[0]


def with_few_of_each(
    splits: Sequence[Split],
    n: int,
    *,
    labels: IntArray,
    units: IntArray,
    content_hashes: Sequence[str] | None,
    class_names: Sequence[str],
    seeds: Sequence[int],
) -> list[Split]:
    """The splits with `n` pictures of each class in their training parts; arguments are those of `draw_per_class`.

    Raises:
        DataError: A class has fewer.
    """
    drawn = draw_per_class(
        [split.train for split in splits],
        n,
        labels=labels,
        units=units,
        content_hashes=content_hashes,
        class_names=class_names,
        seeds=seeds,
    )
    return [replace(split, train=train, per_class=n) for split, train in zip(splits, drawn, strict=True)]


def groups_of(groups: Sequence[str | None] | None, indices: IntArray) -> IntArray | None:
    """The group of each of some pictures as a number, int64 `[n]`; None where no two of them share one.

    A picture without a group is one of its own.
    """
    if groups is None:
        return None
    first: dict[str, int] = {}
    chosen = [groups[i] for i in indices.tolist()]
    numbers = [place if group is None else first.setdefault(group, place) for place, group in enumerate(chosen)]
    found = np.unique(np.array(numbers, dtype=np.int64), return_inverse=True)[1].astype(np.int64)
    return found if len(found) and int(found.max()) + 1 < len(found) else None


def _given_parts(parts: Sequence[str | None] | None, n: int) -> IntArray | None:
    """Given parts as indices into `PARTS`, int64 `[n]`; None for none, or only `train`."""
    if parts is None or set(parts) <= {None, "train"}:
        return None
    if unknown := sorted({str(part) for part in parts} - set(PARTS)):
        raise DataError(
            f"Every picture needs one of the parts {', '.join(PARTS)} once a source names parts, "
            f"but some have {', '.join(unknown)}."
        )
    number = {part: index for index, part in enumerate(PARTS)}
    return np.fromiter((number[str(part)] for part in parts), dtype=np.int64, count=n)


def _assign(
    labels: IntArray,
    units: IntArray,
    given: IntArray | None,
    fractions: Mapping[str, float],
    seed: int,
) -> tuple[IntArray, str]:
    """Each picture's part as an index into `PARTS`, int64 `[N]`, and the method."""
    if given is None:
        return _assign_freely(labels, units, fractions, seed), "stratified"
    absent = [name for name in PARTS if name in ("train", *fractions) and not (given == PARTS.index(name)).any()]
    if "train" in absent:
        raise DataError("The source names a validation or test part but no training part; add one.")
    if not absent:
        return given, "given"
    [part] = absent
    side = given.copy()
    _take_out(side, labels, units, part, fractions[part], seed)
    return side, f"given {'test' if part == 'validation' else 'validation'}, stratified {part}"


def _assign_freely(labels: IntArray, units: IntArray, fractions: Mapping[str, float], seed: int) -> IntArray:
    """The test part first, by nothing but its own fraction, and validation from what it left: int64 `[N]`.

    So trainings with much, little and no validation are tested on the same pictures.
    """
    side = np.zeros(len(labels), dtype=np.int64)
    for turn, part in enumerate(name for name in ("test", "validation") if name in fractions):
        _take_out(side, labels, units, part, fractions[part], seed, turn=turn)
    if {PARTS[number] for number in np.unique(side)} < {"train", *fractions}:
        # A few large groups can leave training nothing that could validate; the test part may have one to spare.
        side = fill_empty_parts(labels, units, side, seed, rows=[PARTS.index(part) for part in fractions])
    return side


def _take_out(
    side: IntArray, labels: IntArray, units: IntArray, part: str, fraction: float, seed: int, *, turn: int = 0
) -> None:
    """Move `fraction` of the pictures that train to `part`; updates `side`."""
    training = np.flatnonzero(side == 0)
    quotas = part_quotas(labels[training], fraction, seed)
    drawn = draw_parts(labels[training], units[training], quotas, seed, first_is_training=True, turn=turn)
    side[training[drawn == 1]] = PARTS.index(part)


def _check(labels: IntArray, side: IntArray, names: Sequence[str], *, needed: Sequence[str]) -> None:
    missing = np.setdiff1d(labels, labels[side == 0])
    if len(missing):
        raise DataError(
            f"The training part has no picture of {listed_classes(missing, names)}, so it could never be "
            "learned. Add some, or leave the class out of the other parts."
        )
    empty = [name for number, name in enumerate(PARTS) if name in needed and not (side == number).any()]
    if empty:
        raise DataError(
            f"{len(labels):,} pictures in {len(np.unique(labels)):,} classes leave nothing for the "
            f"{' and the '.join(empty)} part. Add pictures (duplicates and pictures of one group "
            "count as one), or name the parts in the source."
        )


def _notes(
    labels: IntArray, units: IntArray, side: IntArray, names: Sequence[str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What a user should know of a split, and what of that makes test pictures known ones."""
    notes: list[str] = []
    of_test: list[str] = []
    in_training = np.isin(units, units[side == 0])
    for number, part in ((1, "validation"), (2, "test")):
        if not (side == number).any():
            continue
        absent = np.setdiff1d(labels, labels[side == number])
        if len(absent):
            notes.append(f"The {part} part has no picture of {listed_classes(absent, names)}: too few.")
        straddling = int((in_training & (side == number)).sum())
        if straddling:
            note = (
                f"{straddling:,} of the {int((side == number).sum()):,} pictures of the given "
                f"{part} part are also in training, or share a group with one there: its score "
                "will be too good."
            )
            notes.append(note)
            of_test += [note] if part == "test" else []
    return tuple(notes), tuple(of_test)


def listed_classes(classes: IntArray, names: Sequence[str]) -> str:
    """Up to ten classes by name."""
    shown = ", ".join(repr(names[c]) for c in classes[:10].tolist())
    return shown + (f" and {len(classes) - 10:,} more classes" if len(classes) > 10 else "")
