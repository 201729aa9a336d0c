"""Fonts that have the glyphs. Class and file names are Hangul as often as not.

In HTML and SVG text stays text and the browser picks the font (`FONT_STACK`). A figure that becomes
pixels needs an installed font that has every glyph; Matplotlib draws boxes otherwise, with a
warning.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from matplotlib import font_manager
from matplotlib.ft2font import FT2Font

FONT_STACK = (
    'system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "Apple SD Gothic Neo", '
    '"Malgun Gothic", "Noto Sans KR", "Noto Sans CJK KR", "Hiragino Sans", "Yu Gothic", '
    '"PingFang SC", "Microsoft YaHei", "Noto Sans CJK SC", sans-serif'
)
"""CSS `font-family` with the Hangul, kana and Han fonts of each operating system."""

# Comes with Matplotlib, so it is always there: Latin, Greek, Cyrillic, Arabic, Hebrew and symbols.
_BASE = "DejaVu Sans"

# Asked before the other installed fonts: they look right beside DejaVu Sans and cover whole
# scripts.
_PREFERRED = (
    "Noto Sans CJK KR",
    "Noto Sans CJK JP",
    "Noto Sans CJK SC",
    "Noto Sans KR",
    "Apple SD Gothic Neo",
    "Malgun Gothic",
    "NanumGothic",
    "NanumBarunGothic",
    "Hiragino Sans",
    "Yu Gothic",
    "PingFang SC",
    "Microsoft YaHei",
    "Arial Unicode MS",
)

# Has a box for every character, which would pass for a glyph.
_PLACEHOLDER_FONT = "Last Resort"

_MISSING = "□"


@dataclass(frozen=True)
class FigureFonts:
    """Font families for a figure, in order, and what none of the installed fonts can draw."""

    families: tuple[str, ...]
    missing: frozenset[str]

    def drawable(self, text: str) -> str:
        """`text` with a box in place of each character that cannot be drawn."""
        return "".join(_MISSING if character in self.missing else character for character in text)


def figure_fonts(text: str) -> FigureFonts:
    """Choose installed fonts that together have the glyphs of `text`.

    Give `families` to Matplotlib as `fontfamily`, and pass the text through `drawable`, which
    leaves it as it is wherever a font was found.
    """
    families = [_BASE]
    # Matplotlib breaks lines itself; other control characters have no glyph in any font.
    missing = _without_glyph(_BASE, frozenset(text) - {"\n"})
    for family in dict.fromkeys((*_PREFERRED, *_installed_families())):
        if not missing:
            break
        still_missing = _without_glyph(family, missing)
        if still_missing < missing:
            families.append(family)
            missing = still_missing
    return FigureFonts(tuple(families), missing)


def _without_glyph(family: str, characters: frozenset[str]) -> frozenset[str]:
    font = _open(family)
    if font is None:
        return characters
    return frozenset(c for c in characters if font.get_char_index(ord(c)) == 0)


@lru_cache(maxsize=1)
def _installed_families() -> tuple[str, ...]:
    # Families without an upright regular weight would be looked up with a logged complaint.
    names = {
        entry.name
        for entry in font_manager.fontManager.ttflist
        if entry.style == "normal" and entry.weight in (400, "normal", "regular")
    }
    return tuple(sorted(name for name in names if _PLACEHOLDER_FONT not in name))


@lru_cache(maxsize=64)
def _open(family: str) -> FT2Font | None:
    """The file that Matplotlib takes for the family's regular weight; None if it cannot be read."""
    if family not in _installed_families():
        return None
    try:
        return FT2Font(font_manager.findfont(family, fallback_to_default=False))
    except (OSError, ValueError, RuntimeError):
        # Removed since Matplotlib listed it, or a bitmap (emoji) font it cannot load.
        return None
