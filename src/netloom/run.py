"""The Run folder: all that a training produced. The only code that knows its file names."""

from __future__ import annotations

import contextlib
import csv
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from netloom.errors import RunError, did_you_mean
from netloom.files import lock_file, partial_files, read_json, safe_name, write_atomically, write_json, writing
from netloom.recipe import Recipe, load_own_recipe
from netloom.run_facts import DataFacts
from netloom.run_values import Environment, ModeChoice, Result, SplitManifest, checked
from netloom.runtime import ExecutionPlan

_RECIPE = "recipe.yaml"
_SPLIT = "split.json"
_PICTURES = "pictures.safetensors"
_DATA = "data.json"
_ENVIRONMENT = "environment.json"
_TRANSFER = "transfer.json"
_EXECUTION = "execution.json"
_METRICS = "metrics.csv"
_WEIGHTS = "weights.safetensors"
_CHECKPOINT = "checkpoint.safetensors"
_EPOCHS = "epochs"
_TENSORBOARD = "tensorboard"
_PROFILE = "profile"
_RESULT = "result.json"
_PREDICTIONS = "test_predictions.safetensors"
_REPORT = "report.html"


class RunFolder:
    """A run on disk; reading parses and checks, writing is atomic.

    Args:
        path: The folder.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @classmethod
    def create(cls, out: str | Path, name: str) -> RunFolder:
        """Make a new folder `<out>/<time>-<name>`.

        Raises:
            RunError: It cannot be written there.
        """
        parent = Path(out)
        safe = safe_name(name) or "run"
        stamp = time.strftime("%Y-%m-%d-%H%M%S")
        with writing(parent, "Choose another folder with --out."):
            parent.mkdir(parents=True, exist_ok=True)
            for number in range(1, 1000):
                suffix = "" if number == 1 else f"-{number}"
                path = parent / f"{stamp}-{safe}{suffix}"
                try:
                    path.mkdir()
                except FileExistsError:
                    continue
                return cls(path)
        raise RunError(f"{parent} already has a thousand runs of this second and name.")

    @classmethod
    def open(cls, path: str | Path) -> RunFolder:
        """An existing run.

        Raises:
            RunError: There is no such folder, or it holds no run.
        """
        folder = Path(path)
        if not folder.is_dir():
            siblings = [p.name for p in folder.parent.glob("*")] if folder.parent.is_dir() else []
            hint = did_you_mean(folder.name, siblings)
            raise RunError(f"There is no run folder {folder}.{hint}")
        for name in (_RECIPE, _DATA):
            if not (folder / name).is_file():
                raise RunError(f"{folder} is not a run: it has no {name}. Give a folder made by `train`.")
        return cls(folder)

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.path.resolve().name

    @property
    def recipe(self) -> Recipe:
        """What was trained."""
        return load_own_recipe(self.path / _RECIPE)

    @property
    def data(self) -> DataFacts:
        """What it was trained on.

        Raises:
            RunError: The file is damaged.
        """
        try:
            return DataFacts.from_json(self._read_object(_DATA))
        except ValueError as error:
            raise self._damaged(_DATA, error) from error

    @property
    def split(self) -> dict[str, Any]:
        """The split manifest.

        Raises:
            RunError: The file is damaged.
        """
        manifest = self._read_object(_SPLIT)
        try:
            checked(SplitManifest, manifest)
        except ValueError as error:
            raise self._damaged(_SPLIT, error) from error
        return manifest

    @property
    def pictures(self) -> dict[str, npt.NDArray[np.int64]]:
        """Digests of the pictures of each part, the training part's pictures per class, and more, int64; may be empty.

        See `workflows.remembered_pictures.pictures_to_remember`.

        Raises:
            RunError: The file is damaged.
        """
        path = self.path / _PICTURES
        if not path.is_file():
            return {}
        tensors = self._read_tensors(path)
        counts = tensors.get("train_counts")
        classes = len(self.data.class_names)
        if any(values.dtype != np.int64 or values.ndim != 1 for values in tensors.values()) or (
            counts is not None and not (len(counts) == classes and (counts >= 0).all() and 0 < counts.sum() <= 2**40)
        ):
            raise self._damaged(_PICTURES, f"it needs whole numbers, and counts of {classes} classes")
        return tensors

    @property
    def environment(self) -> dict[str, Any]:
        """What it was trained with; `unknown` where an earlier version did not write it.

        Raises:
            RunError: The file is damaged.
        """
        try:
            return checked(Environment, self._read_object(_ENVIRONMENT)).model_dump()
        except ValueError as error:
            raise self._damaged(_ENVIRONMENT, error) from error

    @property
    def mode_choice(self) -> dict[str, Any]:
        """How the mode of a transfer was chosen among several; empty where it was not.

        Raises:
            RunError: The file is damaged.
        """
        if not (self.path / _TRANSFER).is_file():
            return {}
        told = self._read_object(_TRANSFER)
        try:
            checked(ModeChoice, told)
        except ValueError as error:
            raise self._damaged(_TRANSFER, error) from error
        return told

    @property
    def plan(self) -> ExecutionPlan:
        """How it was executed.

        Raises:
            RunError: The file is damaged.
        """
        try:
            return ExecutionPlan.from_json(self._read_object(_EXECUTION))
        except (TypeError, ValueError) as error:
            raise self._damaged(_EXECUTION, error) from error

    @property
    def saved_plan(self) -> ExecutionPlan | None:
        """How it was executed, or None if it did not get that far."""
        return self.plan if (self.path / _EXECUTION).is_file() else None

    @property
    def result(self) -> dict[str, Any]:
        """What came out; `status` is running, finished, interrupted or failed, `tests` how often it was tested.

        Raises:
            RunError: The file is damaged.
        """
        if not (self.path / _RESULT).is_file():
            return {"status": "running", "tests": 0}
        result = self._read_object(_RESULT)
        try:
            checked(Result, result)
        except ValueError as error:
            raise self._damaged(_RESULT, error) from error
        return result

    @property
    def is_complete(self) -> bool:
        """Whether it is finished and told of; killed between the two, it lacks its report."""
        return bool(self.result["status"] == "finished" and self.report_path.is_file())

    @property
    def history(self) -> list[dict[str, float]]:
        """One row per epoch.

        Raises:
            RunError: The file is damaged.
        """
        path = self.path / _METRICS
        if not path.is_file():
            return []
        try:
            with path.open(encoding="utf-8", newline="") as file:
                return [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]
        except (TypeError, ValueError, csv.Error) as error:
            raise self._damaged(_METRICS, error) from error

    def _read_object(self, name: str) -> dict[str, Any]:
        value = read_json(self.path / name)
        if not isinstance(value, dict):
            raise self._damaged(name, f"expected a JSON object, found {type(value).__name__}")
        return value

    def _damaged(self, name: str, why: object) -> RunError:
        return RunError(f"{self.path / name} is damaged: {why}. Take the file from a backup, or train anew.")

    @property
    def recipe_path(self) -> Path:
        """The recipe file, which `--recipe` takes."""
        return self.path / _RECIPE

    @property
    def metrics_path(self) -> Path:
        """Where the figures of each epoch go."""
        return self.path / _METRICS

    @property
    def weights_path(self) -> Path:
        """Where the kept weights are."""
        return self.path / _WEIGHTS

    @property
    def checkpoint_path(self) -> Path:
        """Where the state of the training is, for going on."""
        return self.path / _CHECKPOINT

    @property
    def tensorboard_path(self) -> Path:
        """Where the event files for TensorBoard go."""
        return self.path / _TENSORBOARD

    @property
    def profile_path(self) -> Path:
        """Where the trace of some steps goes."""
        return self.path / _PROFILE

    @property
    def report_path(self) -> Path:
        """The HTML report."""
        return self.path / _REPORT

    def write_setup(
        self,
        *,
        recipe: Recipe,
        split: Mapping[str, Any],
        data: DataFacts,
        environment: Mapping[str, Any],
        pictures: Mapping[str, npt.NDArray[np.int64]] | None = None,
        mode_choice: Mapping[str, Any] | None = None,
    ) -> None:
        """Write all that is known before training; `pictures` and `mode_choice` are what these give back.

        The facts of the data come last: a folder without them is no run (`open`), so that no run is half set up.
        """
        self.write_recipe(recipe)
        write_json(self.path / _SPLIT, split)
        write_json(self.path / _ENVIRONMENT, environment)
        if mode_choice is not None:
            write_json(self.path / _TRANSFER, mode_choice)
        if pictures is not None:
            from safetensors.numpy import save

            write_atomically(self.path / _PICTURES, save(dict(pictures)))
        write_json(self.path / _DATA, data.to_json())

    def write_recipe(self, recipe: Recipe) -> None:
        """Write what is trained."""
        write_atomically(self.recipe_path, recipe.to_yaml())

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other processes from training this run during the body; the system lets them in after any death.

        Raises:
            RunError: Another one is training it, or the folder cannot be written.
        """
        path = self.path / _SPLIT  # which is written once and never replaced
        if not path.is_file():  # a damaged run, of which others tell
            yield
            return
        with lock_file(path, f"Another process is training {self.path}. Wait for its end, or end it."):
            yield

    def remove_unfinished_files(self) -> None:
        """Remove what a killed process left half-written."""
        with writing(self.path, "Give write permission to the run's folder."):
            for path in partial_files(self.path):
                path.unlink(missing_ok=True)

    def write_plan(self, plan: ExecutionPlan) -> None:
        """Write how the training is executed."""
        write_json(self.path / _EXECUTION, plan.to_json())

    def write_weights(self, content: bytes) -> None:
        """Write the kept weights."""
        write_atomically(self.weights_path, content)

    def epoch_weights_path(self, epoch: int) -> Path:
        """Where the weights after `epoch`, 1 for the first, are if they were kept."""
        return self.path / _EPOCHS / f"epoch-{epoch:04d}.safetensors"

    def write_epoch_weights(self, epoch: int, content: bytes) -> None:
        """Write the weights after `epoch`, beside the kept ones."""
        path = self.epoch_weights_path(epoch)
        with writing(path.parent, "Give write permission to the run's folder."):
            path.parent.mkdir(exist_ok=True)
        write_atomically(path, content)

    def write_result(self, result: Mapping[str, Any]) -> None:
        """Write what came out."""
        write_json(self.path / _RESULT, result)

    def remove_report(self) -> None:
        """Remove the report of a result that is about to be replaced."""
        with writing(self.path, "Give write permission to the run's folder."):
            self.report_path.unlink(missing_ok=True)

    def write_report(self, html: str) -> None:
        """Write the report."""
        write_atomically(self.report_path, html)

    def write_test_predictions(
        self,
        *,
        probabilities: npt.NDArray[np.float32],
        targets: npt.NDArray[np.int64],
        groups: npt.NDArray[np.int64] | None = None,
    ) -> None:
        """Write the test part's probabilities `[n, K]`, true classes and groups `[n]`, in the manifest's order."""
        from safetensors.numpy import save

        tensors: dict[str, npt.NDArray[Any]] = {
            "probabilities": np.ascontiguousarray(probabilities),
            "targets": targets,
        }
        if groups is not None:
            tensors["groups"] = groups
        write_atomically(self.path / _PREDICTIONS, save(tensors))

    def test_predictions(self) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """Probabilities `[n, K]` and true classes `[n]` of the test part.

        Raises:
            RunError: The run has not been tested, or the file is damaged.
        """
        path = self.path / _PREDICTIONS
        if not path.is_file():
            raise RunError(f"{self.path} has not been tested: it has no {_PREDICTIONS}.")
        tensors = self._read_tensors(path)
        probabilities, targets = tensors.get("probabilities"), tensors.get("targets")
        n, k = len(self.split["test"]), len(self.data.class_names)
        if probabilities is None or targets is None or probabilities.shape != (n, k) or targets.shape != (n,):
            found = {name: list(values.shape) for name, values in tensors.items()}
            raise self._damaged(
                _PREDICTIONS, f"expected probabilities [{n}, {k}] and targets [{n}] of the test part, found {found}"
            )
        if not (np.issubdtype(targets.dtype, np.integer) and ((targets >= 0) & (targets < k)).all()):
            raise self._damaged(_PREDICTIONS, f"its targets are not numbers of the {k} classes")
        if not (np.issubdtype(probabilities.dtype, np.floating) and np.isfinite(probabilities).all()):
            raise self._damaged(_PREDICTIONS, "its probabilities are not finite numbers")
        return probabilities, targets

    def test_groups(self) -> npt.NDArray[np.int64] | None:
        """The group of each picture of the test part, int64 `[n]`; None where each stands for itself.

        Raises:
            RunError: The run has not been tested, or the file is damaged.
        """
        n = len(self.test_predictions()[1])
        groups = self._read_tensors(self.path / _PREDICTIONS).get("groups")
        if groups is not None and not (groups.shape == (n,) and groups.dtype == np.int64):
            raise self._damaged(_PREDICTIONS, f"expected {n} groups, found {groups.dtype} {list(groups.shape)}")
        return groups

    @staticmethod
    def _read_tensors(path: Path) -> dict[str, npt.NDArray[Any]]:
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        try:
            return load_file(path)
        except (SafetensorError, KeyError, ValueError, OSError) as error:
            raise RunError(f"{path} cannot be read ({error}); it is damaged.") from error
