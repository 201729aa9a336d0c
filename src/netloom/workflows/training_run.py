"""One training of a run's network: fit, keep the weights, test once, report. `train` and `resume` share it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from torch import nn

from netloom.data.splits import groups_of
from netloom.errors import NetloomError, TrainingError
from netloom.evaluation.holdout import Evaluation, evaluate_model
from netloom.inference import Watch
from netloom.models.heads import Head
from netloom.progress import Reporter
from netloom.recipe import Recipe
from netloom.report.wording import counted, pictures_in_words
from netloom.runtime import ExecutionPlan, peak_memory_bytes
from netloom.training.callbacks import Callback, CallbackList, EpochProgress, Profile
from netloom.training.callbacks.base import Monitor
from netloom.training.checkpoint import Checkpoint, Checkpointer, weights_bytes
from netloom.training.state import TrainingState
from netloom.workflows import builders
from netloom.workflows.fitting import Fitting
from netloom.workflows.interruption import BY_SYSTEM, exit_code_of, how_to_go_on, listening, quoted
from netloom.workflows.prepare import PreparedData
from netloom.workflows.runs import Run


class InterruptedTrainingError(TrainingError):
    """The training was stopped from outside; the run so far is usable and can be resumed."""

    def __init__(self, message: str, run: Run, reason: str) -> None:
        super().__init__(message)
        self.run = run
        self.exit_code = exit_code_of(reason)


class Past(NamedTuple):
    """What earlier calls left of a training that goes on."""

    tests: int = 0
    """How often the test part was looked at."""
    departures: tuple[str, ...] = ()
    """What sets it apart from a training in one go, as sentences."""
    callbacks: tuple[str, ...] = ()
    """Classes of the user's own callbacks."""

    @classmethod
    def of(cls, result: Mapping[str, Any]) -> Past:
        """What a run's result tells."""
        departures, callbacks = result.get("departures", ()), result.get("callbacks", ())
        return cls(int(result.get("tests", 0)), tuple(departures), tuple(callbacks))

    def departing(self, departures: Sequence[str]) -> Past:
        """The same with more that sets it apart, each once."""
        return self._replace(departures=tuple(dict.fromkeys([*self.departures, *departures])))

    def to_json(self) -> dict[str, Any]:
        """As a result has it."""
        return {"tests": self.tests, "departures": list(self.departures), "callbacks": list(self.callbacks)}


def names_of(callbacks: Sequence[Callback]) -> tuple[str, ...]:
    """The classes of callbacks, as a run remembers them."""
    return tuple(type(callback).__name__ for callback in callbacks)


@dataclass
class TrainingRun:
    """What one call of `train` or `resume` works with.

    Attributes:
        run: Where everything is written.
        recipe: What is trained.
        data: Pictures and split.
        network: With its initial weights; moved to the device.
        heads: What its outputs mean.
        device: A torch device name.
        reporter: Tells a person how it goes.
        plan: How it is executed; None to measure.
        checkpoint: To go on from.
        profile: Record where the time of some steps goes.
        past: What calls before this one left of the training.
        interruption: Asked between two steps and before the test; a reason ends the training there, to be resumed,
            without scores and report, for which there may be no time. None ends it by SIGTERM in the same way, and by
            Ctrl-C with both.
        watchers: Told of the training beside the recipe's callbacks and the user's own, and not remembered.
        started: When the call began, by `time.perf_counter`.
    """

    run: Run
    recipe: Recipe
    data: PreparedData
    network: nn.Module
    heads: list[Head]
    device: str
    reporter: Reporter
    plan: ExecutionPlan | None = None
    checkpoint: Checkpoint | None = None
    profile: bool = False
    past: Past = field(default_factory=Past)
    interruption: Callable[[], str | None] | None = None
    watchers: Sequence[Callback] = ()
    started: float = field(default_factory=time.perf_counter)

    def execute(self, callbacks: Sequence[Callback] = ()) -> Run:
        """Train, test, report.

        Raises:
            InterruptedTrainingError: Ctrl-C or SIGTERM, or by `interruption`.
            TrainingError: The loss or a weight is no longer a number.
            NetloomError: Something else keeps it from its end: features that are no numbers, a full disk, …. Unless it
                had ended before, the run has the status `failed` then.
        """
        try:
            state, result, test = self._trained(callbacks)
        except NetloomError as error:
            self._note_failure(error)
            raise
        return self._finish(state, result, test)

    def _note_failure(self, error: NetloomError) -> None:
        """Write why a running training failed; of one that had ended, or was interrupted, the result stays."""
        with contextlib.suppress(NetloomError):  # where nothing can be written, the first error is the one to be told
            if self.run.result["status"] == "running":
                self.run.write_result({"status": "failed", "reason": str(error), **self.past.to_json()})

    def _trained(self, callbacks: Sequence[Callback]) -> tuple[TrainingState, dict[str, Any], Evaluation | None]:
        """Train, keep the weights and test."""
        self.past = self.past._replace(callbacks=names_of(callbacks))
        self.fitting = Fitting.prepare(
            self.recipe,
            self.network,
            self.heads,
            self.data.image_set,
            self.data.split,
            scaling=self.data.facts.scaling,
            device=self.device,
            initialized=self.checkpoint is not None,
            own_weights=self.run.weights_path,
            reporter=self.reporter,
        )
        self.network = self.fitting.network
        plan = self.plan or self.fitting.choose_plan()
        self.run.write_plan(plan)
        if self.recipe != self.run.recipe:  # it is extended, now that nothing keeps it from training
            self.run.write_recipe(self.recipe)
        self.run.write_result({"status": "running", **self.past.to_json()})
        self.reporter.say(
            f"{self.recipe.custom_model or self.recipe.model}: {builders.parameters_in_words(self.network)}, on "
            f"{plan.device} with "
            f"{plan.describe_threads()} in {plan.precision} ({plan.reason})"
        )
        # The user's own are open until the last prediction, whose hooks are theirs, too.
        with contextlib.closing(CallbackList(callbacks)) as users:
            state = self._fit(plan, callbacks)
            return state, *self._tested(state, plan, users.call)

    def _fit(self, plan: ExecutionPlan, callbacks: Sequence[Callback]) -> TrainingState:
        at_once = builders.is_solved_at_once(self.recipe)
        own = self.fitting.callbacks(self.run)
        recorders = builders.build_recorders(self.recipe, self.run, solved_at_once=at_once)
        if not at_once:
            recorders += [EpochProgress(self.reporter)] + ([Profile(self.run.profile_path)] if self.profile else [])
        listener = listening() if self.interruption is None else contextlib.nullcontext(self.interruption)
        with listener as interruption, contextlib.closing(CallbackList([*own, *recorders])):
            state = self.fitting.fit(
                plan,
                CallbackList([*own, *callbacks, *recorders, *self.watchers]),
                checkpointer=Checkpointer(self.run.checkpoint_path),
                resume=self.checkpoint,
                interruption=interruption,
            )
        # What came with the last validation or later: all epochs are saved, and a resumption goes on with the test.
        state.interrupt(interruption())
        return state

    def _evaluate(self, indices: npt.NDArray[np.int64], plan: ExecutionPlan, watch: Watch) -> Evaluation:
        targets = self.data.image_set.targets.numpy()
        return evaluate_model(
            self.fitting.scored,
            self.fitting.part(indices).epoch(),
            head=self.heads[0],
            targets=targets[indices],
            train_targets=targets[self.data.split.train],
            groups=groups_of(self.data.image_set.groups, indices),
            plan=plan,
            watch=watch,
            test_time_augmentation=self.recipe.test_time_augmentation,
        )

    def _tested(
        self, state: TrainingState, plan: ExecutionPlan, watch: Watch
    ) -> tuple[dict[str, Any], Evaluation | None]:
        """Keep the weights and look at the test part once, unless the training was interrupted."""
        self.run.write_weights(weights_bytes(self.network))
        result = self._result(state, plan, "interrupted" if state.interrupted else "finished")
        # Who sends SIGTERM kills what has not ended some seconds later.
        if state.interrupted and (self.interruption is not None or state.stop_reason == BY_SYSTEM):
            self.run.write_result({**result, "seconds": time.perf_counter() - self.started})
            raise self._interrupted(state)
        if state.history and len(self.data.split.validation):
            validation = self._evaluate(self.data.split.validation, plan, watch)
            result["validation"] = {**validation.to_json(), **_best(state.history)}
        test = None
        if not state.interrupted:
            test = self._evaluate(self.data.split.test, plan, watch)
            self.run.write_test_predictions(probabilities=test.probabilities, targets=test.targets, groups=test.groups)
            result["test"] = test.to_json()
            result["tests"] += 1
        return result, test

    def _finish(self, state: TrainingState, result: dict[str, Any], test: Evaluation | None) -> Run:
        """Write result and report."""
        result["seconds"] = time.perf_counter() - self.started
        self.run.remove_report()  # of an interruption, say: killed between the two, a result has none and gets it later
        self.run.write_result(result)
        # Imported late: Matplotlib would delay every training's first step by most of a second.
        from netloom.workflows.report import write_report

        write_report(self.run, self.data.image_set, self.data.split, test)
        if result["status"] == "interrupted":
            raise self._interrupted(state)
        self._say_result(result)
        return self.run

    def _interrupted(self, state: TrainingState) -> InterruptedTrainingError:
        go_on_with = how_to_go_on(
            f"netloom train --resume {quoted(self.run.path)}",
            f"netloom.resume({str(self.run.path)!r}",
            in_memory=not self.data.facts.source_location,
            model=self.run.custom_model,
            callbacks=bool(self.past.callbacks),
        )
        return InterruptedTrainingError(
            f"Training was {state.stop_reason} after {state.epoch} of {state.epochs} epochs. The run so far is "
            f"usable; go on with: {go_on_with}",
            self.run,
            str(state.stop_reason),
        )

    def _result(self, state: TrainingState, plan: ExecutionPlan, status: str) -> dict[str, Any]:
        seconds = sum(row["seconds"] for row in state.history)
        parameters = dict(self.network.named_parameters())
        freezing = builders.build_freezing(self.recipe, self.network)
        begun = max(1, -(-state.step // state.steps_per_epoch))  # the epochs that had a step
        trained = [name for name, p in parameters.items() if p.requires_grad]
        if freezing is not None:
            trained = freezing.trained_parameters(begun)
        n = len(self.data.split.train)
        mode_choice = self.run.mode_choice
        return {
            "run": str(self.run.path),
            "status": status,
            "source": self.data.facts.source_name,
            "recipe": self.recipe.name,
            "model": self.recipe.custom_model or self.recipe.model,
            "parameters": sum(p.numel() for p in parameters.values()),
            "trainable_parameters": sum(parameters[name].numel() for name in trained),
            "trainable_tensors": len(trained),
            "unfreezing": [
                {"epoch": epoch + 1, "stages": names}
                for epoch, names in (freezing.unfreezing(begun) if freezing is not None else ())
            ],
            "frozen_stages": [] if freezing is None else freezing.frozen(begun),
            "epochs": state.epoch,
            "kept_epoch": kept_epoch(self.recipe, state.history),
            "stop_reason": state.stop_reason,
            "train_n": n,
            "train_images_per_second": n * len(state.history) / seconds if seconds else None,
            "train_seconds": seconds,
            "peak_memory_bytes": peak_memory_bytes(plan.device),
            "device": plan.device,
            "precision": plan.precision,
            "test_time_augmentation": self.recipe.test_time_augmentation,
            **self.past.to_json(),
            "notes": list(self.data.split.notes),
            "test_notes": list(self.data.split.test_notes),
            **self.fitting.about(),
            **({"transfer": mode_choice} if mode_choice else {}),
        }

    def _say_result(self, result: Mapping[str, Any]) -> None:
        test, validation = result["test"], result.get("validation")
        chosen = "no validation part" if validation is None else f"validation {validation['accuracy']:.2%}"
        low, high = test["interval"]
        how = result.get("classifier", {}).get("how")
        by = f"\n  {how}" if how else f" (weights of epoch {result['kept_epoch']})"
        self.reporter.say(
            f"Test accuracy {test['accuracy']:.2%} of {pictures_in_words(test['n'], test['groups'])} "
            f"(95% interval {low:.2%} to {high:.2%}); always guessing {test['majority_baseline']['class']!r}: "
            f"{test['majority_baseline']['accuracy']:.2%}; {chosen}{by}"
        )
        for note in result["test_notes"]:
            self.reporter.say(f"  note: {note}")
        if self.recipe.test_time_augmentation != "none":
            self.reporter.say(
                f"  note: outputs were averaged over versions of each picture "
                f"(test_time_augmentation: {self.recipe.test_time_augmentation})"
            )
        if result["stop_reason"]:
            self.reporter.say(f"  note: stopped after {counted(result['epochs'], 'epoch')}: {result['stop_reason']}")
        if result["tests"] > 1:
            self.reporter.say(
                f"  note: the test part was looked at {result['tests']} times; choices made in between "
                "make its score too good"
            )
        self.reporter.say(f"Run:    {self.run.path}\nReport: {self.run.report_path}")
        if self.profile and self.run.profile_path.is_dir():
            self.reporter.say(f"Profile: {self.run.profile_path}")


def kept_epoch(recipe: Recipe, history: Sequence[Mapping[str, float]]) -> int | None:
    """The epoch whose weights are kept; of a classifier that is solved at once there is one, which nothing chooses."""
    if not history:
        return None
    monitor = None if builders.is_solved_at_once(recipe) else builders.kept_by(recipe)
    if monitor is None:
        return int(history[-1]["epoch"])
    # As `BestWeights` chooses: a figure that is no number is the best only as long as there is no other.
    values = np.array([row[monitor] for row in history])
    if np.isnan(values).all():
        return int(history[-1]["epoch"])
    best = np.nanargmax(values) if Monitor(monitor).maximize else np.nanargmin(values)
    return int(history[int(best)]["epoch"])


def _best(history: Sequence[Mapping[str, float]]) -> dict[str, float]:
    best = max(history, key=lambda row: row["validation_accuracy"])
    return {"best_accuracy": best["validation_accuracy"], "best_epoch": best["epoch"]}
