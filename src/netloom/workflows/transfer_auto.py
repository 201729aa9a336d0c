"""From features to fine-tuning, one step at a time, as long as cross-validation says that a step is worth it."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from netloom.data.folds import independent_pictures
from netloom.data.imageset import ImageSet
from netloom.data.units import tie_into_units
from netloom.durations import duration
from netloom.errors import DataError, NetloomError, TrainingError
from netloom.evaluation.cross_validation import Gain, gain
from netloom.files import write_json
from netloom.parallel.planning import candidate_threads, choose_jobs
from netloom.progress import Reporter
from netloom.recipe import Recipe
from netloom.run import RunFolder
from netloom.runtime import ExecutionPlan, resolve_device, training_threads, usable_cpus
from netloom.training.callbacks import Callback
from netloom.workflows import builders
from netloom.workflows.checked_network import checked_network
from netloom.workflows.cross_validate import DEFAULT_FOLDS, CrossValidation, cross_validate
from netloom.workflows.fitting import Fitting
from netloom.workflows.interruption import BY_TIME, ending_at
from netloom.workflows.prepare import PreparedData, prepare_data
from netloom.workflows.runs import Run
from netloom.workflows.seen_pictures import notes_on_folds
from netloom.workflows.train import begin, recipe_for
from netloom.workflows.trainings import FailedTrainingsError, InterruptedTrainingsError

DEFAULT_SECONDS = 1800.0
STEPS_FILE = "transfer.json"
# The start of workers, features for the head to start from, the last evaluation: beside what is counted.
_BESIDE_STEPS = 1.1
# A backward pass costs twice a forward pass; a frozen network has none.
_FORWARD_SHARE = 1 / 3


@dataclass(frozen=True)
class Step:
    """One mode that was cross-validated.

    Attributes:
        mode: `features`, `frozen` or `finetune`.
        accuracy: Mean over the folds, 0..1.
        gain: Over the mode before it, the mean of the folds' differences; None for the first.
        interval: 95% of the gain, see `evaluation.cross_validation.Gain`; None for the first.
        p_value: Of the exact test that as many held-out answers were right before; None for the first.
        seconds: What the cross-validation took.
        folder: Where it is.
    """

    mode: str
    accuracy: float
    gain: float | None
    interval: tuple[float, float] | None
    p_value: float | None
    seconds: float
    folder: str


def climb(
    source: str | Path | ImageSet,
    recipes: Mapping[str, Mapping[str, Any]],
    *,
    seconds: float,
    out: str | Path,
    name: str | None,
    device: str,
    quiet: bool,
    plan: ExecutionPlan | None = None,
    callbacks: Sequence[Callback] = (),
) -> Run:
    """Cross-validate one mode after the other, and train the last one that was worth it.

    A mode is worth it where its gain over the one before is more than noise: the 95% interval of the folds'
    differences in accuracy, corrected for overlapping training parts (Nadeau and Bengio 2003), lies above zero, and an
    exact test finds that more of the held-out pictures are right. All modes meet the same folds, of all pictures but
    those of the test part, which the last training meets once.

    Args:
        source: As for `train`.
        recipes: Keys that differ from the shipped recipe of each mode, in the order in which they are tried.
        seconds: A mode that would be done later than this after the beginning is not begun, and one that takes longer
            than expected is given up. The first never is.
        out: As for `train`; the cross-validations are in a folder beside the run.
        name: As for `train`.
        device: As for `train`.
        quiet: As for `train`.
        plan: As for `train`, of all trainings.
        callbacks: As for `train`, of the last training.

    Raises:
        DataError: A class has one picture alone that is not tested on.
        InterruptedTrainingsError: Ctrl-C or SIGTERM.
        NetloomError: As `cross_validate` and `train` raise it; what does not fit the network of any mode, before the
            first is begun. Where a mode after the first fails, those before it decide.
    """
    reporter, started = Reporter(quiet=quiet), time.perf_counter()
    resolved = resolve_device(device if plan is None else plan.device)
    chosen = {mode: recipe_for(source, f"transfer-{mode}", changes) for mode, changes in recipes.items()}
    first = next(iter(chosen.values()))
    data = prepare_data(source, first, Reporter(quiet=True))
    for recipe in chosen.values():  # what the last one would refuse is told before the first
        builders.check_extras(recipe)
        checked_network(recipe, data)
    pictures, folds = _test_part_marked(data), _suited_folds(data)
    pool = np.setdiff1d(np.arange(len(data.image_set)), data.split.test)
    notes = notes_on_folds(first, data.image_set, pool, fingerprint=data.facts.fingerprint)
    for note in notes:
        reporter.say(f"  note: {note}")
    folder = RunFolder.create(out, f"{name or data.facts.source_name}-transfer").path
    steps: list[Step] = []
    best, before = "", None
    reason = "finetune is the last step"
    for mode, recipe in chosen.items():
        left = seconds - (time.perf_counter() - started)
        try:
            expected = 0.0
            if before is not None:
                expected = expected_seconds(recipe, data, device=resolved, folds=folds, plan=plan)
                if expected > left:
                    reason = _too_slow(mode, expected, left)
                    break
            reporter.say(f"{mode}: cross-validating with {folds} folds" + (_about(expected) if expected else ""))
            limit = math.inf if before is None else started + seconds - _last_training(before)
            with ending_at(limit):
                found = cross_validate(
                    pictures, recipe, folds=folds, out=folder, name=mode, device=device, quiet=True, plan=plan
                )
        except InterruptedTrainingsError as error:
            if error.reason == BY_TIME:
                reason = f"the time limit was used up while {mode} was cross-validated; --time-limit gives more"
                break
            raise InterruptedTrainingsError(_interrupted(mode, error.reason, steps), error.reason) from error
        except NetloomError as error:
            reason = f"{mode} failed: {error.cause if isinstance(error, FailedTrainingsError) else error}"
            if before is not None:
                break
            if isinstance(error, TrainingError):
                raise TrainingError(reason) from error
            raise
        gained = None if before is None else gain(found.scores, before.scores)
        steps.append(_step(mode, found, gained))
        reporter.say(_in_words(steps))
        if gained is not None and not gained.more_than_noise:
            reason = f"{mode} gains no more than noise over {best}"
            break
        best, before = mode, found
    reporter.say(f"Training {best}: {reason}")
    told = {"chosen": best, "reason": reason, "steps": [asdict(step) for step in steps], "notes": notes}
    write_json(folder / STEPS_FILE, told)
    return begin(
        source,
        chosen[best],
        {},
        out=out,
        name=name,
        device=device,
        quiet=quiet,
        plan=plan,
        callbacks=callbacks,
        mode_choice={**told, "folder": str(folder)},
    )


def _test_part_marked(data: PreparedData) -> ImageSet:
    """The pictures, of which a cross-validation leaves those of the test part alone."""
    parts: list[str | None] = [None] * len(data.image_set)
    for index in data.split.test:
        parts[index] = "test"
    return replace(data.image_set, splits=tuple(parts))


def _suited_folds(data: PreparedData) -> int:
    """Five folds, or fewer where the scarcest class has no more independent pictures outside of the test part.

    Raises:
        DataError: It has one, which cannot be both held out and learned from.
    """
    pictures = data.image_set
    pool = np.setdiff1d(np.arange(len(pictures)), data.split.test)
    units = tie_into_units(len(pictures), pictures.groups, pictures.content_hashes)
    available = independent_pictures(pictures.targets.numpy()[pool], units[pool])
    scarcest = int(available.argmin())
    folds = min(DEFAULT_FOLDS, int(available[scarcest]))
    if folds < 2:
        raise DataError(
            f"--mode auto compares by cross-validation, which takes two independent pictures of each class outside of "
            f"the test part; {data.facts.class_names[scarcest]!r} has {available[scarcest]}. Add some, or choose the "
            "mode yourself: --mode features."
        )
    return folds


def _last_training(found: CrossValidation) -> float:
    """Seconds that training the recipe of a cross-validation once more should take: its folds' mean."""
    return float(found.result["seconds"]) / len(found.runs)


def _interrupted(mode: str, reason: str, steps: Sequence[Step]) -> str:
    told = f"{reason[0].upper()}{reason[1:]} while {mode} was cross-validated. "
    if steps:
        done = ", ".join(f"{step.mode} with {step.accuracy:.2%} ({step.folder})" for step in steps)
        told += f"Cross-validated already: {done}; --mode {steps[-1].mode} trains the last of these. "
    return f"{told}The same command starts with features that it finds in the cache."


def _step(mode: str, found: CrossValidation, gained: Gain | None) -> Step:
    return Step(
        mode=mode,
        accuracy=found.scores.accuracy.mean,
        gain=None if gained is None else gained.mean,
        interval=None if gained is None else (gained.interval.low, gained.interval.high),
        p_value=None if gained is None else gained.p_value,
        seconds=float(found.result["seconds"]),
        folder=str(found.path),
    )


def expected_seconds(
    recipe: Recipe,
    data: PreparedData,
    *,
    device: str,
    folds: int = DEFAULT_FOLDS,
    plan: ExecutionPlan | None = None,
) -> float:
    """What cross-validating a recipe and then training it should take, from the time of some steps on the CPU.

    0 on other devices, whose steps are not timed. They are executed as the training will be: under `plan`, or under one
    that is chosen for it, whose precision is that of the folds, too.
    """
    if device != "cpu" or (recipe.transfer is not None and recipe.transfer.mode == "features"):
        return 0.0
    network, heads = builders.build_network(recipe, data.facts)
    fitting = Fitting.prepare(
        recipe,
        network,
        heads,
        data.image_set,
        data.split,
        scaling=data.facts.scaling,
        device=device,
        initialized=True,  # weights do not matter for a measurement
    )
    chosen, cpus = plan or fitting.choose_plan(), usable_cpus()
    decided = plan is not None or recipe.shards not in (0, "auto")
    candidates = [] if decided else [t for t in candidate_threads(folds, cpus, None) if t <= training_threads()]
    whole = [replace(chosen, threads=threads, shards=0, convolutions=(), compiled=False) for threads in candidates]
    alone, *seconds = fitting.step_seconds([chosen, *whole])
    if decided:
        rounds = math.ceil(folds / max(1, cpus // chosen.cpus)) * alone
    else:
        by_threads = dict(zip(candidates, seconds, strict=True))
        at_once, each = choose_jobs(by_threads, n_tasks=folds, cpus=cpus, independent=True)
        rounds = math.ceil(folds / at_once) * max(1.0, at_once * each / cpus) * by_threads[each]
    pool = (len(data.image_set) - len(data.split.test)) * (folds - 1) / folds
    trained = pool * (1 - recipe.validation_fraction)
    if recipe.per_class is not None:
        trained = min(trained, recipe.per_class * len(data.facts.class_names))
    return _BESIDE_STEPS * (
        rounds * _steps(recipe, trained, pool * recipe.validation_fraction)
        + alone * _steps(recipe, len(data.split.train), len(data.split.validation))
    )


def _steps(recipe: Recipe, n_train: float, n_validation: float) -> float:
    """Steps of a training, passes over the validation part counted as the shares of a step that they take."""
    frozen = recipe.transfer is not None and recipe.transfer.mode == "frozen"
    forward = 1.0 if frozen else _FORWARD_SHARE
    return recipe.epochs * (math.ceil(n_train / recipe.batch_size) + forward * n_validation / recipe.batch_size)


def _about(seconds: float) -> str:
    return f", about {duration(seconds)} with the last training"


def _too_slow(mode: str, expected: float, left: float) -> str:
    return (
        f"{mode} would take about {duration(expected)}, and {duration(max(0.0, left))} of the time limit are left; "
        "--time-limit gives more"
    )


def _in_words(steps: Sequence[Step]) -> str:
    """The last of them, beside the one before it."""
    step = steps[-1]
    text = f"  {step.mode}: accuracy {step.accuracy:.2%} in {duration(step.seconds)}"
    if step.gain is None or step.interval is None or step.p_value is None:
        return text
    low, high = step.interval
    return (
        f"{text}; gain over {steps[-2].mode} {step.gain:+.2%} (95% interval {low:+.2%} to {high:+.2%}; exact test of "
        f"the held-out answers: p = {step.p_value:.2g})"
    )
