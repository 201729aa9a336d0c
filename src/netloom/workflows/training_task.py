"""What runs in a worker: bring a run that is set up to its end, from its start or from its last checkpoint."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from netloom.data.imageset import ImageSet
from netloom.data.splits import Split
from netloom.parallel.pictures import map_pictures
from netloom.parallel.tasks import TaskContext, find
from netloom.progress import Reporter
from netloom.runtime import ExecutionPlan, keep_freed_memory
from netloom.training.callbacks import Callback
from netloom.training.checkpoint import load_checkpoint
from netloom.training.state import TrainingState
from netloom.workflows import builders
from netloom.workflows.builders import CustomModel
from netloom.workflows.prepare import PreparedData
from netloom.workflows.runs import Run
from netloom.workflows.training_run import InterruptedTrainingError, Past, TrainingRun

_SECONDS_PER_REPORT = 0.5


@dataclass(frozen=True)
class Resources:
    """What all trainings of a job share in one process.

    Attributes:
        image_set: The pictures of every split.
        model: The function making the network, where it is the user's own.
    """

    image_set: ImageSet
    model: CustomModel | None


def set_up(*, pictures: Sequence[Mapping[str, str]], model: str | None) -> Resources:
    """Map the pictures of `parallel.pictures.sharing`; `model` is as `parallel.tasks.name_of` gives it."""
    keep_freed_memory()
    return Resources(map_pictures(**pictures[0]), None if model is None else find(model))


def finish_run(context: TaskContext, *, run: str, plan: Mapping[str, Any]) -> dict[str, Any]:
    """Train the run in folder `run` under `plan`, test it, and return its result.

    A run that has a checkpoint goes on from there. One that was asked to stop has the status `interrupted`.

    Raises:
        NetloomError: As `TrainingRun.execute` raises it; or another process is training the run.
    """
    resources: Resources = context.shared
    opened = Run(run, model=resources.model)
    with opened.alone():
        _finish(opened, context, resources, ExecutionPlan.from_json(dict(plan)))
    return opened.result


def _finish(opened: Run, context: TaskContext, resources: Resources, plan: ExecutionPlan) -> None:
    opened.remove_unfinished_files()
    recipe, facts = opened.recipe, opened.data
    split = Split.from_json(opened.split, resources.image_set.ids)
    if (result := opened.result)["status"] == "finished":  # its worker died just before it could report or tell
        from netloom.workflows.report import complete_report

        complete_report(opened, resources.image_set, split)
        return
    training = TrainingRun(
        opened,
        recipe,
        PreparedData(resources.image_set, split, facts),
        *builders.build_network(recipe, facts, resources.model),
        plan.device,
        Reporter(quiet=True),
        plan=plan,
        checkpoint=load_checkpoint(opened.checkpoint_path) if opened.checkpoint_path.is_file() else None,
        past=Past.of(result),
        interruption=context.stop_reason,
        watchers=[_EpochReports(context)],
    )
    with contextlib.suppress(InterruptedTrainingError):
        training.execute()


class _EpochReports(Callback):
    """Tells the driver how far the training is, and the figures of every epoch."""

    def __init__(self, context: TaskContext) -> None:
        self._context = context
        self._last = time.monotonic()

    def on_batch_end(self, state: TrainingState) -> None:
        """Tell the progress within an epoch, now and then."""
        if time.monotonic() - self._last >= _SECONDS_PER_REPORT:
            self._tell(state, state.step / state.steps_per_epoch)

    def on_epoch_end(self, state: TrainingState) -> None:
        """Tell the epoch's figures."""
        self._tell(state, state.epoch, row=state.history[-1])

    def _tell(self, state: TrainingState, done: float, **more: Any) -> None:
        self._last = time.monotonic()
        self._context.report({"done": done, "epochs": state.epochs, **more})
