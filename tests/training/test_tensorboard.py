"""What is written for TensorBoard, read back with TensorBoard's own reader."""

from __future__ import annotations

import io
import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from netloom.data.batches import InputScaling
from netloom.errors import NetloomError
from netloom.training.callbacks import Callback, Profile, TensorBoard
from netloom.training.callbacks.tensorboard import picture_grid
from netloom.training.checkpoint import Checkpointer, load_checkpoint
from netloom.training.state import TrainingState
from training.helpers import StopAfter, batches, equal, network, train, untimed

reader = pytest.importorskip(
    "tensorboard.backend.event_processing.event_accumulator", reason="the package tensorboard is not installed"
)
UNIT = InputScaling.unit(1)


def read(folder: Path) -> Any:
    found = reader.EventAccumulator(str(folder), size_guidance={"histograms": 0, "images": 0})
    found.Reload()
    return found


class LastStep(Callback):
    """Weights and gradients when each epoch ends."""

    def __init__(self) -> None:
        self.weights: list[torch.Tensor] = []
        self.gradients: list[torch.Tensor] = []
        self.first_batches: list[torch.Tensor] = []

    def on_batch_end(self, state: TrainingState) -> None:
        assert state.batch is not None
        if state.step % state.steps_per_epoch == 1:
            self.first_batches.append(state.batch.inputs["image"])

    def on_epoch_end(self, state: TrainingState) -> None:
        weight = dict(state.model.named_parameters())["0.weight"]
        assert weight.grad is not None
        self.weights.append(weight.detach().clone())
        self.gradients.append(weight.grad.clone())


def test_figures_histograms_pictures_and_graph(tmp_path: Path) -> None:
    last = LastStep()
    state = train(epochs=3, callbacks=[TensorBoard(tmp_path, scaling=UNIT, max_pictures=5), last])
    written, validation = read(tmp_path / "train"), read(tmp_path / "validation")
    for part, found in [("train", written), ("validation", validation)]:
        for figure in ("loss", "accuracy"):
            events = found.Scalars(f"epoch/{figure}")
            assert [e.step for e in events] == [1, 2, 3]
            expected = [row[f"{part}_{figure}"] for row in state.history]
            assert [e.value for e in events] == pytest.approx(expected, rel=1e-6)
    rates = [e.value for e in written.Scalars("epoch/learning_rate")]
    assert rates == pytest.approx([row["learning_rate"] for row in state.history])

    for tag, tensors in [("weights/0.weight", last.weights), ("gradients/0.weight", last.gradients)]:
        events = written.Histograms(tag)
        assert [e.step for e in events] == [1, 2, 3]
        for event, tensor in zip(events, tensors, strict=True):
            found = event.histogram_value
            assert (found.num, found.min, found.max) == (tensor.numel(), tensor.min().item(), tensor.max().item())
            assert sum(found.bucket) == tensor.numel()

    for event, inputs in zip(written.Images("training pictures/image"), last.first_batches, strict=True):
        shown = np.asarray(Image.open(io.BytesIO(event.encoded_image_string)).convert("L"))
        assert shown.shape == (2 * 66, 3 * 66)  # five pictures of 8x8, eight times enlarged, with gaps of 2
        second = shown[:64, 66:130][::8, ::8]
        assert np.array_equal(second, (inputs[1, 0] * 255).round().byte().numpy())

    operators = {node.op for node in _graph(written).node}
    assert {"aten::_convolution", "aten::batch_norm", "aten::linear"} <= operators


def _graph(found: Any) -> Any:
    from tensorboard.compat.proto.graph_pb2 import GraphDef

    return GraphDef.FromString(found.Graph().SerializeToString())


def test_training_has_the_same_bits_with_it(tmp_path: Path) -> None:
    plain = train(epochs=2)
    watched = train(epochs=2, callbacks=[TensorBoard(tmp_path, scaling=UNIT), Profile(tmp_path / "profile")])
    assert untimed(plain) == untimed(watched)
    assert equal(plain.model, watched.model)


@pytest.mark.parametrize("step", [4, 9])
def test_a_resumed_training_writes_each_epoch_once(step: int, tmp_path: Path) -> None:
    """A checkpoint from the middle of epoch 1 or 2; the epochs that were written after it are forgotten."""
    path = tmp_path / "checkpoint.safetensors"
    train(epochs=4, checkpointer=Checkpointer(path), interruption=StopAfter(step))
    events = tmp_path / "events"
    train(epochs=4, callbacks=[TensorBoard(events, scaling=UNIT)])
    train(epochs=4, callbacks=[TensorBoard(events, scaling=UNIT)], resume=load_checkpoint(path))
    assert [e.step for e in read(events / "train").Scalars("epoch/loss")] == [1, 2, 3, 4]


def test_a_file_of_the_same_second_comes_before_the_next(tmp_path: Path) -> None:
    """Of two files of one second the later could come first: 10 before 9 in the order of names."""
    watched = TensorBoard(tmp_path, scaling=UNIT)
    (tmp_path / "train").mkdir()
    earlier = tmp_path / "train" / f"events.out.tfevents.{int(time.time())}.host.1.9"
    earlier.touch()
    watched.on_fit_start(SimpleNamespace(epoch=1, step=8, validates=False))  # type: ignore[arg-type]
    watched.close()
    (later,) = set((tmp_path / "train").iterdir()) - {earlier}
    assert int(later.name.split(".")[3]) > int(earlier.name.split(".")[3])


def test_a_network_that_cannot_be_traced_is_no_reason_to_stop(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Untraceable(torch.nn.Sequential):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            if torch.jit.is_tracing():
                raise RuntimeError("a data-dependent path")
            result: torch.Tensor = super().forward(images)
            return result

    model = Untraceable(*network())
    assert train(model, epochs=1, callbacks=[TensorBoard(tmp_path, scaling=UNIT)]).epoch == 1
    text = read(tmp_path / "train").Tensors("graph/text_summary")[0].tensor_proto.string_val[0]
    assert b"a data-dependent path" in text
    assert capsys.readouterr().out == ""


def test_a_missing_package_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(NetloomError, match=r"pip install 'netloom\[tensorboard\]'"):
        TensorBoard(tmp_path, scaling=UNIT)


@pytest.mark.parametrize("channels", [1, 3])
def test_scaled_inputs_become_their_pixels_again(channels: int) -> None:
    pixels = torch.arange(256, dtype=torch.uint8).repeat(2, channels, 1).view(2, channels, 16, 16)
    scaling = InputScaling((0.4, 0.5, 0.3)[:channels], (0.2, 0.3, 0.1)[:channels])
    assert torch.equal(scaling.to_pixels(scaling(pixels)), pixels)


def test_the_grid_of_pictures_is_as_wide_as_high_and_white_where_it_is_empty() -> None:
    grid = picture_grid(torch.zeros(7, 3, 100, 80, dtype=torch.uint8))
    assert grid.shape == (3, 3 * 102, 3 * 82)
    assert grid[:, :100, :80].max() == 0
    assert grid[:, 2 * 102 :, 82:].min() == 255


def test_a_profile_has_its_steps(tmp_path: Path) -> None:
    """Twelve steps, of which half are skipped and one warms the profiler up."""
    train(epochs=2, callbacks=[Profile(tmp_path)])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["operators.txt", "steps-8-12.pt.trace.json"]
    events = json.loads((tmp_path / "steps-8-12.pt.trace.json").read_text())["traceEvents"]
    steps = {e["name"] for e in events if str(e.get("name")).startswith("ProfilerStep#")}
    assert len(steps) == 5
    assert any(e.get("name") == "aten::convolution_backward" for e in events)
    assert "aten::convolution_backward" in (tmp_path / "operators.txt").read_text()


def test_an_interrupted_training_leaves_its_profile_and_no_profiler(tmp_path: Path) -> None:
    train(epochs=2, callbacks=[Profile(tmp_path / "cut")], interruption=StopAfter(9))
    assert (tmp_path / "cut" / "operators.txt").is_file()
    train(epochs=1, callbacks=[Profile(tmp_path / "next")])
    assert (tmp_path / "next" / "operators.txt").is_file()


def test_a_training_of_two_steps_is_not_profiled(tmp_path: Path) -> None:
    train(epochs=1, train=batches(n=16, shuffle=True), callbacks=[Profile(tmp_path)])
    assert list(tmp_path.iterdir()) == []
