"""What the JSON files of a run must hold: runs are passed from hand to hand, and checked before they are used."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, TypeAdapter, ValidationError

Checked = TypeVar("Checked")
Count = Annotated[int, Field(ge=0, le=2**53)]
Share = Annotated[FiniteFloat, Field(ge=0, le=1)]


class _Values(BaseModel):
    """Some keys of a file; others are left as they are."""

    model_config = ConfigDict(frozen=True, extra="allow")


class SplitManifest(_Values):
    """`split.json`: the ids of the pictures of each part."""

    train: list[str]
    validation: list[str]
    test: list[str]


class Scores(_Values):
    """What a test gives: accuracy, of how many pictures, and its 95% interval."""

    accuracy: Share
    n: Annotated[Count, Field(ge=1)]
    interval: tuple[Share, Share]
    groups: Count | None = None


class UnlabelledScores(_Values):
    """What the validation of a training without labels gives."""

    loss: float | None
    accuracy: float | None


class Result(_Values):
    """`result.json`."""

    status: str
    tests: Count
    test_notes: list[str] = []
    departures: list[str] = []
    callbacks: list[str] = []
    parameters: Count | None = None
    kept_epoch: Count | None = None
    validation: Scores | UnlabelledScores | None = None
    test: Scores | None = None


class ModeTried(_Values):
    """A mode of transfer that was cross-validated, and its gain over the one before it."""

    mode: str
    accuracy: FiniteFloat
    gain: FiniteFloat | None = None
    interval: tuple[FiniteFloat | None, FiniteFloat | None] | None = None
    p_value: FiniteFloat | None = None


class ModeChoice(_Values):
    """`transfer.json`: how the mode of a transfer was chosen."""

    chosen: str
    reason: str
    steps: list[ModeTried]
    notes: list[str] = []


class Environment(_Values):
    """`environment.json`."""

    processor: str
    cpu_capability: str = "unknown"
    system: str = "unknown"
    versions: dict[str, str] = {}


def checked(kind: type[Checked], value: Mapping[str, Any]) -> Checked:
    """`value` as `kind` wants it.

    Raises:
        ValueError: It is not so; the message names the first place that is wrong.
    """
    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "all of it"
        found = "" if first["type"] == "missing" else f", found {reprlib.repr(first['input'])}"
        raise ValueError(f"{place}: {first['msg']}{found}") from error
