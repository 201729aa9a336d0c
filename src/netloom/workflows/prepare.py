"""From a source to decoded, audited and split pictures."""

from __future__ import annotations

import functools
import hashlib
import time
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from netloom.compiler_import import import_compiler
from netloom.data.audit import Audit, audit
from netloom.data.cache import cache_directory
from netloom.data.fingerprint import OF_PIXELS
from netloom.data.imageset import ImageSet, LoadedPictures, load_image_set
from netloom.data.mapping import fits_memory
from netloom.data.sources import Source, open_source
from netloom.data.splits import Split, make_split
from netloom.errors import DataError, RunError
from netloom.memory import memory_limit_bytes, without_garbage_collection
from netloom.progress import OnProgress, Reporter
from netloom.recipe import Recipe, wanted_channels
from netloom.run import RunFolder
from netloom.run_facts import DataFacts
from netloom.workflows import builders
from netloom.workflows.head_start import wait_for
from netloom.workflows.seen_pictures import with_notes_on_backbone

_LARGE_CACHE_BYTES = 10**9
# What importing torch's compiler takes.
_IMPORT_SECONDS = 1.0


@dataclass(frozen=True)
class PreparedData:
    """Pictures, their split, and what is to be told about them."""

    image_set: ImageSet
    split: Split
    facts: DataFacts
    pixels_file: Path | None = None
    """The .npy file that the pixels are mapped from; None if they are in memory."""


def prepare_data(source: str | Path | ImageSet, recipe: Recipe, reporter: Reporter) -> PreparedData:
    """Open, decode, audit and split a source as a recipe wants it.

    Raises:
        DataError: The source cannot be used, or the run that the recipe starts from was trained on test pictures.
    """
    with without_garbage_collection():
        return _prepare(source, recipe, reporter)


def _prepare(source: str | Path | ImageSet, recipe: Recipe, reporter: Reporter) -> PreparedData:
    loaded, report = load_pictures(source, recipe, reporter)
    image_set = loaded.image_set
    split = make_split(
        parts=image_set.splits, test_fraction=recipe.test_fraction, **builders.split_options(recipe, image_set)
    )
    facts = data_facts(loaded, report, recipe, split)
    split = with_notes_on_backbone(recipe, image_set, split, fingerprint=facts.fingerprint)
    _say_what_is_there(reporter, facts, image_set, split, [*report.warnings, *_notes_on_room(loaded)])
    return PreparedData(image_set, split, facts, loaded.pixels_file)


def load_pictures(
    source: str | Path | Source | ImageSet, recipe: Recipe, reporter: Reporter
) -> tuple[LoadedPictures, Audit]:
    """Open, decode and audit a source as a recipe wants it.

    Raises:
        DataError: The source cannot be used.
        RecipeError: The pictures are too small for the recipe's augmentation.
    """
    with reporter.bar("Reading pictures") as show:
        on_progress = _importing_meanwhile(show)
        if isinstance(source, (str, Path)):
            wait_for(source, on_progress)
        loaded = load_image_set(
            source,
            image_size=recipe.image_size,
            resize=recipe.resize,
            channels=wanted_channels(recipe),
            on_progress=on_progress,
        )
    height, width = loaded.image_set.images.shape[2:]
    builders.check_augmentation(recipe, (height, width))
    return loaded, audit(loaded)


def data_facts(loaded: LoadedPictures, report: Audit, recipe: Recipe, split: Split) -> DataFacts:
    """What is to be kept of the pictures beside a network that is trained on this split."""
    image_set = loaded.image_set
    scaling = builders.build_scaling(recipe, image_set.images, split.train)
    height, width = image_set.images.shape[2:]
    return DataFacts(
        source_name=loaded.source_name,
        source_location=loaded.source_location,
        class_names=tuple(image_set.class_names),
        image_size=(height, width),
        channels=1 if image_set.images.shape[1] == 1 else 3,
        resize=recipe.resize,
        mean=scaling.mean,
        std=scaling.std,
        fingerprint=fingerprint(image_set),
        audit=report.to_json(),
    )


def reopen_data(folder: RunFolder, source: ImageSet | None, reporter: Reporter) -> PreparedData:
    """The very pictures and split that a run was started with.

    Args:
        folder: The run.
        source: The pictures, where the run was trained on pictures in memory.
        reporter: Shows progress.

    Raises:
        RunError: The pictures are not there any more, or have changed since.
    """
    facts = folder.data
    if source is None and not facts.source_location:
        raise RunError(
            f"{folder.path} was trained on pictures in memory, which are not in the run; "
            "resume it from Python and give them: netloom.resume(run, source=image_set)."
        )
    try:
        opened = source if source is not None else open_source(facts.source_location)
    except DataError as error:
        raise RunError(f"The pictures of {folder.path} are no longer at {facts.source_location}: {error}") from error
    loaded = load_own(opened, facts, functools.partial(_decoded_as_trained, facts=facts, reporter=reporter))
    image_set = loaded.image_set
    if fingerprint(image_set) != facts.fingerprint:
        raise RunError(
            f"The pictures at {facts.source_location or 'hand'} have changed since {folder.path} was started, so its "
            "training cannot go on as it was. Put them back as they were, or train anew."
        )
    return PreparedData(image_set, Split.from_json(folder.split, image_set.ids), facts, loaded.pixels_file)


def load_as_trained(source: Source | ImageSet, facts: DataFacts, reporter: Reporter, *, own: bool = False) -> ImageSet:
    """The pictures of a source, decoded as those that a run was trained on; `own`: it is the run's, see `load_own`."""
    load = functools.partial(_decoded_as_trained, facts=facts, reporter=reporter)
    return (load_own(source, facts, load) if own else load(source)).image_set


def load_own(
    source: Source | ImageSet, facts: DataFacts, load: Callable[[Source | ImageSet], LoadedPictures]
) -> LoadedPictures:
    """What `load` gives of a run's own source, without pictures that could not be read when the run was started.

    One that was left out since the machine was busy, or its drive away, may be readable by now; the run goes on without
    it all the same.
    """
    loaded = load(source)
    if isinstance(source, ImageSet) or fingerprint(loaded.image_set) == facts.fingerprint:
        return loaded
    left_out = {rejected["path"] for rejected in facts.audit.get("rejected", [])}
    if left_out.isdisjoint(loaded.image_set.ids):
        return loaded
    return load(only(source, {sample.id for sample in source.samples} - left_out))


def only(source: Source, ids: Container[str]) -> Source:
    """The source with those of its pictures that have these ids; not of one that holds arrays."""
    return replace(source, samples=[sample for sample in source.samples if sample.id in ids])


def _decoded_as_trained(source: Source | ImageSet, facts: DataFacts, reporter: Reporter) -> LoadedPictures:
    with reporter.bar("Reading pictures") as on_progress:
        return load_image_set(
            source,
            image_size=facts.image_size,
            resize=facts.resize,
            channels=facts.channels,
            on_progress=on_progress,
        )


def fingerprint(image_set: ImageSet) -> str:
    """A digest of the pictures' names, contents, classes and weights if any; equal if and only if these are."""
    digest = hashlib.blake2b(digest_size=16)
    hashes = image_set.content_hashes or ("",) * len(image_set)
    for name, content, target in zip(image_set.ids, hashes, image_set.targets.tolist(), strict=True):
        # Runs of before hold digests without the mark.
        digest.update(f"{name}\0{content.removeprefix(OF_PIXELS)}\0{target}\n".encode(errors="surrogateescape"))
    if image_set.weights is not None:
        digest.update(b"weights\n" + image_set.weights.cpu().numpy().astype("<f4").tobytes())
    return digest.hexdigest()


def _importing_meanwhile(on_progress: OnProgress) -> OnProgress:
    """Import, while others decode for longer than that takes, what the steps of a longer training are traced with."""
    first: tuple[int, float] | None = None
    imported = False

    def update(done: int, total: int) -> None:
        nonlocal first, imported
        on_progress(done, total)
        now = time.perf_counter()
        if first is None:
            first = done, now
        elif not imported and (total - done) * (now - first[1]) > _IMPORT_SECONDS * (done - first[0]) > 0:
            imported = True
            import_compiler()

    return update


def _notes_on_room(loaded: LoadedPictures) -> list[str]:
    """What large sets take on the disk, and whether they are read from there in training."""
    notes = []
    n_bytes, gigabytes = loaded.image_set.images.nbytes, loaded.image_set.images.nbytes / 1e9
    if loaded.cached_bytes >= _LARGE_CACHE_BYTES:
        notes.append(
            f"The decoded pictures take {gigabytes:.1f} GB of disk in {cache_directory()}; NETLOOM_CACHE names another "
            "folder, NETLOOM_CACHE_LIMIT_GB how much is kept for later trainings."
        )
    if not fits_memory(n_bytes):
        notes.append(
            f"The pictures ({gigabytes:.1f} GB) exceed half the memory ({memory_limit_bytes() / 1e9:.1f} GB) and are "
            "read from the disk batch by batch; a smaller image_size may be faster."
        )
    return notes


def _say_what_is_there(
    reporter: Reporter, facts: DataFacts, image_set: ImageSet, split: Split, warnings: Sequence[str]
) -> None:
    height, width = facts.image_size
    few = "" if split.per_class is None else f" ({split.per_class:,} of each class)"
    reporter.say(
        f"{facts.source_name}: {len(image_set):,} pictures of {len(facts.class_names)} classes at "
        f"{width}x{height}, {'grey' if facts.channels == 1 else 'colour'}; "
        f"{len(split.train):,} to train{few}, {len(split.validation):,} to validate, {len(split.test):,} to test"
    )
    for warning in [*warnings, *split.notes]:
        reporter.say(f"  note: {warning}")
