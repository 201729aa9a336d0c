"""The recipe cifar10-fast beside the program of CIFAR-10's speed record: test accuracy and seconds, seed by seed.

    NETLOOM_DATA=… python -m benchmarks.cifar10_fast --peer airbench94_muon.py [--device cuda] [--seeds 5] [--add]

Contenders, each training in a process of its own, taking turns, on all processors or one GPU:

- `netloom`: `netloom train cifar10 --recipe cifar10-fast --set seed=N`, whose pictures are decoded already. Seconds are
  those of the whole command but for its imports and its report: reading the cached pictures, choosing an execution
  plan, whitening, steps, test;
- `airbench94_muon`: Jordan's program on the same pictures, which it reads from a file as it reads its own. Seconds are
  by its own clock: whitening, steps and the last test, not the tests in between.

Both train on all training pictures, so that nothing validates; netloom sees the test pictures once, at the end.

The peer's text is changed only where it could not run otherwise, or not once and repeatably (`changes`): the number of
runs and their seed; without a compiler, and on a CPU, no `torch.compile`; on a CPU no CUDA, no first run to warm up,
float32 weights, and autocast to bfloat16 where the processor has instructions for that. What a change replaces must be
there, so that another version of the program is refused, not measured half-changed.

Every pair of trainings is recorded in docs/results/programs/cifar10_fast.json as it ends. With `--epochs` or `--source`
figures are only printed, to try the script out: with `--source`, a folder or archive of 32x32 colour pictures of up to
ten classes, in parts `train` and `test`, at least 2,000 of them to train on.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from benchmarks.suite.machine import OtherWork, cpu_flags, machine_record
from benchmarks.whole_programs import load, save
from netloom.errors import NetloomError
from netloom.progress import Reporter
from netloom.recipe import load_recipe
from netloom.runtime import resolve_device, training_threads
from netloom.workflows.prepare import prepare_data

RECIPE, SOURCE, PEER = "cifar10-fast", "cifar10", "airbench94_muon"
_WHERE = "airbench94_muon.py of https://github.com/KellerJordan/cifar10-airbench (this script knows commit 096d14d)"
# Processors without these emulate bfloat16, several times slower than float32.
_BFLOAT16_FLAGS = {"amx_bf16", "avx512_bf16", "bf16"}

_CLOCK = """\
class Clock:  # in place of CUDA's events
    def __init__(self, enable_timing):
        self.time = None
    def record(self):
        import time
        self.time = time.perf_counter()
    def elapsed_time(self, later):
        return 1e3 * (later.time - self.time)

"""
_STEP = "            outputs = model(inputs, whiten_bias_grad=(step < whiten_bias_train_steps))\n"
_AUTOCAST = 'torch.autocast("cpu", torch.bfloat16)'


class Setting(NamedTuple):
    """How the peer runs on this machine."""

    device: Literal["cpu", "cuda"]
    precision: Literal["float32", "bfloat16", "float16"]
    """`float16` as published; `bfloat16` is autocast around float32 weights."""
    compiled: bool


class Change(NamedTuple):
    """A piece of the peer's text and what stands there instead."""

    old: str
    new: str
    times: int = 1


def changes(setting: Setting, *, seed: int, epochs: int | None = None) -> Iterator[Change]:
    """What the peer needs to run once, with this seed, on this machine; `epochs` only to try it out."""
    load_torchvision = "from netloom.torchvision_shim import torchvision; torchvision = torchvision()\n"
    yield Change("import torchvision\n", load_torchvision)  # its wheel fails beside some CPU builds of torch
    yield Change("for run in range(200)", "for run in range(1)")
    yield Change('if __name__ == "__main__":\n', f'if __name__ == "__main__":\n    torch.manual_seed({seed})\n')
    if epochs is not None:
        yield Change("ceil(8 * len(train_loader))", f"ceil({epochs} * len(train_loader))")
    if not setting.compiled:
        yield Change("@torch.compile\n", "")
        yield Change('    model.compile(mode="max-autotune")\n', "")
    if setting.device == "cuda":
        return
    yield Change('torch.device("cuda")', 'torch.device("cpu")')
    yield Change("CifarNet().cuda()", "CifarNet()")
    yield Change("torch.cuda.Event(enable_timing=True)", "Clock(enable_timing=True)", times=2)
    yield Change("        torch.cuda.synchronize()\n", "")
    yield Change("self.images.half()", "self.images.float()")
    yield Change("mod.half()", "mod.float()")
    if not setting.compiled:
        yield Change('    main("warmup", model)\n', "")
    if setting.precision == "float32":
        yield Change("X = G.bfloat16()", "X = G.float()")
    else:
        yield Change(_STEP, f"            with {_AUTOCAST}:\n    {_STEP}            outputs = outputs.float()\n")
        yield Change("    with torch.no_grad():\n", f"    with torch.no_grad(), {_AUTOCAST}:\n")


def adapted(text: str, setting: Setting, *, seed: int, epochs: int | None = None) -> str:
    """The peer's text with all changes.

    Raises:
        ValueError: A piece that is to be changed is not there, or more often than it should be.
    """
    for change in changes(setting, seed=seed, epochs=epochs):
        if (found := text.count(change.old)) != change.times:
            raise ValueError(f"expected {change.old.strip()!r} {change.times} times, found it {found} times")
        text = text.replace(change.old, change.new)
    return text if setting.device == "cuda" else _CLOCK + text


def said(output: str) -> dict[str, float]:
    """Accuracy and seconds from the peer's table: run, epoch, accuracies of three kinds, seconds."""
    rows = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in output.splitlines()]
    last = [row for row in rows if len(row) == 6 and row[1] == "eval"]
    if not last or not all(re.fullmatch(r"\d+\.\d+", cell) for cell in last[-1][4:]):
        raise ValueError(f"no row of a last evaluation in what it printed:\n{output[-3000:]}")
    return {"accuracy": float(last[-1][4]), "seconds": float(last[-1][5])}


def run(line: list[str], *, folder: Path | None = None) -> tuple[str, float]:
    """What a process prints, and its seconds."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(training_threads())}
    started = time.perf_counter()
    done = subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - started
    if done.returncode:
        raise SystemExit(f"{' '.join(line)} failed:\n{done.stderr[-3000:]}")
    return done.stdout, seconds


def measure_peer(text: str, folder: Path) -> dict[str, float]:
    """One training of the peer, whose pictures are in `folder`."""
    program = folder / f"{PEER}.py"  # it reads itself
    program.write_text(text, encoding="utf-8")
    output, seconds = run([sys.executable, program.name], folder=folder)
    return {**said(output), "process_seconds": seconds}


def measure_netloom(source: str, device: str, out: Path, *, seed: int, epochs: int | None = None) -> dict[str, Any]:
    """One training of netloom's."""
    line = [sys.executable, "-m", "netloom", "train", source, "--recipe", RECIPE, "--set", f"seed={seed}"]
    line += ["--set", f"epochs={epochs}"] if epochs is not None else []
    output, seconds = run([*line, "--device", device, "--out", str(out), "--quiet", "--json"])
    result = json.loads(output)
    kept = {key: result[key] for key in ("seconds", "train_seconds", "epochs", "precision")}
    return {"accuracy": result["test"]["accuracy"], **kept, "process_seconds": seconds}


def save_pictures(source: str, folder: Path) -> None:
    """The pictures in the files where the peer looks for them, a validation part among those to train on."""
    data = prepare_data(source, load_recipe(RECIPE), Reporter(quiet=True))
    folder.mkdir()
    images, labels = data.image_set.images.permute(0, 2, 3, 1), data.image_set.targets
    everything = torch.cat([torch.from_numpy(data.split.train), torch.from_numpy(data.split.validation)])
    # It whitens by its first 5,000 pictures, which are of all classes in the original's order, and not in a folder's.
    mixed = everything[torch.randperm(len(everything), generator=torch.Generator().manual_seed(0))]
    for name, chosen in (("train", mixed), ("test", torch.from_numpy(data.split.test))):
        part = {"images": images[chosen].contiguous(), "labels": labels[chosen]}
        torch.save({**part, "classes": list(data.image_set.class_names)}, folder / f"{name}.pt")


def setting_for(device: Literal["cpu", "cuda"], *, precision: str | None, compiled: bool | None) -> Setting:
    """The peer's setting, where the user says nothing: as published, as far as this machine can."""
    if compiled is None:
        compiled = device == "cuda" and any(map(shutil.which, ("cc", "gcc", "clang")))
    if device == "cuda":
        return Setting(device, "float16", compiled)
    if precision is None:
        precision = "bfloat16" if _BFLOAT16_FLAGS & set(cpu_flags()) else "float32"
    return Setting(device, "bfloat16" if precision == "bfloat16" else "float32", compiled)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", type=Path, required=True, metavar="FILE", help=f"your copy of {_WHERE}")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--add", action="store_true", help="keep the seeds that are recorded; go on with others")
    precision = "of the peer on a CPU; bfloat16 by autocast, the default where the processor has instructions for it"
    parser.add_argument("--precision", choices=("float32", "bfloat16"), help=precision)
    compiled = "whether the peer uses torch.compile; without it, on a GPU where there is a C compiler"
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, dest="compiled", help=compiled)
    parser.add_argument("--epochs", type=int, metavar="N", help="of both, to try the script out; records nothing")
    parser.add_argument("--source", default=SOURCE, help="other pictures, to try the script out; records nothing")
    chosen = parser.parse_args()
    if chosen.seeds < 1:
        parser.error(f"--seeds takes 1 or more, not {chosen.seeds}")
    if chosen.precision and chosen.device == "cuda":
        parser.error("--precision is for a CPU; on a GPU the peer computes as it was published")
    try:
        resolve_device(chosen.device)
    except NetloomError as error:
        parser.error(str(error))
    chosen.setting = setting_for(chosen.device, precision=chosen.precision, compiled=chosen.compiled)
    try:
        chosen.text = chosen.peer.read_text(encoding="utf-8")
        adapted(chosen.text, chosen.setting, seed=0, epochs=chosen.epochs)
    except (OSError, ValueError) as error:
        parser.error(f"--peer {chosen.peer}: {error}. It takes {_WHERE}.")
    return chosen


def main() -> None:
    options = arguments()
    setting: Setting = options.setting
    about = {
        "device": setting.device,
        "threads": training_threads(),
        "torch": torch.__version__,
        "peer_precision": setting.precision,
        "peer_compiled": setting.compiled,
        "peer_sha256": hashlib.sha256(options.text.encode()).hexdigest(),
    }
    recorded = load("cifar10_fast") if options.add else None
    alike = recorded is not None and (recorded["about"], recorded["machine"]) == (about, machine_record())
    done = [one["seed"] for found in recorded["contenders"].values() for one in found["rounds"]] if alike else []
    first = max(done, default=-1) + 1
    found: dict[str, list[dict[str, Any]]] = {"netloom": [], PEER: []}
    with tempfile.TemporaryDirectory() as scratch:
        save_pictures(options.source, Path(scratch) / "cifar10")
        others = OtherWork()
        for seed in range(first, first + options.seeds):
            kept = {"seed": seed, "epochs": options.epochs}
            ours = measure_netloom(options.source, setting.device, Path(scratch) / "runs", **kept)
            text = adapted(options.text, setting, **kept)
            for name, one in (("netloom", ours), (PEER, measure_peer(text, Path(scratch)))):
                found[name].append({"seed": seed, **one})
                print(seed, name, f"{one['accuracy']:.2%} in {one['seconds']:.1f} s", flush=True)
            if options.epochs is None and options.source == SOURCE:
                save("cifar10_fast", found, about, others, beside=recorded)


if __name__ == "__main__":
    main()
