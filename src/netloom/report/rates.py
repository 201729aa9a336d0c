"""The curve of a learning-rate range test as a file: SVG, PNG, or an HTML page that holds it."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from netloom.report.figures import COLOURS, STYLE, quiet_axes
from netloom.report.fonts import figure_fonts
from netloom.report.page import render_page

FloatArray = npt.NDArray[np.float64]
FORMATS = ("svg", "png", "html")

_SIZE_INCHES = (7.2, 4.2)
_PNG_DOTS_PER_INCH = 160


def draw_rates(
    rates: FloatArray,
    losses: FloatArray,
    smoothed: FloatArray,
    *,
    suggestions: Mapping[str, float],
    title: str,
    file_format: str,
) -> bytes:
    """Loss over learning rate, the suggestions marked, as the content of a file.

    Args:
        rates: Learning rates, float64 `[steps]`, rising.
        losses: Loss at each, float64 `[steps]`.
        smoothed: The same, smoothed; its range is the figure's.
        suggestions: Learning rates by what they are, in a few words.
        title: What was trained.
        file_format: One of `FORMATS`.
    """
    if file_format == "html":
        svg = draw_rates(rates, losses, smoothed, suggestions=suggestions, title="", file_format="svg")
        uri = f"data:image/svg+xml;base64,{base64.b64encode(svg).decode('ascii')}"
        return render_page("rates.html", title=title, figure=uri, suggestions=suggestions).encode()
    fonts, file = figure_fonts(title), io.BytesIO()
    # The salt and the missing date make the same curve the same file.
    with style.context(["default", {**STYLE, "svg.hashsalt": "rates"}]):
        figure = Figure(figsize=_SIZE_INCHES, dpi=_PNG_DOTS_PER_INCH, layout="constrained")
        axes = figure.add_subplot()
        axes.plot(rates, losses, color=COLOURS["train"], linewidth=0.8, alpha=0.6, gid="losses")
        axes.plot(rates, smoothed, color=COLOURS["validation"], linewidth=2.2, gid="smoothed")
        axes.set_xscale("log")
        axes.set_xlabel("learning rate")
        axes.set_ylabel("training loss")
        low, high = smoothed.min(), smoothed.max()
        # The last losses may be thousands; room above the curve is for the labels.
        axes.set_ylim(low - 0.06 * (high - low), high + 0.22 * (high - low))
        quiet_axes(axes)
        _mark(axes, rates, smoothed, suggestions)
        axes.set_title(fonts.drawable(title), loc="left", fontsize=11, fontfamily=list(fonts.families))
        figure.savefig(file, format=file_format, metadata={"Date": None} if file_format == "svg" else None)
    return file.getvalue()


def _mark(axes: Axes, rates: FloatArray, smoothed: FloatArray, suggestions: Mapping[str, float]) -> None:
    """A point on the curve for each suggestion; labels of neighbours lean away from each other."""
    ordered = sorted(suggestions.items(), key=lambda item: item[1])
    for place, (words, rate) in enumerate(ordered):
        leans_left = place == 0 and len(ordered) > 1
        axes.axvline(rate, color=COLOURS["ink-soft"], linewidth=1, linestyle=(0, (3, 3)))
        height = np.interp(np.log(rate), np.log(rates), smoothed)
        axes.plot([rate], [height], marker="o", markersize=7, color=COLOURS["validation"], gid=words)
        axes.annotate(
            f"{words}\n{rate:.2g}",
            (rate, 1),
            xycoords=("data", "axes fraction"),
            xytext=(-5 if leans_left else 5, -2),
            textcoords="offset points",
            ha="right" if leans_left else "left",
            va="top",
            color=COLOURS["ink"],
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.5, "alpha": 0.8},
        )
