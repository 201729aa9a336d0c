"""What a source is made of: its samples, what was left out of it, and its identity by content."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from netloom.data.fingerprint import fingerprint_arrays, fingerprint_files
from netloom.data.location import FileLocation, Location


@dataclass(frozen=True)
class Rejected:
    """A file or archive member that is not used, and why, in words that end "left out: …"."""

    path: str
    reason: str


@dataclass(frozen=True)
class Sample:
    """One picture of a source.

    Attributes:
        id: Relative posix path (in NFC), unique in the source and the same in a copy of it.
        label: Index into the source's `class_names`.
        split: The part that the source gives: `train`, `validation`, `test`, or None.
        group: Pictures of one group (a patient, a video) belong on one side of a split.
        weight: How much the sample counts in training, at least 0.
        location: Where its bytes are; None where the source holds arrays.
    """

    id: str
    label: int
    split: str | None = None
    group: str | None = None
    weight: float = 1.0
    location: Location | None = None


@dataclass(frozen=True, eq=False)
class ArrayPictures:
    """Pictures that need no decoding: `images` is uint8 `[N, H, W, C]`, C 1 (grey) or 3 (RGB)."""

    images: npt.NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Source:
    """Labelled pictures that a user named, opened but not decoded.

    Attributes:
        name: Short name for runs and reports.
        kind: `folder`, `archive`, `csv`, `named` or `embedded`.
        location: Absolute path of the folder or file; the name of a set that comes as arrays.
        class_names: Class names in NFC, in an order that depends on the names alone.
        samples: Ordered by id (a table: by line; arrays: as published).
        notes: What a user should know of this source, in plain words.
        rejected: Files left out before decoding.
        arrays: The pictures themselves, parallel to `samples`, where they come as arrays.
    """

    name: str
    kind: str
    location: str
    class_names: tuple[str, ...]
    samples: Sequence[Sample]
    notes: tuple[str, ...] = ()
    rejected: tuple[Rejected, ...] = ()
    arrays: ArrayPictures | None = None

    @property
    def locations(self) -> list[Location]:
        """The location of each sample; empty where the source holds arrays."""
        return [sample.location for sample in self.samples if sample.location is not None]

    def fingerprint(self) -> str:
        """A digest of the pictures and their ids: 32 hexadecimal digits.

        It changes with any byte of any picture, and with the ids; it does not change with labels,
        parts, time stamps or the place of a copy.
        """
        ids = [sample.id for sample in self.samples]
        if self.arrays is not None:
            return fingerprint_arrays(ids, self.arrays.images)
        files = [place.path if isinstance(place, FileLocation) else place.archive for place in self.locations]
        return fingerprint_files(ids, files, memo=self.location)
