"""Lookahead against its recursion (Zhang et al. 2019, algorithm 1) written out in NumPy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from netloom.training.callbacks import Callback, Lookahead, WeightAveraging
from netloom.training.checkpoint import Checkpointer, load_checkpoint
from netloom.training.state import TrainingState
from training.helpers import StopAfter, equal, network, train, untimed

FLOATS = [name for name, value in network().state_dict().items() if value.is_floating_point()]


def weights_of(model: torch.nn.Module) -> dict[str, np.ndarray]:
    return {name: model.state_dict()[name].double().numpy().copy() for name in FLOATS}


class Noted(Callback):
    """The weights at the start and after every step."""

    def __init__(self) -> None:
        self.weights: list[dict[str, np.ndarray]] = []

    def on_fit_start(self, state: TrainingState) -> None:
        self.weights.append(weights_of(state.model))

    def on_batch_end(self, state: TrainingState) -> None:
        self.weights.append(weights_of(state.model))


@pytest.mark.parametrize(("step_size", "power"), [(0.5, 0.0), (0.25, 3.0)])
def test_returns_are_those_of_the_definition(step_size: float, power: float) -> None:
    before, after = Noted(), Noted()
    lookahead = Lookahead(every_steps=4, step_size=step_size, power=power)
    train(network(), callbacks=[before, lookahead, after], epochs=2)
    per_epoch = (len(before.weights) - 1) // 2
    slow, returned = before.weights[0], []
    for step in range(1, 2 * per_epoch + 1):
        if step % 4 and step % per_epoch:
            assert all(np.array_equal(before.weights[step][n], after.weights[step][n]) for n in FLOATS)
            continue
        kept = 1 - (1 - step_size) * (step / (2 * per_epoch)) ** power
        slow = {n: slow[n] + kept * (before.weights[step][n] - slow[n]) for n in FLOATS}
        for name in FLOATS:
            assert after.weights[step][name] == pytest.approx(slow[name], rel=1e-4, abs=1e-6), (step, name)
        returned.append(step)
    assert {4, per_epoch, 2 * per_epoch} <= set(returned)


def test_a_step_size_of_one_changes_nothing() -> None:
    plain = train(epochs=2)
    pulled = train(callbacks=[Lookahead(every_steps=3, step_size=1.0)], epochs=2)
    assert equal(plain.model, pulled.model)


def test_training_goes_on_from_the_slow_weights() -> None:
    plain, pulled = Noted(), Noted()
    train(callbacks=[plain], epochs=1)
    train(callbacks=[pulled, Lookahead(every_steps=2)], epochs=1)
    same = [np.array_equal(a["0.weight"], b["0.weight"]) for a, b in zip(plain.weights, pulled.weights, strict=True)]
    assert same[:3] == [True, True, True]
    assert not any(same[3:])


@pytest.mark.parametrize("steps", [1, 6, 14])
def test_a_resumed_training_is_bit_identical(tmp_path: Path, steps: int) -> None:
    def callbacks() -> list[Callback]:
        return [Lookahead(every_steps=4, power=1.0), WeightAveraging(decay=0.9)]

    whole = train(callbacks=callbacks())
    path = tmp_path / "checkpoint.safetensors"
    train(callbacks=callbacks(), checkpointer=Checkpointer(path), interruption=StopAfter(steps))
    resumed = train(callbacks=callbacks(), resume=load_checkpoint(path))
    assert untimed(resumed) == untimed(whole)
    assert equal(resumed.model, whole.model)
