"""Networks by name, the heads that train them, and their summaries."""

from __future__ import annotations

# Imported because that registers their models.
from netloom.models import alexnet, backbones, convnet, lenet, mlp, resnet, speednet, vgg  # noqa: F401
from netloom.models.contract import ImageModel
from netloom.models.heads import Head
from netloom.models.registry import (
    ModelDescription,
    create_model,
    describe_models,
    model_names,
    model_options,
    register_model,
    validate_options,
)
from netloom.models.summary import LayerSummary, ModelSummary, summarize

__all__ = [
    "Head",
    "ImageModel",
    "LayerSummary",
    "ModelDescription",
    "ModelSummary",
    "create_model",
    "describe_models",
    "model_names",
    "model_options",
    "register_model",
    "summarize",
    "validate_options",
]
