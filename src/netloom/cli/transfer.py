"""The verb that starts from a pretrained network."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from netloom.cli.app import RecipeCommand, app
from netloom.cli.options import (
    AsJSON,
    Device,
    DeviceOption,
    Name,
    Out,
    PerClass,
    PlanOf,
    Quiet,
    RecipeOption,
    Settings,
    Source,
    changes_of,
)
from netloom.cli.output import show, told


class TransferMode(str, Enum):
    """How far a pretrained network is trained anew."""

    features = "features"
    frozen = "frozen"
    finetune = "finetune"
    auto = "auto"


class Classifier(str, Enum):
    """What learns from features."""

    logistic = "logistic"
    network = "network"
    knn = "knn"


@app.command(cls=RecipeCommand)
@told
def transfer(
    source: Source,
    backbone: Annotated[
        str,
        typer.Option(
            "--backbone",
            "-b",
            metavar="NAME",
            help="A network of timm's, see `netloom backbones`; a run's folder; or, with --weights, a network of "
            "`netloom models`.",
            show_default=False,
        ),
    ],
    mode: Annotated[
        TransferMode | None,
        typer.Option(
            "--mode",
            "-m",
            help="A classifier on features computed once, a head in front of the frozen network, all of it trained "
            "from the top down, or as far as each step is clearly better. Without it the recipe's, or features; "
            "finetune with --cut.",
            show_default=False,
        ),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            "--weights",
            metavar="FILE",
            help="A .safetensors file, or random; those published with the network without it.",
            show_default=False,
        ),
    ] = None,
    classifier: Annotated[
        Classifier | None,
        typer.Option("--classifier", help="Of mode features; logistic without it.", show_default=False),
    ] = None,
    unfreeze: Annotated[
        str | None,
        typer.Option(
            "--unfreeze",
            metavar="STAGES",
            help="Of mode finetune: all, so many stages from the top, or the lowest one's name.",
            show_default=False,
        ),
    ] = None,
    cut: Annotated[
        str | None,
        typer.Option(
            "--cut",
            metavar="STAGE",
            help="Last stage of the backbone that is kept; all without it.",
            show_default=False,
        ),
    ] = None,
    recipe: RecipeOption = None,
    settings: Settings = None,
    per_class: PerClass = None,
    time_limit: Annotated[
        str | None,
        typer.Option(
            "--time-limit",
            metavar="TIME",
            help="Of the training; in mode auto of the whole, 30m without it. 90s, 10m, 1h30m; a bare number is "
            "seconds.",
            show_default=False,
        ),
    ] = None,
    out: Out = Path("runs"),
    name: Name = None,
    device: DeviceOption = Device.auto,
    like: PlanOf = None,
    as_json: AsJSON = False,
    quiet: Quiet = False,
) -> None:
    """Train a classifier that starts from a pretrained network, and test it once, at the end."""
    from netloom.workflows import head_start

    said = [
        f"model=timm/{backbone.removeprefix('timm/')}",
        *([] if weights is None else [f"transfer.weights={weights}"]),
    ]
    # Size and colour of the pictures are the same in all modes.
    begun_with = recipe or f"transfer-{'features' if mode in (None, TransferMode.auto) else mode.value}"
    head_start.begin(source, begun_with, [*said, *(settings or [])])  # before torch is imported, which takes as long
    from netloom.workflows.runs import load
    from netloom.workflows.transfer import transfer as workflow

    shared: dict[str, Any] = {"out": out, "name": name, "device": device.value, "quiet": quiet}
    run = workflow(
        source,
        backbone,
        weights=weights,
        mode=None if mode is None else mode.value,
        classifier=None if classifier is None else classifier.value,
        unfreeze=int(unfreeze) if unfreeze is not None and unfreeze.isdecimal() else unfreeze,
        cut=cut,
        recipe=recipe,
        time_limit=time_limit,
        plan=None if like is None else load(like).plan,
        settings=changes_of(settings, per_class),
        **shared,
    )
    show(run.result, [str(run.path)] if quiet else [], as_json=as_json)
