"""The backbones that are worth trying, how long they take on a machine, and which one to take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from netloom.data.sources import open_source
from netloom.errors import NetloomError, did_you_mean
from netloom.models.backbone_list import Backbone, listed_backbones

Kind = Literal["cpu", "gpu"]

BUDGET_SECONDS = 120.0
"""What `fits` means: as long as one goes on waiting."""
QUICK_SECONDS = 15.0
PICTURES = 2000
FINETUNING_EPOCHS = 10
_MOST_PICTURES = 1_000_000_000


@dataclass(frozen=True)
class TimedBackbone:
    """A backbone of the list and the seconds that it is expected to take."""

    backbone: Backbone
    seconds: float

    @property
    def fits(self) -> bool:
        """Whether it takes at most two minutes."""
        return self.seconds <= BUDGET_SECONDS

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self.backbone) | {"seconds": self.seconds, "fits": self.fits}


@dataclass(frozen=True)
class BackboneTable:
    """Backbones with their expected times, and what to take.

    Attributes:
        rows: In the order of the list.
        kind: `cpu` or `gpu`.
        pictures: How many pictures the times are for.
        machine: Whose times they are.
        work: What takes the time.
        recommendation: Sentences with names and reasons; the first names the best that fits.
        recommended: Its name.
    """

    rows: tuple[TimedBackbone, ...]
    kind: Kind
    pictures: int
    machine: str
    work: str
    recommendation: tuple[str, ...]
    recommended: str

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "backbones": [row.to_json() for row in self.rows],
            "kind": self.kind,
            "pictures": self.pictures,
            "machine": self.machine,
            "work": self.work,
            "recommendation": list(self.recommendation),
            "recommended": self.recommended,
        }

    def to_rows(self) -> list[tuple[str, ...]]:
        """A table of text: the names of the columns, then a row for each backbone."""
        columns = ("backbone", "size", "params M", "GMACs", "features", "top-1 %", "trained on", "licence", "time")
        return [columns, *(_cells(row) for row in self.rows)]

    def notes(self) -> list[str]:
        """What the table means, and the recommendation."""
        return [
            f"Time: {self.work} of {self.pictures:,} pictures on {self.machine}. Top-1: on ImageNet-1k's validation "
            "pictures, of the network's own classifier, l of a linear probe, z zero-shot.",
            *self.recommendation,
        ]


def backbones(
    fits: str | None = None, *, pictures: int | None = None, source: str | Path | None = None
) -> BackboneTable:
    """The pretrained networks that are worth trying on hundreds to thousands of pictures, and which one to take.

    On a CPU the time is that of the features of all pictures, by a measurement of about a second on this machine.
    On a GPU it is that of ten epochs of fine-tuning, reckoned for one like NVIDIA's RTX 3090 from published rates.

    Args:
        fits: `cpu` or `gpu` keeps those that take at most two minutes there; without it all are listed, with times for
            a GPU where this machine has one, for its CPU elsewhere.
        pictures: How many pictures the times are for; 2,000, or those of `source`.
        source: Whose pictures to count: what `netloom train` takes.

    Raises:
        NetloomError: `fits` or `pictures` is impossible, or both `pictures` and `source` are given.
        DataError: The source cannot be opened.
    """
    count = _picture_count(pictures, source)
    if fits is not None and fits not in get_args(Kind):
        raise NetloomError(f"fits: expected cpu or gpu, got {fits!r}.{did_you_mean(str(fits), get_args(Kind))}")
    kind: Kind = "gpu" if fits == "gpu" or (fits is None and _has_gpu()) else "cpu"
    timed, machine = _timed(kind, count)
    recommended, sentences = recommend(timed, kind, count)
    return BackboneTable(
        rows=tuple(row for row in timed if row.fits or fits is None),
        kind=kind,
        pictures=count,
        machine=machine,
        work="features" if kind == "cpu" else f"{FINETUNING_EPOCHS} epochs of fine-tuning",
        recommendation=sentences,
        recommended=recommended.name,
    )


def recommend(timed: Sequence[TimedBackbone], kind: Kind, pictures: int) -> tuple[Backbone, tuple[str, ...]]:
    """The backbone to take, and sentences that say which and why.

    The most accurate one that takes at most two minutes, of those with a licence that allows any use; a second one
    that takes at most 15 seconds, for a first answer. Accuracy on ImageNet goes with accuracy on other pictures
    (Kornblith et al., "Do better ImageNet models transfer better?", 2019), though not exactly.
    """
    known = [row for row in timed if row.backbone.is_free and row.backbone.top1 is not None]
    fitting = [row for row in known if row.fits]
    mode = "features" if kind == "cpu" else "finetune"
    if not fitting:
        fastest = min(known, key=lambda row: row.seconds)
        return fastest.backbone, (
            f"Nothing of the list takes less than two minutes for {pictures:,} pictures here; the fastest is "
            f"{_named(fastest)}: {_how(fastest.backbone, mode)}.",
        )
    best = max(fitting, key=_accuracy)
    sentences = [
        f"Recommended: {_named(best)}, the most accurate on ImageNet-1k of those that take at most two minutes for "
        f"{pictures:,} pictures and whose licence allows any use: {_how(best.backbone, mode)}."
    ]
    quick = [row for row in fitting if row.seconds <= QUICK_SECONDS]
    if quick and (first := max(quick, key=_accuracy)) is not best:
        sentences.append(
            f"For a first answer: {_named(first)}, the most accurate that takes at most {QUICK_SECONDS:g} seconds."
        )
    return best.backbone, tuple(sentences)


def _picture_count(pictures: int | None, source: str | Path | None) -> int:
    if pictures is not None and source is not None:
        raise NetloomError("Give either a source, whose pictures are counted, or a number of pictures, not both.")
    if source is not None:
        return len(open_source(source).samples)
    count = PICTURES if pictures is None else pictures
    if not 1 <= count <= _MOST_PICTURES:
        raise NetloomError(f"pictures: expected 1 to {_MOST_PICTURES:,}, got {count:,}.")
    return count


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _timed(kind: Kind, pictures: int) -> tuple[tuple[TimedBackbone, ...], str]:
    from netloom.models.backbone_speed import PUBLISHED_GPU, TRAINING_COST, measure_cpu
    from netloom.runtime import training_threads

    passes = 1 if kind == "cpu" else FINETUNING_EPOCHS * TRAINING_COST
    speed = measure_cpu(training_threads()) if kind == "cpu" else PUBLISHED_GPU
    timed = tuple(TimedBackbone(b, speed.seconds(b, pictures * passes)) for b in listed_backbones())
    return timed, speed.machine


def _accuracy(row: TimedBackbone) -> float:
    return row.backbone.top1 or 0.0


def _named(row: TimedBackbone) -> str:
    return f"{row.backbone.name} ({row.backbone.top1:.1f}%, about {time_text(row.seconds)})"


def _how(backbone: Backbone, mode: str) -> str:
    return f"netloom transfer SOURCE {backbone.options} --mode {mode}"


def _cells(row: TimedBackbone) -> tuple[str, ...]:
    found = row.backbone
    own = "" if found.image_size == found.own_size else f" (own {found.own_size})"
    mark = {"linear probe": " l", "zero-shot": " z"}.get(found.top1_by or "", "")
    return (
        found.name,
        f"{found.image_size}{own}",
        f"{found.parameters / 1e6:.1f}",
        f"{found.multiply_adds / 1e9:.2f}",
        str(found.features),
        "" if found.top1 is None else f"{found.top1:.1f}{mark}",
        found.pretraining,
        found.licence,
        time_text(row.seconds),
    )


def time_text(seconds: float) -> str:
    """Two digits and a unit, as exact as such an expectation is: `8 s`, `85 s`, `4 min`, `3 h`."""
    for limit, unit, name in ((120, 1, "s"), (7200, 60, "min")):
        if seconds <= limit:
            return f"{max(seconds / unit, 0.1):.2g} {name}" if seconds < 100 * unit else f"{seconds / unit:.0f} {name}"
    return f"{seconds / 3600:,.0f} h"
