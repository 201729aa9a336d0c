"""The likeliest classes of new pictures."""

from __future__ import annotations

import functools
import glob
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from netloom.data.batches import Batch
from netloom.data.decoding_files import Decoded, decode_in_batches
from netloom.data.location import FileLocation
from netloom.data.prefetch import prefetched
from netloom.data.source_files import list_folder
from netloom.errors import DataError
from netloom.inference import inference_batch_size, predict_outputs
from netloom.progress import OnProgress, Reporter
from netloom.run import RunFolder
from netloom.run_facts import DataFacts
from netloom.runtime import executing, keep_freed_memory, on_device, resolve_device, usable_cpus
from netloom.training.callbacks import Callback, CallbackList
from netloom.workflows.builders import build_heads
from netloom.workflows.evaluate import plan_for
from netloom.workflows.runs import load_classifier

Listed = tuple[Path, "str | None"]
"""A file that is to be predicted, or something left out, and why."""


def predict(
    run: str | Path | RunFolder,
    paths: str | Path | Iterable[str | Path],
    *,
    top: int = 1,
    device: str = "auto",
    quiet: bool = True,
    callbacks: Sequence[Callback] = (),
) -> list[dict[str, Any]]:
    """Classify pictures, each decoded in a process apart, since they may be a stranger's.

    Args:
        run: A trained run.
        paths: Files, folders (all files below that are not hidden, as in training), or patterns with `*`.
        top: How many classes to give for each picture, likeliest first.
        device: `auto`, `cpu`, `cuda` or `mps`.
        quiet: Show no progress.
        callbacks: Whose prediction hooks are called.

    Returns:
        For each picture `path` and either `predictions`, a list of `{"class", "probability"}`, or `error`, why it
        could not be read; likewise for each folder below a given one that cannot be looked at.

    Raises:
        DataError: There is no such file, it cannot be looked at, or `top` is below 1.
        RunError: The run is incomplete.
    """
    if top < 1:
        raise DataError(f"top must be at least 1, not {top}.")
    keep_freed_memory()
    opened = load_classifier(run)
    facts = opened.data
    listed = _files(paths)
    files = [path for path, reason in listed if reason is None]
    chosen = resolve_device(device)
    head = build_heads(opened.recipe, facts.class_names)[0]
    decode = functools.partial(
        decode_in_batches,
        [FileLocation(str(path)) for path in files],
        batch_size=inference_batch_size(facts.image_size, opened.recipe.batch_size),
        image_size=facts.image_size,
        resize=facts.resize,
        channels=facts.channels,
        jobs=usable_cpus(),
    )
    problems: list[str | None] = []
    # The first pictures are decoded while the network is made: a worker for one takes no longer than that.
    with prefetched(decode) as decoded, Reporter(quiet=quiet).bar("Predicting") as on_progress:
        plan, model = plan_for(opened, chosen), on_device(opened.model(), chosen)
        with executing(plan):
            outputs = predict_outputs(
                model,
                _batches(decoded, len(files), facts, problems, device=chosen, on_progress=on_progress),
                head_names=[head.name],
                plan=plan,
                watch=CallbackList(callbacks).call,
                test_time_augmentation=opened.recipe.test_time_augmentation,
            )
    rows, answers = iter(head.probabilities(outputs[head.name]).numpy()), iter(problems)
    told = ((path, next(answers) if reason is None else reason) for path, reason in listed)
    return [
        {"path": str(path), "predictions": _top(next(rows), facts, top)}
        if problem is None
        else {"path": str(path), "error": problem}
        for path, problem in told
    ]


def _batches(
    decoded: Iterator[Decoded],
    n_files: int,
    facts: DataFacts,
    problems: list[str | None],
    *,
    device: str,
    on_progress: OnProgress,
) -> Iterator[Batch]:
    """The readable pictures; why a file cannot be read, or None, is put at the end of `problems`."""
    for pictures in decoded:
        problems += [pixels if isinstance(pixels, str) else None for pixels in pictures]
        readable = [pixels for pixels in pictures if isinstance(pixels, np.ndarray)]
        if readable:
            images = torch.from_numpy(np.stack(readable)).permute(0, 3, 1, 2).to(device)
            yield Batch({"image": facts.scaling(images)}, {})
        on_progress(len(problems), n_files)


def _top(row: npt.NDArray[np.float32], facts: DataFacts, top: int) -> list[dict[str, Any]]:
    order = np.argsort(-row, kind="stable")[:top]
    return [{"class": facts.class_names[i], "probability": float(row[i])} for i in order]


def _files(paths: str | Path | Iterable[str | Path]) -> list[Listed]:
    """The files that `paths` mean, in their order."""
    given = [paths] if isinstance(paths, (str, Path)) else list(paths)
    if "" in given:
        raise DataError("A picture's name is empty. Give files, folders or patterns.")
    files: list[Listed] = []
    missing: list[str] = []
    for item in map(Path, given):
        try:
            found = _files_of(item)
        except OSError as error:
            told = str(item) if len(str(item)) < 200 else f"{str(item)[:200]}…"
            raise DataError(f"{told} cannot be looked at: {error.strerror or error}.") from error
        files += found or []
        missing += [str(item)] if found is None else []
    if missing:
        raise DataError(f"No such picture: {', '.join(missing[:5])}. Give files, folders or patterns.")
    if not files:
        raise DataError("No picture was given to predict.")
    return files


def _files_of(item: Path) -> list[Listed] | None:
    """The files that one path or pattern means; None where there is nothing of that name.

    Raises:
        OSError: The system does not say, for want of permission say.
    """
    if item.is_dir():
        with os.scandir(item):  # a folder that cannot be looked at itself is refused, not left out
            pass
        entries, rejected = list_folder(item)
        listed: list[Listed] = [(item.joinpath(*entry.parts), None) for entry in entries]
        return sorted([*listed, *((item / one.path, one.reason) for one in rejected)], key=lambda one: one[0])
    if item.exists() or item.is_symlink():
        return [(item, None)]
    matched = sorted(map(Path, glob.glob(str(item), recursive=True)))  # noqa: PTH207
    return [(p, None) for p in matched if p.is_file()] if matched else None
