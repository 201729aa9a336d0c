from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from netloom.errors import NetloomError
from netloom.files import json_text, read_json, write_atomically, write_json


def test_lists_of_numbers_are_one_line_and_everything_reads_back() -> None:
    value = {
        "matrix": [[1, 2], [3, -4]],
        "floats": [1e-07, 2.5, -3e20],
        "names": ["[\n1,\n2]", "고양이 [1,   2]"],
        "empty": [],
        "mixed": [1, "a", None, {"b": [0]}],
    }
    text = json_text(value)
    assert json.loads(text) == value
    assert "[1, 2]" in text
    assert "[1e-07, 2.5, -3e+20]" in text


def test_what_json_lacks_is_null() -> None:
    assert json.loads(json_text({"a": [math.nan, 1.0], "b": (math.inf,)})) == {"a": [None, 1.0], "b": [None]}


def test_files_are_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "값.json"
    write_json(path, {"a": 1})
    write_json(path, {"a": 2})
    assert read_json(path) == {"a": 2}
    assert list(tmp_path.iterdir()) == [path]
    write_atomically(path, b"{")
    with pytest.raises(NetloomError, match="damaged"):
        read_json(path)
