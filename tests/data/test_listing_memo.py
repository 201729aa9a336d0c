"""An archive is listed once as long as it does not change, and anew when it does."""

from __future__ import annotations

import io
import os
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from netloom.data import listing_memo, source_files
from netloom.data.cache import cache_directory
from netloom.data.samples import Source
from netloom.data.sources import open_source

LONG_AGO = 1_600_000_000


@pytest.fixture(autouse=True)
def _remember_small_archives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing_memo, "_FEWEST_SAMPLES", 2)
    monkeypatch.setattr("netloom.data.file_stamps._YOUNG_NANOSECONDS", 0)


def picture(shade: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (shade, shade, shade)).save(buffer, "PNG")
    return buffer.getvalue()


def members(n: int) -> dict[str, bytes]:
    found = {f"top/{part}/{name}/{i}.png": picture(i) for part in ("train", "test") for name in "ab" for i in range(n)}
    return found | {"top/../b/out.png": picture(1), "top/loose.png": picture(2)}


def pack(path: Path, n: int = 3) -> Path:
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in members(n).items():
                archive.writestr(name, content)
        return path
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as tar:
        for name, content in members(n).items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def facts(source: Source) -> tuple[object, ...]:
    return source.class_names, list(source.samples), source.rejected, source.name, source.kind, source.location


@pytest.fixture
def listings(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The archives that were really listed."""
    listed: list[Path] = []
    real = source_files.list_archive
    monkeypatch.setattr(source_files, "list_archive", lambda path: (listed.append(path), real(path))[1])
    return listed


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tar.gz"])
def test_the_second_opening_gives_the_same_without_listing(name: str, tmp_path: Path, listings: list[Path]) -> None:
    path = pack(tmp_path / name)
    first, second = open_source(path), open_source(path)
    assert listings == [path]
    assert facts(first) == facts(second)
    assert len(first.samples) == 12
    assert len(first.rejected) == 2
    assert first.fingerprint() == second.fingerprint()


def test_relative_paths_mean_the_same_archive(
    tmp_path: Path, listings: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    pack(tmp_path / "a.zip")
    first = open_source(tmp_path / "a.zip")
    monkeypatch.chdir(tmp_path)
    second = open_source("a.zip")
    assert len(listings) == 1
    assert [replace(sample, location=None) for sample in first.samples] == [
        replace(sample, location=None) for sample in second.samples
    ]
    assert {location.archive for location in second.locations} == {"a.zip"}


def test_a_changed_archive_is_listed_anew(tmp_path: Path, listings: list[Path]) -> None:
    path = pack(tmp_path / "a.zip")
    open_source(path)
    pack(path, n=5)
    assert len(open_source(path).samples) == 20
    pack(path, n=4)
    os.utime(path, (LONG_AGO, LONG_AGO))
    assert len(open_source(path).samples) == 16
    assert len(listings) == 3


def test_a_young_archive_is_not_remembered(
    tmp_path: Path, listings: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("netloom.data.file_stamps._YOUNG_NANOSECONDS", 3600 * 10**9)
    path = pack(tmp_path / "a.zip")
    open_source(path)
    open_source(path)
    assert len(listings) == 2


@pytest.mark.parametrize(
    "damage",
    [
        "",
        "nonsense",
        "[]",
        '{"version": 1}',
        lambda text: text.replace('"kind": "ZipMember"', '"kind": "Path"'),
        lambda text: text.replace('"labels": [0, ', '"labels": ['),
        lambda text: text.replace('"version": 1', '"version": 0'),
        lambda text: text.replace('"members": [[', '"members": [["x", "y", '),
    ],
)
def test_a_damaged_memo_is_as_none(damage: object, tmp_path: Path, listings: list[Path]) -> None:
    path = pack(tmp_path / "a.zip")
    first = open_source(path)
    [memo] = (cache_directory() / "listings").iterdir()
    text = memo.read_text()
    changed = damage(text) if callable(damage) else damage
    assert changed != text
    memo.write_text(changed)
    assert facts(open_source(path)) == facts(first)
    assert len(listings) == 2


def test_small_archives_leave_no_memo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing_memo, "_FEWEST_SAMPLES", 2000)
    open_source(pack(tmp_path / "a.zip"))
    assert not (cache_directory() / "listings").exists()


def test_a_read_only_cache_does_no_harm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("NETLOOM_CACHE", str(tmp_path / "file" / "cache"))
    path = pack(tmp_path / "a.zip")
    assert facts(open_source(path)) == facts(open_source(path))
