"""Everything that a training needs to go on, in one safetensors file: tensors and JSON, no pickle."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field, FiniteFloat, TypeAdapter
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import nn

from netloom.errors import RunError
from netloom.files import write_atomically
from netloom.models.stored_numbers import not_finite, of_other_types
from netloom.training.callbacks.base import CallbackList
from netloom.training.state import TrainingState

# Saving may take this fraction of the training time; a crash then loses at most twenty times what saving takes.
_SAVING_SHARE = 0.05
_TENSOR = "__tensor__"
Counter = Annotated[int, Field(ge=0, le=2**53)]


@dataclass(frozen=True)
class EpochProgress:
    """Where in an epoch a training is: batches done, and the figures summed over them."""

    batches: Counter = 0
    loss_sum: float = 0.0
    correct: Counter = 0
    n_samples: Counter = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class _Values:
    """What `Checkpoint.values` must hold, to be checked before it is used."""

    epoch: Counter
    step: Counter
    learning_rate_scale: Annotated[FiniteFloat, Field(ge=0)]
    history: list[dict[str, float]]
    stop_reason: str | None
    rates: list[tuple[FiniteFloat, FiniteFloat]]
    callbacks: Any
    progress: EpochProgress
    epochs: Counter | None = None


@dataclass(frozen=True)
class Checkpoint:
    """A training at one moment, as read from disk."""

    tensors: dict[str, torch.Tensor]
    values: dict[str, Any]

    @property
    def progress(self) -> EpochProgress:
        """Where in the epoch the training was."""
        return EpochProgress(**self.values["progress"])

    @property
    def begun_epochs(self) -> int:
        """The epochs of which at least one step was taken."""
        return int(self.values["epoch"]) + (self.progress.batches > 0)

    @property
    def epochs(self) -> int | None:
        """Of how many epochs the training was to be; None where that is not known."""
        epochs: int | None = self.values.get("epochs")
        return epochs

    @property
    def stop_reason(self) -> str | None:
        """Why that training ended early, or None. It is no reason for one of another length."""
        reason: str | None = self.values["stop_reason"]
        return reason

    def restore(self, state: TrainingState, callbacks: CallbackList) -> EpochProgress:
        """Put the model, the optimizer, the counters and the callbacks back to that moment, once.

        The tensors are let go, so that they do not take the memory of a second network as long as the training lasts.

        Raises:
            RunError: It is the checkpoint of another training, or damaged.
        """
        try:
            self._restore(state, callbacks)
            self.tensors.clear()
            return self.progress
        except (RuntimeError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise RunError(
                f"The checkpoint does not belong to this training: {_beginning(error)} Put the run's own back, or "
                "train anew."
            ) from error

    def _restore(self, state: TrainingState, callbacks: CallbackList) -> None:
        prefix = "model."
        weights = {k[len(prefix) :]: v for k, v in self.tensors.items() if k.startswith(prefix)}
        if others := of_other_types(weights, state.model.state_dict()):
            raise ValueError(f"other types of numbers than weights have, in {others[0]}.")
        state.model.load_state_dict(weights)
        self._restore_optimizer(state.optimizer)
        for name in ("epoch", "step", "learning_rate_scale", "history"):
            setattr(state, name, self.values[name])
        state.stop_reason = self.stop_reason if self.epochs in (None, state.epochs) else None
        callbacks.load_state_dicts(_unflatten(self.values["callbacks"], self.tensors))

    def _restore_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        for group, saved in zip(optimizer.param_groups, self.values["rates"], strict=True):
            group["lr"], group["base_lr"] = saved
        owners = [(p, group) for group in optimizer.param_groups for p in group["params"]]
        for i, (parameter, group) in enumerate(owners):
            prefix = f"optimizer.{i}."
            # Counts of steps lie on the CPU, but beside the parameter where a kernel of the device reads them.
            on_device = bool(group.get("fused") or group.get("capturable"))
            for key, value in self.tensors.items():
                if key.startswith(prefix):
                    name = key[len(prefix) :]
                    # Fused optimizers walk parameter and state in memory order: the layout must be the parameter's.
                    averages = value.shape == parameter.shape and name != "step"
                    if averages and of_other_types({name: value}, {name: parameter}):
                        raise ValueError(f"other types of numbers than an optimizer has, in {key} ({value.dtype}).")
                    device = parameter.device if averages or on_device else value.device
                    restored = torch.empty_like(parameter if averages else value, dtype=value.dtype, device=device)
                    optimizer.state[parameter][name] = restored.copy_(value).detach()


class Checkpointer:
    """Writes checkpoints to one path: atomically, and no more often than is cheap.

    Args:
        path: Of the safetensors file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._seconds_per_save = 0.0
        self._last = time.perf_counter()

    def save_if_due(self, state: TrainingState, callbacks: CallbackList, progress: EpochProgress) -> None:
        """Save, unless the last one was so recent that saving would take over 5% of the time."""
        if time.perf_counter() - self._last >= self._seconds_per_save / _SAVING_SHARE:
            self.save(state, callbacks, progress)

    def save(self, state: TrainingState, callbacks: CallbackList, progress: EpochProgress) -> None:
        """Write a checkpoint now; the previous one stays until this one is whole.

        Raises:
            RunError: The disk is full or cannot be written; the previous checkpoint is unchanged.
        """
        start = time.perf_counter()
        tensors = {f"model.{name}": value for name, value in state.model.state_dict().items()}
        parameters = [p for group in state.optimizer.param_groups for p in group["params"]]
        for i, parameter in enumerate(parameters):
            for name, value in state.optimizer.state.get(parameter, {}).items():
                if isinstance(value, torch.Tensor):
                    tensors[f"optimizer.{i}.{name}"] = value
        values = {
            "epochs": state.epochs,
            "epoch": state.epoch,
            "step": state.step,
            "learning_rate_scale": state.learning_rate_scale,
            "history": state.history,
            "stop_reason": state.stop_reason,
            "rates": [(group["lr"], group["base_lr"]) for group in state.optimizer.param_groups],
            "callbacks": _flatten(callbacks.state_dicts(), "callback", tensors),
            "progress": vars(progress),
        }
        packed = {name: _plain(value) for name, value in tensors.items()}
        write_atomically(self.path, save(packed, metadata={"training": json.dumps(values)}))
        self._last = time.perf_counter()
        self._seconds_per_save = self._last - start


def load_checkpoint(path: Path, *, epochs: int | None = None) -> Checkpoint:
    """Read a checkpoint.

    Args:
        path: Of the safetensors file.
        epochs: Of how many epochs the training was to be, for a file that does not say so.

    Raises:
        RunError: There is none, or it is damaged.
    """
    try:
        with safe_open(path, "pt") as file:
            values = json.loads((file.metadata() or {})["training"])
            TypeAdapter(_Values).validate_python(values)
            if values.get("epochs") is None:
                values["epochs"] = epochs
            return Checkpoint({name: file.get_tensor(name) for name in file.keys()}, values)  # noqa: SIM118
    except FileNotFoundError as error:
        raise RunError(f"There is no checkpoint at {path}; the training cannot be resumed.") from error
    except (SafetensorError, KeyError, TypeError, ValueError, RecursionError, OSError) as error:
        raise RunError(f"The checkpoint {path} cannot be read ({_beginning(error)}); it is damaged.") from error


def load_weights(model: nn.Module, path: Path) -> None:
    """Load a safetensors file into `model`, every tensor of both accounted for.

    Raises:
        RunError: The file is missing, damaged, or belongs to another network.
    """
    try:
        with safe_open(path, "pt") as file:
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError as error:
        raise RunError(f"There are no weights at {path}.") from error
    except (SafetensorError, OSError) as error:
        raise RunError(f"The weights {path} cannot be read ({error}); the file is damaged.") from error
    _put_weights(model, weights, f"weights {path}")


def load_weights_bytes(model: nn.Module, content: bytes) -> None:
    """Load what `weights_bytes` gave into `model`, every tensor of both accounted for.

    Raises:
        RunError: It is damaged, or belongs to another network.
    """
    try:
        weights = load(content)
    except (SafetensorError, KeyError, ValueError) as error:
        raise RunError(f"The weights in memory cannot be read ({error}); they are damaged.") from error
    _put_weights(model, weights, "weights in memory")


def _put_weights(model: nn.Module, weights: Mapping[str, torch.Tensor], where: str) -> None:
    if broken := not_finite(weights):
        raise RunError(f"The {where} hold numbers that are not finite, in {broken[0]}; they are damaged.")
    if others := of_other_types(weights, model.state_dict()):
        raise RunError(f"The {where} hold other types of numbers than this network, in {others[0]}; they are damaged.")
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise RunError(f"The {where} belong to another network: {_beginning(error)}") from error


def _beginning(error: Exception) -> str:
    """The first lines of what torch says; it names every tensor of a network otherwise."""
    lines = f"{error}".splitlines() or [type(error).__name__]
    return " ".join(line.strip()[:300] for line in lines[:3])


def weights_bytes(model: nn.Module, *, metadata: dict[str, str] | None = None) -> bytes:
    """The model's parameters and buffers as the content of a safetensors file, with texts beside them."""
    return state_bytes(model.state_dict(), metadata=metadata)


def state_bytes(state: Mapping[str, torch.Tensor], *, metadata: dict[str, str] | None = None) -> bytes:
    """Tensors by name as the content of a safetensors file, with texts beside them."""
    return save({name: _plain(value) for name, value in state.items()}, metadata=metadata)


def _plain(value: torch.Tensor) -> torch.Tensor:
    """A tensor of its own memory, contiguous, on the CPU, as safetensors wants it."""
    return value.detach().to("cpu", copy=True).contiguous()


def _flatten(value: Any, path: str, tensors: dict[str, torch.Tensor]) -> Any:
    """`value` with each tensor replaced by a reference to where it was put in `tensors`."""
    if isinstance(value, torch.Tensor):
        tensors[path] = value
        return {_TENSOR: path}
    if isinstance(value, dict):
        return {k: _flatten(v, f"{path}.{k}", tensors) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_flatten(v, f"{path}.{i}", tensors) for i, v in enumerate(value)]
    return value


def _unflatten(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(value, dict):
        if set(value) == {_TENSOR}:
            return tensors[value[_TENSOR]]
        return {k: _unflatten(v, tensors) for k, v in value.items()}
    if isinstance(value, list):
        return [_unflatten(v, tensors) for v in value]
    return value
