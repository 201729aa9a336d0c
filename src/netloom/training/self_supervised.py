"""Learning without labels: a network is taught to recognize a picture in another view of it among many pictures.

SimCLR: Chen et al., "A simple framework for contrastive learning of visual representations", 2020,
https://arxiv.org/abs/2002.05709. Two views of each picture of a batch, changed at random, go through the network and a
small dense one behind it, the projector; the loss is the cross-entropy of finding a view's partner among all other
views of the batch by the cosine of their outputs (NT-Xent, equation 1). The projector is thrown away afterwards.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from netloom.data.augment import AugmentationSpec, Augmenter
from netloom.data.batches import Batch, ImageBatches, InputScaling
from netloom.data.progressive import Sizes, scaled_size
from netloom.errors import ModelError
from netloom.models.contract import ImageModel
from netloom.models.heads import Head
from netloom.randomness import derive_seed

PAIR = "pair"
"""Name of the one output and of its targets."""


class Embedder(nn.Module):
    """A network without its classifier, and the projector behind it.

    Args:
        backbone: Its classifier is left out and never trains.
        hidden: Width of the projector's hidden layer.
        size: Numbers per picture that the projector gives.
        seed: Of the projector's weights.
    """

    def __init__(self, backbone: ImageModel, *, hidden: int, size: int, seed: int) -> None:
        super().__init__()
        self.backbone = backbone
        backbone.classifier.requires_grad_(False)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(derive_seed(seed, "projector"))
            self.projector = nn.Sequential(
                nn.Linear(backbone.classifier.in_features, hidden, bias=False),
                nn.BatchNorm1d(hidden),
                nn.ReLU(),
                nn.Linear(hidden, size),
            )

    def features(self, x: Tensor) -> Tensor:
        """What a classifier of the network would see of pictures `[B, C, H, W]`: `[B, D]`."""
        return self.backbone.forward_head(self.backbone.forward_features(x), pre_logits=True)

    def forward(self, x: Tensor) -> Tensor:
        """The projector's outputs `[B, size]` for pictures `[B, C, H, W]`."""
        output: Tensor = self.projector(self.features(x))
        return output


def check_views(embedder: Embedder, in_channels: int, size: tuple[int, int]) -> None:
    """Run a network on a blank view of `size`: one that flattens its features takes pictures of one size only.

    Raises:
        ModelError: It does not take it.
    """
    height, width = size
    training = embedder.training
    device = next(embedder.parameters()).device
    embedder.eval()
    try:
        with torch.no_grad():
            embedder(torch.zeros(1, in_channels, height, width, device=device))
    except (RuntimeError, AssertionError, ValueError) as error:  # timm's networks assert the size that they are for
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise ModelError(
            f"The network does not take views of {height}x{width} pixels ({reason}). Use one that pools over all "
            "positions (resnet20, speednet, convnet with head_pooling: average), or self_supervised.view_size: 1."
        ) from error
    finally:
        embedder.train(training)


@dataclass(frozen=True)
class PairHead(Head):
    """The output of an `Embedder`: which loss it is trained with, and when it is right.

    Targets are numbers of pictures, int64 `[B]`; of each there are two in a block, its two views.

    Args:
        temperature: What cosines are divided by; the smaller, the more the most similar wrong pictures count.
        views_at_once: Outputs are compared within blocks of so many, those of one training batch, so that losses of
            more of them compare with losses of a batch; 0 for all at once.
    """

    temperature: float = 0.2
    views_at_once: int = 0

    def loss(
        self, outputs: Tensor, targets: Tensor, *, weights: Tensor | None = None, label_smoothing: float = 0.0
    ) -> Tensor:
        """Mean cross-entropy of finding each view's partner among the others of its block, a float32 scalar.

        `weights` and `label_smoothing` have no meaning here, and must be left out.

        Raises:
            ModelError: They are given.
        """
        if weights is not None or label_smoothing:
            raise ModelError("Views have neither weights nor labels to smooth.")
        total = outputs.new_zeros((), dtype=torch.float32)
        for cosines, partners in self._blocks(outputs, targets):
            total = total + F.cross_entropy(cosines / self.temperature, partners, reduction="sum")
        return total / len(outputs)

    def correct(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """How many views are nearer to their partner than to any other view of their block, an int64 scalar."""
        found = [(cosines.argmax(dim=1) == partners).sum() for cosines, partners in self._blocks(outputs, targets)]
        return torch.stack(found).sum()

    def _blocks(self, outputs: Tensor, targets: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Cosines `[b, b]` of each block, a view's with itself the lowest there is, and places of partners `[b]`."""
        size = self.views_at_once or len(outputs)
        for block, numbers in zip(torch.split(outputs, size), torch.split(targets, size), strict=True):
            unit = F.normalize(block.float(), dim=1)
            itself = torch.eye(len(block), dtype=torch.bool, device=block.device)
            cosines = (unit @ unit.T).masked_fill(itself, torch.finfo(torch.float32).min)
            same = (numbers[:, None] == numbers[None, :]) & ~itself
            yield cosines, same.to(torch.int8).argmax(dim=1)


class PairBatches:
    """Two views of each picture in a batch: all first views, then in the same order all second ones.

    Views are functions of (seed, epoch, picture), so that any epoch can be entered at any batch. All batches are whole,
    since the loss depends on how many others a view is told from; pictures that would not fill one wait for the next
    epoch's order.

    Args:
        images: Uint8 `[N, C, H, W]`, on the device or on the CPU.
        indices: Which pictures.
        batch_size: Pictures in one batch, which holds twice as many views; all of them where there are fewer.
        scaling: From pixels to network inputs.
        spec: How views differ from their picture.
        seed: Of order and views.
        shuffle: A new order in every epoch; without it that of `indices`.
        device: Where batches are wanted; None for where the images are.
        sizes: Of the views in each epoch; None for those of the pictures.
    """

    def __init__(
        self,
        images: Tensor,
        indices: npt.NDArray[np.int64],
        *,
        batch_size: int,
        scaling: InputScaling,
        spec: AugmentationSpec,
        seed: int,
        shuffle: bool = False,
        device: torch.device | str | None = None,
        sizes: Sizes | None = None,
    ) -> None:
        self.batch_size = min(batch_size, len(indices))
        self.targets = {PAIR: torch.arange(len(images), device=images.device)}
        self._first, self._second = (
            ImageBatches(
                images,
                self.targets,
                indices,
                batch_size=self.batch_size,
                scaling=scaling,
                seed=seed,
                shuffle=shuffle,
                augmenter=Augmenter(spec, seed=derive_seed(seed, purpose)),
                device=device,
                sizes=sizes,
            )
            for purpose in ("first view", "second view")
        )
        whole = indices[: len(self) * self.batch_size].reshape(len(self), 1, self.batch_size)
        self.indices = whole.repeat(2, axis=1).reshape(-1)  # of each view, where nothing is shuffled

    def __len__(self) -> int:
        """Batches in an epoch."""
        return self._first.n_samples // self.batch_size

    def epoch(self, epoch: int = 0, *, skip: int = 0) -> Iterator[Batch]:
        """The batches of an epoch, from batch `skip` on."""
        pairs = zip(self._first.epoch(epoch, skip=skip), self._second.epoch(epoch, skip=skip), strict=True)
        for first, second in itertools.islice(pairs, len(self) - skip):
            views = [batch.inputs["image"][: self.batch_size] for batch in (first, second)]
            numbers = first.targets[PAIR][: self.batch_size]
            yield Batch({"image": torch.cat(views)}, {PAIR: numbers.repeat(2)})


class ConstantSizes:
    """Views of one size in all epochs, a fraction of that of the pictures.

    Args:
        fraction: Of the side, in (0, 1].
    """

    def __init__(self, fraction: float) -> None:
        self.fraction = fraction

    def at(self, epoch: int, image_size: tuple[int, int]) -> tuple[int, int]:
        """Height and width of pictures of `image_size`: multiples of 4, or the whole."""
        return scaled_size(self.fraction, image_size)


@torch.no_grad()
def spread_of(outputs: Tensor) -> float:
    """How far outputs `[N, D]` lie apart on the sphere: 0 where all are the same, 1 where they fill it evenly.

    The standard deviation of each of the D numbers of outputs of length 1, times the square root of D, in the mean:
    Chen and He, "Exploring simple Siamese representation learning", 2020, section 4.1, who saw collapse by it.
    """
    unit = F.normalize(outputs.float(), dim=1)
    return float(unit.std(dim=0, correction=0).mean() * unit.shape[1] ** 0.5)
