"""Numbers and verdicts in words."""

from __future__ import annotations

import numpy as np
import pytest

from netloom.metrics.calibration import reliability_bins
from netloom.metrics.intervals import Estimate, wilson_interval
from netloom.report import wording


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (0.975, "97.5%"),
        (0.0, "0%"),
        (1.0, "100%"),
        (0.99996, "99.996%"),
        (0.0004, "0.04%"),
        (0.12, "12.0%"),
        (float("nan"), "–"),
    ],
)
def test_percent_rounds_but_never_to_all_or_none(share, text):
    assert wording.percent(share) == text


def test_counted():
    assert wording.counted(1, "picture") == "1 picture"
    assert wording.counted(1024, "picture") == "1,024 pictures"


def estimate(successes: int, n: int) -> Estimate:
    return Estimate(successes / n, n, wilson_interval(successes, n))


def test_verdict_compares_the_interval_with_guessing():
    guessing = estimate(50, 100)
    assert wording.verdict(estimate(80, 100), guessing) == ""
    assert "does not show" in wording.verdict(estimate(55, 100), guessing)
    assert "worse than guessing" in wording.verdict(estimate(20, 100), guessing)


def test_calibration_in_words():
    sure = np.full(100, 0.95)
    many_wrong = reliability_bins(sure, np.arange(100) < 70)
    told = wording.calibration_in_words(many_wrong, 0.05)
    assert told.endswith("It is overconfident: 95.0% sure and 70.0% right.")
    assert "differ by 25.0 points on average" in told
    honest = reliability_bins(sure, np.arange(100) < 94)
    assert wording.calibration_in_words(honest, 0.05).endswith("no sign that the confidences mislead.")
    modest = reliability_bins(np.full(100, 0.6), np.arange(100) < 90)
    assert "underconfident" in wording.calibration_in_words(modest, 0.05)
    both = reliability_bins(np.repeat([0.55, 0.95], 50), np.arange(100) % 4 != 0)
    assert wording.calibration_in_words(both, 0.05).endswith("take the confidences with care.")


def test_certainty_leaves_out_nines_that_mean_nothing() -> None:
    assert [wording.certainty(p) for p in (0.5, 0.9748, 0.9994, 0.99999, 1.0)] == [
        "50.0%",
        "97.5%",
        "99.9%",
        "over 99.9%",
        "over 99.9%",
    ]
