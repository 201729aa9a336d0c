"""Columns of a training's history."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt


def column(history: Sequence[Mapping[str, float | None]], name: str) -> npt.NDArray[np.float64]:
    """One quantity of every epoch, float64 `[epochs]`; NaN where it is missing or not finite."""
    values = np.array([row.get(name) for row in history], dtype=np.float64)
    return np.where(np.isfinite(values), values, np.nan)
