"""One optimizer step: forward, loss, backward, update; figures stay on the device until the epoch ends."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from netloom.data.augment import mix_batch
from netloom.data.batches import Batch
from netloom.errors import TrainingError
from netloom.kernels.calls import most_threads, usable
from netloom.models.heads import Head
from netloom.models.kept_state import fingerprint, has_hooks
from netloom.runtime import ExecutionPlan
from netloom.training.cuda_graphs import GraphedGradients
from netloom.training.gradients import Gradients, WholeBatchGradients
from netloom.training.regularize import MaxNorm, WeightPenalty
from netloom.training.shards import ShardedGradients
from netloom.training.step_rewrites import CaptureError, MissingCompilerError
from netloom.training.updates import FasterUpdate


def mixed(
    batch: Batch, heads: Sequence[Head], *, seed: int, step: int, mixup_alpha: float, cutmix_alpha: float
) -> Batch:
    """A shuffled batch of one input with its pictures mixed, their targets soft, float32 `[B, K]`.

    The weight of a picture goes with its target: sum(share * weight * target) is the target of the mixture and
    sum(share * weight) its weight, so that the loss is that of both pictures' targets, each with its own weight.
    """
    ((name, images),) = batch.inputs.items()
    weights = torch.ones(len(batch), device=images.device) if batch.weights is None else batch.weights
    soft = [head.soft_targets(batch.targets[head.name]) * weights[:, None] for head in heads]
    images, columns = mix_batch(
        images,
        torch.cat([*soft, weights[:, None]], dim=1),
        seed=seed,
        step=step,
        mixup_alpha=mixup_alpha,
        cutmix_alpha=cutmix_alpha,
    )
    *parts, total = torch.split(columns, [*(part.shape[1] for part in soft), 1], dim=1)
    divisor = total.clamp_min(torch.finfo(torch.float32).tiny)
    targets = {head.name: part / divisor for head, part in zip(heads, parts, strict=True)}
    return Batch({name: images}, targets, None if batch.weights is None else total[:, 0])


class TrainingStep:
    """Takes optimizer steps and adds up loss and correct predictions on the device.

    Args:
        model: In training mode, on the plan's device.
        heads: The first one's accuracy is reported.
        optimizer: Over the model's parameters.
        plan: Device, precision and shards.
        seed: Of dropout and mixing.
        label_smoothing: In [0, 1).
        penalty: L1 and L2 on the weights.
        gradient_clip_norm: Largest norm of the whole gradient, or None.
        max_norm: Limit on the norms of kernels, or None.
        mixup_alpha: Of mixup, see `mix_batch`; 0 is off.
        cutmix_alpha: Of cutmix, likewise.
    """

    def __init__(
        self,
        model: nn.Module,
        heads: Sequence[Head],
        optimizer: torch.optim.Optimizer,
        *,
        plan: ExecutionPlan,
        seed: int,
        label_smoothing: float = 0.0,
        penalty: WeightPenalty | None = None,
        gradient_clip_norm: float | None = None,
        max_norm: MaxNorm | None = None,
        mixup_alpha: float = 0.0,
        cutmix_alpha: float = 0.0,
    ) -> None:
        self.heads, self.optimizer, self.plan, self.seed = heads, optimizer, plan, seed
        compute = ShardedGradients if plan.shards else GraphedGradients if plan.graphed else WholeBatchGradients
        options = {"plan": plan, "seed": seed, "label_smoothing": label_smoothing}
        self._planned: Gradients = compute(model, heads, **options)  # type: ignore[arg-type]
        crew = self._planned.crew if isinstance(self._planned, ShardedGradients) else None
        threads = min(plan.threads, most_threads()) if plan.compiled and usable() else 0
        is_on_cpu = plan.torch_device.type == "cpu"
        self._update = FasterUpdate(optimizer, crew, compiled_threads=threads) if is_on_cpu else None
        self._by_autograd: Gradients = WholeBatchGradients(model, heads, **options)  # type: ignore[arg-type]
        self._model = model
        self.penalty, self.gradient_clip_norm, self.max_norm = penalty, gradient_clip_norm, max_norm
        self.mixup_alpha, self.cutmix_alpha = mixup_alpha, cutmix_alpha
        self._device = plan.torch_device
        self._parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self._known = fingerprint(model)
        self.reset()

    def renew(self) -> None:
        """Take notice that other parameters train than before."""
        self._planned.renew()

    def close(self) -> None:
        """End the threads that took shards, give back the memory of a graph."""
        self._planned.close()

    def reset(self) -> None:
        """Start the figures of a new epoch, in which the model is trained as it is by now, whoever changed it.

        No captured or recorded step calls hooks: as long as there are some, autograd takes the model as it is.
        """
        if (found := fingerprint(self._model)) != self._known:  # a callback froze a layer or drops less, say
            self._known = found
            self.renew()
        self._gradients = self._by_autograd if has_hooks(self._model) else self._planned
        kind = torch.float32 if self._device.type == "mps" else torch.float64
        self.loss_sum = torch.zeros((), dtype=kind, device=self._device)
        self.correct = torch.zeros((), dtype=torch.int64, device=self._device)
        self.n_samples = 0

    def __call__(self, batch: Batch, step: int) -> Batch:
        """Train on one batch and return it as the network got it; `step` counts optimizer steps from the start.

        A mixed picture counts as correct if the network gives the class of its larger share.
        """
        if self.mixup_alpha or self.cutmix_alpha:
            alphas = {"mixup_alpha": self.mixup_alpha, "cutmix_alpha": self.cutmix_alpha}
            batch = mixed(batch, self.heads, seed=self.seed, step=step, **alphas)
        try:
            loss, correct = self._gradients(batch, step)
        except MissingCompilerError:  # whoever resumes elsewhere would get other bits
            raise
        except CaptureError:  # of a batch of another size than that of which the plan was made
            loss, correct = self._by_autograd(batch, step)
        if self.penalty is not None:
            self.penalty.add_gradient()
        if self.gradient_clip_norm is not None:
            nn.utils.clip_grad_norm_(self._parameters, self.gradient_clip_norm)
        if self._update is not None:
            self._update()
        else:
            self.optimizer.step()
        if self.max_norm is not None:
            self.max_norm.apply()
        self.loss_sum += loss * len(batch)
        self.correct += correct
        self.n_samples += len(batch)
        return batch

    def check_finite(self, *, learning_rate: float, epoch: int) -> None:
        """Look whether the loss is still a number.

        Raises:
            TrainingError: It is not; the message says what to try.
        """
        if not math.isfinite(self.loss_sum.item()):
            raise TrainingError(
                f"The loss became NaN or infinite in epoch {epoch} at learning rate {learning_rate:g}. "
                f"Try a lower one, for example learning_rate={learning_rate / 10:g}, or "
                "gradient_clip_norm=1; check `input_scaling` if the pictures are not scaled."
            )

    def check_weights(self, *, learning_rate: float, epoch: int) -> None:
        """Look whether the last step left numbers for weights; its loss is that of the weights before it.

        Raises:
            TrainingError: It did not; the message says what to try.
        """
        finite = [parameter.detach().isfinite().all() for parameter in self._parameters]
        if not torch.stack([flag.to(self._device) for flag in finite]).all().item():
            raise TrainingError(
                f"A weight became NaN or infinite in the last step of epoch {epoch} at learning rate "
                f"{learning_rate:g}. Try a lower one, for example learning_rate={learning_rate / 10:g}, or "
                "gradient_clip_norm=1."
            )

    def figures(self) -> dict[str, float]:
        """`train_loss` and `train_accuracy` over the batches since `reset`.

        Where samples have weights, the loss of each batch is the weighted mean; the accuracy counts every sample once.
        """
        n = max(1, self.n_samples)
        return {"train_loss": self.loss_sum.item() / n, "train_accuracy": self.correct.item() / n}
