"""Outputs of a model over batches; nothing else predicts."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from netloom.data.batches import Batch
from netloom.runtime import ExecutionPlan


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
    model: nn.Module, batches: Iterable[Batch], *, head_names: list[str], plan: ExecutionPlan
) -> dict[str, torch.Tensor]:
    """Raw outputs (logits) by head name, float32 `[N, K]` on the CPU, in the order of the batches.

    The model runs in evaluation mode and is put back into the mode it was in.
    """
    training = model.training
    model.eval()
    collected: dict[str, list[torch.Tensor]] = {name: [] for name in head_names}
    try:
        for batch in batches:
            with plan.autocast():
                outputs = forward(model, batch.inputs, head_names)
            for name in head_names:
                collected[name].append(outputs[name].float())
    finally:
        model.train(training)
    return {name: torch.cat(parts).cpu() for name, parts in collected.items()}
