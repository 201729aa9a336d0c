"""Outputs of a model over batches; nothing else predicts."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import fx, nn

from netloom.data.batches import Batch
from netloom.errors import ModelError
from netloom.models.folding import fold
from netloom.models.fusing import fuse_convolutions, replace_convolutions, replace_pooling
from netloom.runtime import ExecutionPlan, keep_to_one_thread, without_graph_sources

TestTimeAugmentation = Literal["none", "flip", "flip_shift"]
Inputs = dict[str, torch.Tensor]
_PICTURE = "image"

# Pixels that one thread takes through the whole network at a time: activations of so few stay in its caches.
_PIECE_PIXELS = 2**18
# Pieces for each thread that are made before the outputs of a batch are waited for.
_PIECES_AHEAD = 2
# For so many outputs of each head there is room from the beginning.
_LEAST_ROWS = 1024
# Pictures on which the folded network is compared with the network itself.
_COMPARED = 4
# By how much outputs of a folded network may differ from the network's, as a part of their norm. Rounding gives 1e-6
# and, where CUDA multiplies in TensorFloat-32 or a processor in bfloat16, what these round away.
_TOLERANCE = {"cpu": 1e-4, "cuda": 1e-2, "mps": 1e-3}
_BFLOAT16_TOLERANCE = 5e-2


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

    Without any batch they are `[0, 0]`. The model runs in evaluation mode, and its modules are put back into the modes
    they were in. `watch` is called with `on_predict_start`, `on_predict_batch_end` and `on_predict_end`. With
    `test_time_augmentation` the outputs are weighted means over the versions of each picture (`augmented_views`), at
    twice or six times the cost.

    From two batches on, a folded copy of the network (`models/folding.py`) predicts, where there is one and its outputs
    agree with the network's on the first pictures; on a CPU as many threads as the plan says then take pieces of the
    batches through it. How a batch is divided depends on the size of its pictures alone, so that outputs are the same
    bits for every number of threads. The next batch is made meanwhile.

    Raises:
        ModelError: The kind of augmentation is unknown, or the batches have no input `image` to augment.
    """
    if test_time_augmentation not in get_args(TestTimeAugmentation):
        known = ", ".join(get_args(TestTimeAugmentation))
        raise ModelError(f"Test-time augmentation {test_time_augmentation!r} is unknown: one of {known}.")
    collected = {name: _Rows() for name in head_names}
    prediction = Prediction(model)
    with _evaluating(model):
        watch("on_predict_start", prediction)
        task = _Task(head_names, plan, test_time_augmentation)
        for batch, outputs in _predicted(model, iter(batches), task):
            prediction.outputs = {name: collected[name].add(outputs[name]) for name in head_names}
            prediction.batches += 1
            prediction.pictures += len(batch)
            watch("on_predict_batch_end", prediction)
        watch("on_predict_end", prediction)
    return {name: rows.all().cpu() for name, rows in collected.items()}


class _Rows:
    """Rows that come a batch at a time, in one block of memory, which doubles when it is full.

    Outputs that were kept as they come would lie between the far larger inputs and activations of the batches, whose
    memory no later batch could then take as a whole: 48,000 pictures of 224x224 took 24 GB so.
    """

    def __init__(self) -> None:
        self._block = torch.empty(0, 0)
        self._n = 0

    def add(self, rows: torch.Tensor) -> torch.Tensor:
        """Copy rows `[n, K]` behind the others; where they lie now, which stays as it is."""
        n = self._n + len(rows)
        if n > len(self._block) or self._n == 0:
            room = rows.new_empty((max(n, 2 * len(self._block), _LEAST_ROWS), *rows.shape[1:]))
            if self._n:
                room[: self._n] = self._block[: self._n]
            self._block = room
        self._block[self._n : n] = rows
        self._n, place = n, self._block[self._n : n]
        return place

    def all(self) -> torch.Tensor:
        """All rows; `[0, 0]` where there are none."""
        return self._block[: self._n]


@contextlib.contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for the body; each module's own mode afterwards, since some may be frozen in evaluation mode."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@dataclass(frozen=True)
class _Task:
    """What is wanted of each batch."""

    head_names: list[str]
    plan: ExecutionPlan
    kind: TestTimeAugmentation

    @torch.inference_mode()
    def __call__(self, model: nn.Module, inputs: Inputs) -> dict[str, torch.Tensor]:
        """Float32 outputs `[B, K]` by head name: of the inputs, or the mean over versions of their picture."""
        if self.kind == "none":
            return self._outputs(model, inputs)
        if _PICTURE not in inputs:
            raise ModelError(f"Test-time augmentation needs an input {_PICTURE!r}; there are {', '.join(inputs)}.")
        sums: dict[str, torch.Tensor] = {}
        for weight, view in augmented_views(inputs[_PICTURE], self.kind):
            of_view = self._outputs(model, {**inputs, _PICTURE: view})
            sums = {name: weight * value + sums.get(name, 0.0) for name, value in of_view.items()}
        return sums

    def _outputs(self, model: nn.Module, inputs: Inputs) -> dict[str, torch.Tensor]:
        with self.plan.autocast():
            outputs = forward(model, inputs, self.head_names)
        return {name: outputs[name].float() for name in self.head_names}


def _predicted(
    model: nn.Module, batches: Iterator[Batch], task: _Task
) -> Iterator[tuple[Batch, dict[str, torch.Tensor]]]:
    """Each batch with its outputs, in their order."""
    begun = list(itertools.islice(batches, 2))
    # Folding takes as long as some pictures do: a single batch is not worth it.
    folded = _folded(model, begun[0].inputs, task) if len(begun) == 2 else None
    every = itertools.chain(begun, batches)
    if folded is None:
        yield from ((batch, task(model, batch.inputs)) for batch in every)
    elif task.plan.device != "cpu":
        yield from ((batch, task(folded, batch.inputs)) for batch in every)
    else:
        yield from _by_threads(folded, every, task)


def _folded(model: nn.Module, inputs: Inputs, task: _Task) -> nn.Module | None:
    """The folded network, or None where there is none that agrees with `model` on the first pictures of `inputs`.

    The model takes them at once, and the folded one in two pieces if batches will be divided: they must not be if
    outputs depend on what else is in a batch.
    """
    try:
        with without_graph_sources():
            folded = _rewritten(model, inputs, task)
    except Exception:  # of any kind: a graph of a model's own code was being rewritten, and is half done
        return None
    if folded is None:
        return None
    some = {name: value[:_COMPARED] for name, value in inputs.items()}
    expected = task(model, some)
    try:
        found = _joined([task(folded, piece) for piece in _divided(some, min(2, _n_pieces(inputs)))])
    except Exception:  # likewise, or an operation that this build of torch has in another form
        return None
    kind = task.plan.torch_device.type
    tolerance = _BFLOAT16_TOLERANCE if task.plan.precision == "bfloat16" else _TOLERANCE.get(kind, 1e-2)
    return folded if all(_agree(found[name], value, tolerance) for name, value in expected.items()) else None


def _rewritten(model: nn.Module, inputs: Inputs, task: _Task) -> fx.GraphModule | None:
    with task.plan.autocast():
        folded = fold(model, {name: value[:2] for name, value in inputs.items()})
    if folded is not None and task.plan.device == "cpu":
        replace_pooling(folded)
        if task.plan.precision == "float32":
            replace_convolutions(folded, len(next(iter(inputs.values()))))
            fuse_convolutions(folded)
    return folded


def _agree(found: torch.Tensor, expected: torch.Tensor, tolerance: float) -> bool:
    same_shape = found.shape == expected.shape
    return same_shape and bool((found - expected).norm() <= tolerance * expected.norm())


def _n_pieces(inputs: Inputs) -> int:
    """Into how many pieces pictures `[B, C, H, W]` are divided; other inputs stay whole."""
    pixels = max((value.shape[2:].numel() * len(value) for value in inputs.values() if value.ndim == 4), default=0)
    return max(1, min(len(next(iter(inputs.values()))), math.ceil(pixels / _PIECE_PIXELS)))


def _divided(inputs: Inputs, n: int) -> list[Inputs]:
    """The inputs in `n` pieces of about the same number of pictures."""
    parts = {name: value.tensor_split(n) for name, value in inputs.items()}
    return [{name: of_input[i] for name, of_input in parts.items()} for i in range(n)]


def _joined(parts: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _by_threads(
    model: nn.Module, batches: Iterator[Batch], task: _Task
) -> Iterator[tuple[Batch, dict[str, torch.Tensor]]]:
    """Each batch with its outputs, its pieces taken through the model by threads, one at a time each.

    On busy cores this takes a half to a seventh of the time of operations that are divided among threads, which wait
    for the slowest of them again and again (docs/log.md); torch's operations run without Python's lock.
    """
    threads, n_workers = torch.get_num_threads(), task.plan.prediction_threads or task.plan.cpus
    torch.set_num_threads(1)
    pool = ThreadPoolExecutor(n_workers, "netloom-predict", initializer=keep_to_one_thread)
    waiting: deque[tuple[Batch, list[Future[dict[str, torch.Tensor]]]]] = deque()
    try:
        for batch in batches:
            waiting.append(
                (batch, [pool.submit(task, model, piece) for piece in _divided(batch.inputs, _n_pieces(batch.inputs))])
            )
            while sum(len(pieces) for _, pieces in waiting) > _PIECES_AHEAD * n_workers and len(waiting) > 1:
                yield _finished(*waiting.popleft())
        while waiting:
            yield _finished(*waiting.popleft())
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)


def _finished(batch: Batch, futures: list[Future[dict[str, torch.Tensor]]]) -> tuple[Batch, dict[str, torch.Tensor]]:
    return batch, _joined([future.result() for future in futures])
