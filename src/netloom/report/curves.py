"""Curves of loss and accuracy as SVG: text stays text, colours follow the page's theme."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from netloom.report.history import column

Quantity = Literal["loss", "accuracy"]

# Drawn in these colours, which the page replaces through CSS variables of these names.
_COLOURS = {
    "validation": "#2563eb",
    "train": "#8b93a1",
    "ink-soft": "#5b6472",
    "line": "#e3e6eb",
}
_SIZE_INCHES = (5.2, 3.1)
_MARKED_EPOCHS = 12
_STYLE = {
    "svg.fonttype": "none",
    "font.family": "DejaVu Sans",
    "font.size": 10.5,
    "axes.unicode_minus": False,
}
# Inline SVG needs none of these: namespaces hold addresses, and the `*` in the style sheet would
# match the whole page.
_NOT_INLINE = re.compile(
    r"\A.*?(?=<svg)|<metadata>.*?</metadata>|<style.*?</style>| xmlns(:\w+)?=\"[^\"]*\"", re.DOTALL
)


def draw_curve(history: Sequence[Mapping[str, float | None]], quantity: Quantity, *, best_epoch: int | None) -> str:
    """One `<svg>` element: training and validation curve of `quantity`, the best epoch marked.

    Args:
        history: A row per epoch with `epoch` and any of `train_loss`, `validation_loss`,
            `train_accuracy`, `validation_accuracy` (0..1); a value may be missing, None or NaN.
        quantity: Which pair of columns to draw.
        best_epoch: The `epoch` value of the row whose weights were kept.

    Returns:
        SVG markup for use inside HTML: no namespace, no fixed size, ids unique to `quantity`.
    """
    file = io.StringIO()
    # From Matplotlib's defaults, not the user's style; ids hash the salt, so that the same history
    # gives the same file.
    with style.context(["default", {**_STYLE, "svg.hashsalt": quantity}]):
        figure = Figure(figsize=_SIZE_INCHES, layout="constrained")
        axes = figure.add_subplot()
        epochs = column(history, "epoch")
        for part in ("train", "validation"):
            _draw_line(axes, epochs, column(history, f"{part}_{quantity}"), part)
        if best_epoch is not None:
            _mark_best(axes, epochs, column(history, f"validation_{quantity}"), best_epoch)
        _style_axes(axes, quantity)
        figure.patch.set_alpha(0)
        figure.savefig(file, format="svg")
    return _inline(file.getvalue(), quantity)


def _draw_line(axes: Axes, epochs: npt.NDArray[np.float64], values: npt.NDArray[np.float64], part: str) -> None:
    if np.isnan(values).all():
        return
    axes.plot(
        epochs,
        values,
        color=_COLOURS[part],
        linewidth=2.2 if part == "validation" else 1.6,
        marker="o" if len(epochs) <= _MARKED_EPOCHS else None,
        markersize=3.5,
        gid=part,
    )


def _mark_best(
    axes: Axes,
    epochs: npt.NDArray[np.float64],
    values: npt.NDArray[np.float64],
    best_epoch: int,
) -> None:
    axes.axvline(best_epoch, color=_COLOURS["ink-soft"], linewidth=1, linestyle=(0, (3, 3)))
    axes.plot(
        epochs[epochs == best_epoch],
        values[epochs == best_epoch],
        marker="o",
        markersize=7,
        color=_COLOURS["validation"],
        gid="best",
    )
    in_right_half = best_epoch > (epochs[0] + epochs[-1]) / 2
    axes.annotate(
        f"epoch {best_epoch}",
        (best_epoch, 1),
        xycoords=("data", "axes fraction"),
        xytext=(-5 if in_right_half else 5, -2),
        textcoords="offset points",
        ha="right" if in_right_half else "left",
        va="top",
        color=_COLOURS["ink-soft"],
    )


def _style_axes(axes: Axes, quantity: Quantity) -> None:
    axes.patch.set_alpha(0)
    axes.margins(x=0.02)
    axes.set_xlabel("epoch", color=_COLOURS["ink-soft"])
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=6))
    if quantity == "accuracy":
        low, high = axes.get_ylim()
        axes.set_ylim(low, min(high, 1.005))
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0 if high - low > 0.05 else 1))
    axes.grid(axis="y", color=_COLOURS["line"], linewidth=1)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, labelcolor=_COLOURS["ink-soft"])
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(_COLOURS["line"])


def _inline(svg: str, quantity: Quantity) -> str:
    svg = _NOT_INLINE.sub("", svg)
    for name, colour in _COLOURS.items():
        svg = svg.replace(colour, f"var(--{name}, {colour})")
    # Two figures share a page: their ids must differ.
    svg = re.sub(r"\bid=\"", f'id="{quantity}-', svg)
    svg = re.sub(r"(?:xlink:)?href=\"#", f'href="#{quantity}-', svg)
    svg = svg.replace("url(#", f"url(#{quantity}-")
    label = f"{quantity} of training and validation by epoch"
    return re.sub(
        r"<svg [^>]*?(viewBox=\"[^\"]*\")[^>]*>",
        rf'<svg \1 role="img" aria-label="{label}" stroke-linejoin="round">',
        svg,
        count=1,
    ).strip()
