"""The callback interface: subclass, override what is needed; hooks that are not overridden cost nothing."""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

from netloom.errors import TrainingError
from netloom.inference import Prediction
from netloom.training.state import TrainingState

HOOKS = (
    "on_fit_start",
    "on_epoch_start",
    "on_batch_start",
    "on_batch_end",
    "on_validation_start",
    "on_validation_end",
    "on_epoch_end",
    "on_fit_end",
    "on_predict_start",
    "on_predict_batch_end",
    "on_predict_end",
)


class Callback:
    """Watches a training. `state.history[-1]` is the finished epoch's row in `on_epoch_end`.

    A callback with counters or tensors of its own returns them from `state_dict` (plain JSON values and tensors),
    so that a resumed training goes on as if it had never stopped.

    The prediction hooks belong to every pass over pictures without training: the validation of each epoch (between
    `on_validation_start` and `on_validation_end`, where there is a validation part), the test at the end, and
    `evaluate` and `predict`.
    """

    def on_fit_start(self, state: TrainingState) -> None:
        """Before the first step, or the first one after a resumption."""

    def on_epoch_start(self, state: TrainingState) -> None:
        """Before the first step of an epoch; `state.epoch` counts the completed ones."""

    def on_batch_start(self, state: TrainingState) -> None:
        """Before an optimizer step."""

    def on_batch_end(self, state: TrainingState) -> None:
        """After an optimizer step; `state.step` counts it already."""

    def on_validation_start(self, state: TrainingState) -> None:
        """Before the validation data are predicted."""

    def on_validation_end(self, state: TrainingState) -> None:
        """After the validation data were predicted; the epoch's row is not complete yet."""

    def on_epoch_end(self, state: TrainingState) -> None:
        """After training and validation of an epoch; `state.history[-1]` is its row."""

    def on_fit_end(self, state: TrainingState) -> None:
        """After the last epoch, also when a callback or the user stopped the training."""

    def on_predict_start(self, prediction: Prediction) -> None:
        """Before the first batch is predicted."""

    def on_predict_batch_end(self, prediction: Prediction) -> None:
        """After a batch was predicted; `prediction.outputs` are its logits."""

    def on_predict_end(self, prediction: Prediction) -> None:
        """After the last batch was predicted."""

    def close(self) -> None:
        """After the training and its test, however they ended, also by an exception: release files and displays."""

    def state_dict(self) -> dict[str, Any]:
        """JSON values and tensors that a resumption needs."""
        return {}

    def load_state_dict(self, value: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""


class CallbackList:
    """Calls each hook of those callbacks that override it, in their order."""

    def __init__(self, callbacks: Sequence[Callback]) -> None:
        self.callbacks = list(callbacks)
        self._overriding: dict[str, list[Callable[[Any], None]]] = {
            hook: [
                getattr(callback, hook)
                for callback in self.callbacks
                if getattr(type(callback), hook) is not getattr(Callback, hook)
            ]
            for hook in HOOKS
        }

    def __iter__(self) -> Iterator[Callback]:
        return iter(self.callbacks)

    def call(self, hook: str, state: TrainingState | Prediction) -> None:
        """Call `hook` on every callback that has its own."""
        for function in self._overriding[hook]:
            function(state)

    def close(self) -> None:
        """Close every callback."""
        for callback in self.callbacks:
            callback.close()

    def state_dicts(self) -> dict[str, dict[str, Any]]:
        """The states of those callbacks that have one, by class name and, from the second of a class on, number."""
        return {name: value for name, callback in self._named() if (value := callback.state_dict())}

    def load_state_dicts(self, values: Mapping[str, dict[str, Any]]) -> None:
        """Give every callback its state back; one that was not there before starts anew."""
        for name, callback in self._named():
            if name in values:
                callback.load_state_dict(values[name])

    def _named(self) -> list[tuple[str, Callback]]:
        seen: Counter[str] = Counter()
        named = []
        for callback in self.callbacks:
            kind = type(callback).__name__
            seen[kind] += 1
            named.append((kind if seen[kind] == 1 else f"{kind}-{seen[kind]}", callback))
        return named


@contextlib.contextmanager
def watching(callbacks: Sequence[Callback] | CallbackList) -> Iterator[CallbackList]:
    """The list that calls `callbacks`, which are closed at the end; what is such a list already, its maker closes."""
    if isinstance(callbacks, CallbackList):
        yield callbacks
        return
    with contextlib.closing(CallbackList(callbacks)) as watchers:
        yield watchers


class Monitor:
    """Decides whether a figure of the history is the best so far, and counts the epochs since.

    Args:
        name: A column of the history, `validation_loss` say.
        mode: `min`, `max`, or `auto` (`max` for accuracies and scores, `min` otherwise).
        min_delta: How much better counts as better, in the figure's own unit.
    """

    def __init__(self, name: str, *, mode: str = "auto", min_delta: float = 0.0) -> None:
        self.name = name
        self.maximize = name.endswith(("accuracy", "f1", "score")) if mode == "auto" else mode == "max"
        self.min_delta = min_delta
        self.best: float | None = None
        self.best_epoch = 0
        self.waited = 0

    def improved(self, state: TrainingState) -> bool:
        """True if the last epoch is the best so far, which it then remembers; else it counts as waited.

        Raises:
            TrainingError: The history has no such figure.
        """
        row = state.history[-1]
        if self.name not in row:
            known = ", ".join(k for k in row if k not in ("epoch", "seconds"))
            why = "" if state.validates else " There is no validation part: monitor a figure of training, or give one."
            raise TrainingError(f"Monitored figure {self.name!r} is not in the history, which has {known}.{why}")
        value = row[self.name]
        gain = 0.0 if self.best is None else (value - self.best) * (1 if self.maximize else -1)
        if self.best is not None and not math.isnan(self.best) and not gain > self.min_delta:
            self.waited += 1
            return False
        self.best, self.best_epoch, self.waited = value, state.epoch, 0
        return True

    def state_dict(self) -> dict[str, Any]:
        """The best figure, its epoch, and the epochs waited."""
        return {"best": self.best, "best_epoch": self.best_epoch, "waited": self.waited}

    def load_state_dict(self, value: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self.best, self.best_epoch, self.waited = value["best"], value["best_epoch"], value["waited"]


def copy_weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A copy of the model's parameters and buffers."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
