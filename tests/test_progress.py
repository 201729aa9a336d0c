"""What a person reads while something runs: durations and rows of tables."""

from __future__ import annotations

import pytest

from netloom.progress import duration, table_row


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.44, "0.4 s"), (41.6, "42 s"), (59.7, "1 min 0 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_row_keeps_its_columns() -> None:
    assert table_row(["3", "0.5", "learning_rate"], [5, 6, 8]) == "|     3 |    0.5 | learning |"
    with pytest.raises(ValueError, match="zip"):
        table_row(["3"], [5, 6])
