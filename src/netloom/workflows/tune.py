"""Search over a recipe's keys: many trials at once, the winner trained anew and tested once."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from netloom.data.imageset import ImageSet
from netloom.data.splits import groups_of
from netloom.durations import parse_duration
from netloom.errors import TrainingError
from netloom.files import write_atomically, write_json, writing
from netloom.parallel.planning import parse_jobs
from netloom.progress import Reporter
from netloom.recipe import Recipe, load_recipe
from netloom.run import RunFolder
from netloom.runtime import ExecutionPlan, environment_record, keep_freed_memory
from netloom.tuning.samplers import check_names, create_sampler, grid_size, most_at_once, resolve_pruner
from netloom.tuning.samplers import resolve_sampler as sampler_for
from netloom.tuning.storage import with_absolute_path, without_password
from netloom.tuning.study import TrialRecord, best_of
from netloom.workflows import builders
from netloom.workflows.builders import CustomModel
from netloom.workflows.checked_network import checked_network
from netloom.workflows.earlier_studies import with_notes_on_earlier_studies
from netloom.workflows.first_trials import OF_USER, best_of_earlier, checked_first, enqueue_first, listed_studies
from netloom.workflows.fresh_scores import FreshScores, fresh_folds, fresh_scores
from netloom.workflows.prepare import prepare_data, reopen_data
from netloom.workflows.remembered_pictures import pictures_to_remember
from netloom.workflows.request import request_for
from netloom.workflows.runs import Run
from netloom.workflows.search import TRIALS_FOLDER, HopelessSearchError, Search
from netloom.workflows.search_options import (
    DEFAULT_FINAL_PART,
    DEFAULT_FINAL_SEEDS,
    DEFAULT_OBJECTIVE,
    DEFAULT_TRIALS,
    checked_final_part,
    checked_number,
    checked_objective,
)
from netloom.workflows.seen_pictures import learned_earlier, notes_on_folds
from netloom.workflows.shared_features import cache_features
from netloom.workflows.spaces import DEFAULT_SPACE, SpaceLike, space_for
from netloom.workflows.study import BEST_RECIPE_FILE, REPORT_FILE, RESULT_FILE, Study
from netloom.workflows.study_manifest import StudyManifest, create_study, open_study
from netloom.workflows.study_parts import cluster_for, splits_for
from netloom.workflows.study_pictures import study_pictures
from netloom.workflows.study_result import describe_result, study_result, values_of
from netloom.workflows.trainings import describe_plan, jobs_for_model, plan_trainings
from netloom.workflows.trial_task import recipe_of_trial
from netloom.workflows.winner import check_final_part, earlier_winners, note_tested, train_winner


def tune(
    source: str | Path | ImageSet,
    recipe: str | Path | Recipe | None = None,
    space: SpaceLike | None = None,
    *,
    sampler: str = "auto",
    pruner: str = "auto",
    n_trials: int | None = None,
    time_limit: float | str | None = None,
    init_points: int | None = None,
    objective: str = DEFAULT_OBJECTIVE,
    cv: int | None = None,
    final_seeds: int = DEFAULT_FINAL_SEEDS,
    final_on: str = DEFAULT_FINAL_PART,
    first: Mapping[str, Any] | Sequence[Mapping[str, Any]] = (),
    warm_start: str | Path | Sequence[str | Path] = (),
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
    was luck, and each of those trainings is tested once. Where folds score the trials, folds that the search has not
    seen tell that.

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
        time_limit: Of the search itself: a text such as `90s`, `10m` or `1h30m`; a bare number is seconds.
        init_points: Random trials before a model of the earlier ones proposes.
        objective: `validation_accuracy`, `validation_loss`, or, in which all classes count the same, however many
            pictures they have, `validation_macro_f1` or `validation_balanced_accuracy`; of the weights that a training
            keeps.
        cv: Score each trial by so many folds of what is not test, instead of by the validation part; the winner in the
            end by as many that are drawn anew.
        final_seeds: Trainings of the winner; 0 for none, and no test and no fresh folds.
        final_on: What they are trained on: `train`, as the trials are, or `train+validation`. With the latter nothing
            is left to choose an epoch by: they train as many epochs as the winning trial's kept weights had (the median
            over folds), and keep the last.
        first: Values of the space by key, such as `{"dropout": 0.3}`, or several such, that are tried right after the
            recipe; for keys that are left out it is as in the recipe.
        warm_start: The folder of an earlier study, or several, whose best values are tried first. Where pictures of the
            test part trained or validated its trials, that is told.
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
    keep_freed_memory()
    check_names(sampler, pruner)
    n_trials, init_points = checked_number("n_trials", n_trials), checked_number("init_points", init_points)
    cv, n_seeds = checked_number("cv", cv), checked_number("final_seeds", final_seeds) or 0
    storage = None if storage is None else with_absolute_path(storage)
    scored_by, trained_on = checked_objective(objective), checked_final_part(final_on)
    limit = parse_duration(time_limit)
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
    dimensions = space_for(DEFAULT_SPACE if space is None else space, chosen, reporter.say)
    sampler, pruner = sampler_for(sampler, dimensions, n_trials), resolve_pruner(pruner, dimensions)
    create_sampler(sampler, dimensions, seed=0, init_points=1, n_trials=n_trials)  # tells what it is not for
    if n_trials is None and sampler == "grid":
        n_trials = grid_size(dimensions)
    elif n_trials is None and limit is None:
        n_trials = DEFAULT_TRIALS
    of_user = checked_first(first, dimensions)
    earlier: list[list[tuple[str, Mapping[str, Any]]]] = [[(OF_USER, values) for values in of_user]] if of_user else []
    earlier_studies = listed_studies(warm_start)
    earlier += map(best_of_earlier, earlier_studies)
    data = with_notes_on_earlier_studies(prepare_data(source, chosen, reporter), earlier_studies, reporter)
    chosen = chosen.replace(image_size=list(data.facts.image_size))
    splits = splits_for(data, chosen, cv)
    if cv is not None:
        pool = np.concatenate([split.test for split in splits])
        for note in notes_on_folds(chosen, data.image_set, pool, fingerprint=data.facts.fingerprint):
            reporter.say(f"  note: {note}")
        if n_seeds:
            fresh_folds(data, chosen, cv)  # tells, before the search, where these cannot be drawn
    check_final_part(chosen, data.split, trained_on, n_seeds=n_seeds)
    pictures = study_pictures(source, chosen, data, dimensions, reporter)
    network, heads = checked_network(chosen, replace(data, split=splits[0]), asked.model)
    plan, n_jobs = plan_trainings(
        chosen,
        data,
        network,
        heads,
        n_trainings=n_trials or 10**6,
        jobs=asked.jobs,
        device=asked.device,
        plan=plan,
        most=most_at_once(sampler, n_trials),
        model=asked.model,
        reporter=reporter,
    )
    reporter.say(describe_plan(chosen, network, plan, n_jobs).replace("training", "trial"))
    for kind, _ in pictures.kinds if builders.learns_from_features(chosen) else ():
        changed = load_recipe(chosen, kind.settings)
        kept = replace(data, image_set=kind.image_set, facts=kind.facts, split=splits[0])
        of_kind, _ = checked_network(changed, kept, asked.model)
        cache_features(changed, of_kind, heads, kind.image_set, splits, plan=plan, reporter=reporter)
    cluster = cluster_for(ray, asked.jobs or most_at_once(sampler, n_trials), reporter)
    folder = RunFolder.create(out, f"{name or data.facts.source_name}-study")
    manifest = StudyManifest(
        study=name or folder.name,
        storage=None if storage is None else without_password(storage),
        driver=None if storage is None else f"{folder.name}-{time.time_ns():x}",
        space=dimensions,
        sampler=sampler,
        pruner=pruner,
        init_points=init_points if init_points is not None else max(2, min(10, (n_trials or 40) // 4)),
        n_trials=n_trials,
        time_limit=limit,
        objective=scored_by,
        cv=cv,
        final_seeds=n_seeds,
        final_on=trained_on,
        plan=plan,
        jobs=n_jobs,
    )
    folder.write_setup(
        recipe=chosen,
        split=data.split.to_json(data.image_set.ids),
        data=data.facts,
        environment=environment_record(),
        pictures=pictures_to_remember(data.image_set, data.split, earlier=learned_earlier(chosen)),
    )
    with writing(folder.path / TRIALS_FOLDER, "Choose another folder with --out."):
        (folder.path / TRIALS_FOLDER).mkdir()
    for dimension in dimensions:
        reporter.say(f"  {dimension}")
    try:
        study, is_new = create_study(folder.path, manifest, chosen, data, storage, say=reporter.say)
    except BaseException:
        _remove_begun(folder.path)
        raise
    with contextlib.closing(study):
        if is_new:
            enqueue_first(study, sampler, dimensions, values_of(chosen, dimensions), earlier, reporter)
        elif earlier:
            reporter.say(
                f"  note: --try and --warm-start are ignored: the study {manifest.study} exists, and what the driver "
                "that made it gave is tried first"
            )
        manifest.write(folder.path)
        return _finish(
            Search(
                folder.path,
                manifest,
                study,
                pictures,
                splits,
                chosen,
                asked.model,
                n_jobs,
                reporter,
                cluster,
                None if jobs == "auto" else asked.jobs,
            )
        )


def resume_tune(
    folder: str | Path,
    *,
    source: ImageSet | None = None,
    n_trials: int | None = None,
    time_limit: float | str | None = None,
    final_on: str | None = None,
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
        final_on: As for `tune`; the old choice without it.
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
    n_trials, limit = checked_number("n_trials", n_trials), parse_duration(time_limit)
    at_once = jobs_for_model(model, parse_jobs(jobs), reporter)
    manifest = StudyManifest.read(Path(folder))
    run_folder = RunFolder.open(folder)
    changed = replace(
        manifest,
        n_trials=n_trials or manifest.n_trials,
        time_limit=limit or manifest.time_limit,
        final_on=manifest.final_on if final_on is None else checked_final_part(final_on),
        searched=manifest.searched and n_trials is None and limit is None,
    )
    recipe = run_folder.recipe
    data = reopen_data(run_folder, source, reporter)
    check_final_part(recipe, data.split, changed.final_on, n_seeds=changed.final_seeds)
    pictures = study_pictures(source or data.facts.source_location, recipe, data, manifest.space, reporter)
    splits = splits_for(data, recipe, changed.cv)
    network, heads = builders.build_network(recipe, data.facts, model)
    cluster = cluster_for(ray, at_once or most_at_once(changed.sampler, changed.n_trials), reporter)
    with contextlib.closing(open_study(run_folder.path, changed, recipe, storage, say=reporter.say)) as study:
        _, n_jobs = plan_trainings(
            recipe,
            data,
            network,
            heads,
            n_trainings=max(1, (changed.n_trials or 10**6) - study.n_ended()),
            jobs=at_once,
            device=manifest.plan.device,
            plan=manifest.plan,
            most=most_at_once(changed.sampler, changed.n_trials),
            model=model,
            reporter=reporter,
        )
        if changed != manifest:
            changed.write(run_folder.path)
        return _finish(
            Search(
                run_folder.path,
                changed,
                study,
                pictures,
                splits,
                recipe,
                model,
                n_jobs,
                reporter,
                cluster,
                None if jobs == "auto" else at_once,
            )
        )


def _finish(search: Search) -> Study:
    """Search, train the winner, report."""
    if not search.manifest.searched:
        try:
            search.run()
        except HopelessSearchError:
            records = search.study.records()
            _report(search, records, best_of(records, search.manifest.direction), None, [], None)
            raise
    records = search.study.records()
    best = best_of(records, search.manifest.direction)
    if best is None:
        _report(search, records, None, None, [], None)
        raise TrainingError(_why_nothing(search, records))
    search.note(searched=True)
    best_recipe = recipe_of_trial(search.recipe, best.overrides, [kind for kind, _ in search.pictures.kinds])
    write_atomically(search.folder / BEST_RECIPE_FILE, best_recipe.to_yaml())
    runs = train_winner(search, best, best_recipe)
    note_tested(search, best, runs)
    result = _report(search, records, best, best_recipe, runs, fresh_scores(search, best_recipe, runs))
    for line in describe_result(result):
        search.reporter.say(line)
    return Study(search.folder, best_recipe, runs[0] if runs else None, result)


def _report(
    search: Search,
    records: Sequence[TrialRecord],
    best: TrialRecord | None,
    best_recipe: Recipe | None,
    runs: Sequence[Run],
    fresh: FreshScores | None,
) -> dict[str, Any]:
    """Write figures and page."""
    scored = search.pictures.data.split.validation
    if search.manifest.cv is not None:
        scored = np.concatenate([split.test for split in search.splits])
    groups = groups_of(search.pictures.data.image_set.groups, scored)
    result = study_result(
        search.folder,
        search.manifest,
        search.recipe,
        source=search.pictures.data.facts.source_name,
        source_location=search.pictures.data.facts.source_location,
        validation_n=len(scored),
        validation_groups=None if groups is None else len(np.unique(groups)),
        test_notes=search.pictures.data.split.test_notes,
        records=records,
        best=best,
        best_recipe=best_recipe,
        best_recipe_file=search.folder / BEST_RECIPE_FILE,
        runs=runs,
        fresh=fresh,
        earlier_winners=earlier_winners(search, best, runs),
        importances=search.study.importances(),
    )
    write_json(search.folder / RESULT_FILE, result)
    # Imported late: Matplotlib would delay the first trial.
    from netloom.report.study import write_study_report

    write_study_report(result, search.folder / REPORT_FILE)
    return result


def _why_nothing(search: Search, records: Sequence[TrialRecord]) -> str:
    reasons = [str(r.outcome.get("reason")) for r in records if r.outcome.get("reason")]
    if not reasons:
        return f"No trial was complete within the time limit. Give more, or go on: {search.how_to_go_on()}"
    return (
        f"None of {len(records)} trials was complete. The first reason: {reasons[0].rstrip('.')}. All of them: "
        f"{search.folder / REPORT_FILE}"
    )


def _remove_begun(folder: Path) -> None:
    """Take away the folder of a study that could not be begun."""
    import shutil

    shutil.rmtree(folder, ignore_errors=True)
