"""Pictures to be learned from without their labels, and which of them are left out for a later test."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from netloom.data.audit import audit
from netloom.data.decoding import suggest_image_size
from netloom.data.imageset import ImageSet, LoadedPictures, load_image_set
from netloom.data.sources import Source, open_pictures
from netloom.data.splits import WITHOUT_TEST, Split, make_split
from netloom.errors import DataError, RunError
from netloom.memory import without_garbage_collection
from netloom.progress import Reporter
from netloom.recipe import Recipe, wanted_channels
from netloom.run import RunFolder
from netloom.run_facts import DataFacts
from netloom.workflows import builders
from netloom.workflows.prepare import data_facts, fingerprint, load_own

# A side of larger pictures, where the recipe names none: four times the pixels take four times as long, and what is in
# a photograph can be told at this size.
_SIDE = 64
_FEWEST_PICTURES = 64
_FEW_PICTURES = 1_000
# Of pictures without classes: they only show how the training goes.
_VALIDATION_FRACTION = 0.05


@dataclass(frozen=True)
class UnlabelledData:
    """Pictures, their split, and what is to be told about them.

    Attributes:
        image_set: Of all parts; its targets are not looked at.
        split: `test` is empty where the pictures have no classes.
        facts: Without class names.
    """

    image_set: ImageSet
    split: Split
    facts: DataFacts


def prepare_unlabelled(source: str | Path | ImageSet, recipe: Recipe, reporter: Reporter) -> UnlabelledData:
    """Open, decode and audit pictures, and set aside those that a training on the same source would test with.

    Raises:
        DataError: The source cannot be used, or holds too few pictures.
    """
    with without_garbage_collection():
        opened = source if isinstance(source, ImageSet) else open_pictures(source)
        loaded = _decoded(opened, recipe, reporter)
        image_set = loaded.image_set
        split = _split(image_set, recipe)
    if len(split.train) < _FEWEST_PICTURES:
        raise DataError(
            f"{loaded.source_name} has {len(split.train):,} pictures to learn from; without labels that takes at least "
            f"{_FEWEST_PICTURES}, and thousands to be of use. Add some, or take a backbone that was trained on others: "
            "`netloom backbones` lists them."
        )
    facts = replace(data_facts(loaded, audit(loaded), recipe, split), class_names=())
    _say_what_is_there(reporter, facts, split, n_classes=len(image_set.class_names))
    for note in loaded.notes:
        reporter.say(f"  note: {note}")
    for rejected in loaded.rejected[:3]:
        reporter.say(f"  note: left out: {rejected.path}: {rejected.reason}")
    return UnlabelledData(image_set, split, facts)


def reopen_unlabelled(folder: RunFolder, source: ImageSet | None, recipe: Recipe, reporter: Reporter) -> UnlabelledData:
    """The very pictures and split that a pretraining was started with.

    Args:
        folder: The run.
        source: The pictures, where the run was trained on pictures in memory.
        recipe: The run's.
        reporter: Shows progress.

    Raises:
        RunError: The pictures are not there any more, or have changed since.
    """
    facts = folder.data
    if source is None and not facts.source_location:
        raise RunError(
            f"{folder.path} was trained on pictures in memory, which are not in the run; resume it from Python and "
            "give them: netloom.resume_pretraining(run, source=image_set)."
        )
    try:
        opened = source if source is not None else open_pictures(facts.source_location)
    except DataError as error:
        raise RunError(f"The pictures of {folder.path} are no longer at {facts.source_location}: {error}") from error
    load = functools.partial(_decoded, recipe=recipe, reporter=reporter)
    image_set = load_own(opened, facts, load).image_set
    if fingerprint(image_set) != facts.fingerprint:
        raise RunError(
            f"The pictures at {facts.source_location or 'hand'} have changed since {folder.path} was started, so its "
            "training cannot go on as it was. Put them back as they were, or train anew."
        )
    return UnlabelledData(image_set, Split.from_json(folder.split, image_set.ids), facts)


def _decoded(source: Source | ImageSet, recipe: Recipe, reporter: Reporter) -> LoadedPictures:
    with reporter.bar("Reading pictures") as on_progress:
        loaded = load_image_set(
            source,
            image_size=recipe.image_size or _suited_size(source),
            resize=recipe.resize,
            channels=wanted_channels(recipe),
            on_progress=on_progress,
        )
    height, width = loaded.image_set.images.shape[2:]
    builders.check_augmentation(recipe, (height, width))
    return loaded


def _suited_size(source: Source | ImageSet) -> tuple[int, int]:
    """Height and width of the pictures where they are small, or of a square."""
    if isinstance(source, ImageSet):
        height, width = source.images.shape[2:]
    elif source.arrays is not None:
        height, width = source.arrays.images.shape[1:3]
    else:
        height, width = suggest_image_size(source.locations, fingerprint=source.fingerprint())
    return (height, width) if max(height, width) <= _SIDE else (_SIDE, _SIDE)


def _split(image_set: ImageSet, recipe: Recipe) -> Split:
    """The parts that a training on these pictures would have; without classes there is nothing to test."""
    if len(image_set.class_names) > 1:
        return make_split(
            targets=image_set.targets.numpy(),
            parts=image_set.splits,
            groups=image_set.groups,
            content_hashes=image_set.content_hashes,
            class_names=image_set.class_names,
            validation_fraction=recipe.validation_fraction,
            test_fraction=recipe.test_fraction,
            seed=recipe.split_seed,
        )
    parts = image_set.splits or (None,) * len(image_set)
    test = np.array([part == "test" for part in parts])  # a folder of that name is left alone
    used = np.flatnonzero(~test)
    hashes = image_set.content_hashes
    drawn = make_split(
        targets=np.zeros(len(used), dtype=np.int64),
        content_hashes=None if hashes is None else [hashes[i] for i in used.tolist()],
        class_names=image_set.class_names,
        validation_fraction=_VALIDATION_FRACTION,
        test_fraction=None,
        seed=recipe.split_seed,
    )
    return Split(
        train=used[drawn.train],
        validation=used[drawn.validation],
        test=np.flatnonzero(test),
        method=WITHOUT_TEST,
        seed=recipe.split_seed,
    )


def _say_what_is_there(reporter: Reporter, facts: DataFacts, split: Split, *, n_classes: int) -> None:
    read_as = "without classes" if n_classes < 2 else f"of {n_classes} classes, split as `netloom train` does"
    height, width = facts.image_size
    n = len(split.train) + len(split.validation) + len(split.test)
    reporter.say(
        f"{facts.source_name}: {n:,} pictures {read_as}, at {width}x{height}, "
        f"{'grey' if facts.channels == 1 else 'colour'}; "
        f"{len(split.train):,} to learn from, {len(split.validation):,} to validate"
        + (f", {len(split.test):,} left for a test" if len(split.test) else "")
    )
    if len(split.train) < _FEW_PICTURES:
        reporter.say(
            f"  note: {len(split.train):,} pictures are few to learn from without labels; a backbone that was trained "
            "on millions (`netloom backbones`) is better where you can get one."
        )
