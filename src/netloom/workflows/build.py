"""The only place where a Recipe becomes arguments."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from netloom.data.augment import AugmentationSpec, Augmenter
from netloom.data.batches import ImageBatches, InputScaling
from netloom.data.imageset import ImageSet
from netloom.data.mapping import fits_memory
from netloom.data.progressive import ProgressiveSizes
from netloom.errors import ModelError, RecipeError, did_you_mean
from netloom.features import FeatureExtractor
from netloom.inference import inference_batch_size
from netloom.models.contract import ImageModel, output_layer
from netloom.models.heads import Head
from netloom.models.registry import create_model
from netloom.models.whitening import freeze_first_convolution, whiten_first_convolution
from netloom.randomness import derive_seed
from netloom.recipe import CUSTOM_MODEL, Recipe
from netloom.run import DataFacts, RunFolder
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
from netloom.training.neighbours import NearestNeighbours
from netloom.training.optim import create_optimizer, rate_factors
from netloom.training.regularize import MaxNorm, WeightPenalty
from netloom.training.schedules import LENGTH_DEPENDENT, Schedule
from netloom.workflows.starting_weights import pretrained_scaling

CustomModel = nn.Module | Callable[..., nn.Module]
# Whitening needs moments of a few numbers, which this many pictures, or fewer large ones, fix well enough.
_PICTURES_TO_WHITEN, _PIXELS_TO_WHITEN = 5_000, 5_000_000


def split_options(recipe: Recipe, image_set: ImageSet) -> dict[str, Any]:
    """How pictures become parts: what `make_split` and `make_folds` share."""
    return {
        "targets": image_set.targets.numpy(),
        "groups": image_set.groups,
        "content_hashes": image_set.content_hashes,
        "class_names": image_set.class_names,
        "validation_fraction": recipe.validation_fraction,
        "per_class": recipe.per_class,
        "seed": recipe.split_seed,
    }


def build_heads(recipe: Recipe, class_names: Sequence[str]) -> list[Head]:
    """What the network's outputs mean.

    Raises:
        RecipeError: One sigmoid output was asked for and there are not two classes, or the recipe learns no classes.
    """
    if recipe.self_supervised is not None:
        raise RecipeError(
            "This recipe learns without labels (self_supervised), so that it gives no classifier. `netloom pretrain "
            "SOURCE` trains it; `netloom transfer SOURCE --backbone RUN` makes a classifier of what came out."
        )
    if recipe.loss == "cross_entropy":
        return [Head(name="label", kind="softmax", class_names=tuple(class_names))]
    if len(class_names) != 2:
        raise RecipeError(
            f"loss: binary_cross_entropy is for two classes, and there are {len(class_names)}. "
            "Use --set loss=cross_entropy."
        )
    return [Head(name="label", kind="sigmoid", class_names=tuple(class_names))]


def build_model(
    recipe: Recipe,
    *,
    in_channels: int,
    num_outputs: int,
    image_size: tuple[int, int],
    custom: CustomModel | None = None,
) -> nn.Module:
    """The network of a recipe, its weights drawn from the seed; what never trains requires no gradients.

    Raises:
        ModelError: The model does not fit the pictures or the options, or a custom one is missing.
    """
    if recipe.model != CUSTOM_MODEL:
        model: nn.Module = create_model(
            recipe.model,
            in_channels=in_channels,
            num_outputs=num_outputs,
            image_size=image_size,
            seed=recipe.seed,
            options=recipe.model_options(),
        )
    elif custom is None:
        raise ModelError(
            f"This recipe uses a model of yours ({recipe.custom_model}), which no file can bring back. "
            "Give it: netloom.load(run, model=...) or netloom.train(source, model=...)."
        )
    else:
        model = _make_custom(
            custom,
            recipe.seed,
            in_channels=in_channels,
            num_outputs=num_outputs,
            image_size=image_size,
        )
        _check_custom(model, in_channels, num_outputs, image_size)
    if recipe.first_layer == "frozen_whitening":
        freeze_first_convolution(model)
    freezing = build_freezing(recipe, model)
    if freezing is not None:
        freezing.prepare(model)
    if recipe.progressive_resizing is not None:
        _check_smallest(recipe, model, in_channels, image_size)
    if learns_from_features(recipe):
        _prepare_for_features(recipe, model)
    return model


def learns_from_features(recipe: Recipe) -> bool:
    """Whether a head is trained on features that are computed once, in front of a network that stays as it is."""
    return recipe.transfer is not None and recipe.transfer.mode == "features"


def is_solved_at_once(recipe: Recipe) -> bool:
    """Whether what is trained has no epochs: a classifier that is fitted to features in one go."""
    return learns_from_features(recipe) and recipe.transfer is not None and recipe.transfer.classifier != "network"


def _prepare_for_features(recipe: Recipe, model: nn.Module) -> None:
    """Freeze what gives features, and put the classifier that the recipe wants right behind it, in place.

    Raises:
        ModelError: It is not divided into trunk, head and classifier.
    """
    if not isinstance(model, ImageModel):
        raise ModelError(
            f"transfer.mode: features needs a model that is divided into trunk, head and classifier; "
            f"{type(model).__name__} is not. Give one of `netloom models`, a backbone, or a netloom.models.ImageModel."
        )
    extractor = FeatureExtractor(model)
    extractor.requires_grad_(False)
    if not is_solved_at_once(recipe) or recipe.transfer is None:
        return
    num_outputs, width = model.classifier.out_features, extractor.num_features
    classifier: nn.Module = output_layer(width, num_outputs, generator=torch.Generator().manual_seed(recipe.seed))
    if recipe.transfer.classifier == "knn":
        classifier = NearestNeighbours(width, num_classes=max(2, num_outputs), num_outputs=num_outputs)
    model.head, model.classifier = extractor.pooling, classifier  # type: ignore[assignment]


def _check_smallest(recipe: Recipe, model: nn.Module, in_channels: int, image_size: tuple[int, int]) -> None:
    """Run a model on the smallest pictures that it will see, where a network that flattens features fails."""
    sizes = progressive_sizes(recipe)
    if sizes is None:
        return
    height, width = sizes.at(0, image_size)
    training = model.training
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    try:
        with torch.no_grad():
            model.eval()(torch.zeros(2, in_channels, height, width, device=device))
    except RuntimeError as error:
        raise ModelError(
            f"progressive_resizing starts with pictures of {height}x{width} pixels, which the model "
            f"{recipe.custom_model or recipe.model} does not take ({str(error).splitlines()[0]}). Use a network that "
            "pools over all positions (speednet, resnet20, convnet with head_pooling: average), a larger "
            "progressive_resizing.start, or progressive_resizing: null."
        ) from error
    finally:
        model.train(training)


def initialize_from_pictures(
    recipe: Recipe,
    model: nn.Module,
    image_set: ImageSet,
    train: npt.NDArray[np.int64],
    *,
    scaling: InputScaling,
) -> None:
    """Set what starts from the training pictures, in place: a whitened first layer, where the recipe wants it.

    Raises:
        ModelError: There is no convolution to be whitened.
    """
    if recipe.first_layer == "random":
        return
    height, width = image_set.images.shape[2:]
    n = max(1, min(_PICTURES_TO_WHITEN, _PIXELS_TO_WHITEN // (height * width), len(train)))
    chosen = train[np.linspace(0, len(train) - 1, n).astype(np.int64)]
    rows = torch.from_numpy(chosen).to(image_set.images.device)
    whiten_first_convolution(
        model, (scaling(image_set.images.index_select(0, part)) for part in torch.split(rows, 256))
    )


def _make_custom(custom: CustomModel, seed: int, **given: Any) -> nn.Module:
    if isinstance(custom, nn.Module):
        return custom
    if not callable(custom):
        raise ModelError(f"model must be a torch.nn.Module, a function making one or a name, not {custom!r}.")
    signature = inspect.signature(custom)
    takes_all = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
    accepted = {k: v for k, v in given.items() if takes_all or k in signature.parameters}
    try:
        signature.bind(**accepted)
    except TypeError as error:
        raise ModelError(
            f"The function given as model cannot be called ({error}): it is given {', '.join(given)} by keyword, as "
            "far as it has them, so anything else needs a default."
        ) from error
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive_seed(seed, "initialization"))
        model = custom(**accepted)
    if not isinstance(model, nn.Module):
        raise ModelError(f"The function given as model returned {type(model).__name__}, not a torch.nn.Module.")
    return model


def _check_custom(model: nn.Module, in_channels: int, num_outputs: int, image_size: tuple[int, int]) -> None:
    """Run a model of the user's once, so that a wrong shape is told before training."""
    if not any(p.requires_grad for p in model.parameters()):
        raise ModelError(f"The model {type(model).__name__} has no parameter to train: all are frozen, or it has none.")
    training = model.training
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    try:
        with torch.no_grad():
            outputs = model.eval()(torch.zeros(2, in_channels, *image_size, device=device))
    except Exception as error:
        raise ModelError(
            f"The model {type(model).__name__} failed on a batch of two pictures of {in_channels} channels and "
            f"{image_size[0]}x{image_size[1]} pixels: {error}"
        ) from error
    finally:
        model.train(training)
    found = tuple(outputs.shape) if isinstance(outputs, torch.Tensor) else type(outputs).__name__
    if found != (2, num_outputs):
        raise ModelError(
            f"The model {type(model).__name__} must give {num_outputs} numbers for each picture, shape "
            f"(2, {num_outputs}) for two of them; it gave {found}."
        )


def build_scaling(recipe: Recipe, images: torch.Tensor, train: npt.NDArray[np.int64]) -> InputScaling:
    """From pixels to network inputs; statistics come from the training part alone, or with a pretrained network.

    Raises:
        ModelError: The scaling of a pretrained network is wanted, and not known or for other channels.
    """
    if recipe.input_scaling == "standardize":
        return InputScaling.standardizing(images, train)
    channels = images.shape[1]
    if recipe.input_scaling == "pretrained":
        return pretrained_scaling(recipe, channels)
    return InputScaling.unit(channels) if recipe.input_scaling == "unit" else InputScaling.none(channels)


def build_augmenter(recipe: Recipe) -> Augmenter | None:
    """The augmentation of a recipe, or None if it changes nothing."""
    if recipe.augmentation is None:
        return None
    spec = AugmentationSpec(**recipe.augmentation.model_dump())
    return Augmenter(spec, seed=recipe.seed) if spec.changes_pictures else None


def class_weights(
    recipe: Recipe, targets: npt.NDArray[np.int64], class_names: Sequence[str]
) -> npt.NDArray[np.float32] | None:
    """The weight of each class in the training loss, float32 `[K]`, or None where all weigh the same.

    `auto` is n / (K n_k) for K classes that occur, scikit-learn's `balanced`; a class that does not occur weighs 1.

    Args:
        recipe: Its `class_weight`.
        targets: Class indices `[n]` of the training part.
        class_names: In the order of the indices.

    Raises:
        RecipeError: A weight is given for a class that does not exist.
    """
    if recipe.class_weight is None:
        return None
    weights = np.ones(len(class_names), dtype=np.float32)
    if recipe.class_weight == "auto":
        counts = np.bincount(targets, minlength=len(class_names))
        occurs = counts > 0
        weights[occurs] = len(targets) / (occurs.sum() * counts[occurs])
        return weights
    known = list(class_names)
    if foreign := [name for name in recipe.class_weight if name not in known]:
        hints = "".join(did_you_mean(name, known) for name in foreign)
        raise RecipeError(
            f"class_weight: there is no class {', '.join(map(repr, foreign))}.{hints} "
            f"The classes are {', '.join(known)}."
        )
    for name, weight in recipe.class_weight.items():
        weights[known.index(name)] = weight
    return weights


def sample_weights(recipe: Recipe, image_set: ImageSet, train: npt.NDArray[np.int64]) -> torch.Tensor | None:
    """What each picture weighs in the training loss, float32 `[N]`: its own weight times that of its class."""
    of_class = class_weights(recipe, image_set.targets.cpu().numpy()[train], image_set.class_names)
    if of_class is None:
        return image_set.weights
    weights = torch.from_numpy(of_class).to(image_set.targets.device)[image_set.targets]
    return weights if image_set.weights is None else weights * image_set.weights


def resident(image_set: ImageSet, device: str) -> ImageSet:
    """The pictures on `device` if they may fill half of its free memory; else where they are, to be sent by batches."""
    kind = torch.device(device).type
    if kind == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return image_set.to(device) if image_set.images.nbytes <= free / 2 else image_set
    return image_set.to(device) if kind == "cpu" or fits_memory(image_set.images.nbytes) else image_set


def training_batches(
    recipe: Recipe,
    image_set: ImageSet,
    indices: npt.NDArray[np.int64],
    *,
    scaling: InputScaling,
    device: str | None = None,
) -> ImageBatches:
    """Shuffled, augmented, weighted batches of the training part, on `device` or where the pictures are.

    Raises:
        RecipeError: A class weight is given for a class that does not exist.
    """
    weights = sample_weights(recipe, image_set, indices)
    return ImageBatches(
        image_set.images,
        {"label": image_set.targets},
        indices,
        batch_size=recipe.batch_size,
        scaling=scaling,
        seed=recipe.seed,
        shuffle=True,
        augmenter=build_augmenter(recipe),
        weights=weights,
        device=device,
        sizes=progressive_sizes(recipe),
    )


def progressive_sizes(recipe: Recipe) -> ProgressiveSizes | None:
    """How large pictures are in each epoch, or None where they are always whole."""
    if recipe.progressive_resizing is None:
        return None
    return ProgressiveSizes(**recipe.progressive_resizing.model_dump(), epochs=recipe.epochs)


def plain_batches(
    image_set: ImageSet,
    indices: npt.NDArray[np.int64],
    *,
    batch_size: int,
    scaling: InputScaling,
    device: str | None = None,
) -> ImageBatches:
    """Batches in order, never augmented, for validation, test and prediction, on `device` or where the pictures are."""
    height, width = image_set.images.shape[2:]
    return ImageBatches(
        image_set.images,
        {"label": image_set.targets},
        indices,
        batch_size=inference_batch_size((height, width), batch_size),
        scaling=scaling,
        device=device,
    )


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
        head_epochs=transfer.head_epochs,
        gradual=transfer.gradual,
        batch_norm=transfer.batch_norm,
        cut=transfer.cut,
    )


def count_phases(recipe: Recipe, model: nn.Module) -> int:
    """Into how many stretches the epochs of a training fall, in each of which the same stages train."""
    freezing = build_freezing(recipe, model)
    return 1 if freezing is None else len({0, *(epoch for epoch, _ in freezing.unfreezing(recipe.epochs))})


def as_in_training(recipe: Recipe, model: nn.Module) -> nn.Module:
    """A copy of a model in the mode in which most steps of its training find it, to measure with."""
    replica = copy.deepcopy(model).train()
    freezing = build_freezing(recipe, replica)
    if freezing is not None:
        freezing.enter(replica, recipe.epochs - 1)
    return replica


def parameters_in_words(model: nn.Module) -> str:
    """`16,812,353 parameters, of which 2,097,665 train`."""
    counts = [(p.numel(), p.requires_grad) for p in model.parameters()]
    total, trained = sum(n for n, _ in counts), sum(n for n, trains in counts if trains)
    return f"{total:,} parameters" + ("" if trained == total else f", of which {trained:,} train")


def build_optimizer(recipe: Recipe, model: nn.Module, freezing: Freezing | None = None) -> torch.optim.Optimizer:
    """The optimizer of a recipe over the model's parameters that train, now or later."""
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
            depth=1.0 if recipe.transfer is None else recipe.transfer.depth_rate,
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
    recipe: Recipe, folder: RunFolder | None, *, content: Callable[[nn.Module], bytes] = weights_bytes
) -> list[Callback]:
    """The callbacks of a recipe; those that write do so into the run's folder, and are left out without one.

    Args:
        recipe: Of the training.
        folder: Of the run.
        content: The whole network's weights as a file holds them, of what is trained.
    """
    callbacks: list[Callback] = []
    # First, so that at the end the best epoch's weights replace the last average, not the other way round; and
    # lookahead before that, since the average is of the weights that training goes on with.
    if recipe.lookahead is not None:
        callbacks.append(Lookahead(**recipe.lookahead.model_dump()))
    if recipe.ema is not None:
        callbacks.append(WeightAveraging(**recipe.ema.model_dump()))
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
        callbacks.append(TimeLimit(max_minutes=recipe.time_limit_minutes))
    if folder is None:
        return callbacks
    if recipe.keep_every is not None:
        callbacks.append(
            EpochWeights(
                save=lambda epoch, model: folder.write_epoch_weights(epoch, content(model)),
                every=recipe.keep_every,
            )
        )
    callbacks.append(CSVLog(folder.metrics_path))
    if recipe.tensorboard:
        callbacks.append(TensorBoard(folder.tensorboard_path, scaling=folder.data.scaling))
    return callbacks


def kept_by(recipe: Recipe) -> str | None:
    """The figure by which the kept epoch is chosen, or None where the last epoch's weights are kept."""
    if recipe.early_stopping is not None and recipe.early_stopping.restore_best:
        return recipe.early_stopping.monitor
    return recipe.monitor if recipe.keep == "best" else None


def model_for(folder: RunFolder, facts: DataFacts, custom: CustomModel | None = None) -> nn.Module:
    """A network of the shape that a run's weights have."""
    recipe = folder.recipe
    head = build_heads(recipe, facts.class_names)[0]
    return build_model(
        recipe,
        in_channels=facts.channels,
        num_outputs=head.num_outputs,
        image_size=facts.image_size,
        custom=custom,
    )
