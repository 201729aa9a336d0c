"""What is in a source, and what is wrong with it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from netloom.data.imageset import ImageSet, LoadedPictures

FEW_PICTURES = 20
"""Classes with fewer are warned of: of 19, a fifth for testing is four."""

IMBALANCE = 5.0
"""Ratio of the largest class to the smallest from which accuracy alone misleads."""

_SHOWN = 3  # examples in a warning
_LINES = 20  # of one kind in the text


@dataclass(frozen=True)
class SizeRange:
    """Smallest, median and largest of a side, in pixels."""

    min: int
    median: float
    max: int


@dataclass(frozen=True)
class Audit:
    """Counts and findings; groups of pictures are lists of their ids.

    Attributes:
        source: Name of the source.
        kind: `folder`, `archive`, `csv`, `named`, `embedded` or `memory`.
        pictures: How many can be read.
        classes: Pictures of each class.
        parts: Pictures of each class in each part that the source gives; empty if it gives none.
        widths: Pixels across, as stored.
        heights: Pixels down, as stored.
        modes: Pictures of each colour mode (Pillow's names).
        formats: Pictures of each file format.
        rejected: Path and reason of what was left out.
        duplicates: Groups of pictures with the same content.
        duplicates_across_parts: Those of them that lie in several given parts.
        conflicting_labels: Those of them that lie in several classes.
        warnings: What deserves attention, in plain words.
    """

    source: str
    kind: str
    pictures: int
    classes: Mapping[str, int]
    parts: Mapping[str, Mapping[str, int]]
    widths: SizeRange
    heights: SizeRange
    modes: Mapping[str, int]
    formats: Mapping[str, int]
    rejected: Sequence[Mapping[str, str]]
    duplicates: Sequence[Sequence[str]]
    duplicates_across_parts: Sequence[Sequence[str]]
    conflicting_labels: Sequence[Sequence[str]]
    warnings: Sequence[str]

    def to_json(self) -> dict[str, Any]:
        """Plain values under the names of the attributes."""
        return asdict(self)

    def to_text(self) -> str:
        """A page for people."""
        lines = [f"{self.source} ({self.kind}): {self.pictures:,} pictures"]
        lines += [f"  {name}: {count:,}" for name, count in self.classes.items()]
        for part, counts in self.parts.items():
            lines.append(f"{part}: {sum(counts.values()):,} pictures")
        lines.append(
            f"width {_range_text(self.widths)}, height {_range_text(self.heights)} pixels; "
            f"{_counts_text(self.formats)}; {_counts_text(self.modes)}"
        )
        left_out = [f"left out: {r['path']}: {r['reason']}" for r in self.rejected]
        copies = [f"same content: {' = '.join(group)}" for group in self.duplicates]
        lines += [*_at_most(left_out, _LINES), *_at_most(copies, _LINES)]
        lines += [f"warning: {warning}" for warning in self.warnings]
        return "\n".join(lines)


def audit(loaded: LoadedPictures) -> Audit:
    """Count and compare the pictures of a source; reads nothing again."""
    image_set, facts = loaded.image_set, loaded.picture_facts
    duplicates = _duplicates(image_set)
    across = [group for group in duplicates if _n_distinct(image_set.splits, group) > 1]
    labels = image_set.targets.tolist()
    conflicting = [group for group in duplicates if _n_distinct(labels, group) > 1]
    classes = _counts_by_class(image_set, np.arange(len(image_set)))
    return Audit(
        source=loaded.source_name,
        kind=loaded.source_kind,
        pictures=len(image_set),
        classes=classes,
        parts=_counts_by_part(image_set),
        widths=_size_range(facts.widths),
        heights=_size_range(facts.heights),
        modes=dict(Counter(facts.modes).most_common()),
        formats=dict(Counter(facts.formats).most_common()),
        rejected=[asdict(rejected) for rejected in loaded.rejected],
        duplicates=_named(image_set, duplicates),
        duplicates_across_parts=_named(image_set, across),
        conflicting_labels=_named(image_set, conflicting),
        warnings=[
            *loaded.notes,
            *_warnings_of_files(loaded, duplicates, across, conflicting),
            *_warnings_of_classes(classes),
        ],
    )


def _duplicates(image_set: ImageSet) -> list[list[int]]:
    """Groups of pictures with equal content, by index, in the order of their first members."""
    hashes = image_set.content_hashes or ()
    repeated = {digest for digest, count in Counter(hashes).items() if count > 1}
    by_hash: dict[str, list[int]] = defaultdict(list)
    for index, digest in enumerate(hashes):
        if digest in repeated:
            by_hash[digest].append(index)
    return list(by_hash.values())


def _n_distinct(values: Sequence[Any] | None, group: Sequence[int]) -> int:
    return len({values[i] for i in group}) if values is not None else 1


def _named(image_set: ImageSet, groups: Sequence[Sequence[int]]) -> list[list[str]]:
    return [[image_set.ids[i] for i in group] for group in groups]


def _counts_by_class(image_set: ImageSet, indices: npt.NDArray[np.int64]) -> dict[str, int]:
    counts = np.bincount(image_set.targets.numpy()[indices], minlength=len(image_set.class_names))
    return dict(zip(image_set.class_names, counts.tolist(), strict=True))


def _counts_by_part(image_set: ImageSet) -> dict[str, dict[str, int]]:
    if image_set.splits is None:
        return {}
    members: dict[str, list[int]] = {"train": [], "validation": [], "test": []}
    for index, part in enumerate(image_set.splits):
        if part is not None:
            members[part].append(index)
    return {part: _counts_by_class(image_set, np.array(indices)) for part, indices in members.items() if indices}


def _size_range(sides: npt.NDArray[np.int32]) -> SizeRange:
    return SizeRange(int(sides.min()), float(np.median(sides)), int(sides.max()))


def _warnings_of_files(
    loaded: LoadedPictures,
    duplicates: Sequence[Sequence[int]],
    across: Sequence[Sequence[int]],
    conflicting: Sequence[Sequence[int]],
) -> list[str]:
    warnings = []
    ids = loaded.image_set.ids
    if loaded.rejected:
        first = loaded.rejected[0]
        warnings.append(f"{_files(len(loaded.rejected))} left out, for example {first.path}: {first.reason}.")
    if duplicates:
        n_surplus = sum(len(group) - 1 for group in duplicates)
        warnings.append(f"{_files(n_surplus)} a copy of another picture; copies are kept on one side of a drawn split.")
    if across:
        warnings.append(
            f"Copies lie in several of the given parts ({len(across):,} pictures, for example "
            f"{_examples(ids, across[0])}): scores will be too good."
        )
    if conflicting:
        warnings.append(
            f"Copies lie in several classes ({len(conflicting):,} pictures, for example "
            f"{_examples(ids, conflicting[0])}): at most one of the labels is right."
        )
    return warnings


def _warnings_of_classes(classes: Mapping[str, int]) -> list[str]:
    warnings = []
    smallest, largest = min(classes, key=classes.__getitem__), max(classes, key=classes.__getitem__)
    few = [name for name, count in classes.items() if count < FEW_PICTURES]
    if few:
        named = ", ".join(f"{name!r} ({classes[name]})" for name in few[:_SHOWN])
        more = f" and {len(few) - _SHOWN:,} more" if len(few) > _SHOWN else ""
        warnings.append(f"Fewer than {FEW_PICTURES} pictures in {named}{more}: their scores will be chance.")
    if classes[largest] >= IMBALANCE * classes[smallest]:
        warnings.append(
            f"The classes are unequal: {classes[largest]:,} pictures of {largest!r}, "
            f"{classes[smallest]:,} of {smallest!r}. Read the scores of each class, not accuracy alone."
        )
    return warnings


def _files(count: int) -> str:
    return f"{count:,} files are" if count != 1 else "1 file is"


def _examples(ids: Sequence[str], group: Sequence[int]) -> str:
    return " = ".join(ids[i] for i in group[:_SHOWN])


def _range_text(sizes: SizeRange) -> str:
    if sizes.min == sizes.max:
        return f"{sizes.min}"
    return f"{sizes.min} to {sizes.max} (median {sizes.median:g})"


def _counts_text(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in counts.items())


def _at_most(lines: Sequence[str], shown: int) -> list[str]:
    more = len(lines) - shown
    return [*lines[:shown], *([f"… and {more:,} more (--json lists all)"] if more > 0 else [])]
