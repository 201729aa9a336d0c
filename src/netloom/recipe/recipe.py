"""The Recipe: everything that determines a training, in one frozen, validated object."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, Field, ValidationError

from netloom.errors import RecipeError
from netloom.recipe.changes import BY_CLASS_NAME, merged, with_own_epochs
from netloom.recipe.checks import combination_problems, model_problems
from netloom.recipe.groups import (
    EMA,
    MODEL_OPTIONS,
    Augmentation,
    ClassWeights,
    EarlyStopping,
    Fraction,
    Group,
    LearningRateSchedule,
    Lookahead,
    Monitored,
    Muon,
    Normalization,
    Pooling,
    ProgressiveResizing,
    ReduceOnPlateau,
    SelfSupervised,
    Side,
    Transfer,
    Units,
)
from netloom.validation import mistakes_in

_MISTAKES_SHOWN = 20


class Recipe(Group):
    """Everything that determines a training. `null` leaves an option to the model, or turns a group off."""

    name: str = Field("", description="name of the recipe")
    description: str = Field("", description="one line for people")

    model: str = Field(
        "convnet", description="a model's name, see `netloom models`; `timm/NAME` is a network of timm's"
    )
    custom_model: str | None = Field(
        None,
        description="for `model: custom`, the class that was given from Python; information only",
    )
    filters: Units | None = Field(None, description="filters of each block")
    convs_per_block: int | Units | None = Field(None, description="convolutions in each block")
    kernel_size: int | Units | None = Field(None, description="side of the kernels, one or per block")
    padding: Literal["same", "valid"] | None = Field(None, description="of the convolutions")
    pooling: Pooling | list[Pooling] | None = Field(None, description="after each block, one or per block")
    activation: str | None = Field(None, description="relu, leaky_relu, elu, gelu, ...")
    normalization: Normalization | None = Field(None, description="batch normalization before or after the activation")
    dense_normalization: Normalization | None = Field(None, description="the same for dense layers, where it differs")
    block_dropout: Fraction | None = Field(None, description="dropout after each block")
    spatial_dropout: bool | None = Field(None, description="block dropout drops whole feature maps")
    dropout: Fraction | None = Field(None, description="dropout before the dense layers")
    dense_dropout: Fraction | None = Field(None, description="dropout after each dense layer")
    dense_units: Units | None = Field(None, description="units of each dense layer")
    head_pooling: Literal["flatten", "average"] | None = Field(
        None, description="how the last feature map meets the dense layers"
    )

    transfer: Transfer | None = Field(None, description="start from a pretrained network, see docs/transfer.md")

    self_supervised: SelfSupervised | None = Field(
        None, description="learn without labels, for `netloom pretrain`, see docs/pretrain.md"
    )

    identity_start: bool | None = Field(None, description="kernels start by passing their channels on unchanged")
    first_layer: Literal["random", "whitening", "frozen_whitening"] = Field(
        "random",
        description="the first convolution starts with the principal components of training patches, and may stay so",
    )

    image_size: Side | tuple[Side, Side] | None = Field(
        None,
        description="pixels, a side or [height, width]; null takes it from the pictures, or from a pretrained network",
    )
    resize: Literal["stretch", "crop", "pad"] = Field("stretch", description="how pictures become that size")
    color: Literal["auto", "rgb", "grey"] = Field("auto", description="auto is grey if every picture is grey")
    input_scaling: Literal["standardize", "unit", "none", "pretrained"] = Field(
        "standardize",
        description="mean 0 and deviation 1 per channel, 0..1, 0..255 as they are, or what the pretrained network "
        "was trained with",
    )
    validation_fraction: float = Field(
        0.2,
        ge=0,
        lt=1,
        description="of what is not test, where the source brings no validation part; 0 for none, which takes "
        "`keep: last` and nothing that watches validation",
    )
    test_fraction: float = Field(0.2, gt=0, lt=1, description="where the source brings no test part")
    per_class: int | None = Field(
        None,
        ge=1,
        description="train on so many pictures of each class, drawn once from the training part; validation and test "
        "stay whole",
    )
    augmentation: Augmentation | None = Field(None, description="random changes of training pictures")

    progressive_resizing: ProgressiveResizing | None = Field(
        None, description="train on smaller pictures first; for networks that pool over all positions"
    )
    test_time_augmentation: Literal["none", "flip", "flip_shift"] = Field(
        "none",
        description="average the outputs over a picture and its mirror image, and over shifts of one pixel, in the "
        "final evaluation, `evaluate` and `predict`; validation during training sees the picture alone",
    )

    loss: Literal["cross_entropy", "binary_cross_entropy"] = Field(
        "cross_entropy", description="binary: one sigmoid output for two classes"
    )
    class_weight: Literal["auto"] | ClassWeights | None = Field(
        None,
        description="weights of classes in the training loss, which is then a weighted mean; auto is n / (K n_k), by "
        "which all classes count the same unless pictures have weights of their own; classes that a mapping leaves out "
        "weigh 1",
    )
    label_smoothing: Fraction = Field(0.0, description="share of the target spread over all classes")
    optimizer: Literal["sgd", "adam", "adamw", "nadam", "rmsprop", "muon"] = Field("adam", description="the optimizer")
    learning_rate: float = Field(1e-3, gt=0, le=1e6, description="base learning rate")
    bias_rate: float = Field(1.0, gt=0, le=1e6, description="factor on the learning rate of biases and norms")
    classifier_rate: float = Field(1.0, gt=0, le=1e6, description="factor on the learning rate of the classifier")
    momentum: Fraction = Field(0.0, description="of sgd and rmsprop")
    nesterov: bool = Field(False, description="Nesterov's momentum, for sgd")
    muon: Muon | None = Field(None, description="of optimizer muon; null takes the defaults of its keys")
    weight_decay: float = Field(
        0.0,
        ge=0,
        le=1e6,
        description="on kernels, without those exempted by a network's `no_weight_decay()`; decoupled for adamw, muon",
    )
    l1: float = Field(0.0, ge=0, le=1e6, description="penalty on the absolute values of the weights")
    l2: float = Field(0.0, ge=0, le=1e6, description="penalty on the squares of the weights")
    max_norm: float | None = Field(
        None, gt=0, le=1e6, description="largest norm of the weights into each unit, kernels only"
    )
    gradient_clip_norm: float | None = Field(None, gt=0, le=1e6, description="largest norm of the gradient")
    schedule: LearningRateSchedule | None = Field(None, description="null keeps the rate constant")

    epochs: int = Field(50, ge=1, description="passes over the training pictures")
    batch_size: int = Field(32, ge=1, description="pictures per step")
    keep: Literal["best", "last"] = Field("best", description="which epoch's weights are kept")
    monitor: Monitored = Field("validation_loss", description="by which figure `keep: best` judges")
    early_stopping: EarlyStopping | None = Field(None, description="stop when nothing improves")
    reduce_on_plateau: ReduceOnPlateau | None = Field(None, description="lower the rate on plateaus")
    lookahead: Lookahead | None = Field(None, description="every few steps, go only a part of the way there")
    ema: EMA | None = Field(None, description="validate and keep a running average of the weights")
    keep_every: int | None = Field(
        None, ge=1, description="also keep the weights of every so many epochs, in the run's `epochs/`"
    )
    time_limit_minutes: float | None = Field(
        None, gt=0, description="stop before training and validation take longer than this"
    )
    tensorboard: bool = Field(False, description="write event files for TensorBoard, in the run's `tensorboard/`")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="auto takes what measures faster on the machine"
    )
    shards: Literal["auto"] | Annotated[int, Field(ge=0, le=256)] = Field(
        "auto",
        description="Among how many threads of the CPU each batch is divided in training, 0 for not at all, 1 for "
        "captured steps in one piece; `auto` measures. Weights depend on it in their last bits.",
    )
    seed: int = Field(0, ge=0, le=2**53, description="of weights, order, augmentation and dropout")
    split_seed: int = Field(
        0, ge=0, le=2**53, description="of the split; its own, so that other seeds meet the same test pictures"
    )

    @classmethod
    def from_mapping(cls, value: Mapping[str, Any], *, where: str = "recipe") -> Recipe:
        """Validate plain values.

        Raises:
            RecipeError: With every mistake found, one a line.
        """
        problems: list[str] = []
        recipe = None
        try:
            recipe = cls.model_validate(dict(value))
        except ValidationError as error:
            problems = mistakes_in(error, cls, free_keys=BY_CLASS_NAME)
        named = {problem.partition(":")[0] for problem in problems}
        problems += [
            p for p in model_problems(value, cls.model_fields["model"].default) if p.partition(":")[0] not in named
        ]
        if recipe is not None:
            problems += combination_problems(recipe)
        if problems or recipe is None:
            count = "1 mistake" if len(problems) == 1 else f"{len(problems)} mistakes"
            shown = list(dict.fromkeys(problems))[:_MISTAKES_SHOWN]
            more = [f"  and {len(problems) - len(shown):,} more"] if len(problems) > _MISTAKES_SHOWN else []
            lines = "\n".join([*(f"  - {problem}" for problem in shown), *more])
            raise RecipeError(f"{count} in {where}:\n{lines}")
        return recipe

    def replace(self, **changes: Any) -> Recipe:
        """A copy with some keys changed; groups take mappings, dotted names reach into them."""
        values = with_own_epochs(merged(self.to_mapping(), changes), changes)
        return Recipe.from_mapping(values, where="the changed recipe")

    def to_mapping(self) -> dict[str, Any]:
        """Plain values of all keys."""
        return self.model_dump(mode="json")

    def to_yaml(self) -> str:
        """The keys that differ from the defaults, in the order of the documentation."""
        values = self.model_dump(mode="json", exclude_defaults=True)
        return yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=100)

    def model_options(self) -> dict[str, Any]:
        """The options given to the model; those left null are the model's own choice."""
        chosen = {name: getattr(self, name) for name in MODEL_OPTIONS}
        return {name: value for name, value in chosen.items() if value is not None}


def recipe_keys() -> list[str]:
    """All keys that hold a value, in the order of the documentation; those of groups with dots."""
    keys = []
    for name, field in Recipe.model_fields.items():
        groups = [c for c in get_args(field.annotation) if isinstance(c, type) and issubclass(c, BaseModel)]
        keys += [f"{name}.{inner}" for inner in groups[0].model_fields] if groups else [name]
    return keys


def key_problem(key: str, value: Any) -> str | None:
    """What is wrong with a value for one key, whatever the others are, or None.

    Args:
        key: A dotted name reaches into a group.
        value: A plain one.
    """
    try:
        Recipe.model_validate(merged({}, {key: value}))
    except ValidationError as error:
        return mistakes_in(error, Recipe, free_keys=BY_CLASS_NAME)[0]
    return None


_CHANNELS = {"auto": None, "grey": 1, "rgb": 3}


def wanted_channels(recipe: Recipe) -> int | None:
    """1 or 3, or None where the pictures decide."""
    return _CHANNELS[recipe.color]
