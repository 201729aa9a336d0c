"""Which learning rate suits a recipe on a source."""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from netloom.data.imageset import ImageSet
from netloom.errors import RecipeError, RunError
from netloom.files import prepare_to_write, write_atomically
from netloom.progress import Reporter
from netloom.recipe import Recipe
from netloom.runtime import ExecutionPlan, keep_freed_memory, resolve_device
from netloom.training.lr_finder import RangeTest, find_learning_rate
from netloom.workflows import builders
from netloom.workflows.builders import CustomModel
from netloom.workflows.fitting import Fitting
from netloom.workflows.prepare import prepare_data
from netloom.workflows.train import recipe_for

SUGGESTIONS = {
    "steepest": "steepest descent",
    "half_of_diverging": "half of where it shoots up",
}


def lr_find(
    source: str | Path | ImageSet,
    recipe: str | Path | Recipe | None = None,
    *,
    model: CustomModel | None = None,
    min_rate: float = 1e-6,
    max_rate: float = 10.0,
    n_steps: int = 300,
    max_seconds: float = 120.0,
    plot: str | Path | None = None,
    force: bool = False,
    device: str = "auto",
    plan: ExecutionPlan | None = None,
    quiet: bool = False,
    settings: Mapping[str, Any] | None = None,
    **overrides: Any,
) -> RangeTest:
    """Find learning rates for a recipe by the exponential range test, see `training.lr_finder`.

    All that the recipe says of training applies but its schedule and its learning rate. Where stages are unfrozen
    in the course of it, all that ever train do from the first step on; of a head on features, that alone is
    trained, on these. Only a copy of the network is trained: the model, generators and files stay as they are, and
    a training afterwards gives the same bits.

    Args:
        source: A folder, an archive, a CSV file, a named set, or an ImageSet.
        recipe: A shipped recipe's name, a YAML file or a Recipe; the source's own default without one.
        model: As in `train`.
        min_rate: Learning rate of the first step.
        max_rate: Learning rate of the last step.
        n_steps: Optimizer steps, at least 50; the test ends sooner where the loss shoots up.
        max_seconds: Fewer steps are taken where they would take longer than this, but not below 50.
        plot: An `.svg`, `.png` or `.html` file to draw the curve into; its folder is made.
        force: Replace `plot` if it exists.
        device: `auto`, `cpu`, `cuda` or `mps`.
        plan: Execute it so, and on this plan's device; None measures.
        quiet: Say nothing while it runs.
        settings: Recipe keys to change, dotted ones too.
        **overrides: Recipe keys to change.

    Raises:
        NetloomError: Of the fitting kind; the message says what to do.
    """
    path = None if plot is None else _checked(Path(plot), force=force)
    keep_freed_memory()
    reporter = Reporter(quiet=quiet)
    chosen = recipe_for(source, recipe, {**(settings or {}), **overrides}, model)
    if builders.is_solved_at_once(chosen):
        raise RecipeError(
            "This recipe fits its classifier to features in one go: there is no learning rate to find. Use "
            "transfer.classifier=network, or another transfer.mode."
        )
    device = resolve_device(device if plan is None else plan.device)
    data = prepare_data(source, chosen, reporter)
    custom = copy.deepcopy(model) if isinstance(model, nn.Module) else model
    network, heads = builders.build_network(chosen, data.facts, custom)
    fitting = Fitting.prepare(
        chosen, network, heads, data.image_set, data.split, scaling=data.facts.scaling, device=device, reporter=reporter
    )
    measured = plan or fitting.choose_plan(n_steps=n_steps)
    fitting.make_ready(measured)

    with reporter.bar("Trying learning rates") as on_progress:
        found = find_learning_rate(
            fitting.learner,
            train=fitting.learned_from(),
            make_step=functools.partial(fitting.training_step, plan=measured),
            min_rate=min_rate,
            max_rate=max_rate,
            n_steps=n_steps,
            max_seconds=max_seconds,
            on_progress=on_progress,
        )
    if path is not None:
        write_atomically(path, _drawn(found, f"{data.facts.source_name}: recipe {chosen.name}", path))
    return found


def _checked(path: Path, *, force: bool) -> Path:
    from netloom.report.rates import FORMATS

    known = [f".{name}" for name in FORMATS]
    if path.suffix.lower() not in known:
        raise RunError(f"--plot {path}: expected a name that ends in {', '.join(known)}.")
    prepare_to_write(path, force=force)
    return path


def _drawn(found: RangeTest, title: str, path: Path) -> bytes:
    from netloom.report.rates import draw_rates

    return draw_rates(
        found.rates,
        found.losses,
        found.smoothed,
        suggestions={SUGGESTIONS[name]: rate for name, rate in found.suggestions.items()},
        title=title,
        file_format=path.suffix.lower()[1:],
    )


def describe(found: RangeTest, *, plot: str | None = None) -> list[str]:
    """What the test found, in lines for people; `plot` is the file that was drawn."""
    lines = [
        f"{SUGGESTIONS[name][0].upper()}{SUGGESTIONS[name][1:]}:  --set learning_rate={rate:.2g}"
        for name, rate in found.suggestions.items()
    ]
    if not lines:
        lines = ["The loss neither fell nor shot up: try other rates with --min-rate and --max-rate, or more steps."]
    elif len(lines) == 2:
        lines.append("Start with the first; the second is about the largest that works, say as the peak of one_cycle.")
    if found.cut is not None:
        steps, asked = found.cut
        lines.append(
            f"It had {steps} of the {asked} steps that were asked for, since all would have taken too long, and a "
            "coarser curve by that: --max-seconds N allows more time."
        )
    where = f"Plot: {plot}" if plot else "--plot FILE.svg draws the curve."
    return [*lines, where]
