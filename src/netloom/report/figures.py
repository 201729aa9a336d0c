"""The look that all figures share."""

from __future__ import annotations

from matplotlib.axes import Axes

# The colours of page.css on light paper, by the names of its variables.
COLOURS = {
    "validation": "#2563eb",
    "train": "#8b93a1",
    "ink": "#1b2029",
    "ink-soft": "#5b6472",
    "line": "#e3e6eb",
}
# Over Matplotlib's defaults, not the user's style: `style.context(["default", STYLE])`.
STYLE = {
    "svg.fonttype": "none",
    "font.family": "DejaVu Sans",
    "font.size": 10.5,
    "axes.unicode_minus": False,
}


def quiet_axes(axes: Axes) -> None:
    """Horizontal lines and one axis, in soft ink, behind what is drawn."""
    axes.grid(axis="y", color=COLOURS["line"], linewidth=1)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", length=0, labelcolor=COLOURS["ink-soft"])
    axes.xaxis.label.set_color(COLOURS["ink-soft"])
    axes.yaxis.label.set_color(COLOURS["ink-soft"])
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(COLOURS["line"])
