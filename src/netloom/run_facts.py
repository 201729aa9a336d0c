"""What a run says of the pictures it was trained on, in its `data.json`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, FiniteFloat

from netloom.data.batches import InputScaling
from netloom.data.decode import Resize
from netloom.recipe.groups import Side
from netloom.run_values import checked


@dataclass(frozen=True)
class DataFacts:
    """What a model needs to know of the pictures it was trained on, and what a reader wants to know.

    Attributes:
        source_name: What the user called it.
        source_location: Where it was, an absolute path or a named set.
        class_names: In the order of the network's outputs; none of a network that was trained without labels.
        image_size: (height, width) of the network's input.
        channels: 1 or 3.
        resize: `stretch`, `crop` or `pad`.
        mean: Of the input scaling, per channel.
        std: Of the input scaling, per channel.
        fingerprint: Digest of the pictures' names, contents, classes and weights.
        audit: What the audit found, as its JSON.
    """

    source_name: str
    source_location: str
    class_names: tuple[str, ...]
    image_size: tuple[Side, Side]
    channels: Literal[1, 3]
    resize: Resize
    mean: tuple[FiniteFloat, ...]
    std: tuple[Annotated[FiniteFloat, Field(gt=0)], ...]
    fingerprint: str
    audit: Mapping[str, Any]

    @property
    def scaling(self) -> InputScaling:
        """From pixels to network inputs."""
        return InputScaling(self.mean, self.std)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> DataFacts:
        """What `to_json` gave, checked, since runs are passed from hand to hand.

        Raises:
            ValueError: It is not what `to_json` gives.
        """
        facts = checked(cls, value)
        if len(facts.class_names) == 1:
            raise ValueError("class_names: expected two or more, or none of a network trained without labels")
        if len(set(facts.class_names)) < len(facts.class_names):
            raise ValueError("class_names: two are the same")
        if not len(facts.mean) == len(facts.std) == facts.channels:
            raise ValueError(f"mean and std: expected one number for each of {facts.channels} channels")
        return facts
