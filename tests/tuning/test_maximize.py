from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import netloom


def hill(x: float, y: float) -> float:
    return -((x - 2) ** 2) - (y + 1) ** 2


def test_the_maximum_of_a_hill_is_found(capsys: pytest.CaptureFixture[str]) -> None:
    found = netloom.maximize(hill, {"x": (-5, 5), "y": (-5, 5)}, init_points=3, n_iter=7, random_state=1)
    assert found.max["target"] > -0.5
    assert hill(**found.max["params"]) == found.max["target"]
    assert len(found.res) == 10
    assert found.max in found.res
    printed = capsys.readouterr().err
    assert len(printed.splitlines()) == 11
    assert "target" in printed
    again = netloom.maximize(hill, {"x": (-5, 5), "y": (-5, 5)}, init_points=3, n_iter=7, random_state=1, verbose=0)
    assert again == found
    assert capsys.readouterr().err == ""


def test_ranges_choices_and_whole_numbers() -> None:
    def f(rate: float, kind: str, n: float) -> float:
        assert 1e-4 <= rate <= 1
        assert kind in ("a", "b")
        return rate + (kind == "b") - n

    found = netloom.maximize(
        f, {"rate": "1e-4..1:log", "kind": ["a", "b"], "n": (0, 1)}, init_points=4, n_iter=8, verbose=0
    )
    assert found.max["params"]["kind"] == "b"


def test_bounds_of_numpy_are_ranges_and_whole_numbers_stay_whole() -> None:
    seen: list[tuple[float, int]] = []

    def f(x: float, n: int) -> float:
        seen.append((x, n))
        return x + n

    bounds = {"x": (np.float32(0), np.int64(1)), "n": "1..4:int"}
    netloom.maximize(f, bounds, init_points=9, n_iter=1, sampler="random", verbose=0)
    assert len({x for x, _ in seen}) == 10  # none of two ends
    assert all(type(x) is float and 0 <= x <= 1 for x, _ in seen)
    assert all(type(n) is int for _, n in seen)
    assert {n for _, n in seen} <= {1, 2, 3, 4}


def test_without_a_seed_each_search_has_its_own() -> None:
    options = {"init_points": 2, "n_iter": 0, "verbose": 0, "random_state": None}
    first, second = (netloom.maximize(hill, {"x": (0, 1), "y": (0, 1)}, **options) for _ in range(2))
    assert first.res != second.res


@pytest.mark.parametrize("bounds", [np.array([0.0, 1.0]), object(), {0.0, 1.0}, [object()]])
def test_bounds_of_other_types_are_refused(bounds: Any) -> None:
    with pytest.raises(netloom.NetloomError, match="The space of x"):
        netloom.maximize(hill, {"x": bounds}, verbose=0)


def test_what_is_no_number_is_told() -> None:
    with pytest.raises(netloom.NetloomError, match="hill_of_text must return a number"):
        netloom.maximize(hill_of_text, {"x": (0, 1)}, verbose=0)
    with pytest.raises(netloom.NetloomError, match="NaN"):
        netloom.maximize(lambda x: float("nan"), {"x": (0, 1)}, verbose=0)
    with pytest.raises(netloom.NetloomError, match="nothing to do"):
        netloom.maximize(hill, {"x": (0, 1)}, init_points=0, n_iter=0)
    with pytest.raises(netloom.NetloomError, match="random_state must be a whole number"):
        netloom.maximize(hill, {"x": (0, 1)}, random_state="one")  # type: ignore[arg-type]
    with pytest.raises(netloom.NetloomError, match="first must be the smaller"):
        netloom.maximize(hill, {"x": (1, 0)})


def hill_of_text(x: float) -> str:
    return "high"
