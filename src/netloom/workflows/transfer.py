"""From a pretrained network to a classifier of one's own pictures: the verb `transfer`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from netloom.data.imageset import ImageSet
from netloom.durations import parse_duration
from netloom.errors import RecipeError, did_you_mean
from netloom.files import with_home
from netloom.models.backbones import PREFIX, is_backbone
from netloom.models.pretrained import PUBLISHED, RANDOM, SUFFIX, network_of
from netloom.models.registry import is_model, model_names, model_options
from netloom.recipe import Recipe, load_recipe
from netloom.recipe.changes import without_other_modes
from netloom.recipe.groups import CUSTOM_MODEL, MODEL_OPTIONS
from netloom.run import RunFolder
from netloom.runtime import ExecutionPlan
from netloom.training.callbacks import Callback
from netloom.workflows.runs import Run
from netloom.workflows.seen_pictures import SPLIT_KEYS
from netloom.workflows.train import train

Mode = Literal["features", "frozen", "finetune"]
AUTO = "auto"
MODES: tuple[Mode, ...] = get_args(Mode)
# Chollet, "Deep learning with Python", 2017, section 5.3: a dense layer of 256 with dropout of one half.
_NETWORK_CLASSIFIER: dict[str, Any] = {"dense_units": [256], "dense_dropout": 0.5}
# Of a run's options those that another head does without.
_OF_HEADS = ("dropout", "dense_units", "dense_dropout", "dense_normalization")


def transfer(
    source: str | Path | ImageSet,
    backbone: str | Path,
    *,
    weights: str | Path | None = None,
    mode: str | None = None,
    classifier: str | None = None,
    unfreeze: int | str | None = None,
    cut: str | None = None,
    recipe: str | Path | Recipe | None = None,
    time_limit: float | str | None = None,
    out: str | Path = "runs",
    name: str | None = None,
    device: str = "auto",
    quiet: bool = False,
    callbacks: tuple[Callback, ...] = (),
    plan: ExecutionPlan | None = None,
    settings: Mapping[str, Any] | None = None,
    **overrides: Any,
) -> Run:
    """Train a classifier that starts from a pretrained network, and test it once, at the end.

    Args:
        source: As for `train`.
        backbone: The name of one of timm's networks (`resnet18`), the folder of a run, or the name of one of
            netloom's own networks (`convnet`) whose `weights` are given.
        weights: A `.safetensors` file; `random` for none. Without it those published with the network, from
            `$NETLOOM_DATA/weights/` or the hub, or those of the run.
        mode: `features`: a classifier on features that are computed once. `frozen`: a head in front of the network,
            trained with augmentation. `finetune`: the head first, then the network from the top. `auto`: the first of
            these that the next one does not clearly beat in cross-validation. Without one that of `recipe`, or
            `features`, or `finetune` where there is a cut, behind which the network has to be trained.
        classifier: Of mode `features`: `logistic`, `network` or `knn`.
        unfreeze: Of mode `finetune`: `all`, a number of stages from the top, or a stage's name.
        cut: The last stage of the backbone that is kept; the rest is drawn anew.
        recipe: In place of the shipped recipe of the mode, `transfer-features` and so on. What it says of the head wins
            over a backbone run's; if it is no transfer, pictures are scaled as for the backbone all the same.
        time_limit: A text such as `90s`, `10m` or `1h30m`; a bare number is seconds. Of mode `auto`: a step that would
            end later is not begun; half an hour without it. Of the others, of training and validation, and of the
            features in mode `features`; those that are not computed in time are by the next call.
        out: As for `train`.
        name: As for `train`.
        device: As for `train`.
        quiet: As for `train`.
        callbacks: As for `train`.
        plan: As for `train`.
        settings: As for `train`; they win over all the above.
        **overrides: As for `train`.

    Raises:
        NetloomError: As `train` raises it; the backbone is unknown, or its weights are missing, damaged or those of
            another network.
    """
    changes = {**(settings or {}), **overrides}
    limit = parse_duration(time_limit)
    start = backbone_settings(backbone, weights=weights, cut=cut)
    start = {**start, **_split_of(start)} if recipe is None else _beside_recipe(start, load_recipe(recipe))
    shared: dict[str, Any] = {"out": out, "name": name, "device": device, "quiet": quiet, "plan": plan}
    mode = mode or _mode_of(recipe, cut=cut)
    if mode == AUTO:
        if classifier is not None or recipe is not None:
            raise RecipeError("--mode auto takes the shipped recipes; --classifier and --recipe go with another mode.")
        from netloom.workflows.transfer_auto import DEFAULT_SECONDS, climb

        recipes: dict[str, Mapping[str, Any]] = {}
        steps = MODES[1:] if "transfer.cut" in {**start, **changes} else MODES  # behind a cut, features are random
        for step in steps:
            said = mode_settings(step, None, unfreeze if step == "finetune" else None)
            recipes[step] = {**start, **said, **without_other_modes(changes, step, among=steps)}
        seconds = DEFAULT_SECONDS if limit is None else limit
        return climb(source, recipes, seconds=seconds, callbacks=callbacks, **shared)
    base = recipe_of(mode) if recipe is None else recipe
    chosen = {**start, **mode_settings(mode, classifier, unfreeze)}
    if classifier == "network":
        _check_head_of_choice(str(changes.get("model", start["model"])))
        own = load_recipe(base)
        chosen |= {key: value for key, value in _NETWORK_CLASSIFIER.items() if getattr(own, key) is None}
    if limit is not None:
        chosen["time_limit_minutes"] = limit / 60
    return train(source, base, callbacks=callbacks, settings={**chosen, **changes}, **shared)


def _mode_of(recipe: str | Path | Recipe | None, *, cut: str | None) -> str:
    """The mode where none is said."""
    own = None if recipe is None else load_recipe(recipe).transfer
    if own is not None:
        return own.mode
    return "features" if cut is None else "finetune"


def recipe_of(mode: str) -> str:
    """The shipped recipe of a mode.

    Raises:
        RecipeError: There is no such mode.
    """
    if mode not in MODES:
        known = [*MODES, AUTO]
        raise RecipeError(f"There is no mode {mode!r}.{did_you_mean(mode, known)} Known are {', '.join(known)}.")
    return f"transfer-{mode}"


def mode_settings(mode: str, classifier: str | None, unfreeze: int | str | None) -> dict[str, Any]:
    """Recipe keys of a mode and of what is said about it.

    Raises:
        RecipeError: Something is said that the mode does not have.
    """
    recipe_of(mode)
    changes: dict[str, Any] = {"transfer.mode": mode}
    if classifier is not None:
        if mode != "features":
            raise RecipeError(f"--classifier is for mode features; {mode} trains the network's own head (dense_units).")
        changes["transfer.classifier"] = classifier
    if unfreeze is not None:
        if mode != "finetune":
            raise RecipeError(f"--unfreeze is for mode finetune; {mode} leaves the network as it is.")
        changes["transfer.unfreeze"] = unfreeze
    return changes


def _check_head_of_choice(model: str) -> None:
    """See to it that a network has dense layers behind its features whose width can be said.

    Raises:
        RecipeError: It has none, or those that it has are the network itself.
    """
    if not _NETWORK_CLASSIFIER.keys() <= model_options(model).keys():
        raise RecipeError(
            "--classifier network trains dense layers of a chosen width behind the features (dense_units), and "
            f"{model} has no such layers. Choose --classifier logistic or knn, or --mode frozen, which trains the head "
            "that it has."
        )


def backbone_settings(
    backbone: str | Path, *, weights: str | Path | None = None, cut: str | None = None
) -> dict[str, Any]:
    """Recipe keys of a backbone: its network, its weights, and the pictures that it takes.

    Args:
        backbone: The name of a network, or a run's folder. A folder that happens to be called as a network is, and is
            no run, does not hide it.
        weights: A file of weights, or `random`; None for those that come with the backbone.
        cut: The last stage that is kept; None for all in front of the head.

    Raises:
        ModelError: There is no such network.
        RunError: There is no such run.
        RecipeError: Weights are given for a run, which has its own, or its network is the user's own.
    """
    text = str(backbone)
    as_run = isinstance(backbone, Path) or _names_run(text)
    changes = _of_run(Path(text), weights) if as_run else {"model": _model_of(text, weights)}
    if weights is not None:
        changes["transfer.weights"] = str(weights)
    if str(weights) == RANDOM and cut is not None:
        raise RecipeError("--cut says what is kept of pretrained weights, and there are none with --weights random.")
    return changes if cut is None else {**changes, "transfer.cut": cut}


def _names_run(text: str) -> bool:
    """Whether a backbone is meant as a folder."""
    folder = Path(text)
    if RunFolder(folder).recipe_path.is_file():
        return True
    if is_backbone(text):
        return False
    return len(folder.parts) > 1 or (folder.is_dir() and not (is_model(text) or is_model(PREFIX + text)))


def _model_of(name: str, weights: str | Path | None) -> str:
    """The model that a network is meant by: timm's, or netloom's own where timm has none or the weights are of that."""
    if is_backbone(name) or name not in model_names():
        return name if is_backbone(name) else PREFIX + name
    file = None if weights is None or str(weights) == RANDOM else with_home(weights)
    said = network_of(file) if file is not None and file.is_file() and file.suffix == SUFFIX else None
    return name if (said is not None and said[0] == name) or not is_model(PREFIX + name) else PREFIX + name


def _split_of(start: Mapping[str, Any]) -> dict[str, Any]:
    """Recipe keys of the split that a backbone run was trained with: on the same pictures its test part stays unseen.

    All of them together draw that part.
    """
    path = start.get("transfer.weights")
    if path is None or not Path(path).is_dir():
        return {}
    run = RunFolder.open(path).recipe
    return {key: getattr(run, key) for key in SPLIT_KEYS}


def _beside_recipe(start: Mapping[str, Any], recipe: Recipe) -> dict[str, Any]:
    """Keys of a backbone that go with a recipe of the user's own, which says what the head is like.

    A recipe that is no transfer does not know how the backbone's pictures are scaled, and the weights of one on another
    network are not this one's.
    """
    said = {key for key in _OF_HEADS if getattr(recipe, key) is not None}
    kept = {key: value for key, value in start.items() if key not in said}
    if recipe.transfer is None and recipe.input_scaling == Recipe.model_fields["input_scaling"].default:
        kept["input_scaling"] = "pretrained"
    if recipe.transfer is not None and recipe.model != start["model"]:
        kept.setdefault("transfer.weights", PUBLISHED)
    return kept


def _of_run(path: Path, weights: str | Path | None) -> dict[str, Any]:
    folder = RunFolder.open(path)
    recipe, facts = folder.recipe, folder.data
    if weights is not None:
        raise RecipeError(f"The run {path} has weights of its own; leave --weights out, or name the network instead.")
    if recipe.model == CUSTOM_MODEL:
        raise RecipeError(
            f"The network of {path} is your own ({recipe.custom_model}), of which the run holds no code. Make it with "
            "its weights in Python, netloom.load(run, model=...).model(), and train that: netloom.train(source, "
            "model=...)."
        )
    return {
        "model": recipe.model,
        **{key: getattr(recipe, key) for key in MODEL_OPTIONS if getattr(recipe, key) is not None},
        "image_size": list(facts.image_size),
        "resize": facts.resize,
        "color": "grey" if facts.channels == 1 else "rgb",
        "input_scaling": "pretrained",
        "transfer.weights": str(path),
    }
