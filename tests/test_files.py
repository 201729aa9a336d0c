from __future__ import annotations

import errno
import json
import math
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from netloom.errors import NetloomError
from netloom.files import json_text, read_json, with_home, write_atomically, write_json


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


@pytest.mark.skipif(os.name != "posix", reason="elsewhere folders are not flushed")
@pytest.mark.parametrize("refused", ["open", "fsync"])
def test_a_folder_that_cannot_be_flushed_is_no_reason_not_to_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: str
) -> None:
    """Some shared folders answer EINVAL or EIO; one that cannot be read cannot be opened for it."""
    own_open, own_fsync, asked = os.open, os.fsync, []

    def open_(path: Any, *args: Any, **options: Any) -> int:
        if refused == "open" and Path(path) == tmp_path:
            asked.append(path)
            raise PermissionError(errno.EACCES, "Permission denied")
        return own_open(path, *args, **options)

    def fsync(descriptor: int) -> None:
        if refused == "fsync" and stat.S_ISDIR(os.fstat(descriptor).st_mode):
            asked.append(descriptor)
            raise OSError(errno.EINVAL, "Invalid argument")
        own_fsync(descriptor)

    monkeypatch.setattr(os, "open", open_)
    monkeypatch.setattr(os, "fsync", fsync)
    write_atomically(tmp_path / "a.json", "{}")
    assert asked
    assert read_json(tmp_path / "a.json") == {}
    assert list(tmp_path.iterdir()) == [tmp_path / "a.json"]


def test_a_tilde_that_stands_for_no_home_is_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/somewhere")
    monkeypatch.setenv("USERPROFILE", "/somewhere")
    assert with_home("~/a") == Path("/somewhere/a")
    assert with_home("a/~") == Path("a/~")

    def no_home(_: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", no_home)
    assert with_home("~nobody/a") == Path("~nobody/a")
