"""Train a recipe on a source and test it honestly."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from netloom.data.audit import audit
from netloom.data.batches import ImageBatches
from netloom.data.imageset import ImageSet, load_image_set
from netloom.data.named import NAMED_SETS
from netloom.data.sources import open_source
from netloom.data.splits import Split, make_split
from netloom.errors import TrainingError
from netloom.evaluation.holdout import Evaluation, evaluate_model
from netloom.models.heads import Head
from netloom.progress import Reporter
from netloom.recipe import CUSTOM_MODEL, MODEL_OPTIONS, Recipe, load_recipe
from netloom.run import DataFacts, RunFolder
from netloom.runtime import (
    ExecutionPlan,
    environment_record,
    keep_freed_memory,
    on_device,
    peak_memory_bytes,
    resolve_device,
)
from netloom.training.callbacks import Callback, EpochProgress
from netloom.training.checkpoint import Checkpointer, weights_bytes
from netloom.training.loop import fit
from netloom.training.planning import choose_plan
from netloom.training.state import TrainingState
from netloom.workflows import build
from netloom.workflows.build import CustomModel
from netloom.workflows.interruption import BY_SYSTEM, BY_USER, listening
from netloom.workflows.report import write_report
from netloom.workflows.runs import Run

_DEFAULT_RECIPE = "photos"


class InterruptedTrainingError(TrainingError):
    """The training was stopped from outside; the run so far is usable."""

    def __init__(self, message: str, run: Run, reason: str) -> None:
        super().__init__(message)
        self.run = run
        self.exit_code = {BY_USER: 130, BY_SYSTEM: 143}.get(reason, 130)


@dataclass(frozen=True)
class PreparedData:
    """Pictures, their split, and what is to be told about them."""

    image_set: ImageSet
    split: Split
    facts: DataFacts


def train(
    source: str | Path | ImageSet,
    recipe: str | Path | Recipe | None = None,
    *,
    model: CustomModel | None = None,
    out: str | Path = "runs",
    name: str | None = None,
    device: str = "auto",
    quiet: bool = False,
    callbacks: Sequence[Callback] = (),
    settings: Mapping[str, Any] | None = None,
    **overrides: Any,
) -> Run:
    """Train a classifier and test it once, at the end.

    Args:
        source: A folder, an archive, a CSV file, a named set, or an ImageSet.
        recipe: A shipped recipe's name, a YAML file or a Recipe; the source's own default without one.
        model: A `torch.nn.Module`, or a function making one, in place of the recipe's model. A function is given
            those of `in_channels`, `num_outputs` and `image_size` that it has parameters for.
        out: Folder in which the run's folder is made.
        name: Of the run, after the time; the source's name without one.
        device: `auto`, `cpu`, `cuda` or `mps`.
        quiet: Say nothing while it runs.
        callbacks: Of your own, called after the recipe's.
        settings: Recipe keys to change, dotted ones too.
        **overrides: Recipe keys to change.

    Raises:
        NetloomError: Of the fitting kind; the message says what to do.
        InterruptedTrainingError: Ctrl-C or SIGTERM; the run so far stays usable.
    """
    started = time.perf_counter()
    keep_freed_memory()
    reporter = Reporter(quiet=quiet)
    chosen = _load(source, recipe, {**(settings or {}), **overrides}, model)
    device = resolve_device(device)
    data = prepare_data(source, chosen, reporter)
    chosen = chosen.replace(image_size=list(data.facts.image_size))
    heads = build.build_heads(chosen, data.facts.class_names)
    network = build.build_model(
        chosen,
        in_channels=data.facts.channels,
        num_outputs=heads[0].num_outputs,
        image_size=data.facts.image_size,
        custom=model,
    )
    folder = RunFolder.create(out, name or data.facts.source_name)
    folder.write_setup(
        recipe=chosen,
        split=data.split.to_json(data.image_set.ids),
        data=data.facts,
        environment=environment_record(),
    )
    run = Run(folder.path, model=model)
    training = _Training(run, chosen, data, heads, network, device, reporter, started)
    return training.execute(callbacks)


def _load(
    source: str | Path | ImageSet,
    recipe: str | Path | Recipe | None,
    overrides: dict[str, Any],
    model: CustomModel | None,
) -> Recipe:
    if recipe is None:
        known = NAMED_SETS.get(str(source).casefold()) if isinstance(source, (str, Path)) else None
        recipe = known.default_recipe if known else _DEFAULT_RECIPE
    if model is not None:
        label = type(model).__name__ if isinstance(model, nn.Module) else getattr(model, "__name__", "?")
        cleared = dict.fromkeys(MODEL_OPTIONS)
        overrides = {**cleared, **overrides, "model": CUSTOM_MODEL, "custom_model": label}
    return load_recipe(recipe, overrides)


def prepare_data(source: str | Path | ImageSet, recipe: Recipe, reporter: Reporter) -> PreparedData:
    """Open, decode, audit and split a source as a recipe wants it.

    Raises:
        DataError: The source cannot be used.
    """
    opened = source if isinstance(source, ImageSet) else open_source(source)
    with reporter.bar("Reading pictures") as on_progress:
        loaded = load_image_set(
            opened,
            image_size=recipe.image_size,
            resize=recipe.resize,
            channels=build.wanted_channels(recipe),
            on_progress=on_progress,
        )
    image_set, report = loaded.image_set, audit(loaded)
    split = make_split(
        targets=image_set.targets.numpy(),
        parts=image_set.splits,
        groups=image_set.groups,
        content_hashes=image_set.content_hashes,
        class_names=image_set.class_names,
        validation_fraction=recipe.validation_fraction,
        test_fraction=recipe.test_fraction,
        seed=recipe.seed,
    )
    scaling = build.build_scaling(recipe, image_set.images, split.train)
    height, width = image_set.images.shape[2:]
    facts = DataFacts(
        source_name=loaded.source_name,
        source_location=loaded.source_location,
        class_names=tuple(image_set.class_names),
        image_size=(height, width),
        channels=1 if image_set.images.shape[1] == 1 else 3,
        resize=recipe.resize,
        mean=scaling.mean,
        std=scaling.std,
        audit=report.to_json(),
    )
    _say_what_is_there(reporter, facts, image_set, split, report.warnings)
    return PreparedData(image_set, split, facts)


def _say_what_is_there(
    reporter: Reporter, facts: DataFacts, image_set: ImageSet, split: Split, warnings: Sequence[str]
) -> None:
    height, width = facts.image_size
    reporter.say(
        f"{facts.source_name}: {len(image_set):,} pictures of {len(facts.class_names)} classes at "
        f"{width}x{height}, {'grey' if facts.channels == 1 else 'colour'}; "
        f"{len(split.train):,} to train, {len(split.validation):,} to validate, {len(split.test):,} to test"
    )
    for warning in [*warnings, *split.notes]:
        reporter.say(f"  note: {warning}")


@dataclass
class _Training:
    """One training, from a network to a tested run."""

    run: Run
    recipe: Recipe
    data: PreparedData
    heads: list[Head]
    network: nn.Module
    device: str
    reporter: Reporter
    started: float

    def execute(self, callbacks: Sequence[Callback]) -> Run:
        """Train, test, report."""
        self.network = on_device(self.network, self.device)
        batches = build.training_batches(
            self.recipe,
            self.data.image_set,
            self.data.split.train,
            scaling=self.data.facts.scaling,
            device=self.device,
        )
        plan = choose_plan(
            self.network,
            next(iter(batches.epoch(0))),
            self.heads,
            device=self.device,
            precision=self.recipe.precision,
        )
        self.run.write_plan(plan)
        self.run.write_result({"status": "running"})
        parameters = sum(p.numel() for p in self.network.parameters())
        self.reporter.say(
            f"{self.recipe.custom_model or self.recipe.model}: {parameters:,} parameters, on {plan.device} with "
            f"{plan.threads} threads in {plan.precision} ({plan.reason})"
        )
        try:
            state = self._fit(batches, plan, callbacks)
        except TrainingError as error:
            self.run.write_result({"status": "failed", "reason": str(error)})
            raise
        return self._finish(state, plan)

    def _fit(self, batches: ImageBatches, plan: ExecutionPlan, callbacks: Sequence[Callback]) -> TrainingState:
        recipe = self.recipe
        own = [*build.build_callbacks(recipe, self.run), EpochProgress(self.reporter)]
        with listening() as interruption:
            return fit(
                self.network,
                train=batches,
                validation=self._part(self.data.split.validation),
                heads=self.heads,
                optimizer=build.build_optimizer(recipe, self.network),
                plan=plan,
                epochs=recipe.epochs,
                seed=recipe.seed,
                schedule=build.build_schedule(recipe),
                penalty=build.build_penalty(recipe, self.network),
                label_smoothing=recipe.label_smoothing,
                gradient_clip_norm=recipe.gradient_clip_norm,
                callbacks=[*own, *callbacks],
                checkpointer=Checkpointer(self.run.checkpoint_path),
                interruption=interruption,
            )

    def _part(self, indices: Any) -> ImageBatches:
        return build.plain_batches(
            self.data.image_set,
            indices,
            batch_size=self.recipe.batch_size,
            scaling=self.data.facts.scaling,
            device=self.device,
        )

    def _evaluate(self, indices: Any, plan: ExecutionPlan) -> Evaluation:
        targets = self.data.image_set.targets.numpy()
        return evaluate_model(
            self.network,
            self._part(indices).epoch(),
            head=self.heads[0],
            targets=targets[indices],
            train_targets=targets[self.data.split.train],
            plan=plan,
        )

    def _finish(self, state: TrainingState, plan: ExecutionPlan) -> Run:
        """Keep the weights, look at the test part once, write result and report."""
        self.run.write_weights(weights_bytes(self.network))
        interrupted = state.stop_reason in (BY_USER, BY_SYSTEM)
        result = self._result(state, plan, "interrupted" if interrupted else "finished")
        if state.history:
            validation = self._evaluate(self.data.split.validation, plan)
            result["validation"] = {**validation.to_json(), **_best(state.history)}
        test = None
        if not interrupted:
            test = self._evaluate(self.data.split.test, plan)
            self.run.write_test_predictions(probabilities=test.probabilities, targets=test.targets)
            result["test"] = test.to_json()
        result["seconds"] = time.perf_counter() - self.started
        self.run.write_result(result)
        write_report(self.run, self.data.image_set, self.data.split, test)
        if interrupted:
            raise InterruptedTrainingError(
                f"Training was {state.stop_reason} after {state.epoch} of {state.epochs} epochs. "
                f"The run so far is usable: {self.run.path}",
                self.run,
                str(state.stop_reason),
            )
        self._say_result(result)
        return self.run

    def _result(self, state: TrainingState, plan: ExecutionPlan, status: str) -> dict[str, Any]:
        seconds = sum(row["seconds"] for row in state.history)
        kept = kept_epoch(self.recipe, state.history)
        parameters = list(self.network.parameters())
        return {
            "run": str(self.run.path),
            "status": status,
            "source": self.data.facts.source_name,
            "recipe": self.recipe.name,
            "model": self.recipe.custom_model or self.recipe.model,
            "parameters": sum(p.numel() for p in parameters),
            "trainable_parameters": sum(p.numel() for p in parameters if p.requires_grad),
            "epochs": state.epoch,
            "kept_epoch": kept,
            "stop_reason": state.stop_reason,
            "train_n": len(self.data.split.train),
            "train_images_per_second": (len(self.data.split.train) * len(state.history) / seconds if seconds else None),
            "train_seconds": seconds,
            "peak_memory_bytes": peak_memory_bytes(plan.device),
            "device": plan.device,
            "precision": plan.precision,
        }

    def _say_result(self, result: Mapping[str, Any]) -> None:
        test, validation = result["test"], result["validation"]
        low, high = test["interval"]
        self.reporter.say(
            f"Test accuracy {test['accuracy']:.2%} of {test['n']:,} pictures (95% interval {low:.2%} to {high:.2%}); "
            f"always guessing {test['majority_baseline']['class']!r}: {test['majority_baseline']['accuracy']:.2%}; "
            f"validation {validation['accuracy']:.2%} (weights of epoch {result['kept_epoch']})"
        )
        self.reporter.say(f"Run:    {self.run.path}\nReport: {self.run.report_path}")


def kept_epoch(recipe: Recipe, history: Sequence[Mapping[str, float]]) -> int | None:
    """The epoch whose weights are kept."""
    if not history:
        return None
    monitor = build.kept_by(recipe)
    if monitor is None:
        return int(history[-1]["epoch"])
    values = np.array([row[monitor] for row in history])
    best = values.argmax() if monitor.endswith("accuracy") else values.argmin()
    return int(history[int(best)]["epoch"])


def _best(history: Sequence[Mapping[str, float]]) -> dict[str, float]:
    best = max(history, key=lambda row: row["validation_accuracy"])
    return {"best_accuracy": best["validation_accuracy"], "best_epoch": best["epoch"]}
