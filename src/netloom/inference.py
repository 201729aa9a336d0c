"""Outputs of a model over batches; nothing else predicts."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torch import nn

from netloom.data.batches import Batch
from netloom.runtime import ExecutionPlan


@dataclass
class Prediction:
    """A pass over pictures without training, as callbacks see it.

    Attributes:
        model: In evaluation mode.
        batches: Completed batches.
        pictures: Completed pictures.
        outputs: Logits of the last batch by head name, float32 `[B, K]` on the device.
    """

    model: nn.Module
    batches: int = 0
    pictures: int = 0
    outputs: dict[str, torch.Tensor] = field(default_factory=dict)


# Called with the name of a prediction hook and the prediction; `CallbackList.call` is one.
Watch = Callable[[str, Prediction], None]


def unwatched(hook: str, prediction: Prediction) -> None:
    """Nobody watches."""


def forward(model: nn.Module, inputs: dict[str, torch.Tensor], head_names: list[str]) -> dict[str, torch.Tensor]:
    """Run `model` on named inputs and name its outputs.

    A model with one input takes the tensor itself, one with several takes keyword arguments. It returns a tensor,
    a tuple in the order of the heads, or a dict by head name.
    """
    result = model(*inputs.values()) if len(inputs) == 1 else model(**inputs)
    if isinstance(result, torch.Tensor):
        return {head_names[0]: result}
    if isinstance(result, dict):
        return result
    return dict(zip(head_names, result, strict=True))


def inference_batch_size(image_size: tuple[int, int], batch_size: int) -> int:
    """A batch for prediction: about two million pixels, which keeps activations of usual networks in tens of MB."""
    return min(512, max(batch_size, 2**21 // (image_size[0] * image_size[1]), 1))


@torch.inference_mode()
def predict_outputs(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    head_names: list[str],
    plan: ExecutionPlan,
    watch: Watch = unwatched,
) -> dict[str, torch.Tensor]:
    """Raw outputs (logits) by head name, float32 `[N, K]` on the CPU, in the order of the batches.

    Without any batch they are `[0, 0]`. The model runs in evaluation mode and is put back into the mode it was in.
    `watch` is called with `on_predict_start`, `on_predict_batch_end` and `on_predict_end`.
    """
    training = model.training
    model.eval()
    collected: dict[str, list[torch.Tensor]] = {name: [] for name in head_names}
    prediction = Prediction(model)
    try:
        watch("on_predict_start", prediction)
        for batch in batches:
            with plan.autocast():
                outputs = forward(model, batch.inputs, head_names)
            prediction.outputs = {name: outputs[name].float() for name in head_names}
            for name in head_names:
                collected[name].append(prediction.outputs[name])
            prediction.batches += 1
            prediction.pictures += len(batch)
            watch("on_predict_batch_end", prediction)
        watch("on_predict_end", prediction)
    finally:
        model.train(training)
    return {name: torch.cat(parts).cpu() if parts else torch.empty(0, 0) for name, parts in collected.items()}
