"""A new linear head that starts from the logistic regression on a pretrained network's features, not from chance."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from netloom.data.batches import InputScaling
from netloom.data.imageset import ImageSet
from netloom.data.units import tie_into_units
from netloom.features import FeatureExtractor, FeatureHead, extract_features, picture_keys
from netloom.models.contract import ImageModel
from netloom.models.heads import Head
from netloom.models.pretrained import RANDOM
from netloom.progress import OnProgress
from netloom.recipe import Recipe
from netloom.runtime import ExecutionPlan, executing
from netloom.training.feature_heads import fit_logistic
from netloom.workflows import builders


def starts_from_features(recipe: Recipe, model: nn.Module) -> bool:
    """Whether the head has a solution to start from: it is linear, and all in front of it is pretrained."""
    transfer = recipe.transfer
    if transfer is None or transfer.mode == "features" or transfer.weights == RANDOM or transfer.cut is not None:
        return False
    return isinstance(model, ImageModel) and not any(True for _ in FeatureHead(model).head.parameters())


def start_from_features(
    recipe: Recipe,
    model: ImageModel,
    head: Head,
    image_set: ImageSet,
    train: npt.NDArray[np.int64],
    *,
    scaling: InputScaling,
    plan: ExecutionPlan,
    on_progress: OnProgress = lambda done, total: None,
    interruption: Callable[[], str | None] = lambda: None,
) -> str | None:
    """Put the logistic regression on the training pictures' features into the classifier, in place.

    Training from a random head would move the network towards what suits that head, and away from what it was
    pretrained for (Kumar et al., "Fine-tuning can distort pretrained features and underperform out-of-distribution",
    2022). Features are computed anew, which takes about as long as an epoch of a frozen network: those of the cache
    may come from another execution plan, and differ in their last bits.

    Args:
        recipe: With the class weights.
        model: On the plan's device, with its pretrained weights.
        head: What its outputs mean.
        image_set: On that device or on the CPU.
        train: Indices of the training part.
        scaling: From pixels to network inputs.
        plan: How it is executed.
        on_progress: Called with the number of pictures done and the number of all.
        interruption: Asked between two batches; a reason ends it there.

    Returns:
        How the regularization was chosen, a sentence for people; None if it was asked to stop, and nothing was changed.
    """
    extraction = extract_features(
        FeatureExtractor(model),
        image_set.images,
        train,
        keys=picture_keys(image_set.images.cpu(), train),
        scaling=scaling,
        plan=plan,
        on_progress=on_progress,
        interruption=interruption,
    )
    if extraction is None:
        return None
    weights = builders.sample_weights(recipe, image_set, train)
    rows = torch.from_numpy(train)
    with executing(replace(plan, threads=1)):  # more would wait for one another at each of a thousand short operations
        solution = fit_logistic(
            torch.from_numpy(extraction.features),
            image_set.targets.cpu()[rows],
            num_classes=head.num_classes,
            num_outputs=head.num_outputs,
            weights=None if weights is None else weights.cpu()[rows],
            units=tie_into_units(len(image_set), image_set.groups, image_set.content_hashes)[train],
            seed=recipe.split_seed,
        )
    with torch.no_grad():
        model.classifier.weight.copy_(solution.weight)
        model.classifier.bias.copy_(solution.bias)
    return solution.choice.in_words()
