"""The only place where a Recipe becomes arguments."""

from __future__ import annotations

from netloom.workflows.builders.checks import (
    check_augmentation,
    check_monitors,
    check_single_pictures,
    note_on_unused,
)
from netloom.workflows.builders.models import (
    CustomModel,
    build_heads,
    build_model,
    build_network,
    initialize_from_pictures,
    is_solved_at_once,
    learns_from_features,
    parameters_in_words,
)
from netloom.workflows.builders.pictures import (
    build_augmenter,
    build_scaling,
    class_weights,
    plain_batches,
    progressive_sizes,
    resident,
    sample_weights,
    split_options,
    training_batches,
)
from netloom.workflows.builders.training import (
    as_in_training,
    build_callbacks,
    build_freezing,
    build_optimizer,
    build_recorders,
    build_schedule,
    check_extras,
    count_phases,
    depending_on_length,
    kept_by,
    step_options,
)

__all__ = [
    "CustomModel",
    "as_in_training",
    "build_augmenter",
    "build_callbacks",
    "build_freezing",
    "build_heads",
    "build_model",
    "build_network",
    "build_optimizer",
    "build_recorders",
    "build_scaling",
    "build_schedule",
    "check_augmentation",
    "check_extras",
    "check_monitors",
    "check_single_pictures",
    "class_weights",
    "count_phases",
    "depending_on_length",
    "initialize_from_pictures",
    "is_solved_at_once",
    "kept_by",
    "learns_from_features",
    "note_on_unused",
    "parameters_in_words",
    "plain_batches",
    "progressive_sizes",
    "resident",
    "sample_weights",
    "split_options",
    "step_options",
    "training_batches",
]
