"""What a trial is scored by, beyond the figures that every training has: scores in which all classes count the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from netloom.data.imageset import ImageSet
from netloom.data.splits import Split
from netloom.evaluation.holdout import Evaluation, evaluate_model
from netloom.inference import Prediction
from netloom.metrics.scores import balanced_accuracy, confusion_matrix, macro_f1
from netloom.models.heads import Head
from netloom.runtime import on_device
from netloom.training.callbacks import Callback
from netloom.training.state import TrainingState
from netloom.workflows import builders
from netloom.workflows.runs import Run
from netloom.workflows.search_options import Objective

_BY_CLASS: Mapping[Objective, Callable[[npt.NDArray[np.int64]], float]] = {
    "validation_macro_f1": macro_f1,
    "validation_balanced_accuracy": balanced_accuracy,
}
"""Objectives that no training records by itself, as functions of a confusion matrix."""


class ClassFigures(Callback):
    """Adds to each epoch's row an objective that follows from the confusion matrix of the validation part.

    Args:
        objective: Where it is one that every epoch has anyway, nothing is done.
        head: Whose outputs are scored.
        targets: True classes of the validation part, int64 `[n]`.
    """

    def __init__(self, objective: Objective, head: Head, targets: npt.NDArray[np.int64]) -> None:
        self._objective, self._head, self._targets = objective, head, targets
        self._predicted: list[torch.Tensor] | None = None
        self._value: float | None = None

    def on_validation_start(self, state: TrainingState) -> None:
        """Watch the pass that follows."""
        if self._objective in _BY_CLASS:
            self._predicted = []

    def on_predict_batch_end(self, prediction: Prediction) -> None:
        """Keep the likeliest classes."""
        if self._predicted is not None:
            self._predicted.append(self._head.probabilities(prediction.outputs[self._head.name]).argmax(dim=1))

    def on_validation_end(self, state: TrainingState) -> None:
        """Count them."""
        if self._predicted is not None:
            predictions, self._predicted = torch.cat(self._predicted).cpu().numpy(), None
            confusion = confusion_matrix(self._targets, predictions, self._head.num_classes)
            self._value = _BY_CLASS[self._objective](confusion)

    def on_epoch_end(self, state: TrainingState) -> None:
        """Write the figure into the epoch's row."""
        if self._value is not None:
            state.history[-1][self._objective] = self._value
            self._value = None


def score_of(evaluation: Evaluation, objective: Objective) -> float:
    """An objective's value on pictures that were not trained on."""
    scores = evaluation.scores
    if objective in _BY_CLASS:
        return _BY_CLASS[objective](scores.confusion)
    return float(scores.accuracy.value if objective == "validation_accuracy" else scores.log_loss.value)


def score_of_run(
    run: Run,
    image_set: ImageSet,
    split: Split,
    objective: Objective,
    *,
    part: Literal["validation", "test"] = "validation",
) -> float:
    """An objective's value of the weights that a run has kept, as in validation: of each picture as it is.

    Args:
        run: Finished.
        image_set: The pictures as it saw them.
        split: Its own.
        objective: Which figure.
        part: Scored on which part; the test part of a fold is what it holds out.
    """
    if part == "validation" and objective not in _BY_CLASS:
        return float(run.history[int(run.result["kept_epoch"] or len(run.history)) - 1][objective])
    recipe, facts, plan = run.recipe, run.data, run.plan.predicting_with_all_threads()
    targets = image_set.targets.numpy()
    scored = split.validation if part == "validation" else split.test
    found = evaluate_model(
        on_device(run.model(), plan.device),
        builders.plain_batches(
            builders.resident(image_set, plan.device),
            scored,
            batch_size=recipe.batch_size,
            scaling=facts.scaling,
            device=plan.device,
        ).epoch(),
        head=builders.build_heads(recipe, facts.class_names)[0],
        targets=targets[scored],
        train_targets=targets[split.train],
        plan=plan,
    )
    return score_of(found, objective)
