"""The pictures of a search: one set, or one for each size, way of resizing and colour that is searched over."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from netloom.data.imageset import ImageSet
from netloom.data.sources import open_source
from netloom.data.splits import Split
from netloom.errors import DataError
from netloom.progress import Reporter
from netloom.recipe import Recipe, load_recipe
from netloom.tuning.space import Dimension
from netloom.workflows import builders
from netloom.workflows.prepare import PreparedData, data_facts, load_pictures, only
from netloom.workflows.spaces import settings_of_pictures, side_of
from netloom.workflows.trial_task import TrialPictures, pictures_for


@dataclass(frozen=True, eq=False)
class StudyPictures:
    """What the trials of a study and the trainings of its winner see.

    Attributes:
        data: The pictures as the recipe has them, and their split, which is that of all.
        kinds: Those of the trials, with the files that their pixels are mapped from, if any.
    """

    data: PreparedData
    kinds: Sequence[tuple[TrialPictures, Path | None]]

    def image_sets(self) -> list[tuple[ImageSet, Path | None]]:
        """As `executor_for` takes them."""
        return [(kind.image_set, file) for kind, file in self.kinds]

    def prepared_for(self, recipe: Recipe, split: Split) -> PreparedData:
        """The pictures for a training of `recipe`, one of the study's trials', on `split`."""
        values = recipe.to_mapping()
        values["image_size"] = side_of(values["image_size"])
        of_recipe = pictures_for([kind for kind, _ in self.kinds], values)
        kind, file = next((kind, file) for kind, file in self.kinds if kind is of_recipe)
        scaling = builders.build_scaling(recipe, kind.image_set.images, split.train)
        facts = replace(kind.facts, mean=scaling.mean, std=scaling.std)
        return PreparedData(kind.image_set, split, facts, file)


def study_pictures(
    source: str | Path | ImageSet,
    recipe: Recipe,
    data: PreparedData,
    dimensions: Sequence[Dimension],
    reporter: Reporter,
) -> StudyPictures:
    """Decode what the dimensions ask for.

    Args:
        source: Of the pictures.
        recipe: What the trials change.
        data: The pictures as that recipe has them.
        dimensions: Of the space.
        reporter: Shows progress.

    Raises:
        DataError: The pictures cannot be decoded so, or have changed in between.
    """
    combinations = settings_of_pictures(dimensions)
    if combinations == [{}]:
        return StudyPictures(data, [(TrialPictures({}, data.image_set, data.facts), data.pixels_file)])
    kinds = []
    for settings in combinations:
        changed = load_recipe(recipe, settings)
        loaded, report = load_pictures(source, changed, reporter)
        if loaded.image_set.ids != data.image_set.ids and not isinstance(source, ImageSet):
            # One that could not be read at first may be readable by now; the study goes on without it.
            kept = only(open_source(source), frozenset(data.image_set.ids))
            loaded, report = load_pictures(kept, changed, reporter)
        if loaded.image_set.ids != data.image_set.ids:
            raise DataError(f"The pictures of {data.facts.source_name} have changed while they were read. Start again.")
        facts = data_facts(loaded, report, changed, data.split)
        kinds.append((TrialPictures(settings, loaded.image_set, facts), loaded.pixels_file))
    return StudyPictures(data, kinds)
