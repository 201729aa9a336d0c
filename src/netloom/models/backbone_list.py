"""The list of pretrained networks that are worth trying on hundreds to thousands of pictures.

What is known of each lies in `backbones.yaml`, which `scripts/backbone_list.py` writes: it counts parameters and
arithmetic on the networks themselves and takes accuracies from published tables, whose names the file gives.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from importlib import resources

from netloom.plain_yaml import parse_yaml

FREE_LICENCES = frozenset({"apache-2.0", "mit", "bsd-3-clause"})
"""Licences of weights that allow any use, commercial use included."""


@dataclass(frozen=True)
class Backbone:
    """A network of timm's with published weights.

    Attributes:
        name: What `--backbone` takes: timm's name, with the tag of the weights where they are not timm's first choice.
        weights: Tag of the published weights.
        family: What its relatives in the list share.
        pretraining: What the weights were trained on, in a word.
        image_size: Side of the pictures in pixels for which everything else is said.
        own_size: Side that a recipe takes without `image_size`: that of the published weights.
        parameters: Of the network without its classifier.
        multiply_adds: For one picture, without its classifier.
        written_values: Numbers that the network's operations write for one picture: what memory traffic goes by.
        features: Numbers per picture that a classifier sees.
        top1: Accuracy on ImageNet-1k's validation pictures in percent, None where nobody published one.
        top1_by: How: `classifier` (a network's own, of the published weights), `linear probe` (one trained on frozen
            features) or `zero-shot` (names of classes as text); None without accuracy.
        licence: Of the weights, as timm tells it.
    """

    name: str
    weights: str
    family: str
    pretraining: str
    image_size: int
    own_size: int
    parameters: int
    multiply_adds: int
    written_values: int
    features: int
    top1: float | None
    top1_by: str | None
    licence: str

    @property
    def is_free(self) -> bool:
        """Whether its licence is one of the usual ones that allow any use."""
        return self.licence in FREE_LICENCES

    @property
    def options(self) -> str:
        """What a command line needs to name it: its name, and the size of pictures where it is not its own."""
        size = "" if self.image_size == self.own_size else f" --set image_size={self.image_size}"
        return f"--backbone {self.name}{size}"


@functools.cache
def listed_backbones() -> tuple[Backbone, ...]:
    """All of the list, family by family."""
    text = (resources.files("netloom") / "models" / "backbones.yaml").read_text(encoding="utf-8")
    return tuple(Backbone(**entry) for entry in parse_yaml(text)["backbones"])


def published_sources() -> list[str]:
    """Where the accuracies come from."""
    text = (resources.files("netloom") / "models" / "backbones.yaml").read_text(encoding="utf-8")
    return [str(source) for source in parse_yaml(text)["sources"]]
