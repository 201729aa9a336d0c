"""The groups of keys that a recipe has, such as `augmentation`, the types of its values, and which are the model's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

CUSTOM_MODEL = "custom"
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
"""Keys that are options of the model, at the top of a recipe."""
Monitored = Literal["validation_loss", "validation_accuracy", "train_loss", "train_accuracy"]


def as_list(value: Any) -> Any:
    """One number stands for a list of one; `32-64-128` for `[32, 64, 128]`."""
    if isinstance(value, str) and value.replace("-", "").isdigit():
        return [int(part) for part in value.split("-")]
    return [value] if isinstance(value, int) and not isinstance(value, bool) else value


def _with_text_keys(value: Any) -> Any:
    """In YAML the class `3` is a number; names are texts."""
    return {str(k) if type(k) is int else k: v for k, v in value.items()} if isinstance(value, Mapping) else value


Units = Annotated[list[Annotated[int, Field(ge=1)]], BeforeValidator(as_list)]
ClassWeights = Annotated[dict[str, Annotated[float, Field(gt=0)]], BeforeValidator(_with_text_keys)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Side = Annotated[int, Field(ge=1, le=10_000)]  # the side of the largest picture that is decoded is 12,247
Normalization = Literal["none", "before", "after"]
Pooling = Literal["max", "average", "none"]


class Group(BaseModel):
    """Keys that belong together; unknown ones are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Augmentation(Group):
    """Random changes of the training pictures, drawn anew for every picture and epoch."""

    rotation: float = Field(0.0, ge=0, le=180, description="degrees, uniform in ± this")
    width_shift: Fraction = Field(0.0, description="fraction of the width, uniform in ± this")
    height_shift: Fraction = Field(0.0, description="fraction of the height, uniform in ± this")
    shear: float = Field(0.0, ge=0, le=89, description="degrees, uniform in ± this")
    zoom: Fraction | tuple[float, float] = Field(
        0.0, description="factors uniform in 1 ± this, or between two; above 1 shrinks"
    )
    horizontal_flip: bool | Literal["alternating"] = Field(
        False,
        description="mirror every other picture left to right; `alternating` draws that once for each picture, and "
        "turns it over from epoch to epoch",
    )
    vertical_flip: bool = Field(False, description="mirror every other picture top to bottom")
    shifted_crop: int = Field(0, ge=0, le=1024, description="pixels: pad by this and cut out at random")
    fill_mode: Literal["nearest", "constant", "reflect", "wrap"] = Field(
        "nearest", description="what fills the places that a change uncovers"
    )
    fill_value: float = Field(0.0, ge=0, le=255, description="the pixel value of `constant` and cutout")
    brightness: float = Field(0.0, ge=0, le=10, description="factor uniform in 1 ± this")
    contrast: float = Field(0.0, ge=0, le=10, description="factor uniform in 1 ± this")
    saturation: float = Field(0.0, ge=0, le=10, description="factor uniform in 1 ± this")
    hue: float = Field(0.0, ge=0, le=0.5, description="share of the colour circle, uniform in ± this")
    policy: Literal["none", "randaugment", "trivialaugment"] = Field(
        "none", description="operations drawn from a list, in torchvision's definitions"
    )
    randaugment_operations: int = Field(2, ge=1, le=14, description="operations on each picture")
    randaugment_magnitude: int = Field(9, ge=0, le=30, description="strength of `randaugment`")
    cutout: float = Field(0.0, ge=0, le=1, description="side of an erased square, of the shorter side")
    mixup: float = Field(0.0, ge=0, le=100, description="blend pictures and targets of a batch; alpha of Beta(α, α)")
    cutmix: float = Field(0.0, ge=0, le=100, description="paste boxes of one picture into another; alpha likewise")


class EarlyStopping(Group):
    """Stop when the monitored figure no longer gets better; which epoch is kept, `keep` and `monitor` say."""

    monitor: Monitored = Field("validation_loss", description="the figure watched")
    patience: int = Field(10, ge=1, description="epochs without improvement before stopping")
    min_delta: float = Field(0.0, ge=0, description="how much better counts as better")


class ReduceOnPlateau(Group):
    """Lower the learning rate when the monitored figure no longer gets better."""

    monitor: Monitored = Field("validation_loss", description="the figure watched")
    factor: float = Field(0.5, gt=0, lt=1, description="what the learning rate is multiplied by")
    patience: int = Field(3, ge=1, description="epochs without improvement before lowering")
    min_delta: float = Field(1e-4, ge=0, description="how much better counts as better")
    min_learning_rate: float = Field(0.0, ge=0, description="the rate is not lowered below this")


class EMA(Group):
    """Validate and keep a running average of the weights."""

    decay: float = Field(0.999, ge=0, lt=1, description="what the average keeps of itself at each step")
    warmup: Literal["auto"] | bool = Field(
        "auto",
        description="smaller decay in the first steps, to forget a random start; `auto`: unless a pretrained network "
        "and the regression on its features are the start, which is worth remembering",
    )


class Lookahead(Group):
    """Every few steps, go only a part of the way there, and on from that place."""

    every_steps: int = Field(5, ge=1, description="steps between two returns")
    step_size: float = Field(0.5, gt=0, le=1, description="part of the way that is kept")
    power: float = Field(
        0.0, ge=0, le=10, description="how the returns set in: their share grows with progress to this power; 0 at once"
    )


class Muon(Group):
    """How `optimizer: muon` updates kernels, and what updates biases, norms and the classifier."""

    momentum: Fraction = Field(0.95, description="of the kernels")
    nesterov: bool = Field(True, description="Nesterov's momentum, for the kernels and `rest: sgd`")
    newton_schulz_steps: int = Field(5, ge=1, le=20, description="iterations that make an update orthogonal")
    update_scale: Literal["rms", "shape", "none"] = Field(
        "rms", description="size of the update: `rms` fits AdamW's learning rates, `shape` is Jordan's, `none` 1"
    )
    normalize_kernels: bool = Field(
        False, description="scale kernels to norm 1 per filter before each step; for networks with batch normalization"
    )
    rest: Literal["adamw", "sgd"] = Field("adamw", description="optimizer of biases, norms and the classifier")
    rest_learning_rate: float | None = Field(
        None, gt=0, le=1e6, description="its base learning rate; null takes `learning_rate`"
    )
    rest_momentum: Fraction = Field(0.9, description="of `rest: sgd`")


class ProgressiveResizing(Group):
    """Train on smaller pictures first, which costs as much less as they have fewer pixels."""

    start: float = Field(0.5, gt=0, le=1, description="side of the first epoch's pictures, of the whole side")
    until: float = Field(0.75, gt=0, le=1, description="share of the epochs after which they are whole")


class Transfer(Group):
    """Start from a network that has been trained on other pictures."""

    weights: str = Field(
        "published",
        min_length=1,
        description="`published` with the network, `random`, a `.safetensors` file, or a run's folder",
    )
    weights_sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = Field(
        None, description="digest of the weights; noted by the first training, and others are refused from then on"
    )
    mode: Literal["features", "frozen", "finetune"] = Field(
        "features",
        description="a classifier on features computed once, a head trained in front of the frozen network, or all of "
        "it trained from the top down",
    )
    classifier: Literal["logistic", "network", "knn"] = Field(
        "logistic", description="of mode `features`; `network` is the head of `dense_units` and `dropout`"
    )
    views: int = Field(0, ge=0, le=64, description="augmented views of each training picture beside it, for `features`")
    unfreeze: Literal["all"] | Annotated[int, Field(ge=1)] | Annotated[str, Field(min_length=1)] = Field(
        "all", description="of mode `finetune`: all, so many stages from the top, or from the named stage upwards"
    )
    gradual: bool = Field(False, description="unfreeze one stage more with each epoch, from the top")
    head_epochs: Annotated[int, Field(ge=0)] | None = Field(
        None,
        description="epochs of mode `finetune` in which the head alone is trained; null is 1, or 3 for a head that "
        "does not start from the regression on the features, and always less than `epochs`",
    )
    new_rate: float = Field(
        10.0,
        gt=0,
        description="factor on the learning rate of modes `frozen` and `finetune` for what starts from chance: the "
        "stages behind a `cut`, and a head with `dense_units`",
    )
    depth_rate: float = Field(
        0.8, gt=0, le=1, description="factor on the learning rate for each stage further down, of mode `finetune`"
    )
    batch_norm: Literal["frozen", "trained"] = Field(
        "frozen",
        description="whether batch normalizations of unfrozen stages keep their statistics; frozen stages always do",
    )
    test_on_seen: bool = Field(
        False,
        description="test on pictures that the run of the weights was trained on, with a note in the report; without "
        "it that is refused",
    )
    cut: str | None = Field(
        None,
        description="of modes `frozen` and `finetune`: the last stage that is kept, what follows is drawn anew; null "
        "is all but the head",
    )


FIRST_MODE = "features"
"""Of `transfer`, where none is said."""

KEYS_OF_MODE: dict[str, tuple[str, ...]] = {
    "features": ("classifier", "views"),
    "finetune": ("unfreeze", "gradual", "head_epochs", "depth_rate", "batch_norm"),
}
"""Of the modes of `transfer` the keys that the others do not look at."""


class SelfSupervised(Group):
    """Learn from pictures without their labels, by telling two views of a picture from all others."""

    pictures: int | None = Field(
        300_000,
        ge=1,
        description="pictures seen in all, each in two views, from which the number of epochs follows; null takes "
        "`epochs`, and so does whoever says these alone",
    )
    view_size: float = Field(0.75, gt=0, le=1, description="side of the views, of the pictures' side")
    temperature: float = Field(
        0.2, gt=0, le=10, description="what similarities are divided by; smaller looks at the hardest others only"
    )
    hidden_units: int = Field(512, ge=1, le=65_536, description="of the projector behind the network")
    embedding_size: int = Field(128, ge=2, le=65_536, description="numbers per view that are compared")


class LearningRateSchedule(Group):
    """How the learning rate moves during training."""

    kind: Literal["constant", "step", "exponential", "linear", "triangular", "cosine", "one_cycle"] = Field(
        "constant", description="the shape"
    )
    warmup_epochs: float = Field(0.0, ge=0, description="linear rise to where the shape begins, in front of it")
    step_epochs: float = Field(10.0, gt=0, description="epochs between reductions of `step`")
    decay: float = Field(0.1, gt=0, le=1, description="factor per reduction (`step`) or epoch (`exponential`)")
    final_fraction: float = Field(
        0.0, ge=0, le=1, description="where `linear`, `triangular`, `cosine` and `one_cycle` end, of the base rate"
    )
    peak_fraction: float = Field(0.3, gt=0, lt=1, description="when `triangular` and `one_cycle` peak, of the training")
    start_fraction: float = Field(
        0.04, gt=0, le=1, description="where `triangular` and `one_cycle` start, of the base rate"
    )
