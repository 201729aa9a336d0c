"""A network beside its pictures, ready to be trained: what every training has in common, whatever becomes of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import nn

from netloom.data.batches import Batch, ImageBatches, InputScaling
from netloom.data.imageset import ImageSet
from netloom.data.splits import Split
from netloom.errors import RecipeError
from netloom.models.heads import Head
from netloom.recipe import Recipe
from netloom.runtime import ExecutionPlan, on_device
from netloom.training.callbacks import Callback
from netloom.training.checkpoint import Checkpoint, Checkpointer
from netloom.training.loop import fit
from netloom.training.planning import choose_plan
from netloom.training.state import TrainingState
from netloom.workflows import build


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
    """

    recipe: Recipe
    network: nn.Module
    heads: Sequence[Head]
    image_set: ImageSet
    split: Split
    scaling: InputScaling
    device: str
    train: ImageBatches

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
    ) -> Fitting:
        """Bring network and pictures to the device.

        Args:
            recipe: What is trained.
            network: With its initial weights; moved in place.
            heads: What its outputs mean.
            image_set: Pictures of all parts.
            split: Which pictures train and which validate.
            scaling: From pixels to network inputs.
            device: A torch device name.
            initialized: Weights come from a checkpoint, so that none are to be set from the pictures.

        Raises:
            ModelError: The recipe wants a whitened first convolution, and there is none.
            RecipeError: A class weight is given for a class that does not exist, or what the recipe watches is not
                measured.
        """
        check_monitors(recipe, split)
        network = on_device(network, device)
        resident = build.resident(image_set, device)
        if not initialized:
            build.initialize_from_pictures(recipe, network, resident, split.train, scaling=scaling)
        train = build.training_batches(recipe, resident, split.train, scaling=scaling, device=device)
        return cls(recipe, network, heads, resident, split, scaling, device, train)

    def choose_plan(self, *, n_steps: int | None = None, threads: int | None = None) -> ExecutionPlan:
        """How to execute it: what the recipe leaves to `auto`, and without `threads` their number, is measured.

        Args:
            n_steps: Optimizer steps that will be taken, where it is not all of the recipe's epochs.
            threads: How many of the CPU's are the training's, where that is decided already.

        Raises:
            TrainingError: Shards are asked for, but the model cannot be divided.
        """
        return choose_plan(
            self.network,
            self.typical_batch(),
            self.heads,
            device=self.device,
            precision=self.recipe.precision,
            shards=self.recipe.shards,
            label_smoothing=self.recipe.label_smoothing,
            n_steps=self.recipe.epochs * len(self.train) if n_steps is None else n_steps,
            threads=threads,
        )

    def typical_batch(self) -> Batch:
        """A batch to measure with: of the last epoch, whose pictures are whole."""
        return next(iter(self.train.epoch(self.recipe.epochs - 1)))

    def part(self, indices: npt.NDArray[np.int64]) -> ImageBatches:
        """Batches of `image_set[indices]` in order, never augmented."""
        return build.plain_batches(
            self.image_set,
            indices,
            batch_size=self.recipe.batch_size,
            scaling=self.scaling,
            device=self.device,
        )

    def fit(
        self,
        plan: ExecutionPlan,
        callbacks: Sequence[Callback],
        *,
        checkpointer: Checkpointer | None = None,
        resume: Checkpoint | None = None,
        interruption: Callable[[], str | None] = lambda: None,
    ) -> TrainingState:
        """Train the network in place; see `training.loop.fit`.

        Raises:
            TrainingError: The loss is no longer a number.
        """
        recipe = self.recipe
        return fit(
            self.network,
            train=self.train,
            validation=self.part(self.split.validation) if len(self.split.validation) else None,
            heads=self.heads,
            optimizer=build.build_optimizer(recipe, self.network),
            plan=plan,
            epochs=recipe.epochs,
            seed=recipe.seed,
            schedule=build.build_schedule(recipe),
            **build.step_options(recipe, self.network),
            callbacks=callbacks,
            checkpointer=checkpointer,
            resume=resume,
            interruption=interruption,
        )


def check_monitors(recipe: Recipe, split: Split) -> None:
    """See that what the recipe watches is measured.

    Raises:
        RecipeError: It watches the validation part, and there is none.
    """
    if len(split.validation):
        return
    stopping, plateau = recipe.early_stopping, recipe.reduce_on_plateau
    watching = {
        "keep=last": recipe.monitor if recipe.keep == "best" else None,
        "early_stopping=null": None if stopping is None else stopping.monitor,
        "reduce_on_plateau=null": None if plateau is None else plateau.monitor,
    }
    unmeasured = {remedy: name for remedy, name in watching.items() if name and name.startswith("validation")}
    if unmeasured:
        keys = [f"{remedy.partition('=')[0]} ({name})" for remedy, name in unmeasured.items()]
        raise RecipeError(
            f"There is no validation part, which {' and '.join(keys)} would watch. Use "
            f"{' '.join(f'--set {remedy}' for remedy in unmeasured)}, watch train_loss, or give a validation part "
            "(validation_fraction above 0)."
        )
