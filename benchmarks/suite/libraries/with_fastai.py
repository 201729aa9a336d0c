"""fastai: a Learner with PyTorch's optimizer, without bars."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import TensorDataset

from benchmarks.suite.clock import EpochClock
from benchmarks.suite.libraries import with_pytorch
from benchmarks.suite.networks import Network, network
from benchmarks.suite.pictures import HELD_OUT

with_pytorch.import_torchvision()

from fastai.data.core import DataLoaders  # noqa: E402
from fastai.learner import Learner  # noqa: E402
from fastai.optimizer import OptimWrapper  # noqa: E402
from fastai.vision.all import Callback, ImageDataLoaders, Resize, ResizeMethod  # noqa: E402


class _EpochTimer(Callback):
    order = 100

    def __init__(self, clock: EpochClock) -> None:
        self.clock = clock

    def after_epoch(self) -> None:
        self.clock.epoch_ended()


class _Scaled(torch.nn.Module):
    """The network behind pictures of 0..255."""

    def __init__(self, net: Network) -> None:
        super().__init__()
        self.model = with_pytorch.build(net)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.model(pixels.float().div_(255))


def train(job: dict[str, Any]) -> dict[str, Any]:
    """`Learner.fit` on pictures in memory; it validates on `HELD_OUT` pictures after each epoch."""
    net, device = network(job["network"]), with_pytorch.device_of(job)
    images, labels = with_pytorch.tensors(net, job["pictures"])
    workers = job["variant"]["workers"]
    clock = EpochClock()
    held = TensorDataset(images[:HELD_OUT], labels[:HELD_OUT])
    batches = DataLoaders.from_dsets(
        TensorDataset(images, labels), held, bs=job["batch_size"], num_workers=workers, device=device, drop_last=False
    )
    model = _fit(net, batches, _Scaled(net), clock, job)
    return {**clock.figures(job["pictures"]), **with_pytorch.facts(model, device, f"workers: {workers}")}


def folder(job: dict[str, Any]) -> dict[str, Any]:
    """`ImageDataLoaders.from_folder`, stretching to the network's size; it scales to 0..1 itself."""
    net, device, workers = network("photos"), with_pytorch.device_of(job), job["variant"]["workers"]
    clock = EpochClock()
    batches = ImageDataLoaders.from_folder(
        Path(job["folder"]),
        train="train",
        valid="validation",
        item_tfms=Resize(net.shape[:2], method=ResizeMethod.Squish),
        bs=job["batch_size"],
        num_workers=workers,
        device=device,
    )
    model = _fit(net, batches, with_pytorch.build(net), clock, job)
    return {**clock.figures(job["pictures"]), **with_pytorch.facts(model, device, f"workers: {workers}")}


def _fit(net: Network, batches: Any, model: torch.nn.Module, clock: EpochClock, job: dict[str, Any]) -> torch.nn.Module:
    kind, options = with_pytorch.OPTIMIZERS[net.optimizer]
    learner = Learner(
        batches,
        model,
        loss_func=with_pytorch.loss_of(net),
        opt_func=partial(OptimWrapper, opt=kind, **options),
        lr=net.learning_rate,
        cbs=[_EpochTimer(clock)],
    )
    with learner.no_bar(), learner.no_logging():
        learner.fit(job["epochs"])
    return model
