"""Which pictures a pretrained network knows already: those that the run behind its weights has learned from."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from netloom.data.imageset import ImageSet
from netloom.data.splits import DRAWN_AT_ONCE, Split
from netloom.errors import DataError, NetloomError
from netloom.files import with_home
from netloom.models.pretrained import PUBLISHED, RANDOM
from netloom.recipe import Recipe
from netloom.run import RunFolder
from netloom.workflows.remembered_pictures import EarlierRun, earlier_runs_of, pictures_of_parts

SPLIT_KEYS = ("split_seed", "test_fraction", "validation_fraction")
"""Recipe keys by which a split of the same pictures is drawn."""


@dataclass(frozen=True)
class _Earlier:
    """A run whose network a training starts from.

    Attributes:
        path: Its folder.
        labelled: Whether it looked at labels.
        same_source: Whether it was trained on the very pictures, names and classes that are there now.
        seen: Which of the pictures it learned from, bool `[N]`; None where that is not known.
    """

    path: Path
    labelled: bool
    same_source: bool
    seen: npt.NDArray[np.bool_] | None

    def count(self, indices: npt.NDArray[np.int64]) -> int:
        """How many of some pictures it learned from."""
        return 0 if self.seen is None else int(self.seen[indices].sum())


def with_notes_on_backbone(recipe: Recipe, image_set: ImageSet, split: Split, *, fingerprint: str) -> Split:
    """The split with notes on what a run that the recipe starts from has learned of pictures that are held out.

    Pictures are known by their content, in whatever source they are, where that run's manifest tells it; by their
    names otherwise, if the source is the same.

    Args:
        recipe: With its weights settled.
        image_set: The pictures.
        split: Of them.
        fingerprint: Of them, see `prepare.fingerprint`.

    Raises:
        DataError: Pictures of the test part were trained on with their labels, and the recipe does not allow that
            (`transfer.test_on_seen`).
    """
    for earlier in _earlier_runs(recipe, image_set, fingerprint):
        if n := earlier.count(split.test):
            if earlier.labelled and recipe.transfer is not None and not recipe.transfer.test_on_seen:
                raise DataError(_refusal(earlier, n, len(split.test), recipe))
            split = split.with_test_notes([_note(earlier, n, len(split.test), "the test part")])
        if n := earlier.count(split.validation):
            note = _note(earlier, n, len(split.validation), "the validation part")
            split = replace(split, notes=(*split.notes, note))
        if earlier.seen is None:
            split = split.with_test_notes([_note_of_unknown(earlier)])
    return split


def notes_on_folds(recipe: Recipe, image_set: ImageSet, pool: npt.NDArray[np.int64], *, fingerprint: str) -> list[str]:
    """What is to be said of folds that are drawn from the pictures `pool`, each of which is held out once.

    Other arguments are those of `with_notes_on_backbone`. Nothing is refused: a network that has seen all folds alike
    is still compared fairly with itself.
    """
    return [
        _note_of_unknown(earlier) if earlier.seen is None else _note(earlier, n, len(pool), "the held-out folds")
        for earlier in _earlier_runs(recipe, image_set, fingerprint)
        if (n := earlier.count(pool)) or earlier.seen is None
    ]


def seen_by_earlier_runs(
    folder: RunFolder, image_set: ImageSet, indices: npt.NDArray[np.int64], *, fingerprint: str
) -> list[dict[str, Any]]:
    """Which runs that a trained one started from have learned from `image_set[indices]`, plain values.

    Other arguments are those of `with_notes_on_backbone`; what is no longer there, the run remembers.

    Returns:
        Of each such run `run` (its folder), `labelled` (whether it looked at labels) and `n` (of how many pictures;
        None where that is not known).
    """
    found = (
        {
            "run": str(earlier.path),
            "labelled": earlier.labelled,
            "n": None if earlier.seen is None else earlier.count(indices),
        }
        for earlier in _earlier_runs(folder.recipe, image_set, fingerprint, folder)
    )
    return [one for one in found if one["n"] != 0]


def learned_earlier(recipe: Recipe) -> list[EarlierRun]:
    """What the runs that a training starts from have learned from, for its own run to remember.

    Args:
        recipe: With its weights settled.
    """
    folders, gone = _chain(recipe, None)
    return [*map(EarlierRun.of, folders), *gone]


def _earlier_runs(
    recipe: Recipe, image_set: ImageSet, fingerprint: str, own: RunFolder | None = None
) -> Iterator[_Earlier]:
    """The run that the weights come from, the one that it started from itself, and so on; `own` is the recipe's."""
    folders, gone = _chain(recipe, own)
    for folder in folders:
        facts = folder.data
        same = facts.fingerprint == fingerprint
        seen = pictures_of_parts(folder, image_set, ("train",), same_source=same)
        yield _Earlier(folder.path, bool(facts.class_names), same, seen)
    for one in gone:
        yield _Earlier(one.path, one.labelled, same_source=False, seen=one.seen(image_set))


def _chain(recipe: Recipe, own: RunFolder | None) -> tuple[list[RunFolder], list[EarlierRun]]:
    """The runs that are there, each started from the next, and those before them that are not.

    The latter are as the last that is there remembers them (`own`, where not even the first is), or unknown.
    """
    folders: list[RunFolder] = []
    while (folder := _run_of(recipe)) is not None:
        if folder.path in {one.path for one in folders}:
            return folders, []
        folders.append(folder)
        recipe = folder.recipe
    last = folders[-1] if folders else own
    gone = [] if last is None else earlier_runs_of(last)
    if not gone and (path := _gone_run_of(recipe)) is not None:
        gone = [EarlierRun(path, labelled=True)]
    return folders, gone


def _run_of(recipe: Recipe) -> RunFolder | None:
    """The run in whose folder the recipe's weights lie, if it is there and whole."""
    if recipe.transfer is None or recipe.transfer.weights in (PUBLISHED, RANDOM):
        return None
    weights = with_home(recipe.transfer.weights).resolve()
    # A file in the folder, one of the weights of epochs below it, or the folder itself.
    for path in (weights, weights.parent, weights.parent.parent):
        with contextlib.suppress(NetloomError):
            folder = RunFolder.open(path)
            return folder if folder.split and folder.data else None
    return None


def _gone_run_of(recipe: Recipe) -> Path | None:
    """The folder of the run whose weights the recipe names, where these are no longer there."""
    if recipe.transfer is None or recipe.transfer.weights in (PUBLISHED, RANDOM):
        return None
    weights = with_home(recipe.transfer.weights).resolve()
    if weights.exists():
        return None
    for path in (weights.parent, weights.parent.parent):
        folder = RunFolder(path)
        if weights == folder.weights_path or weights.parent == folder.epoch_weights_path(1).parent:
            return path
    return None


def _note(earlier: _Earlier, n: int, of: int, what: str) -> str:
    begin = f"{n:,} of the {of:,} pictures of {what} were"
    by = f"by the network of {earlier.path}, from which this training starts"
    if not earlier.labelled:
        return f"{begin} learned from without their labels {by}: figures on them may flatter."
    return f"{begin} trained on with their labels {by}: figures on them flatter, and tell little of new pictures."


def _note_of_unknown(earlier: _Earlier) -> str:
    return (
        f"It is not known whether the network of {earlier.path}, from which this training starts, has learned from "
        "some of these pictures: if it has, figures on them flatter."
    )


def _refusal(earlier: _Earlier, n: int, of: int, recipe: Recipe) -> str:
    way = "Test on pictures that it has not seen"
    if earlier.same_source:
        run = RunFolder(earlier.path)
        keys = {key: getattr(run.recipe, key) for key in SPLIT_KEYS}
        if run.split["method"] not in DRAWN_AT_ONCE:
            way = (
                f"Its own parts ({run.split['method']}) are not those that a training would draw. Start from a run of "
                "`netloom train`, whose split is taken over, or test on pictures that it has not seen"
            )
        elif any(getattr(recipe, key) != value for key, value in keys.items()):
            split = " ".join(f"--set {key}={value:g}" for key, value in keys.items())
            way = f"Use the split of that run ({split}), or test on pictures that it has not seen"
    return (
        f"{n:,} of the {of:,} pictures of the test part were trained on, with their labels, by the network of "
        f"{earlier.path}, from which this training starts: the test would tell nothing of new pictures. {way}: a "
        "folder `test`, a column `split`, or another source. --set transfer.test_on_seen=true trains all the same, "
        "and the report says so."
    )
