"""Many trainings at once: folds, seeds, and whatever else repeats a recipe on one set of pictures."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from netloom.data.imageset import ImageSet
from netloom.errors import ModelError, NetloomError, TrainingError
from netloom.files import writing
from netloom.models.heads import Head
from netloom.parallel.local import LocalExecutor
from netloom.parallel.pictures import labels_of, pixels_of, sharing_all
from netloom.parallel.planning import candidate_threads, choose_jobs, cpus_of_workers
from netloom.parallel.serial import SerialExecutor
from netloom.parallel.tasks import Event, Executor, Failed, Finished, Reported, Retried, Task, name_of
from netloom.progress import Bars, Reporter
from netloom.recipe import Recipe
from netloom.runtime import ExecutionPlan, Precision, training_threads, usable_cpus
from netloom.training.callbacks.progress import figures_in_words
from netloom.workflows import builders
from netloom.workflows.builders import CustomModel
from netloom.workflows.card_sharing import trainings_per_card
from netloom.workflows.fitting import Fitting
from netloom.workflows.interruption import exit_code_of, listening
from netloom.workflows.prepare import PreparedData
from netloom.workflows.remembered_pictures import pictures_to_remember
from netloom.workflows.runs import Run
from netloom.workflows.seen_pictures import learned_earlier
from netloom.workflows.training_task import Resources, finish_run, set_up


class InterruptedTrainingsError(TrainingError):
    """The whole was ended from outside; it can be gone on with."""

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.exit_code = exit_code_of(reason)


class FailedTrainingsError(TrainingError):
    """Some trainings failed, or all of them; `cause` says of one how."""

    def __init__(self, message: str, cause: str) -> None:
        super().__init__(message)
        self.cause = cause


def jobs_for_model(model: CustomModel | None, jobs: int | None, reporter: Reporter) -> int | None:
    """The number of trainings at once that a network of the user's own allows; None for any.

    Raises:
        ModelError: It is a module, which would carry its weights from one training into the next.
        NetloomError: More than one at once was asked for, and other processes cannot import the function.
    """
    if model is None or jobs == 1:
        return jobs
    if isinstance(model, nn.Module):
        raise ModelError("Several trainings need a function that makes a model; a module keeps its trained weights.")
    try:
        name_of(model)
    except NetloomError:
        if jobs is not None:
            raise
        reporter.say("One training after the other: other processes cannot import the function given as model.")
        return 1
    return jobs


def name_for_workers(model: CustomModel | None, jobs: int) -> str | None:
    """By which other processes find the function making the network; None where there is none, or no other process.

    Raises:
        NetloomError: They cannot import it.
    """
    return None if model is None or jobs == 1 else name_of(model)


def plan_trainings(
    recipe: Recipe,
    data: PreparedData,
    network: nn.Module,
    heads: Sequence[Head],
    *,
    n_trainings: int,
    jobs: int | None,
    device: str,
    plan: ExecutionPlan | None,
    most: int | None = None,
    model: CustomModel | None = None,
    reporter: Reporter | None = None,
) -> tuple[ExecutionPlan, int]:
    """The one execution plan of all trainings, and how many of them run at once.

    On a CPU, a step is timed with several numbers of threads, and the one is taken with which all trainings together
    should end the soonest. How many share a CUDA device is tried out (`card_sharing.py`) unless `jobs` says it; on
    other accelerators they run one after the other.

    Args:
        recipe: Of the trainings.
        data: The pictures and the split of one of them.
        network: Of one of them, with which to measure.
        heads: What its outputs mean.
        n_trainings: How many there are.
        jobs: How many at once; None to decide.
        device: A torch device name.
        plan: To be followed; None to measure.
        most: At once at the most, where `jobs` says nothing; None for any number, where none depends on another.
        model: The function making the network, where it is the user's own.
        reporter: Tells a person what is tried out.
    """
    by_features = builders.learns_from_features(recipe)

    def sharing(chosen: ExecutionPlan) -> int:
        if chosen.torch_device.type != "cuda" or by_features:
            return 1
        return trainings_per_card(
            recipe, data, chosen, n_trainings=n_trainings, most=most, model=model, reporter=reporter
        )

    if plan is not None:
        room = min(most or n_trainings, max(1, usable_cpus() // plan.cpus)) if plan.device == "cpu" else None
        return plan, min(n_trainings, jobs or room or sharing(plan))
    if by_features:
        return _plan_by_features(recipe, data, network, heads, n_trainings=n_trainings, jobs=jobs, device=device)
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
    threads, cpus = None, usable_cpus()
    decided = recipe.shards != "auto" and recipe.shards > 0
    if device == "cpu" and jobs != 1 and n_trainings > 1 and not decided:
        candidates = [t for t in candidate_threads(n_trainings, cpus, jobs) if t <= training_threads()]
        precision: Precision = "bfloat16" if recipe.precision == "bfloat16" else "float32"
        seconds = fitting.step_seconds([ExecutionPlan(device, t, precision) for t in candidates])
        jobs, threads = choose_jobs(
            dict(zip(candidates, seconds, strict=True)),
            n_tasks=n_trainings,
            cpus=cpus,
            jobs=jobs,
            most=most,
            independent=most is None,
        )
    measured = fitting.choose_plan(threads=None if jobs == 1 else threads)
    if device != "cpu":
        return measured, min(n_trainings, jobs or sharing(measured))
    return measured, min(n_trainings, jobs or min(most or n_trainings, max(1, cpus // measured.cpus)))


def _plan_by_features(
    recipe: Recipe,
    data: PreparedData,
    network: nn.Module,
    heads: Sequence[Head],
    *,
    n_trainings: int,
    jobs: int | None,
    device: str,
) -> tuple[ExecutionPlan, int]:
    """One training after the other: once the features are there, another process costs more than a head."""
    fitting = Fitting.prepare(
        recipe, network, heads, data.image_set, data.split, scaling=data.facts.scaling, device=device
    )
    at_once = min(n_trainings, jobs or 1)
    threads = max(1, training_threads() // at_once) if device == "cpu" else None
    return fitting.choose_plan(threads=threads), at_once


def plan_of_each(plan: ExecutionPlan, *, alone: bool) -> ExecutionPlan:
    """How each training of many is executed: in passes without training, too, it keeps to its share of the threads."""
    return plan if alone else replace(plan, prediction_threads=0)


def describe_plan(recipe: Recipe, network: nn.Module, plan: ExecutionPlan, jobs: int) -> str:
    """One line for people."""
    return (
        f"{recipe.custom_model or recipe.model}: {builders.parameters_in_words(network)}, on {plan.device}, "
        f"{'one training after the other' if jobs == 1 else f'{jobs} trainings at once'} with "
        f"{plan.describe_threads()}{'' if jobs == 1 else ' each'} "
        f"in {plan.precision} ({plan.reason})"
    )


def create_run(
    path: Path, recipe: Recipe, data: PreparedData, environment: Mapping[str, Any], model: CustomModel | None = None
) -> Run:
    """A run in a new folder, with all that `finish_run` needs.

    Raises:
        RunError: It cannot be written.
    """
    with writing(path, "Choose another folder with --out."):
        path.mkdir()
    run = Run(path, model=model)
    run.write_setup(
        recipe=recipe,
        split=data.split.to_json(data.image_set.ids),
        data=data.facts,
        environment=environment,
        pictures=pictures_to_remember(data.image_set, data.split, earlier=learned_earlier(recipe)),
    )
    return run


def run_trainings(
    runs: Sequence[Run],
    *,
    image_set: ImageSet,
    pixels_file: Path | None,
    plan: ExecutionPlan,
    jobs: int,
    reporter: Reporter,
    model: CustomModel | None = None,
    go_on_with: str,
    on_end: Callable[[], None] = lambda: None,
) -> dict[str, str]:
    """Bring all runs to their end, `jobs` at once; finished ones are left alone, but for a report that is missing.

    Results are those of one training after the other under the same plan, bit for bit.

    Args:
        runs: Each of them set up.
        image_set: Of all their splits.
        pixels_file: The file that its pixels are mapped from, if any.
        plan: Of every training.
        jobs: Trainings at once.
        reporter: Shows how they go.
        model: The function making the network, where it is the user's own.
        go_on_with: What to type after an interruption.
        on_end: Called whenever a training has ended.

    Returns:
        Why each of those runs failed that did, by name.

    Raises:
        InterruptedTrainingsError: Ctrl-C or SIGTERM; every run can be gone on with.
        NetloomError: The processes cannot be started.
    """
    todo = [run for run in runs if not run.is_complete]
    if not todo:
        return {}
    jobs = min(jobs, len(todo))
    own = plan_of_each(plan, alone=jobs == 1).to_json()
    tasks = [Task(run.name, finish_run, {"run": str(run.path.resolve()), "plan": own}) for run in todo]
    with (
        listening() as interruption,
        reporter.bars() as bars,
        executor_for(
            [(image_set, pixels_file)],
            jobs=jobs,
            plan=plan,
            here=Resources(image_set, model),
            setup=set_up,
            arguments={"model": name_for_workers(model, jobs)},
            reporter=reporter,
        ) as executor,
    ):
        teller = _Teller(reporter, bars, on_end)
        executor.run(tasks, teller, interruption=interruption)
    done = sum(run.result["status"] == "finished" for run in runs)
    if (reason := interruption()) is not None and done + len(teller.failures) < len(runs):
        raise InterruptedTrainingsError(
            f"{reason[0].upper()}{reason[1:]} after {done} of {len(runs)} trainings. Go on with: {go_on_with}", reason
        )
    return teller.failures


@contextlib.contextmanager
def executor_for(
    image_sets: Sequence[tuple[ImageSet, Path | None]],
    *,
    jobs: int,
    plan: ExecutionPlan,
    here: Any,
    setup: Callable[..., Any],
    arguments: Mapping[str, Any],
    cluster: str | None = None,
    reporter: Reporter | None = None,
) -> Iterator[Executor]:
    """What runs trainings under one plan: this process, several that share the pictures, or those of a Ray cluster.

    Args:
        image_sets: The pictures, one or more sets, with the files that their pixels are mapped from, if any.
        jobs: Trainings at once; one is done in this process.
        plan: Of every training.
        here: What tasks find as `context.shared` in this process.
        setup: Makes the same in another, from what `received_pictures` takes, and `arguments`.
        arguments: Plain ones.
        cluster: Address of a Ray cluster, see `RayExecutor`; `jobs` is then the most, 0 for as many as it has room for.
        reporter: Told when the cluster has no room, and when fewer run at once since one was killed.

    Raises:
        NetloomError: The cluster cannot be used.
    """
    if cluster is not None:
        from netloom.parallel.ray_cluster import RayExecutor

        with RayExecutor(
            cluster,
            jobs or None,
            cpus_per_task=plan.cpus,
            gpus_per_task=0 if plan.device == "cpu" else 1,
            setup=setup,
            arguments={**arguments, "labels": [labels_of(image_set) for image_set, _ in image_sets]},
            arrays={f"pixels_{number}": pixels_of(image_set) for number, (image_set, _) in enumerate(image_sets)},
            say=None if reporter is None else reporter.say,
        ) as executor:
            yield executor
        return
    if jobs == 1:
        yield SerialExecutor(shared=here)
        return
    with (
        sharing_all(image_sets) as pictures,
        LocalExecutor(
            jobs,
            cpus=cpus_of_workers(jobs, plan.cpus) if plan.device == "cpu" else [],
            setup=setup,
            arguments={"pictures": [shared.to_json() for shared in pictures], **arguments},
            remove=[shared.folder for shared in pictures],
            say=None if reporter is None else reporter.say,
        ) as executor,
    ):
        yield executor


class _Teller:
    """Shows a person what happens to the trainings, and remembers those that failed."""

    def __init__(self, reporter: Reporter, bars: Bars, on_end: Callable[[], None]) -> None:
        self.failures: dict[str, str] = {}
        self._figures: dict[str, str] = {}
        self._reporter, self._bars, self._on_end = reporter, bars, on_end

    def __call__(self, event: Event) -> None:
        name = event.task.name
        if isinstance(event, Reported):
            self._epoch(name, event.values)
            return
        self._bars.remove(name)
        if isinstance(event, Finished | Failed):
            self._on_end()
        if isinstance(event, Finished) and "test" in event.value:
            test, seconds = event.value["test"], event.value["seconds"]
            self._reporter.say(f"{name}: right on {test['accuracy']:.2%} of {test['n']:,} pictures, {seconds:.0f} s")
        elif isinstance(event, Retried):
            self._reporter.say(f"{name}: {event.reason}; it goes on from its last checkpoint")
        elif isinstance(event, Failed):
            self.failures[name] = event.reason
            self._reporter.say(f"{name} failed: {event.reason}\n{event.details}".rstrip())

    def _epoch(self, name: str, values: Mapping[str, Any]) -> None:
        done, epochs, row = values["done"], values["epochs"], values.get("row")
        if row is not None:
            self._figures[name] = figures_in_words(row)
            if not self._reporter.interactive:
                self._reporter.say(f"{name}  epoch {done:>{len(str(epochs))}}/{epochs}  {self._figures[name]}")
        self._bars.update(name, done, epochs, f"{done:.1f} of {epochs} epochs  {self._figures.get(name, '')}")
