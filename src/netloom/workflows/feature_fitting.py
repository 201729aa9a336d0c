"""A head trained on features that are computed once: the counterpart of `fitting.py` for `transfer.mode: features`."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from netloom.data.augment import AugmentationSpec, Augmenter
from netloom.data.batches import Batches
from netloom.data.feature_cache import FeatureCache, Keys
from netloom.data.imageset import ImageSet
from netloom.data.units import tie_into_units
from netloom.errors import TrainingError
from netloom.features import (
    Extraction,
    FeatureBatches,
    FeatureExtractor,
    FeatureHead,
    View,
    extract_features,
    feature_space,
    picture_keys,
)
from netloom.inference import Watch, predict_outputs, unwatched
from netloom.models.contract import ImageModel
from netloom.progress import OnProgress, Reporter
from netloom.run import RunFolder
from netloom.runtime import ExecutionPlan, Precision, executing
from netloom.training.callbacks import Callback, CallbackList
from netloom.training.callbacks.base import watching
from netloom.training.callbacks.time_limit import count_earlier
from netloom.training.checkpoint import Checkpoint, Checkpointer, state_bytes
from netloom.training.feature_heads import Choice, fit_logistic
from netloom.training.loop import fit
from netloom.training.neighbours import NearestNeighbours, fit_neighbours
from netloom.training.planning import choose_feature_plan
from netloom.training.state import EpochFigures, TrainingState
from netloom.workflows import builders
from netloom.workflows.fitting import Fitting

_ROWS_AT_ONCE = 512  # of features, in passes without training
# Of the pictures; the others are computed in the precision of these, even if that is the slower one.
_WORTH_KEEPING = 0.5
# A classifier of fewer numbers is fitted by one thread: its thousand passes over the features take a millisecond each,
# and threads that wait for one another on a busy machine a hundred times that (117 s in place of 25 were measured).
_FEW_NUMBERS = 16_000_000


@dataclass
class _Known:
    """What has been found out of a fitting's pictures.

    Attributes:
        features: Float32 `[M, D]` on the device: of each picture of the split, then of the training pictures' views.
        row_of: The row of each picture of the image set, int64 `[N]`; -1 for those outside of the split.
        view_rows: Rows of the views, in the order of the training part, once for each view.
        computed: Pictures and views that went through the network.
        seconds: What that took, with what was looked up.
        choice: How what the classifier leaves open was chosen.
    """

    features: torch.Tensor
    row_of: npt.NDArray[np.int64]
    view_rows: npt.NDArray[np.int64]
    computed: int
    seconds: float
    choice: Choice | None = None


@dataclass(frozen=True, eq=False)
class FeatureFitting(Fitting):
    """A network whose head is trained on features of its frozen rest; `network` is the whole of it.

    Attributes:
        reporter: Tells a person how it goes.
        extractor: Gives the features; its modules are the network's.
        head: What is trained; likewise.
        known: The features, once they have been computed; empty or one.
    """

    reporter: Reporter
    extractor: FeatureExtractor
    head: FeatureHead
    known: list[_Known] = field(default_factory=list)

    @classmethod
    def of(cls, fitting: Fitting, reporter: Reporter) -> FeatureFitting:
        """The same training, by features."""
        network = fitting.network
        assert isinstance(network, ImageModel)  # `builders.build_model` refuses others
        own = {name: getattr(fitting, name) for name in Fitting.__dataclass_fields__}
        return cls(**{**own, "reporter": reporter}, extractor=FeatureExtractor(network), head=FeatureHead(network))

    @property
    def scored(self) -> nn.Module:
        """What the batches of `part` go through: the head, or the network where versions of pictures are averaged."""
        return self.head if self.recipe.test_time_augmentation == "none" else self.network

    def part(self, indices: npt.NDArray[np.int64]) -> Batches:
        """Batches of the features of `image_set[indices]` in order; of the pictures where `scored` is the network."""
        if self.recipe.test_time_augmentation != "none":
            return super().part(indices)
        return self._rows(self._found().row_of[indices])

    @property
    def learner(self) -> nn.Module:
        """What steps train: the head."""
        return self.head

    def learned_from(self) -> Batches:
        """Batches of the training part's features, which `make_ready` has computed, for a head that is trained."""
        rows, targets, weights, _ = self._training_rows()
        return FeatureBatches(
            self._found().features[rows],
            {self.heads[0].name: targets},
            np.arange(len(rows)),
            batch_size=self.recipe.batch_size,
            seed=self.recipe.seed,
            shuffle=True,
            weights=weights,
        )

    def step_plan(self, plan: ExecutionPlan) -> ExecutionPlan:
        """How the head's steps are executed; the plan is that of the pass that gives features."""
        return replace(plan, precision="float32", shards=0)

    def step_options(self, learner: nn.Module) -> dict[str, Any]:
        """Further arguments of a training step; features are not mixed."""
        return {**super().step_options(learner), "mixup_alpha": 0.0, "cutmix_alpha": 0.0}

    def make_ready(self, plan: ExecutionPlan, interruption: Callable[[], str | None] = lambda: None) -> bool:
        """Look features up or compute them, see `extract`."""
        return self.extract(plan, interruption)

    def choose_plan(self, *, n_steps: int | None = None, threads: int | None = None) -> ExecutionPlan:
        """How to execute it; only the pass that gives features is worth measuring.

        Features that are kept are worth more than a faster pass: under `auto` the precision of most of them is taken,
        and measured only where no precision has those of half the pictures.
        """
        precision, kept = self.recipe.precision, None
        if precision == "auto" and (kept := self._kept_precision()) is not None:
            precision = kept
        batch = next(iter(super().part(self.split.train[:_ROWS_AT_ONCE]).epoch()))
        plan = choose_feature_plan(self.extractor, batch, device=self.device, precision=precision, threads=threads)
        return plan if kept is None else replace(plan, reason="that of features that are kept already")

    def _kept_precision(self) -> Precision | None:
        """The precision in which the cache has most features of the pictures; None where it has few in any."""
        shares: dict[Precision, float] = {}
        for precision in get_args(Precision):
            cache = self._cache(ExecutionPlan(self.device, 1, precision))
            shares[precision] = 0.0 if cache.is_empty() else float(cache.find(self._pictures[1])[1].mean())
        best = max(shares, key=shares.__getitem__)
        return best if shares[best] >= _WORTH_KEEPING else None

    def _cache(self, plan: ExecutionPlan) -> FeatureCache:
        """Features of this network as the plan has them computed."""
        return FeatureCache(feature_space(self.extractor, identity=self.recipe.model, scaling=self.scaling, plan=plan))

    @functools.cached_property
    def _pictures(self) -> tuple[npt.NDArray[np.int64], Keys]:
        """Indices of the split's pictures, in order, and what their features are found by."""
        indices = np.unique(np.concatenate([self.split.train, self.split.validation, self.split.test]))
        return indices, picture_keys(self.image_set.images.cpu(), indices)

    def callbacks(self, run: RunFolder | None) -> list[Callback]:
        """The recipe's, where there are epochs."""
        return [] if builders.is_solved_at_once(self.recipe) else super().callbacks(run)

    def content(self, model: nn.Module) -> bytes:
        """The whole network's weights as a file holds them, with those of `model`, a head, in their place."""
        return state_bytes({**self.network.state_dict(), **model.state_dict()})

    def about(self) -> dict[str, Any]:
        """What `result.json` tells of features and classifier."""
        if not self.known:
            return {}
        known, transfer = self.known[0], self.recipe.transfer
        assert transfer is not None
        found: dict[str, Any] = {
            "features": {
                "numbers": known.features.shape[1],
                "rows": len(known.features),
                "computed": known.computed,
                "seconds": known.seconds,
            },
            "classifier": {"kind": transfer.classifier, "views": transfer.views},
        }
        if known.choice is not None:
            found["classifier"] |= {**known.choice.to_json(), "how": known.choice.in_words()}
        return found

    def extract(self, plan: ExecutionPlan, interruption: Callable[[], str | None] = lambda: None) -> bool:
        """Look features up or compute them; False if that was asked to stop.

        Raises:
            ModelError: They are not finite numbers.
        """
        if self.known:
            return True
        started = time.perf_counter()
        split, transfer = self.split, self.recipe.transfer
        assert transfer is not None
        cache, (indices, keys) = self._cache(plan), self._pictures
        row_of = np.full(len(self.image_set), -1, dtype=np.int64)
        row_of[indices] = np.arange(len(indices))
        work: list[tuple[npt.NDArray[np.int64], View | None]] = [(indices, None)]
        work += [(split.train, view) for view in self._views(transfer.views)]
        total, done, parts = sum(len(rows) for rows, _ in work), 0, []
        with self.reporter.bar("Computing features") as on_progress:
            for rows, view in work:
                extraction = self._extraction(
                    rows,
                    view,
                    keys[row_of[rows]],
                    plan,
                    cache,
                    functools.partial(_tell, on_progress, done, total),
                    interruption,
                )
                if extraction is None:
                    return False
                done += len(rows)
                parts.append(extraction)
        features = torch.from_numpy(np.concatenate([part.features for part in parts])).to(self.device)
        computed = sum(part.computed for part in parts)
        seconds = time.perf_counter() - started
        self.known.append(_Known(features, row_of, np.arange(len(indices), total), computed=computed, seconds=seconds))
        views = f" and {total - len(indices):,} augmented views" if transfer.views else ""
        known = "" if computed == total else f", {total - computed:,} of them known already"
        self.reporter.say(
            f"Features: {features.shape[1]:,} numbers for each of {len(indices):,} pictures{views}{known}; "
            f"{seconds:.1f} s"
        )
        return True

    def fit(
        self,
        plan: ExecutionPlan,
        callbacks: Sequence[Callback] | CallbackList,
        *,
        checkpointer: Checkpointer | None = None,
        resume: Checkpoint | None = None,
        interruption: Callable[[], str | None] = lambda: None,
    ) -> TrainingState:
        """Train the head on features, in place: in one go, or by the ordinary loop.

        Raises:
            TrainingError: The loss is no longer a number, or the recipe's time was used up before all features were
                computed; those that were are kept.
            ModelError: The features are not numbers.
        """
        started, limit = time.monotonic(), self.recipe.time_limit_minutes
        deadline = math.inf if limit is None else started + 60 * limit

        def asked() -> str | None:
            return interruption() or (None if time.monotonic() < deadline else "time limit")

        if not self.extract(plan, asked):
            if (reason := interruption()) is None:
                raise TrainingError(
                    f"The time limit of {limit:g} minutes ended while features were computed, so that there is no "
                    "classifier yet. Those that were computed are kept: run the same again, and it goes on from there; "
                    "more time at once does it, too (--time-limit, time_limit_minutes)."
                )
            return self.not_begun(self.head, 1, reason)
        count_earlier(callbacks, time.monotonic() - started)
        if builders.is_solved_at_once(self.recipe):
            return self._solve(plan, callbacks)
        recipe = self.recipe
        return fit(
            self.head,
            train=self.learned_from(),
            validation=self._rows(self._found().row_of[self.split.validation]) if len(self.split.validation) else None,
            heads=self.heads,
            optimizer=builders.build_optimizer(recipe, self.head),
            plan=self.step_plan(plan),
            epochs=recipe.epochs,
            seed=recipe.seed,
            schedule=builders.build_schedule(recipe),
            **self.step_options(self.head),
            callbacks=callbacks,
            checkpointer=checkpointer,
            resume=resume,
            interruption=interruption,
        )

    def _found(self) -> _Known:
        if not self.known:
            raise RuntimeError("Features are asked for before they are computed.")
        return self.known[0]

    def _views(self, n: int) -> list[View]:
        """Drawn from the seed of the split, so that trainings with other seeds find the same ones."""
        recipe = self.recipe
        if not n:
            return []
        assert recipe.augmentation is not None  # `recipe.checks` refuses views without
        unmixed = {**recipe.augmentation.model_dump(), "mixup": 0.0, "cutmix": 0.0}
        augmenter = Augmenter(AugmentationSpec(**unmixed), seed=recipe.split_seed)
        return [View(augmenter, number) for number in range(n)]

    def _extraction(
        self,
        rows: npt.NDArray[np.int64],
        view: View | None,
        keys: npt.NDArray[np.uint8],
        plan: ExecutionPlan,
        cache: FeatureCache,
        on_progress: Callable[[int, int], None],
        interruption: Callable[[], str | None],
    ) -> Extraction | None:
        return extract_features(
            self.extractor,
            self.image_set.images,
            rows,
            keys=keys,
            scaling=self.scaling,
            plan=plan,
            cache=cache,
            view=view,
            on_progress=on_progress,
            interruption=interruption,
        )

    def _rows(self, rows: npt.NDArray[np.int64]) -> FeatureBatches:
        known = self._found()
        targets = torch.zeros(len(known.features), dtype=torch.int64, device=known.features.device)
        inside = np.flatnonzero(known.row_of >= 0)
        of_pictures = self.image_set.targets.to(targets.device)
        targets[torch.from_numpy(known.row_of[inside]).to(targets.device)] = of_pictures[
            torch.from_numpy(inside).to(targets.device)
        ]
        return FeatureBatches(known.features, {self.heads[0].name: targets}, rows, batch_size=_ROWS_AT_ONCE)

    def _training_rows(
        self,
    ) -> tuple[npt.NDArray[np.int64], torch.Tensor, torch.Tensor | None, npt.NDArray[np.int64]]:
        """Rows of features to train on, their classes and weights, and of which training picture each is a version."""
        known, train = self._found(), self.split.train
        n_versions = 1 + len(known.view_rows) // len(train)
        rows = np.concatenate([known.row_of[train], known.view_rows])
        pictures = np.tile(np.arange(len(train)), n_versions)
        chosen, device = torch.from_numpy(train[pictures]).to(self.image_set.targets.device), known.features.device
        weights = builders.sample_weights(self.recipe, self.image_set, train)
        of_rows = None if weights is None else weights[chosen].to(device)
        return rows, self.image_set.targets[chosen].to(device), of_rows, pictures

    def _solve(self, plan: ExecutionPlan, callbacks: Sequence[Callback] | CallbackList) -> TrainingState:
        """Fit the classifier in one go; for those who watch, that is one epoch."""
        started = time.perf_counter()
        state = self.not_begun(self.head, 1)
        if self._found().features.numel() < _FEW_NUMBERS:
            plan = replace(plan, threads=1)
        with executing(plan), watching(callbacks) as watchers:
            watchers.call("on_fit_start", state)
            watchers.call("on_epoch_start", state)
            self._found().choice = self._fit_classifier()
            seconds = time.perf_counter() - started
            figures = self._figures(plan, self.split.train, "train")
            if len(self.split.validation):
                watchers.call("on_validation_start", state)
                figures |= self._figures(plan, self.split.validation, "validation", watchers.call)
                watchers.call("on_validation_end", state)
            state.history.append(
                EpochFigures(
                    {
                        "epoch": 1.0,
                        **figures,
                        "learning_rate": 0.0,
                        "seconds": seconds,
                        "images_per_second": len(self.split.train) / seconds,
                    }
                )
            )
            state.epoch = state.step = 1
            watchers.call("on_epoch_end", state)
            watchers.call("on_fit_end", state)
        return state

    def _fit_classifier(self) -> Choice:
        rows, targets, weights, pictures = self._training_rows()
        given: dict[str, Any] = {
            "weights": None if weights is None else weights.cpu(),
            "pictures": pictures,
            "units": _units(self.image_set, self.split.train),
        }
        features, targets = self._found().features[rows].cpu(), targets.cpu()
        classifier: nn.Module = self.head.classifier
        if isinstance(classifier, NearestNeighbours):
            choice = fit_neighbours(classifier, features, targets, **given)
            classifier.to(self.device)
            return choice
        solution = fit_logistic(
            features,
            targets,
            num_classes=self.heads[0].num_classes,
            num_outputs=self.heads[0].num_outputs,
            seed=self.recipe.split_seed,
            **given,
        )
        with torch.no_grad():
            self.head.classifier.weight.copy_(solution.weight)
            self.head.classifier.bias.copy_(solution.bias)
        return solution.choice

    def _figures(
        self, plan: ExecutionPlan, indices: npt.NDArray[np.int64], part: str, watch: Watch = unwatched
    ) -> dict[str, float]:
        head, batches = self.heads[0], self._rows(self._found().row_of[indices])
        outputs = predict_outputs(self.head, batches.epoch(), head_names=[head.name], plan=plan, watch=watch)[head.name]
        targets = self.image_set.targets.cpu()[torch.from_numpy(indices)]
        return {
            f"{part}_loss": head.loss(outputs, targets).item(),
            f"{part}_accuracy": head.correct(outputs, targets).item() / len(indices),
        }


def _tell(on_progress: OnProgress, before: int, total: int, done: int, _of: int) -> None:
    """Progress of one kind of views among all."""
    on_progress(before + done, total)


def _units(image_set: ImageSet, train: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The unit of each training picture; pictures may be tied by one of another part."""
    return tie_into_units(len(image_set), image_set.groups, image_set.content_hashes)[train]
