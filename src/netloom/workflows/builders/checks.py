"""Whether pictures and network fit what a recipe does with them: told before a run is made."""

from __future__ import annotations

import torch
from torch import nn

from netloom.data.splits import Split
from netloom.errors import ModelError, RecipeError
from netloom.recipe import Recipe
from netloom.workflows.builders.models import is_solved_at_once, learns_from_features
from netloom.workflows.builders.pictures import progressive_sizes
from netloom.workflows.builders.training import as_in_training

_TOO_FEW_VALUES = "more than 1 value per channel"  # in the message of torch's batch normalization


def check_augmentation(recipe: Recipe, image_size: tuple[int, int]) -> None:
    """See that pictures of `image_size` (height, width) are large enough for their augmentation.

    Raises:
        RecipeError: `shifted_crop` would pad them by more pixels than they have.
    """
    reach = 0 if recipe.augmentation is None else recipe.augmentation.shifted_crop
    height, width = image_size
    if reach > min(height, width):
        raise RecipeError(
            f"augmentation.shifted_crop is {reach} pixels, more than the pictures have ({width}x{height}); take at "
            f"most {min(height, width)}, or larger pictures (image_size)."
        )


def note_on_unused(recipe: Recipe) -> str | None:
    """Which keys that a person may have set change nothing of a classifier of features, as a sentence."""
    if not learns_from_features(recipe) or recipe.transfer is None:
        return None
    at_once = is_solved_at_once(recipe)
    given = [key for key in ("dense_units", "dense_dropout") if at_once and getattr(recipe, key)]
    if recipe.augmentation is not None and not recipe.transfer.views:
        given.append("augmentation")
    if recipe.progressive_resizing is not None:
        given.append("progressive_resizing")
    if not given:
        return None
    how = "is solved at once from" if at_once else "is trained on"
    layers = "transfer.classifier=network trains dense layers, " if at_once else ""
    return (
        f"{' and '.join(given)} {'changes' if len(given) == 1 else 'change'} nothing: the classifier "
        f"{recipe.transfer.classifier} {how} features of the pictures as they are. "
        f"{layers}transfer.views=N takes augmented views."
    )


def check_monitors(recipe: Recipe, split: Split) -> None:
    """See that what the recipe watches is measured.

    Raises:
        RecipeError: It watches the validation part, and there is none.
    """
    if len(split.validation) or is_solved_at_once(recipe):
        return
    stopping, plateau = recipe.early_stopping, recipe.reduce_on_plateau
    watching = {
        "keep=last": recipe.monitor if recipe.keep == "best" else None,
        "early_stopping=null": None if stopping is None else stopping.monitor,
        "reduce_on_plateau=null": None if plateau is None else plateau.monitor,
    }
    unmeasured = {remedy: name for remedy, name in watching.items() if name and name.startswith("validation")}
    if unmeasured:
        keys = [f"{remedy.partition('=')[0]} ({name})" for remedy, name in unmeasured.items()]
        raise RecipeError(
            f"There is no validation part, which {' and '.join(keys)} would watch. Use "
            f"{' '.join(f'--set {remedy}' for remedy in unmeasured)}, watch train_loss, or give a validation part "
            "(validation_fraction above 0)."
        )


def check_single_pictures(
    recipe: Recipe, network: nn.Module, *, channels: int, image_size: tuple[int, int], n_train: int
) -> None:
    """See that a network, as `build_model` gives it, can be trained on batches of one picture, where there are such.

    Batch normalization needs the variance of several values: of several pictures, where a channel is one number.

    Raises:
        ModelError: It cannot.
    """
    if min(recipe.batch_size, n_train) > 1 or is_solved_at_once(recipe):
        return
    if learns_from_features(recipe):  # the rest of the network is never in training mode
        fails = any(isinstance(module, nn.BatchNorm1d) for module in network.modules())
    else:
        sizes = progressive_sizes(recipe)
        fails = _fails_on_one(recipe, network, channels, image_size if sizes is None else sizes.at(0, image_size))
    if fails:
        raise ModelError(
            f"The network has a batch normalization of single numbers, which cannot be trained on batches of one "
            f"picture (batch_size: {recipe.batch_size}, {n_train:,} to train): one number has no variance. Take a "
            "batch_size of at least 2, or no normalization there (dense_normalization=none)."
        )


def _fails_on_one(recipe: Recipe, network: nn.Module, channels: int, image_size: tuple[int, int]) -> bool:
    replica = as_in_training(recipe, network)
    parameter = next(replica.parameters())
    try:
        with torch.no_grad():
            replica(torch.zeros(1, channels, *image_size, device=parameter.device))
    except ValueError as error:
        return _TOO_FEW_VALUES in str(error)
    return False
