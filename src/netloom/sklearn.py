"""netloom's training as a scikit-learn estimator: `from netloom.sklearn import ImageClassifier`."""

from __future__ import annotations

import contextlib
import inspect
import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, TypeAdapter
from safetensors import SafetensorError, safe_open
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_array, check_consistent_length, check_random_state, check_X_y
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import nn

from netloom.data.picture_arrays import PictureArrays
from netloom.errors import ArgumentError, ModelError, NetloomError, RunError, TrainingError, did_you_mean
from netloom.files import write_atomically
from netloom.progress import Reporter
from netloom.recipe import DEFAULT_RECIPE, Recipe, load_recipe
from netloom.runtime import resolve_device, training_threads
from netloom.training.checkpoint import load_weights, load_weights_bytes, weights_bytes
from netloom.workflows.builders import CustomModel
from netloom.workflows.in_memory import FittedNetwork, fit_in_memory
from netloom.workflows.train import recipe_for
from netloom.workflows.training_run import kept_epoch

AS_RECIPE = "recipe"
"""The default of every recipe key: as the recipe says. None is the recipe's own `null`."""

_NOT_HERE = " It is a recipe key of runs: a fit has no name, no folder and no test part."
_UNUSED = {
    **dict.fromkeys(("name", "description", "test_fraction", "keep_every", "tensorboard"), _NOT_HERE),
    "custom_model": " Give the function that makes the network as `model`.",
    "seed": " Its name is random_state here.",
}
_OWN: dict[str, Any] = {
    "recipe": DEFAULT_RECIPE,
    "image_shape": None,
    "device": "auto",
    "random_state": None,
    "n_jobs": None,
    "verbose": 0,
}
RECIPE_KEYS = tuple(key for key in Recipe.model_fields if key not in _UNUSED)
_FORMAT = "netloom.sklearn.ImageClassifier/1"


def _groups() -> dict[str, tuple[str, ...]]:
    """Recipe keys that are groups, with the keys in them."""
    found = {}
    for key in RECIPE_KEYS:
        annotation = Recipe.model_fields[key].annotation
        for part in (annotation, *get_args(annotation)):
            if isinstance(part, type) and issubclass(part, BaseModel):
                found[key] = tuple(part.model_fields)
    return found


_GROUPS = _groups()


class ImageClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A network that classifies pictures, trained by a recipe.

    Every recipe key of a training is an argument of the same name and meaning (docs/recipes.md), but for those of a
    run's folder and its test part; groups such as `augmentation` take a mapping, laid over the recipe's, or None,
    which turns them off. Where an argument is `"recipe"`, the default, the recipe says. Keys in groups can be
    searched as `augmentation__rotation`.

    `fit` takes a validation part from its pictures (`validation_fraction`), by which the epoch is kept and early
    stopping decides, and no test part: who calls it holds that out. The same data, arguments and `random_state` give
    the same weights, bit for bit, on one kind of machine and with one number of threads.

    Args:
        recipe: A shipped recipe's name, a YAML file or a Recipe.
        image_shape: Shape of one picture as its values lie, (height, width) or (height, width, channels), where it
            does not follow from X.
        device: `auto`, `cpu`, `cuda` or `mps`.
        random_state: Of weights, order, augmentation and dropout: a whole number, or a generator to draw one from;
            None takes the recipe's seed.
        n_jobs: Threads of one fit on the CPU; None is 1, -1 as many as torch and this process may use, which is
            also the most.
        verbose: Above 0, tell on stderr how it goes.
        **keys: Recipe keys. `model` also takes a function that makes the network, of those of `in_channels`,
            `num_outputs` and `image_size` that it has parameters for; `class_weight` also takes `"balanced"`, which
            is the recipe's `auto`, and a mapping from labels.

    Attributes:
        classes_: Labels in the order of the columns of `predict_proba`, `[K]`.
        n_features_in_: Numbers in one picture.
        feature_names_in_: Names of the columns, where X was a data frame.
        recipe_: What was trained, with everything decided; `recipe_.to_yaml()` is what `netloom train` takes.
        history_: One row of figures per epoch.
        n_iter_: Epochs that were trained.
        kept_epoch_: The one whose weights were kept.
    """

    def __init__(self, *args: Any, **parameters: Any) -> None:
        signature = inspect.signature(ImageClassifier.__init__)  # set below; the only list of them
        for name in parameters:
            if name not in signature.parameters:
                hint = _UNUSED.get(name) or did_you_mean(name, signature.parameters)
                raise TypeError(f"There is no argument {name!r}.{hint}")
        bound = signature.bind(self, *args, **parameters)
        bound.apply_defaults()
        for name, value in bound.arguments.items():
            if name != "self":
                setattr(self, name, value)

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The arguments by name; with `deep` also the keys that are given in groups, as `augmentation__rotation`."""
        found: dict[str, Any] = super().get_params(deep=deep)
        if deep:
            given = {name: found[name] for name in _GROUPS if isinstance(found[name], Mapping)}
            found.update({f"{name}__{key}": value for name, group in given.items() for key, value in group.items()})
        return found

    def set_params(self, **params: Any) -> ImageClassifier:
        """Change arguments; `augmentation__rotation` changes one key of a group and leaves its others.

        Raises:
            ValueError: There is no such argument.
        """
        inner = {name: value for name, value in params.items() if name.partition("__")[0] in _GROUPS and "__" in name}
        super().set_params(**{name: value for name, value in params.items() if name not in inner})
        for name, value in inner.items():
            group, _, key = name.partition("__")
            if key not in _GROUPS[group]:
                hint = did_you_mean(key, _GROUPS[group]) or f" It has {', '.join(_GROUPS[group])}."
                raise ValueError(f"Invalid parameter {name!r}: {group} has no key {key!r}.{hint}")
            before = getattr(self, group)
            setattr(self, group, {**(before if isinstance(before, Mapping) else {}), key: value})
        return self

    def fit(self, X: npt.ArrayLike, y: npt.ArrayLike, sample_weight: npt.ArrayLike | None = None) -> ImageClassifier:
        """Train the network.

        Args:
            X: Pictures `[N, H, W]`, `[N, H, W, C]` or `[N, C, H, W]` of 1 or 3 channels, or rows `[N, F]` of
                `image_shape`; rows without it are square grey pictures, or where F is no square number, pictures of
                one row, for networks such as `mlp`. uint8 is taken as it is. Other numbers are mapped to 0..255 in
                a straight line, the smallest of this X to 0 and the largest to 255; what a later X has outside is
                cut off.
            y: Labels `[N]` of any kind, of at least two classes.
            sample_weight: What each picture counts in the training loss, `[N]`, at least 0. In validation all
                count the same.

        Raises:
            ValueError: The pictures, the labels or the arguments cannot be used.
            TrainingError: The loss is no longer a number.
        """
        values, labels = check_X_y(X, y, allow_nd=True, estimator=self)
        self._check_features(X, values, reset=True)
        weights = _weights(sample_weight, len(values))
        check_classification_targets(labels)
        classes, targets = np.unique(labels, return_inverse=True)
        if len(classes) < 2:
            raise ValueError(f"y has 1 class, {classes.tolist()[0]!r}; a classifier needs at least 2 classes.")
        with _value_errors(self._hint(values)):
            pictures = PictureArrays.learn(values, self.image_shape)
            fitted = fit_in_memory(
                pictures(values),
                targets.astype(np.int64),
                [str(label) for label in classes.tolist()],
                self._recipe(),
                weights=weights,
                model=self._own_model(),
                device=resolve_device(self.device),
                threads=self._threads(),
                reporter=Reporter(quiet=not self.verbose),
            )
        self.classes_ = classes
        self._pictures = pictures
        self._set_fitted(fitted)
        return self

    def predict_proba(self, X: npt.ArrayLike) -> npt.NDArray[np.float32]:
        """The probability of each class, float32 `[N, K]` in the order of `classes_`, rows sum to one.

        Raises:
            NotFittedError: Before `fit`.
            ValueError: X has other pictures than `fit` had.
        """
        check_is_fitted(self)
        values = check_array(X, allow_nd=True, estimator=self, input_name="X")
        self._check_features(X, values, reset=False)
        with _value_errors():
            return self._fitted.probabilities(
                self._pictures(values), device=resolve_device(self.device), threads=self._threads()
            )

    def predict(self, X: npt.ArrayLike) -> npt.NDArray[Any]:
        """The likeliest label of each picture, `[N]`.

        Raises:
            NotFittedError: Before `fit`.
            ValueError: X has other pictures than `fit` had.
        """
        likeliest: npt.NDArray[Any] = self.predict_proba(X).argmax(axis=1)
        labels: npt.NDArray[Any] = self.classes_[likeliest]
        return labels

    def save(self, path: str | Path) -> None:
        """Write the fitted estimator to one safetensors file: weights and JSON, nothing that runs.

        `random_state` and changes to the recipe are in its recipe from then on. A network of one's own is not in the
        file; `load` is given its function again.

        Raises:
            NotFittedError: Before `fit`.
            ValueError: Labels are of a kind that JSON does not hold.
            RunError: The file cannot be written.
        """
        check_is_fitted(self)
        names = getattr(self, "feature_names_in_", None)
        classes = {"dtype": str(self.classes_.dtype), "values": self.classes_.tolist()}
        described = {
            "format": _FORMAT,
            "network": self._fitted.to_json(),
            "pictures": vars(self._pictures),
            "classes": classes,
            "feature_names": None if names is None else names.tolist(),
            "parameters": {name: getattr(self, name) for name in ("image_shape", "device", "n_jobs", "verbose")},
        }
        try:
            text = json.dumps(described, ensure_ascii=False)
        except TypeError as error:
            raise ValueError(
                f"Cannot save labels of {classes['dtype']}: expected text, numbers or true and false ({error}). "
                "Train on names of them."
            ) from error
        write_atomically(Path(path), weights_bytes(self._fitted.network, metadata={"estimator": text}))

    @classmethod
    def load(cls, path: str | Path, *, model: Callable[..., nn.Module] | None = None) -> ImageClassifier:
        """A fitted estimator from the file that `save` wrote.

        Args:
            path: Of the file; nothing in it is run.
            model: The function making the network, where it was one's own.

        Raises:
            RunError: There is no such file, or it is damaged or another one.
            ModelError: The network is one's own, and `model` is not given.
        """
        file = Path(path)
        try:
            with safe_open(file, "np") as opened:
                value = json.loads((opened.metadata() or {})["estimator"])
            if value["format"] != _FORMAT:
                raise ValueError(f"its format is {value['format']!r}, expected {_FORMAT!r}")
            fitted = FittedNetwork.from_json(value["network"], lambda net: load_weights(net, file), model=model)
            pictures = TypeAdapter(PictureArrays).validate_python(value["pictures"])
            classes = np.array(value["classes"]["values"], dtype=np.dtype(value["classes"]["dtype"]))
            if classes.shape != (len(fitted.facts.class_names),):
                raise ValueError("it has another number of labels than the network has outputs")
            estimator = cls(recipe=fitted.recipe, **value["parameters"])
        except FileNotFoundError as error:
            raise RunError(f"There is no file {file}.") from error
        except NetloomError:
            raise
        except (SafetensorError, KeyError, TypeError, ValueError, AttributeError, RecursionError, OSError) as error:
            what = f"{type(error).__name__}: {error}" if isinstance(error, KeyError) else str(error).splitlines()[0]
            raise RunError(f"{file} is not an ImageClassifier that was saved, or it is damaged ({what}).") from error
        estimator.classes_ = classes
        estimator.n_features_in_ = math.prod(pictures.sample)
        if value.get("feature_names") is not None:
            estimator.feature_names_in_ = np.array(value["feature_names"], dtype=object)
        if model is not None:
            estimator.model = model
        estimator._pictures = pictures
        estimator._set_fitted(fitted)
        return estimator

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = dict(super().__getstate__())
        if "_fitted" in state:
            fitted = state["_fitted"]
            described, weights = json.dumps(fitted.to_json()), weights_bytes(fitted.network)
            state["_fitted"] = {"json": described, "weights": weights, "model": fitted.model}
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__({name: value for name, value in state.items() if name != "_fitted"})
        if "_fitted" in state:
            packed = state["_fitted"]
            self._fitted = FittedNetwork.from_json(
                json.loads(packed["json"]),
                lambda network: load_weights_bytes(network, packed["weights"]),
                model=packed["model"],
            )

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        return tags

    def _set_fitted(self, fitted: FittedNetwork) -> None:
        self._fitted = fitted
        self.recipe_ = fitted.recipe
        self.history_ = fitted.history
        self.n_iter_ = len(fitted.history)
        self.kept_epoch_ = kept_epoch(fitted.recipe, fitted.history)

    def _check_features(self, X: npt.ArrayLike, values: npt.NDArray[Any], *, reset: bool) -> None:
        """Note, or compare, names and number of features: columns of a table, numbers of a picture."""
        validate_data(
            self, X if values.ndim == 2 else values.reshape(len(values), -1), reset=reset, skip_check_array=True
        )

    def _recipe(self) -> Recipe:
        given = {key: _plain(getattr(self, key)) for key in RECIPE_KEYS}
        changes = {key: value for key, value in given.items() if not (isinstance(value, str) and value == AS_RECIPE)}
        if changes.get("class_weight") == "balanced":
            changes["class_weight"] = "auto"
        elif isinstance(changes.get("class_weight"), Mapping):
            changes["class_weight"] = {str(label): weight for label, weight in changes["class_weight"].items()}
        if self.random_state is not None:
            whole = isinstance(self.random_state, (int, np.integer))
            changes["seed"] = int(
                self.random_state if whole else check_random_state(self.random_state).randint(2**31 - 1)
            )
        own = self._own_model()
        if own is None:
            return load_recipe(self.recipe, changes)
        del changes["model"]
        return recipe_for("", self.recipe, changes, own)

    def _own_model(self) -> CustomModel | None:
        """The user's function making a network, where `model` is one."""
        if isinstance(self.model, nn.Module):
            raise ArgumentError(
                "model: a network that is made already would be trained further by every fit. Give a function that "
                "makes one, such as its class, or a model's name."
            )
        return self.model if callable(self.model) else None

    def _threads(self) -> int:
        most = training_threads()
        if self.n_jobs is None:
            return 1
        if not isinstance(self.n_jobs, (int, np.integer)) or self.n_jobs == 0:
            raise ValueError(f"n_jobs must be None, -1 or a number of threads, not {self.n_jobs!r}.")
        return min(int(self.n_jobs), most) if self.n_jobs > 0 else max(1, most + 1 + int(self.n_jobs))

    def _hint(self, values: npt.NDArray[Any]) -> str:
        """What to try when a network does not fit a shape that was guessed."""
        if values.ndim > 2 or self.image_shape is not None:
            return ""
        return (
            f" X has {values.shape[1]} columns; if each row is a flat picture, give image_shape=(height, width) or "
            "(height, width, channels)."
        )


@contextlib.contextmanager
def _value_errors(hint: str = "") -> Iterator[None]:
    """Errors of what was given are ValueErrors too, as scikit-learn's callers expect; `hint` is for a network's."""
    try:
        yield
    except (TrainingError, ArgumentError):
        raise
    except NetloomError as error:
        raise ArgumentError(f"{error}{hint if isinstance(error, ModelError) else ''}") from error


def _plain(value: Any) -> Any:
    """NumPy's numbers and arrays, which searches draw, as Python's."""
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    if isinstance(value, Mapping):
        return {_plain(key): _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _weights(sample_weight: npt.ArrayLike | None, n: int) -> npt.NDArray[np.float32] | None:
    """Checked weights float32 `[n]`; None where all count the same."""
    if sample_weight is None:
        return None
    weights: npt.NDArray[np.float32] = check_array(
        sample_weight, ensure_2d=False, dtype=np.float32, input_name="sample_weight"
    )
    if weights.shape != (n,):
        check_consistent_length(weights, np.empty(n))
        raise ValueError(f"sample_weight must be a 1d array of {n:,} numbers, found shape {weights.shape}.")
    if (weights < 0).any() or not weights.any():
        raise ValueError("sample_weight must be at least 0, with at least one non-zero number.")
    return None if (weights == weights[0]).all() else weights


def _signature() -> inspect.Signature:
    kind = inspect.Parameter.KEYWORD_ONLY
    own = [inspect.Parameter(name, kind, default=default) for name, default in _OWN.items() if name != "recipe"]
    recipe = inspect.Parameter("recipe", inspect.Parameter.POSITIONAL_OR_KEYWORD, default=_OWN["recipe"])
    keys = [inspect.Parameter(key, kind, default=AS_RECIPE) for key in RECIPE_KEYS]
    return inspect.Signature([inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY), recipe, *own, *keys])


ImageClassifier.__init__.__signature__ = _signature()  # type: ignore[attr-defined]
