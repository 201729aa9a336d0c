"""One training without labels: fit, keep the network without its projector, look for collapse, report."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

from netloom.data.augment import AugmentationSpec
from netloom.errors import NetloomError, RunError
from netloom.inference import predict_outputs
from netloom.models.contract import ImageModel
from netloom.progress import Reporter
from netloom.recipe import Recipe
from netloom.recipe.groups import SelfSupervised
from netloom.runtime import ExecutionPlan, executing, on_device, peak_memory_bytes
from netloom.training.callbacks import Callback, CSVLog, EpochProgress
from netloom.training.checkpoint import Checkpoint, Checkpointer, weights_bytes
from netloom.training.loop import fit
from netloom.training.planning import choose_plan
from netloom.training.self_supervised import (
    PAIR,
    ConstantSizes,
    Embedder,
    PairBatches,
    PairHead,
    spread_of,
)
from netloom.training.state import TrainingState
from netloom.training.timed_steps import TimedSteps
from netloom.workflows import builders
from netloom.workflows.interruption import BY_SYSTEM, listening, quoted
from netloom.workflows.pretraining_data import UnlabelledData
from netloom.workflows.runs import Run
from netloom.workflows.training_run import InterruptedTrainingError, kept_epoch

# More pictures show no better how the training goes.
_MOST_VALIDATION = 1_024
# Spreads of outputs: those of trained networks are near 1, and 0 says that all pictures look the same to the network.
_COLLAPSED, _NARROW = 0.1, 0.5


@dataclass
class PretrainingRun:
    """What one call of `pretrain` or `resume_pretraining` works with.

    Attributes:
        run: Where everything is written.
        recipe: What is trained.
        data: Pictures and split.
        embedder: The network with its projector, with their initial weights; moved to the device.
        device: A torch device name.
        reporter: Tells a person how it goes.
        plan: How it is executed; None to measure.
        checkpoint: To go on from.
        started: When the call began, by `time.perf_counter`.
    """

    run: Run
    recipe: Recipe
    data: UnlabelledData
    embedder: Embedder
    device: str
    reporter: Reporter
    plan: ExecutionPlan | None = None
    checkpoint: Checkpoint | None = None
    started: float = field(default_factory=time.perf_counter)

    def execute(self, callbacks: Sequence[Callback] = ()) -> Run:
        """Train, keep the network, report.

        Raises:
            InterruptedTrainingError: Ctrl-C or SIGTERM.
            NetloomError: The loss is no longer a number, the disk is full, …; the run has the status `failed`.
        """
        embedder = on_device(self.embedder, self.device)
        self._images = builders.resident(self.data.image_set, self.device)
        if self.checkpoint is None:
            builders.initialize_from_pictures(
                self.recipe, self._network, self._images, self.data.split.train, scaling=self.data.facts.scaling
            )
        train, validation = self._batches(self.data.split.train, shuffle=True), self._validation()
        head = PairHead(
            PAIR,
            "regression",
            num_outputs=self._group.embedding_size,
            temperature=self._group.temperature,
            views_at_once=2 * train.batch_size,
        )
        plan = self.plan or choose_plan(
            TimedSteps(embedder, next(iter(train.epoch())), [head]),
            device=self.device,
            precision=self.recipe.precision,
            shards=0,
            n_steps=self.recipe.epochs * len(train),
        )
        self.run.write_plan(plan)
        self.run.write_result({"status": "running", "tests": 0})
        projector = _parameters(self.embedder.projector)
        self.reporter.say(
            f"{self.recipe.model}: {_parameters(self._network):,} parameters and {projector:,} of the projector, on "
            f"{plan.device} with {plan.describe_threads()} in {plan.precision}; {self.recipe.epochs} epochs. Accuracy "
            f"is the share of views whose partner is found among {2 * train.batch_size - 1:,} others."
        )
        try:
            with listening() as interruption:
                state = fit(
                    embedder,
                    train=train,
                    validation=validation,
                    heads=[head],
                    optimizer=builders.build_optimizer(self.recipe, embedder),
                    plan=plan,
                    epochs=self.recipe.epochs,
                    seed=self.recipe.seed,
                    schedule=builders.build_schedule(self.recipe),
                    **builders.step_options(self.recipe, embedder),
                    callbacks=[
                        *builders.build_callbacks(self.recipe, None),
                        *callbacks,
                        CSVLog(self.run.metrics_path),
                        EpochProgress(self.reporter),
                    ],
                    checkpointer=Checkpointer(self.run.checkpoint_path),
                    resume=self.checkpoint,
                    interruption=interruption,
                )
        except NetloomError as error:
            with contextlib.suppress(RunError):  # where nothing can be written, the first error is the one to be told
                self.run.write_result({"status": "failed", "reason": str(error), "tests": 0})
            raise
        # What came with the last validation or later.
        state.interrupt(interruption())
        return self._finish(state, validation, plan)

    @property
    def _group(self) -> SelfSupervised:
        assert self.recipe.self_supervised is not None
        return self.recipe.self_supervised

    @property
    def _network(self) -> ImageModel:
        return self.embedder.backbone

    def _batches(self, indices: npt.NDArray[np.int64], *, shuffle: bool) -> PairBatches:
        assert self.recipe.augmentation is not None
        return PairBatches(
            self._images.images,
            indices,
            batch_size=self.recipe.batch_size,
            scaling=self.data.facts.scaling,
            spec=AugmentationSpec(**self.recipe.augmentation.model_dump()),
            seed=self.recipe.seed,
            shuffle=shuffle,
            device=self.device,
            sizes=ConstantSizes(self._group.view_size),
        )

    def _validation(self) -> PairBatches:
        """Views of some pictures that are not trained on, the same in every epoch."""
        indices = self.data.split.validation
        chosen = indices[np.linspace(0, len(indices) - 1, min(len(indices), _MOST_VALIDATION)).astype(np.int64)]
        return self._batches(chosen, shuffle=False)

    def _finish(self, state: TrainingState, validation: PairBatches, plan: ExecutionPlan) -> Run:
        self.run.write_weights(self._weights())
        result = self._result(state, plan, "interrupted" if state.interrupted else "finished")
        # Who sends SIGTERM kills what has not ended some seconds later.
        if state.stop_reason == BY_SYSTEM:
            self.run.write_result({**result, "seconds": time.perf_counter() - self.started})
            raise self._interrupted(state)
        with executing(plan):
            outputs = predict_outputs(self.embedder, validation.epoch(), head_names=[PAIR], plan=plan)[PAIR]
        result["spread"] = spread_of(outputs)
        result["collapsed"] = not result["spread"] >= _COLLAPSED
        result["verdict"] = collapse_in_words(result["spread"])
        if state.history:
            last = state.history[(kept_epoch(self.recipe, state.history) or 1) - 1]
            result["validation"] = {"loss": last["validation_loss"], "accuracy": last["validation_accuracy"]}
        result["seconds"] = time.perf_counter() - self.started
        self.run.remove_report()
        self.run.write_result(result)
        # Imported late: Matplotlib would delay the first step by most of a second.
        from netloom.workflows.pretraining_report import write_pretraining_report

        write_pretraining_report(self.run)
        if state.interrupted:
            raise self._interrupted(state)
        self.reporter.say(result["verdict"])
        self.reporter.say(
            f"Run:    {self.run.path}\nReport: {self.run.report_path}\n"
            f"Next:   netloom transfer SOURCE --backbone {quoted(self.run.path)}"
        )
        return self.run

    def _interrupted(self, state: TrainingState) -> InterruptedTrainingError:
        return InterruptedTrainingError(
            f"Pretraining was {state.stop_reason} after {state.epoch} of {state.epochs} epochs. Go on with: "
            f"netloom pretrain --resume {quoted(self.run.path)}",
            self.run,
            str(state.stop_reason),
        )

    def _weights(self) -> bytes:
        """The network's without its classifier, and what it is and was trained on, so that the file may stand alone."""
        facts = self.data.facts
        texts = {
            "model": self.recipe.model,
            "options": self.recipe.model_options(),
            "image_size": facts.image_size,
            "mean": facts.mean,
            "std": facts.std,
        }
        return weights_bytes(
            nn.ModuleDict({"trunk": self._network.trunk, "head": self._network.head}),
            metadata={key: json.dumps(value) for key, value in texts.items()},
        )

    def _result(self, state: TrainingState, plan: ExecutionPlan, status: str) -> dict[str, Any]:
        seconds = sum(row["seconds"] for row in state.history)
        n = len(self.data.split.train)
        views = 2 * state.step * min(self.recipe.batch_size, n)
        return {
            "run": str(self.run.path),
            "status": status,
            "source": self.data.facts.source_name,
            "recipe": self.recipe.name,
            "model": self.recipe.model,
            "parameters": _parameters(self._network),
            "epochs": state.epoch,
            "kept_epoch": kept_epoch(self.recipe, state.history),
            "stop_reason": state.stop_reason,
            "train_n": n,
            "views": views,
            "train_images_per_second": views / seconds if seconds else None,
            "train_seconds": seconds,
            "peak_memory_bytes": peak_memory_bytes(plan.device),
            "device": plan.device,
            "precision": plan.precision,
            "tests": 0,
        }


def collapse_in_words(spread: float) -> str:
    """What the spread of a network's outputs says of it."""
    if not spread >= _COLLAPSED:
        return (
            f"The network collapsed: it gives nearly the same for all pictures (spread {spread:.2f}; 1 is even). Its "
            "features are of no use. Try a lower learning_rate, or weaker augmentation."
        )
    if spread < _NARROW:
        return (
            f"The outputs lie close together (spread {spread:.2f}; 1 is even, 0 collapsed): the network tells pictures "
            "apart by little. More pictures, more epochs or weaker augmentation may help."
        )
    return f"No collapse: the outputs for different pictures lie apart (spread {spread:.2f}; 1 is even, 0 collapsed)."


def _parameters(module: nn.Module) -> int:
    return sum(p.numel() for name, p in module.named_parameters() if not name.startswith("classifier."))
