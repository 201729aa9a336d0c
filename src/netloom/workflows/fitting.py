"""A network beside its pictures, ready to be trained: what every training has in common, whatever becomes of it."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from netloom.data.batches import Batch, Batches, ImageBatches, InputScaling
from netloom.data.imageset import ImageSet
from netloom.data.splits import Split
from netloom.models.heads import Head
from netloom.progress import Reporter
from netloom.recipe import Recipe
from netloom.run import RunFolder
from netloom.runtime import ExecutionPlan, on_device
from netloom.training.callbacks import Callback, CallbackList
from netloom.training.callbacks.time_limit import count_earlier
from netloom.training.checkpoint import Checkpoint, Checkpointer, weights_bytes
from netloom.training.loop import fit
from netloom.training.planning import choose_plan
from netloom.training.state import TrainingState
from netloom.training.step import TrainingStep
from netloom.training.timed_steps import TimedSteps
from netloom.workflows import builders
from netloom.workflows.starting_head import start_from_features
from netloom.workflows.starting_weights import initialize_from_weights


@dataclass(frozen=True, eq=False)
class Fitting:
    """What one training works with, on its device.

    Attributes:
        recipe: What is trained.
        network: On the device.
        heads: What its outputs mean.
        image_set: On the device, or where the pictures fit.
        split: Of `image_set`; the test part is not looked at, and there may be no validation part.
        scaling: From pixels to network inputs.
        device: A torch device name.
        train: Batches of the training part.
        reporter: Tells a person how it goes.
    """

    recipe: Recipe
    network: nn.Module
    heads: Sequence[Head]
    image_set: ImageSet
    split: Split
    scaling: InputScaling
    device: str
    train: ImageBatches
    reporter: Reporter

    @classmethod
    def prepare(
        cls,
        recipe: Recipe,
        network: nn.Module,
        heads: Sequence[Head],
        image_set: ImageSet,
        split: Split,
        *,
        scaling: InputScaling,
        device: str,
        initialized: bool = False,
        own_weights: Path | None = None,
        reporter: Reporter | None = None,
    ) -> Fitting:
        """Bring network and pictures to the device; a `FeatureFitting` where the recipe trains a head on features.

        Args:
            recipe: What is trained.
            network: With its initial weights; moved in place.
            heads: What its outputs mean.
            image_set: Pictures of all parts.
            split: Which pictures train and which validate.
            scaling: From pixels to network inputs.
            device: A torch device name.
            initialized: Weights come from a checkpoint, so that none are to be set from pretrained ones or the
                pictures. (A checkpoint of a head that is trained on features holds nothing of the rest.)
            own_weights: The file of a run that goes on, if it is there. What gives features is in it, as it was.
            reporter: Tells a person how it goes; None for nobody.

        Raises:
            ModelError: The recipe wants a whitened first convolution, and there is none; or pretrained weights, and
                they are missing or another network's; or it cannot be trained on batches of one picture.
            RecipeError: A class weight is given for a class that does not exist, what the recipe watches is not
                measured, or the pictures are too small for its augmentation.
        """
        builders.check_monitors(recipe, split)
        _, channels, height, width = image_set.images.shape
        builders.check_augmentation(recipe, (height, width))
        builders.check_single_pictures(
            recipe, network, channels=channels, image_size=(height, width), n_train=len(split.train)
        )
        by_features = builders.learns_from_features(recipe)
        initialized = initialized and not by_features
        if not initialized:
            kept = own_weights is not None and by_features and own_weights.is_file()
            initialize_from_weights(recipe, network, own=own_weights if kept else None)
        network = on_device(network, device)
        resident = builders.resident(image_set, device)
        if not initialized:
            builders.initialize_from_pictures(recipe, network, resident, split.train, scaling=scaling)
        train = builders.training_batches(recipe, resident, split.train, scaling=scaling, device=device)
        reporter = reporter or Reporter(quiet=True)
        fitting = cls(recipe, network, heads, resident, split, scaling, device, train, reporter)
        if not by_features:
            return fitting
        # Imported late, since it is made of this module.
        from netloom.workflows.feature_fitting import FeatureFitting

        return FeatureFitting.of(fitting, reporter)

    @property
    def scored(self) -> nn.Module:
        """What the batches of `part` go through to be scored."""
        return self.network

    def callbacks(self, run: RunFolder | None) -> list[Callback]:
        """The recipe's callbacks; those that write do so into the run's folder."""
        random_start = not builders.starts_from_features(self.recipe, self.network)
        return builders.build_callbacks(self.recipe, run, content=self.content, random_start=random_start)

    def content(self, model: nn.Module) -> bytes:
        """The whole network's weights as a file holds them, of what is trained."""
        return weights_bytes(model)

    def about(self) -> dict[str, Any]:
        """What `result.json` tells beside the figures that every training has."""
        return {}

    def choose_plan(self, *, n_steps: int | None = None, threads: int | None = None) -> ExecutionPlan:
        """How to execute it: what the recipe leaves to `auto`, and without `threads` their number, is measured.

        Args:
            n_steps: Optimizer steps that will be taken, where it is not all of the recipe's epochs.
            threads: How many of the CPU's are the training's, where that is decided already.

        Raises:
            TrainingError: Shards are asked for, but the model cannot be divided.
        """
        n_steps = self.recipe.epochs * len(self.train) if n_steps is None else n_steps
        with self._timed_steps() as steps:
            return choose_plan(
                steps,
                device=self.device,
                precision=self.recipe.precision,
                shards=self.recipe.shards,
                # What a step is prepared with serves as long as the same stages train.
                n_steps=n_steps // builders.count_phases(self.recipe, self.network),
                threads=threads,
            )

    def step_seconds(self, plans: Sequence[ExecutionPlan]) -> list[float]:
        """Seconds of a training step under each of the plans."""
        with self._timed_steps() as steps:
            return steps.seconds(plans)

    @contextlib.contextmanager
    def _timed_steps(self) -> Iterator[TimedSteps]:
        """Steps to measure with, on batches of the last epoch, whose pictures are whole."""
        with contextlib.closing(_alike(self.train, self.recipe.epochs - 1)) as batches:
            yield TimedSteps(
                builders.as_in_training(self.recipe, self.network),
                next(batches),
                self.heads,
                label_smoothing=self.recipe.label_smoothing,
                make_step=self.training_step,
                draw=functools.partial(next, batches),
            )

    def part(self, indices: npt.NDArray[np.int64]) -> Batches:
        """Batches of `image_set[indices]` in order, never augmented."""
        return builders.plain_batches(
            self.image_set,
            indices,
            batch_size=self.recipe.batch_size,
            scaling=self.scaling,
            device=self.device,
        )

    @property
    def learner(self) -> nn.Module:
        """What steps train."""
        return self.network

    def learned_from(self) -> Batches:
        """Batches of the training part as steps take them."""
        return self.train

    def step_plan(self, plan: ExecutionPlan) -> ExecutionPlan:
        """How steps are executed."""
        return plan

    def step_options(self, learner: nn.Module) -> dict[str, Any]:
        """Further arguments of a training step, for the learner or a copy."""
        return builders.step_options(self.recipe, learner)

    def training_step(self, learner: nn.Module, plan: ExecutionPlan) -> TrainingStep:
        """A step of `learner`, which is this one's or a copy, as the last epoch takes it."""
        freezing = builders.build_freezing(self.recipe, learner)
        optimizer = builders.build_optimizer(self.recipe, learner, freezing)
        if freezing is not None:
            freezing.enter(learner, self.recipe.epochs - 1)
        options = self.step_options(learner)
        return TrainingStep(learner, self.heads, optimizer, plan=self.step_plan(plan), seed=self.recipe.seed, **options)

    def make_ready(self, plan: ExecutionPlan, interruption: Callable[[], str | None] = lambda: None) -> bool:
        """Do what comes before the first step; False if `interruption` had a reason, and it is not done.

        A linear head behind pretrained features starts from the logistic regression on them.
        """
        if not builders.starts_from_features(self.recipe, self.network):
            return True
        with self.reporter.bar("Computing features for the head to start from") as on_progress:
            how = start_from_features(
                self.recipe,
                self.network,  # type: ignore[arg-type]
                self.heads[0],
                self.image_set,
                self.split.train,
                scaling=self.scaling,
                plan=plan,
                on_progress=on_progress,
                interruption=interruption,
            )
        if how is not None:
            self.reporter.say(f"The head starts from the logistic regression on the features. {how}")
        return how is not None

    def not_begun(self, model: nn.Module, steps: int, reason: str | None = None) -> TrainingState:
        """Of a training of `steps` steps in an epoch that has had none: its optimizer has nothing to do."""
        idle = torch.optim.SGD([nn.Parameter(torch.zeros(()))], lr=0.0)
        epochs = 1 if builders.is_solved_at_once(self.recipe) else self.recipe.epochs
        state = TrainingState(model, idle, epochs, steps, validates=len(self.split.validation) > 0)
        state.interrupt(reason)
        return state

    def fit(
        self,
        plan: ExecutionPlan,
        callbacks: Sequence[Callback] | CallbackList,
        *,
        checkpointer: Checkpointer | None = None,
        resume: Checkpoint | None = None,
        interruption: Callable[[], str | None] = lambda: None,
    ) -> TrainingState:
        """Train the network in place; see `training.loop.fit`.

        Raises:
            TrainingError: The loss is no longer a number.
        """
        recipe, started = self.recipe, time.monotonic()
        if resume is None and not self.make_ready(plan, interruption):
            return self.not_begun(self.network, len(self.train), interruption())
        count_earlier(callbacks, time.monotonic() - started)
        freezing = builders.build_freezing(recipe, self.network)
        return fit(
            self.learner,
            train=self.learned_from(),
            validation=self.part(self.split.validation) if len(self.split.validation) else None,
            heads=self.heads,
            optimizer=builders.build_optimizer(recipe, self.learner, freezing),
            plan=self.step_plan(plan),
            epochs=recipe.epochs,
            seed=recipe.seed,
            schedule=builders.build_schedule(recipe),
            **self.step_options(self.learner),
            freezing=freezing,
            callbacks=callbacks,
            checkpointer=checkpointer,
            resume=resume,
            interruption=interruption,
        )


def _alike(train: Batches, epoch: int) -> Generator[Batch, None, None]:
    """Batches of an epoch over and over, without those that are smaller than its first."""
    size = None
    while True:
        for batch in train.epoch(epoch):
            size = size or len(batch)
            if len(batch) == size:
                yield batch
