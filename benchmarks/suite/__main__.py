"""Measure netloom and its peers on the same work, in turn, and write docs/performance.md from the figures.

    ./scripts/bench [NAME ...]
    ./scripts/bench --continue --minutes 60          an hour of it, as often as it takes
    PYTHON=python3 ./scripts/bench --peers-python "$(command -v python3)"
                                                     without installing anything, with the packages of that Python

Each measurement runs in a process of its own; contenders take turns, and tables give medians over the turns. Results
go to docs/results/performance/NAME.json after every case, so that a run that is cut short loses one case at most.
Cases recorded there that a call does not measure stay as they are.
"""

from __future__ import annotations

import argparse
import datetime
import os
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.suite import page
from benchmarks.suite.errors import MeasuringError, OtherSettingError
from benchmarks.suite.machine import OtherWork, machine_record, narrow_isa, source_version
from benchmarks.suite.networks import NETWORKS
from benchmarks.suite.pictures import HELD_OUT, photo_folder, source_of_photos
from benchmarks.suite.plans import BENCHMARKS, Benchmark, Case, resized
from benchmarks.suite.records import Results, Source, is_current
from benchmarks.suite.turns import ROOT, Processes, best_variant, take_turns
from netloom.errors import NetloomError
from netloom.runtime import resolve_device, usable_cpus

# The first one is timed apart. Of three others the median leaves out the one in which netloom writes its first
# checkpoint, which in a whole training takes at most a twentieth of the time.
EPOCHS = {"train": 4, "infer": 4, "folder": 3}
# A GPU goes through the CPU's epochs in a fraction of a second.
_CUDA_FACTOR, _QUICK_FACTOR = 8, 0.25
_TRIALS = ROOT / "build" / "performance"

Variants = dict[tuple[str, str, int, int], dict[str, Any]]


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="./scripts/bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(BENCHMARKS)}; all of them without one")
    parser.add_argument("--quick", action="store_true", help="two turns of short epochs, written to build/performance")
    parser.add_argument("--repeats", type=int, help="turns (default 5)")
    parser.add_argument("--threads", type=int, help="processors and threads of each process (default all)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--isa", help="limit oneDNN (ONEDNN_MAX_CPU_ISA) to these instructions, with AVX2 torch, too")
    parser.add_argument("--only", nargs="+", metavar="NETWORK", help="measure these networks only")
    parser.add_argument(
        "--contenders", nargs="+", metavar="NAME", help="netloom and these peers only, written to build/performance"
    )
    parser.add_argument(
        "--continue",
        action="store_true",
        dest="go_on",
        help="measure the cases that are not recorded, and then those that are of other code or other versions",
    )
    parser.add_argument("--minutes", type=float, help="begin no further case after so many minutes")
    parser.add_argument("--limit", type=float, default=900.0, help="seconds after which a process is ended")
    parser.add_argument("--out", type=Path, help="folder of the results (default docs/results/performance)")
    parser.add_argument(
        "--peers-python",
        metavar="PYTHON",
        help="a Python with some or all of benchmarks/peers.txt to measure the peers with; nothing is installed then",
    )
    chosen = parser.parse_args(given)
    unknown = set(chosen.names) - set(BENCHMARKS)
    if unknown:
        parser.error(f"no such benchmark: {', '.join(sorted(unknown))}; there are {', '.join(BENCHMARKS)}")
    if unknown := set(chosen.only or ()) - {*NETWORKS, "photos"}:
        parser.error(f"no such network: {', '.join(sorted(unknown))}; there are {', '.join(NETWORKS)}, photos")
    most = usable_cpus()
    if chosen.threads is not None and not 1 <= chosen.threads <= most:
        parser.error(f"--threads takes 1 to {most} on this machine, not {chosen.threads}")
    if chosen.repeats is not None and chosen.repeats < 1:
        parser.error(f"--repeats takes 1 or more, not {chosen.repeats}")
    found = shutil.which(chosen.peers_python) if chosen.peers_python else str(_peers_python())
    if found is None:
        parser.error(f"--peers-python takes a Python, and {chosen.peers_python} is no program")
    # Not resolved: an environment's Python is a link to another.
    chosen.peers_python = Path(found).absolute()
    chosen.names = chosen.names or list(BENCHMARKS)
    chosen.threads = chosen.threads or most
    peers = {c.name: None for name in chosen.names for c in BENCHMARKS[name](chosen.threads, cuda=False).contenders}
    if unknown := set(chosen.contenders or ()) - set(peers):
        parser.error(f"no such contender: {', '.join(sorted(unknown))}; there are {', '.join(peers)}")
    chosen.repeats = chosen.repeats or (2 if chosen.quick else 5)
    chosen.out = chosen.out or (_TRIALS if chosen.quick or chosen.contenders else page.RESULTS)
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
    try:
        with tempfile.TemporaryDirectory(prefix="bench-") as scratch:
            _measure(options, device, Path(scratch))
    except MeasuringError as error:
        print(error, file=sys.stderr)
        return 2 if isinstance(error, OtherSettingError) else 1
    page.write(options.out)
    return 0


def _measure(options: argparse.Namespace, device: str, scratch: Path) -> None:
    """Measure what is asked for, as far as the time allows."""
    deadline = None if options.minutes is None else time.monotonic() + 60 * options.minutes
    benchmarks = [_whole(name, options, device) for name in options.names]
    for benchmark in benchmarks:
        _results(benchmark, options, device)  # before anything is measured
    for unrecorded_only in (True, False) if options.go_on else (False,):
        for benchmark in benchmarks:
            measure = Processes(
                kind=benchmark.kind,
                peers_python=options.peers_python,
                scratch=scratch,
                epochs=EPOCHS[benchmark.kind],
                device=device,
                isa=options.isa,
                limit_seconds=options.limit,
                folder_of=partial(_photos, scratch) if benchmark.kind == "folder" else None,
            )
            if not record(benchmark, measure, options, device, deadline, unrecorded_only=unrecorded_only):
                print("the time is over; go on by --continue", file=sys.stderr)
                return


def _whole(name: str, options: argparse.Namespace, device: str) -> Benchmark:
    """All cases and contenders of a benchmark on this machine."""
    benchmark = BENCHMARKS[name](options.threads, cuda=device == "cuda")
    return replace(benchmark, cases=resized(benchmark.cases, _factor(device, quick=options.quick)))


def _factor(device: str, *, quick: bool) -> float:
    return (_CUDA_FACTOR if device == "cuda" else 1) * (_QUICK_FACTOR if quick else 1)


def _chosen(benchmark: Benchmark, options: argparse.Namespace) -> Benchmark:
    """The benchmark with only those networks and contenders that were asked for."""
    cases = [case for case in benchmark.cases if not options.only or case["network"] in options.only]
    wanted = options.contenders
    contenders = [c for c in benchmark.contenders if wanted is None or c.library == "netloom" or c.name in wanted]
    return replace(benchmark, contenders=tuple(contenders), cases=cases)


def _data_folder() -> Path | None:
    folder = os.environ.get("NETLOOM_DATA")
    return Path(folder) if folder else None


def _photos(scratch: Path, count: int) -> Path:
    """A folder with so many JPEG files for training and some to validate and test on, made where it is not there."""
    return photo_folder(scratch / f"photos-{count}", _data_folder(), count + 2 * HELD_OUT)


def record(
    whole: Benchmark,
    measure: Processes,
    options: argparse.Namespace,
    device: str,
    deadline: float | None = None,
    *,
    unrecorded_only: bool = False,
) -> bool:
    """Measure the cases of `whole` that were asked for and write the result file after each.

    Returns:
        Whether the time was enough for all.

    Raises:
        OtherSettingError: The file holds figures that must not be mixed with these, or replaced by them.
        UnequalNetworksError: Two contenders do not train the same network.
    """
    benchmark = _chosen(whole, options)
    names = [contender.name for contender in benchmark.contenders]
    results = _results(whole, options, device)
    by_library = measure.versions()
    source = Source(source_version(ROOT), {c.name: by_library.get(c.library, {}) for c in benchmark.contenders})
    variants: Variants = {}
    for number, case in enumerate(benchmark.cases, start=1):
        known = results.find(case) if options.go_on else None
        if known is not None and (unrecorded_only or is_current(known, source, names)):
            continue
        if deadline is not None and time.monotonic() > deadline:
            return False
        told = ", ".join(f"{value:,} {key}" if isinstance(value, int) else value for key, value in case.items())
        print(f"{benchmark.name}, case {number} of {len(benchmark.cases)}: {told}", file=sys.stderr)
        entry = _measured_case(benchmark, case, measure, variants, options.repeats)
        results.put({**_circumstances(benchmark, options, source), **entry})
    return True


def _results(whole: Benchmark, options: argparse.Namespace, device: str) -> Results:
    """What is recorded already beside what will be measured; of trials nothing, unless one is to go on.

    Raises:
        OtherSettingError: The two must not be mixed.
    """
    benchmark = _chosen(whole, options)
    path: Path = options.out / f"{result_name(benchmark.name, device, options.isa or narrow_isa())}.json"
    if options.out == _TRIALS and not options.go_on:
        path.unlink(missing_ok=True)
    results = Results.read(path, _setting(benchmark, options, device), whole.cases)
    if options.contenders:
        results.check_contenders(benchmark.cases, [contender.name for contender in benchmark.contenders])
    return results


def _circumstances(benchmark: Benchmark, options: argparse.Namespace, source: Source) -> dict[str, Any]:
    """What may differ from case to case of a file, since they need not be measured on one day."""
    return {
        "command": _command(benchmark, options),
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "commit": source.commit,
        "versions": {name: dict(versions) for name, versions in source.versions.items()},
    }


def result_name(benchmark: str, device: str, isa: str | None) -> str:
    """Of the result file without its ending: `training`, `training-cuda`, `training-avx2`.

    The last is of a processor that has no wider vectors, or of one that was told to take no wider ones.
    """
    return "-".join([benchmark, *([device] if device != "cpu" else []), *([isa.lower()] if isa else [])])


def _command(benchmark: Benchmark, options: argparse.Namespace) -> str:
    words = ["./scripts/bench", benchmark.name]
    words += ["--quick"] if options.quick else []
    words += ["--device", options.device] if options.device != "auto" else []
    words += ["--isa", options.isa] if options.isa else []
    words += ["--threads", str(options.threads)] if options.threads != usable_cpus() else []
    words += ["--only", *options.only] if options.only else []
    words += ["--contenders", *(f"'{name}'" for name in options.contenders)] if options.contenders else []
    words += ["--repeats", str(options.repeats)] if options.repeats != (2 if options.quick else 5) else []
    return " ".join(words)


def _setting(benchmark: Benchmark, options: argparse.Namespace, device: str) -> dict[str, Any]:
    """What all cases of a file have in common."""
    setting = {
        "benchmark": benchmark.name,
        "quick": options.quick,
        "repeats": options.repeats,
        "epochs": EPOCHS[benchmark.kind],
        "threads": options.threads,
        "device": device,
        "isa": options.isa,
        "machine": machine_record(),
    }
    if benchmark.kind == "folder":
        setting["pictures"] = source_of_photos(_data_folder())
    return setting


def _measured_case(
    benchmark: Benchmark,
    case: Case,
    measure: Processes,
    variants: Variants,
    repeats: int,
) -> dict[str, Any]:
    """One case in turns, after the trials that choose each contender's variant."""
    others, trials, taking_part = OtherWork(), [], []
    for contender in benchmark.contenders:
        key = (contender.name, case["network"], case["batch_size"], case["processors"])
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
