"""Updates in machine code, against the same optimizer's own step."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from netloom.kernels import llvm
from netloom.kernels.calls import usable
from netloom.training.compiled_update import CompiledUpdate
from netloom.training.updates import FasterUpdate
from training.optimizer_steps import SETTINGS, amsgrad, count_own_steps, listener, optimizer_of, set_gradients

pytestmark = pytest.mark.skipif(not usable(), reason="no machine code can be made here")


@pytest.fixture(params=[8, 16], autouse=True)
def lanes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Registers of so many numbers, whatever this processor has."""
    found: int = request.param
    monkeypatch.setattr(llvm, "lanes_here", lambda: found)
    return found


class Mixed(nn.Module):
    """Layers of several pieces of work, one in channels-last memory, and small ones."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.dense = nn.Linear(101, 31)
        self.convolution = nn.Conv2d(10, 21, 3)
        self.small = nn.Linear(7, 5)
        self.classifier = nn.Linear(30, 20)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def assert_close(mine: torch.optim.Optimizer, theirs: torch.optim.Optimizer) -> None:
    """Parameters and state, but for the last bits; the counts of steps alike."""
    for group, other in zip(mine.param_groups, theirs.param_groups, strict=True):
        for parameter, twin in zip(group["params"], other["params"], strict=True):
            torch.testing.assert_close(parameter, twin, rtol=1e-4, atol=1e-5)
            state, others = mine.state.get(parameter, {}), theirs.state.get(twin, {})
            assert {k for k, v in state.items() if v is not None} == {k for k, v in others.items() if v is not None}
            for key, value in state.items():
                if value is not None:
                    torch.testing.assert_close(value, others[key], rtol=1e-4, atol=1e-5)
                    assert value.stride() == others[key].stride()
            assert state.get("step") == others.get("step")


@pytest.mark.parametrize("options", SETTINGS, ids=str)
def test_steps_are_the_optimizers_own_but_for_the_last_bits(options: dict[str, Any]) -> None:
    model = Mixed()
    twin = copy.deepcopy(model)
    mine, theirs = optimizer_of(model, **options), optimizer_of(twin, **options)
    update = CompiledUpdate(mine, 2)
    for step in range(5):
        for each in (model, twin):
            set_gradients(each, step)
        for optimizer in (mine, theirs):
            for group in optimizer.param_groups:
                group["lr"] = group["base_lr"] / (1 + step)
        assert update()
        theirs.step()
        assert_close(mine, theirs)


@pytest.mark.parametrize("options", SETTINGS, ids=str)
def test_no_number_of_threads_changes_a_bit(options: dict[str, Any]) -> None:
    models = [Mixed() for _ in range(3)]
    for model, n_threads in zip(models, (1, 2, 3), strict=True):
        update = CompiledUpdate(optimizer_of(model, **options), n_threads)
        for step in range(3):
            set_gradients(model, step)
            assert update()
    for same in zip(*(model.parameters() for model in models), strict=True):
        assert torch.equal(same[0], same[1])
        assert torch.equal(same[0], same[2])


@pytest.mark.parametrize("options", SETTINGS, ids=str)
def test_they_may_change_places_with_the_optimizer_at_any_step(options: dict[str, Any]) -> None:
    """As where a callback's hooks come and go, or a training goes on from a checkpoint."""
    model = Mixed()
    twin = copy.deepcopy(model)
    mine, theirs = optimizer_of(model, **options), optimizer_of(twin, **options)
    update = CompiledUpdate(mine, 2)
    for step in range(8):
        for each in (model, twin):
            set_gradients(each, step)
        if step % 3:
            assert update()
        else:
            mine.step()
        theirs.step()
        if step == 3:
            mine.load_state_dict(copy.deepcopy(mine.state_dict()))
        if step == 5:  # in memory of their own, which nothing tells of
            for parameter in model.parameters():
                parameter.data = parameter.data.clone()
        assert_close(mine, theirs)


@pytest.mark.parametrize("name", ["adam", "nadam", "rmsprop"])
def test_parameters_that_join_later_begin_with_their_first_gradient(name: str) -> None:
    model = Mixed()
    twin = copy.deepcopy(model)
    mine, theirs = optimizer_of(model, name=name), optimizer_of(twin, name=name)
    update = CompiledUpdate(mine, 2)
    for step in range(4):
        for each in (model, twin):
            set_gradients(each, step)
            if step < 2:
                each.dense.weight.grad = None
        assert update()
        theirs.step()
        assert_close(mine, theirs)
    assert mine.state[model.dense.weight]["step"] == 2
    assert mine.state[model.classifier.weight]["step"] == 4


def test_gradients_that_are_no_numbers_are_seen_in_the_parameters() -> None:
    for options in SETTINGS:
        model = Mixed()
        set_gradients(model, 0)
        gradient = model.small.weight.grad
        assert gradient is not None
        gradient[0, 0] = torch.nan
        assert CompiledUpdate(optimizer_of(model, **options), 1)()
        assert model.small.weight[0, 0].isnan()
        assert model.small.weight.isfinite().sum() == model.small.weight.numel() - 1


def test_gradients_that_do_not_lie_as_their_parameters_are_left_to_others() -> None:
    model = Mixed()
    twin = copy.deepcopy(model)
    mine, theirs = optimizer_of(model, name="rmsprop"), optimizer_of(twin, name="rmsprop")
    update = CompiledUpdate(mine, 2)
    for each in (model, twin):
        set_gradients(each, 0)
        weight = each.convolution.weight
        assert isinstance(weight, nn.Parameter)
        assert weight.grad is not None
        weight.grad = weight.grad.contiguous()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    assert not update()
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    FasterUpdate(mine, None, compiled_threads=2)()
    theirs.step()
    assert_close(mine, theirs)


@pytest.mark.parametrize("change", [amsgrad, listener])
def test_what_is_not_known_here_is_left_to_the_optimizer(change: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Mixed()
    optimizer = optimizer_of(model, name="adam")
    change(optimizer)
    own = count_own_steps(monkeypatch, optimizer)
    set_gradients(model, 0)
    FasterUpdate(optimizer, None, compiled_threads=2)()
    assert own == [id(optimizer)]
