"""Lightning: a LightningModule and a Trainer without logger, bars and checkpoints."""

from __future__ import annotations

import logging
import warnings
from typing import Any

import torch
from torch.utils.data import TensorDataset

from benchmarks.suite.clock import EpochClock
from benchmarks.suite.libraries import with_pytorch
from benchmarks.suite.networks import Network, network

with_pytorch.import_torchvision()  # which torchmetrics, a part of Lightning, imports where it is installed

import lightning  # noqa: E402


class _Module(lightning.LightningModule):
    def __init__(self, net: Network) -> None:
        super().__init__()
        self.net, self.model, self.loss = net, with_pytorch.build(net), with_pytorch.loss_of(net)

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        pixels, labels = batch
        return self.loss(self.model(pixels.float().div_(255)), labels)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return with_pytorch.optimizer(self.net, self.model)


class _EpochTimer(lightning.Callback):
    def __init__(self, clock: EpochClock) -> None:
        self.clock = clock

    def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
        self.clock.epoch_ended()


def train(job: dict[str, Any]) -> dict[str, Any]:
    """`Trainer.fit` on a DataLoader over pictures in memory."""
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    net, device = network(job["network"]), with_pytorch.device_of(job)
    images, labels = with_pytorch.tensors(net, job["pictures"])
    workers = job["variant"]["workers"]
    clock = EpochClock()
    batches = with_pytorch.loader(TensorDataset(images, labels), job, workers=workers, pinned=device.type == "cuda")
    module = _Module(net)
    trainer = lightning.Trainer(
        accelerator="gpu" if device.type == "cuda" else "cpu",
        devices=1,
        max_epochs=job["epochs"],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[_EpochTimer(clock)],
    )
    trainer.fit(module, batches)
    facts = with_pytorch.facts(module, device, f"DataLoader, workers: {workers}")
    return {**clock.figures(job["pictures"]), **facts}
