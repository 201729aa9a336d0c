"""What repetitions over seeds say of their spread: Student's t where there is some, within what a score can be."""

from __future__ import annotations

import math
from typing import Any

import pytest
from scipy import stats

from netloom.workflows.seeds import describe_seeds, spread


def told(values: list[float]) -> str:
    summary: dict[str, Any] = {"folder": "runs/x", "test_n": 100, "test_accuracy": spread(values)}
    return describe_seeds(summary)[0]


def test_an_interval_ends_where_the_score_does() -> None:
    values = [0.97, 1.0, 1.0]
    low, high = stats.t.interval(0.95, 2, loc=0.99, scale=stats.sem(values))
    assert high > 1
    assert spread(values)["interval"] == pytest.approx([low, 1.0])
    assert "95% interval of the mean over seeds 94.70% to 100.00%" in told(values)
    assert spread(values, highest=math.inf)["interval"] == pytest.approx([low, high])
    low, high = spread([0.1, 5.0], highest=math.inf)["interval"]
    assert (low, high > 5) == (0.0, True)


def test_seeds_that_come_out_the_same_tell_no_spread() -> None:
    assert spread([0.95, 0.95, 0.95])["interval"] is None
    assert "standard deviation 0.00%, no interval, since all seeds came out the same (95.00%, 95.00%" in told(
        [0.95] * 2
    )
