"""Networks of the user's own: what fits trains, and what cannot is told before anything is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import netloom
from netloom.errors import ModelError
from picture_folders import write_folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("photos") / "photos", per_class=10)


def network(num_outputs: int = 3, side: int = 12) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * side * side, num_outputs))


def frozen() -> nn.Module:
    return network().requires_grad_(False)


def unfitting(width: int) -> nn.Module:
    return nn.Linear(width, 3)


def test_a_name_is_a_model_too(photos: Path, tmp_path: Path) -> None:
    run = netloom.train(photos, model="lenet5", image_size=32, epochs=1, out=tmp_path, quiet=True)
    assert run.recipe.model == "lenet5"


class Remembers(nn.Module):
    """Keeps what its layers gave, to be looked at; a validation makes that an inference tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = network()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.outputs: torch.Tensor = self.layers(images)
        return self.outputs


def test_a_network_that_keeps_what_it_computed_trains_on_after_a_validation(photos: Path, tmp_path: Path) -> None:
    run = netloom.train(photos, model=Remembers(), epochs=3, out=tmp_path, quiet=True)
    assert len(run.history) == 3
    assert "validation_loss" in run.history[-1]


@pytest.mark.parametrize(
    ("model", "told"),
    [
        (frozen(), "no parameter to train"),
        (nn.Flatten(), "no parameter to train"),
        (unfitting, "missing a required argument: 'width'"),
        (5, "a torch.nn.Module, a function making one or a name"),
        (network(7), "must give 3 numbers for each picture"),
    ],
)
def test_what_cannot_be_trained(photos: Path, tmp_path: Path, model: Any, told: str) -> None:
    with pytest.raises(ModelError, match=told):
        netloom.train(photos, model=model, epochs=1, out=tmp_path, quiet=True)
    assert not list(tmp_path.iterdir())
