"""What a report tells, as plain values. Whatever a run did not reach is left None or empty."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from netloom.metrics.summary import HeldOutScores

Status = Literal["finished", "interrupted", "failed", "running"]


@dataclass(frozen=True, kw_only=True)
class SourceFacts:
    """The pictures that went in."""

    name: str
    """As the user named it."""
    kind: str = ""
    location: str = ""
    class_counts: Mapping[str, Sequence[int]] = field(default_factory=dict)
    """Pictures per class, by part: `{"train": [K counts], "validation": ..., "test": ...}`."""
    class_weights: Sequence[float] = ()
    """What a training picture of each class weighs in the loss, `[K]`; empty if all weigh the same."""
    split_method: str = ""
    """How the parts were drawn, as a sentence."""
    rejected: Sequence[tuple[str, str]] = ()
    """Path and reason of each file that could not be read."""
    warnings: Sequence[str] = ()
    """What the audit found, one sentence each: duplicates, rare classes, mixed sizes."""


@dataclass(frozen=True, kw_only=True)
class TriedMode:
    """A mode of transfer that was cross-validated."""

    mode: str
    accuracy: float
    """Mean over the folds, 0..1."""
    gain: float | None = None
    """Of that, over the mode before it; None for the first."""
    interval: tuple[float | None, float | None] | None = None
    """95% of the gain; None where it is not known."""
    p_value: float | None = None
    """Of the exact test that as many held-out answers were right before."""


@dataclass(frozen=True, kw_only=True)
class ChoiceFacts:
    """How the mode of a transfer was chosen among several."""

    chosen: str
    reason: str
    """Why it went no further."""
    tried: Sequence[TriedMode]
    notes: Sequence[str] = ()
    """What makes the figures too good, a sentence each."""


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """The network."""

    name: str
    description: str = ""
    parameters: int
    trainable_parameters: int
    input_shape: tuple[int, int, int]
    """Channels, height, width."""
    layers: Sequence[tuple[str, str, int]] = ()
    """Name, output shape and number of parameters of each layer; may be left out."""


@dataclass(frozen=True, kw_only=True)
class TrainingFacts:
    """How training went."""

    history: Sequence[Mapping[str, float | None]]
    """A row per completed epoch: `epoch`, `train_loss`, `train_accuracy` (0..1), `validation_loss`,
    `validation_accuracy`, `learning_rate`, `seconds`; a value may be missing, None or NaN."""
    best_epoch: int | None = None
    """The `epoch` whose weights were kept."""
    stopped: str = ""
    """Why training ended, as a sentence."""
    seconds: float | None = None
    images_per_second: float | None = None
    solved: Sequence[str] = ()
    """How a classifier without epochs was fitted, as sentences; there is no history then."""
    tried: Sequence[tuple[str, float, float]] = ()
    """What was tried for it: the value, its held-out log loss and accuracy (0..1)."""
    unfreezing: Sequence[tuple[int, Sequence[str]]] = ()
    """Of a pretrained network: the first `epoch` that stages trained in, and their names, from the top."""
    frozen: Sequence[str] = ()
    """Names of the stages that did not train, from input to output."""
    averaged: bool = False
    """Whether running averages are drawn where there are epochs enough, as of trainings whose gains are small."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Mistake:
    """A test picture that was taken for another class."""

    picture: npt.NDArray[np.uint8]
    """`[C, H, W]`, C being 1 or 3."""
    true_name: str
    predicted_name: str
    confidence: float
    """Probability given to the predicted class, 0..1."""
    sample_id: str


@dataclass(frozen=True, kw_only=True, eq=False)
class ReportData:
    """Everything a report shows of one run."""

    title: str
    run_name: str
    created: str
    """Date and time as people read it."""
    status: Status
    status_detail: str = ""
    """Why a run failed or was interrupted, and what to do, as a sentence."""
    class_names: Sequence[str]
    source: SourceFacts | None = None
    model: ModelFacts | None = None
    choice: ChoiceFacts | None = None
    training: TrainingFacts | None = None
    test: HeldOutScores | None = None
    tests: int = 1
    """How often the test part has been looked at, with training in between."""
    test_notes: Sequence[str] = ()
    """Those of `notes` by which test pictures are not new to the network."""
    mistakes: Sequence[Mistake] = ()
    """The most confident mistakes on the test part, most confident first."""
    recipe_yaml: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Label and value: versions, device, precision, threads."""
    command: str = ""
    """What to type to repeat the run."""
    command_note: str = ""
    """What to know of that, or why there is no such command, as sentences."""
    notes: Sequence[str] = ()
