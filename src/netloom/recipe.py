"""The Recipe: everything that determines a training, in one frozen, validated object; YAML in and out."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, Field, ValidationError

from netloom.errors import ModelError, RecipeError, did_you_mean
from netloom.plain_yaml import parse_yaml
from netloom.recipe_groups import (
    EMA,
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
    as_list,
)
from netloom.validation import mistakes_in

CUSTOM_MODEL = "custom"
DEFAULT_RECIPE = "photos"
"""For sources of a user's own, where none is named."""

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
        "which all classes count the same; classes that a mapping leaves out weigh 1",
    )
    label_smoothing: Fraction = Field(0.0, description="share of the target spread over all classes")
    optimizer: Literal["sgd", "adam", "adamw", "nadam", "rmsprop", "muon"] = Field("adam", description="the optimizer")
    learning_rate: float = Field(1e-3, gt=0, le=1e6, description="base learning rate")
    bias_rate: float = Field(1.0, gt=0, le=1e6, description="factor on the learning rate of biases and norms")
    classifier_rate: float = Field(1.0, gt=0, le=1e6, description="factor on the learning rate of the classifier")
    momentum: Fraction = Field(0.0, description="of sgd and rmsprop")
    nesterov: bool = Field(False, description="Nesterov's momentum, for sgd")
    muon: Muon | None = Field(None, description="of optimizer muon; null takes the defaults of its keys")
    weight_decay: float = Field(0.0, ge=0, le=1e6, description="on weights only; decoupled for adamw and muon")
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
        description="Among how many threads of the CPU each batch is divided in training, 0 for not at all; "
        "`auto` measures. Weights depend on it in their last bits.",
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
            problems = mistakes_in(error, cls, free_keys=_BY_CLASS_NAME)
        named = {problem.partition(":")[0] for problem in problems}
        problems += [p for p in _model_problems(value) if p.partition(":")[0] not in named]
        if recipe is not None:
            problems += _combination_problems(recipe)
        if problems or recipe is None:
            count = "1 mistake" if len(problems) == 1 else f"{len(problems)} mistakes"
            shown = list(dict.fromkeys(problems))[:_MISTAKES_SHOWN]
            more = [f"  and {len(problems) - len(shown):,} more"] if len(problems) > _MISTAKES_SHOWN else []
            lines = "\n".join([*(f"  - {problem}" for problem in shown), *more])
            raise RecipeError(f"{count} in {where}:\n{lines}")
        return recipe

    def replace(self, **changes: Any) -> Recipe:
        """A copy with some keys changed; groups take mappings, dotted names reach into them."""
        merged = _with_own_epochs(_merge(self.to_mapping(), changes), changes)
        return Recipe.from_mapping(merged, where="the changed recipe")

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


_LISTS = ("filters", "dense_units")
MODEL_OPTIONS = (
    "filters",
    "convs_per_block",
    "kernel_size",
    "padding",
    "pooling",
    "activation",
    "normalization",
    "dense_normalization",
    "block_dropout",
    "spatial_dropout",
    "dropout",
    "dense_dropout",
    "dense_units",
    "head_pooling",
    "identity_start",
)


def _model_problems(value: Mapping[str, Any]) -> list[str]:
    """What is wrong with the model's name and options."""
    from netloom.models.registry import is_family_member, model_names, model_options, validate_options

    name = value.get("model", Recipe.model_fields["model"].default)
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


def _combination_problems(recipe: Recipe) -> list[str]:
    problems = []
    if recipe.nesterov and not (recipe.optimizer == "sgd" and recipe.momentum > 0):
        problems.append("nesterov: needs optimizer sgd and a momentum above 0")
    if recipe.momentum and recipe.optimizer not in ("sgd", "rmsprop"):
        where = "; muon has muon.momentum" if recipe.optimizer == "muon" else ""
        problems.append(f"momentum: is for sgd and rmsprop, not for {recipe.optimizer}{where}")
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
    if transfer is not None and transfer.mode == "finetune" and transfer.head_epochs >= recipe.epochs:
        problems.append(
            f"transfer.head_epochs: {transfer.head_epochs} of {recipe.epochs} epochs leave none in which more than the "
            "head trains; give fewer, or more epochs, or mode: frozen"
        )
    return problems


def _augmentation_problems(augmentation: Augmentation) -> list[str]:
    """What the augmentation itself says of its values, beside what the types of the keys say."""
    from netloom.data.augment import AugmentationSpec

    try:
        AugmentationSpec(**augmentation.model_dump())
    except ValueError as error:
        return [f"augmentation.{problem.replace(' is ', ': ', 1)}" for problem in str(error).splitlines()]
    return []


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


# Mappings whose keys are names of the user's, which may hold dots; they are replaced whole.
_BY_CLASS_NAME = ("class_weight",)


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
        Recipe.model_validate(_merge({}, {key: value}))
    except ValidationError as error:
        return mistakes_in(error, Recipe, free_keys=_BY_CLASS_NAME)[0]
    return None


def _merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `changes` laid over it; groups merge, dotted keys reach into them, None turns a group off."""
    merged = dict(base)
    for key, value in changes.items():
        first, _, rest = key.partition(".")
        inner = merged.get(first)
        group = inner if isinstance(inner, Mapping) else {}
        if first in _BY_CLASS_NAME:
            merged[first] = {**group, rest: value} if rest else value
        elif rest:
            merged[first] = _merge(group, {rest: value})
        elif isinstance(value, Mapping):
            merged[first] = _merge(group, value)
        else:
            merged[first] = value
    return merged


@functools.cache
def recipe_names() -> tuple[str, ...]:
    """Names of the shipped recipes."""
    folder = resources.files("netloom") / "recipes"
    return tuple(sorted(f.name[:-5] for f in folder.iterdir() if f.name.endswith(".yaml")))


def describe_recipes() -> list[dict[str, str]]:
    """Name, model and description of the shipped recipes."""
    values = [{"name": name, **_read(name)} for name in recipe_names()]
    default = Recipe.model_fields["model"].default
    return [{"name": v["name"], "model": v.get("model", default), "description": v["description"]} for v in values]


def _load_yaml(text: str, where: str) -> Any:
    try:
        return parse_yaml(text)
    except ValueError as error:
        raise RecipeError(f"{where} is not valid YAML: {error}.") from error


def _parse_yaml(text: str, where: str) -> dict[str, Any]:
    value = _load_yaml(text, where)
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise RecipeError(f"{where} must be `key: value` lines, found {type(value).__name__}.")
    return value


def _read(name_or_file: str | Path, seen: tuple[str, ...] = ()) -> dict[str, Any]:
    """The plain values of a shipped recipe or a file, with what it extends underneath."""
    text = str(name_or_file)
    if text in seen:
        raise RecipeError(f"Recipes extend each other in a circle: {' → '.join([*seen, text])}.")
    path = Path(text)
    if text in recipe_names():
        content = (resources.files("netloom") / "recipes" / f"{text}.yaml").read_text(encoding="utf-8")
        values = _parse_yaml(content, f"Recipe {text!r}")
        values.setdefault("name", text)
    elif path.suffix in (".yaml", ".yml") or path.is_file():
        try:
            values = _parse_yaml(path.read_text(encoding="utf-8"), f"Recipe file {path}")
        except (OSError, UnicodeDecodeError) as error:
            raise RecipeError(f"Cannot read the recipe file {path}: {error}.") from error
        values.setdefault("name", path.stem)
    else:
        hint = did_you_mean(text, recipe_names()) or " `netloom recipes` lists them."
        raise RecipeError(f"There is no recipe or recipe file {text!r}.{hint}")
    base = values.pop("extends", None)
    return _with_own_epochs(values, values) if base is None else _change(_read(str(base), (*seen, text)), values)


_CHANNELS = {"auto": None, "grey": 1, "rgb": 3}


def wanted_channels(recipe: Recipe) -> int | None:
    """1 or 3, or None where the pictures decide."""
    return _CHANNELS[recipe.color]


def load_recipe(name_or_file: str | Path | Recipe, overrides: Mapping[str, Any] | None = None) -> Recipe:
    """A shipped recipe by name, or one from a YAML file, with some keys changed.

    A file may name another recipe under `extends` and give only what differs.

    Raises:
        RecipeError: No such recipe, or mistakes in it or in the changes; all of them are listed.
    """
    if isinstance(name_or_file, Recipe):
        values, where = name_or_file.to_mapping(), "the recipe"
    else:
        values, where = _read(name_or_file), f"recipe {str(name_or_file)!r}"
    return Recipe.from_mapping(_change(values, overrides or {}), where=where)


def _change(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `changes`; where these name another model, options of `base` that it does not have are dropped."""
    if "model" in changes and not base.keys().isdisjoint(MODEL_OPTIONS):
        from netloom.models.registry import is_model, model_options

        if is_model(str(changes["model"])):
            foreign = set(MODEL_OPTIONS) - set(model_options(changes["model"]))
            base = {k: v for k, v in base.items() if k not in foreign}
    merged = _merge(base, changes)
    others = not {"model", "transfer.weights"}.isdisjoint(changes) and "transfer.weights_sha256" not in changes
    if others and isinstance(merged.get("transfer"), Mapping):  # the digest was that of the weights before
        merged["transfer"] = {**merged["transfer"], "weights_sha256": None}
    return _with_own_epochs(merged, changes)


def _with_own_epochs(merged: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """What `changes` made of a recipe; who says `epochs` there means them, and not what follows from `pictures`."""
    group, own = merged.get("self_supervised"), changes.get("self_supervised")
    says_pictures = "self_supervised.pictures" in changes or (isinstance(own, Mapping) and "pictures" in own)
    if "epochs" not in changes or says_pictures or not isinstance(group, Mapping):
        return merged
    return {**merged, "self_supervised": {**group, "pictures": None}}


def parse_overrides(settings: Iterable[str]) -> dict[str, Any]:
    """`key=value` texts to overrides; values are YAML, so `null` turns a group off.

    Raises:
        RecipeError: A text without `=`, or a value that is not YAML.
    """
    overrides: dict[str, Any] = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or not key.strip():
            raise RecipeError(f"--set {setting!r}: expected key=value, for example --set epochs=20.")
        overrides[key.strip()] = _load_yaml(text, f"The value of --set {setting!r}")
    return overrides
