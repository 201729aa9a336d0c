"""Drawings as SVG inside a page: text is text, names are escaped, colours come from the page's style sheet.

Where a figure is many small marks, each with words of its own (what a trial reached, what a choice is called), it is
written here directly: no font has to measure a name, and 500 trials take milliseconds.
"""

from __future__ import annotations

import itertools
import unicodedata
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from markupsafe import Markup, escape

from netloom.report.axes import Axis, Tick

# Widths of a letter as a part of the font's size, a little generous: Latin letters and digits, and the full squares
# of Hangul, kana and Han.
_NARROW, _WIDE = 0.64, 1.0
FONT_SIZE = 12
# Labels on a slant, where they do not fit beside each other, at most this long.
_SLANTED_LETTERS = 16
_SINE = 0.5  # of 30 degrees
# The least distance of two labels above each other.
LINE_HEIGHT = 14.0


class Margins(NamedTuple):
    """Room around the axes, in units of the drawing."""

    left: float
    top: float
    right: float
    bottom: float


class Drawing:
    """An `<svg>` that is written element by element.

    Args:
        width: Of the view box; a unit is about a pixel on a wide screen.
        height: Of the view box.
        label: What the drawing shows, for those who cannot see it.
    """

    def __init__(self, width: float, height: float, *, label: str) -> None:
        self.width, self.height = width, height
        self._parts = [f'<svg viewBox="0 0 {number(width)} {number(height)}" role="img" aria-label="{escape(label)}">']

    def add(self, tag: str, *, text: str | None = None, title: str | None = None, **attributes: object) -> None:
        """Write an element.

        Args:
            tag: Its name.
            text: What it says; escaped.
            title: What a pointer resting on it shows; escaped.
            **attributes: Underscores stand for hyphens, and a trailing one is dropped (`class_`); None leaves one out.
        """
        self._parts.append(f"<{tag}")
        for name, value in attributes.items():
            if value is not None:
                shown = number(value) if isinstance(value, float) else escape(value)
                self._parts.append(f' {name.rstrip("_").replace("_", "-")}="{shown}"')
        if text is None and title is None:
            self._parts.append("/>")
            return
        tooltip = "" if title is None else f"<title>{escape(title)}</title>"
        self._parts.append(f">{tooltip}{'' if text is None else escape(text)}</{tag}>")

    def line(self, points: Iterable[tuple[float, float]], *, class_: str, title: str | None = None) -> None:
        """A line through `points`, open and unfilled by the style sheet's class `line`."""
        path = "M" + "L".join(f"{number(x)} {number(y)}" for x, y in points)
        self.add("path", title=title, class_=f"line {class_}", d=path)

    def text(self, x: float, y: float, text: str, *, anchor: str = "start", letters: int = 99, **more: object) -> None:
        """Words at a place, cut to `letters` with the whole as the title."""
        short = shortened(text, letters)
        title = text if short != text else None
        self.add("text", text=short, title=title, x=x, y=y, text_anchor=None if anchor == "start" else anchor, **more)

    @property
    def markup(self) -> Markup:
        """The element, finished. Everything in it was escaped as it was added."""
        return Markup("".join(self._parts) + "</svg>")


class Plot(Drawing):
    """A drawing with a horizontal and a vertical axis, their lines, ticks and names drawn.

    Args:
        width: Of the view box.
        height: Of the view box; it grows by what slanted labels need.
        label: What the plot shows, in words.
        x: The horizontal axis.
        y: The vertical axis.
    """

    def __init__(self, width: float, height: float, *, label: str, x: Axis, y: Axis) -> None:
        widest = max((text_width(shortened(tick.text, _SLANTED_LETTERS)) for tick in y.ticks), default=0.0)
        left = widest + 8 + (18 if y.label else 0)
        self._slanted = _too_wide(x, width - left - 10)
        letters = max((text_width(shortened(tick.text, _SLANTED_LETTERS)) for tick in x.ticks), default=0.0)
        bottom = (letters * _SINE + 14 if self._slanted else 20) + (18 if x.label else 0)
        height += bottom - 38
        super().__init__(width, height, label=label)
        self.axes = x, y
        self.margins = Margins(left, 8, 10, bottom)
        self._draw_x()
        self._draw_y()

    def x(self, place: float) -> float:
        """Of a place on the horizontal axis, 0..1."""
        return self.margins.left + place * (self.width - self.margins.left - self.margins.right)

    def y(self, place: float) -> float:
        """Of a place on the vertical axis, 0 (bottom) to 1 (top)."""
        return self.height - self.margins.bottom - place * (self.height - self.margins.top - self.margins.bottom)

    def _draw_x(self) -> None:
        axis, foot = self.axes[0], self.y(0)
        width = self.x(1) - self.x(0)
        for tick in spaced(axis.ticks, width, LINE_HEIGHT / _SINE) if self._slanted else axis.ticks:
            x = self.x(tick.place)
            if self._slanted:
                self.text(
                    x + 4,
                    foot + 14,
                    tick.text,
                    anchor="end",
                    letters=_SLANTED_LETTERS,
                    transform=f"rotate(-30 {number(x + 4)} {number(foot + 14)})",
                )
            else:
                self.text(x, foot + 16, tick.text, anchor="middle")
        if axis.label:
            self.text((self.x(0) + self.x(1)) / 2, self.height - 5, axis.label, anchor="middle", class_="name")

    def _draw_y(self) -> None:
        axis = self.axes[1]
        for tick in spaced(axis.ticks, self.y(0) - self.y(1), LINE_HEIGHT):
            y = self.y(tick.place)
            self.line([(self.x(0), y), (self.x(1), y)], class_="grid")
            self.text(self.x(0) - 6, y + 4, tick.text, anchor="end", letters=_SLANTED_LETTERS)
        if axis.label:
            y = (self.y(0) + self.y(1)) / 2
            self.text(12, y, axis.label, anchor="middle", class_="name", transform=f"rotate(-90 12 {number(y)})")


def spaced(ticks: Sequence[Tick], length: float, gap: float) -> list[Tick]:
    """Those ticks of an axis of this length that are at least `gap` apart."""
    kept: list[Tick] = []
    for tick in ticks:
        if not kept or (tick.place - kept[-1].place) * length >= gap:
            kept.append(tick)
    return kept


def number(value: object) -> str:
    """A coordinate with one decimal, `12.3` or `12`: a tenth of a pixel is as fine as a screen."""
    if not isinstance(value, (int, float)):
        return str(value)
    text = f"{value:.1f}"
    return text.removesuffix(".0")


def text_width(text: str) -> float:
    """About how wide `text` is drawn, in units of the drawing."""
    return FONT_SIZE * sum(_WIDE if unicodedata.east_asian_width(letter) in "WF" else _NARROW for letter in text)


def shortened(text: str, letters: int) -> str:
    """`text`, or its beginning and an ellipsis, as wide as `letters` Latin letters at most."""
    most = letters * _NARROW * FONT_SIZE
    if text_width(text) <= most:
        return text
    short = text
    while short and text_width(short + "…") > most:
        short = short[:-1]
    return short + "…"


def _too_wide(axis: Axis, width: float) -> bool:
    """Whether labels of neighbouring ticks would touch."""
    places = sorted((tick.place * width, text_width(tick.text)) for tick in axis.ticks)
    return any(b - a < (wide + other) / 2 + 6 for (a, wide), (b, other) in itertools.pairwise(places))
