"""From a recipe to the batches of a training: split, scaling, augmentation, weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from netloom.data.augment import AugmentationSpec, Augmenter
from netloom.data.batches import ImageBatches, InputScaling
from netloom.data.imageset import ImageSet
from netloom.data.mapping import fits_memory
from netloom.data.progressive import ProgressiveSizes
from netloom.errors import RecipeError, did_you_mean
from netloom.inference import inference_batch_size
from netloom.recipe import Recipe
from netloom.workflows.starting_weights import pretrained_scaling


def split_options(recipe: Recipe, image_set: ImageSet) -> dict[str, Any]:
    """How pictures become parts: what `make_split` and `make_folds` share."""
    return {
        "targets": image_set.targets.numpy(),
        "groups": image_set.groups,
        "content_hashes": image_set.content_hashes,
        "class_names": image_set.class_names,
        "validation_fraction": recipe.validation_fraction,
        "per_class": recipe.per_class,
        "seed": recipe.split_seed,
    }


def build_scaling(recipe: Recipe, images: torch.Tensor, train: npt.NDArray[np.int64]) -> InputScaling:
    """From pixels to network inputs; statistics come from the training part alone, or with a pretrained network.

    Raises:
        ModelError: The scaling of a pretrained network is wanted, and not known or for other channels.
    """
    if recipe.input_scaling == "standardize":
        return InputScaling.standardizing(images, train)
    channels = images.shape[1]
    if recipe.input_scaling == "pretrained":
        return pretrained_scaling(recipe, channels)
    return InputScaling.unit(channels) if recipe.input_scaling == "unit" else InputScaling.none(channels)


def build_augmenter(recipe: Recipe) -> Augmenter | None:
    """The augmentation of a recipe, or None if it changes nothing."""
    if recipe.augmentation is None:
        return None
    spec = AugmentationSpec(**recipe.augmentation.model_dump())
    return Augmenter(spec, seed=recipe.seed) if spec.changes_pictures else None


def class_weights(
    recipe: Recipe, targets: npt.NDArray[np.int64], class_names: Sequence[str]
) -> npt.NDArray[np.float32] | None:
    """The weight of each class in the training loss, float32 `[K]`, or None where all weigh the same.

    `auto` is n / (K n_k) for K classes that occur, scikit-learn's `balanced`; a class that does not occur weighs 1.

    Args:
        recipe: Its `class_weight`.
        targets: Class indices `[n]` of the training part.
        class_names: In the order of the indices.

    Raises:
        RecipeError: A weight is given for a class that does not exist.
    """
    if recipe.class_weight is None:
        return None
    weights = np.ones(len(class_names), dtype=np.float32)
    if recipe.class_weight == "auto":
        counts = np.bincount(targets, minlength=len(class_names))
        occurs = counts > 0
        weights[occurs] = len(targets) / (occurs.sum() * counts[occurs])
        return weights
    known = list(class_names)
    if foreign := [name for name in recipe.class_weight if name not in known]:
        hints = "".join(did_you_mean(name, known) for name in foreign)
        raise RecipeError(
            f"class_weight: there is no class {', '.join(map(repr, foreign))}.{hints} "
            f"The classes are {', '.join(known)}."
        )
    for name, weight in recipe.class_weight.items():
        weights[known.index(name)] = weight
    return weights


def sample_weights(recipe: Recipe, image_set: ImageSet, train: npt.NDArray[np.int64]) -> torch.Tensor | None:
    """What each picture weighs in the training loss, float32 `[N]`: its own weight times that of its class."""
    of_class = class_weights(recipe, image_set.targets.cpu().numpy()[train], image_set.class_names)
    if of_class is None:
        return image_set.weights
    weights = torch.from_numpy(of_class).to(image_set.targets.device)[image_set.targets]
    return weights if image_set.weights is None else weights * image_set.weights


def resident(image_set: ImageSet, device: str) -> ImageSet:
    """The pictures on `device` if they may fill half of its free memory; else where they are, to be sent by batches."""
    kind = torch.device(device).type
    if kind == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return image_set.to(device) if image_set.images.nbytes <= free / 2 else image_set
    return image_set.to(device) if kind == "cpu" or fits_memory(image_set.images.nbytes) else image_set


def training_batches(
    recipe: Recipe,
    image_set: ImageSet,
    indices: npt.NDArray[np.int64],
    *,
    scaling: InputScaling,
    device: str | None = None,
) -> ImageBatches:
    """Shuffled, augmented, weighted batches of the training part, on `device` or where the pictures are.

    Raises:
        RecipeError: A class weight is given for a class that does not exist.
    """
    weights = sample_weights(recipe, image_set, indices)
    return ImageBatches(
        image_set.images,
        {"label": image_set.targets},
        indices,
        batch_size=recipe.batch_size,
        scaling=scaling,
        seed=recipe.seed,
        shuffle=True,
        augmenter=build_augmenter(recipe),
        weights=weights,
        device=device,
        sizes=progressive_sizes(recipe),
    )


def progressive_sizes(recipe: Recipe) -> ProgressiveSizes | None:
    """How large pictures are in each epoch, or None where they are always whole."""
    if recipe.progressive_resizing is None:
        return None
    return ProgressiveSizes(**recipe.progressive_resizing.model_dump(), epochs=recipe.epochs)


def plain_batches(
    image_set: ImageSet,
    indices: npt.NDArray[np.int64],
    *,
    batch_size: int,
    scaling: InputScaling,
    device: str | None = None,
) -> ImageBatches:
    """Batches in order, never augmented, for validation, test and prediction, on `device` or where the pictures are."""
    height, width = image_set.images.shape[2:]
    return ImageBatches(
        image_set.images,
        {"label": image_set.targets},
        indices,
        batch_size=inference_batch_size((height, width), batch_size),
        scaling=scaling,
        device=device,
    )
