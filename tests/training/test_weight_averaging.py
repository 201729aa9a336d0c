from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from netloom.training.callbacks import BestWeights, Callback, EpochWeights, WeightAveraging
from netloom.training.checkpoint import Checkpointer, load_checkpoint
from netloom.training.state import TrainingState
from training.helpers import StopAfter, batches, equal, network, train, untimed

Weights = dict[str, npt.NDArray[np.float64]]


def weights_of(model: torch.nn.Module) -> Weights:
    return {name: value.double().numpy().copy() for name, value in model.state_dict().items()}


class Trajectory(Callback):
    """The trained weights at the start and after every step."""

    def __init__(self) -> None:
        self.weights: list[Weights] = []

    def on_fit_start(self, state: TrainingState) -> None:
        self.weights.append(weights_of(state.model))

    def on_batch_end(self, state: TrainingState) -> None:
        self.weights.append(weights_of(state.model))


@pytest.mark.parametrize("warmup", [True, False])
def test_the_average_is_the_recursion_of_its_definition(warmup: bool) -> None:
    """In NumPy: a <- d a + (1 - d) w, with d = min(0.9, (1 + t) / (10 + t)) in the warm-up; counters are the latest."""
    trajectory = Trajectory()
    state = train(callbacks=[WeightAveraging(decay=0.9, warmup=warmup), trajectory])
    expected = trajectory.weights[0]
    for t, weights in enumerate(trajectory.weights[1:]):
        decay = min(0.9, (1 + t) / (10 + t)) if warmup else 0.9
        expected = {name: decay * expected[name] + (1 - decay) * weights[name] for name in weights}
    expected["1.num_batches_tracked"] = trajectory.weights[-1]["1.num_batches_tracked"]
    assert len(trajectory.weights) == 1 + 24
    final = weights_of(state.model)
    assert final.keys() == expected.keys()
    for name, value in final.items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-4, atol=1e-6, err_msg=name)
    assert not np.allclose(final["6.weight"], trajectory.weights[-1]["6.weight"], atol=1e-3)


def test_the_average_leaves_the_training_itself_alone() -> None:
    plain, averaged = Trajectory(), Trajectory()
    train(callbacks=[plain])
    train(callbacks=[WeightAveraging(decay=0.9), averaged])
    for one, other in zip(plain.weights, averaged.weights, strict=True):
        assert all(np.array_equal(one[name], other[name]) for name in one)


def test_the_average_is_what_is_validated_and_kept() -> None:
    """Against torch's cross-entropy of the weights that each epoch's callbacks were given to keep."""
    kept: dict[int, Weights] = {}
    state = train(
        callbacks=[
            WeightAveraging(decay=0.9),
            EpochWeights(save=lambda epoch, model: kept.update({epoch: weights_of(model)})),
            best := BestWeights(),
        ]
    )
    assert list(kept) == [1, 2, 3, 4]
    part = list(batches(start=45).epoch())
    images = torch.cat([b.inputs["image"] for b in part])
    targets = torch.cat([b.targets["label"] for b in part])
    reference = network().eval()
    for row in state.history:
        weights = kept[int(row["epoch"])]
        reference.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
        with torch.no_grad():
            expected = torch.nn.functional.cross_entropy(reference(images), targets)
        assert row["validation_loss"] == pytest.approx(expected.item(), rel=1e-5)
    final = weights_of(state.model)
    assert all(np.array_equal(final[name], kept[best.monitor.best_epoch][name]) for name in final)


@pytest.mark.parametrize("steps", [1, 6, 14])
def test_a_resumed_average_is_bit_identical(tmp_path: Path, steps: int) -> None:
    def callbacks() -> list[Callback]:
        return [WeightAveraging(decay=0.9)]

    whole = train(callbacks=callbacks())
    path = tmp_path / "checkpoint.safetensors"
    train(callbacks=callbacks(), checkpointer=Checkpointer(path), interruption=StopAfter(steps))
    resumed = train(callbacks=callbacks(), resume=load_checkpoint(path))
    assert untimed(resumed) == untimed(whole)
    assert equal(resumed.model, whole.model)


def test_an_extended_training_goes_on_from_the_trained_weights(tmp_path: Path) -> None:
    """The checkpoint at the end holds them, not the average that was kept."""
    whole = train(epochs=4, callbacks=[WeightAveraging(decay=0.9)])
    path = tmp_path / "checkpoint.safetensors"
    train(epochs=2, callbacks=[WeightAveraging(decay=0.9)], checkpointer=Checkpointer(path))
    extended = train(epochs=4, callbacks=[WeightAveraging(decay=0.9)], resume=load_checkpoint(path))
    assert untimed(extended) == untimed(whole)
    assert equal(extended.model, whole.model)


def test_every_so_many_epochs_are_kept() -> None:
    kept: list[int] = []
    train(epochs=5, callbacks=[EpochWeights(save=lambda epoch, model: kept.append(epoch), every=2)])
    assert kept == [2, 4]


class Tied(torch.nn.Module):
    """Two layers with one kernel, and a module that is there twice."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = torch.nn.Linear(3, 3, bias=False), torch.nn.Linear(3, 3, bias=False)
        self.decoder.weight = self.encoder.weight
        self.norm = self.again = torch.nn.BatchNorm1d(3)


def test_what_several_modules_share_moves_once_a_step() -> None:
    model = Tied()
    torch.nn.init.zeros_(model.encoder.weight)
    state = TrainingState(model, torch.optim.SGD(model.parameters(), lr=0.1), 1, 1)
    averaging = WeightAveraging(decay=0.9, warmup=False)
    averaging.on_fit_start(state)
    with torch.no_grad():
        model.encoder.weight.fill_(1.0)
        model.norm.running_mean.fill_(1.0)  # type: ignore[union-attr]
    averaging.on_batch_end(state)
    average = state.evaluated_model
    assert isinstance(average, Tied)
    for found in (average.encoder.weight, average.decoder.weight, average.norm.running_mean):
        torch.testing.assert_close(found, torch.full_like(found, 0.1))  # type: ignore[arg-type]
