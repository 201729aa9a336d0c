"""What a person reads while something runs: rows of tables."""

from __future__ import annotations

import pytest

from netloom.progress import number_cell, table_row


def test_a_row_keeps_its_columns() -> None:
    assert table_row(["3", "0.5", "learning_rate"], [5, 6, 8]) == "|     3 |    0.5 | learnin… |"
    assert table_row(["3", "0.5", "learning_rate"], [1, 3, 13]) == "| 3 | 0.5 | learning_rate |"
    with pytest.raises(ValueError, match="zip"):
        table_row(["3"], [5, 6])


@pytest.mark.parametrize(
    ("value", "form", "expected"),
    [
        (0.5, ".4f", "0.5000"),
        (-1.25, ".4f", "-1.2500"),
        (123456789.25, ".4f", "1.23e+08"),
        (-123456789.25, ".4f", "-1.2e+08"),
        (123456.75, ".4f", "123456.8"),
        (-1e-5, ".4g", "-1e-05"),
        (-1.2345e-5, ".4g", "-1.2e-05"),
        (12345678, "d", "12345678"),
        (123456789, "d", "1.23e+08"),
        (float("-inf"), ".4f", "-inf"),
    ],
)
def test_a_number_is_rounded_not_cut(value: float, form: str, expected: str) -> None:
    assert number_cell(value, 8, form) == expected
