"""Measure netloom and its peers on the same work, in turn, and write docs/performance.md from the figures.

    ./scripts/bench [training] [inference] [data] [scaling]

Each measurement runs in a process of its own; contenders take turns, and tables give medians over the turns. Results
go to docs/results/performance/NAME.json after every case, so that a run that is cut short loses one case at most.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.suite import page
from benchmarks.suite.errors import UnequalNetworksError
from benchmarks.suite.machine import OtherWork, machine_record
from benchmarks.suite.pictures import HELD_OUT, photo_folder, source_of_photos
from benchmarks.suite.plans import BENCHMARKS, Benchmark, Case, resized
from benchmarks.suite.turns import ROOT, Measure, Processes, best_variant, take_turns
from netloom.errors import NetloomError
from netloom.files import write_json
from netloom.runtime import resolve_device, usable_cpus

EPOCHS = 3
# A GPU goes through the CPU's epochs in a fraction of a second.
_CUDA_FACTOR, _QUICK_FACTOR = 8, 0.25
_QUICK_OUT = ROOT / "build" / "performance"


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="./scripts/bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(BENCHMARKS)}; all of them without one")
    parser.add_argument("--quick", action="store_true", help="two turns of short epochs, written to build/performance")
    parser.add_argument("--repeats", type=int, help="turns (default 5)")
    parser.add_argument("--threads", type=int, help="processors and threads of each process (default all)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--isa", help="limit oneDNN to these instructions (ONEDNN_MAX_CPU_ISA), for example AVX2")
    parser.add_argument("--large", action="store_true", help="measure VGG too")
    parser.add_argument("--only", nargs="+", metavar="NETWORK", help="measure these networks only")
    parser.add_argument("--contenders", nargs="+", metavar="NAME", help="netloom and these peers only")
    parser.add_argument("--continue", action="store_true", dest="go_on", help="keep the cases measured already")
    parser.add_argument("--limit", type=float, default=900.0, help="seconds after which a process is ended")
    parser.add_argument("--out", type=Path, help="folder of the results (default docs/results/performance)")
    parser.add_argument("--peers-python", type=Path, default=_peers_python(), help=argparse.SUPPRESS)
    chosen = parser.parse_args(given)
    unknown = set(chosen.names) - set(BENCHMARKS)
    if unknown:
        parser.error(f"no such benchmark: {', '.join(sorted(unknown))}; there are {', '.join(BENCHMARKS)}")
    most = usable_cpus()
    if chosen.threads is not None and not 1 <= chosen.threads <= most:
        parser.error(f"--threads takes 1 to {most} on this machine, not {chosen.threads}")
    if chosen.repeats is not None and chosen.repeats < 1:
        parser.error(f"--repeats takes 1 or more, not {chosen.repeats}")
    chosen.names = chosen.names or list(BENCHMARKS)
    chosen.threads = chosen.threads or most
    chosen.repeats = chosen.repeats or (2 if chosen.quick else 5)
    chosen.out = chosen.out or (_QUICK_OUT if chosen.quick else page.RESULTS)
    return chosen


def _peers_python() -> Path:
    folder = ROOT / ".venv-peers"
    return folder / "Scripts" / "python.exe" if os.name == "nt" else folder / "bin" / "python"


def main() -> int:
    options = arguments()
    # Ends as Ctrl-C does, so that the process being measured ends too.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        # Not all peers run on Apple's GPUs, so there everyone is measured on the CPU.
        device = "cuda" if resolve_device(options.device).startswith("cuda") else "cpu"
    except NetloomError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    with tempfile.TemporaryDirectory(prefix="bench-") as scratch:
        for name in options.names:
            benchmark = _chosen(BENCHMARKS[name](options.threads, cuda=device == "cuda", large=options.large), options)
            benchmark.cases[:] = resized(benchmark.cases, _factor(device, quick=options.quick))
            measure = Processes(
                kind=benchmark.kind,
                peers_python=options.peers_python,
                scratch=Path(scratch),
                epochs=EPOCHS,
                device=device,
                isa=options.isa,
                limit_seconds=options.limit,
                folder=_photos(Path(scratch), benchmark.cases) if benchmark.kind == "folder" else None,
            )
            try:
                record(benchmark, measure, options, device)
            except UnequalNetworksError as error:
                print(error, file=sys.stderr)
                return 1
    page.write(options.out)
    return 0


def _factor(device: str, *, quick: bool) -> float:
    return (_CUDA_FACTOR if device == "cuda" else 1) * (_QUICK_FACTOR if quick else 1)


def _chosen(benchmark: Benchmark, options: argparse.Namespace) -> Benchmark:
    """The benchmark with only those networks and contenders that were asked for."""
    cases = [case for case in benchmark.cases if not options.only or case["network"] in options.only]
    wanted = {"netloom", *(options.contenders or [])}
    contenders = [
        c for c in benchmark.contenders if options.contenders is None or c.library == "netloom" or c.name in wanted
    ]
    return Benchmark(benchmark.name, benchmark.kind, tuple(contenders), cases)


def _data_folder() -> Path | None:
    folder = os.environ.get("NETLOOM_DATA")
    return Path(folder) if folder else None


def _photos(scratch: Path, cases: Sequence[Case]) -> Path:
    """A folder with as many JPEG files for training as the only case says, and some to validate and test on."""
    print("Making a folder of JPEG files ...", file=sys.stderr)
    return photo_folder(scratch / "photos", _data_folder(), cases[0]["pictures"] + 2 * HELD_OUT)


def record(benchmark: Benchmark, measure: Measure, options: argparse.Namespace, device: str) -> Path:
    """Measure all cases and write the result file after each; returns it."""
    path: Path = options.out / f"{result_name(benchmark.name, device, options.isa)}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = {**_setting(benchmark, options, device), "machine": machine_record(), "cases": []}
    names = {contender.name for contender in benchmark.contenders}
    done = [entry for entry in _done_cases(path, result) if set(entry["contenders"]) == names] if options.go_on else []
    variants: dict[tuple[str, str, int], dict[str, Any]] = {}
    for number, case in enumerate(benchmark.cases, start=1):
        known = next((entry for entry in done if entry["case"] == case), None)
        if known is None:
            told = ", ".join(f"{value:,} {key}" if isinstance(value, int) else value for key, value in case.items())
            print(f"{benchmark.name}, case {number} of {len(benchmark.cases)}: {told}", file=sys.stderr)
            known = _measured_case(benchmark, case, measure, variants, options.repeats)
        result["cases"].append(known)
        write_json(path, result)
    return path


def result_name(benchmark: str, device: str, isa: str | None) -> str:
    """Of the result file without its ending: `training`, `training-cuda`, `training-avx2`."""
    return "-".join([benchmark, *([device] if device != "cpu" else []), *([isa.lower()] if isa else [])])


def _setting(benchmark: Benchmark, options: argparse.Namespace, device: str) -> dict[str, Any]:
    words = ["./scripts/bench", benchmark.name]
    words += ["--quick"] if options.quick else []
    words += ["--isa", options.isa] if options.isa else []
    words += ["--large"] if options.large else []
    words += ["--threads", str(options.threads)] if options.threads != usable_cpus() else []
    words += ["--only", *options.only] if options.only else []
    words += ["--contenders", *(f"'{name}'" for name in options.contenders)] if options.contenders else []
    words += ["--repeats", str(options.repeats)] if options.repeats != (2 if options.quick else 5) else []
    setting = {
        "benchmark": benchmark.name,
        "command": " ".join(words),
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "quick": options.quick,
        "repeats": options.repeats,
        "epochs": EPOCHS,
        "threads": options.threads,
        "device": device,
        "isa": options.isa,
    }
    if benchmark.kind == "folder":
        setting["pictures"] = source_of_photos(_data_folder())
    return setting


def _done_cases(path: Path, result: dict[str, Any]) -> list[dict[str, Any]]:
    """The cases of an earlier run with the same setting on the same machine."""
    if not path.is_file():
        return []
    earlier = json.loads(path.read_text(encoding="utf-8"))
    same = ("quick", "repeats", "epochs", "threads", "device", "isa", "machine", "pictures")
    if any(earlier.get(key) != result.get(key) for key in same):
        print(f"{path} was measured in another setting; starting anew", file=sys.stderr)
        return []
    cases: list[dict[str, Any]] = earlier["cases"]
    return cases


def _measured_case(
    benchmark: Benchmark,
    case: Case,
    measure: Measure,
    variants: dict[tuple[str, str, int], dict[str, Any]],
    repeats: int,
) -> dict[str, Any]:
    """One case in turns, after the trials that choose each contender's variant for this network."""
    others, trials, taking_part = OtherWork(), [], []
    for contender in benchmark.contenders:
        key = (contender.name, case["network"], case["processors"])
        if contender.variant_of is not None:
            base = variants.get((contender.variant_of, *key[1:]), {})
            variants[key] = {**base, **contender.variants[0]}
        elif key not in variants:
            variants[key], tried = best_variant(contender, case, measure)
            new = [{"contender": contender.name, **_figures_of_trial(result)} for result in tried]
            for trial in new:
                _say(f"trial: {trial}")
            trials += new
        taking_part.append((contender, variants[key]))
    found = take_turns(taking_part, case, measure, repeats=repeats, say=_say)
    return {"case": case, "other_work_cpus": others.cpus(), "contenders": found, "trials": trials}


def _say(text: str) -> None:
    print(f"  {text}", file=sys.stderr, flush=True)


def _figures_of_trial(result: dict[str, Any]) -> dict[str, Any]:
    return {key: result[key] for key in ("variant", "pictures_per_second", "missing", "failed") if key in result}


if __name__ == "__main__":
    sys.exit(main())
