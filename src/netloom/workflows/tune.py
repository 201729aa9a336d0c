"""Search over a recipe's keys: many trials at once, the winner trained anew and tested once."""

from __future__ import annotations

import contextlib
import operator
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from netloom.data.folds import Scheme, make_folds
from netloom.data.imageset import ImageSet
from netloom.data.splits import Split
from netloom.errors import RecipeError, RunError, TrainingError
from netloom.files import read_json, write_atomically, write_json, writing
from netloom.parallel.planning import parse_jobs
from netloom.parallel.tasks import Task
from netloom.progress import Reporter
from netloom.recipe import Recipe, load_recipe
from netloom.run import RunFolder
from netloom.runtime import ExecutionPlan, environment_record, keep_freed_memory, resolve_device
from netloom.tuning.driver import Driver, TrialEnd, Watcher
from netloom.tuning.samplers import check_names, create_sampler, grid_size, is_in_grid, resolve_pruner
from netloom.tuning.samplers import resolve_sampler as sampler_for
from netloom.tuning.space import Dimension
from netloom.tuning.storage import without_password
from netloom.tuning.study import Proposal, SearchStudy, TrialRecord, best_of
from netloom.workflows import build
from netloom.workflows.build import CustomModel
from netloom.workflows.feature_fitting import cache_features
from netloom.workflows.interruption import listening
from netloom.workflows.prepare import PreparedData, prepare_data, reopen_data
from netloom.workflows.runs import Run, load
from netloom.workflows.spaces import DEFAULT_SPACE, SpaceLike, space_for
from netloom.workflows.starting_weights import initialize_from_weights
from netloom.workflows.study import Study
from netloom.workflows.study_manifest import OBJECTIVES, StudyManifest, create_study, open_study
from netloom.workflows.study_pictures import StudyPictures, study_pictures
from netloom.workflows.study_result import REPORT_FILE, RESULT_FILE, describe_result, study_result, values_of
from netloom.workflows.study_views import HParamsLog, Watchers
from netloom.workflows.train import recipe_for
from netloom.workflows.training_job import Member, is_job, resume_job, start_job
from netloom.workflows.trainings import (
    InterruptedTrainingsError,
    describe_plan,
    executor_for,
    jobs_for_model,
    name_for_workers,
    plan_trainings,
)
from netloom.workflows.trial_table import TrialTable
from netloom.workflows.trial_task import (
    TrialResources,
    plain_resources,
    remove_checkpoints,
    run_trial,
    set_up,
    trial_name,
)

BEST_RECIPE_FILE = "best.yaml"
DEFAULT_TRIALS = 50
DEFAULT_FINAL_SEEDS = 3

_TRIALS = "trials"
_FINAL = "final"
_FIRST_FROM_EARLIER = 5
_LEAST = {"n_trials": 1, "init_points": 1, "cv": 2, "final_seeds": 0}
_SHOWN = {"n_trials": "--trials", "init_points": "--init-points", "cv": "--cv", "final_seeds": "--final-seeds"}
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def tune(
    source: str | Path | ImageSet,
    recipe: str | Path | Recipe | None = None,
    *,
    space: SpaceLike | None = None,
    sampler: str = "auto",
    pruner: str = "auto",
    n_trials: int | None = None,
    time_limit: float | str | None = None,
    init_points: int | None = None,
    objective: str = "validation_accuracy",
    cv: int | None = None,
    final_seeds: int = DEFAULT_FINAL_SEEDS,
    warm_start: Sequence[str | Path] = (),
    storage: str | None = None,
    jobs: int | str = "auto",
    ray: str | None = None,
    model: CustomModel | str | None = None,
    out: str | Path = "runs",
    name: str | None = None,
    device: str = "auto",
    quiet: bool = False,
    plan: ExecutionPlan | None = None,
    settings: Mapping[str, Any] | None = None,
    **overrides: Any,
) -> Study:
    """Search for the values of recipe keys with which a training scores best.

    The search sees the training and validation parts alone. The recipe's own values are the first trial, if they are
    in the space. The winner is trained anew with seeds that the search has not seen, which tells how much of its score
    was luck, and each of those trainings is tested once.

    Args:
        source: As for `train`.
        recipe: As for `train`; what it says and the space does not holds in every trial.
        space: By key: a range `"0.1..0.5"`, `"1e-4..1e-2:log"`, choices `"adam,sgd"` or a list, any of them only under
            a condition, `"0.8..0.99 if optimizer=sgd"`; or the name of a shipped space (`default`, `small-data`,
            `architecture`), a YAML file, or a sequence of all these. See docs/tuning.md.
        sampler: `gp`, `tpe`, `random`, `grid`, `qmc`, `cmaes` or `evolution`; `auto` takes Gaussian processes, or TPE
            where the space has conditions.
        pruner: `none`, `median`, `asha` or `hyperband`: ends trials early that promise little; `auto` takes the median,
            or none where `epochs` is searched over, since it would end the longer trials.
        n_trials: In all; without it 50, or with a grid all combinations, or with a time limit as many as it allows.
        time_limit: Seconds, or a text such as `10m` or `1h30m`, for the search itself.
        init_points: Random trials before a model of the earlier ones proposes.
        objective: `validation_accuracy` or `validation_loss`, of the weights that a training keeps.
        cv: Score each trial by so many folds of what is not test, instead of by the validation part.
        final_seeds: Trainings of the winner; 0 for none, and no test.
        warm_start: Folders of earlier studies, whose best values are tried first.
        storage: URL of a database that several drivers share under one `name`; a file in the study's folder without it.
        jobs: Trials at once; `auto` measures with which number and threads they end the soonest.
        ray: Have the trials done on a Ray cluster: `auto`, or the address of its head. `jobs` is then the most of them
            at once, `auto` as many as it has room for.
        model: As for `cross_validate`.
        out: Folder in which the study's folder is made.
        name: Of the study.
        device: As for `train`.
        quiet: As for `train`.
        plan: Of every trial, as for `train`; without it one is measured and used by all.
        settings: Recipe keys to change, dotted ones too.
        **overrides: Recipe keys to change.

    Raises:
        NetloomError: Of the fitting kind; the message says what to do.
        InterruptedTrainingsError: Ctrl-C or SIGTERM; `resume_tune` goes on.
    """
    reporter = Reporter(quiet=quiet)
    keep_freed_memory()
    if isinstance(model, str):
        overrides, model = {**overrides, "model": model}, None
    check_names(sampler, pruner)
    n_trials, init_points = _whole("n_trials", n_trials), _whole("init_points", init_points)
    cv, final_seeds = _whole("cv", cv), _whole("final_seeds", final_seeds) or 0
    if objective not in OBJECTIVES:
        raise RecipeError(f"There is no objective {objective!r}; there are {' and '.join(OBJECTIVES)}.")
    limit = parse_duration(time_limit)
    at_once = jobs_for_model(model, parse_jobs(jobs), reporter)
    chosen = recipe_for(source, recipe, {**(settings or {}), **overrides}, model)
    dimensions = space_for(DEFAULT_SPACE if space is None else space, chosen)
    sampler, pruner = sampler_for(sampler, dimensions, n_trials), resolve_pruner(pruner, dimensions)
    create_sampler(sampler, dimensions, seed=0, init_points=1, n_trials=n_trials)  # tells what it is not for
    if n_trials is None and sampler == "grid":
        n_trials = grid_size(dimensions)
    elif n_trials is None and limit is None:
        n_trials = DEFAULT_TRIALS
    device = resolve_device(device if plan is None else plan.device)
    build.check_extras(chosen)
    earlier = [_best_of_earlier(folder, dimensions) for folder in warm_start]
    data = prepare_data(source, chosen, reporter)
    chosen = chosen.replace(image_size=list(data.facts.image_size))
    pictures = study_pictures(source, chosen, data, dimensions, reporter)
    splits = _splits(data, chosen, cv)
    network, heads = _network(chosen, data, model)
    plan, n_jobs = plan_trainings(
        chosen, data, network, heads, n_trainings=n_trials or 10**6, jobs=at_once, device=device, plan=plan
    )
    reporter.say(describe_plan(chosen, network, plan, n_jobs).replace("training", "trial"))
    for kind, _ in pictures.kinds:
        changed = load_recipe(chosen, kind.settings)
        cache_features(changed, network, heads, kind.image_set, splits, plan=plan, reporter=reporter)
    cluster = _cluster(ray, at_once, reporter)
    folder = RunFolder.create(out, f"{name or data.facts.source_name}-study")
    manifest = StudyManifest(
        study=name or folder.name,
        storage=None if storage is None else without_password(storage),
        driver=None if storage is None else f"{folder.name}-{time.time_ns():x}",
        space=dimensions,
        sampler=sampler,
        pruner=pruner,
        init_points=init_points if init_points is not None else max(n_jobs, min(10, (n_trials or 40) // 4), 2),
        n_trials=n_trials,
        time_limit=limit,
        objective="validation_loss" if objective == "validation_loss" else "validation_accuracy",
        cv=cv,
        final_seeds=final_seeds,
        plan=plan,
    )
    folder.write_setup(
        recipe=chosen,
        split=data.split.to_json(data.image_set.ids),
        data=data.facts,
        environment=environment_record(),
    )
    with writing(folder.path / _TRIALS, "Choose another folder with --out."):
        (folder.path / _TRIALS).mkdir()
    for dimension in dimensions:
        reporter.say(f"  {dimension}")
    try:
        study, is_new = create_study(folder.path, manifest, chosen, data, storage)
    except BaseException:
        _remove_begun(folder.path)
        raise
    with contextlib.closing(study):
        if is_new:
            _enqueue_first(study, sampler, dimensions, values_of(chosen, dimensions), earlier, reporter)
        manifest.write(folder.path)
        search = _Search(folder, manifest, study, pictures, splits, chosen, model, n_jobs, reporter, cluster)
        return search.run(time_limit=limit)


def _enqueue_first(
    study: SearchStudy,
    sampler: str,
    dimensions: Sequence[Dimension],
    of_recipe: Mapping[str, Any],
    earlier: Sequence[Sequence[tuple[str, Mapping[str, Any]]]],
    reporter: Reporter,
) -> None:
    """Have the recipe itself tried first, and what was best in earlier studies; say what cannot be."""
    in_place = sampler != "grid" or is_in_grid(of_recipe, dimensions)
    why_not = study.enqueue(of_recipe, "recipe") if in_place else "it is none of the grid's combinations"
    if why_not is not None:
        reporter.say(f"  note: the recipe itself is not among the trials: {why_not}")
    for found in earlier:
        refused = [why for origin, values in found if (why := study.enqueue(values, origin)) is not None]
        if refused:
            reporter.say(f"  note: {len(refused)} of the best trials of {found[0][0]} are not tried: {refused[0]}")


def resume_tune(
    folder: str | Path,
    *,
    source: ImageSet | None = None,
    n_trials: int | None = None,
    time_limit: float | str | None = None,
    storage: str | None = None,
    jobs: int | str = "auto",
    ray: str | None = None,
    model: CustomModel | None = None,
    quiet: bool = False,
) -> Study:
    """Go on with a search that was cut short, or give a finished one more trials.

    Trials that were running go on from their last checkpoints.

    Args:
        folder: The study's.
        source: The pictures, where it was started on pictures in memory.
        n_trials: The new number of trials in all; the old one without it.
        time_limit: For what is left of the search; the old one, from now on, without it.
        storage: The database's URL with its password, where it had one.
        jobs: Trials at once.
        ray: As for `tune`.
        model: The function making the network, where it was started with one.
        quiet: As for `tune`.

    Raises:
        RunError: There is no such study, it is damaged, or its pictures have changed.
    """
    reporter = Reporter(quiet=quiet)
    keep_freed_memory()
    n_trials, limit = _whole("n_trials", n_trials), parse_duration(time_limit)
    at_once = jobs_for_model(model, parse_jobs(jobs), reporter)
    manifest = StudyManifest.read(Path(folder))
    run_folder = RunFolder.open(folder)
    changed = replace(
        manifest,
        n_trials=n_trials or manifest.n_trials,
        time_limit=limit or manifest.time_limit,
        searched=manifest.searched and n_trials is None and limit is None,
    )
    recipe = run_folder.recipe
    data = reopen_data(run_folder, source, reporter)
    pictures = study_pictures(source or data.facts.source_location, recipe, data, manifest.space, reporter)
    splits = _splits(data, recipe, changed.cv)
    network, heads = _network(recipe, data, model)
    cluster = _cluster(ray, at_once, reporter)
    with contextlib.closing(open_study(run_folder.path, changed, recipe, storage)) as study:
        _, n_jobs = plan_trainings(
            recipe,
            data,
            network,
            heads,
            n_trainings=max(1, (changed.n_trials or 10**6) - study.n_ended()),
            jobs=at_once,
            device=manifest.plan.device,
            plan=manifest.plan,
        )
        if changed != manifest:
            changed.write(run_folder.path)
        search = _Search(run_folder, changed, study, pictures, splits, recipe, model, n_jobs, reporter, cluster)
        return search.run(time_limit=changed.time_limit)


def parse_duration(value: float | str | None) -> float | None:
    """Seconds, of a number or a text such as `90s`, `10m`, `1h30m`; a bare number in a text counts minutes.

    Raises:
        RecipeError: It is no positive duration.
    """
    if value is None:
        return None
    text = str(value).strip().lower()
    seconds = 0.0
    if isinstance(value, int | float) and not isinstance(value, bool):
        seconds = float(value)
    elif re.fullmatch(r"\d+(\.\d*)?", text):
        seconds = 60 * float(text)
    elif re.fullmatch(r"(\d+(\.\d*)?[smhd]\s*)+", text):
        seconds = sum(float(n) * _UNITS[unit] for n, _, unit in re.findall(r"(\d+(\.\d*)?)([smhd])", text))
    if not 0 < seconds < float("inf"):
        raise RecipeError(f"The time limit {value!r} is no duration; write 90s, 10m or 1h30m.")
    return seconds


def _whole(what: str, number: int | None) -> int | None:
    """The number as a plain one.

    Raises:
        RecipeError: It is no whole number, or too small.
    """
    if number is None:
        return None
    try:
        plain = operator.index(number)
    except TypeError:
        plain = -1
    if isinstance(number, bool) or plain < _LEAST[what]:
        raise RecipeError(f"{_SHOWN[what]} must be a whole number of at least {_LEAST[what]}, not {number!r}.")
    return plain


def _network(recipe: Recipe, data: PreparedData, model: CustomModel | None) -> Any:
    heads = build.build_heads(recipe, data.facts.class_names)
    build.sample_weights(recipe, data.image_set, data.split.train)
    network = build.build_model(
        recipe,
        in_channels=data.facts.channels,
        num_outputs=heads[0].num_outputs,
        image_size=data.facts.image_size,
        custom=model,
    )
    initialize_from_weights(recipe, network)  # weights that do not fit are told before a study is made
    return network, heads


def _splits(data: PreparedData, recipe: Recipe, cv: int | None) -> list[Split]:
    """On what each trial is trained and scored: the split itself, or folds of all of it that is not test."""
    if cv is None:
        return [data.split]
    parts: list[str | None] = [None] * len(data.image_set)
    for index in data.split.test:
        parts[index] = "test"
    image_set = data.image_set
    folds = make_folds(
        Scheme(cv),
        targets=image_set.targets.numpy(),
        parts=parts,
        groups=image_set.groups,
        content_hashes=image_set.content_hashes,
        class_names=image_set.class_names,
        validation_fraction=recipe.validation_fraction,
        seed=recipe.split_seed,
    )
    return [fold.split for fold in folds]


def _best_of_earlier(folder: str | Path, dimensions: Sequence[Dimension]) -> list[tuple[str, Mapping[str, Any]]]:
    """The best trials of an earlier study, as far as they say a value for every key of this one.

    Raises:
        RunError: It is no finished study.
    """
    path = Path(folder) / RESULT_FILE
    if not path.is_file():
        raise RunError(f"{folder} is no finished study: it has no {RESULT_FILE}. --warm-start takes what tune made.")
    result = read_json(path)
    try:
        sign = 1 if result["direction"] == "maximize" else -1
        complete = [t for t in result["trials"] if t["state"] == "complete"]
        complete.sort(key=lambda t: -sign * t["value"])
        return [(f"study {result['study']}", dict(t["overrides"])) for t in complete[:_FIRST_FROM_EARLIER]]
    except (KeyError, TypeError) as error:
        raise RunError(f"{path} is damaged ({type(error).__name__}: {error}).") from error


def _remove_begun(folder: Path) -> None:
    """Take away the folder of a study that could not be begun."""
    import shutil

    shutil.rmtree(folder, ignore_errors=True)


class _Cleaner(Watcher):
    """Removes the checkpoints of trials that were pruned or failed, and will not go on.

    Args:
        folder: Of all trials.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def ended(self, end: TrialEnd) -> None:
        """Remove what the trial has left for going on."""
        if end.state != "complete":
            remove_checkpoints(self._folder / trial_name(end.number))


@dataclass(frozen=True)
class _Cluster:
    """Where trials are done, if not here.

    Attributes:
        address: As `RayExecutor` takes it.
        most: Trials at once; 0 for as many as there is room for.
    """

    address: str
    most: int


def _cluster(address: str | None, at_once: int | None, reporter: Reporter) -> _Cluster | None:
    if address is None:
        return None
    reporter.say(f"Trials are done on the Ray cluster {address}, the winner is trained here")
    return _Cluster(address, at_once or 0)


class _Search:
    """One call of `tune` or `resume_tune`."""

    def __init__(
        self,
        folder: RunFolder,
        manifest: StudyManifest,
        study: SearchStudy,
        pictures: StudyPictures,
        splits: Sequence[Split],
        recipe: Recipe,
        model: CustomModel | None,
        jobs: int,
        reporter: Reporter,
        cluster: _Cluster | None,
    ) -> None:
        self.path, self.manifest, self.study, self.splits = folder.path, manifest, study, splits
        self.pictures, self.data = pictures, pictures.data
        self.recipe, self.model, self.jobs, self.reporter = recipe, model, jobs, reporter
        self.cluster = cluster
        on_a_server = manifest.storage is not None and not manifest.storage.startswith("sqlite")
        # Whose URL has a password as a rule, which is not written down.
        self.go_on_with = f"netloom tune --resume {self.path}{' --storage URL' if on_a_server else ''}"

    def run(self, *, time_limit: float | None) -> Study:
        """Search, train the winner, report."""
        if not self.manifest.searched:
            started = time.perf_counter()
            try:
                self._search(time_limit)
            finally:
                self._note(seconds=self.manifest.seconds + time.perf_counter() - started)
        records = self.study.records()
        best = best_of(records, self.manifest.direction)
        if best is None:
            self._report(records, None, None, [])
            raise TrainingError(self._why_nothing(records))
        self._note(searched=True)
        best_recipe = load_recipe(self.recipe, best.overrides)
        write_atomically(self.path / BEST_RECIPE_FILE, best_recipe.to_yaml())
        runs = self._final_runs(best_recipe)
        result = self._report(records, best, best_recipe, runs)
        for line in describe_result(result):
            self.reporter.say(line)
        return Study(self.path, best_recipe, runs[0] if runs else None, result)

    def _note(self, **changes: Any) -> None:
        """Write into the manifest how far the search is."""
        self.manifest = replace(self.manifest, **changes)
        self.manifest.write(self.path)

    def _report(
        self,
        records: Sequence[TrialRecord],
        best: TrialRecord | None,
        best_recipe: Recipe | None,
        runs: Sequence[Run],
    ) -> dict[str, Any]:
        """Write figures and page."""
        n = len(self.data.split.validation)
        if self.manifest.cv is not None:
            n = sum(len(split.test) for split in self.splits)
        result = study_result(
            self.path,
            self.manifest,
            self.recipe,
            source=self.data.facts.source_name,
            validation_n=n,
            records=records,
            best=best,
            best_recipe=best_recipe,
            best_recipe_file=self.path / BEST_RECIPE_FILE,
            runs=runs,
            earlier_winners=self._earlier_winners(runs),
            importances=self.study.importances(),
            seconds=self.manifest.seconds,
            jobs=self.jobs,
        )
        write_json(self.path / RESULT_FILE, result)
        # Imported late: Matplotlib would delay the first trial.
        from netloom.report.study import write_study_report

        write_study_report(result, self.path / REPORT_FILE)
        return result

    def _search(self, time_limit: float | None) -> None:
        kinds = [kind for kind, _ in self.pictures.kinds]
        resources = TrialResources(kinds, self.recipe, self.splits, self.manifest.objective, self.model)
        n = self.manifest.n_trials
        if n is not None and self.study.n_asked() >= n and not self._any_open():
            return
        with (
            listening() as interruption,
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
                n_trials=n,
                seconds=time_limit,
                earlier=self.study.records(),
                n_ended=self.study.n_ended(),
            )
            watchers: list[Watcher] = [table, _Cleaner(self.path / _TRIALS)]
            if self.recipe.tensorboard:
                watchers.append(HParamsLog(self.path / "tensorboard", self.manifest.objective))
            Driver(
                study=self.study,
                executor=executor,
                task_for=self._task,
                n_trials=n,
                seconds=time_limit,
                pruning=self.manifest.pruner != "none",
                at_once=self.cluster is not None or self.jobs > 1,
                watcher=Watchers(*watchers),
            ).run(interruption=interruption)
            if (reason := interruption()) is not None:
                raise InterruptedTrainingsError(
                    f"{reason[0].upper()}{reason[1:]} after {table.n_ended} trials. Go on with: {self.go_on_with}",
                    reason,
                )

    def _any_open(self) -> bool:
        return any(record.state == "running" for record in self.study.records())

    def _task(self, proposal: Proposal) -> Task:
        name = trial_name(proposal.number)
        arguments = {
            "overrides": dict(proposal.overrides),
            "plan": self.manifest.plan.to_json(),
            "folder": str((self.path / _TRIALS / name).resolve()),
        }
        return Task(name, run_trial, arguments)

    def _earlier_winners(self, runs: Sequence[Run]) -> int:
        """Winners of this search when it was shorter, which have met the test pictures."""
        if not runs:
            return 0
        others = [f for f in self.path.glob(f"*-{_FINAL}*") if f.resolve() != runs[0].path.parent.resolve()]
        return sum(any("test" in Run(run).result for run in folder.glob("seed-*")) for folder in others)

    def _why_nothing(self, records: Sequence[TrialRecord]) -> str:
        reasons = [str(r.outcome.get("reason")) for r in records if r.outcome.get("reason")]
        if not reasons:
            return f"No trial was complete within the time limit. Give more, or go on: {self.go_on_with}"
        return (
            f"None of {len(records)} trials was complete. The first reason: {reasons[0].rstrip('.')}. All of them: "
            f"{self.path / REPORT_FILE}"
        )

    def _final_runs(self, best: Recipe) -> list[Run]:
        """The winner, trained with fresh seeds; each is tested once."""
        n = self.manifest.final_seeds
        if n == 0:
            return []
        wanted, data = best.replace(seed=self.recipe.seed), self.pictures.prepared_for(best)
        for folder in sorted(self.path.glob(f"*-{_FINAL}*")):
            if is_job(folder, "seeds") and load(folder / f"seed-{wanted.seed + 1}").recipe.replace(
                seed=wanted.seed
            ) == wanted.replace(name=best.name):
                job = resume_job(
                    folder,
                    "seeds",
                    source=data.image_set,
                    jobs=self.jobs,
                    model=self.model,
                    reporter=self.reporter,
                )
                break
        else:
            self.reporter.say(
                f"Training the best recipe anew, with {n} {'seed' if n == 1 else 'seeds'} that the search has not seen"
            )
            seeds = range(self.recipe.seed + 1, self.recipe.seed + 1 + n)
            job = start_job(
                "seeds",
                [Member(f"seed-{seed}", best.replace(seed=seed), data.split, {"seed": seed}) for seed in seeds],
                data,
                out=self.path,
                name=_FINAL,
                details={},
                jobs=None if self.jobs > 1 else 1,
                device=self.manifest.plan.device,
                plan=self.manifest.plan,
                model=self.model,
                reporter=Reporter(quiet=True),
            )
        failures = job.train(self.reporter, go_on_with=self.go_on_with)
        if failures:
            name, reason = next(iter(failures.items()))
            raise TrainingError(
                f"The best recipe could not be trained anew: {name}: {reason.rstrip('.')}. The search is whole; go on "
                f"with: {self.go_on_with}"
            )
        return list(job.runs)
