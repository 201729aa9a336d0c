"""From a recipe to a network and what its outputs mean."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from netloom.data.batches import InputScaling
from netloom.data.imageset import ImageSet
from netloom.errors import ModelError, RecipeError
from netloom.features import FeatureExtractor
from netloom.models.contract import ImageModel, output_layer
from netloom.models.heads import Head
from netloom.models.registry import create_model
from netloom.models.whitening import freeze_first_convolution, whiten_first_convolution
from netloom.randomness import derive_seed
from netloom.recipe import Recipe
from netloom.recipe.groups import CUSTOM_MODEL
from netloom.run_facts import DataFacts
from netloom.training.neighbours import NearestNeighbours
from netloom.workflows.builders.pictures import progressive_sizes
from netloom.workflows.builders.training import build_freezing

# Whitening needs moments of a few numbers, which this many pictures, or fewer large ones, fix well enough.
_PICTURES_TO_WHITEN, _PIXELS_TO_WHITEN = 5_000, 5_000_000
CustomModel = nn.Module | Callable[..., nn.Module]


def build_heads(recipe: Recipe, class_names: Sequence[str]) -> list[Head]:
    """What the network's outputs mean.

    Raises:
        RecipeError: One sigmoid output was asked for and there are not two classes, or the recipe learns no classes.
    """
    if recipe.self_supervised is not None:
        raise RecipeError(
            "This recipe learns without labels (self_supervised), so that it gives no classifier. `netloom pretrain "
            "SOURCE` trains it; `netloom transfer SOURCE --backbone RUN` makes a classifier of what came out."
        )
    if recipe.loss == "cross_entropy":
        return [Head(name="label", kind="softmax", class_names=tuple(class_names))]
    if len(class_names) != 2:
        raise RecipeError(
            f"loss: binary_cross_entropy is for two classes, and there are {len(class_names)}. "
            "Use --set loss=cross_entropy."
        )
    return [Head(name="label", kind="sigmoid", class_names=tuple(class_names))]


def build_model(
    recipe: Recipe,
    *,
    in_channels: int,
    num_outputs: int,
    image_size: tuple[int, int],
    custom: CustomModel | None = None,
) -> nn.Module:
    """The network of a recipe, its weights drawn from the seed; what never trains requires no gradients.

    Raises:
        ModelError: The model does not fit the pictures or the options, or a custom one is missing.
    """
    if recipe.model != CUSTOM_MODEL:
        model: nn.Module = create_model(
            recipe.model,
            in_channels=in_channels,
            num_outputs=num_outputs,
            image_size=image_size,
            seed=recipe.seed,
            options=recipe.model_options(),
        )
    elif custom is None:
        raise ModelError(
            f"This recipe uses a model of yours ({recipe.custom_model}), which no file can bring back. "
            "Give it: netloom.load(run, model=...) or netloom.train(source, model=...)."
        )
    else:
        model = _make_custom(
            custom,
            recipe.seed,
            in_channels=in_channels,
            num_outputs=num_outputs,
            image_size=image_size,
        )
        _check_custom(model, in_channels, num_outputs, image_size)
    if recipe.first_layer == "frozen_whitening":
        freeze_first_convolution(model)
    freezing = build_freezing(recipe, model)
    if freezing is not None:
        freezing.prepare(model)
    if recipe.progressive_resizing is not None:
        _check_smallest(recipe, model, in_channels, image_size)
    if learns_from_features(recipe):
        _prepare_for_features(recipe, model)
    return model


def build_network(recipe: Recipe, facts: DataFacts, custom: CustomModel | None = None) -> tuple[nn.Module, list[Head]]:
    """The network of a recipe for the pictures that `facts` tell of, and what its outputs mean.

    Raises:
        NetloomError: As `build_heads` and `build_model` raise it.
    """
    heads = build_heads(recipe, facts.class_names)
    network = build_model(
        recipe,
        in_channels=facts.channels,
        num_outputs=heads[0].num_outputs,
        image_size=facts.image_size,
        custom=custom,
    )
    return network, heads


def learns_from_features(recipe: Recipe) -> bool:
    """Whether a head is trained on features that are computed once, in front of a network that stays as it is."""
    return recipe.transfer is not None and recipe.transfer.mode == "features"


def is_solved_at_once(recipe: Recipe) -> bool:
    """Whether what is trained has no epochs: a classifier that is fitted to features in one go."""
    return learns_from_features(recipe) and recipe.transfer is not None and recipe.transfer.classifier != "network"


def initialize_from_pictures(
    recipe: Recipe,
    model: nn.Module,
    image_set: ImageSet,
    train: npt.NDArray[np.int64],
    *,
    scaling: InputScaling,
) -> None:
    """Set what starts from the training pictures, in place: a whitened first layer, where the recipe wants it.

    Raises:
        ModelError: There is no convolution to be whitened.
    """
    if recipe.first_layer == "random":
        return
    height, width = image_set.images.shape[2:]
    n = max(1, min(_PICTURES_TO_WHITEN, _PIXELS_TO_WHITEN // (height * width), len(train)))
    chosen = train[np.linspace(0, len(train) - 1, n).astype(np.int64)]
    rows = torch.from_numpy(chosen).to(image_set.images.device)
    whiten_first_convolution(
        model, (scaling(image_set.images.index_select(0, part)) for part in torch.split(rows, 256))
    )


def parameters_in_words(model: nn.Module) -> str:
    """`16,812,353 parameters, of which 2,097,665 train`."""
    counts = [(p.numel(), p.requires_grad) for p in model.parameters()]
    total, trained = sum(n for n, _ in counts), sum(n for n, trains in counts if trains)
    return f"{total:,} parameters" + ("" if trained == total else f", of which {trained:,} train")


def _prepare_for_features(recipe: Recipe, model: nn.Module) -> None:
    """Freeze what gives features, and put the classifier that the recipe wants right behind it, in place.

    Raises:
        ModelError: It is not divided into trunk, head and classifier.
    """
    if not isinstance(model, ImageModel):
        raise ModelError(
            f"transfer.mode: features needs a model that is divided into trunk, head and classifier; "
            f"{type(model).__name__} is not. Give one of `netloom models`, a backbone, or a netloom.models.ImageModel."
        )
    extractor = FeatureExtractor(model)
    extractor.requires_grad_(False)
    if not is_solved_at_once(recipe) or recipe.transfer is None:
        return
    num_outputs, width = model.classifier.out_features, extractor.num_features
    classifier: nn.Module = output_layer(width, num_outputs, generator=torch.Generator().manual_seed(recipe.seed))
    if recipe.transfer.classifier == "knn":
        classifier = NearestNeighbours(width, num_classes=max(2, num_outputs), num_outputs=num_outputs)
    model.head, model.classifier = extractor.pooling, classifier  # type: ignore[assignment]


def _check_smallest(recipe: Recipe, model: nn.Module, in_channels: int, image_size: tuple[int, int]) -> None:
    """Run a model on the smallest pictures that it will see, where a network that flattens features fails.

    And on the next larger ones: a network that looks at patches may take the first by chance.
    """
    sizes = progressive_sizes(recipe)
    if sizes is None:
        return
    smallest = sorted({sizes.at(epoch, image_size) for epoch in range(recipe.epochs)})[:2]
    training = model.training
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    try:
        with torch.no_grad():
            for height, width in smallest:
                model.eval()(torch.zeros(2, in_channels, height, width, device=device))
    except (RuntimeError, AssertionError, ValueError) as error:  # timm's networks assert the size that they are for
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise ModelError(
            f"progressive_resizing has pictures of {height}x{width} pixels, which the model "
            f"{recipe.custom_model or recipe.model} does not take ({reason}). Use a network that "
            "pools over all positions (speednet, resnet20, convnet with head_pooling: average), a larger "
            "progressive_resizing.start, or progressive_resizing: null."
        ) from error
    finally:
        model.train(training)


def _make_custom(custom: CustomModel, seed: int, **given: Any) -> nn.Module:
    if isinstance(custom, nn.Module):
        return custom
    if not callable(custom):
        raise ModelError(f"model must be a torch.nn.Module, a function making one or a name, not {custom!r}.")
    signature = inspect.signature(custom)
    takes_all = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
    accepted = {k: v for k, v in given.items() if takes_all or k in signature.parameters}
    try:
        signature.bind(**accepted)
    except TypeError as error:
        raise ModelError(
            f"The function given as model cannot be called ({error}): it is given {', '.join(given)} by keyword, as "
            "far as it has them, so anything else needs a default."
        ) from error
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive_seed(seed, "initialization"))
        model = custom(**accepted)
    if not isinstance(model, nn.Module):
        raise ModelError(f"The function given as model returned {type(model).__name__}, not a torch.nn.Module.")
    return model


def _check_custom(model: nn.Module, in_channels: int, num_outputs: int, image_size: tuple[int, int]) -> None:
    """Run a model of the user's once, so that a wrong shape is told before training."""
    if not any(p.requires_grad for p in model.parameters()):
        raise ModelError(f"The model {type(model).__name__} has no parameter to train: all are frozen, or it has none.")
    training = model.training
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    try:
        with torch.no_grad():
            outputs = model.eval()(torch.zeros(2, in_channels, *image_size, device=device))
    except Exception as error:
        raise ModelError(
            f"The model {type(model).__name__} failed on a batch of two pictures of {in_channels} channels and "
            f"{image_size[0]}x{image_size[1]} pixels: {error}"
        ) from error
    finally:
        model.train(training)
    found = tuple(outputs.shape) if isinstance(outputs, torch.Tensor) else type(outputs).__name__
    if found != (2, num_outputs):
        raise ModelError(
            f"The model {type(model).__name__} must give {num_outputs} numbers for each picture, shape "
            f"(2, {num_outputs}) for two of them; it gave {found}."
        )
