"""How many trainings share one accelerator: tried out, with as many processes as would share it.

A small network leaves most of a card idle: between its kernels the card waits for Python, and a kernel on a batch of 32
small pictures fills a part of it. Other processes fill the rest, until the card is busy or its memory is full.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from netloom.data.splits import Split
from netloom.parallel.local import LocalExecutor
from netloom.parallel.pictures import sharing_all
from netloom.parallel.tasks import Event, Failed, Finished, Retried, Task, TaskContext, name_of
from netloom.progress import Reporter
from netloom.recipe import Recipe
from netloom.run_facts import DataFacts
from netloom.runtime import ExecutionPlan, executing, usable_cpus
from netloom.workflows import builders
from netloom.workflows.builders import CustomModel
from netloom.workflows.fitting import Fitting
from netloom.workflows.prepare import PreparedData
from netloom.workflows.training_task import Resources, set_up

_AT_ONCE = (1, 2, 4, 8)
_WORTHWHILE = 1.15
"""Twice as many processes must do so much more together: each of them costs memory and the start of a process."""
_LEAST_SECONDS = 90.0
"""Trainings that take less one after the other are not worth trying out, which takes about half a minute."""
_WARM_UP_STEPS, _STEPS_BETWEEN_LOOKS = 10, 10
_TIMED_SECONDS = 1.5
_SECONDS_TO_MEET = 60.0
_OF_A_PROCESS = 600 * 2**20
"""Bytes that CUDA itself holds for a process, which its allocator does not count."""


def trainings_per_card(
    recipe: Recipe,
    data: PreparedData,
    plan: ExecutionPlan,
    *,
    n_trainings: int,
    most: int | None = None,
    model: CustomModel | None = None,
    reporter: Reporter | None = None,
) -> int:
    """With how many at once trainings on the plan's device should end the soonest, by steps taken together.

    Args:
        recipe: Of the trainings.
        data: Their pictures.
        plan: Of each of them.
        n_trainings: How many there are.
        most: At once at the most; None for any number.
        model: The function making the network, where it is the user's own.
        reporter: Tells a person what is tried out.
    """
    limit = min(n_trainings, most or n_trainings, usable_cpus(), max(_AT_ONCE))
    if limit < 2:
        return 1
    arguments = {"recipe": recipe.to_mapping(), "facts": data.facts.to_json(), "plan": plan.to_json()}
    steps = n_trainings * recipe.epochs * max(1, len(data.split.train) // recipe.batch_size)
    best, best_rate = 1, 0.0
    with (
        tempfile.TemporaryDirectory(prefix="netloom-meeting-") as folder,
        (reporter or Reporter(quiet=True)).bar("Trying trainings side by side") as on_progress,
        sharing_all([(data.image_set, data.pixels_file)]) as pictures,
        LocalExecutor(
            limit,
            setup=set_up,
            arguments={
                "pictures": [shared.to_json() for shared in pictures],
                "model": None if model is None else name_of(model),
            },
            remove=[shared.folder for shared in pictures],
        ) as executor,
    ):
        for at_once in (n for n in _AT_ONCE if n <= limit):
            on_progress(_AT_ONCE.index(at_once), len(_AT_ONCE))
            meeting = Path(folder) / str(at_once)
            meeting.mkdir()
            found = _Rates()
            executor.run(
                [
                    Task(f"{number} of {at_once}", time_steps, {**arguments, "meeting": str(meeting), "n": at_once})
                    for number in range(at_once)
                ],
                found,
            )
            if len(found.rates) < at_once or found.together < _WORTHWHILE * best_rate:
                break
            best, best_rate = at_once, found.together
            if (at_once == 1 and steps / best_rate < _LEAST_SECONDS) or not found.have_room(2 * at_once):
                break
    return best


@dataclass
class _Rates:
    """What the processes of one trial of sharing tell."""

    rates: list[float] = field(default_factory=list)
    needed: int = 0
    free: int | None = None

    def __call__(self, event: Event) -> None:
        if isinstance(event, Finished):
            self.rates.append(event.value["steps_per_second"])
            self.needed = max(self.needed, event.value["bytes"])
            self.free = event.value["free"]
        elif isinstance(event, Failed | Retried):
            self.rates = []

    @property
    def together(self) -> float:
        """Steps a second of all of them."""
        return sum(self.rates)

    def have_room(self, n: int) -> bool:
        """Whether the card has memory for `n` of them."""
        if self.free is None:
            return True
        return n * (self.needed + _OF_A_PROCESS) <= self.free + len(self.rates) * (self.needed + _OF_A_PROCESS)


def time_steps(
    context: TaskContext,
    *,
    recipe: Mapping[str, Any],
    facts: Mapping[str, Any],
    plan: Mapping[str, Any],
    meeting: str,
    n: int,
) -> dict[str, Any]:
    """Take training steps for a moment while `n` processes do so.

    Returns:
        `steps_per_second`; `bytes` that this process holds on the card; `free` ones there, None where that is unknown.
    """
    resources: Resources = context.shared
    chosen, known, how = Recipe.from_mapping(recipe), DataFacts.from_json(facts), ExecutionPlan.from_json(dict(plan))
    network, heads = builders.build_network(chosen, known, resources.model)
    every = np.arange(len(resources.image_set))  # which of them train does not matter for the time
    fitting = Fitting.prepare(
        chosen,
        network,
        heads,
        resources.image_set,
        Split(every, every[:1], every[:1], "all", 0),
        scaling=known.scaling,
        device=how.device,
        initialized=True,
    )
    step, numbers = fitting.training_step(fitting.learner, how), itertools.count()
    last = chosen.epochs - 1
    batches = itertools.chain.from_iterable(fitting.learned_from().epoch(last) for _ in itertools.count())

    def take(steps: int) -> None:
        for number, batch in zip(itertools.islice(numbers, steps), batches, strict=False):
            step(batch, number)
        _synchronize(how)

    with executing(how), contextlib.closing(step):
        torch.set_num_threads(how.threads_between_steps)
        take(_WARM_UP_STEPS)
        _meet(Path(meeting), n)
        done, started = 0, time.perf_counter()
        while time.perf_counter() - started < _TIMED_SECONDS:
            take(_STEPS_BETWEEN_LOOKS)
            done += _STEPS_BETWEEN_LOOKS
        seconds = time.perf_counter() - started
    on_card = how.torch_device.type == "cuda"
    return {
        "steps_per_second": done / seconds,
        "bytes": torch.cuda.max_memory_reserved(how.torch_device) if on_card else 0,
        "free": torch.cuda.mem_get_info(how.torch_device)[0] if on_card else None,
    }


def _synchronize(plan: ExecutionPlan) -> None:
    if plan.torch_device.type == "cuda":
        torch.cuda.synchronize(plan.torch_device)
    elif plan.torch_device.type == "mps":
        torch.mps.synchronize()


def _meet(folder: Path, n: int) -> None:
    """Wait until `n` processes are here."""
    (folder / str(os.getpid())).touch()
    deadline = time.monotonic() + _SECONDS_TO_MEET
    while len(list(folder.iterdir())) < n:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{n} processes did not meet within {_SECONDS_TO_MEET:.0f} s.")
        time.sleep(0.01)
