from __future__ import annotations

import numpy as np
import pytest
from benchmarks.suite.figures import (
    FAMILIES,
    FASTER_TENSORFLOW,
    FASTEST_KERAS,
    FASTEST_PYTORCH,
    family_ratios,
    faster_peers,
    geometric_mean,
    ratios,
    summary,
    times_better,
)
from benchmarks.suite.plans import folder_contenders, training_contenders
from scipy import stats


def test_a_summary_keeps_the_measurements_in_their_order() -> None:
    found = summary([3.0, 1.0, 2.0, 9.0])
    assert found == {"median": 2.5, "minimum": 1.0, "maximum": 9.0, "n": 4, "values": [3.0, 1.0, 2.0, 9.0]}


def test_the_geometric_mean_is_scipys() -> None:
    values = np.random.default_rng(0).uniform(0.2, 5, 20).tolist()
    assert geometric_mean(values) == pytest.approx(stats.gmean(values))
    assert geometric_mean([2.0, 0.5]) == pytest.approx(1.0)


@pytest.mark.parametrize("wrong", [[], [1.0, 0.0], [-1.0]])
def test_a_geometric_mean_of_anything_else_is_refused(wrong: list[float]) -> None:
    with pytest.raises(ValueError, match="numbers above 0"):
        geometric_mean(wrong)


def test_ratios_are_taken_within_turns() -> None:
    """A machine that becomes ten times slower after the first turn changes every figure and no ratio."""
    ours, theirs = summary([200.0, 20.0, 20.0]), summary([100.0, 10.0, 10.0])
    assert times_better(ours, theirs, more_is_better=True) == 2.0
    one = summary([100.0])
    assert times_better(ours, one, more_is_better=True) == 2.0, "the first turn with the first turn"


def test_fewer_seconds_are_better() -> None:
    assert times_better(summary([2.0]), summary([6.0]), more_is_better=False) == 3.0


def test_ratios_leave_out_whoever_was_not_measured() -> None:
    contenders = {
        "netloom": {"pictures_per_second": summary([10.0])},
        "fastai": {"pictures_per_second": summary([20.0])},
        "Lightning": {"missing": "lightning is not installed"},
    }
    assert ratios(contenders, "pictures_per_second", more_is_better=True) == {"fastai": 0.5}
    del contenders["netloom"]
    assert ratios(contenders, "pictures_per_second", more_is_better=True) == {}


def test_faster_peers_are_named_best_first() -> None:
    assert faster_peers({"a": 0.9, "b": 1.0, "c": 0.5, "d": 2.0}) == ["c", "a"]


def test_the_ratio_to_a_family_is_that_to_its_fastest_member() -> None:
    by_peer = {"Keras TensorFlow": 2.0, "Keras torch": 1.5, "PyTorch tuned": 1.1, "PyTorch": 1.4, "fastai": 1.0}
    assert family_ratios(by_peer) == {FASTER_TENSORFLOW: 2.0, FASTEST_KERAS: 1.5, FASTEST_PYTORCH: 1.1}
    assert family_ratios({"fastai": 1.0}) == {}


def test_the_families_are_contenders() -> None:
    names = {contender.name for contender in (*training_contenders(4, cuda=False), *folder_contenders(4))}
    assert {member for members in FAMILIES.values() for member in members} <= names
