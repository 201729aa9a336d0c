"""netloom through its public door."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import netloom
from benchmarks.suite.clock import EpochClock, made_pictures
from benchmarks.suite.networks import Network, network
from benchmarks.suite.pictures import HELD_OUT, noise
from netloom.data.batches import ImageBatches
from netloom.inference import predict_outputs
from netloom.recipe import load_recipe
from netloom.runtime import ExecutionPlan, executing, on_device
from netloom.workflows.builders import build_heads, resident

_WITHOUT_VALIDATION = {"validation_fraction": 0, "keep": "last", "early_stopping": None, "reduce_on_plateau": None}


class _EpochTimer(netloom.Callback):
    """Times epochs, and ends the training after `epochs` of them."""

    def __init__(self, clock: EpochClock, epochs: int) -> None:
        self.clock, self.epochs = clock, epochs

    def on_epoch_end(self, state: Any) -> None:
        self.clock.epoch_ended()
        if len(self.clock.ends) >= self.epochs:
            state.stop("measured")


def train(job: dict[str, Any]) -> dict[str, Any]:
    """Epochs over pictures in memory; none are validated, and `HELD_OUT` others are tested at the end."""
    net = network(job["network"])
    pixels, labels, parts = _parts(net, job["pictures"], 0)
    clock = EpochClock()
    image_set = netloom.ImageSet.from_arrays(pixels, labels, splits=parts)
    run = _train(image_set, net, job, epochs_of_a_training(net, job), clock, **_WITHOUT_VALIDATION)
    return {**clock.figures(job["pictures"]), **_facts(run, run.plan)}


def folder(job: dict[str, Any]) -> dict[str, Any]:
    """Epochs over a folder of JPEG files, with an empty cache (`cold`) or the cache of an earlier start (`warm`)."""
    with tempfile.TemporaryDirectory() as cache:
        os.environ["NETLOOM_CACHE"] = cache
        if job["variant"]["cache"] == "warm":
            _start_before(job)
        clock = EpochClock()
        net = network("photos")
        run = _train(job["folder"], net, job, epochs_of_a_training(net, job), clock)
        return {**clock.figures(job["pictures"]), **_facts(run, run.plan)}


def _start_before(job: dict[str, Any]) -> None:
    """Train on the folder in another process, which fills the cache; its time is not the library's."""
    began = time.perf_counter()
    net = network("photos")
    given = {"source": job["folder"], "recipe": net.recipe, "out": job["scratch"], "quiet": True}
    options = json.dumps({**given, "device": job["device"], "settings": {**net.settings, "epochs": 1}})
    subprocess.run(
        [sys.executable, "-c", "import json, netloom, sys; netloom.train(**json.loads(sys.argv[1]))", options],
        check=True,
    )
    made_pictures(time.perf_counter() - began)


def infer(job: dict[str, Any]) -> dict[str, Any]:
    """Passes over pictures in memory, in the job's batches and with all of its threads, by what the verbs predict with.

    The verbs themselves take larger batches. The precision is the one that a training chose.
    """
    net = network(job["network"])
    pixels, labels, parts = _parts(net, HELD_OUT, 0)
    few = netloom.ImageSet.from_arrays(pixels, labels, splits=parts)
    run = _train(few, net, {**job, "epochs": 1}, 1, EpochClock(), **_WITHOUT_VALIDATION)
    plan = replace(run.plan, threads=job["threads"], shards=0, convolutions=(), compiled=False)
    model, head = on_device(run.model(), plan.device), build_heads(run.recipe, run.data.class_names)[0]
    image_set = resident(netloom.ImageSet.from_arrays(*noise(net.shape, net.classes, job["pictures"])), plan.device)
    batches = ImageBatches(
        image_set.images,
        {head.name: image_set.targets},
        np.arange(job["pictures"]),
        batch_size=job["batch_size"],
        scaling=run.data.scaling,
        device=plan.device,
    )
    clock = EpochClock()
    with executing(plan):
        for _ in range(job["epochs"]):
            predict_outputs(model, batches.epoch(), head_names=[head.name], plan=plan)
            clock.epoch_ended()
    return {**clock.figures(job["pictures"]), **_facts(run, plan)}


def epochs_of_a_training(net: Network, job: dict[str, Any]) -> int:
    """Epochs of the job's size with as many steps as the training that the recipe stands for.

    How steps are executed is chosen by the length of the whole training, which ends here after the measured epochs.
    """
    seen: int = load_recipe(net.recipe).epochs * net.trained_on
    return max(int(job["epochs"]), math.ceil(seen / job["pictures"]))


def _parts(net: Network, train: int, validation: int) -> tuple[Any, Any, list[str]]:
    pixels, labels = noise(net.shape, net.classes, train + validation + HELD_OUT)
    return pixels, labels, ["train"] * train + ["validation"] * validation + ["test"] * HELD_OUT


def _train(
    source: Any, net: Network, job: dict[str, Any], epochs: int, clock: EpochClock, **changes: Any
) -> netloom.Run:
    """Begin a training of so many epochs and end it after those that are measured."""
    return netloom.train(
        source,
        net.recipe,
        out=Path(tempfile.mkdtemp(prefix="run-", dir=job["scratch"])),
        quiet=True,
        device=job["device"],
        callbacks=[_EpochTimer(clock, job["epochs"])],
        settings={**net.settings, "batch_size": job["batch_size"], "epochs": epochs, **changes},
    )


def _facts(run: netloom.Run, plan: ExecutionPlan) -> dict[str, Any]:
    return {
        "parameters": run.result["trainable_parameters"],
        "device": plan.device.split(":")[0],
        "note": f"{plan.precision}, {plan.describe_threads()}",
    }
