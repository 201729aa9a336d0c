"""Measures contenders in turn, A B C A B C, each time in a new process."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.suite.contender import MARK
from benchmarks.suite.errors import MeasuringError, UnequalNetworksError
from benchmarks.suite.figures import FAMILIES, summary
from benchmarks.suite.plans import Case, Contender, resized

ROOT = Path(__file__).resolve().parents[2]
FIGURES = (
    "pictures_per_second",
    "epoch_seconds",
    "first_seconds",
    "start_seconds",
    "peak_memory_bytes",
    "peak_gpu_memory_bytes",
)
# A peer this many times slower than the fastest peer in the first turn is not measured again if it leads nowhere:
# nothing hangs on its figure, and the slowest would take most of the time.
HOPELESS = 1.5
# One epoch beside the first tells which variant is the fastest.
TRIAL_EPOCHS = 2

Result = dict[str, Any]
Measure = Callable[[Contender, dict[str, Any], Case], Result]


@dataclass
class Processes:
    """Starts a process for each measurement.

    Attributes:
        kind: `train`, `infer` or `folder`.
        peers_python: Of the peers' environment; netloom runs in this process's own.
        scratch: For runs and models that nobody keeps.
        epochs: Of one measurement, the first one included.
        device: `cpu` or `cuda`.
        isa: For `ONEDNN_MAX_CPU_ISA`, or None.
        limit_seconds: A process that takes longer is ended.
        folder_of: Gives the folder with so many JPEG files to train on, where the benchmark has such.
    """

    kind: str
    peers_python: Path
    scratch: Path
    epochs: int
    device: str = "cpu"
    isa: str | None = None
    limit_seconds: float = 900.0
    folder_of: Callable[[int], Path] | None = None

    def __call__(self, contender: Contender, variant: dict[str, Any], case: Case) -> Result:
        """Figures, or `missing` or `failed` with the reason."""
        own = contender.library == "netloom"
        if not own and not self.peers_python.exists():
            return {"missing": "the peers' environment is not there"}
        threads = case["processors"]
        available = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
        job = {
            "epochs": self.epochs,
            **case,
            "benchmark": self.kind,
            "library": contender.library,
            "variant": variant,
            "device": self.device,
            "threads": threads,
            "processors": available and available[:threads],
            "scratch": str(self.scratch),
            "folder": str(self.folder_of(case["pictures"])) if self.folder_of else "",
        }
        return self._run(json.dumps(job), threads, own=own)

    def versions(self) -> dict[str, dict[str, str]]:
        """By library, of what it is made of in the environment that it is measured in; empty where that is not there.

        Raises:
            MeasuringError: The environment's Python does not run.
        """
        found = {}
        for own in (False, True):
            if own or self.peers_python.exists():
                told = self._run("--versions", 1, own=own)
                if "failed" in told:
                    raise MeasuringError(f"The versions of what is measured are not known: {told['failed']}")
                found |= {library: value for library, value in told.items() if (library == "netloom") is own}
        return found

    def _run(self, job: str, threads: int, *, own: bool) -> Result:
        python = sys.executable if own else str(self.peers_python)
        command = [python, "-m", "benchmarks.suite.contender", job]
        return _outcome(command, self._environment(threads, own=own), self.limit_seconds)

    def _environment(self, threads: int, *, own: bool) -> dict[str, str]:
        environment = {
            **os.environ,
            **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "TF_NUM_INTRAOP_THREADS"), str(threads)),
            "TF_CPP_MIN_LOG_LEVEL": "3",
            "KERAS_HOME": str(self.scratch / "keras"),
            "NETLOOM_CACHE": str(self.scratch / "cache"),
            "MPLBACKEND": "Agg",
            "PYTHONWARNINGS": "ignore",
        }
        if self.isa:
            environment["ONEDNN_MAX_CPU_ISA"] = self.isa
            if self.isa == "AVX2":  # torch's own operations, too, and what asks torch
                environment["ATEN_CPU_CAPABILITY"] = "avx2"
        if self.device == "cpu":
            environment["CUDA_VISIBLE_DEVICES"] = ""
        if not own:
            environment.pop("PYTHONPATH", None)
        return environment


def _outcome(command: Sequence[str], environment: dict[str, str], limit_seconds: float) -> Result:
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=limit_seconds)
    except BaseException as error:
        _end(process)
        if isinstance(error, subprocess.TimeoutExpired):
            return {"failed": f"took longer than {limit_seconds:g} s"}
        raise
    lines = [line for line in out.splitlines() if line.startswith(MARK)]
    if process.returncode == 0 and lines:
        found: Result = json.loads(lines[-1].removeprefix(MARK))
        return found
    told = [line.strip() for line in err.splitlines() if line.strip()] or [f"exit code {process.returncode}"]
    return {"failed": told[-1][:300]}


def _end(process: subprocess.Popen[str]) -> None:
    """End a process and the workers it started."""
    with contextlib.suppress(ProcessLookupError):
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
    process.communicate()


def best_variant(contender: Contender, case: Case, measure: Measure) -> tuple[dict[str, Any], list[Result]]:
    """The variant with the most pictures a second in one measurement of each, and what was measured.

    Where none can be measured it is the first one, whose next measurement then tells why.
    """
    if len(contender.variants) == 1:
        return contender.variants[0], []
    tried: list[Result] = []
    (trial,) = resized([{**case, "epochs": TRIAL_EPOCHS}], contender.trial_share)
    for variant in contender.variants:
        result = measure(contender, variant, trial)
        tried.append({"variant": variant, **result})
        if "missing" in result:
            break
    fit = [result for result in tried if "pictures_per_second" in result]
    best = max(fit, key=lambda result: result["pictures_per_second"], default=tried[0])
    return best["variant"], tried


def take_turns(
    contenders: Sequence[tuple[Contender, dict[str, Any]]],
    case: Case,
    measure: Measure,
    *,
    repeats: int,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Result]:
    """Each contender's figures over `repeats` turns, by name.

    Raises:
        UnequalNetworksError: The numbers of trainable parameters differ.
    """
    collected: dict[str, list[Result]] = {contender.name: [] for contender, _ in contenders}
    refused: dict[str, Result] = {}
    hopeless: set[str] = set()
    peers = {contender.name for contender, _ in contenders if contender.library != "netloom"}
    for turn in range(repeats):
        for contender, variant in contenders:
            name = contender.name
            if name in refused or (turn and name in hopeless):
                continue
            result = measure(contender, variant, case)
            if "pictures_per_second" in result:
                collected[name].append(result)
                say(f"turn {turn + 1}: {name} {result['pictures_per_second']:,.0f} pictures/s")
            else:
                refused[name] = result
                say(f"turn {turn + 1}: {name}: {result}")
        if turn == 0:
            hopeless = _hopeless({name: found[0] for name, found in collected.items() if found and name in peers})
    _require_equal_networks(collected)
    return {
        contender.name: refused.get(contender.name) or {"variant": variant, **condensed(collected[contender.name])}
        for contender, variant in contenders
    }


def _hopeless(first: Mapping[str, Result]) -> set[str]:
    """Which peers are slow by the first turn, and the first of no family, nor of all, in speed or at the start."""
    if not first:
        return set()
    speeds = {name: found["pictures_per_second"] for name, found in first.items()}
    starts = {name: found["start_seconds"] for name, found in first.items()}
    kept = {name for name, speed in speeds.items() if speed * HOPELESS >= max(speeds.values())}
    for members in (*FAMILIES.values(), tuple(first)):
        there = [name for name in members if name in first]
        if there:
            kept |= {max(there, key=speeds.__getitem__), min(there, key=starts.__getitem__)}
    return set(first) - kept


def _require_equal_networks(collected: dict[str, list[Result]]) -> None:
    counts = {name: results[0]["parameters"] for name, results in collected.items() if results}
    if len(set(counts.values())) > 1:
        told = ", ".join(f"{name} {count:,}" for name, count in counts.items())
        raise UnequalNetworksError(f"The contenders train networks of different sizes: {told} parameters.")


def condensed(results: Sequence[Result]) -> Result:
    """One contender's measurements: a summary of each figure, and what is the same in all of them."""
    last = results[-1]
    figures = {name: summary([r[name] for r in results]) for name in FIGURES if last.get(name) is not None}
    same = {name: last[name] for name in ("parameters", "device")}
    return {**same, "notes": sorted({r["note"] for r in results}), "n": len(results), **figures}
