"""What a recipe cannot want, beside what the types of its keys say: lines `key: what is wrong`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from netloom.errors import ModelError, did_you_mean
from netloom.recipe.groups import CUSTOM_MODEL, KEYS_OF_MODE, MODEL_OPTIONS, Augmentation, Transfer, as_list

if TYPE_CHECKING:
    from netloom.recipe import Recipe

_LISTS = ("filters", "dense_units")


def model_problems(value: Mapping[str, Any], default: str) -> list[str]:
    """What is wrong with the model's name, `default` where the plain values have none, and its options."""
    from netloom.models.registry import is_family_member, model_names, model_options, validate_options

    name = value.get("model", default)
    if name == CUSTOM_MODEL or not isinstance(name, str):
        return []
    if name not in model_names() and not is_family_member(name):
        return [f"model: there is no model {name!r}.{did_you_mean(name, model_names())}"]
    try:
        accepted = model_options(name)
    except ModelError as error:
        return [f"model: {error}"]
    given = {k: value[k] for k in MODEL_OPTIONS if value.get(k) is not None}
    foreign = [k for k in given if k not in accepted]
    problems = [f"{k}: {name} has no such option; it has {', '.join(accepted)}" for k in foreign]
    try:
        validate_options(name, {k: as_list(v) if k in _LISTS else v for k, v in given.items() if k in accepted})
    except ModelError as error:
        problems += str(error).splitlines()[:-1]
    return problems


def combination_problems(recipe: Recipe) -> list[str]:
    """What does not go together, though each value by itself may be."""
    problems = []
    if recipe.nesterov and not (recipe.optimizer == "sgd" and recipe.momentum > 0):
        problems.append("nesterov: needs optimizer sgd and a momentum above 0")
    if recipe.momentum and recipe.optimizer not in ("sgd", "rmsprop"):
        where = "; muon has muon.momentum" if recipe.optimizer == "muon" else ""
        problems.append(f"momentum: is for sgd and rmsprop, not for {recipe.optimizer}{where}")
    if recipe.schedule is not None and recipe.schedule.warmup_epochs > recipe.epochs:
        problems.append(
            f"schedule.warmup_epochs: {recipe.schedule.warmup_epochs:g} are more than the training's {recipe.epochs} "
            "epochs, so that the learning rate would never be reached"
        )
    if recipe.augmentation is not None:
        problems += _augmentation_problems(recipe.augmentation)
    if recipe.muon is not None and recipe.optimizer != "muon":
        problems.append(f"muon: is for optimizer muon, not for {recipe.optimizer}; muon=null turns it off")
    if recipe.label_smoothing and recipe.loss == "binary_cross_entropy":
        problems.append("label_smoothing: is for loss cross_entropy")
    if recipe.transfer is not None and recipe.model == CUSTOM_MODEL:
        problems.append("transfer: is for models by name; a network of yours can load its own weights")
    if recipe.self_supervised is not None:
        problems += _problems_without_labels(recipe)
    if recipe.transfer is not None and recipe.first_layer != "random":
        problems.append("first_layer: a pretrained network has its own; random leaves that as it is")
    transfer = recipe.transfer
    if transfer is not None and transfer.mode == "features" and transfer.cut is not None:
        problems.append(
            "transfer.cut: what follows a cut is drawn anew and has to be trained, and mode: features trains the "
            "classifier alone; use mode: finetune (--mode finetune), or frozen, or leave the cut out"
        )
    if transfer is not None and transfer.mode == "features" and transfer.views and not _changes_pictures(recipe):
        problems.append(
            "transfer.views: augmented views need an augmentation, and the recipe has none that changes a picture; "
            "give one (augmentation.horizontal_flip=true, say), or set transfer.views to 0"
        )
    if transfer is not None:
        problems += _problems_of_mode(transfer)
    if transfer is not None and transfer.mode == "finetune" and (transfer.head_epochs or 0) >= recipe.epochs:
        problems.append(
            f"transfer.head_epochs: {transfer.head_epochs} of {recipe.epochs} epochs leave none in which more than the "
            "head trains; give fewer, or more epochs, or mode: frozen"
        )
    return problems


def _problems_of_mode(transfer: Transfer) -> list[str]:
    """Keys that only another mode looks at."""
    return [
        f"transfer.{key}: is of mode {mode}; mode {transfer.mode} does not look at it. Leave it out, or use mode: "
        f"{mode} (--mode {mode})"
        for mode, keys in KEYS_OF_MODE.items()
        for key in keys
        if mode != transfer.mode and getattr(transfer, key) != Transfer.model_fields[key].default
    ]


def _augmentation_problems(augmentation: Augmentation) -> list[str]:
    """What the augmentation itself says of its values, beside what the types of the keys say."""
    from netloom.data.augment import AugmentationSpec

    try:
        AugmentationSpec(**augmentation.model_dump())
    except ValueError as error:
        return [f"augmentation.{problem.replace(' is ', ': ', 1)}" for problem in str(error).splitlines()]
    return []


def _changes_pictures(recipe: Recipe) -> bool:
    """Whether there is an augmentation beside the mixing of pictures; one that is told to be impossible counts."""
    from netloom.data.augment import AugmentationSpec

    if recipe.augmentation is None:
        return False
    try:
        return AugmentationSpec(**recipe.augmentation.model_dump()).changes_pictures
    except ValueError:
        return True


def _problems_without_labels(recipe: Recipe) -> list[str]:
    """What a training without labels cannot do."""
    problems = []
    if recipe.augmentation is None:
        problems.append("augmentation: self_supervised learns from how views of a picture differ; it needs some")
    elif recipe.augmentation.mixup or recipe.augmentation.cutmix:
        problems.append("augmentation: self_supervised has no targets to mix; set mixup and cutmix to 0")
    if recipe.label_smoothing:
        problems.append("label_smoothing: self_supervised has no labels to smooth")
    if recipe.class_weight is not None:
        problems.append("class_weight: self_supervised looks at no classes")
    if recipe.per_class is not None:
        problems.append("per_class: self_supervised looks at no classes; it learns from all pictures")
    if not recipe.validation_fraction:
        problems.append("validation_fraction: self_supervised shows by a validation part how it goes; give it one")
    if recipe.transfer is not None:
        problems.append("transfer: self_supervised starts from random weights; set one of the two to null")
    if recipe.shards not in ("auto", 0):
        problems.append("shards: self_supervised compares all views of a batch, which cannot be divided; set 0")
    if recipe.progressive_resizing is not None:
        problems.append("progressive_resizing: self_supervised.view_size says how large views are")
    given = (key for key in ("keep_every", "tensorboard") if getattr(recipe, key))
    problems += [f"{key}: is for trainings with labels" for key in given]
    if recipe.model == CUSTOM_MODEL:
        problems.append("self_supervised: is for models by name")
    return problems
