"""Training steps that are timed under one execution plan beside another, before a training."""

from __future__ import annotations

import contextlib
import copy
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType

import torch
from torch import nn

from netloom.data.batches import Batch
from netloom.memory import free_memory_bytes
from netloom.models.heads import Head
from netloom.runtime import ExecutionPlan, executing
from netloom.training.cuda_graphs import check_replayed
from netloom.training.divided import DividedStep
from netloom.training.step import TrainingStep
from netloom.training.timing import block_seconds, fastest_seconds, run_for, seconds_of, steady_seconds

# Steps so many times slower than the fastest are not timed again: other work has the cores, or they are simply slow.
# Not even a long first one is repeated then; a short one tells nothing, its threads may just have been made.
_HOPELESS = 5.0
_LONG_SECONDS = 0.03
# The same of what has been timed in one block of steps, and in more: a busy moment may last for one of them.
_BEATEN_ONCE, _BEATEN = 1.5, 1.25

# Threads get up to speed in so many seconds. On four cores of a virtual machine steps in shards took 9, 6.5 and 5.5 ms
# in the first three blocks of 50 ms, whatever ran before, and so did the first steps of a process.
_LEAD = 0.1

# Steps are timed again, many behind one another, as long as that takes no more than this share of the training: what a
# busy moment or a first step decides would be kept for hours.
_SHARE_FOR_REPETITIONS = 0.01
_MORE_REPETITIONS = 5

# What the gradients of all shards may take of the free memory: each has a full set. So may the copies of a model that
# are timed in turn, each with its gradients and up to two moments.
_SHARE_OF_FREE_MEMORY = 0.25
_TENSORS_OF_STEP = 4

Run = Callable[[], object]
MakeStep = Callable[[nn.Module, ExecutionPlan], TrainingStep]


@dataclass(frozen=True)
class TimedSteps:
    """Training steps to be timed, of copies of a model: its weights, statistics and gradients stay as they are.

    Attributes:
        model: On its device, in the mode in which most steps find it: what is frozen then costs no gradients.
        batch: A typical one, on the device.
        heads: What the outputs mean.
        label_smoothing: As in training.
        make_step: Makes a training step of the copy it is given, with its optimizer; None for gradients alone.
        draw: Gives another batch of that shape as training draws them, augmented; None for the same one again.
    """

    model: nn.Module
    batch: Batch
    heads: Sequence[Head]
    label_smoothing: float = 0.0
    make_step: MakeStep | None = None
    draw: Callable[[], Batch] | None = None

    @contextlib.contextmanager
    def under(self, plan: ExecutionPlan) -> Iterator[Run]:
        """What takes a whole step under the plan, which is to be in force."""
        make = self.make_step or self._of_gradients
        with contextlib.closing(make(copy.deepcopy(self.model), plan)) as step:
            for group in step.optimizer.param_groups:
                group["lr"] = 0.0  # so that every repetition computes with the same, finite weights
            yield lambda: step(self.batch if self.draw is None else self.draw(), 0)

    def seconds(self, plans: Sequence[ExecutionPlan]) -> list[float]:
        """Seconds of a step under each of the plans, one after the other."""
        with Comparison(self, n_steps=0) as comparison:
            return [comparison.enter(plan) for plan in plans]

    def divided(self, plan: ExecutionPlan) -> DividedStep:
        """The step's gradients, divided as the plan says, with what tells whether they may be."""
        return DividedStep(self.model, self.batch, self.heads, plan, self.label_smoothing)

    def check_replayed(self, plan: ExecutionPlan) -> None:
        """Compare replayed steps with the same by autograd.

        Raises:
            TrainingError: They cannot be replayed, or are others.
        """
        batches = [self.batch, self.batch if self.draw is None else self.draw()]
        check_replayed(self.model, batches, self.heads, plan, self.label_smoothing)

    def most_shards(self, most: int) -> int:
        """How many of so many shards have room for a full set of gradients each; 0 if that is no division any more."""
        fitting = int(_room() // max(1, self.bytes_of_gradients))
        if fitting >= most:
            return most
        return fitting if fitting > 1 else 0

    def fits_beside(self, n_others: int) -> bool:
        """Whether a copy has room beside so many others, each with its gradients and moments."""
        return (n_others + 1) * _TENSORS_OF_STEP * self.bytes_of_gradients <= _room()

    @property
    def bytes_of_gradients(self) -> int:
        """Of a full set."""
        return sum(p.numel() * p.element_size() for p in self.model.parameters() if p.requires_grad)

    def _of_gradients(self, replica: nn.Module, plan: ExecutionPlan) -> TrainingStep:
        idle = torch.optim.SGD([nn.Parameter(torch.zeros((), device=plan.device))], lr=0.0)
        return TrainingStep(replica, self.heads, idle, plan=plan, seed=0, label_smoothing=self.label_smoothing)


class Comparison:
    """Seconds of a step under plans that come one by one; used as a context manager.

    Each plan is timed roughly when it comes, and `repeat` then times again, in turn, those that may still be the
    fastest.

    Args:
        steps: What is timed.
        n_steps: Of the training, which limits what repetitions may take; 0 for none.
    """

    def __init__(self, steps: TimedSteps, *, n_steps: int) -> None:
        self._steps, self._n_steps = steps, n_steps
        self._roughly: dict[ExecutionPlan, float] = {}
        self._blocks: defaultdict[ExecutionPlan, list[float]] = defaultdict(list)
        self._runs: dict[ExecutionPlan, Run] = {}
        self._kept = contextlib.ExitStack()

    def __enter__(self) -> Comparison:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._kept.close()

    def __getitem__(self, plan: ExecutionPlan) -> float:
        """Seconds of a step under a plan that was entered."""
        return min(self._blocks[plan], default=self._roughly[plan])

    def enter(self, plan: ExecutionPlan) -> float:
        """Seconds of a step under another plan of the same device, roughly: of the fastest of a few.

        Raises:
            TrainingError: The step cannot be taken so; nothing is entered.
        """
        with contextlib.ExitStack() as entered, executing(plan):
            run = entered.enter_context(self._steps.under(plan))
            torch.set_num_threads(plan.threads_between_steps)
            if plan.shards or plan.graphed:
                run()  # captured first, which takes long
            seconds = seconds_of(run, plan.device)
            best = min(map(self.__getitem__, self._roughly), default=seconds)
            hopeless = seconds > max(_HOPELESS * best, _LONG_SECONDS)
            if not hopeless:
                run_for(_LEAD - seconds, run)
                (seconds,) = fastest_seconds([run], plan.device, warmed_up=True)
            if self._n_steps and not hopeless and self._steps.fits_beside(len(self._runs)):
                self._runs[plan] = run
                self._kept.push(entered.pop_all())
        self._roughly[plan] = seconds
        return seconds

    def clear(self) -> None:
        """Forget all plans, and give back the memory of their copies."""
        self._kept.close()
        for of_plans in (self._roughly, self._blocks, self._runs):
            of_plans.clear()

    def repeat(self) -> None:
        """Time again and again, in turn, what may still be the fastest, as long as that takes little of the training.

        Where there is no room for all copies beside one another, nothing is timed again: some would be, and not others.
        """
        fastest = min(self._roughly.values(), default=0.0)
        if any(s <= _HOPELESS * fastest and plan not in self._runs for plan, s in self._roughly.items()):
            return
        budget = _SHARE_FOR_REPETITIONS * self._n_steps * fastest
        for _ in range(_MORE_REPETITIONS):
            fastest = min(map(self.__getitem__, self._runs))
            hopeful = [plan for plan in self._runs if self[plan] <= fastest * self._margin(plan)]
            budget -= sum(block_seconds(self[plan], _lead(plan)) for plan in hopeful)
            if len(hopeful) < 2 or budget < 0:
                return
            for plan in hopeful:
                with executing(plan):
                    torch.set_num_threads(plan.threads_between_steps)
                    seconds = steady_seconds(self._runs[plan], plan.device, lead=_lead(plan))
                self._blocks[plan].append(seconds)

    def _margin(self, plan: ExecutionPlan) -> float:
        """How many times slower than the fastest it may be and still turn out to be that."""
        n_blocks = len(self._blocks[plan])
        return _HOPELESS if n_blocks == 0 else _BEATEN_ONCE if n_blocks == 1 else _BEATEN


def more_repetitions(seconds: Sequence[float], n_steps: int) -> int:
    """How many times blocks of steps that take so long may be timed before a training of `n_steps` of the fastest."""
    budget = _SHARE_FOR_REPETITIONS * n_steps * min(seconds)
    return min(_MORE_REPETITIONS, int(budget / sum(map(block_seconds, seconds))))


def _lead(plan: ExecutionPlan) -> float:
    """Seconds of steps that do not count after another plan's; torch's own threads are soon up to speed again."""
    return _LEAD if plan.shards > 1 else 0.0


def _room() -> float:
    """Bytes that may be taken for what is needed several times."""
    return _SHARE_OF_FREE_MEMORY * free_memory_bytes()
