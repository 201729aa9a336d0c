"""Decoded pictures with their labels, ready to be split and trained on."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from netloom.data.decode import Resize, decode_picture
from netloom.data.decoded_entry import DecodedPictures
from netloom.data.decoding import decode_all, suggest_image_size
from netloom.data.fingerprint import hash_pictures
from netloom.data.mapping import fits_memory
from netloom.data.samples import Rejected, Sample, Source
from netloom.data.sources import open_source
from netloom.data.splits import PARTS
from netloom.errors import DataError
from netloom.progress import printable

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Decoded pictures with their labels; what is parallel to `images` has length N.

    Attributes:
        images: uint8 `[N, C, H, W]` in channels-last memory, C 1 (grey) or 3 (RGB), values 0..255.
        targets: Class indices, int64 `[N]`.
        class_names: One name for each class.
        ids: Unique name of each picture.
        groups: Pictures of one group stay on one side of a split; None for a picture without one.
        weights: float32 `[N]`, at least 0; None where all count the same.
        splits: Part that the source gives: `train`, `validation`, `test`, or None.
        content_hashes: Equal for pictures with the same content; of files' bytes, or with `OF_PIXELS` in front, of
            pixels.

    Raises:
        DataError: Shapes, types or lengths do not fit, targets are outside the classes, or ids
            repeat.
    """

    images: torch.Tensor
    targets: torch.Tensor
    class_names: tuple[str, ...]
    ids: tuple[str, ...]
    groups: tuple[str | None, ...] | None = None
    weights: torch.Tensor | None = None
    splits: tuple[str | None, ...] | None = None
    content_hashes: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        _check_images(self.images)
        _check_targets(self.targets, len(self.images), len(self.class_names))
        for name in ("ids", "groups", "weights", "splits", "content_hashes"):
            value = getattr(self, name)
            if value is not None and len(value) != len(self):
                raise DataError(f"There are {len(self):,} images but {len(value):,} {name}.")
        if len(set(self.ids)) != len(self.ids):
            repeated = Counter(self.ids).most_common(1)[0][0]
            raise DataError(f"ids must be unique, but {repeated!r} repeats.")
        unknown = set(self.splits or ()) - {None, *PARTS}
        if unknown:
            raise DataError(f"splits holds {unknown.pop()!r}, expected {', '.join(PARTS)} or None.")
        if self.weights is not None and not (self.weights.dtype == torch.float32 and bool((self.weights >= 0).all())):
            raise DataError("weights must be float32 numbers of at least 0.")

    def __len__(self) -> int:
        return len(self.images)

    @classmethod
    def from_arrays(
        cls,
        images: npt.ArrayLike | torch.Tensor,
        targets: npt.ArrayLike | torch.Tensor,
        *,
        class_names: Iterable[str] | None = None,
        ids: Iterable[str] | None = None,
        groups: Sequence[str | None] | None = None,
        weights: npt.ArrayLike | torch.Tensor | None = None,
        splits: Sequence[str | None] | None = None,
        layout: Literal["NHWC", "NCHW"] = "NHWC",
    ) -> ImageSet:
        """Make an ImageSet of NumPy arrays or tensors.

        `images` is uint8 `[N, H, W, C]` (or `[N, C, H, W]` with `layout="NCHW"`, or `[N, H, W]`
        for grey), `targets` integers `[N]`. Classes are named by their numbers and pictures by
        their places where no names are given.

        Raises:
            DataError: They do not fit; pictures of floats are refused, since their scale is
                unknown.
        """
        pixels = _as_nhwc(_to_numpy(images), layout)
        labels = _as_labels(_to_numpy(targets))
        n_classes = int(labels.max()) + 1 if len(labels) else 0
        names = range(n_classes) if class_names is None else class_names
        return cls(
            images=channels_last_images(pixels),
            targets=torch.from_numpy(labels),
            class_names=tuple(map(str, names)),
            ids=tuple(f"{number:05}" for number in range(len(pixels))) if ids is None else tuple(map(str, ids)),
            groups=None if groups is None else tuple(map(_as_group, groups)),
            weights=None if weights is None else torch.from_numpy(_to_numpy(weights).astype(np.float32)),
            splits=None if splits is None else tuple(splits),
            content_hashes=tuple(hash_pictures(pixels)),
        )

    def subset(self, indices: npt.ArrayLike | torch.Tensor) -> ImageSet:
        """The pictures at `indices` (integers `[M]`), in that order; all classes stay."""
        chosen = torch.as_tensor(indices, dtype=torch.int64)
        places = chosen.tolist()
        pixels = self.images.permute(0, 2, 3, 1).index_select(0, chosen)
        return ImageSet(
            images=pixels.permute(0, 3, 1, 2),
            targets=self.targets[chosen],
            class_names=self.class_names,
            ids=tuple(self.ids[i] for i in places),
            groups=_pick(self.groups, places),
            weights=None if self.weights is None else self.weights[chosen],
            splits=_pick(self.splits, places),
            content_hashes=_pick(self.content_hashes, places),
        )

    def to(self, device: str | torch.device) -> ImageSet:
        """The same pictures with tensors on `device`; itself if they are there already."""
        if self.images.device == torch.device(device):
            return self
        return replace(
            self,
            images=self.images.to(device),
            targets=self.targets.to(device),
            weights=None if self.weights is None else self.weights.to(device),
        )

    def class_counts(self) -> torch.Tensor:
        """Number of pictures in each class, int64 `[K]`."""
        return torch.bincount(self.targets, minlength=len(self.class_names))


@dataclass(frozen=True, eq=False)
class PictureFacts:
    """What the pictures were before decoding, parallel to the ImageSet.

    Attributes:
        widths: int32 `[N]`, pixels across.
        heights: int32 `[N]`, pixels down.
        modes: Pillow's names of the colour modes.
        formats: Pillow's names of the file formats; `array` for what came decoded.
    """

    widths: npt.NDArray[np.int32]
    heights: npt.NDArray[np.int32]
    modes: Sequence[str]
    formats: Sequence[str]


@dataclass(frozen=True, eq=False)
class LoadedPictures:
    """An ImageSet with where it came from.

    Attributes:
        image_set: The readable pictures.
        rejected: What was left out, with reasons.
        picture_facts: What the pictures were before decoding.
        source_name: Short name of the source.
        source_kind: As `Source.kind`; `memory` for an ImageSet that was given.
        source_location: What `open_source` opens again; empty for `memory`.
        notes: What a user should know of the source.
        cached_bytes: What the pixels take in the cache on disk; 0 where they are not in it.
        pixels_file: The .npy file that the pixels are mapped from, for other processes; None if they are in memory.
    """

    image_set: ImageSet
    rejected: list[Rejected]
    picture_facts: PictureFacts
    source_name: str
    source_kind: str
    source_location: str
    notes: tuple[str, ...] = ()
    cached_bytes: int = 0
    pixels_file: Path | None = None


def load_image_set(
    source: str | Path | Source | ImageSet,
    *,
    image_size: int | tuple[int, int] | None = None,
    resize: Resize = "stretch",
    channels: int | None = None,
    jobs: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> LoadedPictures:
    """Decode the pictures of a source, all at one size, and drop those that cannot be read.

    Args:
        source: What `open_source` takes or gives, or pictures in memory.
        image_size: Height and width in pixels, or one number for a square; None for the pictures'
            own where that is common and small, else 128.
        resize: `stretch`, `crop` (scale to cover, cut the centre out) or `pad` (scale to fit).
        channels: 1 for grey, 3 for colour; None for 1 if all pictures are grey.
        jobs: Worker processes; None for what suits the machine.
        on_progress: Called with the number of pictures done and the number of all.

    Raises:
        DataError: The source cannot be opened, nothing in it can be read, or a class loses all of
            its pictures.
    """
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    if isinstance(source, ImageSet):
        pixels = source.images.permute(0, 2, 3, 1).numpy()
        images = _refit(pixels, size, resize, channels)
        image_set = replace(source, images=images)
        return LoadedPictures(image_set, [], _facts_of_arrays(pixels), "pictures", "memory", "")
    opened = source if isinstance(source, Source) else open_source(source)
    if opened.arrays is not None:
        pixels = opened.arrays.images
        images = _refit(pixels, size, resize, channels)
        hashes = hash_pictures(pixels)
        image_set = _image_set(opened, opened.samples, images, hashes)
        return _loaded(opened, image_set, [], _facts_of_arrays(pixels))
    fingerprint = opened.fingerprint()
    decoded = decode_all(
        opened.locations,
        image_size=size or suggest_image_size(opened.locations, fingerprint=fingerprint),
        resize=resize,
        channels=channels,
        fingerprint=fingerprint,
        jobs=jobs,
        on_progress=on_progress,
    )
    return _from_decoded(opened, decoded)


def _from_decoded(source: Source, decoded: DecodedPictures) -> LoadedPictures:
    rejected = [Rejected(source.samples[i].id, reason) for i, reason in decoded.rejected]
    samples = [source.samples[i] for i in decoded.readable.tolist()]
    _refuse_lost_classes(source, samples, rejected)
    images = channels_last_images(decoded.pixels)
    image_set = _image_set(source, samples, images, decoded.content_hashes)
    facts = PictureFacts(decoded.widths, decoded.heights, decoded.modes, decoded.formats)
    file = decoded.pixels.filename if isinstance(decoded.pixels, np.memmap) else None
    return replace(
        _loaded(source, image_set, rejected, facts),
        cached_bytes=decoded.pixels.nbytes,
        pixels_file=None if file is None else Path(file),
    )


def _loaded(source: Source, image_set: ImageSet, rejected: list[Rejected], facts: PictureFacts) -> LoadedPictures:
    return LoadedPictures(
        image_set=image_set,
        rejected=[*source.rejected, *rejected],
        picture_facts=facts,
        source_name=source.name,
        source_kind=source.kind,
        source_location=source.name if source.kind in ("named", "embedded") else source.location,
        notes=source.notes,
    )


def _refuse_lost_classes(source: Source, readable: Sequence[Sample], rejected: Sequence[Rejected]) -> None:
    reasons = "; ".join(f"{r.path}: {r.reason}" for r in rejected[:3])
    if not readable:
        raise DataError(
            f"None of the {len(source.samples):,} files of {source.location} can be read as a "
            f"picture, for example {reasons}."
        )
    left = {sample.label for sample in readable}
    lost = [name for label, name in enumerate(source.class_names) if label not in left]
    if lost:
        raise DataError(
            f"No picture of class {', '.join(map(repr, lost))} in {source.location} can be read, for "
            f"example {reasons}. Replace the files, or remove the class."
        )


def _image_set(source: Source, samples: Sequence[Sample], images: torch.Tensor, hashes: Sequence[str]) -> ImageSet:
    groups = tuple(sample.group for sample in samples)
    splits = tuple(sample.split for sample in samples)
    weights = torch.tensor([sample.weight for sample in samples], dtype=torch.float32)
    return ImageSet(
        images=images,
        targets=torch.tensor([sample.label for sample in samples], dtype=torch.int64),
        class_names=source.class_names,
        ids=tuple(sample.id for sample in samples),
        groups=groups if any(group is not None for group in groups) else None,
        weights=weights if bool((weights != 1).any()) else None,
        splits=splits if any(split is not None for split in splits) else None,
        content_hashes=tuple(hashes),
    )


def _refit(pixels: Pixels, size: tuple[int, int] | None, resize: Resize, channels: int | None) -> torch.Tensor:
    """Pixels `[N, H, W, C]` at the wanted size and channels, as images.

    Each picture passes through the decoder as an uncompressed file, so that arrays come out exactly
    as the same pictures in a folder do.
    """
    size = size or (pixels.shape[1], pixels.shape[2])
    channels = channels or pixels.shape[3]
    if min(size) < 1 or channels not in (1, 3) or resize not in get_args(Resize):
        raise DataError(
            f"Cannot make pictures of image_size {size}, resize {resize!r} and channels {channels}: "
            f"expected sides of at least 1, {', '.join(get_args(Resize))}, and 1 or 3."
        )
    if (*size, channels) == pixels.shape[1:]:
        return channels_last_images(pixels)
    refitted = np.empty((len(pixels), *size, channels), dtype=np.uint8)
    wanted: Literal[1, 3] = 1 if channels == 1 else 3
    for place, picture in enumerate(pixels):
        decoded = decode_picture(_as_bmp(picture), size=size, resize=resize, channels=wanted)
        refitted[place] = decoded.pixels
    return channels_last_images(refitted)


def _as_bmp(picture: Pixels) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture[..., 0] if picture.shape[2] == 1 else picture).save(buffer, "BMP")
    return buffer.getvalue()


def _facts_of_arrays(pixels: Pixels) -> PictureFacts:
    n, height, width, channels = pixels.shape
    return PictureFacts(
        widths=np.full(n, width, dtype=np.int32),
        heights=np.full(n, height, dtype=np.int32),
        modes=["L" if channels == 1 else "RGB"] * n,
        formats=["array"] * n,
    )


def channels_last_images(pixels: Pixels, *, copy_read_only: bool = True) -> torch.Tensor:
    """`[N, H, W, C]` as `[N, C, H, W]` in channels-last memory, without a copy where possible.

    Read-only pixels are copied, so that whoever writes into the images does no harm; not where they exceed the memory,
    or `copy_read_only` says that nobody does.
    """
    if copy_read_only and not pixels.flags.writeable and fits_memory(pixels.nbytes):
        with contextlib.suppress(MemoryError):  # others may have taken what there was
            pixels = pixels.copy()
    with warnings.catch_warnings():
        # torch has no read-only tensors and says so; nothing here writes into pictures.
        warnings.filterwarnings("ignore", "The given NumPy array is not writ", UserWarning)
        images = torch.from_numpy(pixels)
    return images.permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)


def _to_numpy(values: npt.ArrayLike | torch.Tensor) -> npt.NDArray[Any]:
    return values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)


def _as_nhwc(images: npt.NDArray[Any], layout: str) -> Pixels:
    if images.dtype != np.uint8:
        raise DataError(
            f"images must be uint8 with values 0..255, not {images.dtype}. Scale them yourself: for "
            "values 0..1, numpy.round(images * 255).astype('uint8')."
        )
    if layout not in ("NHWC", "NCHW"):
        raise DataError(f"layout must be 'NHWC' or 'NCHW', not {layout!r}.")
    if images.ndim == 3:
        images = images[..., None]
    elif images.ndim == 4 and layout == "NCHW":
        images = images.transpose(0, 2, 3, 1)
    if images.ndim != 4 or images.shape[3] not in (1, 3):
        other = "NHWC" if layout == "NCHW" else "NCHW"
        raise DataError(
            f"images of shape {images.shape} do not fit layout {layout!r} with 1 or 3 channels. If "
            f"they are {other}, say layout={other!r}."
        )
    return np.ascontiguousarray(images)


def _as_labels(targets: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    if targets.ndim != 1 or not np.issubdtype(targets.dtype, np.integer):
        raise DataError(
            f"targets must be class indices, integers of shape [N], not {targets.dtype} of shape "
            f"{list(targets.shape)}. Names become indices by: class_names, targets = np.unique(names, "
            "return_inverse=True)."
        )
    return targets.astype(np.int64)


def _as_group(group: str | None) -> str | None:
    """A group's name in the form that tables give it in (NFC), so that a name written in two ways is one group."""
    return printable(str(group)) if isinstance(group, str) else group


def _check_images(images: torch.Tensor) -> None:
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
        raise DataError(
            f"images must be uint8 [N, C, H, W] with C 1 or 3, not {images.dtype} "
            f"{list(images.shape)}. ImageSet.from_arrays takes other layouts."
        )
    if not images.is_contiguous(memory_format=torch.channels_last):
        raise DataError(
            "images must be in channels-last memory; use "
            "images.contiguous(memory_format=torch.channels_last) or ImageSet.from_arrays."
        )


def _check_targets(targets: torch.Tensor, n_images: int, n_classes: int) -> None:
    if targets.dtype != torch.int64 or targets.shape != (n_images,):
        raise DataError(
            f"targets must be int64 of shape [{n_images}], one for each image, not {targets.dtype} "
            f"{list(targets.shape)}."
        )
    if n_images and not 0 <= int(targets.min()) <= int(targets.max()) < n_classes:
        raise DataError(
            f"targets lie in {int(targets.min())}..{int(targets.max())}, but there are "
            f"{n_classes} class names: expected 0..{n_classes - 1}."
        )


def _pick(values: tuple[Any, ...] | None, places: list[int]) -> tuple[Any, ...] | None:
    return None if values is None else tuple(values[i] for i in places)
