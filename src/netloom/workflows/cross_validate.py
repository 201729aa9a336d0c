"""Cross-validation: how good a recipe is on a kind of pictures, and how sure that is, from many trainings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from netloom.data.folds import Fold, Scheme, make_folds
from netloom.data.imageset import ImageSet
from netloom.data.splits import Split, groups_of
from netloom.errors import DataError
from netloom.evaluation.cross_validation import CrossValidationScores, FoldOutcome, summarize_folds
from netloom.files import write_json
from netloom.memory import without_garbage_collection
from netloom.progress import Reporter
from netloom.recipe import Recipe
from netloom.runtime import ExecutionPlan
from netloom.workflows import builders
from netloom.workflows.builders import CustomModel
from netloom.workflows.prepare import PreparedData, data_facts, load_pictures
from netloom.workflows.request import request_for
from netloom.workflows.runs import Run
from netloom.workflows.seen_pictures import notes_on_folds
from netloom.workflows.training_job import Member, TrainingJob, damaged_manifest, resume_job, start_job
from netloom.workflows.trainings import FailedTrainingsError

RESULT_FILE = "cv.json"
REPORT_FILE = "report.html"
DEFAULT_FOLDS = 5
DEFAULT_HOLDOUTS = 5
_NOTES_SHOWN = 10


@dataclass(frozen=True, eq=False)
class CrossValidation:
    """A finished cross-validation, from `netloom.cross_validate`.

    Attributes:
        path: Its folder, with `cv.json`, `report.html` and a run's folder for each training.
        scores: Mean, spread and interval of every score; the confusion matrix.
        runs: The trainings; the `test` part of each is what was held out from it.
        result: What `cv.json` holds.
    """

    path: Path
    scores: CrossValidationScores
    runs: Sequence[Run]
    result: Mapping[str, Any]

    def out_of_fold(self) -> dict[str, npt.NDArray[Any]]:
        """What the trainings said of the pictures held out from them, one row for each picture and repeat.

        Returns:
            `ids` (texts), `repeat` (from 1), `targets` (true class indices), each `[n]`, and `probabilities`
            float32 `[n, K]`.

        Raises:
            RunError: The files of a run are missing or damaged.
        """
        parts = [run.test_predictions() for run in self.runs]
        ids = [run.split["test"] for run in self.runs]  # in the order of the predictions
        repeats = [training["repeat"] for training in self.result["trainings"] if training["status"] == "finished"]
        return {
            "ids": np.array([name for names in ids for name in names]),
            "repeat": np.repeat(repeats, [len(names) for names in ids]),
            "targets": np.concatenate([targets for _, targets in parts]),
            "probabilities": np.concatenate([probabilities for probabilities, _ in parts]),
        }


def cross_validate(
    source: str | Path | ImageSet,
    recipe: str | Path | Recipe | None = None,
    *,
    folds: int | None = None,
    repeats: int | None = None,
    holdout: float | None = None,
    jobs: int | str = "auto",
    model: CustomModel | str | None = None,
    out: str | Path = "runs",
    name: str | None = None,
    device: str = "auto",
    quiet: bool = False,
    plan: ExecutionPlan | None = None,
    settings: Mapping[str, Any] | None = None,
    **overrides: Any,
) -> CrossValidation:
    """Train a recipe on all but one fold and test it on that fold, for every fold.

    Classes are in proportion in every fold; pictures of the same content or group are in one. A source's own test part
    is left untouched. In each training `validation_fraction` of what is not held out chooses the epoch, as in `train`;
    the held-out part is looked at once. Every training has its own seed, counted up from the recipe's, so that the
    spread includes the luck of the initial weights. The folds are drawn from the recipe's `split_seed`.

    Args:
        source: As for `train`.
        recipe: As for `train`.
        folds: At least 2; 5 where neither they nor a holdout is given.
        repeats: How often all is drawn anew; once where it is not given, 5 times with a holdout.
        holdout: In place of folds: the fraction that is held out at random in each of at least 2 repeats.
        jobs: Trainings at once; `auto` measures with which number and threads all of them end the soonest.
        model: The name of a model, or a function making one, as for `train`. A function that other processes cannot
            import (of a script or notebook) is used by one training after the other.
        out: As for `train`.
        name: As for `train`.
        device: As for `train`.
        quiet: As for `train`.
        plan: Of every training, as for `train`; without it one is measured and used by all.
        settings: As for `train`.
        **overrides: As for `train`.

    Raises:
        NetloomError: Of the fitting kind; the message says what to do. Where some trainings failed, the figures of
            the others are in the folder all the same.
        InterruptedTrainingsError: Ctrl-C or SIGTERM; `resume_cross_validation` goes on.
    """
    scheme = _scheme(folds, repeats, holdout)
    asked = request_for(
        source,
        recipe,
        model=model,
        jobs=jobs,
        device=device,
        plan=plan,
        quiet=quiet,
        changes={**(settings or {}), **overrides},
    )
    chosen, reporter = asked.recipe, asked.reporter
    with without_garbage_collection():
        loaded, audit = load_pictures(source, chosen, reporter)
        drawn = make_folds(scheme, parts=loaded.image_set.splits, **builders.split_options(chosen, loaded.image_set))
    height, width = loaded.image_set.images.shape[2:]
    chosen = chosen.replace(image_size=[height, width])
    facts = data_facts(loaded, audit, chosen, drawn[0].split)
    pool = np.unique(np.concatenate([fold.split.test for fold in drawn]))
    on_backbone = notes_on_folds(chosen, loaded.image_set, pool, fingerprint=facts.fingerprint)
    notes = [*on_backbone, *_notes(loaded.image_set, drawn)]
    members = [
        Member(
            fold.name,
            chosen.replace(seed=chosen.seed + number),
            fold.split.with_test_notes(on_backbone),
            {"repeat": fold.repeat, "fold": fold.fold},
        )
        for number, fold in enumerate(drawn)
    ]
    reporter.say(
        f"{loaded.source_name}: {len(loaded.image_set):,} pictures of {len(loaded.image_set.class_names)} classes at "
        f"{width}x{height}; {scheme}: {len(drawn)} trainings"
    )
    unused = builders.note_on_unused(chosen)
    for note in [*audit.warnings, *notes, *([] if unused is None else [unused])]:
        reporter.say(f"  note: {note}")
    job = start_job(
        "cross-validation",
        members,
        PreparedData(
            loaded.image_set,
            members[0].split,
            facts,
            loaded.pixels_file,
        ),
        out=out,
        name=f"{name or loaded.source_name}-cv",
        details={"scheme": scheme.to_json(), "notes": notes},
        jobs=asked.jobs,
        device=asked.device,
        plan=plan,
        model=asked.model,
        reporter=reporter,
    )
    return _finish(job, scheme, reporter)


def resume_cross_validation(
    folder: str | Path,
    *,
    source: ImageSet | None = None,
    jobs: int | str = "auto",
    model: CustomModel | None = None,
    quiet: bool = False,
) -> CrossValidation:
    """Go on with a cross-validation that was cut short; finished trainings are not repeated.

    It ends with the same figures as if it had never been cut, whatever `jobs` is.

    Args:
        folder: Its folder.
        source: The pictures, where it was started on pictures in memory.
        jobs: As for `cross_validate`.
        model: The function making the network, where it was started with one.
        quiet: As for `cross_validate`.

    Raises:
        RunError: There is no such cross-validation, or its pictures have changed.
        TrainingError: As `cross_validate` raises it.
    """
    reporter = Reporter(quiet=quiet)
    job = resume_job(folder, "cross-validation", source=source, jobs=jobs, model=model, reporter=reporter)
    return _finish(job, _scheme_of(job), reporter)


def _scheme(folds: int | None, repeats: int | None, holdout: float | None) -> Scheme:
    """The scheme that a user means, who need not say all of it.

    Raises:
        DataError: There is none such.
    """
    if repeats is None:
        repeats = 1 if holdout is None else DEFAULT_HOLDOUTS
    return Scheme(DEFAULT_FOLDS if folds is None and holdout is None else folds, repeats, holdout)


def _scheme_of(job: TrainingJob) -> Scheme:
    """The scheme that the manifest tells.

    Raises:
        RunError: It tells none, or lacks something else that the figures need.
    """
    try:
        scheme = Scheme(**job.details["scheme"])
        complete = all(isinstance(training["repeat"], int) for training in job.about)
        if complete and isinstance(job.details["notes"], list):
            return scheme
    except (KeyError, TypeError, DataError) as error:
        raise damaged_manifest(job.path, f"{type(error).__name__}: {error}") from error
    raise damaged_manifest(job.path, "its trainings need repeats, and it a list of notes")


def _notes(image_set: ImageSet, drawn: Sequence[Fold]) -> list[str]:
    """What a user should know of these folds, a sentence each."""
    notes = []
    parts = image_set.splits or ()
    if untouched := sum(part == "test" for part in parts):
        notes.append(
            f"The {untouched:,} pictures of the source's own test part take no part: they are neither trained on nor "
            "tested, and stay good for one last test of what you choose."
        )
    if any(part == "validation" for part in parts):
        notes.append("The source's validation part is pooled with its training part, and the folds drawn from both.")
    if image_set.groups is not None:
        notes.append("Pictures of one group are in one fold.")
    if (n := drawn[0].split.per_class) is not None:
        notes.append(
            f"Each training uses {n:,} pictures of each class, drawn from its own training part; the pictures that "
            "choose the epoch and those that test are whole."
        )
    of_folds = [f"{fold.name}: {note}" for fold in drawn for note in fold.split.notes]
    if len(of_folds) > _NOTES_SHOWN:
        of_folds = [*of_folds[:_NOTES_SHOWN], f"And {len(of_folds) - _NOTES_SHOWN} more notes like these."]
    return notes + of_folds


def _finish(job: TrainingJob, scheme: Scheme, reporter: Reporter) -> CrossValidation:
    """Train what is left to train, and tell what came out."""
    go_on_with = job.how_to_go_on("netloom cv", "netloom.resume_cross_validation")
    failures = job.train(reporter, go_on_with=go_on_with)
    tested = [run for run in job.runs if run.result["status"] == "finished"]
    if not tested:
        first = _first(failures)
        raise FailedTrainingsError(f"All {len(job.runs)} trainings failed, the first of them so: {first}", first)
    everything = np.arange(len(job.image_set))
    groups = groups_of(job.image_set.groups, everything)
    outcomes = [_outcome(run, job.image_set, everything if groups is None else groups) for run in tested]
    class_names = tuple(job.image_set.class_names)
    scores = summarize_folds(outcomes, len(class_names))
    result = {
        "folder": str(job.path),
        "status": "incomplete" if failures else "finished",
        **_facts(job, scheme, tested[0]),
        **scores.to_json(class_names),
        "trainings": [_training_json(run, about, failures) for run, about in zip(job.runs, job.about, strict=True)],
        "seconds": job.seconds,
    }
    write_json(job.path / RESULT_FILE, result)
    found = CrossValidation(job.path, scores, tested, result)
    # Imported late, as for a single training: Matplotlib would delay the first step.
    from netloom.workflows.cross_validation_report import write_cross_validation_report

    write_cross_validation_report(found, job.path / REPORT_FILE)
    if failures:
        raise FailedTrainingsError(
            f"{len(failures)} of {len(job.runs)} trainings failed, for example {_first(failures)} The figures of the "
            f"others are in {job.path / RESULT_FILE}. When the cause is mended, go on with: {go_on_with}",
            _first(failures),
        )
    for line in describe(result):
        reporter.say(line)
    return found


def _first(failures: Mapping[str, str]) -> str:
    name, reason = next(iter(failures.items()))
    return f"{name}: {reason.rstrip('.')}."


def _outcome(run: Run, image_set: ImageSet, units: npt.NDArray[np.int64]) -> FoldOutcome:
    split = Split.from_json(run.split, image_set.ids)
    probabilities, targets = run.test_predictions()
    learned = np.concatenate([split.train, split.validation])
    return FoldOutcome(probabilities, targets, image_set.targets.numpy()[learned], units[split.test])


def _facts(job: TrainingJob, scheme: Scheme, run: Run) -> dict[str, Any]:
    """What was trained, on what and how."""
    recipe, facts, result = run.recipe, run.data, run.result
    return {
        "source": facts.source_name,
        "recipe": recipe.name,
        "model": recipe.custom_model or recipe.model,
        "parameters": result["parameters"],
        "class_names": list(facts.class_names),
        "scheme": scheme.to_json(),
        "scheme_in_words": str(scheme),
        "notes": list(job.details["notes"]),
        "plan": job.plan.to_json(),
        "jobs": job.jobs,
    }


def _training_json(run: Run, about: Mapping[str, Any], failures: Mapping[str, str]) -> dict[str, Any]:
    """One training in `cv.json`; scores are those of the held-out part."""
    result, test = run.result, run.result.get("test", {})
    split = run.split
    return {
        **about,
        "run": str(run.path),
        "seed": run.recipe.seed,
        "status": "failed" if run.name in failures else result["status"],
        "reason": failures.get(run.name),
        **{f"{part}_n": len(split[part]) for part in ("train", "validation", "test")},
        **{key: test.get(key) for key in ("accuracy", "interval", "macro_f1", "log_loss")},
        **{key: result.get(key) for key in ("epochs", "kept_epoch", "train_seconds", "train_images_per_second")},
    }


def describe(result: Mapping[str, Any]) -> list[str]:
    """What `cv.json` holds, in lines for people."""
    accuracy, majority = result["accuracy"], result["majority_baseline"]
    low, high = accuracy["interval"]
    n = sum(training["test_n"] for training in result["trainings"] if training["status"] == "finished")
    return [
        f"Accuracy {accuracy['mean']:.2%}: the mean of {accuracy['n']} trainings ({result['scheme_in_words']}; "
        f"{n:,} held-out answers), standard deviation {accuracy['standard_deviation']:.2%}, 95% interval of the mean "
        f"{low:.2%} to {high:.2%}, corrected for overlapping training parts; always guessing the commonest class: "
        f"{majority['mean']:.2%}",
        f"Report: {Path(result['folder']) / REPORT_FILE}",
    ]
