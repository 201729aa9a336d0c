"""The likeliest classes of new pictures."""

from __future__ import annotations

import glob
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from netloom.data.batches import Batch
from netloom.data.decode import decode_picture
from netloom.data.location import FileLocation, UnreadablePictureError, read_bytes
from netloom.errors import DataError
from netloom.inference import inference_batch_size, predict_outputs
from netloom.progress import OnProgress, Reporter
from netloom.run import DataFacts, RunFolder
from netloom.runtime import executing, keep_freed_memory, on_device, resolve_device, usable_cpus
from netloom.training.callbacks import Callback, CallbackList
from netloom.workflows.builders import build_heads
from netloom.workflows.evaluate import plan_for
from netloom.workflows.runs import load_classifier


def predict(
    run: str | Path | RunFolder,
    paths: str | Path | Iterable[str | Path],
    *,
    top: int = 1,
    device: str = "auto",
    quiet: bool = True,
    callbacks: Sequence[Callback] = (),
) -> list[dict[str, Any]]:
    """Classify pictures.

    Args:
        run: A trained run.
        paths: Files, folders (all files below), or patterns with `*`.
        top: How many classes to give for each picture, likeliest first.
        device: `auto`, `cpu`, `cuda` or `mps`.
        quiet: Show no progress.
        callbacks: Whose prediction hooks are called.

    Returns:
        For each picture `path` and either `predictions`, a list of `{"class", "probability"}`, or `error`, why it
        could not be read.

    Raises:
        DataError: There is no such file, or `top` is below 1.
        RunError: The run is incomplete.
    """
    if top < 1:
        raise DataError(f"top must be at least 1, not {top}.")
    keep_freed_memory()
    opened = load_classifier(run)
    facts = opened.data
    files = _files(paths)
    chosen = resolve_device(device)
    plan, model = plan_for(opened, chosen), on_device(opened.model(), chosen)
    head = build_heads(opened.recipe, facts.class_names)[0]
    size = inference_batch_size(facts.image_size, opened.recipe.batch_size)
    problems: list[str | None] = []
    with (
        executing(plan),
        ThreadPoolExecutor(usable_cpus()) as pool,
        Reporter(quiet=quiet).bar("Predicting") as on_progress,
    ):
        outputs = predict_outputs(
            model,
            _batches(files, facts, problems, batch_size=size, device=chosen, pool=pool, on_progress=on_progress),
            head_names=[head.name],
            plan=plan,
            watch=CallbackList(callbacks).call,
            test_time_augmentation=opened.recipe.test_time_augmentation,
        )
    rows = iter(head.probabilities(outputs[head.name]).numpy())
    return [
        {"path": str(path), "predictions": _top(next(rows), facts, top)}
        if problem is None
        else {"path": str(path), "error": problem}
        for path, problem in zip(files, problems, strict=True)
    ]


def _batches(
    files: Sequence[Path],
    facts: DataFacts,
    problems: list[str | None],
    *,
    batch_size: int,
    device: str,
    pool: ThreadPoolExecutor,
    on_progress: OnProgress,
) -> Iterator[Batch]:
    """The readable pictures of `files`; why a file cannot be read, or None, is put at the end of `problems`."""
    for start in range(0, len(files), batch_size):
        decoded = list(pool.map(lambda path: _decode(path, facts), files[start : start + batch_size]))
        problems += [pixels if isinstance(pixels, str) else None for pixels in decoded]
        readable = [pixels for pixels in decoded if isinstance(pixels, np.ndarray)]
        if readable:
            images = torch.from_numpy(np.stack(readable)).permute(0, 3, 1, 2).to(device)
            yield Batch({"image": facts.scaling(images)}, {})
        on_progress(len(problems), len(files))


def _top(row: npt.NDArray[np.float32], facts: DataFacts, top: int) -> list[dict[str, Any]]:
    order = np.argsort(-row, kind="stable")[:top]
    return [{"class": facts.class_names[i], "probability": float(row[i])} for i in order]


def _decode(path: Path, facts: DataFacts) -> npt.NDArray[np.uint8] | str:
    """Pixels `[H, W, C]` as in training, or why they cannot be had."""
    try:
        data = read_bytes(FileLocation(str(path)))
        return decode_picture(data, size=facts.image_size, resize=facts.resize, channels=facts.channels).pixels
    except UnreadablePictureError as error:
        return error.reason


def _files(paths: str | Path | Iterable[str | Path]) -> list[Path]:
    """The files that `paths` mean, in their order."""
    given = [paths] if isinstance(paths, (str, Path)) else list(paths)
    if "" in given:
        raise DataError("A picture's name is empty. Give files, folders or patterns.")
    files: list[Path] = []
    missing: list[str] = []
    for item in map(Path, given):
        if item.is_dir():
            files += sorted(p for p in item.rglob("*") if p.is_file() and not p.name.startswith("."))
        elif item.exists() or item.is_symlink():
            files.append(item)
        else:
            matched = sorted(map(Path, glob.glob(str(item), recursive=True)))  # noqa: PTH207
            files += [p for p in matched if p.is_file()]
            missing += [] if matched else [str(item)]
    if missing:
        raise DataError(f"No such picture: {', '.join(missing[:5])}. Give files, folders or patterns.")
    if not files:
        raise DataError("No picture was given to predict.")
    return files
