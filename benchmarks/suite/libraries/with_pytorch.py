"""Plain PyTorch: the loop of its tutorials with a DataLoader, and the loop of someone who has tuned it."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.suite.clock import EpochClock
from benchmarks.suite.errors import NotAvailableError
from benchmarks.suite.networks import Network, network
from benchmarks.suite.pictures import noise

Batches = Iterator[tuple[torch.Tensor, torch.Tensor]]

_declarations: list[Any] = []  # a declaration of operators lives as long as its Library object

# RMSprop's alpha and the epsilons are Keras' and netloom's.
OPTIMIZERS: dict[str, tuple[Callable[..., torch.optim.Optimizer], dict[str, float]]] = {
    "adam": (torch.optim.Adam, {"eps": 1e-7}),
    "nadam": (torch.optim.NAdam, {"eps": 1e-7}),
    "rmsprop": (torch.optim.RMSprop, {"alpha": 0.9, "eps": 1e-7}),
    "sgd": (torch.optim.SGD, {}),
}
_FUSED = ("adam", "sgd")


def build(net: Network) -> nn.Sequential:
    """The network; it takes float32 `[B, C, H, W]`."""
    layers: list[nn.Module] = []
    height, width, channels = net.shape
    flat = False
    for kind, *options in (*net.layers, ("dense", net.outputs)):
        if kind == "conv":
            filters, kernel, padding = options
            layers.append(nn.Conv2d(channels, filters, kernel, padding=kernel // 2 if padding == "same" else 0))
            channels = filters
            if padding == "valid":
                height, width = height - kernel + 1, width - kernel + 1
        elif kind == "pool":
            layers.append(nn.MaxPool2d(2))
            height, width = height // 2, width // 2
        elif kind == "flatten":
            layers.append(nn.Flatten())
            channels, flat = channels * height * width, True
        elif kind == "dense":
            layers.append(nn.Linear(channels, options[0]))
            channels = options[0]
        elif kind == "norm":
            layers.append(nn.BatchNorm1d(channels) if flat else nn.BatchNorm2d(channels))
        else:
            layers.append(nn.Dropout(options[0]) if kind == "dropout" else nn.ReLU())
    return nn.Sequential(*layers)


def optimizer(net: Network, model: nn.Module, *, fused: bool = False) -> torch.optim.Optimizer:
    """The network's optimizer, `fused` where PyTorch has it so."""
    kind, options = OPTIMIZERS[net.optimizer]
    extra = {"fused": True} if fused and net.optimizer in _FUSED else {}
    return kind(model.parameters(), lr=net.learning_rate, **options, **extra)


def loss_of(net: Network) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """Cross-entropy, for a single output the binary one."""
    if net.outputs > 1:
        return F.cross_entropy
    return lambda outputs, labels: F.binary_cross_entropy_with_logits(outputs[:, 0], labels.float())


def correct(outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """How many predictions are right, a scalar."""
    chosen = outputs.argmax(dim=1) if outputs.shape[1] > 1 else (outputs[:, 0] > 0).long()
    return (chosen == labels).sum()


def device_of(job: dict[str, Any]) -> torch.device:
    """The device that a job asks for.

    Raises:
        NotAvailableError: There is none.
    """
    if job["device"] == "cuda" and not torch.cuda.is_available():
        raise NotAvailableError("this build of PyTorch sees no GPU")
    return torch.device(job["device"])


def tensors(net: Network, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures uint8 `[N, C, H, W]`, contiguous, and labels int64 `[N]`."""
    pixels, labels = noise(net.shape, net.classes, count)
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(labels)


def loader(dataset: Any, job: dict[str, Any], *, workers: int, pinned: bool) -> DataLoader[Any]:
    """A shuffling DataLoader whose workers stay alive between epochs."""
    return DataLoader(
        dataset,
        job["batch_size"],
        shuffle=True,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=pinned,
    )


def facts(model: nn.Module, device: torch.device, note: str) -> dict[str, Any]:
    """What is the same for every library on PyTorch."""
    count = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return {"parameters": count, "device": device.type, "note": note}


def train(job: dict[str, Any]) -> dict[str, Any]:
    """`loop` in the job's variant says which: `tutorial` or `tuned`."""
    return _tuned(job) if job["variant"]["loop"] == "tuned" else _tutorial(job)


def _tutorial(job: dict[str, Any]) -> dict[str, Any]:
    net, device = network(job["network"]), device_of(job)
    images, labels = tensors(net, job["pictures"])
    workers = job["variant"]["workers"]
    clock = EpochClock()
    batches = loader(TensorDataset(images, labels), job, workers=workers, pinned=device.type == "cuda")
    model = build(net).to(device)
    _epochs(net, model, optimizer(net, model), lambda: iter(batches), clock, job, device)
    return {**clock.figures(job["pictures"]), **facts(model, device, f"DataLoader, workers: {workers}")}


def _epochs(
    net: Network,
    model: nn.Module,
    opt: torch.optim.Optimizer,
    epoch: Callable[[], Batches],
    clock: EpochClock,
    job: dict[str, Any],
    device: torch.device,
) -> None:
    """The loop of PyTorch's tutorials; loss and hits are added up on the device."""
    loss_function = loss_of(net)
    for _ in range(job["epochs"]):
        model.train()
        total, hits = torch.zeros((), device=device), torch.zeros((), device=device)
        for pixels, labels in epoch():
            inputs = pixels.to(device, non_blocking=True).float().div_(255)
            labels = labels.to(device, non_blocking=True)
            opt.zero_grad()
            outputs = model(inputs)
            loss = loss_function(outputs, labels)
            loss.backward()
            opt.step()
            total += loss.detach() * len(labels)
            hits += correct(outputs.detach(), labels)
        print(total.item(), hits.item())
        clock.epoch_ended()


def _tuned(job: dict[str, Any]) -> dict[str, Any]:
    """All pictures on the device, batches by index, channels-last memory, a fused optimizer; precision by variant."""
    net, device, variant = network(job["network"]), device_of(job), job["variant"]
    images, labels = tensors(net, job["pictures"])
    clock = EpochClock()
    pixels, labels = images.to(device).permute(0, 2, 3, 1).contiguous(), labels.to(device)
    model = build(net).to(device).to(memory_format=torch.channels_last)
    opt, loss_function = optimizer(net, model, fused=True), loss_of(net)
    run = torch.compile(model) if variant.get("compile") else model
    size, count = job["batch_size"], job["pictures"]
    for _ in range(job["epochs"]):
        model.train()
        total, hits = torch.zeros((), device=device), torch.zeros((), device=device)
        order = torch.randperm(count, device=device)
        for start in range(0, count, size):
            rows = order[start : start + size]
            inputs = pixels.index_select(0, rows).permute(0, 3, 1, 2).float().div_(255)
            with torch.autocast(device.type, torch.bfloat16, enabled=variant["precision"] == "bfloat16"):
                outputs = run(inputs)
            expected = labels.index_select(0, rows)
            loss = loss_function(outputs.float(), expected)
            opt.zero_grad(set_to_none=True)
            loss.backward()
            opt.step()
            total += loss.detach() * len(rows)
            hits += correct(outputs.detach(), expected)
        print(total.item(), hits.item())
        clock.epoch_ended()
    note = f"{variant['precision']}, channels-last{', compiled' if variant.get('compile') else ''}"
    return {**clock.figures(count), **facts(model, device, note)}


def infer(job: dict[str, Any]) -> dict[str, Any]:
    """Passes of the network in evaluation mode; the logits of a pass end on the CPU. The variant has a precision."""
    net, device, precision = network(job["network"]), device_of(job), job["variant"]["precision"]
    images, _ = tensors(net, job["pictures"])
    clock = EpochClock()
    pixels = images.to(device).permute(0, 2, 3, 1).contiguous()
    model = build(net).to(device).to(memory_format=torch.channels_last).eval()
    size = job["batch_size"]
    for _ in range(job["epochs"]):
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            parts = [
                model(pixels[start : start + size].permute(0, 3, 1, 2).float().div_(255))
                for start in range(0, len(pixels), size)
            ]
            torch.cat(parts).float().cpu()
        clock.epoch_ended()
    return {**clock.figures(job["pictures"]), **facts(model, device, f"{precision}, inference_mode, channels-last")}


def import_torchvision() -> None:
    """Import torchvision; beside a CPU build of PyTorch its common wheel first needs two operators declared."""
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        for name in [n for n in sys.modules if n.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(name + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _declarations.append(library)
        importlib.import_module("torchvision")


def folder(job: dict[str, Any]) -> dict[str, Any]:
    """Torchvision's ImageFolder and a DataLoader with as many workers as the variant says."""
    import_torchvision()
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import v2

    net, device, workers = network("photos"), device_of(job), job["variant"]["workers"]
    clock = EpochClock()
    transform = v2.Compose([v2.Resize(net.shape[:2]), v2.PILToTensor()])
    dataset = ImageFolder(str(Path(job["folder"]) / "train"), transform)
    batches = loader(dataset, job, workers=workers, pinned=device.type == "cuda")
    model = build(net).to(device)
    _epochs(net, model, optimizer(net, model), lambda: iter(batches), clock, job, device)
    return {**clock.figures(job["pictures"]), **facts(model, device, f"ImageFolder, workers: {workers}")}
