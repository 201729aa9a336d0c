from __future__ import annotations

import contextlib
import copy
import itertools
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from netloom.data.batches import Batch
from netloom.runtime import ExecutionPlan
from netloom.training import planning, timed_steps, timing
from netloom.training.divided import DividedStep
from netloom.training.gradients import WholeBatchGradients
from netloom.training.planning import choose_feature_plan, choose_plan
from netloom.training.shards import ShardedGradients
from netloom.training.step import TrainingStep
from netloom.training.timed_steps import Comparison, TimedSteps
from netloom.workflows import doctor
from training.helpers import HEAD, batches, network


def a_batch() -> Batch:
    return next(iter(batches().epoch()))


class Clock:
    """Stands still but for what is said to take time."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def gradients_take(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Clock]:
    """Four threads, and a clock by which gradients take so many seconds, by threads and by shards."""

    def script(by_threads: Mapping[int, float], by_shards: Mapping[int, float] = {}) -> Clock:
        clock = Clock()

        def timed(kind: Any, seconds: Callable[[ExecutionPlan], float]) -> None:
            def call(self: Any, batch: Batch, step: int) -> tuple[torch.Tensor, torch.Tensor]:
                clock.now += seconds(self.plan)
                return torch.zeros(()), torch.zeros((), dtype=torch.int64)

            monkeypatch.setattr(kind, "__call__", call)

        timed(WholeBatchGradients, lambda plan: by_threads[plan.threads])
        timed(ShardedGradients, lambda plan: by_shards[plan.shards] if plan.shards in by_shards else _NEVER_SECONDS)  # noqa: SIM401 - may answer otherwise
        monkeypatch.setattr(timing, "time", clock)
        monkeypatch.setattr(planning, "training_threads", lambda: 4)
        monkeypatch.setattr(planning, "usable", lambda: False)
        monkeypatch.setattr(DividedStep, "check", lambda self: None)
        monkeypatch.setattr(DividedStep, "faster_convolutions", lambda self: ())
        return clock

    return script


_NEVER_SECONDS = 20.0  # of a plan that the script says nothing of
LONG: dict[str, Any] = {"device": "cpu", "precision": "float32", "n_steps": 10**6}


@pytest.mark.parametrize(
    ("by_threads", "fastest"),
    [({1: 4.0, 2: 1.0, 4: 2.0}, 2), ({1: 4.0, 2: 2.0, 4: 1.0}, 4), ({1: 1.04, 2: 1.02, 4: 1.0}, 1)],
)
def test_the_fastest_number_of_threads_is_chosen_or_a_smaller_one_nearly_as_fast(
    by_threads: dict[int, float], fastest: int, gradients_take: Callable[..., Clock]
) -> None:
    gradients_take(by_threads)
    plan = choose_plan(TimedSteps(network(), a_batch(), [HEAD]), **LONG, shards=0)
    assert (plan.threads, plan.prediction_threads) == (fastest, 4)
    assert choose_plan(TimedSteps(network(), a_batch(), [HEAD]), **LONG, shards=0, threads=2).prediction_threads == 0


@pytest.fixture
def entered(monkeypatch: pytest.MonkeyPatch) -> list[ExecutionPlan]:
    """The plans whose steps are timed, in their order."""
    plans: list[ExecutionPlan] = []
    enter = Comparison.enter

    def record(self: Comparison, plan: ExecutionPlan) -> float:
        plans.append(plan)
        return enter(self, plan)

    monkeypatch.setattr(Comparison, "enter", record)
    return plans


def test_threads_are_timed_in_the_precision_that_is_asked_for(
    gradients_take: Callable[..., Clock], entered: list[ExecutionPlan]
) -> None:
    gradients_take({1: 1.0, 2: 1.0, 4: 1.0})
    choose_plan(TimedSteps(network(), a_batch(), [HEAD]), device="cpu", precision="bfloat16", shards=0)
    assert [(plan.threads, plan.precision) for plan in entered] == [(n, "bfloat16") for n in (4, 2, 1)]


def test_one_thread_is_not_timed_where_half_of_them_are_clearly_slower_than_all(
    gradients_take: Callable[..., Clock], entered: list[ExecutionPlan]
) -> None:
    gradients_take({1: 4.0, 2: 2.0, 4: 1.0}, {4: 0.5})
    assert choose_plan(TimedSteps(network(), a_batch(), [HEAD]), **LONG).shards == 4
    assert [(plan.threads, plan.shards) for plan in entered] == [(4, 0), (2, 0), (4, 4), (4, 1)]


def test_a_precision_that_wins_is_the_one_that_plans_are_compared_in(
    gradients_take: Callable[..., Clock], entered: list[ExecutionPlan], monkeypatch: pytest.MonkeyPatch
) -> None:
    gradients_take({1: 4.0, 2: 2.0, 4: 1.0}, {4: 0.5})
    monkeypatch.setattr(
        planning,
        "_in_faster_precision",
        lambda plan, *_, **__: replace(plan, precision="bfloat16", reason="it is"),
    )
    plan = choose_plan(TimedSteps(network(), a_batch(), [HEAD]), **{**LONG, "precision": "auto"})
    assert (plan.precision, plan.shards) == ("bfloat16", 4)
    assert plan.reason == "it is; a step is 2.0 times faster in 4 shards"
    later = [plan for plan in entered if plan.precision == "bfloat16"]
    assert [(plan.threads, plan.shards) for plan in later] == [(4, 0), (2, 0), (4, 4), (4, 1)]


def test_what_is_clearly_beaten_is_not_timed_again(gradients_take: Callable[..., Clock]) -> None:
    """Twice as slow in one block of steps, or slower by a third in two, they are hardly so by chance."""
    calls = dict.fromkeys((1, 2, 3, 4), 0)

    class Counted(dict[int, float]):
        def __getitem__(self, threads: int) -> float:
            calls[threads] += 1
            return super().__getitem__(threads)

    gradients_take(Counted({1: 2.0, 2: 1.3, 3: 1.05, 4: 1.0}))
    with Comparison(TimedSteps(network(), a_batch(), [HEAD]), n_steps=10**6) as compared:
        for threads in calls:
            compared.enter(ExecutionPlan("cpu", threads, "float32"))
        before = dict(calls)
        compared.repeat()
    in_a_block = 1 + timing._FEWEST_PER_BLOCK
    blocks = {n: (calls[n] - before[n]) / in_a_block for n in calls}
    assert blocks == {1: 1, 2: 2, 3: 5, 4: 5}


def test_the_time_that_capturing_takes_is_not_a_steps(gradients_take: Callable[..., Clock]) -> None:
    class CapturedFirst(dict[int, float]):
        def __getitem__(self, shards: int) -> float:
            return self.pop(shards, 0.5)

        def __contains__(self, shards: object) -> bool:
            return True

    gradients_take({1: 1.0}, CapturedFirst({2: 100.0}))
    plans = [ExecutionPlan("cpu", 1, "float32"), ExecutionPlan("cpu", 1, "float32", shards=2)]
    assert TimedSteps(network(), a_batch(), [HEAD]).seconds(plans) == [1.0, 0.5]


def test_shards_are_chosen_where_they_are_faster(gradients_take: Callable[..., Clock]) -> None:
    gradients_take({1: 4.0, 2: 2.0, 4: 1.0}, {4: 0.5})
    plan = choose_plan(TimedSteps(network(), a_batch(), [HEAD]), **LONG)
    assert (plan.shards, plan.reason) == (4, "as asked; a step is 2.0 times faster in 4 shards")
    gradients_take({1: 4.0, 2: 2.0, 4: 1.0}, {4: 0.95})
    assert choose_plan(TimedSteps(network(), a_batch(), [HEAD]), **LONG).shards == 0


def test_half_of_the_shards_are_tried_where_others_use_some_cores(gradients_take: Callable[..., Clock]) -> None:
    gradients_take({1: 1.0, 2: 1.5, 4: 9.0}, {4: 3.0, 2: 0.5})
    assert choose_plan(TimedSteps(network(), a_batch(), [HEAD]), **LONG).shards == 2
    gradients_take({1: 1.0, 2: 1.5, 4: 9.0}, {4: 3.0, 2: 0.95})
    assert choose_plan(TimedSteps(network(), a_batch(), [HEAD]), **LONG).shards == 0


def test_a_step_is_captured_in_whole_batches_where_that_is_faster(gradients_take: Callable[..., Clock]) -> None:
    gradients_take({1: 0.04, 2: 0.02, 4: 0.01}, {4: 0.008, 1: 0.005})
    plan = choose_plan(TimedSteps(network(), a_batch(), [HEAD]), **LONG)
    assert (plan.shards, plan.threads, plan.threads_between_steps) == (1, 4, 4)
    assert plan.reason == "as asked; a step is 2.0 times faster captured"
    assert plan.describe_threads() == "4 threads, captured steps"
    gradients_take({1: 0.04, 2: 0.02, 4: 0.01}, {4: 0.008, 1: 0.0085})
    assert choose_plan(TimedSteps(network(), a_batch(), [HEAD]), **LONG).shards == 4
    gradients_take({1: 0.8, 2: 0.4, 4: 0.2}, {4: 0.1, 1: 0.05})
    assert choose_plan(TimedSteps(network(), a_batch(), [HEAD]), **LONG).shards == 1, "so are long steps"


class Slow(torch.optim.SGD):
    """Takes its time where it has one thread."""

    clock: Clock

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.clock.now += 2.0 if torch.get_num_threads() == 1 else 0.1


def test_what_one_thread_does_beside_the_shards_counts(gradients_take: Callable[..., Clock]) -> None:
    """Gradients alone are twice as fast in shards; with an optimizer that wants its threads the step is slower."""
    Slow.clock = gradients_take({1: 4.0, 2: 2.0, 4: 1.0}, {4: 0.5})

    def make_step(model: nn.Module, plan: ExecutionPlan) -> TrainingStep:
        return TrainingStep(model, [HEAD], Slow(model.parameters()), plan=plan, seed=0)

    model = network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert choose_plan(TimedSteps(model, a_batch(), [HEAD]), **LONG).shards == 4
    assert choose_plan(TimedSteps(model, a_batch(), [HEAD], make_step=make_step), **LONG).shards == 0

    def draw() -> Batch:
        Slow.clock.now += 2.0 if torch.get_num_threads() == 1 else 0.1
        return a_batch()

    assert choose_plan(TimedSteps(model, a_batch(), [HEAD], draw=draw), **LONG).shards == 0
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(("seconds", "chosen"), [([2.0, 1.0], "bfloat16"), ([1.0, 0.95], "float32")])
def test_on_a_gpu_the_network_itself_is_timed(
    seconds: list[float], chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A single small convolution is bound by how long its kernels take to start, in either precision."""
    monkeypatch.setattr(planning, "convolution_speedup", lambda device, threads: 0.8)
    times = itertools.cycle(seconds)
    monkeypatch.setattr(planning, "fastest_seconds", lambda runs, device: [next(times) for _ in runs])
    monkeypatch.setattr(planning, "executing", lambda plan: contextlib.nullcontext())
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(()))])

    def make_step(model: nn.Module, plan: ExecutionPlan) -> Any:
        return SimpleNamespace(optimizer=optimizer, close=lambda: None)

    plan = choose_plan(TimedSteps(network(), a_batch(), [HEAD], make_step=make_step), device="cuda:0")
    assert plan.precision == chosen
    assert plan.reason.startswith("this network's step is")
    assert choose_feature_plan(network(), a_batch(), device="cuda:0").precision == chosen
    assert choose_plan(TimedSteps(network(), a_batch(), [HEAD]), device="cpu", threads=1, shards=0).reason.startswith(
        "a convolution is 1.2 times slower"
    )


@pytest.mark.parametrize(
    ("device", "speedup", "timed"), [("cpu", 1.0, False), ("cpu", 1.2, True), ("cuda:0", 0.8, True)]
)
def test_doctor_tells_whether_networks_are_timed(
    device: str, speedup: float, timed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "resolve_device", lambda name: device)
    monkeypatch.setattr(doctor, "convolution_speedup", lambda device, threads: speedup)
    assert doctor.examine()["precision"] == ("measured for each network" if timed else "float32")


def test_measuring_leaves_weights_statistics_and_generators_untouched() -> None:
    model = network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    plan = choose_plan(TimedSteps(model, next(iter(batches().epoch())), [HEAD]), device="cpu")
    assert torch.equal(torch.rand(2), expected)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert 1 <= plan.threads <= torch.get_num_threads()
    assert plan.reason


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_an_asked_for_precision_is_not_measured(precision: str) -> None:
    plan = choose_plan(TimedSteps(network(), next(iter(batches().epoch())), [HEAD]), device="cpu", precision=precision)
    assert plan.precision == precision
    assert ExecutionPlan.from_json(plan.to_json()) == plan


def test_without_fast_bfloat16_instructions_float32_is_chosen() -> None:
    """oneDNN can be told to use AVX2 only, as on an ordinary laptop, where bfloat16 is several times slower."""
    code = (
        "from netloom.training.planning import choose_plan\n"
        "from netloom.training.timed_steps import TimedSteps\n"
        "from training.helpers import HEAD, batches, network\n"
        "plan = choose_plan(TimedSteps(network(), next(iter(batches().epoch())), [HEAD]), device='cpu')\n"
        "assert plan.precision == 'float32', plan"
    )
    tests = os.path.dirname(os.path.dirname(__file__))  # noqa: PTH120
    environment = os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2", "PYTHONPATH": tests}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


class OnceBusy(dict[int, list[float]]):
    """Seconds of steps by threads or shards: the next at each look, the last one for good."""

    def __getitem__(self, threads: int) -> Any:
        seconds = super().__getitem__(threads)
        return seconds.pop(0) if len(seconds) > 1 else seconds[0]


def test_a_busy_moment_does_not_decide_over_a_long_training(gradients_take: Callable[..., Clock]) -> None:
    """Four threads are the fastest but for the moment in which they were timed first, and so are four shards."""
    busy: Any = {1: [4.0], 2: [2.0], 4: [9.0, 9.0, 1.0]}
    clock = gradients_take(OnceBusy(copy.deepcopy(busy)))
    options: dict[str, Any] = {"device": "cpu", "precision": "float32"}
    steps = TimedSteps(network(), a_batch(), [HEAD])
    assert choose_plan(steps, **options, n_steps=20, shards=0).threads == 2, "a short training decides at once"
    before = clock.now
    clock = gradients_take(OnceBusy(copy.deepcopy(busy)))
    assert choose_plan(steps, **options, n_steps=10**4, shards=0).threads == 4
    assert before < clock.now < before + 0.01 * 10**4
    gradients_take({1: 4.0, 2: 2.0, 4: 1.0}, OnceBusy({4: [2.0, 2.0, 2.0, 0.5]}))
    assert choose_plan(steps, **options, n_steps=10**4).shards == 4


def test_a_short_first_step_does_not_decide(gradients_take: Callable[..., Clock]) -> None:
    """The threads of a captured step were just made, say."""
    gradients_take({1: 0.004, 2: 0.002, 4: 0.001}, OnceBusy({4: [0.001, 0.02, 0.0005], 1: [1.0]}))
    assert choose_plan(TimedSteps(network(), a_batch(), [HEAD]), **LONG).shards == 4


def test_what_one_way_leaves_for_the_next_does_not_decide(gradients_take: Callable[..., Clock]) -> None:
    """Its first steps in shards are slow, and so is each one after one in the other way, whose threads still spin."""
    calls: list[str] = []

    class Whole(dict[int, float]):
        def __getitem__(self, threads: int) -> float:
            calls.append("whole")
            return super().__getitem__(threads)

    class Shards(dict[int, float]):
        def __getitem__(self, shards: int) -> float:
            calls.append("shards")
            slow = calls.count("shards") < 5 or calls[-2] == "whole"
            return 4.0 if slow else super().__getitem__(shards)

    gradients_take(Whole({1: 4.0, 2: 2.0, 4: 1.0}), Shards({4: 0.5}))
    plan = choose_plan(TimedSteps(network(), a_batch(), [HEAD]), **LONG)
    assert (plan.shards, plan.reason) == (4, "as asked; a step is 2.0 times faster in 4 shards")


def test_shards_whose_gradients_do_not_fit_the_memory_are_not_tried(
    gradients_take: Callable[..., Clock], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of them has a full set, and all together may have a quarter of what is free."""
    steps = TimedSteps(network(), a_batch(), [HEAD])
    a_set = sum(4 * parameter.numel() for parameter in steps.model.parameters())
    gradients_take({1: 4.0, 2: 2.0, 4: 1.0}, {2: 0.5, 3: 0.5, 4: 0.5})
    for sets, n_shards in ((4, 4), (3.5, 3), (2, 2), (1.5, 0), (0.5, 0)):
        monkeypatch.setattr(timed_steps, "free_memory_bytes", lambda sets=sets: int(4 * sets * a_set))
        plan = choose_plan(steps, **LONG)
        assert plan.shards == n_shards
        assert ("would not fit" in plan.reason) == (n_shards == 0)


def test_plans_are_timed_once_where_their_copies_do_not_fit_the_memory(
    gradients_take: Callable[..., Clock], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two copies with gradients and two moments are eight sets, which may have a quarter of what is free."""
    steps = TimedSteps(network(), a_batch(), [HEAD])
    a_set = sum(4 * parameter.numel() for parameter in steps.model.parameters())
    plans = [ExecutionPlan("cpu", threads, "float32") for threads in (1, 2)]
    taken = {}
    for sets in (7, 9):
        clock = gradients_take({1: 4.0, 2: 2.0})
        monkeypatch.setattr(timed_steps, "free_memory_bytes", lambda sets=sets: 4 * sets * a_set)
        with Comparison(steps, n_steps=10**4) as compared:
            assert [compared.enter(plan) for plan in plans] == [4.0, 2.0]
            compared.repeat()
            assert [compared[plan] for plan in plans] == [4.0, 2.0]
        taken[sets] = clock.now
    assert taken[9] > taken[7]
