"""Fonts with the glyphs, shown by drawing: Matplotlib's warning of a missing glyph is an error here."""

from __future__ import annotations

import io

import pytest
from matplotlib.figure import Figure

from netloom.report.fonts import figure_fonts

NO_FONT_HAS_THIS = "\U0010fffd"


def draw(text: str) -> bytes:
    fonts = figure_fonts(text)
    figure = Figure(figsize=(2, 1))
    figure.text(0.1, 0.5, fonts.drawable(text), fontfamily=list(fonts.families))
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()


@pytest.mark.parametrize("text", ["cat", "고양이 <b>", "猫 и кошка\nγάτα", f"a{NO_FONT_HAS_THIS}"])
def test_any_text_is_drawn_without_a_warning(text):
    assert draw(text).startswith(b"\x89PNG")


def test_text_that_the_base_font_has_needs_no_other():
    fonts = figure_fonts("cat, и кошка, γάτα")
    assert fonts.families == ("DejaVu Sans",)
    assert not fonts.missing


def test_hangul_is_kept_where_a_font_has_it():
    fonts = figure_fonts("고양이")
    if fonts.missing:
        pytest.skip("no installed font has Hangul")
    assert len(fonts.families) == 2
    assert fonts.drawable("고양이 cat") == "고양이 cat"
    assert draw("고양이") != draw("강아지")


def test_a_character_without_a_glyph_becomes_a_box():
    fonts = figure_fonts(f"a{NO_FONT_HAS_THIS}")
    assert fonts.missing == {NO_FONT_HAS_THIS}
    assert fonts.drawable(f"a{NO_FONT_HAS_THIS}b") == "a□b"
