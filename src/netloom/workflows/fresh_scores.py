"""What the winner of a search scores where it was not chosen: with seeds, or on folds, that the search has not seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from netloom.data.splits import Split
from netloom.recipe import Recipe
from netloom.workflows.prepare import PreparedData
from netloom.workflows.runs import Run
from netloom.workflows.search import Search
from netloom.workflows.seen_pictures import notes_on_folds
from netloom.workflows.study_parts import splits_for
from netloom.workflows.training_job import Member
from netloom.workflows.trial_scores import score_of_run
from netloom.workflows.winner import train_anew

_FOLDER = "fresh-folds"
_NOTE = (
    "A search chose this recipe by how it scores on these very pictures, divided otherwise: its figures here are still "
    "a little too good. Only the test part of the search is free of that."
)


@dataclass(frozen=True, eq=False)
class FreshScores:
    """The objective of the winning recipe, trained anew.

    Attributes:
        values: One for each training.
        runs: The trainings.
        held_out: Of folds, the pictures that score each training; None where all are scored on the validation part.
        given: Of folds, the pictures that each training was given, to learn from or to choose the epoch by.
    """

    values: Sequence[float]
    runs: Sequence[Run]
    held_out: Sequence[int] | None = None
    given: Sequence[int] | None = None


def fresh_scores(search: Search, recipe: Recipe, runs: Sequence[Run]) -> FreshScores | None:
    """What the winner scores without the luck of the seed, and with folds without that of their division, too.

    The validation part scores its trainings with fresh seeds. Where folds score a trial, nothing but folds gives a
    figure to compare with: as many are drawn anew, and trained on.

    Args:
        search: Whose winner it is.
        recipe: With its values.
        runs: Its trainings with fresh seeds; none where they were not asked for.

    Returns:
        None where nothing was trained anew, or nothing is left to validate on.

    Raises:
        TrainingError: A training failed; the search can be gone on with.
    """
    if not runs:
        return None
    if search.manifest.cv is not None:
        return _by_folds(search, recipe, search.manifest.cv)
    if "validation" not in runs[0].result:
        return None
    split = search.pictures.data.split
    image_set = search.pictures.prepared_for(runs[0].recipe, split).image_set
    return FreshScores([score_of_run(run, image_set, split, search.manifest.objective) for run in runs], runs)


def fresh_folds(data: PreparedData, recipe: Recipe, cv: int) -> list[Split]:
    """So many folds of what is not test, drawn otherwise than those of the search.

    Raises:
        DataError: They cannot be drawn.
    """
    return splits_for(data, recipe.replace(split_seed=recipe.split_seed + 1), cv)


def _by_folds(search: Search, recipe: Recipe, cv: int) -> FreshScores:
    """A cross-validation of the winner, each training with a seed of its own, as `cross_validate` makes it."""
    data, seed = search.pictures.data, search.recipe.seed + 1
    splits = fresh_folds(data, search.recipe, cv)
    pool = np.concatenate([split.test for split in splits])
    notes = [_NOTE, *notes_on_folds(recipe, data.image_set, pool, fingerprint=data.facts.fingerprint)]
    members = [
        Member(
            f"fold-{number + 1}",
            recipe.replace(seed=seed + number, split_seed=split.seed),
            replace(split, notes=(*split.notes, *notes)),
            {"fold": number + 1},
        )
        for number, split in enumerate(splits)
    ]
    runs = train_anew(
        search,
        "fresh folds",
        members,
        name=_FOLDER,
        announcement=[f"Scoring the best recipe anew, by {cv} folds that the search has not seen"],
    )
    image_set = search.pictures.prepared_for(members[0].recipe, splits[0]).image_set
    objective = search.manifest.objective
    return FreshScores(
        [score_of_run(run, image_set, split, objective, part="test") for run, split in zip(runs, splits, strict=True)],
        runs,
        held_out=[len(split.test) for split in splits],
        given=[len(split.train) + len(split.validation) for split in splits],
    )
