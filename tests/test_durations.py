from __future__ import annotations

import numpy as np
import pytest

from netloom.durations import duration, parse_duration
from netloom.errors import RecipeError


def test_texts_and_numbers_are_read_by_one_rule() -> None:
    texts = {"90s": 90, "10m": 600, "1h30m": 5400, "2": 2, 45: 45, "1.5h": 5400, "1d": 86400, "0.5": 0.5, 2.5: 2.5}
    assert {text: parse_duration(text) for text in texts} == texts
    assert parse_duration(None) is None
    for number in (20, 0.25, 1e6, 1e-3, np.float32(7)):
        assert parse_duration(number) == parse_duration(str(number)) == number  # one rule, however it is written
    for wrong in ("", "0s", "-3m", "h", "10 minutes", 0, float("inf"), float("nan"), True):
        with pytest.raises(RecipeError, match="duration"):
            parse_duration(wrong)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.44, "0.4 s"), (41.6, "42 s"), (59.7, "1 min 0 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")],
)
def test_seconds_in_words(seconds: float, text: str) -> None:
    assert duration(seconds) == text
