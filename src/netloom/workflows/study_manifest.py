"""What the folder of a study holds beside its trials: the manifest, and the way to the database."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any

from optuna.storages import BaseStorage

from netloom.errors import NetloomError, RecipeError, RunError
from netloom.files import read_json, write_json
from netloom.recipe import Recipe
from netloom.runtime import ExecutionPlan
from netloom.tuning.samplers import check_names, create_pruner, create_sampler
from netloom.tuning.space import Dimension
from netloom.tuning.storage import close_storage, open_own, open_storage
from netloom.tuning.study import Direction, SearchStudy
from netloom.workflows.prepare import PreparedData
from netloom.workflows.search_options import DEFAULT_FINAL_PART, OBJECTIVES, FinalPart, Objective, checked_final_part

_MANIFEST = "study.json"
DATABASE = "study.db"


_PLAIN: Mapping[str, tuple[tuple[type, ...], int | None]] = {
    "study": ((str,), None),
    "storage": ((str, NoneType), None),
    "driver": ((str, NoneType), None),
    "init_points": ((int,), 1),
    "n_trials": ((int, NoneType), 1),
    "time_limit": ((int, float, NoneType), 0),
    "cv": ((int, NoneType), 2),
    "final_seeds": ((int,), 0),
    "searched": ((bool,), None),
    "seconds": ((int, float), 0),
    "final_on": ((str,), None),
    "jobs": ((int,), 1),
}
"""The types and least values of what is plain in the manifest."""


@dataclass(frozen=True)
class StudyManifest:
    """What a study's folder says of it, so that it can be gone on with.

    Attributes:
        study: Its name in the database.
        storage: URL of a shared database, without its password; None for a file in the folder.
        driver: A name of this driver, where the database is shared.
        space: Arranged.
        sampler: As `create_sampler` takes it.
        pruner: As `create_pruner` takes it.
        init_points: Random trials before a model of the earlier ones proposes.
        n_trials: This driver's, in all; None where only time limits them.
        time_limit: Seconds of search.
        objective: What a trial's value is.
        cv: Folds that score a trial; None for the validation part.
        final_seeds: Trainings of the winner.
        plan: How every trial is executed.
        final_on: What they are trained on.
        searched: The search has ended by its number of trials or its time, so that the winner's trainings are next.
        seconds: That it has taken so far, without pauses between two processes.
        jobs: Trials that ran at once in the latest of them, see `Driver.ran_at_once`.
    """

    study: str
    storage: str | None
    driver: str | None
    space: tuple[Dimension, ...]
    sampler: str
    pruner: str
    init_points: int
    n_trials: int | None
    time_limit: float | None
    objective: Objective
    cv: int | None
    final_seeds: int
    plan: ExecutionPlan
    searched: bool = False
    seconds: float = 0.0
    final_on: FinalPart = DEFAULT_FINAL_PART
    jobs: int = 1

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        values = {**vars(self), "space": [d.to_json() for d in self.space], "plan": self.plan.to_json()}
        return {"kind": "study", **values}

    @classmethod
    def read(cls, folder: Path) -> StudyManifest:
        """That of a folder.

        Raises:
            RunError: It has none, or a damaged one.
        """
        if not (folder / _MANIFEST).is_file():
            raise RunError(
                f"{folder} is no study that can be gone on with: it has no {_MANIFEST}. Give the folder that tune made."
            )
        try:
            value = dict(read_json(folder / _MANIFEST))
            if value.pop("kind") != "study":
                raise ValueError("it is of another kind")
            value["space"] = tuple(map(Dimension.from_json, value["space"]))
            value["plan"] = ExecutionPlan.from_json(value["plan"])
            for key, (types, least) in _PLAIN.items():
                if not isinstance(value[key], types) or (least is not None and (value[key] or least) < least):
                    raise ValueError(f"{key} is {value[key]!r}")
            manifest = cls(**value)
            check_names(manifest.sampler, manifest.pruner)
            checked_final_part(manifest.final_on)
            if manifest.objective not in OBJECTIVES:
                raise ValueError(f"objective is {manifest.objective!r}")
            return manifest
        except (AttributeError, KeyError, TypeError, ValueError, RecipeError) as error:
            raise RunError(
                f"{folder / _MANIFEST} is damaged ({type(error).__name__}: {error}). Take it from a backup, or start "
                "anew."
            ) from error

    def write(self, folder: Path) -> None:
        """Write it; a folder that has one can be gone on with."""
        write_json(folder / _MANIFEST, self.to_json())

    @property
    def direction(self) -> Direction:
        """Of the value."""
        return OBJECTIVES[self.objective]


def create_study(
    folder: Path,
    manifest: StudyManifest,
    recipe: Recipe,
    data: PreparedData,
    storage: str | None,
    *,
    say: Callable[[str], None],
) -> tuple[SearchStudy, bool]:
    """Make the study in its database, or join it there; whether it was made is the second value.

    Args:
        folder: Of the study.
        manifest: What it is.
        recipe: What its trials change.
        data: The pictures.
        storage: URL of a shared database, with its password.
        say: Tells a person of waits for it.

    Raises:
        NetloomError: The database cannot be used, or holds another study of this name.
    """
    opened = open_own(folder / DATABASE) if storage is None else open_storage(storage, shared=True)
    with _closed_in_case_of_error(opened):
        return _create(opened, manifest, recipe, data, say)


def _create(
    opened: BaseStorage, manifest: StudyManifest, recipe: Recipe, data: PreparedData, say: Callable[[str], None]
) -> tuple[SearchStudy, bool]:
    facts = {
        "recipe": recipe.to_mapping(),
        "pictures": data.facts.fingerprint,
        "objective": manifest.objective,
        "cv": manifest.cv,
    }
    return SearchStudy.create(
        opened,
        manifest.study,
        manifest.space,
        direction=manifest.direction,
        sampler=_sampler(manifest, recipe),
        pruner=create_pruner(manifest.pruner, epochs=_reports_per_trial(manifest, recipe)),
        driver=manifest.driver,
        facts=facts,
        say=say,
    )


def open_study(
    folder: Path, manifest: StudyManifest, recipe: Recipe, storage: str | None, *, say: Callable[[str], None]
) -> SearchStudy:
    """Open the study of a folder; the arguments are those of `create_study`.

    Raises:
        NetloomError: The database cannot be used.
        RunError: It, or the study in it, is gone.
    """
    if manifest.storage is None:
        if not (folder / DATABASE).is_file():
            raise RunError(f"{folder} has no {DATABASE}: its trials are lost. Start anew.")
        opened: BaseStorage = open_own(folder / DATABASE)
    else:
        try:
            opened = open_storage(storage or manifest.storage, shared=True)
        except NetloomError as error:
            if storage is not None:
                raise
            raise RunError(
                f"{error} If it needs a password, give its URL with --storage: the study's folder holds none."
            ) from error
    with _closed_in_case_of_error(opened):
        return SearchStudy.open(
            opened,
            manifest.study,
            manifest.space,
            sampler=_sampler(manifest, recipe),
            pruner=create_pruner(manifest.pruner, epochs=_reports_per_trial(manifest, recipe)),
            driver=manifest.driver,
            say=say,
        )


@contextlib.contextmanager
def _closed_in_case_of_error(storage: BaseStorage) -> Iterator[None]:
    try:
        yield
    except BaseException:
        close_storage(storage)
        raise


def _sampler(manifest: StudyManifest, recipe: Recipe) -> Any:
    return create_sampler(
        manifest.sampler,
        manifest.space,
        seed=recipe.seed,
        init_points=manifest.init_points,
        n_trials=manifest.n_trials,
    )


def _reports_per_trial(manifest: StudyManifest, recipe: Recipe) -> int:
    if manifest.cv is not None:
        return manifest.cv
    searched = next((d for d in manifest.space if d.key == "epochs"), None)
    if searched is None:
        return recipe.epochs
    return int(max(searched.choices) if searched.kind == "choice" else searched.high)
