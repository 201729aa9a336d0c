"""The network that a training is about to be set up with; what does not fit is told before anything is made."""

from __future__ import annotations

from torch import nn

from netloom.models.heads import Head
from netloom.recipe import Recipe
from netloom.workflows import builders
from netloom.workflows.builders import CustomModel
from netloom.workflows.prepare import PreparedData
from netloom.workflows.starting_weights import initialize_from_weights


def checked_network(
    recipe: Recipe, data: PreparedData, custom: CustomModel | None = None
) -> tuple[nn.Module, list[Head]]:
    """A network with the weights that it starts from, and what its outputs mean.

    Args:
        recipe: What is to be trained.
        data: Its pictures, and the split that it is trained on.
        custom: The network, or the function making it, where it is the user's own.

    Raises:
        NetloomError: Recipe, pictures, network and pretrained weights do not fit one another.
    """
    facts, train = data.facts, data.split.train
    heads = builders.build_heads(recipe, facts.class_names)
    builders.sample_weights(recipe, data.image_set, train)
    builders.check_monitors(recipe, data.split)
    network, _ = builders.build_network(recipe, facts, custom)
    builders.check_single_pictures(
        recipe, network, channels=facts.channels, image_size=facts.image_size, n_train=len(train)
    )
    initialize_from_weights(recipe, network)
    return network, heads
