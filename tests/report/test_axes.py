"""Axes: places against the formulas they name, ticks that say what they stand at."""

from __future__ import annotations

import math

import numpy as np
import pytest

from netloom.report.axes import (
    choice_axis,
    identity,
    linear_axis,
    log_axis,
    log_ticks,
    number_text,
    score_range,
    time_axis,
    value_text,
)


def test_linear_places_are_in_proportion_and_ticks_stand_where_their_values_do() -> None:
    axis = linear_axis(0.2, 1.2, form=number_text)
    places = [axis.place(value) for value in (0.2, 0.45, 0.7, 1.2)]
    np.testing.assert_allclose(np.diff(places) / (places[-1] - places[0]), [0.25, 0.25, 0.5])
    assert [axis.place(float(tick.text)) for tick in axis.ticks] == pytest.approx([tick.place for tick in axis.ticks])
    assert len(axis.ticks) >= 4


def test_logarithmic_places_are_in_proportion_of_the_logarithm() -> None:
    axis = log_axis(1e-4, 1e-1, form=number_text)
    places = np.array([axis.place(value) for value in (1e-4, 1e-3, 1e-2, 1e-1)])
    np.testing.assert_allclose(np.diff(places), np.diff(places)[0])
    assert [tick.text for tick in axis.ticks] == ["0.0001", "0.001", "0.01", "0.1"]
    assert axis.place(0) == axis.place(1e-4)  # a weight decay of 0 among logarithmic ones


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (1, 10, [1, 2, 5, 10]),
        (1e-6, 1, [1e-6, 1e-4, 1e-2, 1]),
        (0.011, 0.018, [0.011, 0.018]),
        (3e-4, 3e-2, [5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2]),
    ],
)
def test_logarithmic_ticks_are_round_and_few(low: float, high: float, expected: list[float]) -> None:
    assert log_ticks(low, high, 6) == pytest.approx(expected)


@pytest.mark.parametrize("value", [None, math.nan, math.inf, "0.5", True, [1]])
def test_what_is_no_number_has_no_place(value: object) -> None:
    assert linear_axis(0, 1, form=number_text).place(value) is None
    assert log_axis(0.1, 1, form=number_text).place(value) is None


def test_equal_ends_put_everything_in_the_middle() -> None:
    for axis in (linear_axis(3, 3, form=number_text), log_axis(3, 3, form=number_text)):
        assert axis.place(3.0) == 0.5
        assert [tick.text for tick in axis.ticks] == ["3"]


def test_a_few_integers_have_slots_that_do_not_overlap() -> None:
    axis = linear_axis(2, 4, form=number_text, integers=True)
    places = [axis.place(value) for value in (2, 3, 4)]
    np.testing.assert_allclose(places, [1 / 6, 3 / 6, 5 / 6])
    assert axis.slot == pytest.approx(1 / 3)
    assert linear_axis(0, 500, form=number_text, integers=True).slot == 0


def test_choices_of_any_type_have_places_of_their_own() -> None:
    choices = [1, True, "1", None, [32, 64], 1.5]
    axis = choice_axis(choices)
    assert len({axis.place(choice) for choice in choices}) == len(choices)
    assert [tick.text for tick in axis.ticks] == ["1", "true", "1", "null", "[32, 64]", "1.5"]
    assert axis.place([32, 65]) is None
    assert identity([32, 64]) != identity("[32, 64]")


def test_ticks_closer_than_their_digits_tell_are_one() -> None:
    texts = [tick.text for tick in linear_axis(0.66, 0.66 + 1e-7, form=number_text).ticks]
    assert len(texts) == len(set(texts))


@pytest.mark.parametrize(
    ("seconds", "texts"),
    [
        (5, ["0 s", "1 s", "2 s", "3 s", "4 s", "5 s"]),
        (150, ["0 s", "30 s", "60 s", "90 s", "120 s", "150 s"]),
        (600, ["0 min", "2 min", "4 min", "6 min", "8 min", "10 min"]),
        (7 * 3600, ["0 h", "2 h", "4 h", "6 h"]),
        (3 * 86400, ["0 h", "12 h", "24 h", "36 h", "48 h", "60 h", "72 h"]),
        (9 * 86400, ["0 d", "2 d", "4 d", "6 d", "8 d"]),
    ],
)
def test_time_has_ticks_in_the_unit_that_people_use(seconds: float, texts: list[str]) -> None:
    axis = time_axis(seconds)
    assert [tick.text for tick in axis.ticks] == texts
    units = {"s": 1, "min": 60, "h": 3600, "d": 86400}
    for tick in axis.ticks:
        count, unit = tick.text.split()
        assert axis.place(float(count) * units[unit]) == pytest.approx(tick.place)


def test_scores_reach_from_the_worst_to_the_best_unless_the_worst_is_hopeless() -> None:
    """Tukey's outer fence: quartiles 0.4 and 0.6 (the values at n/4 and 3n/4) put it at 0.6 + 3 * 0.2."""
    losses = [0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65]
    assert score_range(losses, maximize=False) == (0.3, 0.65)
    low, high = score_range([*losses[:-1], 1e6], maximize=False)
    quartiles = sorted([*losses[:-1], 1e6], reverse=True)[2], sorted([*losses[:-1], 1e6], reverse=True)[6]
    assert (low, high) == (0.3, pytest.approx(quartiles[0] + 3 * (quartiles[0] - quartiles[1])))
    assert score_range([-value for value in (*losses[:-1], 1e6)], maximize=True) == (-high, -0.3)
    assert score_range([0.5] * 4, maximize=True) == (0.5, 0.5)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.1, "0.1"),
        (0.000031234, "3.123e-5"),
        (3e-05, "3e-5"),
        (1024.0, "1024"),
        (True, "true"),
        (None, "null"),
        ("경사 <b>", "경사 <b>"),
        ([1, 2.5], "[1, 2.5]"),
        (math.inf, "inf"),
        (1e300, "1e300"),
    ],
)
def test_settings_read_as_a_recipe_writes_them(value: object, text: str) -> None:
    assert value_text(value) == text
