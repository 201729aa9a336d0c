"""ONNX Runtime on the network that PyTorch exported."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch

from benchmarks.suite.clock import EpochClock
from benchmarks.suite.errors import NotAvailableError
from benchmarks.suite.libraries import with_pytorch
from benchmarks.suite.networks import Network, network
from benchmarks.suite.pictures import noise


class _Scaled(torch.nn.Module):
    """The network behind uint8 pictures, so that scaling is part of the graph."""

    def __init__(self, net: Network) -> None:
        super().__init__()
        self.model = with_pytorch.build(net)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.model(pixels.float() / 255)


def infer(job: dict[str, Any]) -> dict[str, Any]:
    """Passes over pictures in memory."""
    net = network(job["network"])
    session = _session(net, job)
    pixels, _ = noise(net.shape, net.classes, job["pictures"])
    pictures = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))
    size = job["batch_size"]
    clock = EpochClock()
    for _ in range(job["epochs"]):
        parts = [session.run(None, {"x": pictures[i : i + size]})[0] for i in range(0, len(pictures), size)]
        np.concatenate(parts)
        clock.epoch_ended()
    used = session.get_providers()[0]
    facts = with_pytorch.facts(with_pytorch.build(net), torch.device("cuda" if "CUDA" in used else "cpu"), used)
    return {**clock.figures(job["pictures"]), **facts}


def _session(net: Network, job: dict[str, Any]) -> onnxruntime.InferenceSession:
    """A session of as many threads as the job has.

    Raises:
        NotAvailableError: A GPU is asked for and this build has none.
    """
    available = onnxruntime.get_available_providers()
    if job["device"] == "cuda" and "CUDAExecutionProvider" not in available:
        raise NotAvailableError("this build of ONNX Runtime has no CUDA")
    height, width, channels = net.shape
    example = torch.zeros(job["batch_size"], channels, height, width, dtype=torch.uint8)
    path = Path(job["scratch"]) / f"{net.recipe}-{job['batch_size']}.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            _Scaled(net).eval(),
            (example,),
            str(path),
            input_names=["x"],
            dynamic_shapes={"pixels": {0: torch.export.Dim("batch")}},
            verbose=False,
        )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = job["threads"]
    wanted = ["CPUExecutionProvider"] if job["device"] == "cpu" else ["CUDAExecutionProvider", "CPUExecutionProvider"]
    return onnxruntime.InferenceSession(str(path), options, providers=wanted)
