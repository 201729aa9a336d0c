"""The search itself: trials through an executor until the budget is used up or somebody interrupts."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from netloom.data.splits import Split
from netloom.errors import RunError, TrainingError
from netloom.parallel.tasks import Interruption, Task
from netloom.progress import Reporter
from netloom.recipe import Recipe
from netloom.tuning.driver import Driver, TrialEnd, Watcher
from netloom.tuning.patience import StorageLostError
from netloom.tuning.study import Proposal, SearchStudy
from netloom.workflows.builders import CustomModel
from netloom.workflows.interruption import how_to_go_on, listening, quoted
from netloom.workflows.study_manifest import StudyManifest
from netloom.workflows.study_pictures import StudyPictures
from netloom.workflows.study_views import HParamsLog, Watchers
from netloom.workflows.trainings import InterruptedTrainingsError, executor_for, name_for_workers, plan_of_each
from netloom.workflows.trial_folder import forgive_beginnings, remove_checkpoints, trial_name
from netloom.workflows.trial_table import TrialTable
from netloom.workflows.trial_task import TrialResources, plain_resources, run_trial, set_up

TRIALS_FOLDER = "trials"


class HopelessSearchError(TrainingError):
    """Trials failed one like the other, so that the search was ended; it can be gone on with."""


@dataclass(frozen=True)
class Cluster:
    """Where trials are done, if not here.

    Attributes:
        address: As `RayExecutor` takes it.
        most: Trials at once; 0 for as many as there is room for.
    """

    address: str
    most: int


@dataclass(eq=False)
class Search:
    """A study in hand: what one call of `tune` or `resume_tune` works with.

    Attributes:
        folder: Of the study.
        manifest: What it is, and how far.
        study: Asked and told; open.
        pictures: Of trials and winner.
        splits: On what each trial is trained and scored: one, or one for each fold.
        recipe: What the trials change.
        model: The function making the network, where it is the user's own.
        jobs: Trials at once in this machine.
        reporter: Tells a person how it goes.
        cluster: Where trials are done; None for here.
        asked_jobs: Trials at once, where a user said how many.
    """

    folder: Path
    manifest: StudyManifest
    study: SearchStudy
    pictures: StudyPictures
    splits: Sequence[Split]
    recipe: Recipe
    model: CustomModel | None
    jobs: int
    reporter: Reporter
    cluster: Cluster | None
    asked_jobs: int | None

    def how_to_go_on(self, *, final_on: str | None = None) -> str:
        """What to type, or to call, after an interruption; `final_on` where another choice of it is needed."""
        storage = self.manifest.storage
        on_a_server = storage is not None and not storage.startswith("sqlite")
        # Whose URL has a password as a rule, which is not written down.
        more: dict[str, Any] = {
            "storage": "URL" if on_a_server else None,
            "ray": None if self.cluster is None else self.cluster.address,
            "jobs": self.asked_jobs,
            "final-on": final_on,
        }
        options = "".join(
            f" --{name} {value if value == 'URL' else quoted(value)}" for name, value in more.items() if value
        )
        arguments = "".join(
            f", {name.replace('-', '_')}={value if value == 'URL' else repr(value)}"
            for name, value in more.items()
            if value
        )
        return how_to_go_on(
            f"netloom tune --resume {quoted(self.folder)}{options}",
            f"netloom.resume_tune({str(self.folder)!r}{arguments}",
            in_memory=not self.pictures.data.facts.source_location,
            model=self.model,
        )

    def note(self, **changes: Any) -> None:
        """Write into the manifest how far the search is."""
        self.manifest = replace(self.manifest, **changes)
        self.manifest.write(self.folder)

    def run(self) -> None:
        """Do trials until there are as many as were asked for, or the time is up.

        Raises:
            InterruptedTrainingsError: Ctrl-C or SIGTERM; trials that ran are gone on with by the next call.
            HopelessSearchError: Many trials failed for one reason.
            RunError: A shared database was away for too long.
            NetloomError: The workers cannot be started.
        """
        n = self.manifest.n_trials
        if n is not None and self.study.n_asked() >= n and not self._any_open():
            return
        before, started = self._seconds_before(), time.perf_counter()
        folders = _TrialFolders(self.folder / TRIALS_FOLDER)
        try:
            with listening() as interruption, self.study.heeding(interruption):
                self._drive(before, interruption, folders)
        except StorageLostError as error:
            if (reason := interruption()) is not None:
                raise InterruptedTrainingsError(
                    f"{_as_a_beginning(reason)} while the study's database was out of reach. Go on with: "
                    f"{self.how_to_go_on()}",
                    reason,
                ) from error
            raise RunError(f"{error} Go on with: {self.how_to_go_on()}") from error
        finally:
            folders.forgive()
            self.note(seconds=before + time.perf_counter() - started)

    def _seconds_before(self) -> float:
        """What the search has taken in earlier processes, of which a killed one could not write it down."""
        ends = [r.finished_after for r in self.study.records() if r.finished_after is not None]
        return self.manifest.seconds if self._is_shared else max([self.manifest.seconds, *ends])

    @property
    def _is_shared(self) -> bool:
        """Other drivers may be at work: the study's time is then that of the clock on the wall."""
        return self.manifest.driver is not None

    def _any_open(self) -> bool:
        return any(record.state == "running" for record in self.study.records())

    def _drive(self, seconds_before: float, interruption: Interruption, folders: _TrialFolders) -> None:
        resources = TrialResources(
            [kind for kind, _ in self.pictures.kinds], self.recipe, self.splits, self.manifest.objective, self.model
        )
        with (
            self.reporter.bars() as bars,
            executor_for(
                self.pictures.image_sets(),
                jobs=self.jobs if self.cluster is None else self.cluster.most,
                plan=self.manifest.plan,
                here=resources,
                setup=set_up,
                arguments={
                    "model": name_for_workers(self.model, 2 if self.cluster else self.jobs),
                    **plain_resources(resources),
                },
                cluster=None if self.cluster is None else self.cluster.address,
                reporter=self.reporter,
            ) as executor,
        ):
            table = TrialTable(
                self.reporter,
                bars,
                keys=[d.key for d in self.manifest.space],
                direction=self.manifest.direction,
                n_trials=self.manifest.n_trials,
                seconds=self.manifest.time_limit,
                earlier=self.study.records(),
                n_ended=self.study.n_ended(),
            )
            watchers: list[Watcher] = [table, folders]
            if self.recipe.tensorboard:
                by_fold = self.manifest.cv is not None
                watchers.append(HParamsLog(self.folder / "tensorboard", self.manifest.objective, by_fold=by_fold))
            driver = Driver(
                study=self.study,
                executor=executor,
                task_for=self._task,
                n_trials=self.manifest.n_trials,
                seconds=self.manifest.time_limit,
                seconds_before=None if self._is_shared else seconds_before,
                pruning=self.manifest.pruner != "none",
                at_once=self.cluster is not None or self.jobs > 1,
                # A grid may well begin with the row of combinations that cannot be.
                gives_up=self.manifest.sampler != "grid",
                watcher=Watchers(*watchers),
            )
            try:
                driver.run(interruption=interruption)
            finally:
                self.note(jobs=driver.ran_at_once or self.manifest.jobs)
            if (reason := interruption()) is not None:
                raise InterruptedTrainingsError(
                    f"{_as_a_beginning(reason)} after {table.n_ended} trials. Go on with: {self.how_to_go_on()}",
                    reason,
                )
            if driver.gave_up:
                raise HopelessSearchError(
                    f"{driver.gave_up.rstrip('.')}. The search has ended early. Go on with it when that is mended: "
                    f"{self.how_to_go_on()}"
                )

    def _task(self, proposal: Proposal) -> Task:
        name, alone = trial_name(proposal.number), self.cluster is None and self.jobs == 1
        arguments = {
            "overrides": dict(proposal.overrides),
            "plan": plan_of_each(self.manifest.plan, alone=alone).to_json(),
            "folder": str((self.folder / TRIALS_FOLDER / name).resolve()),
            "alone": alone,
        }
        return Task(name, run_trial, arguments)


def _as_a_beginning(reason: str) -> str:
    return f"{reason[0].upper()}{reason[1:]}"


class _TrialFolders(Watcher):
    """Keeps what trials leave for going on as long as they may go on.

    Args:
        folder: Of all trials.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._open: set[int] = set()

    def started(self, proposal: Proposal) -> None:
        """Note that it has no end yet."""
        self._open.add(proposal.number)

    def ended(self, end: TrialEnd) -> None:
        """Remove the checkpoints of a trial that was pruned or failed."""
        self._open.discard(end.number)
        if end.state != "complete":
            remove_checkpoints(self._folder / trial_name(end.number))

    def forgive(self) -> None:
        """Tell the trials without an end that it was not one of them that ended this process."""
        for number in self._open:
            forgive_beginnings(self._folder / trial_name(number))
