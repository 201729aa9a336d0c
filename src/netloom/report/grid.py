"""Versions of one picture side by side, as a PNG whose pixels are the pictures' own."""

from __future__ import annotations

import io
import textwrap

import numpy as np
import numpy.typing as npt
from matplotlib import style
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from netloom.report.figures import COLOURS, STYLE
from netloom.report.fonts import figure_fonts

Pictures = npt.NDArray[np.uint8]

# A small picture is enlarged by a whole factor, its pixels as squares, up to about this side; one over twice of it is
# reduced.
_SIDE_PIXELS = 128
_GAP_PIXELS = 12
_LINE_PIXELS = 18
# A power of two: a number of pixels goes into inches and back without rounding.
_DOTS_PER_INCH = 128
_FONT_POINTS = 8
# On average, with room for the wide letters of CJK scripts.
_LETTER_PIXELS = 9


def draw_grid(pictures: Pictures, *, columns: int, caption: str) -> bytes:
    """PNG of `pictures` row by row, the first one framed, under a caption.

    Args:
        pictures: uint8 `[n, C, H, W]`, C being 1 (grey) or 3 (RGB).
        columns: Pictures in a row.
        caption: Lines of text above the grid.
    """
    canvas = _canvas(np.stack([_sized(picture) for picture in pictures]), columns)
    fonts, file = figure_fonts(caption), io.BytesIO()
    lines = [part for line in caption.splitlines() for part in textwrap.wrap(line, canvas.shape[1] // _LETTER_PIXELS)]
    head = _GAP_PIXELS + _LINE_PIXELS * len(lines)
    height, width = canvas.shape[0] + head, canvas.shape[1]
    side = _sized(pictures[0]).shape
    with style.context(["default", STYLE]):
        figure = Figure(figsize=(width / _DOTS_PER_INCH, height / _DOTS_PER_INCH), dpi=_DOTS_PER_INCH)
        figure.figimage(canvas)  # the only way onto a figure that resamples nothing
        figure.text(
            _GAP_PIXELS / width,
            1 - _GAP_PIXELS / height,
            fonts.drawable("\n".join(lines)),
            va="top",
            color=COLOURS["ink"],
            fontsize=_FONT_POINTS,
            fontfamily=list(fonts.families),
        )
        figure.add_artist(
            Rectangle(
                (_GAP_PIXELS - 4, height - head - _GAP_PIXELS - side[0] - 4),
                side[1] + 8,
                side[0] + 8,
                fill=False,
                edgecolor=COLOURS["validation"],
                linewidth=3,
                transform=None,
            )
        )
        figure.savefig(file, format="png")
    return file.getvalue()


def _sized(picture: Pictures) -> Pictures:
    """uint8 `[h, w, 3]` at the size shown."""
    pixels = np.broadcast_to(picture, (3, *picture.shape[1:])).transpose(1, 2, 0)
    longer = max(pixels.shape[:2])
    if longer > 2 * _SIDE_PIXELS:
        image = Image.fromarray(np.ascontiguousarray(pixels))
        image.thumbnail((2 * _SIDE_PIXELS, 2 * _SIDE_PIXELS), Image.Resampling.LANCZOS)
        return np.asarray(image)
    factor = max(1, round(_SIDE_PIXELS / longer))
    return pixels.repeat(factor, axis=0).repeat(factor, axis=1)


def _canvas(pictures: Pictures, columns: int) -> Pictures:
    """The grid, uint8 `[height, width, 3]`, of pictures `[n, h, w, 3]`, white between them."""
    n, height, width, _ = pictures.shape
    rows = -(-n // columns)
    canvas = np.full(
        (rows * (height + _GAP_PIXELS) + _GAP_PIXELS, columns * (width + _GAP_PIXELS) + _GAP_PIXELS, 3), 255, np.uint8
    )
    for place, picture in enumerate(pictures):
        row, column = divmod(place, columns)
        top, left = _GAP_PIXELS + row * (height + _GAP_PIXELS), _GAP_PIXELS + column * (width + _GAP_PIXELS)
        canvas[top : top + height, left : left + width] = picture
    return canvas
