"""A folder of trainings that belong together: set up as a whole, trained many at once, gone on with after a crash."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from netloom.data.imageset import ImageSet
from netloom.data.splits import Split
from netloom.errors import NetloomError, RunError
from netloom.files import read_json, safe_name, write_json
from netloom.parallel.planning import parse_jobs
from netloom.progress import Reporter
from netloom.recipe import Recipe
from netloom.run import RunFolder
from netloom.run_facts import DataFacts
from netloom.runtime import ExecutionPlan, environment_record, keep_freed_memory
from netloom.workflows import builders
from netloom.workflows.builders import CustomModel
from netloom.workflows.checked_network import checked_network
from netloom.workflows.interruption import how_to_go_on, quoted
from netloom.workflows.prepare import PreparedData, reopen_data
from netloom.workflows.runs import Run
from netloom.workflows.shared_features import cache_features
from netloom.workflows.trainings import (
    create_run,
    describe_plan,
    jobs_for_model,
    plan_trainings,
    run_trainings,
)

_MANIFEST = "trainings.json"
# A cross-validation draws from all that is no test part of the source; fresh folds from what a search did not test on.
Kind = Literal["cross-validation", "seeds", "fresh folds"]


@dataclass(frozen=True)
class Member:
    """One training of a job.

    Attributes:
        name: Of its run's folder.
        recipe: What is trained.
        split: On which pictures.
        about: Plain values that the manifest keeps, such as the fold's number.
    """

    name: str
    recipe: Recipe
    split: Split
    about: Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class TrainingJob:
    """Trainings on one set of pictures under one execution plan.

    Attributes:
        path: Their folder.
        runs: Set up, in the order of the manifest.
        about: The manifest's plain values of each.
        details: The manifest's plain values of the whole.
        plan: How every training is executed.
        jobs: Trainings at once.
        image_set: The pictures of all splits.
        pixels_file: The file that its pixels are mapped from, if any.
        model: The function making the network, where it is the user's own.
    """

    path: Path
    runs: Sequence[Run]
    about: Sequence[Mapping[str, Any]]
    details: Mapping[str, Any]
    plan: ExecutionPlan
    jobs: int
    image_set: ImageSet
    pixels_file: Path | None
    model: CustomModel | None

    def how_to_go_on(self, command: str, function: str) -> str:
        """What to do after an interruption: `command` with `--resume`, or a call where that takes what no shell has."""
        return how_to_go_on(
            f"{command} --resume {quoted(self.path)}",
            f"{function}({str(self.path)!r}",
            in_memory=not self.runs[0].data.source_location,
            model=self.model,
        )

    def train(self, reporter: Reporter, *, go_on_with: str) -> dict[str, str]:
        """Bring every run to its end; why each of those failed that did, by name. See `run_trainings`."""
        if all(run.is_complete for run in self.runs):
            return {}
        before, started = self.seconds, time.perf_counter()

        def note_seconds() -> None:
            with contextlib.suppress(NetloomError):  # a full disk, say: the trainings are worth more than this figure
                manifest = {**self.details, "seconds": before + time.perf_counter() - started}
                write_json(self.path / _MANIFEST, manifest)

        try:
            return run_trainings(
                self.runs,
                image_set=self.image_set,
                pixels_file=self.pixels_file,
                plan=self.plan,
                jobs=self.jobs,
                reporter=reporter,
                model=self.model,
                go_on_with=go_on_with,
                on_end=note_seconds,
            )
        finally:
            note_seconds()

    @property
    def seconds(self) -> float:
        """What the trainings have taken together, in earlier processes too, pauses between these left out.

        Of one that was killed, until the last training that ended there.
        """
        seconds = read_json(self.path / _MANIFEST).get("seconds", 0.0)
        if not isinstance(seconds, int | float) or not 0 <= seconds < math.inf:
            raise damaged_manifest(self.path, f"seconds is {seconds!r}")
        return float(seconds)


def start_job(
    kind: Kind,
    members: Sequence[Member],
    data: PreparedData,
    *,
    out: str | Path,
    name: str,
    details: Mapping[str, Any],
    jobs: int | None,
    device: str,
    plan: ExecutionPlan | None,
    model: CustomModel | None,
    reporter: Reporter,
) -> TrainingJob:
    """Measure the execution plan, and set up the folder with all runs.

    The manifest is written last: a folder that has one is complete, and `resume_job` can go on with it.

    Args:
        kind: What the job is.
        members: Its trainings.
        data: The pictures, with the split and the facts of the first member.
        out: Folder in which the job's folder is made.
        name: Of the job, after the time.
        details: Plain values for the manifest.
        jobs: Trainings at once; None to decide.
        device: A torch device name.
        plan: Of every training; None to measure.
        model: The function making the network, where it is the user's own.
        reporter: Tells a person how it goes.

    Raises:
        NetloomError: The model does not fit the pictures, or the folder cannot be written.
    """
    keep_freed_memory()
    first, image_set, facts = members[0], data.image_set, data.facts
    network, heads = checked_network(first.recipe, data, model)
    plan, jobs = plan_trainings(
        first.recipe,
        data,
        network,
        heads,
        n_trainings=len(members),
        jobs=jobs,
        device=device,
        plan=plan,
        model=model,
        reporter=reporter,
    )
    reporter.say(describe_plan(first.recipe, network, plan, jobs))
    splits = [member.split for member in members]
    cache_features(first.recipe, network, heads, image_set, splits, plan=plan, reporter=reporter)
    folder = RunFolder.create(out, name).path
    environment = environment_record()
    runs = [
        create_run(
            folder / member.name,
            member.recipe,
            replace(data, split=member.split, facts=_facts_of(member, first, facts, image_set)),
            environment,
            model,
        )
        for member in members
    ]
    manifest = {
        "kind": kind,
        "plan": plan.to_json(),
        "trainings": [{"name": member.name, **member.about} for member in members],
        **details,
    }
    write_json(folder / _MANIFEST, manifest)
    return TrainingJob(folder, runs, manifest["trainings"], manifest, plan, jobs, image_set, data.pixels_file, model)


def _facts_of(member: Member, first: Member, facts: DataFacts, image_set: ImageSet) -> DataFacts:
    """The facts with the input scaling of this member's own training part."""
    if member.split is first.split:
        return facts
    scaling = builders.build_scaling(member.recipe, image_set.images, member.split.train)
    return replace(facts, mean=scaling.mean, std=scaling.std)


def damaged_manifest(folder: Path, why: str) -> RunError:
    """The error that says so."""
    return RunError(f"{folder / _MANIFEST} is damaged ({why}). Take it from a backup, or start anew.")


def is_job(path: str | Path, kind: Kind) -> bool:
    """Whether a folder holds a job of that kind."""
    return job_manifest(path, kind) is not None


def job_manifest(path: str | Path, kind: Kind) -> dict[str, Any] | None:
    """The manifest of a job, as it was written; None where the folder holds no job of that kind."""
    try:
        manifest = read_json(Path(path) / _MANIFEST)
    except NetloomError:
        return None
    return manifest if isinstance(manifest, dict) and manifest.get("kind") == kind else None


def resume_job(
    path: str | Path,
    kind: Kind,
    *,
    source: ImageSet | None,
    jobs: int | str,
    model: CustomModel | None,
    reporter: Reporter,
) -> TrainingJob:
    """Open a job to go on with it, under the plan it was started with.

    Args:
        path: Its folder.
        kind: What it must be.
        source: The pictures, where the job was started on pictures in memory.
        jobs: Trainings at once; it changes no result.
        model: The function making the network, where it is the user's own.
        reporter: Tells a person how it goes.

    Raises:
        RunError: There is no such job, it is damaged, or its pictures have changed.
    """
    keep_freed_memory()
    folder = Path(path)
    if not (folder / _MANIFEST).is_file():
        raise RunError(
            f"{folder} is no folder of a {kind} that can be gone on with: it has no {_MANIFEST}. Give the folder that "
            "was made, or start anew."
        )
    manifest = read_json(folder / _MANIFEST)
    try:
        if manifest["kind"] != kind:
            raise RunError(f"{folder} holds {manifest['kind']} trainings, not a {kind}.")
        plan = ExecutionPlan.from_json(manifest["plan"])
        about = [dict(training) for training in manifest["trainings"]]
        names = [str(training["name"]) for training in about]
    except (KeyError, TypeError, ValueError) as error:
        raise damaged_manifest(folder, f"{type(error).__name__}: {error}") from error
    if not names or any(not name or safe_name(name) != name for name in names):
        raise damaged_manifest(folder, "it names no trainings, or some outside of the folder")
    runs = [Run(RunFolder.open(folder / name).path, model=model) for name in names]
    data = reopen_data(runs[0], source, reporter)
    left = sum(run.result["status"] != "finished" for run in runs)
    reporter.say(f"{len(runs) - left} of {len(runs)} trainings are finished; going on with the others")
    recipe = runs[0].recipe
    network, heads = builders.build_network(recipe, data.facts, model)
    plan, at_once = plan_trainings(
        recipe,
        data,
        network,
        heads,
        n_trainings=max(1, left),
        jobs=jobs_for_model(model, parse_jobs(jobs), reporter),
        device=plan.device,
        plan=plan,
        model=model,
        reporter=reporter,
    )
    return TrainingJob(folder, runs, about, manifest, plan, at_once, data.image_set, data.pixels_file, model)
