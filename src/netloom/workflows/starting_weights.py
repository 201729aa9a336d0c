"""Recipes that start from a pretrained network: what they leave open is settled, and the weights put in place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from netloom.data.batches import InputScaling
from netloom.errors import ModelError, NetloomError, RecipeError
from netloom.files import with_home
from netloom.models.backbones import is_backbone
from netloom.models.contract import ImageModel
from netloom.models.pretrained import (
    PUBLISHED,
    RANDOM,
    NetworkInput,
    digest_of,
    find_weights,
    input_of,
    load_pretrained,
    network_of,
    padding_of,
    published_input,
    read_weights,
)
from netloom.recipe import Recipe
from netloom.run import RunFolder


def settle(recipe: Recipe) -> Recipe:
    """The recipe with what its weights decide written down: digest, size of the pictures, colour, padding, options.

    A recipe without pretrained weights, or one that is settled, stays as it is.

    Raises:
        ModelError: The weights are nowhere to be found, damaged, or no longer those that were noted.
    """
    transfer = recipe.transfer
    if transfer is None or transfer.weights == RANDOM:
        return _with_published_input(recipe)
    weights = _weights_file_of_run(transfer.weights)
    path = find_weights(weights, recipe.model)
    digest = _checked_digest(recipe, path)
    known = _input_of(recipe, path)
    said = network_of(path)
    options = said[1] if said is not None and said[0] == recipe.model else {}
    changes: dict[str, Any] = {
        **{key: value for key, value in options.items() if getattr(recipe, key) is None},
        "transfer.weights": weights if weights == PUBLISHED else str(path.resolve()),
        "transfer.weights_sha256": digest,
    }
    if recipe.image_size is None and known is not None:
        changes["image_size"] = list(known.image_size)
    if recipe.color == "auto":
        changes["color"] = _color_of(known)
    padding = padding_of(path, digest) if is_backbone(recipe.model) and recipe.padding is None else None
    if padding is not None:
        changes.setdefault("padding", padding)
    return recipe.replace(**changes)


def _with_published_input(recipe: Recipe) -> Recipe:
    """A network of timm's that is trained from scratch takes pictures of the size and colour it was made for, too."""
    is_open = recipe.image_size is None or recipe.color == "auto"
    if not (is_backbone(recipe.model) and is_open):
        return recipe
    known, changes = published_input(recipe.model), dict[str, Any]()
    if recipe.image_size is None:
        changes["image_size"] = list(known.image_size)
    if recipe.color == "auto":
        changes["color"] = _color_of(known)
    return recipe.replace(**changes)


def _color_of(known: NetworkInput | None) -> str:
    return "grey" if known is not None and len(known.mean) == 1 else "rgb"


def initialize_from_weights(recipe: Recipe, model: nn.Module, *, own: Path | None = None) -> None:
    """Put a recipe's pretrained weights into its network, in place; nothing where it starts from random ones.

    Args:
        recipe: With its weights settled.
        model: The network.
        own: Weights of a run of this recipe that has left the network as it was, in place of those that it began with,
            which may be gone; None for none.

    Raises:
        ModelError: The weights are nowhere to be found, damaged, of another network, or no longer those that were
            noted.
    """
    transfer = recipe.transfer
    if transfer is None or transfer.weights == RANDOM:
        return
    if not isinstance(model, ImageModel):
        raise ModelError(f"Pretrained weights are for models by name, not for {type(model).__name__}. Load your own.")
    path = own or find_weights(_weights_file_of_run(transfer.weights), recipe.model)
    if own is None:
        _checked_digest(recipe, path)
    load_pretrained(model, read_weights(path), name=recipe.model, where=str(path), cut=transfer.cut)


def pretrained_scaling(recipe: Recipe, channels: int) -> InputScaling:
    """From pixels to the inputs that the pretrained network was trained with.

    Raises:
        ModelError: It is not known, or was for pictures of other channels.
    """
    transfer = recipe.transfer
    if transfer is None or transfer.weights == RANDOM:
        known = published_input(recipe.model) if is_backbone(recipe.model) else None
    else:
        known = _input_of(recipe, find_weights(_weights_file_of_run(transfer.weights), recipe.model))
    if known is None:
        raise ModelError(
            "input_scaling: pretrained needs weights whose scaling is known: those of timm's networks, of a run, or a "
            "file with `image_size`, `mean` and `std` in its metadata. Use input_scaling: standardize."
        )
    if len(known.mean) != channels:
        raise ModelError(
            f"The pretrained network is for pictures of {len(known.mean)} channels, and these have {channels}. "
            f"Use color: {'grey' if len(known.mean) == 1 else 'rgb'}."
        )
    return InputScaling(known.mean, known.std)


def _input_of(recipe: Recipe, path: Path) -> NetworkInput | None:
    """What the weights were trained on: as their file says, or the run beside them, or timm of this network."""
    said = input_of(path)
    if said is not None:
        return said
    try:
        facts = RunFolder.open(path.parent).data
    except NetloomError:
        return published_input(recipe.model) if is_backbone(recipe.model) else None
    return NetworkInput(facts.image_size, facts.mean, facts.std)


def _checked_digest(recipe: Recipe, path: Path) -> str:
    assert recipe.transfer is not None
    digest, noted = digest_of(path), recipe.transfer.weights_sha256
    if noted is not None and noted != digest:
        raise ModelError(
            f"The weights {path} are not those that this recipe was first trained with: their SHA-256 begins with "
            f"{digest[:12]}, noted is {noted[:12]}. Put those back, or use transfer.weights_sha256=null to train with "
            "these."
        )
    return digest


def _weights_file_of_run(weights: str) -> str:
    """The weights' file where a run's folder is named; anything else as it is."""
    if weights == PUBLISHED or not with_home(weights).is_dir():
        return weights
    folder = RunFolder.open(with_home(weights))
    if not folder.weights_path.is_file():
        raise RecipeError(f"The run {folder.path} has no weights yet; its training did not finish an epoch.")
    return str(folder.weights_path)
