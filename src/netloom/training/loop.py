"""The training loop: fit, epoch, step."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Sequence

import torch
from torch import nn

from netloom.data.batches import Batches
from netloom.errors import TrainingError
from netloom.inference import predict_outputs
from netloom.models.heads import Head
from netloom.runtime import ExecutionPlan, executing
from netloom.training.callbacks.base import Callback, CallbackList, watching
from netloom.training.checkpoint import Checkpoint, Checkpointer, EpochProgress
from netloom.training.freezing import Freezing
from netloom.training.regularize import MaxNorm, WeightPenalty
from netloom.training.schedules import Schedule
from netloom.training.state import EpochFigures, TrainingState
from netloom.training.step import TrainingStep

# The loss is looked at this often within an epoch, and a checkpoint offered; each look waits for the device. Where
# steps are slow the clock decides, so that a crash loses seconds and not fifty of them.
_STEPS_PER_CHECK = 50
_SECONDS_PER_CHECK = 5.0


class _InterruptedError(Exception):
    """The training was asked to stop between two steps."""


def fit(
    model: nn.Module,
    *,
    train: Batches,
    validation: Batches | None,
    heads: Sequence[Head],
    optimizer: torch.optim.Optimizer,
    plan: ExecutionPlan,
    epochs: int,
    seed: int,
    schedule: Schedule | None = None,
    penalty: WeightPenalty | None = None,
    label_smoothing: float = 0.0,
    gradient_clip_norm: float | None = None,
    max_norm: MaxNorm | None = None,
    mixup_alpha: float = 0.0,
    cutmix_alpha: float = 0.0,
    freezing: Freezing | None = None,
    callbacks: Sequence[Callback] | CallbackList = (),
    checkpointer: Checkpointer | None = None,
    resume: Checkpoint | None = None,
    interruption: Callable[[], str | None] = lambda: None,
) -> TrainingState:
    """Train `model` in place and return how it went.

    Args:
        model: On the plan's device, in channels-last memory where that is fast.
        train: The training part.
        validation: The validation part; never augmented. None for none: the history then has no columns of it, its
            hooks are not called, and a callback that monitors one of them ends the training with an error.
        heads: What the outputs mean and how they are trained.
        optimizer: Over the model's parameters, from `create_optimizer`.
        plan: Device, threads and precision.
        epochs: Passes over the training part.
        seed: Of dropout; order and augmentation have theirs in `train`.
        schedule: Of the learning rate; constant by default.
        penalty: L1 and L2 on the weights.
        label_smoothing: In [0, 1).
        gradient_clip_norm: Largest norm of the whole gradient, or None.
        max_norm: Limit on the norms of kernels, or None.
        mixup_alpha: Of mixup, see `mix_batch`; 0 is off.
        cutmix_alpha: Of cutmix, likewise.
        freezing: Which stages train when; `optimizer` must know of it, too. Without it all do that require gradients.
        callbacks: Called in their order, and closed at the end; a CallbackList is left open, to whoever made it.
        checkpointer: Where to save what a resumption needs.
        resume: A checkpoint to go on from.
        interruption: Asked between two steps and between two epochs, not behind the last; a text ends the training
            there as `interrupted` and becomes its `stop_reason`. The checkpoint then holds that very step, so that
            nothing is lost.

    Raises:
        TrainingError: The loss or a weight is no longer a number, the validation loss was none in two epochs in a row,
            or a callback monitors a figure that the history does not have.
    """
    state = TrainingState(model, optimizer, epochs, len(train), validates=validation is not None)
    step = TrainingStep(
        model,
        heads,
        optimizer,
        plan=plan,
        seed=seed,
        label_smoothing=label_smoothing,
        penalty=penalty,
        gradient_clip_norm=gradient_clip_norm,
        max_norm=max_norm,
        mixup_alpha=mixup_alpha,
        cutmix_alpha=cutmix_alpha,
    )
    with executing(plan), watching(callbacks) as watchers, contextlib.closing(step):
        fitting = _Fitting(state, step, watchers, schedule or Schedule(), train, validation, checkpointer)
        fitting.interruption, fitting.freezing = interruption, freezing
        progress = fitting.progress = resume.restore(state, watchers) if resume else EpochProgress()
        watchers.call("on_fit_start", state)
        try:
            # Who asks for an end asks for that of an epoch: one that was cut behind the request has one to come.
            while state.epoch < epochs and (state.stop_reason is None or progress.batches):
                fitting.heed()
                fitting.epoch(progress)
                progress = EpochProgress()
        except _InterruptedError as error:
            fitting.save()
            state.interrupt(str(error))
        else:
            fitting.save()
        if freezing is not None:
            freezing.prepare(model)
        watchers.call("on_fit_end", state)
    return state


class _Fitting:
    """One call of `fit`: what an epoch needs beside the state."""

    def __init__(
        self,
        state: TrainingState,
        step: TrainingStep,
        callbacks: CallbackList,
        schedule: Schedule,
        train: Batches,
        validation: Batches | None,
        checkpointer: Checkpointer | None,
    ) -> None:
        self.state, self.step, self.callbacks, self.schedule = state, step, callbacks, schedule
        self.factor = schedule.factor(epochs=state.epochs, steps_per_epoch=len(train))
        self.train, self.validation, self.checkpointer = train, validation, checkpointer
        self.progress = EpochProgress()
        self.interruption: Callable[[], str | None] = lambda: None
        self.freezing: Freezing | None = None

    def save(self) -> None:
        """Write a checkpoint of this very moment."""
        if self.checkpointer is not None:
            self.checkpointer.save(self.state, self.callbacks, self.progress)

    def heed(self) -> None:
        """End the training here if it was asked to, during the validation of the epoch before, say."""
        if asked_to_stop := self.interruption():
            raise _InterruptedError(asked_to_stop)

    def epoch(self, progress: EpochProgress) -> None:
        """Train and validate one epoch, from `progress` on."""
        state = self.state
        self.callbacks.call("on_epoch_start", state)
        row = EpochFigures({"epoch": state.epoch + 1, **self._train(progress)})
        if self.validation is not None:
            row |= self._validate(self.validation)
            self._check_validation(row["validation_loss"])
        state.history.append(row)
        state.epoch += 1
        self.progress = EpochProgress()
        self.callbacks.call("on_epoch_end", state)
        if self.checkpointer is not None and state.epoch < state.epochs and not state.stop_reason:
            self.checkpointer.save_if_due(state, self.callbacks, self.progress)

    def _train(self, progress: EpochProgress) -> dict[str, float]:
        state, step = self.state, self.step
        if self.freezing is None:
            state.model.train()
        elif self.freezing.enter(state.model, state.epoch):
            step.renew()
        torch.set_num_threads(step.plan.threads_between_steps)
        step.reset()
        step.loss_sum += progress.loss_sum
        step.correct += progress.correct
        step.n_samples = progress.n_samples
        self.progress = progress
        looked = time.perf_counter()
        started = looked - progress.seconds
        batches = progress.batches
        for batch in self.train.epoch(state.epoch, skip=progress.batches):
            self._set_rates()
            self.callbacks.call("on_batch_start", state)
            state.batch = step(batch, state.step)
            state.step += 1
            batches += 1
            self.callbacks.call("on_batch_end", state)
            asked_to_stop = self.interruption()
            due = batches % _STEPS_PER_CHECK == 0 or time.perf_counter() - looked >= _SECONDS_PER_CHECK
            if asked_to_stop or due or batches == len(self.train):
                step.check_finite(learning_rate=state.learning_rate, epoch=state.epoch + 1)
                if batches == len(self.train):  # no loss tells of what the last step did
                    step.check_weights(learning_rate=state.learning_rate, epoch=state.epoch + 1)
                self._mark(batches, started)
                looked = time.perf_counter()
            if asked_to_stop:
                raise _InterruptedError(asked_to_stop)
        seconds = time.perf_counter() - started
        return {
            **step.figures(),
            "learning_rate": state.learning_rate,
            "seconds": seconds,
            "images_per_second": step.n_samples / seconds,
        }

    def _set_rates(self) -> None:
        """Give every group its rate for the next step."""
        state, per_epoch = self.state, len(self.train)
        scale = self.factor(state.step) * state.learning_rate_scale
        for group in state.optimizer.param_groups:
            joined = group.get("joins", 0) * per_epoch  # an optimizer of a user's own has no such key
            rise = self.schedule.rise(state.step, joined=joined, steps_per_epoch=per_epoch)
            group["lr"] = group["base_lr"] * scale * rise

    def _mark(self, batches: int, started: float) -> None:
        """Note where the epoch is, and save it if that is due."""
        step = self.step
        self.progress = EpochProgress(
            batches,
            step.loss_sum.item(),
            int(step.correct.item()),
            step.n_samples,
            time.perf_counter() - started,
        )
        if self.checkpointer is not None and batches < len(self.train):
            self.checkpointer.save_if_due(self.state, self.callbacks, self.progress)

    def _check_validation(self, loss: float) -> None:
        """Look whether validation gives numbers; a single epoch without may be the statistics of a wild one.

        Raises:
            TrainingError: It gave none in the epoch before either; the message says what to try.
        """
        history = self.state.history
        if math.isfinite(loss) or not history or math.isfinite(history[-1].get("validation_loss", 0.0)):
            return
        rate = self.state.learning_rate
        raise TrainingError(
            f"The validation loss is NaN or infinite for the second epoch in a row, in epoch {self.state.epoch + 1} at "
            f"learning rate {rate:g}, though the training loss is a number: in evaluation mode, with the running "
            "statistics of batch normalization, the network's outputs grow beyond all bounds. Try a lower rate, for "
            f"example learning_rate={rate / 10:g}, or larger batches."
        )

    @torch.no_grad()
    def _validate(self, validation: Batches) -> dict[str, float]:
        state, step = self.state, self.step
        torch.set_num_threads(step.plan.threads)
        self.callbacks.call("on_validation_start", state)
        outputs = predict_outputs(
            state.evaluated_model,
            validation.epoch(),
            head_names=[head.name for head in step.heads],
            plan=step.plan,
            watch=self.callbacks.call,
        )
        rows = torch.from_numpy(validation.indices)
        loss, accuracy = 0.0, 0.0
        for i, head in enumerate(step.heads):
            targets = validation.targets[head.name].cpu()[rows]
            loss += head.loss_weight * head.loss(outputs[head.name], targets).item()
            if i == 0:
                accuracy = head.correct(outputs[head.name], targets).item() / len(rows)
        self.callbacks.call("on_validation_end", state)
        return {"validation_loss": loss, "validation_accuracy": accuracy}
