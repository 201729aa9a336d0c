"""What a person reads while something runs: rows of tables."""

from __future__ import annotations

import pytest

from netloom.progress import table_row


def test_a_row_keeps_its_columns() -> None:
    assert table_row(["3", "0.5", "learning_rate"], [5, 6, 8]) == "|     3 |    0.5 | learning |"
    with pytest.raises(ValueError, match="zip"):
        table_row(["3"], [5, 6])
