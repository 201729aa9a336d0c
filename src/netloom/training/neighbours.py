"""Nearest neighbours among features, as the last layer of a network."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from netloom.training.feature_heads import Candidate, Choice, IntArray, standardization

NEIGHBOURS = (1, 2, 3, 5, 7, 10, 15, 20, 30, 50, 100, 200)

_TEMPERATURE = 0.07  # Wu et al. 2018, kept by Caron et al. 2021
_PRIOR_VOTES = 0.5  # spread over all classes, so that no class is ever impossible
_QUERIES = 2_000
_QUERIES_AT_ONCE = 500


class NearestNeighbours(nn.Module):
    """Votes of the training pictures whose features are the most similar, as a layer: logits of the shares of votes.

    Similarity is the cosine between standardized features; a neighbour's vote counts exp(similarity / 0.07) times its
    weight (Wu et al., "Unsupervised feature learning via non-parametric instance discrimination", 2018, section 3.4).

    Args:
        in_features: D.
        num_classes: K.
        num_outputs: K, or 1 for the logit of the second of two classes.
    """

    weight: Tensor
    votes: Tensor
    mean: Tensor
    scale: Tensor
    neighbours: Tensor

    def __init__(self, in_features: int, *, num_classes: int, num_outputs: int) -> None:
        super().__init__()
        self.in_features, self.num_classes, self.num_outputs = in_features, num_classes, num_outputs
        self.register_buffer("weight", torch.zeros(1, in_features))
        self.register_buffer("votes", torch.ones(1, num_classes))
        self.register_buffer("mean", torch.zeros(in_features))
        self.register_buffer("scale", torch.ones(in_features))
        self.register_buffer("neighbours", torch.ones((), dtype=torch.int64))

    def forward(self, features: Tensor) -> Tensor:
        """`[B, num_outputs]` of features `[B, D]`."""
        similarities = self.directions(features) @ self.weight.T
        count = 1 if self.neighbours.is_meta else int(self.neighbours)  # a summary asks for shapes alone
        nearest, rows = similarities.float().topk(count, dim=1)
        logits = _vote_logits(nearest, self.votes[rows])[:, -1]
        return logits[:, 1:] - logits[:, :1] if self.num_outputs == 1 else logits

    def directions(self, features: Tensor) -> Tensor:
        """Standardized features of length one."""
        return F.normalize((features.float() - self.mean) * self.scale, dim=1)

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        # How many pictures vote is not known before their features are there.
        for name in ("weight", "votes"):
            value, own = state_dict.get(prefix + name), getattr(self, name)
            if isinstance(value, Tensor) and value.ndim == 2 and value.shape[1] == own.shape[1] and len(value):
                setattr(self, name, own.new_zeros(value.shape))
        super()._load_from_state_dict(state_dict, prefix, *args)
        if len(self.weight) != len(self.votes) or not 1 <= int(self.neighbours) <= len(self.weight):
            messages: list[str] = args[-1]
            messages.append(f"{prefix}weight, votes and neighbours do not fit one another")


def fit_neighbours(
    classifier: NearestNeighbours,
    features: Tensor,
    targets: Tensor,
    *,
    weights: Tensor | None = None,
    pictures: IntArray | None = None,
    units: IntArray | None = None,
) -> Choice:
    """Let the rows vote in `classifier`, in place, and choose how many neighbours are asked.

    The number is the one of `NEIGHBOURS` with the lowest weighted log loss when each training picture (at most 2,000,
    evenly spaced) is classified by all rows but those of its own unit.

    Args:
        classifier: Of the features' width.
        features: Float32 `[M, D]`, on the CPU.
        targets: Class indices of the rows, int64 `[M]`.
        weights: Of the rows' votes, as for `fit_logistic`.
        pictures: As for `fit_logistic`.
        units: As for `fit_logistic`.
    """
    weight_of = torch.ones(len(features)) if weights is None else weights.float()
    classifier.mean, classifier.scale = standardization(features)
    classifier.weight = classifier.directions(features)
    classifier.votes = F.one_hot(targets, classifier.num_classes).float() * weight_of.unsqueeze(1)
    of_picture = np.arange(len(targets)) if pictures is None else pictures
    unit_of = torch.from_numpy(of_picture if units is None else units[of_picture])
    first = torch.from_numpy(np.sort(np.unique(of_picture, return_index=True)[1]))
    queries = first[torch.linspace(0, len(first) - 1, min(_QUERIES, len(first))).long()]
    others = len(features) - int(unit_of.bincount().max())
    sizes = [k for k in NEIGHBOURS if k <= others]
    if not sizes:
        classifier.neighbours = torch.ones((), dtype=torch.int64)
        return Choice("neighbours", 1, (), 0, "")
    losses = torch.cat(
        [_losses_by_size(classifier, part, unit_of, sizes) for part in torch.split(queries, _QUERIES_AT_ONCE)]
    )
    wanted = targets[queries].view(-1, 1, 1).expand(-1, len(sizes), 1)
    right = (losses.argmax(dim=2) == targets[queries].unsqueeze(1)).double().mean(dim=0)
    share = weight_of[queries] / weight_of[queries].sum().clamp_min(torch.finfo(torch.float32).tiny)
    by_size = -(losses.gather(2, wanted).squeeze(2) * share.unsqueeze(1)).sum(dim=0)
    best = int(by_size.argmin())
    classifier.neighbours = torch.tensor(sizes[best])
    return Choice(
        "neighbours",
        sizes[best],
        tuple(map(Candidate, map(float, sizes), by_size.tolist(), right.tolist())),
        len(queries),
        "each classified by the others",
    )


def _losses_by_size(classifier: NearestNeighbours, queries: Tensor, unit_of: Tensor, sizes: Sequence[int]) -> Tensor:
    """Log probabilities `[q, len(sizes), K]` of rows, asked without those of their own unit."""
    similarities = classifier.weight[queries] @ classifier.weight.T
    similarities[unit_of[queries].unsqueeze(1) == unit_of] = -math.inf
    nearest, rows = similarities.topk(max(sizes), dim=1)
    return _vote_logits(nearest, classifier.votes[rows])[:, [k - 1 for k in sizes]]


def _vote_logits(nearest: Tensor, votes: Tensor) -> Tensor:
    """Logarithms of the shares of votes `[B, k, K]` when the first 1, 2, …, k neighbours are asked.

    Args:
        nearest: Similarities in falling order, `[B, k]`.
        votes: Of these neighbours, `[B, k, K]`.
    """
    counts = ((nearest - nearest[:, :1]) / _TEMPERATURE).exp()
    of_class = (counts.unsqueeze(2) * votes).cumsum(dim=1) + _PRIOR_VOTES / votes.shape[2]
    return (of_class / of_class.sum(dim=2, keepdim=True)).log()
