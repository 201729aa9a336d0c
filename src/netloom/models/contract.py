"""What every network answers, so that transfer, Grad-CAM and unfreezing need no special case.

The questions are those of timm (`forward_features`, `forward_head`, `reset_classifier`).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from netloom.errors import ModelError


def output_layer(in_features: int, num_outputs: int, *, generator: torch.Generator | None = None) -> nn.Linear:
    """A dense layer in front of a softmax or sigmoid: Glorot uniform weights, zero bias.

    Glorot and Bengio, "Understanding the difficulty of training deep feedforward neural networks",
    2010.
    """
    layer = nn.Linear(in_features, num_outputs)
    nn.init.xavier_uniform_(layer.weight, generator=generator)
    nn.init.zeros_(layer.bias)
    return layer


class ImageModel(nn.Module):
    """A network in three parts: `trunk` (pictures to features), `head`, `classifier`.

    Families differ in what they put in, not in behaviour, so nothing is derived from this class.

    Args:
        trunk: Stages in order, by name. Pictures float `[B, C, H, W]` in; the last feature map out,
            before any flattening or global pooling: `[B, num_features, h, w]`, in dense networks
            `[B, num_features]`. A trunk that is no chain of stages names them itself (`stages()`).
        head: From there to what the classifier sees, `[B, classifier_features]`; may be empty.
        num_features: Channels of the trunk's output.
        classifier_features: Numbers per picture that the head gives.
        num_outputs: Numbers per picture that the network gives (see `Head.num_outputs`).

    Attributes:
        is_registered: Whether the registry built it as one of this house's, whose steps tests check.
    """

    is_registered = False

    def __init__(
        self,
        *,
        trunk: nn.Module,
        head: nn.Sequential,
        num_features: int,
        classifier_features: int,
        num_outputs: int,
    ) -> None:
        super().__init__()
        self.trunk = trunk
        self.head = head
        self.classifier = output_layer(classifier_features, num_outputs)
        self.num_features = num_features

    def forward_features(self, x: Tensor) -> Tensor:
        """`[B, num_features, h, w]` (or `[B, num_features]`) of pictures `[B, C, H, W]`."""
        features: Tensor = self.trunk(x)
        return features

    def forward_head(self, features: Tensor, *, pre_logits: bool = False) -> Tensor:
        """Outputs `[B, num_outputs]` from what `forward_features` gave.

        With `pre_logits` the classifier's input instead, `[B, classifier.in_features]`.
        """
        hidden: Tensor = self.head(features)
        return hidden if pre_logits else self.classifier(hidden)

    def forward(self, x: Tensor) -> Tensor:
        """Outputs `[B, num_outputs]` of pictures `[B, C, H, W]`, before any softmax or sigmoid."""
        return self.forward_head(self.forward_features(x))

    def reset_classifier(self, num_outputs: int, *, generator: torch.Generator | None = None) -> None:
        """Replace the classifier by a new one, drawn from `generator` (one of the CPU).

        Raises:
            ModelError: `num_outputs` is less than one.
        """
        if num_outputs < 1:
            raise ModelError(f"num_outputs: expected at least 1, got {num_outputs}.")
        old = self.classifier
        new = output_layer(old.in_features, num_outputs, generator=generator)
        self.classifier = new.to(device=old.weight.device, dtype=old.weight.dtype)

    def stages(self) -> list[tuple[str, nn.Module]]:
        """The parts with parameters, by name, from input to output; `head`, `classifier` last."""
        own = getattr(self.trunk, "stages", None)
        stages = list(self.trunk.named_children()) if own is None else own()
        parts = [*stages, ("head", self.head), ("classifier", self.classifier)]
        return [(name, part) for name, part in parts if any(True for _ in part.parameters())]
