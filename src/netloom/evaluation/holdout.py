"""Evaluation on pictures that had no part in training."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from netloom.data.batches import Batch
from netloom.errors import ModelError
from netloom.inference import TestTimeAugmentation, Watch, predict_outputs, unwatched
from netloom.metrics.scores import per_class_scores
from netloom.metrics.summary import HeldOutScores, score_probabilities
from netloom.models.heads import Head
from netloom.runtime import ExecutionPlan, executing


@dataclass(frozen=True)
class Evaluation:
    """Scores of one part, and the predictions they come from.

    Attributes:
        scores: With intervals.
        probabilities: Float32 `[n, K]`.
        targets: True classes, int64 `[n]`.
        class_names: In the order of the columns.
    """

    scores: HeldOutScores
    probabilities: npt.NDArray[np.float32]
    targets: npt.NDArray[np.int64]
    class_names: tuple[str, ...]
    groups: npt.NDArray[np.int64] | None = None
    """The group of each picture, `[n]`; None where each stands for itself."""

    @classmethod
    def of(
        cls,
        probabilities: npt.NDArray[np.float32],
        targets: npt.NDArray[np.int64],
        *,
        train_targets: npt.NDArray[np.int64],
        class_names: tuple[str, ...],
        groups: npt.NDArray[np.int64] | None = None,
    ) -> Evaluation:
        """Score finite probabilities `[n, K]`; the arguments are those of `evaluate_model`."""
        scores = score_probabilities(probabilities, targets, train_targets=train_targets, groups=groups)
        return cls(scores, probabilities, targets, class_names, groups)

    @property
    def predictions(self) -> npt.NDArray[np.int64]:
        """The likeliest class of each picture, int64 `[n]`."""
        likeliest: npt.NDArray[np.int64] = self.probabilities.argmax(axis=1)
        return likeliest

    def to_json(self) -> dict[str, Any]:
        """Figures for `result.json`."""
        scores, bins = self.scores, self.scores.reliability
        by_class = per_class_scores(scores.confusion)
        return {
            "accuracy": scores.accuracy.value,
            "n": scores.accuracy.n,
            "groups": scores.accuracy.groups,
            "interval": list(scores.accuracy.interval),
            "macro_f1": scores.macro_f1.value,
            "macro_f1_interval": [_number(end) for end in scores.macro_f1.interval],
            "log_loss": scores.log_loss.value,
            "log_loss_interval": [_number(end) for end in scores.log_loss.interval],
            "expected_calibration_error": bins.expected_calibration_error,
            "majority_baseline": {
                "class": self.class_names[scores.majority_class],
                "accuracy": scores.majority.value,
            },
            "confusion": scores.confusion.tolist(),
            "per_class": {
                name: {
                    "precision": _number(by_class.precision[i]),
                    "recall": _number(by_class.recall[i]),
                    "f1": _number(by_class.f1[i]),
                    "n": int(by_class.support[i]),
                }
                for i, name in enumerate(self.class_names)
            },
        }


def evaluate_model(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    head: Head,
    targets: npt.NDArray[np.int64],
    train_targets: npt.NDArray[np.int64],
    groups: npt.NDArray[np.int64] | None = None,
    plan: ExecutionPlan,
    watch: Watch = unwatched,
    test_time_augmentation: TestTimeAugmentation = "none",
) -> Evaluation:
    """Score `model` on the pictures of `batches`.

    Args:
        model: On the plan's device.
        batches: In order, not augmented.
        head: Which output is scored.
        targets: True classes in the order of the batches, int64 `[n]`.
        train_targets: Of the training part, for the majority baseline.
        groups: The group of each picture in the same order, int64 `[n]`, which intervals take into account.
        plan: Device, threads and precision.
        watch: Called with the prediction hooks.
        test_time_augmentation: Versions of each picture that outputs are averaged over, see `augmented_views`.

    Raises:
        ModelError: An output is not a finite number.
    """
    with executing(plan):
        outputs = predict_outputs(
            model,
            batches,
            head_names=[head.name],
            plan=plan,
            watch=watch,
            test_time_augmentation=test_time_augmentation,
        )
    with torch.no_grad():
        probabilities = head.probabilities(outputs[head.name]).numpy()
    broken = int((~np.isfinite(probabilities).all(axis=1)).sum())
    if broken:
        raise ModelError(
            f"The network gives no finite probabilities for {broken:,} of {len(probabilities):,} pictures: its weights "
            "or activations have grown beyond all bounds. Train with a smaller learning_rate."
        )
    return Evaluation.of(
        probabilities, targets, train_targets=train_targets, class_names=head.class_names, groups=groups
    )


def _number(value: float) -> float | None:
    """NaN, where a class was never predicted or groups are too few for an interval, has no place in JSON."""
    return None if np.isnan(value) else float(value)
