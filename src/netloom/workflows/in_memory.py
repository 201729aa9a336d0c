"""Train on pictures in memory without a run: no test part, no folder, no report. The caller holds out what tests."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from netloom.data.fingerprint import hash_pictures
from netloom.data.imageset import ImageSet, channels_last_images, load_image_set
from netloom.data.splits import make_split
from netloom.errors import ModelError
from netloom.inference import predict_outputs
from netloom.progress import Reporter
from netloom.recipe import Recipe, wanted_channels
from netloom.run_facts import DataFacts
from netloom.runtime import ExecutionPlan, executing, keep_freed_memory, on_device
from netloom.training.callbacks import EpochProgress
from netloom.workflows import builders
from netloom.workflows.builders import CustomModel
from netloom.workflows.fitting import Fitting

# Threads and generators are the process's: three fits at once in threads of one process gave other weights each time.
_ONE_AT_A_TIME = threading.RLock()


@dataclass(frozen=True, eq=False)
class FittedNetwork:
    """A trained network with all that predicting takes.

    Attributes:
        recipe: What was trained.
        facts: What the network needs to know of pictures.
        plan: How it was executed.
        network: With the kept weights.
        history: One row per epoch, see `TrainingState`.
        stop_reason: Why training ended before its last epoch, or None.
        model: The function that made the network, where it is the user's own.
    """

    recipe: Recipe
    facts: DataFacts
    plan: ExecutionPlan
    network: nn.Module
    history: list[dict[str, float]]
    stop_reason: str | None
    model: CustomModel | None = None

    def probabilities(self, pixels: npt.NDArray[np.uint8], *, device: str, threads: int) -> npt.NDArray[np.float32]:
        """Float32 `[N, K]` of pictures uint8 `[N, H, W, C]`, rows sum to one.

        Raises:
            ModelError: An output is not a finite number.
        """
        facts, recipe = self.facts, self.recipe
        image_set = _image_set(pixels, np.zeros(len(pixels), dtype=np.int64), facts.class_names)
        loaded = load_image_set(
            image_set, image_size=facts.image_size, resize=facts.resize, channels=facts.channels
        ).image_set
        batches = builders.plain_batches(
            builders.resident(loaded, device),
            np.arange(len(pixels)),
            batch_size=recipe.batch_size,
            scaling=facts.scaling,
            device=device,
        )
        precision = self.plan.precision if self.plan.device == device else "float32"
        plan = ExecutionPlan(device, threads, precision)
        head = builders.build_heads(recipe, facts.class_names)[0]
        with _ONE_AT_A_TIME, executing(plan):
            outputs = predict_outputs(
                on_device(self.network, device),
                batches.epoch(),
                head_names=[head.name],
                plan=plan,
                test_time_augmentation=recipe.test_time_augmentation,
            )
        with torch.no_grad():
            found: npt.NDArray[np.float32] = head.probabilities(outputs[head.name]).numpy()
        if not np.isfinite(found).all():
            raise ModelError("The network gives no finite probabilities. Train with a smaller learning_rate.")
        return found

    def to_json(self) -> dict[str, Any]:
        """Plain values of all but the weights and the function that made the network."""
        return {
            "recipe": self.recipe.to_mapping(),
            "facts": self.facts.to_json(),
            "plan": self.plan.to_json(),
            "history": self.history,
            "stop_reason": self.stop_reason,
        }

    @classmethod
    def from_json(
        cls, value: Mapping[str, Any], put_weights: Callable[[nn.Module], None], *, model: CustomModel | None = None
    ) -> FittedNetwork:
        """What `to_json` gave, with the weights that `put_weights` loads into the network it is given.

        Args:
            value: Checked before it is used.
            put_weights: Called with a network of the right shape.
            model: The function making the network, where it is the user's own.

        Raises:
            NetloomError: The recipe or the network is impossible, or the weights do not fit.
            ValueError: Something else is not what `to_json` gives.
        """
        recipe, facts = Recipe.from_mapping(value["recipe"]), DataFacts.from_json(value["facts"])
        network, _ = builders.build_network(recipe, facts, model)
        put_weights(network)
        history = [{str(k): float(v) for k, v in row.items()} for row in value["history"]]
        plan = ExecutionPlan.from_json(dict(value["plan"]))
        return cls(recipe, facts, plan, network, history, value["stop_reason"], model)


def fit_in_memory(
    pixels: npt.NDArray[np.uint8],
    targets: npt.NDArray[np.int64],
    class_names: Sequence[str],
    recipe: Recipe,
    *,
    weights: npt.NDArray[np.float32] | None = None,
    model: CustomModel | None = None,
    device: str,
    threads: int,
    reporter: Reporter,
) -> FittedNetwork:
    """Train a recipe on pictures, a part of which validates.

    Nothing is measured: what the recipe leaves to `auto` is float32 without shards, so that the same call gives the
    same bits every time, however busy the machine is. One training runs at a time in a process.

    Args:
        pixels: uint8 `[N, H, W, C]`, C 1 or 3.
        targets: Class indices `[N]`.
        class_names: In their order.
        recipe: What to train.
        weights: What each picture counts in the training loss, `[N]`, or None.
        model: The function making the network, where it is the user's own.
        device: A torch device name.
        threads: Of one operation on the CPU.
        reporter: Tells a person how it goes.

    Raises:
        NetloomError: The pictures, the recipe or the network do not fit one another.
        TrainingError: The loss is no longer a number.
    """
    keep_freed_memory()
    recipe = recipe.replace(
        precision="float32" if recipe.precision == "auto" else recipe.precision,
        shards=0 if recipe.shards == "auto" else recipe.shards,
    )
    image_set = load_image_set(
        _image_set(pixels, targets, class_names, weights=weights, hashes=hash_pictures(pixels)),
        image_size=recipe.image_size,
        resize=recipe.resize,
        channels=wanted_channels(recipe),
    ).image_set
    split = make_split(test_fraction=None, **builders.split_options(recipe, image_set))
    scaling = builders.build_scaling(recipe, image_set.images, split.train)
    _, channels, height, width = image_set.images.shape
    facts = DataFacts(
        source_name="pictures",
        source_location="",
        class_names=tuple(class_names),
        image_size=(height, width),
        channels=1 if channels == 1 else 3,
        resize=recipe.resize,
        mean=scaling.mean,
        std=scaling.std,
        fingerprint="",
        audit={},
    )
    with _ONE_AT_A_TIME:
        network, heads = builders.build_network(recipe, facts, model)
        fitting = Fitting.prepare(recipe, network, heads, image_set, split, scaling=scaling, device=device)
        # How convolutions compute is a measurement, and weights depend on it in their last bits.
        plan = replace(fitting.choose_plan(threads=threads), convolutions=())
        state = fitting.fit(plan, [*fitting.callbacks(None), EpochProgress(reporter)])
    return FittedNetwork(recipe, facts, plan, fitting.network, state.history, state.stop_reason, model)


def _image_set(
    pixels: npt.NDArray[np.uint8],
    targets: npt.NDArray[np.int64],
    class_names: Sequence[str],
    *,
    weights: npt.NDArray[np.float32] | None = None,
    hashes: Sequence[str] | None = None,
) -> ImageSet:
    return ImageSet(
        images=channels_last_images(pixels),
        targets=torch.from_numpy(targets),
        class_names=tuple(class_names),
        ids=tuple(map(str, range(len(pixels)))),
        weights=None if weights is None else torch.from_numpy(weights),
        content_hashes=None if hashes is None else tuple(hashes),
    )
