"""Curves of loss and accuracy as SVG, of one run or of several: text stays text, colours follow the page's theme."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from netloom.report.figures import COLOURS, STYLE, quiet_axes
from netloom.report.history import column

Quantity = Literal["loss", "accuracy"]
History = Sequence[Mapping[str, float | None]]
FloatArray = npt.NDArray[np.float64]


class RunStyle(NamedTuple):
    """How a run is drawn among several: the CSS variable of its colour and, where colours repeat, a marker."""

    variable: str
    marker: str | None


class ThemedColour(NamedTuple):
    """A colour on light and on dark paper."""

    light: str
    dark: str


# The first five after Okabe and Ito, "Color universal design", 2008, whose colours colour-blind eyes tell apart, each
# darkened or lifted until a thin line of it stands out from the paper.
RUN_COLOURS = {
    "run-1": ThemedColour("#0072b2", "#4aa8e0"),
    "run-2": ThemedColour("#d55e00", "#f08138"),
    "run-3": ThemedColour("#009e73", "#2bbd94"),
    "run-4": ThemedColour("#b5568c", "#d98bb6"),
    "run-5": ThemedColour("#c28600", "#e6ad2e"),
    "run-6": ThemedColour("#4d4dbf", "#9a9af0"),
    "run-7": ThemedColour("#7a6a55", "#b8a78f"),
}
_RUN_MARKERS = (None, "s", "^", "D", "v")

# Drawn in these colours, which the page replaces through CSS variables of these names.
_COLOURS = {
    **COLOURS,
    **{name: colour.light for name, colour in RUN_COLOURS.items()},
}
_SIZE_INCHES = (5.2, 3.1)
_MARKED_EPOCHS = 12
# Inline SVG needs none of these: namespaces hold addresses, and the `*` in the style sheet would
# match the whole page.
_NOT_INLINE = re.compile(
    r"\A.*?(?=<svg)|<metadata>.*?</metadata>|<style.*?</style>| xmlns(:\w+)?=\"[^\"]*\"", re.DOTALL
)


def draw_curve(
    history: History,
    quantity: Quantity,
    *,
    best_epoch: int | None,
    unfreezing: Sequence[int] = (),
    averaged: bool = False,
) -> str:
    """One `<svg>` element: training and validation curve of `quantity`, the best epoch marked.

    Dotted lines stand in front of the epochs from which on more of a pretrained network trains.

    Args:
        history: A row per epoch with `epoch` and any of `train_loss`, `validation_loss`,
            `train_accuracy`, `validation_accuracy` (0..1); a value may be missing, None or NaN.
        quantity: Which pair of columns to draw.
        best_epoch: The `epoch` value of the row whose weights were kept.
        unfreezing: The `epoch` values of the rows in which more trains than in the one before.
        averaged: Draw running averages, too, which tell a gain of tenths of a percent from the noise (Chollet, "Deep
            learning with Python", 2018, listing 5.26, smooths with 0.8 as well).

    Returns:
        SVG markup for use inside HTML: no namespace, no fixed size, ids unique to `quantity`.
    """

    def draw(axes: Axes) -> None:
        epochs = column(history, "epoch")
        for part, linewidth in (("train", 1.6), ("validation", 2.2)):
            marker = "o" if len(epochs) <= _MARKED_EPOCHS else None
            values = column(history, f"{part}_{quantity}")
            own = 0.8 if averaged else linewidth
            _draw_line(axes, epochs, values, colour=part, linewidth=own, marker=marker, gid=part)
            if averaged:
                mean = running_average(values)
                _draw_line(axes, epochs, mean, colour=part, linewidth=linewidth, marker=None, gid=f"{part}-average")
        _mark_unfreezing(axes, [epoch for epoch in unfreezing if epoch in epochs[1:]])
        if best_epoch is not None:
            _mark_best(axes, epochs, column(history, f"validation_{quantity}"), best_epoch)

    return _draw(draw, quantity, label=f"{quantity} of training and validation by epoch")


def running_average(values: FloatArray, *, memory: float = 0.8) -> FloatArray:
    """The exponential moving average of a curve, its first value the curve's; missing values are passed over."""
    averages = np.full_like(values, np.nan)
    mean = np.nan
    for i, value in enumerate(values):
        if not np.isnan(value):
            mean = value if np.isnan(mean) else memory * mean + (1 - memory) * value
            averages[i] = mean
    return averages


def draw_runs(histories: Sequence[History], quantity: Quantity) -> str:
    """One `<svg>` element: the curves of several runs, training dashed and validation solid.

    Args:
        histories: Of each run, as `draw_curve` takes them; a run without an epoch draws nothing.
        quantity: Which pair of columns to draw.

    Returns:
        Markup as of `draw_curve`, with the groups `run-<i>-train` and `run-<i>-validation` for run i, counted from
        1, in the style that `run_style(i - 1)` gives.
    """

    def draw(axes: Axes) -> None:
        for index, history in enumerate(histories):
            variable, marker = run_style(index)
            for part, linewidth, dashes in (("train", 1.3, (0, (3, 2))), ("validation", 2.2, "solid")):
                _draw_line(
                    axes,
                    column(history, "epoch"),
                    column(history, f"{part}_{quantity}"),
                    colour=variable,
                    linewidth=linewidth,
                    linestyle=dashes,
                    marker=marker or ("o" if len(history) == 1 else None),
                    gid=f"run-{index + 1}-{part}",
                )

    return _draw(draw, quantity, label=f"{quantity} of {len(histories)} runs by epoch")


def run_style(index: int) -> RunStyle:
    """Style of run `index`, counted from 0; colours repeat after seven runs, then with a marker."""
    cycle, colour = divmod(index, len(RUN_COLOURS))
    return RunStyle(list(RUN_COLOURS)[colour], _RUN_MARKERS[cycle % len(_RUN_MARKERS)])


def _draw(draw: Callable[[Axes], None], quantity: Quantity, *, label: str) -> str:
    """The SVG of what `draw` puts onto the axes, ready for a page."""
    file = io.StringIO()
    # From Matplotlib's defaults, not the user's style; ids hash the salt, so that the same history
    # gives the same file.
    with style.context(["default", {**STYLE, "svg.hashsalt": quantity}]):
        figure = Figure(figsize=_SIZE_INCHES, layout="constrained")
        axes = figure.add_subplot()
        draw(axes)
        _style_axes(axes, quantity)
        figure.patch.set_alpha(0)
        figure.savefig(file, format="svg")
    return _inline(file.getvalue(), quantity, label)


def _draw_line(
    axes: Axes,
    epochs: FloatArray,
    values: FloatArray,
    *,
    colour: str,
    linewidth: float,
    marker: str | None,
    gid: str,
    linestyle: str | tuple[int, tuple[int, int]] = "solid",
) -> None:
    if np.isnan(values).all():
        return
    axes.plot(
        epochs,
        values,
        color=_COLOURS[colour],
        linewidth=linewidth,
        linestyle=linestyle,
        marker=marker,
        markersize=3.5,
        # Some twenty markers tell two lines apart; one on each of 200 epochs hides them.
        markevery=max(1, len(epochs) // 20),
        gid=gid,
    )


def _mark_best(
    axes: Axes,
    epochs: FloatArray,
    values: FloatArray,
    best_epoch: int,
) -> None:
    axes.axvline(best_epoch, color=_COLOURS["ink-soft"], linewidth=1, linestyle=(0, (3, 3)))
    if not np.isnan(values).all():
        axes.plot(
            epochs[epochs == best_epoch],
            values[epochs == best_epoch],
            marker="o",
            markersize=7,
            color=_COLOURS["validation"],
            gid="best",
        )
    in_right_half = best_epoch > (epochs[0] + epochs[-1]) / 2
    # Away from the curve: accuracies end high, losses low.
    at_bottom = bool((values[epochs == best_epoch] > sum(axes.get_ylim()) / 2).any())
    axes.annotate(
        f"epoch {best_epoch}",
        (best_epoch, 0 if at_bottom else 1),
        xycoords=("data", "axes fraction"),
        xytext=(-5 if in_right_half else 5, 3 if at_bottom else -2),
        textcoords="offset points",
        ha="right" if in_right_half else "left",
        va="bottom" if at_bottom else "top",
        color=_COLOURS["ink-soft"],
    )


def _mark_unfreezing(axes: Axes, epochs: Sequence[int]) -> None:
    """A dotted line between an epoch and the one before: its steps are the first that train more."""
    for number, epoch in enumerate(epochs):
        axes.axvline(
            epoch - 0.5, color=_COLOURS["ink-soft"], linewidth=1, linestyle=(0, (1, 2)), gid=f"unfrozen-{epoch}"
        )
        if number == 0:
            axes.annotate(
                "unfrozen",
                (epoch - 0.5, 0),
                xycoords=("data", "axes fraction"),
                xytext=(3, 3),
                textcoords="offset points",
                color=_COLOURS["ink-soft"],
            )


def _style_axes(axes: Axes, quantity: Quantity) -> None:
    axes.patch.set_alpha(0)
    axes.margins(x=0.02)
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=6))
    if quantity == "accuracy":
        low, high = axes.get_ylim()
        axes.set_ylim(low, min(high, 1.005))
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0 if high - low > 0.05 else 1))
    quiet_axes(axes)


def _inline(svg: str, quantity: Quantity, label: str) -> str:
    svg = _NOT_INLINE.sub("", svg)
    for name, colour in _COLOURS.items():
        svg = svg.replace(colour, f"var(--{name}, {colour})")
    # Two figures share a page: their ids must differ.
    svg = re.sub(r"\bid=\"", f'id="{quantity}-', svg)
    svg = re.sub(r"(?:xlink:)?href=\"#", f'href="#{quantity}-', svg)
    svg = svg.replace("url(#", f"url(#{quantity}-")
    return re.sub(
        r"<svg [^>]*?(viewBox=\"[^\"]*\")[^>]*>",
        rf'<svg \1 role="img" aria-label="{label}" stroke-linejoin="round">',
        svg,
        count=1,
    ).strip()
