"""What an output of a network means: its loss, its probabilities, and when it is right."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from netloom.errors import ModelError

Kind = Literal["softmax", "sigmoid", "regression"]


@dataclass(frozen=True)
class Head:
    """One named output of a network.

    `outputs` below are what the network gives for it, `[B, num_outputs]` of any floating type; all
    arithmetic on them is float32, also under autocast. `targets` are class indices, int64 `[B]`, or
    soft ones, float32 `[B, num_classes]`, whose rows sum to one; for regression values, float32
    `[B, num_outputs]`. `weights` are float32 `[B]`.

    Args:
        name: Key of this head's targets in a batch.
        kind: `softmax` (cross-entropy, one of K classes), `sigmoid` (binary cross-entropy, the
            second of two classes against the first) or `regression` (mean squared error).
        class_names: In the order of the class indices; may be left empty if `num_outputs` is given.
        num_outputs: Numbers per picture that the network gives; follows from `class_names`.
        loss_weight: Share of this head's loss in the sum over heads.

    Raises:
        ModelError: The kind is unknown, or kind, class names and number of outputs disagree.
    """

    name: str = "label"
    kind: Kind = "softmax"
    class_names: tuple[str, ...] = ()
    num_outputs: int = 0
    loss_weight: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in ("softmax", "sigmoid", "regression"):
            raise ModelError(
                f"Head {self.name!r}: expected the kind softmax, sigmoid or regression, got {self.kind!r}."
            )
        if self.kind == "sigmoid" and len(self.class_names) not in (0, 2):
            raise ModelError(
                f"Head {self.name!r}: sigmoid tells two classes apart, got {len(self.class_names)}. Use softmax."
            )
        expected = 1 if self.kind == "sigmoid" else len(self.class_names)
        if self.num_outputs == 0:
            object.__setattr__(self, "num_outputs", expected)
        if self.num_outputs < 1 or (expected and self.num_outputs != expected):
            raise ModelError(
                f"Head {self.name!r}: expected class_names or num_outputs that fit {self.kind}, "
                f"got num_outputs {self.num_outputs} and {len(self.class_names)} class names."
            )

    @property
    def num_classes(self) -> int:
        """Columns of `probabilities`; 0 for regression."""
        if self.kind == "regression":
            return 0
        return 2 if self.kind == "sigmoid" else self.num_outputs

    def loss(
        self,
        outputs: Tensor,
        targets: Tensor,
        *,
        weights: Tensor | None = None,
        label_smoothing: float = 0.0,
    ) -> Tensor:
        """The batch's mean loss, a float32 scalar: sum(weights * losses) / sum(weights).

        Without `loss_weight`. A batch whose weights are all zero has loss 0. See `losses` for
        `label_smoothing`.
        """
        if weights is None:
            return self._loss(outputs, targets, label_smoothing, "mean")
        losses = self.losses(outputs, targets, label_smoothing=label_smoothing)
        return (losses * weights).sum() / weights.sum().clamp_min(torch.finfo(torch.float32).tiny)

    def losses(self, outputs: Tensor, targets: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
        """Each sample's loss, float32 `[B]`.

        `label_smoothing` in [0, 1) moves that share of the target to the uniform distribution over
        the classes (Szegedy et al. 2016); regression has no classes and leaves it out.
        """
        losses = self._loss(outputs, targets, label_smoothing, "none")
        return losses.mean(dim=1) if self.kind == "regression" else losses

    def _loss(
        self,
        outputs: Tensor,
        targets: Tensor,
        label_smoothing: float,
        reduction: Literal["mean", "none"],
    ) -> Tensor:
        outputs = outputs.float()
        if self.kind == "softmax":
            return F.cross_entropy(outputs, targets, reduction=reduction, label_smoothing=label_smoothing)
        if self.kind == "regression":
            return F.mse_loss(outputs, targets.view_as(outputs), reduction=reduction)
        positive = self._second_class(targets).float()
        if label_smoothing:
            positive = positive * (1.0 - label_smoothing) + 0.5 * label_smoothing
        return F.binary_cross_entropy_with_logits(outputs[:, 0], positive, reduction=reduction)

    def probabilities(self, outputs: Tensor) -> Tensor:
        """Float32 `[B, num_classes]`, rows sum to one; a sigmoid head gives `[1 - p, p]`.

        Raises:
            ModelError: The head is a regression.
        """
        self._require_classes()
        outputs = outputs.float()
        if self.kind == "softmax":
            return torch.softmax(outputs, dim=1)
        # sigmoid(-x), since 1 - sigmoid(x) is 0 in float32 from x = 17 on.
        return torch.sigmoid(torch.cat([-outputs, outputs], dim=1))

    def soft_targets(self, targets: Tensor) -> Tensor:
        """Float32 `[B, num_classes]` of class indices or soft targets; a regression's values as they are."""
        if targets.is_floating_point():
            return targets
        return F.one_hot(targets, self.num_classes).to(torch.float32)

    def correct(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """How many samples' most probable class is their target's, an int64 scalar on the device.

        Raises:
            ModelError: The head is a regression.
        """
        self._require_classes()
        if self.kind == "sigmoid":
            return ((outputs[:, 0] > 0) == (self._second_class(targets) > 0.5)).sum()
        classes = targets.argmax(dim=1) if targets.is_floating_point() else targets
        return (outputs.argmax(dim=1) == classes).sum()

    def _second_class(self, targets: Tensor) -> Tensor:
        """Targets of a sigmoid's output, `[B]`: the class index, or the soft second column."""
        return targets[:, 1] if targets.ndim == 2 else targets

    def _require_classes(self) -> None:
        if self.kind == "regression":
            raise ModelError(f"Head {self.name!r} is a regression: it has values, not classes.")
