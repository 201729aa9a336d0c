"""Test-time augmentation against its definition, written out with NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from netloom.data.batches import Batch
from netloom.errors import ModelError
from netloom.inference import augmented_views, predict_outputs
from netloom.runtime import ExecutionPlan

PLAN = ExecutionPlan("cpu", 1, "float32")


def pictures(n: int = 5) -> torch.Tensor:
    return torch.randn(n, 3, 6, 7, generator=torch.Generator().manual_seed(0))


class Weighted(nn.Module):
    """A nonlinear network that sees where things are."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(3 * 42, 4, generator=torch.Generator().manual_seed(1)))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return torch.tanh(image.flatten(1) @ self.kernel)


def moved(images: np.ndarray, by: int) -> np.ndarray:
    """Rows and columns read `by` further on, the border repeated."""
    rows = np.clip(np.arange(6) + by, 0, 5)
    columns = np.clip(np.arange(7) + by, 0, 6)
    return images[:, :, rows][:, :, :, columns]


def outputs(kind: str, model: nn.Module | None = None) -> np.ndarray:
    batches = [Batch({"image": part}, {}) for part in pictures().split(2)]
    found = predict_outputs(
        model or Weighted(),
        batches,
        head_names=["label"],
        plan=PLAN,
        test_time_augmentation=kind,  # type: ignore[arg-type]
    )
    return found["label"].numpy()


def of(images: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return Weighted()(torch.from_numpy(np.ascontiguousarray(images))).numpy()


def test_flips_average_the_outputs_of_both_sides() -> None:
    x = pictures().numpy()
    assert outputs("flip") == pytest.approx((of(x) + of(x[..., ::-1])) / 2, abs=1e-6)


def test_shifts_weigh_as_much_as_the_unmoved_pair() -> None:
    x = pictures().numpy()
    pairs = [(of(v) + of(v[..., ::-1])) / 2 for v in (x, moved(x, -1), moved(x, 1))]
    assert outputs("flip_shift") == pytest.approx(pairs[0] / 2 + pairs[1] / 4 + pairs[2] / 4, abs=1e-6)


def test_none_is_the_picture_alone() -> None:
    assert np.array_equal(outputs("none"), np.concatenate([of(part.numpy()) for part in pictures().split(2)]))


def test_a_network_that_does_not_see_places_is_left_as_it_is() -> None:
    means = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert outputs("flip", means) == pytest.approx(outputs("none", means), abs=1e-6)


@pytest.mark.parametrize(("kind", "count"), [("none", 1), ("flip", 2), ("flip_shift", 6)])
def test_weights_sum_to_one(kind: str, count: int) -> None:
    views = augmented_views(pictures(), kind)  # type: ignore[arg-type]
    assert len(views) == count
    assert sum(weight for weight, _ in views) == 1.0
    assert all(view.shape == pictures().shape for _, view in views)


def test_mistakes_are_told() -> None:
    with pytest.raises(ModelError, match="'flop' is unknown: one of none, flip, flip_shift"):
        outputs("flop")
    batch = Batch({"table": torch.zeros(2, 3)}, {})
    with pytest.raises(ModelError, match="needs an input 'image'; there are table"):
        predict_outputs(nn.Linear(3, 1), [batch], head_names=["y"], plan=PLAN, test_time_augmentation="flip")
