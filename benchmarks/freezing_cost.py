"""What a training step costs while stages are frozen, beside a forward pass and a step of the whole network.

CPU time of one thread on a batch, in turn, medians of REPETITIONS: a pass without gradients, and steps of frozen
networks, of those whose top stage, or every stage, trains; by autograd, and as the captured step runs them. The
arithmetic that a step cannot avoid, in passes through the whole network, is said beside it: one pass, and for each
stage that trains twice its share of the multiply-adds (the lowest needs no gradient of its input). Run as
`python -m benchmarks.freezing_cost [MODEL...]`; prints JSON.
"""

from __future__ import annotations

import contextlib
import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from netloom.data.batches import Batch
from netloom.models import create_model
from netloom.models.heads import Head
from netloom.runtime import ExecutionPlan, executing, keep_freed_memory, on_device
from netloom.training.freezing import Freezing
from netloom.training.gradients import WholeBatchGradients, total_loss
from netloom.training.optim import create_optimizer
from netloom.training.shards import ShardedGradients

MODELS = ("timm/mobilenetv1_100", "timm/resnet18")
SIDE, BATCH, REPETITIONS = 128, 16, 9
HEAD = Head(class_names=("cats", "dogs"))
CASES: dict[str, dict[str, Any]] = {"frozen": {"unfreeze": 0}, "top stage": {"unfreeze": 1}, "all": {"unfreeze": "all"}}


def a_batch() -> Batch:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(BATCH, 3, SIDE, SIDE, generator=generator).to(memory_format=torch.channels_last)
    return Batch({"image": images}, {"label": torch.arange(BATCH) % 2}, None)


def a_step(model: nn.Module, batch: Batch, *, captured: bool, **options: Any) -> tuple[Callable[[], None], float]:
    """A step with its update, and its multiply-adds, in those of one pass."""
    freezing = Freezing.of(model, **options)
    freezing.prepare(model)
    optimizer = create_optimizer(model, "adamw", learning_rate=1e-4, freezing=freezing)
    freezing.enter(model, 0)
    plan = ExecutionPlan("cpu", 1, "float32", shards=1 if captured else 0)
    compute = (ShardedGradients if captured else WholeBatchGradients)(
        model, [HEAD], plan=plan, seed=0, label_smoothing=0.1
    )

    def step() -> None:
        compute(batch, 0)
        optimizer.step()

    with FlopCounterMode(display=False) as whole:
        total_loss({"label": model(batch.inputs["image"])}, batch, [HEAD], 0.0).backward()
    with FlopCounterMode(display=False) as forward, torch.no_grad():
        model(batch.inputs["image"])
    return step, whole.get_total_flops() / forward.get_total_flops()


def measure(name: str) -> dict[str, Any]:
    """Medians of CPU milliseconds, and each as a multiple of the pass without gradients."""
    batch = a_batch()

    def network() -> nn.Module:
        return on_device(create_model(name, in_channels=3, num_outputs=2, image_size=(SIDE, SIDE), seed=0), "cpu")

    frozen = network().eval()

    def forward() -> None:
        with torch.no_grad():
            frozen(batch.inputs["image"])

    runs, work = {"pass": forward}, {"pass": 1.0}
    for case, options in CASES.items():
        for captured in (False, True):
            key = f"{case}, captured" if captured else case
            runs[key], work[key] = a_step(network(), batch, captured=captured, **options)
    milliseconds: dict[str, list[float]] = {key: [] for key in runs}
    for number in range(REPETITIONS + 2):
        for key, run in runs.items():
            started = time.process_time()
            run()
            if number > 1:
                milliseconds[key].append(1000 * (time.process_time() - started))
    medians = {key: statistics.median(values) for key, values in milliseconds.items()}
    return {
        key: {
            "milliseconds": round(value, 1),
            "passes": round(value / medians["pass"], 2),
            "passes_of_arithmetic": round(work[key], 2),
        }
        for key, value in medians.items()
    }


def main() -> None:
    keep_freed_memory()
    with contextlib.ExitStack() as stack:
        stack.enter_context(executing(ExecutionPlan("cpu", 1, "float32")))
        found = {name: measure(name) for name in sys.argv[1:] or MODELS}
    facts = {"side": SIDE, "batch": BATCH, "n": REPETITIONS, "torch": torch.__version__}
    print(json.dumps({**facts, "cpu": torch.backends.cpu.get_cpu_capability(), "models": found}, indent=1))


if __name__ == "__main__":
    main()
