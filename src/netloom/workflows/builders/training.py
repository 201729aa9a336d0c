"""From a recipe to what trains a network: freezing, optimizer, schedule, steps, callbacks."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from netloom.features import FeatureHead
from netloom.models.contract import ImageModel
from netloom.models.pretrained import RANDOM
from netloom.recipe import Recipe
from netloom.run import RunFolder
from netloom.training.callbacks import (
    BestWeights,
    Callback,
    CSVLog,
    EarlyStopping,
    EpochWeights,
    Lookahead,
    ReduceOnPlateau,
    TensorBoard,
    TimeLimit,
    WeightAveraging,
    require_tensorboard,
)
from netloom.training.checkpoint import weights_bytes
from netloom.training.freezing import Freezing
from netloom.training.muon import MuonOptions
from netloom.training.optim import create_optimizer, rate_factors
from netloom.training.regularize import MaxNorm, WeightPenalty
from netloom.training.schedules import LENGTH_DEPENDENT, Schedule

# Of a head that starts from chance, before the stages in front of it join.
_EPOCHS_OF_A_NEW_HEAD = 3


def starts_from_features(recipe: Recipe, model: nn.Module) -> bool:
    """Whether the head has a solution to start from: it is linear, and all in front of it is pretrained."""
    transfer = recipe.transfer
    if transfer is None or transfer.mode == "features" or transfer.weights == RANDOM or transfer.cut is not None:
        return False
    return isinstance(model, ImageModel) and not any(True for _ in FeatureHead(model).head.parameters())


def build_freezing(recipe: Recipe, model: nn.Module) -> Freezing | None:
    """Which stages of a model, as `build_model` gives it, train when; None where all do from the beginning.

    Raises:
        ModelError: The model has no stages, or not those that are to be unfrozen.
    """
    transfer = recipe.transfer
    if transfer is None or transfer.mode == "features":
        return None
    if transfer.mode == "frozen":
        return Freezing.of(model, cut=transfer.cut)
    return Freezing.of(
        model,
        unfreeze=transfer.unfreeze,
        head_epochs=epochs_of_head(recipe, model),
        gradual=transfer.gradual,
        batch_norm=transfer.batch_norm,
        cut=transfer.cut,
    )


def epochs_of_head(recipe: Recipe, model: nn.Module) -> int:
    """How many epochs of a fine-tuning are the head's alone; all but the last of one that is short."""
    assert recipe.transfer is not None
    if recipe.transfer.head_epochs is not None:
        return recipe.transfer.head_epochs
    return min(1 if starts_from_features(recipe, model) else _EPOCHS_OF_A_NEW_HEAD, recipe.epochs - 1)


def count_phases(recipe: Recipe, model: nn.Module) -> int:
    """Into how many stretches the epochs of a training fall, in each of which the same stages train."""
    freezing = build_freezing(recipe, model)
    return 1 if freezing is None else len({0, *(epoch for epoch, _ in freezing.unfreezing(recipe.epochs))})


def as_in_training(recipe: Recipe, model: nn.Module) -> nn.Module:
    """A copy of a model in the mode in which most steps of its training find it, to measure with."""
    replica = copy.deepcopy(model).train()
    for own, copied in zip(model.parameters(), replica.parameters(), strict=True):
        # A copy of a parameter has none of its hooks, and no plan must be chosen that they do not fit.
        copied._backward_hooks = own._backward_hooks
        copied._post_accumulate_grad_hooks = own._post_accumulate_grad_hooks
    freezing = build_freezing(recipe, replica)
    if freezing is not None:
        freezing.enter(replica, recipe.epochs - 1)
    return replica


def build_optimizer(recipe: Recipe, model: nn.Module, freezing: Freezing | None = None) -> torch.optim.Optimizer:
    """The optimizer of a recipe over the model's parameters that train, now or later."""
    transfer = recipe.transfer
    pretrained = transfer is not None and transfer.weights != RANDOM
    anew = pretrained and freezing is not None and not starts_from_features(recipe, model)
    muon = {} if recipe.muon is None else recipe.muon.model_dump()
    rest_learning_rate = muon.pop("rest_learning_rate", None)
    return create_optimizer(
        model,
        recipe.optimizer,
        learning_rate=recipe.learning_rate,
        momentum=recipe.momentum,
        nesterov=recipe.nesterov,
        weight_decay=recipe.weight_decay,
        rate_for=rate_factors(
            model,
            bias=recipe.bias_rate,
            classifier=recipe.classifier_rate,
            depth=1.0 if transfer is None else transfer.depth_rate,
            new=1.0 if transfer is None or not anew else transfer.new_rate,
            freezing=freezing,
        ),
        muon=MuonOptions(**muon),
        rest_learning_rate=rest_learning_rate,
        freezing=freezing,
    )


def build_schedule(recipe: Recipe) -> Schedule:
    """The learning-rate schedule of a recipe."""
    return Schedule() if recipe.schedule is None else Schedule(**recipe.schedule.model_dump())


def depending_on_length(recipe: Recipe) -> list[str]:
    """What changes when a training is extended, as the beginning of a sentence that goes on with "on the length"."""
    found = []
    if recipe.schedule is not None and recipe.schedule.kind in LENGTH_DEPENDENT:
        found.append(f"the {recipe.schedule.kind} schedule depends")
    if recipe.progressive_resizing is not None:
        found.append("progressive resizing depends")
    if recipe.lookahead is not None and recipe.lookahead.power:
        found.append("lookahead depends")
    return found


def step_options(recipe: Recipe, model: nn.Module) -> dict[str, Any]:
    """What a training step does beside forward, loss and update: options of `fit` and of `TrainingStep`."""
    augmentation = recipe.augmentation
    return {
        "penalty": WeightPenalty(model, l1=recipe.l1, l2=recipe.l2) if recipe.l1 or recipe.l2 else None,
        "max_norm": None if recipe.max_norm is None else MaxNorm(model, limit=recipe.max_norm),
        "label_smoothing": recipe.label_smoothing,
        "gradient_clip_norm": recipe.gradient_clip_norm,
        "mixup_alpha": 0.0 if augmentation is None else augmentation.mixup,
        "cutmix_alpha": 0.0 if augmentation is None else augmentation.cutmix,
    }


def check_extras(recipe: Recipe) -> None:
    """Look for the optional packages that a recipe needs, before any work is done.

    Raises:
        NetloomError: One is not installed.
    """
    if recipe.tensorboard:
        require_tensorboard()


def build_callbacks(
    recipe: Recipe,
    folder: RunFolder | None,
    *,
    content: Callable[[nn.Module], bytes] = weights_bytes,
    random_start: bool = True,
) -> list[Callback]:
    """What a recipe has called during training, beside `build_recorders`; what keeps weights needs the run's folder.

    Args:
        recipe: Of the training.
        folder: Of the run.
        content: The whole network's weights as a file holds them, of what is trained.
        random_start: Whether any weights start from chance, so that their average has to forget it.
    """
    callbacks: list[Callback] = []
    # First, so that at the end the best epoch's weights replace the last average, not the other way round; and
    # lookahead before that, since the average is of the weights that training goes on with.
    if recipe.lookahead is not None:
        callbacks.append(Lookahead(**recipe.lookahead.model_dump()))
    if recipe.ema is not None:
        warmup = random_start if recipe.ema.warmup == "auto" else recipe.ema.warmup
        callbacks.append(WeightAveraging(decay=recipe.ema.decay, warmup=warmup))
    stopping = recipe.early_stopping
    if stopping is not None:
        callbacks.append(
            EarlyStopping(monitor=stopping.monitor, patience=stopping.patience, min_delta=stopping.min_delta)
        )
    if recipe.reduce_on_plateau is not None:
        callbacks.append(ReduceOnPlateau(**recipe.reduce_on_plateau.model_dump()))
    monitor = kept_by(recipe)
    if monitor is not None:
        save = None if folder is None else (lambda model: folder.write_weights(content(model)))
        callbacks.append(BestWeights(monitor=monitor, save=save))
    if recipe.time_limit_minutes is not None:
        callbacks.append(TimeLimit(max_minutes=recipe.time_limit_minutes, schedule=build_schedule(recipe)))
    if folder is None:
        return callbacks
    if recipe.keep_every is not None:
        callbacks.append(
            EpochWeights(
                save=lambda epoch, model: folder.write_epoch_weights(epoch, content(model)),
                every=recipe.keep_every,
            )
        )
    return callbacks


def build_recorders(recipe: Recipe, folder: RunFolder, *, solved_at_once: bool) -> list[Callback]:
    """What writes each epoch's figures into a run's folder, behind all that may add some; else the table alone."""
    recorders: list[Callback] = [CSVLog(folder.metrics_path)]
    if recipe.tensorboard and not solved_at_once:
        recorders.append(TensorBoard(folder.tensorboard_path, scaling=folder.data.scaling))
    return recorders


def kept_by(recipe: Recipe) -> str | None:
    """The figure by which the kept epoch is chosen, or None where the last epoch's weights are kept."""
    return recipe.monitor if recipe.keep == "best" else None
