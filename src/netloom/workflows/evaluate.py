"""Score a run on a part of its own data, or on other labelled pictures."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from netloom.data.imageset import ImageSet
from netloom.data.sources import open_source
from netloom.data.splits import Split, groups_of
from netloom.errors import DataError, NetloomError, RunError
from netloom.evaluation.holdout import Evaluation, evaluate_model
from netloom.inference import Watch, unwatched
from netloom.progress import Reporter
from netloom.run import RunFolder
from netloom.runtime import ExecutionPlan, keep_freed_memory, on_device, resolve_device, training_threads
from netloom.training.callbacks import Callback, CallbackList
from netloom.workflows import builders
from netloom.workflows.prepare import fingerprint, load_as_trained
from netloom.workflows.remembered_pictures import already_seen, training_classes
from netloom.workflows.runs import Run, load_classifier
from netloom.workflows.seen_pictures import seen_by_earlier_runs

PARTS = ("train", "validation", "test")


def evaluate(
    run: str | Path | RunFolder,
    source: str | Path | None = None,
    *,
    part: str | None = None,
    device: str = "auto",
    quiet: bool = True,
    callbacks: Sequence[Callback] = (),
) -> dict[str, Any]:
    """Score the run's kept weights.

    Without `source`, on a part of the data it was trained with, as its manifest says, the test part if none is named.
    With one, on all pictures of that source, whose class names must be among the run's. The prediction hooks of
    `callbacks` are called.

    Returns:
        Accuracy with n and 95% interval, macro F1, log loss, calibration error, confusion matrix, scores per class;
        `seen` says how many of the pictures, by content, are in each part of the run, `seen_by_earlier_runs` how many
        the runs that it started from have learned from, `seen_in_training` whether the one or the other holds of any,
        which makes the score too good, `seen_in_validation` whether any of them validated the training, so that they
        may have chosen its epoch or recipe (each null where that is not known), `test_notes` what the training told of
        its test part, if that is scored, and `source_changed` whether the run's own pictures are others than when it
        was trained.

    Raises:
        RunError: The run is incomplete, its own data are no longer where they were, or a part is named beside a
            source.
        DataError: The source does not fit the run.
    """
    keep_freed_memory()
    opened = load_classifier(run)
    if part is not None and source is not None:
        raise RunError(f"Part {part!r} is one of the run's own data; of {source}, all pictures are scored.")
    part = part or "test"
    if part not in PARTS:
        raise RunError(f"Part {part!r} is unknown: one of {', '.join(PARTS)}.")
    image_set, train_targets, indices = _pictures(opened, source, part, Reporter(quiet=quiet))
    found = fingerprint(image_set)
    unchanged = found == opened.data.fingerprint
    watch = CallbackList(callbacks).call
    evaluation = score(opened, image_set, indices, train_targets=train_targets, device=device, watch=watch)
    seen = already_seen(opened, image_set, indices)
    earlier = seen_by_earlier_runs(opened, image_set, indices, fingerprint=found)
    in_training, in_validation = _seen_in(opened, seen, None if source is not None else part, unchanged=unchanged)
    if any(one["n"] for one in earlier):
        in_training = True
    elif earlier and not in_training:
        in_training = None
    recorded = opened.result.get(part, {}).get("accuracy") if source is None else None
    return {
        "run": str(opened.path),
        "source": str(source) if source is not None else opened.data.source_name,
        "part": part if source is None else "all",
        **evaluation.to_json(),
        "test_time_augmentation": opened.recipe.test_time_augmentation,
        "recorded_accuracy": recorded,
        "seen": seen,
        "seen_by_earlier_runs": earlier,
        "seen_in_training": in_training,
        "seen_in_validation": in_validation,
        "test_notes": list(opened.result.get("test_notes", ())) if source is None and part == "test" else [],
        "source_changed": not unchanged if source is None else None,
    }


def score(
    run: Run,
    image_set: ImageSet,
    indices: npt.NDArray[np.int64],
    *,
    train_targets: npt.NDArray[np.int64],
    device: str = "auto",
    watch: Watch = unwatched,
) -> Evaluation:
    """Score the run's model on `image_set[indices]`, executed as the run was if the device is the same."""
    recipe, facts, chosen = run.recipe, run.data, resolve_device(device)
    head = builders.build_heads(recipe, facts.class_names)[0]
    plan = plan_for(run, chosen)
    return evaluate_model(
        on_device(run.model(), chosen),
        builders.plain_batches(
            builders.resident(image_set, chosen),
            indices,
            batch_size=recipe.batch_size,
            scaling=facts.scaling,
            device=chosen,
        ).epoch(),
        head=head,
        targets=image_set.targets.numpy()[indices],
        groups=groups_of(image_set.groups, indices),
        train_targets=train_targets,
        plan=plan,
        watch=watch,
        test_time_augmentation=recipe.test_time_augmentation,
    )


def _seen_in(
    run: Run, seen: Mapping[str, int] | None, part: str | None, *, unchanged: bool
) -> tuple[bool | None, bool | None]:
    """Whether any of the pictures are in the run's training part, and in its validation part; None where unknown.

    Args:
        run: That is scored.
        seen: What `already_seen` says of the pictures.
        part: Which part of its own they are, or None for those of a source that was named.
        unchanged: Whether that source holds the very pictures of the run.
    """
    if seen is not None:
        return seen["train"] > 0, seen["validation"] > 0
    if not unchanged:
        return None, part == "validation" or None
    if part is None:
        return True, bool(run.split["validation"])
    return part == "train", part == "validation"


def plan_for(run: RunFolder, device: str) -> ExecutionPlan:
    """The run's own execution plan where it fits this device, else float32; all threads predict."""
    with contextlib.suppress(NetloomError):
        if run.plan.device == device:
            return run.plan.predicting_with_all_threads()
    return ExecutionPlan(device, training_threads(), "float32", "another device than in training")


def _pictures(
    run: Run, source: str | Path | None, part: str, reporter: Reporter
) -> tuple[ImageSet, npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The pictures, the training part's classes, and which pictures are scored."""
    facts = run.data
    place = facts.source_location if source is None else source
    if not facts.source_location and source is None:
        raise RunError(
            f"{run.path} was trained on pictures in memory, which are not in the run. Give the pictures: "
            "netloom evaluate RUN SOURCE."
        )
    try:
        opened = open_source(place)
    except DataError as error:
        if source is not None:
            raise
        raise RunError(
            f"The pictures of {run.path} are no longer at {place}: {error} "
            "Say where they are: netloom evaluate RUN SOURCE."
        ) from error
    image_set = _with_classes_of(run, load_as_trained(opened, facts, reporter, own=source is None))
    targets = image_set.targets.numpy()
    if source is not None:
        learned = training_classes(run)
        return image_set, targets if learned is None else learned, np.arange(len(image_set))
    split = Split.from_json(run.split, image_set.ids)
    if not len(getattr(split, part)):
        raise RunError(f"{run.path} has no {part} part: it was trained without one. Score it on --part test.")
    return image_set, targets[split.train], getattr(split, part)


def _with_classes_of(run: Run, image_set: ImageSet) -> ImageSet:
    """The same pictures with the run's class indices.

    Raises:
        DataError: They have a class that the run does not know.
    """
    known = run.data.class_names
    if tuple(image_set.class_names) == known:
        return image_set
    foreign = [name for name in image_set.class_names if name not in known]
    if foreign:
        raise DataError(
            f"The run {run.path} knows the classes {', '.join(known)}; the source also has {', '.join(foreign)}."
        )
    order = torch.tensor([known.index(name) for name in image_set.class_names])
    return replace(image_set, targets=order[image_set.targets], class_names=known)
