"""A training without labels told as one HTML page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from markupsafe import Markup

from netloom.report.curves import History, Quantity, draw_curve
from netloom.report.page import render_page


@dataclass(frozen=True, kw_only=True)
class PretrainingReport:
    """Everything the page shows.

    Attributes:
        title: Of the source.
        run_name: The run's folder.
        created: Date and time as people read it.
        status: `finished` or `interrupted`.
        verdict: Whether the network collapsed, in words.
        collapsed: Whether the verdict is a warning.
        model: The network's name.
        parameters: Without those of the classifier and the projector.
        train_n: Pictures learned from.
        views: Views of them in all.
        seconds: Of training.
        history: A row per epoch.
        kept_epoch: Whose weights were kept.
        compared: Other views among which a view's partner was to be found.
        stopped: Why training ended early, or nothing.
        next_command: What makes a classifier of the run.
        recipe_yaml: What was trained.
        environment: Label and value of what it was executed with.
        notes: Of the pictures.
    """

    title: str
    run_name: str
    created: str
    status: str
    verdict: str
    collapsed: bool
    model: str
    parameters: int
    train_n: int
    views: int
    seconds: float
    history: History
    kept_epoch: int | None
    compared: int
    stopped: str
    next_command: str
    recipe_yaml: str
    environment: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()


def render_pretraining(report: PretrainingReport) -> str:
    """Write the page, self-contained."""
    # Markup of Matplotlib from numbers alone.
    titles: dict[Quantity, str] = {"loss": "Loss", "accuracy": "Partners found"}
    curves = [
        (title, Markup(draw_curve(report.history, quantity, best_epoch=report.kept_epoch)))
        for quantity, title in titles.items()
        if report.history
    ]
    return render_page("pretraining.html", report=report, curves=curves)
