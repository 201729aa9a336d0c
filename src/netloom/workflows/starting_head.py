"""A new linear head that starts from the logistic regression on a pretrained network's features, not from chance."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib import metadata
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from netloom.data.batches import InputScaling
from netloom.data.classifier_cache import KeptClassifier, find_classifier, keep_classifier
from netloom.data.feature_cache import KEY_BYTES, Keys
from netloom.data.imageset import ImageSet
from netloom.data.units import tie_into_units
from netloom.features import FeatureExtractor, extract_features, feature_space, picture_keys
from netloom.models.contract import ImageModel
from netloom.models.heads import Head
from netloom.progress import OnProgress
from netloom.recipe import Recipe
from netloom.runtime import ExecutionPlan, environment_record, executing
from netloom.training.feature_heads import fit_logistic
from netloom.workflows import builders


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
    2022). Features of the cache may have been computed in other batches, and differ in their last bits, so that they
    are computed anew, which takes about as long as an epoch of a frozen network. What comes of them is kept: the same
    pictures under the same plan, in a fold of another mode or a repetition, find it.

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
    extractor, keys, rows = (
        FeatureExtractor(model),
        picture_keys(image_set.images.cpu(), train),
        torch.from_numpy(train),
    )
    weights = builders.sample_weights(recipe, image_set, train)
    asked: dict[str, Any] = {
        "num_classes": head.num_classes,
        "num_outputs": head.num_outputs,
        "weights": None if weights is None else weights.cpu()[rows],
        "units": tie_into_units(len(image_set), image_set.groups, image_set.content_hashes)[train],
        "seed": recipe.split_seed,
    }
    targets = image_set.targets.cpu()[rows]
    space = feature_space(extractor, identity=recipe.model, scaling=scaling, plan=plan)
    key = _key_of(space, plan, keys, targets, asked)
    start = find_classifier(key, shape=(head.num_outputs, extractor.num_features))
    if start is None:
        extraction = extract_features(
            extractor,
            image_set.images,
            train,
            keys=keys,
            scaling=scaling,
            plan=plan,
            on_progress=on_progress,
            interruption=interruption,
        )
        if extraction is None:
            return None
        # More threads would wait for one another at each of a thousand short operations.
        with executing(replace(plan, threads=1)):
            solution = fit_logistic(torch.from_numpy(extraction.features), targets, **asked)
        start = KeptClassifier(solution.weight.numpy(), solution.bias.numpy(), solution.choice.in_words())
        keep_classifier(key, start)
    with torch.no_grad():
        model.classifier.weight.copy_(torch.from_numpy(start.weight))
        model.classifier.bias.copy_(torch.from_numpy(start.bias))
    return start.how


def _key_of(space: str, plan: ExecutionPlan, keys: Keys, targets: Tensor, asked: Mapping[str, Any]) -> str:
    """What a start is found by, 32 hexadecimal digits: all that its last bits may depend on, and be it by little.

    Threads count, since they divide the operations of a network that has no folded copy.
    """
    facts = {
        "space": space,
        "plan": (plan.device, plan.threads, plan.precision),
        "environment": {name: value for name, value in environment_record().items() if name != "usable_cpus"},
        "scipy": metadata.version("scipy"),
        "fit": {name: value for name, value in asked.items() if isinstance(value, int)},
    }
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    weights, units = asked["weights"], asked["units"]
    for values in (keys, targets.numpy(), units, np.zeros(0) if weights is None else weights.numpy()):
        digest.update(f"{values.dtype} {values.shape}".encode())
        digest.update(np.ascontiguousarray(values).data)
    return digest.hexdigest()[: 2 * KEY_BYTES]
