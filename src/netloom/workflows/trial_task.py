"""What runs in a worker of a search: one trial, from its start or its last checkpoint, never tested."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from netloom.data.imageset import ImageSet
from netloom.data.splits import Split
from netloom.errors import DataError, TrainingError
from netloom.evaluation.holdout import evaluate_model
from netloom.models.heads import Head
from netloom.parallel.pictures import received_pictures
from netloom.parallel.tasks import TaskContext, find
from netloom.recipe import Recipe, load_recipe
from netloom.recipe.changes import of_searched_mode
from netloom.run_facts import DataFacts
from netloom.runtime import ExecutionPlan, keep_freed_memory
from netloom.training.callbacks import Callback
from netloom.training.checkpoint import Checkpointer
from netloom.training.state import TrainingState
from netloom.workflows import builders
from netloom.workflows.builders import CustomModel
from netloom.workflows.fitting import Fitting
from netloom.workflows.search_options import Objective
from netloom.workflows.starting_weights import settle
from netloom.workflows.training_run import kept_epoch
from netloom.workflows.trial_folder import TrialFolder
from netloom.workflows.trial_scores import ClassFigures, score_of

_SECONDS_PER_REPORT = 0.5


@dataclass(frozen=True)
class TrialPictures:
    """The pictures as some trials see them: where their size is searched over, there is a set for each.

    Attributes:
        settings: Recipe keys with the values that these pictures are for; none where they are for all trials.
        image_set: In the order of all others.
        facts: Of them.
    """

    settings: Mapping[str, Any]
    image_set: ImageSet
    facts: DataFacts

    def are_for(self, overrides: Mapping[str, Any]) -> bool:
        """Whether a trial with these values uses them."""
        return all(overrides.get(key) == value for key, value in self.settings.items())


@dataclass(frozen=True)
class TrialResources:
    """What all trials share in one process.

    Attributes:
        pictures: Those of every split, a set for each size that is searched over.
        recipe: What the trials change.
        splits: One for a hold-out score, several for a cross-validated one.
        objective: What a trial's value is.
        model: The function making the network, where it is the user's own.
    """

    pictures: Sequence[TrialPictures]
    recipe: Recipe
    splits: Sequence[Split]
    objective: Objective
    model: CustomModel | None


def pictures_for(kinds: Sequence[TrialPictures], overrides: Mapping[str, Any]) -> TrialPictures:
    """Those for a trial with these values.

    Raises:
        DataError: There are none.
    """
    for kind in kinds:
        if kind.are_for(overrides):
            return kind
    wanted = {key: overrides.get(key) for kind in kinds for key in kind.settings}
    decoded = "; ".join(str(dict(kind.settings)) for kind in kinds)
    raise DataError(f"No pictures were decoded for {wanted}; there are those for {decoded}. Start the search anew.")


def plain_resources(resources: TrialResources) -> dict[str, Any]:
    """The arguments of `set_up`, without the pictures and the model."""
    return {
        "recipe": resources.recipe.to_mapping(),
        "splits": [
            {part: getattr(split, part).tolist() for part in ("train", "validation", "test")}
            for split in resources.splits
        ],
        "kinds": [{"settings": dict(p.settings), "facts": p.facts.to_json()} for p in resources.pictures],
        "objective": resources.objective,
    }


def set_up(
    *,
    model: str | None,
    recipe: Mapping[str, Any],
    splits: Sequence[Mapping[str, Sequence[int]]],
    kinds: Sequence[Mapping[str, Any]],
    objective: Objective,
    **pictures: Any,
) -> TrialResources:
    """Take the pictures as `received_pictures` does; the rest is as `plain_resources` and `name_of` give it."""
    keep_freed_memory()
    return TrialResources(
        pictures=[
            TrialPictures(kind["settings"], image_set, DataFacts.from_json(kind["facts"]))
            for kind, image_set in zip(kinds, received_pictures(**pictures), strict=True)
        ],
        recipe=Recipe.from_mapping(recipe),
        splits=[
            Split(
                train=np.array(split["train"], dtype=np.int64),
                validation=np.array(split["validation"], dtype=np.int64),
                test=np.array(split["test"], dtype=np.int64),
                method="",
                seed=0,
            )
            for split in splits
        ],
        objective=objective,
        model=None if model is None else find(model),
    )


def recipe_of_trial(recipe: Recipe, overrides: Mapping[str, Any], kinds: Sequence[TrialPictures]) -> Recipe:
    """A search's recipe with the values of a trial, and what the weights of its own model decide.

    What the pictures are like is decided: they have been decoded.

    Args:
        recipe: Of the search.
        overrides: Plain values by recipe key.
        kinds: The search's pictures.

    Raises:
        RecipeError: That is no recipe.
        ModelError: The weights are nowhere to be found, or damaged.
        DataError: There are no pictures for these values.
    """
    facts = pictures_for(kinds, overrides).facts
    said = load_recipe(recipe, of_searched_mode(overrides))
    settled = settle(said)
    seen = {"image_size": list(facts.image_size), "color": "grey" if facts.channels == 1 else "rgb"}
    return settled.replace(**{k: v for k, v in seen.items() if getattr(settled, k) != getattr(said, k)})


def run_trial(
    context: TaskContext, *, overrides: Mapping[str, Any], plan: Mapping[str, Any], folder: str | None, alone: bool
) -> dict[str, Any]:
    """Train the recipe with `overrides` and score it on pictures that it was not trained on.

    The score is that of the weights that would be kept: on the validation part, or the mean over folds of that on
    what each holds out. Epochs are reported as `{"step", "value", …}`.

    Args:
        context: Of the executor.
        overrides: Plain values by recipe key.
        plan: How every trial is executed.
        folder: Of this trial, for going on after a crash; None to begin anew then.
        alone: It runs in the search's own process, so that its folder has to tell how often that died.

    Returns:
        `state` (`complete`, or `stopped` where that was asked for), `value`, `epochs`, `kept_epoch` (None with folds),
        `kept_epochs` (one for each fold), `parameters`, `seconds`, and `values`, those of each epoch (of each fold,
        where there are folds).

    Raises:
        NetloomError: The overrides are no recipe, the model does not fit, or the loss is no longer a number.
    """
    resources: TrialResources = context.shared
    recipe = recipe_of_trial(resources.recipe, overrides, resources.pictures).replace(
        tensorboard=False, keep_every=None
    )
    trial = TrialFolder(None if folder is None else Path(folder), overrides)
    if trial.outcome is not None:  # its driver died before it could write it down
        return trial.outcome
    execution = ExecutionPlan.from_json(dict(plan))
    started = time.perf_counter()
    for number in range(len(trial.scores), len(resources.splits)):
        score = _Score(context, resources, recipe, number, execution, trial, alone=alone).train()
        if score is None:
            return {"state": "stopped", **_figures(trial, started)}
        trial.scores.append(score)
        trial.epochs_of_current, trial.values_of_current = 0, []
    values = [score["value"] for score in trial.scores]
    first = trial.scores[0]
    outcome = {
        "state": "complete",
        "value": float(np.mean(values)),
        **_figures(trial, started),
        "values": values if len(values) > 1 else first["values"],
        "parameters": first["parameters"],
        "kept_epoch": first["kept_epoch"] if len(values) == 1 else None,
        "kept_epochs": [score["kept_epoch"] for score in trial.scores],
    }
    trial.finish(outcome)
    return outcome


def _figures(trial: TrialFolder, started: float) -> dict[str, Any]:
    done = [score["value"] for score in trial.scores]
    return {
        "epochs": sum(score["epochs"] for score in trial.scores) + trial.epochs_of_current,
        "seconds": time.perf_counter() - started,
        "values": done or trial.values_of_current,
    }


class _Score:
    """One training of a trial, on one split."""

    def __init__(
        self,
        context: TaskContext,
        resources: TrialResources,
        recipe: Recipe,
        number: int,
        plan: ExecutionPlan,
        trial: TrialFolder,
        *,
        alone: bool,
    ) -> None:
        self.context, self.resources, self.recipe, self.number = context, resources, recipe, number
        self.pictures = pictures_for(resources.pictures, trial.overrides)
        self.plan, self.trial, self.split = plan, trial, resources.splits[number]
        self.cross_validated, self.alone = len(resources.splits) > 1, alone

    def train(self) -> dict[str, Any] | None:
        """The score, or None if the trial was asked to stop."""
        recipe, image_set, facts = self.recipe, self.pictures.image_set, self.pictures.facts
        path = self.trial.checkpoint(self.number)
        checkpoint = self.trial.load_checkpoint(self.number)
        epoch, step = (0, 0) if checkpoint is None else (checkpoint.values["epoch"], checkpoint.values["step"])
        self.trial.begin(epoch=epoch, step=step, counted=self.alone)
        network, heads = builders.build_network(recipe, facts, self.resources.model)
        fitting = Fitting.prepare(
            recipe,
            network,
            heads,
            image_set,
            self.split,
            scaling=builders.build_scaling(recipe, image_set.images, self.split.train),
            device=self.plan.device,
            initialized=checkpoint is not None,
        )
        reports = _Reports(self.context, self)
        state = fitting.fit(
            self.plan,
            [*self._by_class(heads[0]), *fitting.callbacks(None), reports],
            checkpointer=None if path is None else Checkpointer(path),
            resume=checkpoint,
            interruption=self.context.stop_reason,
        )
        self.trial.epochs_of_current = state.epoch
        objective = self.resources.objective
        self.trial.values_of_current = [row[objective] for row in state.history if objective in row]
        if state.interrupted:
            return None
        kept = kept_epoch(recipe, state.history)
        row = state.history[(kept or 1) - 1]
        if self.cross_validated:
            value = self._held_out(fitting, self.split.test)
        elif objective in row:
            value = float(row[objective])
        else:  # a classifier that was solved at once had no validation to watch
            value = self._held_out(fitting, self.split.validation)
        if not math.isfinite(value):
            raise TrainingError(f"The {objective.replace('_', ' ')} is not a number after training.")
        if self.cross_validated:
            done = [*(score["value"] for score in self.trial.scores), value]
            reports.tell(state, float(self.number + 1), step=len(done), value=float(np.mean(done)))
        return {
            "value": value,
            "epochs": state.epoch,
            "kept_epoch": kept,
            "values": self.trial.values_of_current,
            "parameters": sum(p.numel() for p in fitting.network.parameters()),
        }

    def _by_class(self, head: Head) -> list[Callback]:
        """What adds the objective to each epoch's figures, where it is none of them and a fold does not decide."""
        if self.cross_validated:
            return []
        targets = self.pictures.image_set.targets.numpy()[self.split.validation]
        return [ClassFigures(self.resources.objective, head, targets)]

    def _held_out(self, fitting: Fitting, part: npt.NDArray[np.int64]) -> float:
        """The score on pictures that the training did not see."""
        targets = self.pictures.image_set.targets.numpy()
        found = evaluate_model(
            fitting.scored,
            fitting.part(part).epoch(),
            head=fitting.heads[0],
            targets=targets[part],
            train_targets=targets[self.split.train],
            plan=self.plan,
        )
        return score_of(found, self.resources.objective)


class _Reports(Callback):
    """Tells the driver how far a trial is, and each epoch's value; with folds, each fold's."""

    def __init__(self, context: TaskContext, score: _Score) -> None:
        self._context, self._score = context, score
        self._last = time.monotonic()

    def on_batch_end(self, state: TrainingState) -> None:
        """Tell the progress within an epoch, now and then."""
        if time.monotonic() - self._last >= _SECONDS_PER_REPORT:
            self.tell(state, self._score.number + state.step / state.steps_per_epoch / state.epochs)

    def on_epoch_end(self, state: TrainingState) -> None:
        """Tell the epoch's value."""
        if not self._score.cross_validated:
            value = state.history[-1].get(self._score.resources.objective)
            figures = {} if value is None else {"step": state.epoch, "value": value}
            self.tell(state, state.epoch / state.epochs, **figures)

    def tell(self, state: TrainingState, done: float, **more: Any) -> None:
        """Report; `done` counts trainings."""
        self._last = time.monotonic()
        trainings = len(self._score.resources.splits)
        self._context.report({"done": done, "of": trainings, "epochs": state.epochs, **more})
