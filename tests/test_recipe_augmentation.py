"""The recipe's augmentation keys are those of the augmentation, with the same defaults and ranges."""

from __future__ import annotations

import dataclasses

from netloom.data.augment import AugmentationSpec
from netloom.recipe.groups import Augmentation


def test_every_key_has_its_counterpart() -> None:
    spec = {f.name: f.default for f in dataclasses.fields(AugmentationSpec)}
    recipe = {name: field.default for name, field in Augmentation.model_fields.items()}
    assert recipe == spec
    AugmentationSpec(**Augmentation().model_dump())


def test_the_ends_of_every_range_are_accepted_by_both() -> None:
    schema = Augmentation.model_json_schema()["properties"]
    for name, item in schema.items():
        for limit in ("minimum", "maximum"):
            if limit in item:
                AugmentationSpec(**Augmentation.model_validate({name: item[limit]}).model_dump())
