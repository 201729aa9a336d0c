"""Times in words: as they are shown, and as people write them."""

from __future__ import annotations

import re

from netloom.errors import RecipeError

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def duration(seconds: float) -> str:
    """`0.4 s`, `42 s`, `3 min 20 s`, `2 h 5 min`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes == 0:
        return f"{rest} s"
    hours, minutes_left = divmod(minutes, 60)
    return f"{hours} h {minutes_left} min" if hours else f"{minutes} min {rest} s"


def parse_duration(value: float | str | None) -> float | None:
    """Seconds, of a text such as `90s`, `10m`, `1h30m`, or of a bare number, which counts seconds as text, too.

    Raises:
        RecipeError: It is no positive duration.
    """
    if value is None:
        return None
    text = "" if isinstance(value, bool) else str(value).strip().lower()
    seconds = 0.0
    if re.fullmatch(r"\d+(\.\d*)?(e[+-]?\d+)?", text):
        seconds = float(text)
    elif re.fullmatch(r"(\d+(\.\d*)?[smhd]\s*)+", text):
        seconds = sum(float(n) * _UNITS[unit] for n, _, unit in re.findall(r"(\d+(\.\d*)?)([smhd])", text))
    if not 0 < seconds < float("inf"):
        raise RecipeError(
            f"The time limit {value!r} is no duration; write 90s, 10m or 1h30m. A bare number is seconds."
        )
    return seconds
