"""Features of pictures: what a network gives in front of its head, computed once per picture and kept on disk.

Razavian et al., "CNN features off-the-shelf: an astounding baseline for recognition", 2014; Kornblith et al., "Do
better ImageNet models transfer better?", 2019.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from netloom.data.augment import Augmenter
from netloom.data.batches import Batch, ImageBatches, InputScaling, batch_bounds, n_batches
from netloom.data.feature_cache import KEY_BYTES, FeatureCache, Features, Keys
from netloom.errors import ModelError
from netloom.inference import Prediction, inference_batch_size, predict_outputs
from netloom.models.contract import ImageModel
from netloom.progress import OnProgress
from netloom.randomness import permutation
from netloom.runtime import ExecutionPlan, executing, package_versions, usable_cpus

FEATURES = "features"
"""Name of the input of a head, and of the output of what is in front of it."""

_FORMAT = 1  # of keys and spaces; a change of what they mean starts anew
_SECONDS_PER_ENTRY = 20.0  # of work that a crash may cost
_PICTURES_PER_TASK = 64


class FeatureExtractor(nn.Module):
    """The part of a network that gives features: its trunk, and what it does with feature maps.

    Args:
        model: Its head is taken apart in front of the first layer that is trained on features: the first dropout or
            dense layer. Modules are shared, not copied.

    Attributes:
        num_features: D, numbers per picture.
    """

    def __init__(self, model: ImageModel) -> None:
        super().__init__()
        self.trunk = model.trunk
        self.pooling = nn.Sequential()
        self.num_features = int(model.classifier.in_features)
        for name, part in model.head.named_children():
            if _is_of_head(part):
                break
            self.pooling.add_module(name, part)
        behind = list(model.head.children())[len(self.pooling) :]
        for module in (module for part in behind for module in part.modules()):
            if isinstance(module, nn.Linear):
                self.num_features = module.in_features
                break

    def forward(self, x: Tensor) -> Tensor:
        """`[B, D]` of pictures `[B, C, H, W]`."""
        features: Tensor = self.pooling(self.trunk(x))
        return features.flatten(1)


class FeatureHead(nn.Module):
    """The rest of a network: what is trained on features. Its tensors have the names that they have in the network.

    Args:
        model: Modules are shared, not copied.
    """

    def __init__(self, model: ImageModel) -> None:
        super().__init__()
        self.head = nn.Sequential()
        for name, part in model.head.named_children():
            if len(self.head) or _is_of_head(part):
                self.head.add_module(name, part)
        self.classifier = model.classifier

    def forward(self, features: Tensor) -> Tensor:
        """Outputs `[B, num_outputs]` of features `[B, D]`."""
        outputs: Tensor = self.classifier(self.head(features))
        return outputs


def _is_of_head(part: nn.Module) -> bool:
    return isinstance(part, (nn.Linear, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.AlphaDropout))


@dataclass(frozen=True)
class View:
    """One augmented version of each picture.

    Attributes:
        augmenter: Of what is drawn for (epoch, pixels of the picture).
        number: The epoch.
    """

    augmenter: Augmenter
    number: int


def feature_space(extractor: FeatureExtractor, *, identity: str, scaling: InputScaling, plan: ExecutionPlan) -> str:
    """Digest of all that determines features but the picture: 32 hexadecimal digits.

    The pictures' size and way of resizing show in their pixels, which are what keys are made of.

    Args:
        extractor: Its weights and its architecture count.
        identity: What says how the network computes beside that: its name and options.
        scaling: From pixels to network inputs.
        plan: Its device's kind and its precision count; threads change last bits only.
    """
    versions = package_versions()
    facts = {
        "format": _FORMAT,
        "identity": identity,
        "architecture": str(extractor),
        "mean": scaling.mean,
        "std": scaling.std,
        "precision": plan.precision,
        "device": plan.torch_device.type,
        "versions": {name: versions.get(name) for name in ("netloom", "torch", "timm")},
    }
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name, value in extractor.state_dict().items():
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().to("cpu").contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[: 2 * KEY_BYTES]


def picture_keys(images: Tensor, indices: npt.NDArray[np.int64]) -> Keys:
    """What `images[indices]` are found by, uint8 `[n, 16]`: digests of the very pixels that a network sees.

    Args:
        images: Uint8 `[N, C, H, W]` on the CPU, in channels-last memory.
        indices: int64 `[n]`.
    """
    pixels = images.permute(0, 2, 3, 1).numpy()
    start = hashlib.sha256(repr(pixels.shape[1:]).encode())

    def digests(part: npt.NDArray[np.int64]) -> bytes:
        return b"".join(_digest(start, np.ascontiguousarray(pixels[i]).data) for i in part)

    parts = np.array_split(indices, max(1, len(indices) // _PICTURES_PER_TASK))
    with ThreadPoolExecutor(min(8, usable_cpus())) as threads:  # hashing leaves Python's lock alone
        content = b"".join(threads.map(digests, parts))
    return np.frombuffer(content, dtype=np.uint8).reshape(-1, KEY_BYTES)


def view_keys(keys: Keys, view: View) -> Keys:
    """The same for a view of these pictures: what is drawn depends on the seed, the view and the picture's pixels."""
    facts = {"spec": str(view.augmenter.spec), "seed": view.augmenter.seed, "number": view.number}
    start = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    content = b"".join(_digest(start, key.tobytes()) for key in keys)
    return np.frombuffer(content, dtype=np.uint8).reshape(-1, KEY_BYTES)


def _drawn_by(keys: Keys, indices: npt.NDArray[np.int64], n_images: int) -> npt.NDArray[np.int64]:
    """The number by which the views of each of `n_images` pictures are drawn: of its pixels, not of its place.

    So a picture has the same views in a source that has grown, where others may have come before it.
    """
    numbers = np.zeros(n_images, dtype=np.int64)
    numbers[indices] = np.ascontiguousarray(keys[:, :8]).view("<i8")[:, 0]
    return numbers


def _digest(start: hashlib._Hash, content: bytes | memoryview) -> bytes:
    digest = start.copy()
    digest.update(content)
    return digest.digest()[:KEY_BYTES]


@dataclass(frozen=True, eq=False)
class Extraction:
    """Features, and how many pictures had to be looked at for them.

    Attributes:
        features: Float32 `[n, D]`.
        computed: Pictures that went through the network; the others were known.
    """

    features: Features
    computed: int


class _StoppedError(Exception):
    """The extraction was asked to stop between two batches."""


def extract_features(
    extractor: FeatureExtractor,
    images: Tensor,
    indices: npt.NDArray[np.int64],
    *,
    keys: Keys,
    scaling: InputScaling,
    plan: ExecutionPlan,
    cache: FeatureCache | None = None,
    view: View | None = None,
    on_progress: OnProgress = lambda done, total: None,
    interruption: Callable[[], str | None] = lambda: None,
) -> Extraction | None:
    """Features of `images[indices]`; None if the extraction was asked to stop.

    What the cache holds is taken from there; what it does not is computed in batches, and kept every few seconds, so
    that nothing is lost by an interruption.

    Args:
        extractor: On the plan's device.
        images: Uint8 `[N, C, H, W]`, on that device or on the CPU.
        indices: int64 `[n]`.
        keys: Of these pictures, uint8 `[n, 16]`, as `picture_keys` gives them.
        scaling: From pixels to network inputs.
        plan: Device, threads and precision.
        cache: Of this extractor's space; None to compute all.
        view: Of which the features are wanted; None for the pictures as they are.
        on_progress: Called with the number of pictures done and the number of all.
        interruption: Asked between two batches; a reason ends the extraction there.

    Raises:
        ModelError: A feature is not a finite number.
    """
    drawn_by = None if view is None else _drawn_by(keys, indices, len(images))
    keys = keys if view is None else view_keys(keys, view)
    features, found = (None, np.zeros(len(keys), dtype=np.bool_)) if cache is None else cache.find(keys)
    missing = np.flatnonzero(~found)
    # Pictures of the same content are one row of work.
    first, again = np.unique(keys[missing], axis=0, return_index=True, return_inverse=True)[1:]
    order = np.sort(first)
    rows = missing[order]
    work = _Work(keys[rows], cache, len(keys), len(keys) - len(rows), on_progress, interruption)
    height, width = images.shape[2:]
    batches = ImageBatches(
        images,
        {},
        indices[rows],
        batch_size=inference_batch_size((height, width), 1),
        scaling=scaling,
        seed=0 if view is None else view.augmenter.seed,
        augmenter=None if view is None else view.augmenter,
        drawn_by=drawn_by,
        device=plan.torch_device,
    )
    if len(rows):
        try:
            with executing(plan):
                predict_outputs(
                    extractor,
                    batches.epoch(0 if view is None else view.number),
                    head_names=[FEATURES],
                    plan=plan,
                    watch=work,
                )
        except _StoppedError:
            return None
        finally:
            work.keep()
        computed = np.concatenate(work.parts)
        if features is None:
            features = np.zeros((len(keys), computed.shape[1]), dtype=np.float32)
        features[missing] = computed[np.searchsorted(order, first[again.reshape(-1)])]
    if features is None:
        raise ModelError("There are no pictures to take features of.")
    return Extraction(features, len(rows))


class _Work:
    """Collects features batch by batch, as a watcher of the prediction, and keeps them now and then."""

    def __init__(
        self,
        keys: Keys,
        cache: FeatureCache | None,
        total: int,
        done: int,
        on_progress: OnProgress,
        interruption: Callable[[], str | None],
    ) -> None:
        self.parts: list[Features] = []
        self._keys, self._cache, self._total, self._done = keys, cache, total, done
        self._on_progress, self._interruption = on_progress, interruption
        self._kept, self._kept_parts, self._last = 0, 0, time.monotonic()

    def __call__(self, hook: str, prediction: Prediction) -> None:
        """Take the outputs of a batch."""
        if hook != "on_predict_batch_end":
            return
        part = prediction.outputs[FEATURES].cpu().numpy()
        if not np.isfinite(part).all():
            raise ModelError(
                "The network gives features that are not finite numbers: its weights are damaged, or they are for "
                "another scaling of pictures (input_scaling)."
            )
        self.parts.append(part)
        self._on_progress(self._done + prediction.pictures, self._total)
        if time.monotonic() - self._last >= _SECONDS_PER_ENTRY:
            self.keep()
        if self._interruption() is not None:
            raise _StoppedError

    def keep(self) -> None:
        """Put what has come since the last time into the cache."""
        new = self.parts[self._kept_parts :]
        if self._cache is not None and new:
            features = np.concatenate(new)
            self._cache.add(self._keys[self._kept : self._kept + len(features)], features)
            self._kept += len(features)
        self._kept_parts, self._last = len(self.parts), time.monotonic()


class FeatureBatches:
    """Batches of features, epoch by epoch, as `ImageBatches` gives those of pictures.

    Args:
        features: Float32 `[N, D]`, on the device.
        targets: By head name, beside the features.
        indices: Which rows belong to the part.
        batch_size: Rows in one batch.
        seed: Of the order.
        shuffle: A new order in every epoch.
        weights: Float32 `[N]`, beside the features.
    """

    def __init__(
        self,
        features: Tensor,
        targets: dict[str, Tensor],
        indices: npt.NDArray[np.int64],
        *,
        batch_size: int,
        seed: int = 0,
        shuffle: bool = False,
        weights: Tensor | None = None,
    ) -> None:
        self.features, self.targets, self.indices, self.weights = features, targets, indices, weights
        self.batch_size, self.seed, self.shuffle = batch_size, seed, shuffle

    def __len__(self) -> int:
        return n_batches(len(self.indices), self.batch_size)

    def epoch(self, epoch: int = 0, *, skip: int = 0) -> Iterator[Batch]:
        """The batches of an epoch, from batch `skip` on."""
        order = self.indices
        if self.shuffle:
            order = order[permutation(self.seed, "order", epoch, len(order))]
        rows = torch.from_numpy(order).to(self.features.device)
        for start, stop in batch_bounds(len(order), self.batch_size)[skip:]:
            chosen = rows[start:stop]
            yield Batch(
                {FEATURES: self.features.index_select(0, chosen)},
                {name: values.index_select(0, chosen) for name, values in self.targets.items()},
                None if self.weights is None else self.weights.index_select(0, chosen),
            )
