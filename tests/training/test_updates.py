"""Updates by several threads, against the same optimizer's own step."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from netloom.training import muon, updates
from netloom.training.crew import Crew
from netloom.training.muon import MuonOptions
from netloom.training.updates import FasterUpdate
from training.optimizer_steps import SETTINGS, amsgrad, count_own_steps, listener, optimizer_of, set_gradients


class Mixed(nn.Module):
    """Large layers, one in channels-last memory, small ones, and numbers of which no unit is a multiple."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.dense = nn.Linear(1001, 301)
        self.convolution = nn.Conv2d(100, 61, 3)
        self.small = nn.Linear(7, 5)
        self.classifier = nn.Linear(300, 200)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


@pytest.fixture(autouse=True)
def _worth_sharing(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (updates, muon):
        monkeypatch.setattr(module, "_WORTH_SHARING", 2**17)


@pytest.fixture(params=[1, 2, 4])
def crew(request: pytest.FixtureRequest) -> Iterator[Crew]:
    with contextlib.closing(Crew(request.param)) as crew:
        yield crew


def assert_same(mine: torch.optim.Optimizer, theirs: torch.optim.Optimizer) -> None:
    """Parameters, gradients and state, bit for bit."""
    for group, other in zip(mine.param_groups, theirs.param_groups, strict=True):
        for parameter, twin in zip(group["params"], other["params"], strict=True):
            assert torch.equal(parameter, twin)
            assert (parameter.grad is None) == (twin.grad is None)
            assert parameter.grad is None or torch.equal(parameter.grad, twin.grad)
            state, others = mine.state.get(parameter, {}), theirs.state.get(twin, {})
            assert state.keys() == others.keys()
            for key, value in state.items():
                assert (value is None) == (others[key] is None)
                assert value is None or torch.equal(value, others[key]), key
                assert value is None or value.stride() == others[key].stride()


@pytest.mark.parametrize("worth", [2**17, 2**30])
@pytest.mark.parametrize("options", SETTINGS, ids=str)
def test_steps_are_the_optimizers_own_bit_for_bit(
    options: dict[str, Any], worth: int, crew: Crew, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Divided, and all parameters together."""
    monkeypatch.setattr(updates, "_WORTH_SHARING", worth)
    model = Mixed()
    twin = copy.deepcopy(model)
    mine, theirs = optimizer_of(model, **options), optimizer_of(twin, **options)
    update = FasterUpdate(mine, crew)
    for step in range(5):
        for each in (model, twin):
            set_gradients(each, step)
        for optimizer in (mine, theirs):
            for group in optimizer.param_groups:
                group["lr"] = group["base_lr"] / (1 + step)
        update()
        theirs.step()
        assert_same(mine, theirs)


@pytest.mark.parametrize("worth", [2**17, 2**30])
@pytest.mark.parametrize("options", SETTINGS, ids=str)
def test_they_may_change_places_at_any_step(
    options: dict[str, Any], worth: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a callback's hooks come and go, or a training goes on from a checkpoint."""
    monkeypatch.setattr(updates, "_WORTH_SHARING", worth)
    model = Mixed()
    twin = copy.deepcopy(model)
    mine, theirs = optimizer_of(model, **options), optimizer_of(twin, **options)
    with contextlib.closing(Crew(3)) as crew:
        update = FasterUpdate(mine, crew)
        for step in range(6):
            for each in (model, twin):
                set_gradients(each, step)
            if step % 2:
                update()
            else:
                mine.step()
            theirs.step()
            if step == 3:
                for state in mine.state.values():
                    state.update({key: value.clone() for key, value in state.items() if value is not None})
            assert_same(mine, theirs)


@pytest.mark.parametrize("worth", [2**17, 2**30])
@pytest.mark.parametrize("name", ["adam", "nadam", "rmsprop"])
def test_parameters_that_join_later_begin_with_their_first_gradient(
    name: str, worth: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(updates, "_WORTH_SHARING", worth)
    model = Mixed()
    twin = copy.deepcopy(model)
    mine, theirs = optimizer_of(model, name=name), optimizer_of(twin, name=name)
    with contextlib.closing(Crew(4)) as crew:
        update = FasterUpdate(mine, crew)
        for step in range(4):
            for each in (model, twin):
                set_gradients(each, step)
                if step < 2:
                    each.dense.weight.grad = None
            update()
            theirs.step()
            assert_same(mine, theirs)
    assert mine.state[model.dense.weight]["step"] == 2
    assert mine.state[model.classifier.weight]["step"] == 4


def assert_same_steps(
    model: nn.Module, twin: nn.Module, mine: torch.optim.Optimizer, theirs: torch.optim.Optimizer
) -> None:
    """Two steps, the model's by two threads and its twin's by the optimizer itself."""
    with contextlib.closing(Crew(2)) as crew:
        assert_same_updates(model, twin, FasterUpdate(mine, crew), mine, theirs)


def assert_same_updates(
    model: nn.Module,
    twin: nn.Module,
    update: FasterUpdate,
    mine: torch.optim.Optimizer,
    theirs: torch.optim.Optimizer,
) -> None:
    """Two steps, the model's by `update` and its twin's by the optimizer itself."""
    for step in range(2):
        for each in (model, twin):
            set_gradients(each, step)
        update()
        theirs.step()
        assert_same(mine, theirs)


def count_updates(monkeypatch: pytest.MonkeyPatch, optimizer: torch.optim.Optimizer) -> list[int]:
    """Of how many parameters pieces are updated, call by call."""
    kind = updates._KINDS[type(optimizer)]
    calls: list[int] = []

    def counted(pieces: list[Any], group: dict[str, Any]) -> None:
        calls.append(len(pieces))
        kind.update(pieces, group)

    replaced = replace(kind, update=counted)
    monkeypatch.setitem(updates._KINDS, type(optimizer), replaced)
    return calls


def unfused(optimizer: torch.optim.Optimizer) -> None:
    optimizer.param_groups[0]["fused"] = False


def scheduler(optimizer: torch.optim.Optimizer) -> None:
    torch.optim.lr_scheduler.StepLR(optimizer, 1)


@pytest.mark.parametrize("change", [amsgrad, unfused, listener, scheduler])
def test_what_is_not_known_here_is_left_to_the_optimizer(
    change: Callable[[torch.optim.Optimizer], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Mixed()
    twin = copy.deepcopy(model)
    mine, theirs = optimizer_of(model, name="adam"), optimizer_of(twin, name="adam")
    calls = count_updates(monkeypatch, mine)
    for optimizer in (mine, theirs):
        change(optimizer)
    assert_same_steps(model, twin, mine, theirs)
    assert not calls


@pytest.mark.parametrize(("worth", "expected"), [(2**17, [2, 2, 1, 1]), (2**20, [])])
def test_threads_are_woken_where_there_is_much_to_do(
    worth: int, expected: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All but the small layer and the biases; or nothing."""
    monkeypatch.setattr(updates, "_WORTH_SHARING", worth)
    model = Mixed()
    optimizer = optimizer_of(model, name="rmsprop")
    calls = count_updates(monkeypatch, optimizer)
    set_gradients(model, 0)
    with contextlib.closing(Crew(2)) as crew:
        FasterUpdate(optimizer, crew)()
    assert sorted(calls, reverse=True) == expected


def test_gradients_that_do_not_lie_as_their_parameters_are_left_to_the_optimizer() -> None:
    model = Mixed()
    twin = copy.deepcopy(model)
    mine, theirs = optimizer_of(model, name="rmsprop"), optimizer_of(twin, name="rmsprop")
    with contextlib.closing(Crew(2)) as crew:
        update = FasterUpdate(mine, crew)
        for step in range(3):
            for each in (model, twin):
                set_gradients(each, step)
                weight = each.convolution.weight
                assert isinstance(weight, nn.Parameter)
                assert weight.grad is not None
                weight.grad = weight.grad.contiguous()
            update()
            theirs.step()
            assert_same(mine, theirs)


def test_an_error_in_a_thread_leaves_the_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no")

    model = Mixed()
    optimizer = optimizer_of(model, name="rmsprop")
    kind = updates._KINDS[torch.optim.RMSprop]
    monkeypatch.setitem(updates._KINDS, torch.optim.RMSprop, replace(kind, update=fail))
    set_gradients(model, 0)
    with contextlib.closing(Crew(2)) as crew, pytest.raises(RuntimeError, match="no"):
        FasterUpdate(optimizer, crew)()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("normalize_kernels", [False, True])
@pytest.mark.parametrize("newton_schulz_steps", [1, 5])
def test_muons_matrices_are_divided_to_the_same_result(newton_schulz_steps: int, normalize_kernels: bool) -> None:
    options = MuonOptions(newton_schulz_steps=newton_schulz_steps, normalize_kernels=normalize_kernels)
    model = Mixed()
    twin, again = copy.deepcopy(model), copy.deepcopy(model)
    mine, theirs, repeated = (optimizer_of(each, name="muon", muon=options) for each in (model, twin, again))
    with contextlib.closing(Crew(3)) as crew:
        for step in range(3):
            for each in (model, twin, again):
                set_gradients(each, step)
            FasterUpdate(mine, crew)()
            FasterUpdate(repeated, crew)()
            theirs.step()
    assert_same(mine, repeated)
    for parameter, other in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(parameter, other, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("worth", [2**17, 2**30])
def test_those_who_listen_to_all_optimizers_hear_each_step_once(worth: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(updates, "_WORTH_SHARING", worth)
    model = Mixed()
    optimizer = optimizer_of(model, name="nadam")
    heard = []
    handle = register_optimizer_step_post_hook(lambda *_: heard.append(1))
    try:
        with contextlib.closing(Crew(2)) as crew:
            for step in range(3):
                set_gradients(model, step)
                FasterUpdate(optimizer, crew)()
    finally:
        handle.remove()
    assert len(heard) == 3


@pytest.mark.parametrize("options", SETTINGS, ids=str)
def test_small_updates_of_what_recipes_may_name_are_never_the_optimizers_own(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(updates, "_WORTH_SHARING", 2**30)
    model = Mixed()
    optimizer = optimizer_of(model, **options)
    own = count_own_steps(monkeypatch, optimizer)
    set_gradients(model, 0)
    FasterUpdate(optimizer, None)()
    assert not own
    assert not torch.equal(model.dense.weight, Mixed().dense.weight)


@pytest.mark.parametrize("options", SETTINGS[:4], ids=str)
def test_large_updates_by_one_kernel_are_the_optimizers_own_bit_for_bit(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Mixed()
    twin = copy.deepcopy(model)
    mine, theirs = optimizer_of(model, **options), optimizer_of(twin, **options)
    own = count_own_steps(monkeypatch, mine)
    assert_same_updates(model, twin, FasterUpdate(mine, None), mine, theirs)
    assert own == [id(theirs)] * 2


def test_without_threads_to_share_it_large_updates_are_the_optimizers_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose operations torch's own threads divide, and which need less room than all at once."""
    model = Mixed()
    optimizer = optimizer_of(model, name="rmsprop")
    calls = count_updates(monkeypatch, optimizer)
    set_gradients(model, 0)
    FasterUpdate(optimizer, None)()
    assert not calls
    assert optimizer.state[model.dense.weight]["step"] == 1


@pytest.mark.parametrize("worth", [2**17, 2**30])
def test_a_dampened_momentum_begins_with_the_whole_gradient(worth: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(updates, "_WORTH_SHARING", worth)
    model = Mixed()
    twin = copy.deepcopy(model)
    mine, theirs = (optimizer_of(one, name="sgd", momentum=0.9) for one in (model, twin))
    for optimizer in (mine, theirs):
        for group in optimizer.param_groups:
            group["dampening"] = 0.5
    assert_same_steps(model, twin, mine, theirs)
