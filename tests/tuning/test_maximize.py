from __future__ import annotations

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


def test_what_is_no_number_is_told() -> None:
    with pytest.raises(netloom.NetloomError, match="hill_of_text must return a number"):
        netloom.maximize(hill_of_text, {"x": (0, 1)}, verbose=0)
    with pytest.raises(netloom.NetloomError, match="NaN"):
        netloom.maximize(lambda x: float("nan"), {"x": (0, 1)}, verbose=0)
    with pytest.raises(netloom.NetloomError, match="nothing to do"):
        netloom.maximize(hill, {"x": (0, 1)}, init_points=0, n_iter=0)
    with pytest.raises(netloom.NetloomError, match="first must be the smaller"):
        netloom.maximize(hill, {"x": (1, 0)})


def hill_of_text(x: float) -> str:
    return "high"
