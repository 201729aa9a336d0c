"""Drawings: well-formed, escaped, and labels that do not touch."""

from __future__ import annotations

import itertools
import xml.etree.ElementTree as ElementTree

import pytest

from netloom.report.axes import choice_axis, linear_axis, number_text
from netloom.report.svg import Drawing, Plot, number, shortened, spaced, text_width

NASTY = "고양이 <b> & \"quoted\" 'x'"


def test_names_are_text_wherever_they_stand() -> None:
    drawing = Drawing(100, 50, label=NASTY)
    drawing.text(1, 2, NASTY)
    drawing.line([(0, 0), (1.25, 3)], class_="curve", title=NASTY)
    root = ElementTree.fromstring(drawing.markup)
    assert root.get("aria-label") == NASTY
    assert [element.text for element in root] == [NASTY, None]
    assert root[1][0].text == NASTY
    assert root[1].get("d") == "M0 0L1.2 3"
    assert {element.tag for element in root.iter()} == {"svg", "text", "path", "title"}


def test_a_place_of_a_plot_lies_where_its_ticks_do() -> None:
    x, y = linear_axis(2, 12, form=number_text, label="x"), linear_axis(0, 1, form=number_text, label="y")
    plot = Plot(400, 300, label="plot", x=x, y=y)
    root = ElementTree.fromstring(plot.markup)
    drawn = {element.text: element for element in root.iter("text")}
    for tick in x.ticks:
        assert float(drawn[tick.text].get("x", "")) == pytest.approx(plot.x(tick.place), abs=0.1)
    grid = sorted(float(path.get("d", "").split(" ")[1].split("L")[0]) for path in root.iter("path"))
    assert grid == pytest.approx(sorted(plot.y(tick.place) for tick in y.ticks), abs=0.1)
    assert plot.y(0) > plot.y(1)


def test_labels_that_would_touch_are_slanted_and_cut_with_the_whole_as_title() -> None:
    long = [f"[{n}, 128, 256, 512, 1024]" for n in (16, 32, 64)]
    y = linear_axis(0, 1, form=number_text)
    plot = Plot(300, 200, label="plot", x=choice_axis(long), y=y)
    root = ElementTree.fromstring(plot.markup)
    slanted = [element for element in root.iter("text") if "rotate" in element.get("transform", "")]
    assert [element.findtext("title") for element in slanted] == long
    beside = Plot(300, 200, label="plot", x=choice_axis(["a", "b", "c"]), y=y)
    assert "rotate" not in beside.markup
    assert plot.height > beside.height


def test_fifty_choices_have_labels_that_do_not_lie_on_each_other() -> None:
    axis = choice_axis(list(range(50)))
    kept = spaced(axis.ticks, 250, 14)
    assert len(kept) < 50
    assert all((b.place - a.place) * 250 >= 14 for a, b in itertools.pairwise(kept))


def test_hangul_is_as_wide_as_it_is() -> None:
    assert text_width("고양이") > text_width("cat")
    assert shortened("고양이고양이", 99) == "고양이고양이"
    short = shortened("고양이고양이", 6)
    assert short.endswith("…")
    assert text_width(short) <= text_width("x" * 6)


@pytest.mark.parametrize(("value", "text"), [(1.0, "1"), (1.26, "1.3"), (-0.5, "-0.5"), ("a", "a")])
def test_coordinates_have_one_decimal(value: object, text: str) -> None:
    assert number(value) == text
