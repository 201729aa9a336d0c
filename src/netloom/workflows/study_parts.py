"""What a search is set up from, beside its space: the parts that score, a cluster."""

from __future__ import annotations

from netloom.data.folds import Scheme, make_folds
from netloom.data.splits import Split
from netloom.errors import RecipeError
from netloom.progress import Reporter
from netloom.recipe import Recipe
from netloom.workflows import builders
from netloom.workflows.prepare import PreparedData
from netloom.workflows.search import Cluster


def splits_for(data: PreparedData, recipe: Recipe, cv: int | None) -> list[Split]:
    """On what each trial is trained and scored: the split itself, or folds of all of it that is not test."""
    if cv is None:
        if not len(data.split.validation):
            raise RecipeError(
                "Trials are scored on the validation part, and there is none. Score them by folds (--cv 3), or give a "
                "validation part (validation_fraction above 0)."
            )
        return [data.split]
    parts: list[str | None] = [None] * len(data.image_set)
    for index in data.split.test:
        parts[index] = "test"
    folds = make_folds(Scheme(cv), parts=parts, **builders.split_options(recipe, data.image_set))
    return [fold.split for fold in folds]


def cluster_for(address: str | None, at_once: int | None, reporter: Reporter) -> Cluster | None:
    """Where trials are done, if not here; `at_once` is the most of them, None for as many as there is room for."""
    if address is None:
        return None
    reporter.say(f"Trials are done on the Ray cluster {address}, the winner is trained here")
    return Cluster(address, at_once or 0)
