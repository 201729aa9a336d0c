"""What a network consists of: layers, output shapes, parameters, arithmetic."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from netloom.errors import ModelError


@dataclass(frozen=True)
class LayerSummary:
    """One layer: shapes are without the batch; `output_shape` is None where it was never called."""

    name: str
    type: str
    output_shape: tuple[int, ...] | None
    parameters: int
    trainable: bool


@dataclass(frozen=True)
class ModelSummary:
    """Layers in the order of the model's definition, and the totals.

    `multiply_adds` are those of one picture's convolutions, dense layers, matrix products and
    attention. `trunk_parameters` is None where a model has no `trunk`.
    """

    type: str
    input_shape: tuple[int, ...]
    layers: tuple[LayerSummary, ...]
    parameters: int
    trainable_parameters: int
    trunk_parameters: int | None
    multiply_adds: int

    def to_json(self) -> dict[str, Any]:
        """The same as plain dictionaries and numbers."""
        return asdict(self)

    def rows(self) -> list[tuple[str, ...]]:
        """A table of text: the names of the columns, then a row for each layer."""
        columns = ("layer", "type", "output", "parameters", "trainable")
        layers = [
            (
                layer.name,
                layer.type,
                "x".join(map(str, layer.output_shape)) if layer.output_shape is not None else "",
                f"{layer.parameters:,}" if layer.parameters else "",
                ("yes" if layer.trainable else "no") if layer.parameters else "",
            )
            for layer in self.layers
        ]
        return [columns, *layers]


def summarize(model: nn.Module, *, input_shape: tuple[int, ...], trunk_only: bool = False) -> ModelSummary:
    """Run one black picture through `model` and note what comes out of each layer.

    The model is left as it was: it runs in evaluation mode (batch-norm statistics stay), modes are
    restored, and no generator moves. A model on the meta device is summarized without arithmetic.

    Args:
        model: Any module that takes one float tensor `[B, *input_shape]`.
        input_shape: Shape without the batch: (channels, height, width).
        trunk_only: Whether only `model.trunk` counts, the network without its dense head.

    Raises:
        ModelError: `trunk_only` is asked of a model without `trunk`, or the model does not take
            inputs of this shape.
    """
    trunk = getattr(model, "trunk", None)
    if trunk_only:
        if not isinstance(trunk, nn.Module):
            raise ModelError(f"{type(model).__name__} has no trunk to summarize on its own. Summarize the whole model.")
        model = trunk
    shapes, multiply_adds = _run(model, input_shape)
    return ModelSummary(
        type=type(model).__name__,
        input_shape=tuple(input_shape),
        layers=_layers(model, shapes),
        parameters=_count(model.parameters()),
        trainable_parameters=_count(p for p in model.parameters() if p.requires_grad),
        trunk_parameters=_count(trunk.parameters()) if isinstance(trunk, nn.Module) else None,
        multiply_adds=multiply_adds,
    )


def _run(model: nn.Module, input_shape: tuple[int, ...]) -> tuple[dict[nn.Module, tuple[int, ...] | None], int]:
    """Output shape of each module that was called, and the multiply-adds of the whole."""
    shapes: dict[nn.Module, tuple[int, ...] | None] = {}

    def note(module: nn.Module, _inputs: Any, output: Any) -> None:
        shapes[module] = _shape(output)

    handles = [module.register_forward_hook(note) for module in model.modules()]
    counter = FlopCounterMode(display=False)
    try:
        with _untouched(model), counter:
            model(_picture(model, input_shape))
    except RuntimeError as error:
        raise ModelError(
            f"{type(model).__name__} does not take inputs of shape {tuple(input_shape)} (without the batch): {error}"
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    return shapes, counter.get_total_flops() // 2


@contextlib.contextmanager
def _untouched(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; modes and generators are as before afterwards."""
    training = [module for module in model.modules() if module.training]
    # Torch's counter asks each input of a module for its gradient's function, which views of parameters do not have
    # here (the query of an attention that pools).
    trainable = [p for p in model.parameters() if p.requires_grad]
    gpus = {p.device for p in model.parameters() if p.device.type == "cuda"}
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=list(gpus)):
            model.eval()
            for parameter in trainable:
                parameter.requires_grad_(False)
            yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)
        for module in training:
            module.training = True


def _picture(model: nn.Module, input_shape: tuple[int, ...]) -> Tensor:
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    return torch.zeros(1, *input_shape, dtype=like.dtype, device=like.device)


def _layers(model: nn.Module, shapes: Mapping[nn.Module, tuple[int, ...] | None]) -> tuple[LayerSummary, ...]:
    """The modules that hold no others, or parameters of their own; shared weights count once."""
    layers: list[LayerSummary] = []
    seen: set[int] = set()
    for name, module in model.named_modules():
        own = list(module.parameters(recurse=False))
        if any(module.children()) and not own:
            continue
        new = [p for p in own if id(p) not in seen]
        seen.update(id(p) for p in own)
        layers.append(
            LayerSummary(
                name=name or type(model).__name__,
                type=type(module).__name__,
                output_shape=shapes.get(module),
                parameters=_count(new),
                trainable=any(p.requires_grad for p in own),
            )
        )
    return tuple(layers)


def _count(parameters: Any) -> int:
    return sum(p.numel() for p in parameters)


def _shape(output: Any) -> tuple[int, ...] | None:
    """Shape without the batch of the first tensor in `output`."""
    if isinstance(output, Tensor):
        return tuple(output.shape[1:])
    if isinstance(output, Mapping):
        output = list(output.values())
    if isinstance(output, Sequence) and not isinstance(output, str):
        return next((shape for item in output if (shape := _shape(item)) is not None), None)
    return None
