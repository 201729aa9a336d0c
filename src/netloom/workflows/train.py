"""Train a recipe on a source and test it honestly, or go on with a training that was cut short."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from netloom.data.imageset import ImageSet
from netloom.data.named import NAMED_SETS
from netloom.errors import NetloomError, RunError
from netloom.progress import Reporter, printable
from netloom.recipe import DEFAULT_RECIPE, Recipe, load_recipe
from netloom.recipe.groups import CUSTOM_MODEL, MODEL_OPTIONS
from netloom.run import RunFolder
from netloom.runtime import ExecutionPlan, environment_record, keep_freed_memory, resolve_device
from netloom.training.callbacks import Callback
from netloom.training.checkpoint import Checkpoint, load_checkpoint
from netloom.workflows import builders
from netloom.workflows.builders import CustomModel
from netloom.workflows.checked_network import checked_network
from netloom.workflows.prepare import prepare_data, reopen_data
from netloom.workflows.remembered_pictures import pictures_to_remember
from netloom.workflows.runs import Run, load_classifier
from netloom.workflows.seen_pictures import learned_earlier
from netloom.workflows.starting_weights import settle
from netloom.workflows.training_run import Past, TrainingRun, names_of


def train(
    source: str | Path | ImageSet,
    recipe: str | Path | Recipe | None = None,
    *,
    model: CustomModel | str | None = None,
    out: str | Path = "runs",
    name: str | None = None,
    device: str = "auto",
    quiet: bool = False,
    callbacks: Sequence[Callback] = (),
    plan: ExecutionPlan | None = None,
    profile: bool = False,
    settings: Mapping[str, Any] | None = None,
    **overrides: Any,
) -> Run:
    """Train a classifier and test it once, at the end.

    Args:
        source: A folder, an archive, a CSV file, a named set, or an ImageSet.
        recipe: A shipped recipe's name, a YAML file or a Recipe; the source's own default without one.
        model: The name of a model, a `torch.nn.Module`, or a function making one, in place of the recipe's model. A
            function is given those of `in_channels`, `num_outputs` and `image_size` that it has parameters for.
        out: Folder in which the run's folder is made.
        name: Of the run, after the time; the source's name without one.
        device: `auto`, `cpu`, `cuda` or `mps`.
        quiet: Say nothing while it runs.
        callbacks: Of your own, called after the recipe's.
        plan: Execute it so, and on this plan's device, to repeat another run's bits (`run.plan`); None measures.
        profile: Write a trace of some steps, `profile/` in the run's folder: where the time goes.
        settings: Recipe keys to change, dotted ones too.
        **overrides: Recipe keys to change.

    Raises:
        NetloomError: Of the fitting kind; the message says what to do.
        InterruptedTrainingError: Ctrl-C or SIGTERM; the run so far stays usable.
    """
    if isinstance(model, str):
        overrides, model = {**overrides, "model": model}, None
    return begin(
        source,
        recipe,
        {**(settings or {}), **overrides},
        model=model,
        out=out,
        name=name,
        device=device,
        quiet=quiet,
        callbacks=callbacks,
        plan=plan,
        profile=profile,
    )


def begin(
    source: str | Path | ImageSet,
    recipe: str | Path | Recipe | None,
    changes: Mapping[str, Any],
    *,
    model: CustomModel | None = None,
    out: str | Path,
    name: str | None,
    device: str,
    quiet: bool,
    callbacks: Sequence[Callback],
    plan: ExecutionPlan | None,
    profile: bool = False,
    mode_choice: Mapping[str, Any] | None = None,
) -> Run:
    """What `train` does, for those who know more of the training.

    Arguments are those of `train`, its `settings` and single keys together being `changes`, and `mode_choice`: how the
    mode of a transfer was chosen, which the run keeps from its beginning, and its result and its report tell.

    Raises:
        NetloomError: As `train` raises it.
    """
    keep_freed_memory()
    reporter = Reporter(quiet=quiet)
    chosen = recipe_for(source, recipe, changes, model)
    device = resolve_device(device if plan is None else plan.device)
    builders.check_extras(chosen)
    data = prepare_data(source, chosen, reporter)
    chosen = chosen.replace(image_size=list(data.facts.image_size))
    if (note := builders.note_on_unused(chosen)) is not None:
        reporter.say(f"  note: {note}")
    network, heads = checked_network(chosen, data, model)
    folder = RunFolder.create(out, name or data.facts.source_name)
    folder.write_setup(
        recipe=chosen,
        split=data.split.to_json(data.image_set.ids),
        data=data.facts,
        environment=environment_record(),
        pictures=pictures_to_remember(data.image_set, data.split, earlier=learned_earlier(chosen)),
        mode_choice=mode_choice,
    )
    run = Run(folder.path, model=model)
    training = TrainingRun(run, chosen, data, network, heads, device, reporter, plan=plan, profile=profile)
    with run.alone():
        return training.execute(callbacks)


def resume(
    run: str | Path | RunFolder,
    *,
    epochs: int | None = None,
    device: str | None = None,
    model: CustomModel | None = None,
    source: ImageSet | None = None,
    quiet: bool = False,
    callbacks: Sequence[Callback] = (),
    profile: bool = False,
) -> Run:
    """Go on with a training that was cut short, or extend a finished one.

    It ends with the same bits as if it had never been cut; one that was cut while its report was drawn gets the report,
    without another look at the test part. Schedules that do not depend on the length go on exactly
    when it is extended; one that does (cosine, one cycle) is recomputed for the new length. Early stopping that has
    ended it waits anew, and a time limit counts anew. The run gets its new length when all is ready to train.

    On a GPU that holds as far as torch has kernels that repeat their bits; see `runtime.deterministic_kernels`.

    Args:
        run: Its folder.
        epochs: The new number of epochs in all; the recipe's own without it.
        device: `auto`, `cpu`, `cuda` or `mps`; the run's own without it. On another one the execution plan is measured
            anew, and the last bits differ.
        model: The network, or the function making it, where the run trained one of the user's own.
        source: The pictures, where the run was trained on pictures in memory.
        quiet: Say nothing while it runs.
        callbacks: The same as were given to `train`.
        profile: Write a trace of some steps, as for `train`.

    Raises:
        RunError: There is no such run, another process is training it, its pictures have changed, or `epochs` is less
            than it has already.
        NetloomError: The device is not available.
        InterruptedTrainingError: Ctrl-C or SIGTERM; the run so far stays usable.
    """
    keep_freed_memory()
    reporter = Reporter(quiet=quiet)
    opened = load_classifier(run, model=model)
    with opened.alone():
        training = _to_go_on(opened, epochs, device, model, source, reporter, callbacks, profile=profile)
        return opened if training is None else training.execute(callbacks)


def _to_go_on(
    opened: Run,
    epochs: int | None,
    device: str | None,
    model: CustomModel | None,
    source: ImageSet | None,
    reporter: Reporter,
    callbacks: Sequence[Callback],
    *,
    profile: bool,
) -> TrainingRun | None:
    """The training that goes on with a run; None where there is nothing left to do."""
    opened.remove_unfinished_files()
    recipe, result = opened.recipe, opened.result
    builders.check_extras(recipe)
    path = opened.checkpoint_path
    checkpoint = load_checkpoint(path, epochs=recipe.epochs) if path.is_file() else None
    trained_for = recipe.epochs if checkpoint is None else checkpoint.epochs
    if result["status"] == "finished" and trained_for == (recipe.epochs if epochs is None else epochs):
        if not opened.is_complete:
            # Imported late: Matplotlib would delay every training's first step by most of a second.
            from netloom.workflows.report import complete_report

            finished = reopen_data(opened, source, reporter)
            complete_report(opened, finished.image_set, finished.split)
            reporter.say(f"It had no report yet: {opened.report_path}")
        reporter.say(f"{opened.path} is finished; say how many epochs it shall have: --set epochs=N.")
        return None
    extended = _extended(opened, recipe, epochs, checkpoint, model)
    data = reopen_data(opened, source, reporter)
    plan, place = _where(opened, device, reporter)
    if checkpoint is not None and trained_for != extended.epochs:
        _say_what_changes(reporter, extended, checkpoint)
    past = Past.of(result)
    if checkpoint is not None:
        departures = _departures(opened, extended, checkpoint, place)
        departures += _without_callbacks(past, callbacks, reporter)
        past = past.departing(departures)
    return TrainingRun(
        opened,
        extended,
        data,
        *builders.build_network(extended, data.facts, model),
        place,
        reporter,
        plan=plan,
        checkpoint=checkpoint,
        profile=profile,
        past=past,
    )


def _where(run: RunFolder, device: str | None, reporter: Reporter) -> tuple[ExecutionPlan | None, str]:
    """The plan to go on with, None to measure one, and its device.

    Raises:
        NetloomError: The device is not available.
    """
    plan = run.saved_plan
    if plan is None:
        return None, resolve_device(device or "auto")
    plan = plan.predicting_with_all_threads()
    if device is None:
        try:
            return plan, resolve_device(plan.device)
        except NetloomError as error:
            raise RunError(
                f"{run.path} was trained on {printable(plan.device)}, which this machine does not have: {error} Go on "
                "there, to end with the bits of an uninterrupted training, or here with --device auto (device='auto' "
                "from Python), where the last bits will differ."
            ) from error
    chosen = resolve_device(device)
    if chosen == plan.device:
        return plan, chosen
    reporter.say(
        f"  note: it goes on on {chosen} and began on {plan.device}, so the last bits differ from those of a training "
        "on one of them"
    )
    return None, chosen


def _extended(
    run: RunFolder, recipe: Recipe, epochs: int | None, checkpoint: Checkpoint | None, model: CustomModel | None
) -> Recipe:
    if epochs is None or epochs == recipe.epochs:
        return recipe
    if builders.is_solved_at_once(recipe):
        raise RunError(f"{run.path} has no epochs that could be more: its classifier was fitted in one go.")
    extended, done = recipe.replace(epochs=epochs), len(run.history)
    begun = 0 if checkpoint is None else checkpoint.begun_epochs
    if extended.epochs < max(begun, done):
        state = f"has trained {done} epochs" if begun <= done else f"is within epoch {begun}"
        raise RunError(f"{run.path} {state} already; it cannot be resumed to have {epochs}.")
    transfer = recipe.transfer
    is_open = transfer is not None and transfer.mode == "finetune" and transfer.head_epochs is None
    if begun and is_open and epochs > recipe.epochs:
        # By itself it could be more in a longer training: what has joined the head would leave it again.
        network, _ = builders.build_network(recipe, run.data, model)
        extended = extended.replace(**{"transfer.head_epochs": builders.epochs_of_head(recipe, network)})
    return extended


def _say_what_changes(reporter: Reporter, extended: Recipe, checkpoint: Checkpoint) -> None:
    reporter.say(f"Extending the training from {checkpoint.epochs} to {extended.epochs} epochs")
    for what in builders.depending_on_length(extended):
        reporter.say(
            f"  note: {what} on the length and is recomputed for "
            f"{extended.epochs} epochs, so the result differs from training {extended.epochs} epochs at once"
        )
    if checkpoint.stop_reason is not None:
        anew = "" if extended.early_stopping is None else "; early stopping waits anew"
        reporter.say(f"  note: it had ended early by {printable(checkpoint.stop_reason)}{anew}")
    if extended.time_limit_minutes is not None:
        reporter.say(f"  note: the time limit of {extended.time_limit_minutes:g} minutes counts anew")


def _departures(run: RunFolder, extended: Recipe, checkpoint: Checkpoint, device: str) -> list[str]:
    """What sets a training that goes on like this apart from one in one go, as sentences."""
    found = []
    if checkpoint.epochs != extended.epochs:
        length = f"It was extended from {checkpoint.epochs} to {extended.epochs} epochs"
        found += [f"{length}: {what} on the length." for what in builders.depending_on_length(extended)]
        if checkpoint.stop_reason is not None:
            found.append(f"{length} after it had ended early: {checkpoint.stop_reason}.")
    plan = run.saved_plan
    if plan is not None and plan.device != device:
        found.append(f"It began on {plan.device} and went on on {device}.")
    return found


def _without_callbacks(past: Past, callbacks: Sequence[Callback], reporter: Reporter) -> list[str]:
    """Says which of the user's own callbacks a training goes on without; the same as sentences for the run."""
    missing = list((Counter(past.callbacks) - Counter(names_of(callbacks))).elements())
    if not missing:
        return []
    names = printable(", ".join(missing))
    reporter.say(
        f"  note: it began with callbacks of your own ({names}) and goes on without them; whatever they changed ends "
        "here. Give them to netloom.resume, as callbacks=[...], for the training that was begun"
    )
    return [f"It went on without callbacks that it began with: {names}."]


def recipe_for(
    source: str | Path | ImageSet,
    recipe: str | Path | Recipe | None,
    overrides: Mapping[str, Any],
    model: CustomModel | None = None,
) -> Recipe:
    """The recipe that a user means: the named one, or the source's default, with keys changed; its weights looked up.

    Raises:
        RecipeError: No such recipe, or mistakes in it or in the changes.
        ModelError: It starts from pretrained weights that are nowhere to be found, or damaged.
    """
    if recipe is None:
        known = NAMED_SETS.get(str(source).casefold()) if isinstance(source, (str, Path)) else None
        recipe = known.default_recipe if known else DEFAULT_RECIPE
    if model is None:
        return settle(load_recipe(recipe, overrides))
    label = type(model).__name__ if isinstance(model, nn.Module) else getattr(model, "__name__", "a function")
    cleared = dict.fromkeys(MODEL_OPTIONS)
    return load_recipe(recipe, {**cleared, **overrides, "model": CUSTOM_MODEL, "custom_model": label})
