"""Features that many trainings will ask for, computed once before them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
from torch import nn

from netloom.data.imageset import ImageSet
from netloom.data.splits import Split
from netloom.models.heads import Head
from netloom.progress import Reporter
from netloom.recipe import Recipe
from netloom.runtime import ExecutionPlan, training_threads
from netloom.workflows import builders
from netloom.workflows.feature_fitting import FeatureFitting
from netloom.workflows.fitting import Fitting


def cache_features(
    recipe: Recipe,
    network: nn.Module,
    heads: Sequence[Head],
    image_set: ImageSet,
    splits: Sequence[Split],
    *,
    plan: ExecutionPlan,
    reporter: Reporter,
) -> None:
    """Compute what several trainings will ask for, all threads on it, so that each of them finds it in the cache.

    Where the scaling of pictures is each training part's own (`input_scaling: standardize`), so are the features, and
    every training computes its own.

    Args:
        recipe: Of the trainings, as far as it determines features.
        network: Any of theirs; its weights are put in place.
        heads: What its outputs mean.
        image_set: Of all splits.
        splits: Of the trainings.
        plan: Of every training.
        reporter: Shows progress.
    """
    if not builders.learns_from_features(recipe):
        return
    scalings = {builders.build_scaling(recipe, image_set.images, split.train) for split in splits}
    if len(scalings) > 1:
        return

    def union(part: str) -> npt.NDArray[np.int64]:
        return np.unique(np.concatenate([getattr(split, part) for split in splits]))

    fitting = Fitting.prepare(
        recipe,
        network,
        heads,
        image_set,
        Split(union("train"), union("validation"), union("test"), method="", seed=0),
        scaling=scalings.pop(),
        device=plan.device,
        reporter=reporter,
    )
    assert isinstance(fitting, FeatureFitting)
    fitting.extract(replace(plan, threads=max(plan.threads, training_threads()), prediction_threads=0))
