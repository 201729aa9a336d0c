"""Pictures inside the HTML file itself, as data URIs."""

from __future__ import annotations

import base64
import io
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

# Up to this side a picture is drawn enlarged, its pixels as squares, and kept without loss.
_SMALL_SIDE = 64
# 4:4:4 keeps the colour edges of a thumbnail; at this quality one of 160 pixels takes about 8 KB.
_JPEG = {"quality": 85, "subsampling": 0, "optimize": True}


class Thumbnail(NamedTuple):
    """A picture for an `<img>`: data URI, size in pixels, whether to draw pixels as squares."""

    uri: str
    width: int
    height: int
    pixelated: bool


def thumbnail(picture: npt.NDArray[np.uint8], *, max_side: int = 160) -> Thumbnail:
    """Encode a picture for the report: a small one as PNG, a larger one as JPEG of `max_side`.

    Args:
        picture: uint8 `[C, H, W]`, C being 1 (grey) or 3 (RGB).
        max_side: Longer side in pixels that a larger picture is reduced to; never enlarged.

    Raises:
        ValueError: The picture has another shape or dtype.
    """
    image = _image(picture)
    file = io.BytesIO()
    if small := max(image.size) <= _SMALL_SIDE:
        image.save(file, "PNG", optimize=True)
    else:
        image.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
        image.save(file, "JPEG", **_JPEG)
    content = base64.b64encode(file.getvalue()).decode("ascii")
    kind = "png" if small else "jpeg"
    return Thumbnail(f"data:image/{kind};base64,{content}", *image.size, pixelated=small)


def _image(picture: npt.NDArray[np.uint8]) -> Image.Image:
    if picture.ndim != 3 or picture.shape[0] not in (1, 3) or picture.dtype != np.uint8:
        raise ValueError(
            f"A picture must be uint8 [1, H, W] or [3, H, W]; found {picture.dtype} {list(picture.shape)}."
        )
    if picture.shape[0] == 1:
        return Image.fromarray(np.ascontiguousarray(picture[0]))
    return Image.fromarray(np.ascontiguousarray(picture.transpose(1, 2, 0)))
