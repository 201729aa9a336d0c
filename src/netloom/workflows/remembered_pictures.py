"""Which pictures a run was made with, so that a later score can say how many of its pictures the network knows."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from netloom.data.fingerprint import OF_PIXELS
from netloom.data.imageset import ImageSet
from netloom.data.splits import PARTS, Split, groups_of
from netloom.run import RunFolder

_DIGEST_BYTES = 8  # a million pictures against another million: one false match in 10 million such comparisons


@dataclass(frozen=True, eq=False)
class EarlierRun:
    """What a run that another one started from, directly or not, has learned from.

    Attributes:
        path: Its folder, as it was then.
        labelled: Whether it looked at labels.
        of_pixels: Whether the digests are of pixels, not of files.
        digests: Of its training pictures, int64 `[n]`; None where they are not known.
    """

    path: Path
    labelled: bool
    of_pixels: bool = False
    digests: npt.NDArray[np.int64] | None = None

    @classmethod
    def of(cls, folder: RunFolder) -> EarlierRun:
        """Of a run that is there."""
        remembered = folder.pictures
        digests = remembered.get("train")
        return cls(folder.path, bool(folder.data.class_names), _remembers_pixels(folder, remembered), digests)

    def seen(self, image_set: ImageSet) -> npt.NDArray[np.bool_] | None:
        """Which pictures it has learned from, bool `[N]`; None where that is not known."""
        hashes = image_set.content_hashes
        if self.digests is None or hashes is None or self.of_pixels != _are_of_pixels(hashes):
            return None
        found: npt.NDArray[np.bool_] = np.isin(_digests(hashes), self.digests)
        return found


def pictures_to_remember(
    image_set: ImageSet, split: Split, *, labelled: bool = True, earlier: Sequence[EarlierRun] = ()
) -> dict[str, npt.NDArray[np.int64]]:
    """A digest of each picture's content by part, int64 `[n]`, and `train_counts`, int64 `[K]`: pictures per class.

    Without labels there are no counts. Where pictures that validate share groups, `validation_groups`, int64 `[n]`, is
    the group of each, since an epoch's accuracy says nothing of that. `of_pixels`, int64 `[1]`, is 1 where the digests
    are of pixels, 0 of files. Of the `earlier` runs, counted from 0, `earlier_0` are the digests of training pictures,
    where they are known, and `earlier_0_facts` whether they are of pixels, whether labels were looked at, and the bytes
    of the folder's name.
    """
    found = {}
    for number, run in enumerate(earlier):
        name = np.frombuffer(str(run.path).encode("utf-8", "surrogateescape"), dtype=np.uint8)
        found[f"earlier_{number}_facts"] = np.array([run.of_pixels, run.labelled, *name], dtype=np.int64)
        if run.digests is not None:
            found[f"earlier_{number}"] = run.digests
    if labelled:
        targets = image_set.targets.cpu().numpy()[split.train]
        found["train_counts"] = np.bincount(targets, minlength=len(image_set.class_names)).astype(np.int64)
        if (groups := groups_of(image_set.groups, split.validation)) is not None:
            found["validation_groups"] = groups
    if image_set.content_hashes is not None:
        digests = _digests(image_set.content_hashes)
        found |= {part: np.sort(digests[getattr(split, part)]) for part in PARTS}
        found["of_pixels"] = np.array([_are_of_pixels(image_set.content_hashes)], dtype=np.int64)
    return found


def earlier_runs_of(folder: RunFolder) -> list[EarlierRun]:
    """The runs that this one started from, as it remembers them."""
    remembered, found = folder.pictures, list[EarlierRun]()
    while (facts := remembered.get(f"earlier_{len(found)}_facts")) is not None and len(facts) > 2:
        path = Path(facts[2:].astype(np.uint8).tobytes().decode("utf-8", "surrogateescape"))
        of_pixels, labelled = facts[:2].astype(np.bool_).tolist()
        found.append(EarlierRun(path, labelled, of_pixels, remembered.get(f"earlier_{len(found)}")))
    return found


def already_seen(folder: RunFolder, image_set: ImageSet, indices: npt.NDArray[np.int64]) -> dict[str, int] | None:
    """How many of `image_set[indices]` have the content of a picture of each part of the run, by the part's name.

    None where that is not known: the run does not know the contents of its pictures, or knows pixels of arrays and
    these are files, or the other way round.
    """
    remembered = folder.pictures
    if not _can_be_compared(folder, remembered, image_set):
        return None
    assert image_set.content_hashes is not None
    digests = _digests([image_set.content_hashes[i] for i in indices.tolist()])
    return {part: int(np.isin(digests, remembered[part]).sum()) for part in PARTS}


def pictures_of_parts(
    folder: RunFolder, image_set: ImageSet, parts: Sequence[str], *, same_source: bool
) -> npt.NDArray[np.bool_] | None:
    """Which pictures were in these parts of the run, bool `[N]`; None where that is not known.

    Pictures are known by their contents where the run tells these and they can be compared, see `already_seen`; by
    their names otherwise, if it was made with the very pictures that are there now (`same_source`).
    """
    remembered = folder.pictures
    if _can_be_compared(folder, remembered, image_set):
        assert image_set.content_hashes is not None
        known = np.concatenate([remembered[part] for part in parts])
        found: npt.NDArray[np.bool_] = np.isin(_digests(image_set.content_hashes), known)
        return found
    if not same_source:
        return None
    split = folder.split
    names = {str(name) for part in parts for name in split[part]}
    return np.array([one in names for one in image_set.ids], dtype=np.bool_)


def training_classes(folder: RunFolder) -> npt.NDArray[np.int64] | None:
    """The class indices of the run's training part, int64 `[n]`, ascending; None where the run does not know them."""
    counts = folder.pictures.get("train_counts")
    return None if counts is None else np.repeat(np.arange(len(counts)), counts)


def _can_be_compared(folder: RunFolder, remembered: Mapping[str, npt.NDArray[np.int64]], image_set: ImageSet) -> bool:
    """Whether equal digests mean equal pictures, and different ones different pictures."""
    if image_set.content_hashes is None or not all(part in remembered for part in PARTS):
        return False
    return _remembers_pixels(folder, remembered) == _are_of_pixels(image_set.content_hashes)


def _remembers_pixels(folder: RunFolder, remembered: Mapping[str, npt.NDArray[np.int64]]) -> bool:
    if "of_pixels" in remembered:
        return bool(remembered["of_pixels"].any())
    return set(folder.data.audit.get("formats", ())) == {"array"}  # a run of before


def _are_of_pixels(hashes: Sequence[str]) -> bool:
    return all(text.startswith(OF_PIXELS) for text in hashes)


def _digests(hashes: Sequence[str]) -> npt.NDArray[np.int64]:
    # Without the mark, as runs of before hold them.
    plain = (text.removeprefix(OF_PIXELS).encode() for text in hashes)
    joined = b"".join(hashlib.blake2b(text, digest_size=_DIGEST_BYTES).digest() for text in plain)
    return np.frombuffer(joined, dtype="<i8").astype(np.int64)
