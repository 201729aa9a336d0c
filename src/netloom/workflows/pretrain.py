"""Train a network on pictures without labels, for `transfer` to start from: the verb `pretrain`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from netloom.data.imageset import ImageSet
from netloom.errors import RecipeError, RunError
from netloom.models.registry import create_model
from netloom.models.whitening import freeze_first_convolution
from netloom.progress import Reporter
from netloom.recipe import Recipe, load_recipe
from netloom.run import RunFolder
from netloom.runtime import ExecutionPlan, environment_record, keep_freed_memory, resolve_device
from netloom.training.callbacks import Callback
from netloom.training.checkpoint import load_checkpoint
from netloom.training.self_supervised import ConstantSizes, Embedder, check_views
from netloom.workflows.pretraining_data import UnlabelledData, prepare_unlabelled, reopen_unlabelled
from netloom.workflows.pretraining_run import PretrainingRun
from netloom.workflows.remembered_pictures import pictures_to_remember
from netloom.workflows.runs import Run

DEFAULT_PRETRAINING = "pretrain"
"""The recipe that is taken where none is named."""


def pretrain(
    source: str | Path | ImageSet,
    recipe: str | Path | Recipe = DEFAULT_PRETRAINING,
    *,
    out: str | Path = "runs",
    name: str | None = None,
    device: str = "auto",
    quiet: bool = False,
    callbacks: Sequence[Callback] = (),
    plan: ExecutionPlan | None = None,
    settings: Mapping[str, Any] | None = None,
    **overrides: Any,
) -> Run:
    """Train a network to tell views of one picture from those of others, without looking at labels.

    The run's weights are the network's without its classifier; `transfer` takes the run as a backbone. Pictures of a
    source with classes are split as `train` would split them, and those of the test part are not looked at, so that
    what is built on the run can be tested on them.

    Args:
        source: What `train` takes, or a folder or archive of pictures without class folders.
        recipe: A shipped recipe's name, a YAML file or a Recipe, with the group `self_supervised`.
        out: Folder in which the run's folder is made.
        name: Of the run, after the time; the source's name without one.
        device: `auto`, `cpu`, `cuda` or `mps`.
        quiet: Say nothing while it runs.
        callbacks: Of your own, called after the recipe's.
        plan: Execute it so, and on this plan's device, to repeat another run's bits; None measures.
        settings: Recipe keys to change, dotted ones too.
        **overrides: Recipe keys to change.

    Raises:
        NetloomError: Of the fitting kind; the message says what to do.
        InterruptedTrainingError: Ctrl-C or SIGTERM; the run can be resumed.
    """
    keep_freed_memory()
    reporter = Reporter(quiet=quiet)
    chosen = _recipe(recipe, {**(settings or {}), **overrides})
    device = resolve_device(device if plan is None else plan.device)
    data = prepare_unlabelled(source, chosen, reporter)
    chosen = _with_length(chosen, len(data.split.train)).replace(image_size=list(data.facts.image_size))
    embedder = _embedder(chosen, data)
    folder = RunFolder.create(out, name or f"{data.facts.source_name}-pretrained")
    folder.write_setup(
        recipe=chosen,
        split=data.split.to_json(data.image_set.ids),
        data=data.facts,
        environment=environment_record(),
        pictures=pictures_to_remember(data.image_set, data.split, labelled=False),
    )
    with folder.alone():
        return PretrainingRun(Run(folder.path), chosen, data, embedder, device, reporter, plan=plan).execute(callbacks)


def resume_pretraining(
    run: str | Path | RunFolder,
    *,
    source: ImageSet | None = None,
    quiet: bool = False,
    callbacks: Sequence[Callback] = (),
) -> Run:
    """Go on with a pretraining that was cut short; it ends with the same bits as if it had never been.

    Args:
        run: Its folder.
        source: The pictures, where the run was trained on pictures in memory.
        quiet: Say nothing while it runs.
        callbacks: The same as were given to `pretrain`.

    Raises:
        RunError: There is no such run, it is no pretraining, another process trains it, or its pictures have changed.
        InterruptedTrainingError: Ctrl-C or SIGTERM; the run can be resumed.
    """
    keep_freed_memory()
    reporter = Reporter(quiet=quiet)
    opened = Run(RunFolder.open(run.path if isinstance(run, RunFolder) else run).path)
    recipe = opened.recipe
    if recipe.self_supervised is None:
        raise RunError(
            f"{opened.path} is a training with labels; go on with it by: netloom train --resume {opened.path}"
        )
    with opened.alone():
        opened.remove_unfinished_files()
        if opened.result["status"] == "finished":
            if not opened.is_complete:  # it was killed between its result and its report
                from netloom.workflows.pretraining_report import write_pretraining_report

                write_pretraining_report(opened)
            reporter.say(f"{opened.path} is finished.")
            return opened
        data = reopen_unlabelled(opened, source, recipe, reporter)
        plan = opened.saved_plan
        return PretrainingRun(
            opened,
            recipe,
            data,
            _embedder(recipe, data),
            resolve_device("auto" if plan is None else plan.device),
            reporter,
            plan=plan,
            checkpoint=load_checkpoint(opened.checkpoint_path) if opened.checkpoint_path.is_file() else None,
        ).execute(callbacks)


def _recipe(recipe: str | Path | Recipe, overrides: Mapping[str, Any]) -> Recipe:
    chosen = load_recipe(recipe, overrides)
    if chosen.self_supervised is None:
        raise RecipeError(
            f"The recipe {chosen.name or recipe!r} trains with labels: it has no group self_supervised. Use the recipe "
            f"{DEFAULT_PRETRAINING}, or `netloom train`."
        )
    return chosen


def _with_length(recipe: Recipe, n_train: int) -> Recipe:
    """The recipe with the number of epochs that its number of pictures comes to."""
    assert recipe.self_supervised is not None
    pictures = recipe.self_supervised.pictures
    if pictures is None:
        return recipe
    return recipe.replace(**{"epochs": max(1, round(pictures / n_train)), "self_supervised.pictures": None})


def _embedder(recipe: Recipe, data: UnlabelledData) -> Embedder:
    """The network, whose classifier is never used, and its projector.

    Raises:
        ModelError: The network does not fit the pictures or their views, or has no convolution to whiten.
    """
    facts, group = data.facts, recipe.self_supervised
    assert group is not None
    network = create_model(
        recipe.model,
        in_channels=facts.channels,
        num_outputs=1,
        image_size=facts.image_size,
        seed=recipe.seed,
        options=recipe.model_options(),
    )
    if recipe.first_layer == "frozen_whitening":
        freeze_first_convolution(network)
    embedder = Embedder(network, hidden=group.hidden_units, size=group.embedding_size, seed=recipe.seed)
    check_views(embedder, facts.channels, ConstantSizes(group.view_size).at(0, facts.image_size))
    return embedder
