"""netloom through its public door."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import netloom
from benchmarks.suite.clock import EpochClock, made_pictures, synchronize
from benchmarks.suite.networks import Network, network
from benchmarks.suite.pictures import HELD_OUT, noise

_WITHOUT_VALIDATION = {"validation_fraction": 0, "keep": "last", "early_stopping": None, "reduce_on_plateau": None}


class _EpochTimer(netloom.Callback):
    def __init__(self, clock: EpochClock) -> None:
        self.clock = clock

    def on_epoch_end(self, state: Any) -> None:
        self.clock.epoch_ended()


class _PredictionTimer(netloom.Callback):
    """Times each pass over exactly `pictures` pictures, as if one followed right after the other."""

    def __init__(self, pictures: int) -> None:
        self.pictures, self.clock, self._started = pictures, EpochClock(), 0.0

    def on_predict_start(self, prediction: Any) -> None:
        synchronize()
        self._started = time.perf_counter()

    def on_predict_end(self, prediction: Any) -> None:
        if prediction.pictures == self.pictures:
            synchronize()
            seconds = time.perf_counter() - self._started
            self.clock.ends.append((self.clock.ends or [self.clock.started])[-1] + seconds)


def train(job: dict[str, Any]) -> dict[str, Any]:
    """Epochs over pictures in memory; none are validated, and `HELD_OUT` others are tested at the end."""
    net = network(job["network"])
    pixels, labels, parts = _parts(net, job["pictures"], 0)
    clock = EpochClock()
    image_set = netloom.ImageSet.from_arrays(pixels, labels, splits=parts)
    run = _train(image_set, net, job, [_EpochTimer(clock)], **_WITHOUT_VALIDATION)
    return {**clock.figures(job["pictures"]), **_facts(run)}


def folder(job: dict[str, Any]) -> dict[str, Any]:
    """Epochs over a folder of JPEG files, with an empty cache (`cold`) or the cache of an earlier start (`warm`)."""
    with tempfile.TemporaryDirectory() as cache:
        os.environ["NETLOOM_CACHE"] = cache
        if job["variant"]["cache"] == "warm":
            _start_before(job)
        clock = EpochClock()
        run = _train(job["folder"], network("photos"), job, [_EpochTimer(clock)])
        return {**clock.figures(job["pictures"]), **_facts(run)}


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
    """Passes over pictures in memory: the validation of each epoch of a training that is as short as can be."""
    net = network(job["network"])
    pixels, labels, parts = _parts(net, HELD_OUT, job["pictures"])
    timer = _PredictionTimer(job["pictures"])
    run = _train(netloom.ImageSet.from_arrays(pixels, labels, splits=parts), net, job, [timer])
    return {**timer.clock.figures(job["pictures"]), **_facts(run)}


def _parts(net: Network, train: int, validation: int) -> tuple[Any, Any, list[str]]:
    pixels, labels = noise(net.shape, net.classes, train + validation + HELD_OUT)
    return pixels, labels, ["train"] * train + ["validation"] * validation + ["test"] * HELD_OUT


def _train(
    source: Any, net: Network, job: dict[str, Any], callbacks: list[netloom.Callback], **changes: Any
) -> netloom.Run:
    return netloom.train(
        source,
        net.recipe,
        out=Path(tempfile.mkdtemp(prefix="run-", dir=job["scratch"])),
        quiet=True,
        device=job["device"],
        callbacks=callbacks,
        settings={**net.settings, "batch_size": job["batch_size"], "epochs": job["epochs"], **changes},
    )


def _facts(run: netloom.Run) -> dict[str, Any]:
    plan = run.plan
    return {
        "parameters": run.result["trainable_parameters"],
        "device": plan.device.split(":")[0],
        "note": f"{plan.precision}, threads: {plan.threads}",
    }
