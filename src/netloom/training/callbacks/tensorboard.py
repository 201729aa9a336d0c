"""Event files for TensorBoard: figures, histograms, pictures and the graph."""

from __future__ import annotations

import contextlib
import io
import math
import re
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from netloom.data.batches import Batch, InputScaling
from netloom.errors import NetloomError
from netloom.files import writing
from netloom.training.callbacks.base import Callback
from netloom.training.state import TrainingState

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

# Pictures of a grid are enlarged to about this many pixels a side, so that 8x8 digits can be told apart.
_SIDE_PIXELS = 64
_GAP_PIXELS = 2
_EVENT_FILE = re.compile(r"events\.out\.tfevents\.(\d+)\.")


def require_tensorboard() -> type[SummaryWriter]:
    """The writer of event files.

    Raises:
        NetloomError: The package tensorboard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise NetloomError(
            "`tensorboard: true` needs the package tensorboard, which cannot be imported "
            f"({error}). Install it with: pip install 'netloom[tensorboard]', or train with --set tensorboard=false."
        ) from error
    return SummaryWriter


class TensorBoard(Callback):
    """Writes event files after every epoch, for `tensorboard --logdir` on the folder or any folder above.

    Training and validation are two runs of TensorBoard, `train` and `validation`, whose figures of the same name
    share a chart, as Keras' callback has it. `train` also gets histograms of all weights, and of their gradients at
    the epoch's last step, a grid of pictures as the network got them, and once the graph. An epoch counts as step,
    1 for the first; a resumed training replaces what was written after its checkpoint.

    Args:
        folder: For the event files; made where it is missing.
        scaling: From pixels to network inputs, to show inputs as pictures again.
        histograms: Write those of weights and gradients.
        max_pictures: In the grid; the first of the epoch's first batch.

    Raises:
        NetloomError: The package tensorboard is not installed.
    """

    def __init__(self, folder: Path, *, scaling: InputScaling, histograms: bool = True, max_pictures: int = 16) -> None:
        self.folder, self.scaling = folder, scaling
        self.histograms, self.max_pictures = histograms, max_pictures
        self._open_writer = require_tensorboard()
        self._writers: dict[str, SummaryWriter] = {}
        self._first_batch: Batch | None = None
        self._has_graph = False

    def on_fit_start(self, state: TrainingState) -> None:
        """Open the event files; those of a resumed training tell TensorBoard to forget what comes after now."""
        self._has_graph = state.epoch > 0
        with self._writing():
            for part in ("train", "validation") if state.validates else ("train",):
                _wait_for_a_later_name(self.folder / part)
                self._writers[part] = self._open_writer(
                    str(self.folder / part), purge_step=state.epoch + 1 if state.step else None
                )

    def on_epoch_start(self, state: TrainingState) -> None:
        """Wait for the epoch's first batch."""
        self._first_batch = None

    def on_batch_end(self, state: TrainingState) -> None:
        """Remember the first batch of the epoch."""
        if self._first_batch is None:
            self._first_batch = state.batch

    def on_epoch_end(self, state: TrainingState) -> None:
        """Write what there is of this epoch."""
        with self._writing():
            self._write_figures(state)
            if self.histograms:
                self._write_histograms(state)
            if self._first_batch is not None:
                self._write_pictures(state, self._first_batch)
                if not self._has_graph:
                    self._write_graph(state, self._first_batch)
            for writer in self._writers.values():
                writer.flush()

    def close(self) -> None:
        """Close the event files."""
        for writer in self._writers.values():
            writer.close()
        self._writers.clear()

    def _writing(self) -> contextlib.AbstractContextManager[None]:
        return writing(self.folder, "Free some space, or train with --set tensorboard=false.")

    def _write_figures(self, state: TrainingState) -> None:
        for column, value in state.history[-1].items():
            part, _, figure = column.partition("_")
            if part in self._writers:
                self._writers[part].add_scalar(f"epoch/{figure}", value, state.epoch)
            elif column != "epoch":
                self._writers["train"].add_scalar(f"epoch/{column}", value, state.epoch)

    def _write_histograms(self, state: TrainingState) -> None:
        for name, parameter in state.model.named_parameters():
            self._write_histogram(f"weights/{name}", parameter, state.epoch)
            if parameter.grad is not None:
                self._write_histogram(f"gradients/{name}", parameter.grad, state.epoch)

    def _write_histogram(self, tag: str, values: torch.Tensor, epoch: int) -> None:
        values = values.detach().float()
        finite = values[torch.isfinite(values)]
        if finite.numel():
            self._writers["train"].add_histogram(tag, finite, epoch)

    def _write_pictures(self, state: TrainingState, batch: Batch) -> None:
        for name, inputs in batch.inputs.items():
            if inputs.ndim == 4:
                pictures = self.scaling.to_pixels(inputs[: self.max_pictures])
                self._writers["train"].add_image(f"training pictures/{name}", picture_grid(pictures), state.epoch)

    def _write_graph(self, state: TrainingState, batch: Batch) -> None:
        """Trace the network on one picture; a network that cannot be traced is no reason to stop."""
        self._has_graph = True
        example = tuple(values[:1] for values in batch.inputs.values())
        # add_graph stands on torch.jit.trace, which warns that it is deprecated and at every shape that Python code
        # looks at, and prints its errors on stdout, where `--json` allows nothing else.
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
            warnings.simplefilter("ignore")
            try:
                self._writers["train"].add_graph(state.model, example, use_strict_trace=False)
            except Exception as error:
                self._writers["train"].add_text("graph", f"The network could not be traced: {error}")


def _wait_for_a_later_name(folder: Path) -> None:
    """Wait until the next event file's name comes after all that are there, which takes a second at most.

    Names hold the second, then the process and a counter without leading zeros, so that of two files of one second the
    later may come first; TensorBoard reads them in the order of their names.
    """
    seconds = [int(found[1]) for path in folder.glob("*") if (found := _EVENT_FILE.match(path.name))]
    while seconds and int(time.time()) == max(seconds):
        time.sleep(0.01)


def picture_grid(pictures: torch.Tensor) -> torch.Tensor:
    """Pictures uint8 `[N, C, H, W]` side by side on white, in a square of rows, uint8 `[C, height, width]`."""
    n, _, height, width = pictures.shape
    zoom = max(1, _SIDE_PIXELS // max(height, width))
    enlarged = pictures.repeat_interleave(zoom, dim=2).repeat_interleave(zoom, dim=3)
    tiles = torch.nn.functional.pad(enlarged, (0, _GAP_PIXELS, 0, _GAP_PIXELS), value=255)
    columns = math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    blank = torch.full_like(tiles[:1], 255).expand(rows * columns - n, -1, -1, -1)
    table = torch.cat([tiles, blank]).view(rows, columns, *tiles.shape[1:])
    return table.permute(2, 0, 3, 1, 4).flatten(3, 4).flatten(1, 2)
