"""Arguments and options that verbs share."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from netloom.durations import parse_duration


class Device(str, Enum):
    """Where to compute."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"
    mps = "mps"


class Machine(str, Enum):
    """What kind of machine is asked about."""

    cpu = "cpu"
    gpu = "gpu"


class Part(str, Enum):
    """Which part of a run's data."""

    train = "train"
    validation = "validation"
    test = "test"


_SOURCE = typer.Argument(
    help="A folder of class folders, a .zip or .tar of them, a CSV file, or a named set.", show_default=False
)
Source = Annotated[str, _SOURCE]
SourceUnlessResumed = Annotated[str | None, _SOURCE]
RunArgument = Annotated[str, typer.Argument(help="A run's folder, made by train.", show_default=False)]
RecipeOption = Annotated[
    str | None,
    typer.Option("--recipe", "-r", help="A shipped recipe's name or a YAML file.", show_default=False),
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        "-s",
        metavar="KEY=VALUE",
        help="Change a recipe key; repeatable; null turns a group off.",
    ),
]
PerClass = Annotated[
    int | None,
    typer.Option("--per-class", metavar="N", help="Train on N pictures of each class, drawn once."),
]
Out = Annotated[Path, typer.Option("--out", "-o", help="Folder for the run's folder.")]
OutUnlessResumed = Annotated[
    Path | None, typer.Option("--out", "-o", help="Folder for the run's folder.", show_default="runs")
]
DEFAULT_OUT = Path("runs")
Name = Annotated[str | None, typer.Option("--name", help="Name of the run, after its time.", show_default=False)]
DeviceOption = Annotated[Device, typer.Option("--device", help="Where to compute.")]
Jobs = Annotated[
    str, typer.Option("--jobs", "-j", metavar="N", help="Trainings at once; auto takes what ends the soonest.")
]
PlanOf = Annotated[
    str | None,
    typer.Option("--plan-of", metavar="RUN", help="Execute every training as this run was, to repeat its bits."),
]
TimeLimit = Annotated[
    str | None,
    typer.Option(
        "--time-limit",
        metavar="TIME",
        help="Of training and validation: 90s, 10m, 1h30m; a bare number is seconds.",
        show_default=False,
    ),
]
AsJSON = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
Force = Annotated[bool, typer.Option("--force", help="Replace the file if it exists.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing while it runs.")]


def changes_of(
    settings: Sequence[str] | None, per_class: int | None = None, time_limit: str | None = None
) -> dict[str, Any]:
    """Recipe keys that a command line changes: `--set` and the options that stand for a key.

    Raises:
        RecipeError: A setting or the time is not understood.
    """
    from netloom.recipe import parse_overrides

    changes = parse_overrides(settings or [])
    if per_class is not None:
        changes["per_class"] = per_class
    seconds = parse_duration(time_limit)
    if seconds is not None:
        changes["time_limit_minutes"] = seconds / 60
    return changes
