"""Outputs of a model over batches; nothing else predicts."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import nn

from netloom.data.batches import Batch
from netloom.errors import ModelError
from netloom.runtime import ExecutionPlan

TestTimeAugmentation = Literal["none", "flip", "flip_shift"]
_PICTURE = "image"


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


def augmented_views(images: torch.Tensor, kind: TestTimeAugmentation) -> list[tuple[float, torch.Tensor]]:
    """The versions of pictures whose outputs are averaged, with their weights, which sum to one.

    `flip` is the picture and its mirror image. `flip_shift` adds both of them moved by one pixel up and left, and
    down and right, the border repeated; the unmoved pair weighs as much as the moved ones together (Jordan, "94% on
    CIFAR-10 in 3.29 seconds on a single GPU", 2024, section 3.5, who reflects the border).

    Args:
        images: Network inputs `[B, C, H, W]`.
        kind: `none` gives the pictures themselves.
    """
    height, width = images.shape[2:]
    moved = [(1.0, images)]
    if kind == "flip_shift":
        padded = F.pad(images, (1, 1, 1, 1), mode="replicate")
        moved = [(0.5, images), *((0.25, padded[:, :, at : at + height, at : at + width]) for at in (0, 2))]
    if kind == "none":
        return moved
    return [(weight / 2, view) for weight, one in moved for view in (one, one.flip(-1))]


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
    test_time_augmentation: TestTimeAugmentation = "none",
) -> dict[str, torch.Tensor]:
    """Raw outputs (logits) by head name, float32 `[N, K]` on the CPU, in the order of the batches.

    Without any batch they are `[0, 0]`. The model runs in evaluation mode and is put back into the mode it was in.
    `watch` is called with `on_predict_start`, `on_predict_batch_end` and `on_predict_end`. With
    `test_time_augmentation` the outputs are weighted means over the versions of each picture (`augmented_views`), at
    twice or six times the cost.

    Raises:
        ModelError: The kind of augmentation is unknown, or the batches have no input `image` to augment.
    """
    if test_time_augmentation not in get_args(TestTimeAugmentation):
        known = ", ".join(get_args(TestTimeAugmentation))
        raise ModelError(f"Test-time augmentation {test_time_augmentation!r} is unknown: one of {known}.")
    training = model.training
    model.eval()
    collected: dict[str, list[torch.Tensor]] = {name: [] for name in head_names}
    prediction = Prediction(model)
    try:
        watch("on_predict_start", prediction)
        for batch in batches:
            prediction.outputs = _averaged(model, batch.inputs, head_names, plan, test_time_augmentation)
            for name in head_names:
                collected[name].append(prediction.outputs[name])
            prediction.batches += 1
            prediction.pictures += len(batch)
            watch("on_predict_batch_end", prediction)
        watch("on_predict_end", prediction)
    finally:
        model.train(training)
    return {name: torch.cat(parts).cpu() if parts else torch.empty(0, 0) for name, parts in collected.items()}


def _averaged(
    model: nn.Module,
    inputs: dict[str, torch.Tensor],
    head_names: list[str],
    plan: ExecutionPlan,
    kind: TestTimeAugmentation,
) -> dict[str, torch.Tensor]:
    """Float32 outputs by head name: of the inputs, or the mean over versions of their picture."""
    if kind == "none":
        with plan.autocast():
            outputs = forward(model, inputs, head_names)
        return {name: outputs[name].float() for name in head_names}
    if _PICTURE not in inputs:
        raise ModelError(f"Test-time augmentation needs an input {_PICTURE!r}; there are {', '.join(inputs)}.")
    sums: dict[str, torch.Tensor] = {}
    for weight, view in augmented_views(inputs[_PICTURE], kind):
        of_view = _averaged(model, {**inputs, _PICTURE: view}, head_names, plan, "none")
        sums = {name: weight * value + sums.get(name, 0.0) for name, value in of_view.items()}
    return sums
