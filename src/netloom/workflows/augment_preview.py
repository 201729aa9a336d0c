"""What a recipe's augmentation does to a training picture."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from netloom.data.augment import Augmenter
from netloom.data.imageset import ImageSet
from netloom.errors import DataError, RecipeError, RunError, did_you_mean
from netloom.files import prepare_to_write, safe_name, write_atomically
from netloom.progress import Reporter
from netloom.recipe import Recipe
from netloom.recipe.groups import Augmentation
from netloom.workflows import builders
from netloom.workflows.prepare import PreparedData, prepare_data
from netloom.workflows.train import recipe_for

_MIXING = ("mixup", "cutmix")


def augment_preview(
    source: str | Path | ImageSet,
    recipe: str | Path | Recipe | None = None,
    *,
    picture: str | int | None = None,
    rows: int = 4,
    columns: int = 6,
    plot: str | Path | None = None,
    force: bool = False,
    quiet: bool = True,
    settings: Mapping[str, Any] | None = None,
    **overrides: Any,
) -> dict[str, Any]:
    """Draw a training picture as it is and as a training with this recipe meets it, epoch by epoch.

    Args:
        source: A folder, an archive, a CSV file, a named set, or an ImageSet.
        recipe: A shipped recipe's name, a YAML file or a Recipe; the source's own default without one.
        picture: Id of a training picture, or its number among them, counted from 1; the first without it.
        rows: Of the grid, at least 1.
        columns: Of the grid, at least 2.
        plot: The `.png` file; a new `augmented-<source>.png` in the current folder without it. Its folder is
            made.
        force: Replace `plot` if it exists.
        quiet: Say nothing while pictures are read.
        settings: Recipe keys to change, dotted ones too.
        **overrides: Recipe keys to change.

    Returns:
        `plot` (the file written), `picture` (its id), `class`, `epochs` (pictures drawn beside the original) and
        `augmentation` (the keys that change something).

    Raises:
        RecipeError: The recipe changes no picture.
        DataError: There is no such training picture.
        RunError: The file exists or cannot be written.
    """
    if rows < 1 or columns < 2:
        raise RunError(f"A grid of {rows} rows and {columns} columns shows nothing; take at least 1 and 2.")
    path = None if plot is None else _checked(Path(plot), force=force)
    chosen = recipe_for(source, recipe, {**(settings or {}), **overrides})
    augmenter = builders.build_augmenter(chosen)
    if augmenter is None or chosen.augmentation is None:
        raise RecipeError(_nothing_to_show(chosen))
    data = prepare_data(source, chosen, Reporter(quiet=quiet))
    index = _training_picture(data, picture)
    versions = _versions(augmenter, data.image_set.images, index, epochs=rows * columns - 1)
    used = chosen.augmentation.model_dump(exclude_defaults=True)
    name = data.image_set.ids[index]
    class_name = data.facts.class_names[int(data.image_set.targets[index])]
    from netloom.report.grid import draw_grid

    caption = f"{name} ({class_name}), recipe {chosen.name}; framed: the original\n{_in_words(used)}"
    path = path or _new_path(data.facts.source_name)
    write_atomically(path, draw_grid(versions, columns=columns, caption=caption))
    return {
        "plot": str(path),
        "picture": name,
        "class": class_name,
        "epochs": len(versions) - 1,
        "augmentation": used,
    }


def _checked(path: Path, *, force: bool) -> Path:
    if path.suffix.lower() != ".png":
        raise RunError(f"--plot {path}: expected a name that ends in .png.")
    prepare_to_write(path, force=force)
    return path


def _new_path(source_name: str) -> Path:
    """`augmented-<source>.png` in the current folder, with a number where that is taken."""
    stem = f"augmented-{safe_name(source_name)}"
    names = itertools.chain([f"{stem}.png"], (f"{stem}-{number}.png" for number in itertools.count(2)))
    return next(path for path in map(Path, names) if not path.exists())


def _nothing_to_show(recipe: Recipe) -> str:
    keys = ", ".join(name for name in Augmentation.model_fields if name not in _MIXING)
    mixing = recipe.augmentation is not None and (recipe.augmentation.mixup or recipe.augmentation.cutmix)
    what = "only mixes the pictures of a batch" if mixing else "has no augmentation"
    return (
        f"The recipe {recipe.name!r} {what}, so every picture is shown to the network as it is. Turn augmentation on, "
        f"for example with --set augmentation.rotation=15. Its keys: {keys}; docs/recipes.md explains them."
    )


def _training_picture(data: PreparedData, wanted: str | int | None) -> int:
    """Place in the ImageSet of the picture that is meant.

    Raises:
        DataError: There is none, or it is not in the training part.
    """
    train, ids = data.split.train.tolist(), data.image_set.ids
    if wanted is None:
        return int(train[0])
    text = str(wanted)
    if text in ids:
        index = ids.index(text)
        if index in set(train):
            return index
        raise DataError(f"The picture {text!r} is not in the training part, and other pictures are never augmented.")
    if text.isdecimal() and 1 <= int(text) <= len(train):
        return int(train[int(text) - 1])
    hint = did_you_mean(text, (ids[i] for i in train))
    raise DataError(
        f"There is no training picture {text!r}.{hint} Give an id as the audit shows it, such as {ids[train[0]]!r}, "
        f"or a number from 1 to {len(train)}."
    )


def _versions(augmenter: Augmenter, images: torch.Tensor, index: int, *, epochs: int) -> npt.NDArray[np.uint8]:
    """The picture as it is and as it is in each of the first epochs, uint8 `[1 + epochs, C, H, W]`."""
    original, samples = images[index : index + 1], np.array([index])
    changed = [
        augmenter.apply(original, augmenter.draw(epoch=epoch, samples=samples)).round().to(torch.uint8)
        for epoch in range(epochs)
    ]
    versions: npt.NDArray[np.uint8] = torch.cat([original, *changed]).numpy()
    return versions


def _in_words(used: Mapping[str, Any]) -> str:
    words = ", ".join(_key_in_words(name, value) for name, value in used.items() if name not in _MIXING)
    mixed = " and ".join(name for name in _MIXING if name in used)
    return f"{words}; not shown: {mixed}, which blends the pictures of a batch" if mixed else words


def _key_in_words(name: str, value: Any) -> str:
    words = name.replace("_", " ")
    if value is True:
        return words
    return f"{words} {value:g}" if isinstance(value, float) else f"{words} {value}"
