"""Whole programs beside their peers: what is recorded of them, and their part of docs/performance.md.

Each of the scripts named as a section of the page (`search`, `trials_per_hour`, …) writes what it measured to
docs/results/programs/NAME.json: `contenders` with a list of measurements each, in the order of the rounds.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.suite.machine import QUIET_CPUS, OtherWork, machine_record, same_machine
from netloom.durations import duration
from netloom.metrics.intervals import mean_interval

RESULTS = Path(__file__).resolve().parents[1] / "docs" / "results" / "programs"

Record = Mapping[str, Any]
Measurements = Mapping[str, Sequence[Mapping[str, Any]]]


def load(name: str) -> Record | None:
    """What is recorded of a script, None for nothing."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def save(
    name: str, contenders: Measurements, about: Mapping[str, Any], others: OtherWork, *, beside: Record | None = None
) -> None:
    """Write the measurements of some contenders; those of others that were made in the same way stay.

    Args:
        name: Of the script.
        contenders: Measurements by name, in the order of the rounds.
        about: How it was measured.
        others: Begun before the first measurement.
        beside: What `load` gave before; rounds of it that were measured in the same way come before the new ones.
    """
    machine = machine_record()

    def alike(record: Record | None) -> Record:
        if record is None or record["about"] != dict(about) or not same_machine(record["machine"], machine):
            return {}
        contenders: Record = record["contenders"]
        return contenders

    how = {
        "command": f"python -m benchmarks.{name} {' '.join(_argument(text) for text in sys.argv[1:])}".rstrip(),
        "date": date.today().isoformat(),
        "other_work_cpus": others.cpus(),
    }
    measured = {}
    for one, rounds in contenders.items():
        before = alike(beside).get(one, {"rounds": [], "other_work_cpus": None})
        work = [found for found in (before["other_work_cpus"], how["other_work_cpus"]) if found is not None]
        measured[one] = {**how, "other_work_cpus": max(work, default=None), "rounds": [*before["rounds"], *rounds]}
    record = {"about": dict(about), "machine": machine, "contenders": {**alike(load(name)), **measured}}
    path = RESULTS / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def _argument(text: str) -> str:
    """An argument of the command as the page shows it: of paths, the name alone."""
    return Path(text).name if "/" in text else text


def sections(results: Path = RESULTS) -> Iterator[str]:
    """The lines of the page."""
    for name, (title, what, table) in _SECTIONS.items():
        yield f"## {title}"
        yield ""
        yield what
        yield ""
        path = results / f"{name}.json"
        if path.is_file():
            record = json.loads(path.read_text(encoding="utf-8"))
            yield from table(record)
            yield ""
            yield from how(record)
        else:
            required = " ".join([f"python -m benchmarks.{name}", *_REQUIRED.get(name, ())])
            yield f"Not measured yet: `{required}`."
        yield ""


def how(record: Record) -> Iterator[str]:
    """How a record was made: commands, dates and the machine, and what else went on there."""
    machine = record["machine"]
    parts = [machine["processor"], " ".join(machine["cpu_flags"]), *machine["cuda_devices"]]
    parts.append(f"{machine['usable_cpus']} processors")
    commands = dict.fromkeys(f"`{one['command']}`, {one['date']}" for one in record["contenders"].values())
    yield f"{'; '.join(commands)}: {'; '.join(part for part in parts if part)}."
    busy = {name: one["other_work_cpus"] or 0.0 for name, one in record["contenders"].items()}
    if loud := [name for name, cpus in busy.items() if cpus > QUIET_CPUS]:
        most = max(busy.values())
        yield f"**The machine was not quiet: other work took up to {most:.1f} processors during {', '.join(loud)}.**"


def _rounds(record: Record) -> dict[str, list[Any]]:
    return {name: one["rounds"] for name, one in record["contenders"].items()}


def _median(rounds: Sequence[Mapping[str, Any]], key: str) -> float:
    return statistics.median(one[key] for one in rounds)


def row(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def seconds_to(measurement: Mapping[str, Any], target: float) -> float | None:
    """Seconds from the start of a search until it first had a score of at least `target`, or None.

    A table's row has four digits, so that a value may be shown up to half a ten-thousandth lower than it is.
    """
    return next((seconds for seconds, value in measurement["reached"] if value >= target - 5e-5), None)


def _search(record: Record) -> Iterator[str]:
    rounds = _rounds(record)
    base, pruned = rounds.get("bayes_opt", []), rounds.get("netloom_pruned", [])
    yield row(
        *("program", "n", "trials", "seconds", "times as fast", "best validation accuracy"),
        *("seconds to its best", "netloom_pruned's to as much"),
    )
    yield "|" + "---|" * 8
    for name, found in rounds.items():
        seconds = _median(found, "seconds")
        ratio = f"×{_median(base, 'seconds') / seconds:.1f}" if base else "–"
        trials = ", ".join(dict.fromkeys(str(one.get("trials", record["about"]["trials"])) for one in found))
        own = [time for one in found if (time := seconds_to(one, one["best"])) is not None]
        best = ", ".join(f"{one['best']:.4f}" for one in found)
        met = "–" if name.startswith("netloom") or not pruned else _as_much(found, own, pruned)
        to_own = f"{statistics.median(own):.0f}" if own else "–"
        yield row(name, len(found), trials, f"{seconds:.0f}", ratio, best, to_own, met)


def _as_much(theirs: Sequence[Mapping[str, Any]], own: Sequence[float], ours: Sequence[Mapping[str, Any]]) -> str:
    """How long ours took to the median of the best that they reached, and how many times shorter that is."""
    target = statistics.median(one["best"] for one in theirs)
    times = [seconds_to(one, target) for one in ours]
    met = [time for time in times if time is not None]
    if not met:
        return "not reached"
    text = f"{statistics.median(met):.0f}" + (f" ({len(met)} of {len(times)})" if None in times else "")
    return text + (f", ×{statistics.median(own) / statistics.median(met):.1f}" if own else "")


def _trials_per_hour(record: Record) -> Iterator[str]:
    rounds = _rounds(record)
    yield row("trials at once", "n", "one search: trials an hour", "independent processes", "share")
    yield "|" + "---|" * 5
    for jobs in record["about"]["jobs"]:
        ours, theirs = rounds[f"{jobs} workers"], rounds.get(f"{jobs} processes", [])
        rate = _median(ours, "per_hour")
        beside = f"{_median(theirs, 'per_hour'):.1f}" if theirs else "–"
        share = f"{rate / _median(theirs, 'per_hour'):.0%}" if theirs else "–"
        yield row(jobs, len(ours), f"{rate:.1f}", beside, share)


def _search_overhead(record: Record) -> Iterator[str]:
    about = record["about"]
    yield row("sampler and trials at once", "n", "seconds of a trial", "overhead a trial, ms", "processor, ms")
    yield "|" + "---|" * 5
    for way, found in _rounds(record).items():
        sampler = way.partition(",")[0]
        overhead, processor = _median(found, "overhead_ms"), _median(found, "driver_cpu_ms")
        n = f"{len(found)} x {about['trials'][sampler]}"
        yield row(way, n, f"{about['seconds'][sampler]:g}", f"{overhead:.1f}", f"{processor:.1f}")


def _cross_validation(record: Record) -> Iterator[str]:
    yield row("folds", "n", "trainings at once", "threads each", "seconds", "mean accuracy")
    yield "|" + "---|" * 6
    rounds = _rounds(record)
    for way, found in rounds.items():
        accuracy = ", ".join(dict.fromkeys(f"{one['accuracy']:.4f}" for one in found))
        yield row(way, len(found), found[0]["jobs"], found[0]["threads"], f"{_median(found, 'seconds'):.0f}", accuracy)
    sequential, at_once = (_median(found, "seconds") for found in rounds.values())
    yield ""
    yield f"At once is {sequential / at_once:.2f} times as fast."


def _cifar10_fast(record: Record) -> Iterator[str]:
    rounds, about = _rounds(record), record["about"]
    theirs = rounds["airbench94_muon"]
    yield row("program", "n", "test accuracy", "seconds", "of the peer's", "whole process, seconds")
    yield "|" + "---|" * 6
    for name, found in rounds.items():
        values = np.array([one["accuracy"] for one in found])
        low, high = mean_interval(values)
        accuracy = f"{values.mean():.2%}" + (f" ({low:.2%} to {high:.2%})" if len(values) > 1 else "")
        ratios = [ours["seconds"] / peers["seconds"] for ours, peers in zip(found, theirs, strict=False)]
        ratio = "–" if found is theirs else f"×{statistics.median(ratios):.2f}"
        seconds, process = _median(found, "seconds"), _median(found, "process_seconds")
        yield row(name, len(found), accuracy, f"{seconds:.1f}", ratio, f"{process:.1f}")
    compiled = "compiled" if about["peer_compiled"] else "not compiled"
    yield ""
    yield f"On {about['device']}; the peer in {about['peer_precision']}, {compiled}."


def _features(record: Record) -> Iterator[str]:
    rounds = _rounds(record)
    yield row("from JPEG files to features", "n", "pictures a second", "netloom is", "whole")
    yield "|" + "---|" * 5
    for name, found in rounds.items():
        rate = statistics.median(one["n"] / one["seconds"] for one in found)
        ratios = [theirs["seconds"] / ours["seconds"] for theirs, ours in zip(found, rounds["netloom"], strict=False)]
        ratio = "–" if name == "netloom" else f"×{statistics.median(ratios):.2f}"
        yield row(name, len(found), f"{rate:.1f}", ratio, duration(_median(found, "seconds")))
    alone = statistics.median(one["n"] / one["network_seconds"] for one in rounds["netloom"])
    yield ""
    yield f"netloom's pass of the network alone: {alone:.1f} pictures a second."


def _transfer_command(record: Record) -> Iterator[str]:
    yield row("netloom transfer", "n", "seconds, whole command", "of these imports", "beyond imports", "test accuracy")
    yield "|" + "---|" * 6
    for time, found in _rounds(record).items():
        seconds, imports = _median(found, "seconds"), _median(found, "import_seconds")
        test = found[0]["test"]
        low, high = test["interval"]
        accuracy = f"{test['accuracy']:.2%} of {test['n']:,} ({low:.2%} to {high:.2%})"
        yield row(
            f"the {time} time", len(found), f"{seconds:.1f}", f"{imports:.1f}", f"{seconds - imports:.1f}", accuracy
        )


def _augmentation(record: Record) -> Iterator[str]:
    yield row("augmentation", "n", "pictures a second", "torchvision's", "netloom is", "Keras' way", "netloom is")
    yield "|" + "---|" * 7
    for name, found in _rounds(record).items():
        cells: list[str] = []
        for peer in ("torchvision", "keras"):
            if peer in found[0]:
                ratio = statistics.median(one["netloom"] / one[peer] for one in found)
                cells += [f"{_median(found, peer):,.0f}", f"×{ratio:.1f}"]
            else:
                cells += ["–", "–"]
        yield row(name, len(found), f"{_median(found, 'netloom'):,.0f}", *cells)
    yield ""
    yield f"With {record['about']['threads']} thread{'s' if record['about']['threads'] > 1 else ''}."


# Arguments without which a script does not begin.
_REQUIRED = {
    "search": ["--peers PYTHON"],
    "cifar10_fast": ["--peer FILE"],
    "features": ["ARCHIVE", "--weights FILE"],
    "transfer_command": ["ARCHIVE", "--weights FILE"],
}
_SECTIONS = {
    "search": (
        "Searches",
        "The search of a Keras notebook, whole process against whole process: a network of two convolutions on "
        "CIFAR-10 (40,000 training and 10,000 validation pictures, batch 32), dropout and learning rate over the same "
        "linear ranges, the same number of trials of five epochs. `bayes_opt` is bayesian-optimization and Keras on "
        "TensorFlow; `keras_tuner` and `keras_tuner_hyperband` (whose brackets decide the number of trials) are "
        "KerasTuner's; `optuna` is Optuna's TPE and median pruner around a plain PyTorch loop; `netloom` and "
        "`netloom_pruned` are `netloom tune --sampler gp` without and with `--pruner median`, whose first trial is the "
        "recipe itself (dropout 0.3, rate 0.001), a good one; `netloom_same_trials` tries the very values that "
        "`bayes_opt` tried. The last two columns are the time to the best validation accuracy that each program "
        "reaches, and how long `netloom_pruned` took to as much. Not all programs ran in every round, so that ratios "
        "are those of medians over each one's own rounds. The aims, on four cores with instructions for bfloat16, are "
        "5 times the speed of `bayes_opt` and a sixth of each peer's time to its best.",
        _search,
    ),
    "trials_per_hour": (
        "Trials an hour",
        "The same network, one epoch a trial, random search without pruning: `netloom tune --jobs N`, one driver with "
        "N workers, beside N searches that share nothing, each with an N-th of the trials and of the processors. The "
        "aim is a share of 90%. On a GPU, which they share: not measured yet (`--device cuda --jobs 1 2 4 8`).",
        _trials_per_hour,
    ),
    "search_overhead": (
        "The driver of a search",
        "What a trial costs beside itself: the time in which a worker has none, with trials that only sleep, a "
        "database, reports of five epochs and pruning. With Gaussian processes (`gp`) it is what their fits leave, "
        "which are done while workers train; alone, there is nobody to train meanwhile. A fit takes the processor "
        "time of the last column and trials of a second are short for it: four workers want a proposal every quarter "
        "of a second.",
        _search_overhead,
    ),
    "cross_validation": (
        "Cross-validation",
        "The folds of one cross-validation at once, beside the same one after the other with all processors.",
        _cross_validation,
    ),
    "cifar10_fast": (
        "The CIFAR-10 speed record",
        "Whole trainings on all pictures of CIFAR-10, seed by seed in turn: `netloom` is `netloom train cifar10 "
        "--recipe cifar10-fast`, `airbench94_muon` Jordan's program of that name, changed only where this machine or "
        "torch made it necessary; both train on all training pictures. Test accuracy is the mean over seeds with its "
        "95% interval by Student's t, which tells how much the seed matters; both average over mirrored and shifted "
        "test pictures. Seconds, their median over seeds, are netloom's from the cached pictures to the test's score, "
        "with the choice of an execution plan, and the peer's by its own clock, of whitening, steps and the last test; "
        "the ratio is the median of those within a seed, and less is better.",
        _cifar10_fast,
    ),
    "features": (
        "Features of a pretrained network",
        "MobileNet v1 at 224x224 on all pictures of cats and dogs: `netloom` as in `netloom transfer --mode features`, "
        "with empty caches; `pytorch` as in its tutorials, timm's network in float32 behind a DataLoader; `keras` as "
        "in its guides, `image_dataset_from_directory` and `predict`. Without imports and building. The aim is 4 times "
        "PyTorch and 3 times Keras, on processors with instructions for bfloat16.",
        _features,
    ),
    "transfer_command": (
        "From command to report",
        "`netloom transfer cats_and_dogs_small.zip --backbone mobilenetv1_100 --mode features`, 4,000 pictures at "
        "224x224, from the start of Python to the report: with empty caches, and again. The aim is 40 seconds for the "
        "first and 5 for the second beyond imports.",
        _transfer_command,
    ),
    "augmentation": (
        "Augmentation",
        "Random changes of pictures that lie in memory as uint8, each picture its own: netloom's for a whole batch at "
        "once; torchvision's `transforms.v2` on each picture, then stacked; Keras' way is that of its "
        "`ImageDataGenerator`, SciPy on each channel of each picture.",
        _augmentation,
    ),
}
