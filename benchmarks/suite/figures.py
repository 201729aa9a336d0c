"""The arithmetic of the tables: medians, ratios within turns, geometric means."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

FASTER_TENSORFLOW = "faster precision of Keras on TensorFlow"
FASTEST_KERAS, FASTEST_PYTORCH = "fastest Keras", "fastest PyTorch loop"
FAMILIES: dict[str, tuple[str, ...]] = {
    FASTER_TENSORFLOW: ("Keras TensorFlow", "Keras TensorFlow bfloat16"),
    FASTEST_KERAS: ("Keras TensorFlow", "Keras TensorFlow bfloat16", "Keras TensorFlow uncached", "Keras torch"),
    FASTEST_PYTORCH: ("PyTorch", "PyTorch workers", "PyTorch tuned"),
}


def summary(values: Sequence[float]) -> dict[str, Any]:
    """Median, extremes and n of one figure's measurements, with the measurements in the order of the turns."""
    return {
        "median": statistics.median(values),
        "minimum": min(values),
        "maximum": max(values),
        "n": len(values),
        "values": list(values),
    }


def geometric_mean(ratios: Sequence[float]) -> float:
    """The n-th root of the product; for ratios, since ratios of 2 and 1/2 are as good as none.

    Raises:
        ValueError: There is none, or one is not above 0.
    """
    if not ratios or min(ratios) <= 0:
        raise ValueError(f"a geometric mean is of numbers above 0, got {list(ratios)}")
    return math.exp(statistics.fmean(math.log(ratio) for ratio in ratios))


def times_better(ours: Mapping[str, Any], theirs: Mapping[str, Any], *, more_is_better: bool) -> float:
    """How many times better `ours` is than `theirs`: the median over turns of the ratio within each turn.

    Both were measured within seconds of each other in a turn, so that a machine that slows down in between changes
    the ratio less than the figures. Where one has fewer turns than the other, the turns both have are compared.
    """
    pairs = list(zip(ours["values"], theirs["values"], strict=False))
    return statistics.median(a / b if more_is_better else b / a for a, b in pairs)


def measured(contenders: Mapping[str, Mapping[str, Any]], figure: str) -> dict[str, Mapping[str, Any]]:
    """The summaries of one figure, of those contenders that have it."""
    return {name: result[figure] for name, result in contenders.items() if figure in result}


def ratios(
    contenders: Mapping[str, Mapping[str, Any]], figure: str, *, more_is_better: bool, reference: str = "netloom"
) -> dict[str, float]:
    """How many times better the reference is than each of the others; empty where it was not measured itself."""
    found = measured(contenders, figure)
    if reference not in found:
        return {}
    return {
        name: times_better(found[reference], theirs, more_is_better=more_is_better)
        for name, theirs in found.items()
        if name != reference
    }


def faster_peers(by_peer: Mapping[str, float]) -> list[str]:
    """Whoever the reference is not as good as, the best first."""
    return sorted((name for name, ratio in by_peer.items() if ratio < 1), key=lambda name: by_peer[name])


def family_ratios(by_peer: Mapping[str, float]) -> dict[str, float]:
    """For each family of contenders the smallest ratio: that to its fastest member."""
    found = {}
    for family, members in FAMILIES.items():
        there = [by_peer[name] for name in members if name in by_peer]
        if there:
            found[family] = min(there)
    return found
