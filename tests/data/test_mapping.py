from __future__ import annotations

import mmap
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from netloom import memory
from netloom.data import mapping
from netloom.data.imageset import ImageSet


@pytest.fixture
def file(tmp_path: Path) -> Path:
    pixels = np.arange(200 * 20 * 30 * 3, dtype=np.uint32).astype(np.uint8).reshape(200, 20, 30, 3)
    np.save(tmp_path / "pixels.npy", pixels)
    return tmp_path / "pixels.npy"


def _limit(monkeypatch: pytest.MonkeyPatch, n_bytes: int) -> None:
    monkeypatch.setattr(mapping, "memory_limit_bytes", lambda: n_bytes)


def test_what_fits_may_be_written_and_its_file_stays(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = file.stat().st_size
    _limit(monkeypatch, 2 * size)
    mapping.map_pixels(file)[:] = 7
    assert (np.load(file) != 7).any()
    _limit(monkeypatch, 2 * size - 2)
    assert not mapping.map_pixels(file).flags.writeable


def test_images_are_the_mapping_itself_where_they_exceed_the_memory(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _limit(monkeypatch, 1000)
    pixels = mapping.map_pixels(file)
    image_set = ImageSet.from_arrays(pixels, np.arange(200) % 2)
    assert image_set.images.data_ptr() == pixels.ctypes.data
    assert image_set.images.is_contiguous(memory_format=torch.channels_last)


def test_read_only_images_that_fit_are_copied(file: Path) -> None:
    pixels = np.load(file, mmap_mode="r")
    image_set = ImageSet.from_arrays(pixels, np.arange(200) % 2)
    image_set.images.fill_(9)
    assert (np.load(file) != 9).any()


def test_whole_pages_around_every_picture_are_announced(monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.zeros(50, 3, 40, 60, dtype=torch.uint8).contiguous(memory_format=torch.channels_last)
    announced: list[tuple[int, int]] = []
    monkeypatch.setattr(mapping, "_madvise", lambda: lambda address, length: announced.append((address, length)))
    mapping.will_need(images, np.array([30, 2, 49]))
    assert [address % mmap.PAGESIZE for address, _ in announced] == [0, 0, 0]
    for row, (address, length) in zip((2, 30, 49), announced, strict=True):
        start = images.data_ptr() + row * 7200
        assert 0 <= start - address < mmap.PAGESIZE
        assert address + length == start + 7200


def test_announcing_does_no_harm(file: Path) -> None:
    """Also where the memory is no file's, and at its ends."""
    mapped = ImageSet.from_arrays(mapping.map_pixels(file), np.arange(200) % 2).images
    for images in (mapped, mapped.clone(memory_format=torch.preserve_format)):
        mapping.will_need(images, np.array([0, 199]))
        assert torch.equal(images, mapped)
    mapping.will_need(mapped[:0], np.array([], dtype=np.int64))


@pytest.mark.skipif(not hasattr(mmap, "MADV_WILLNEED"), reason="this system cannot be told what is read next")
def test_the_system_takes_the_advice(file: Path) -> None:
    """`madvise` returns 0 for pages of a mapping, -1 for an address that is not at a page's start."""
    advise = mapping._madvise()
    assert advise is not None
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        address = np.frombuffer(mapped, dtype=np.uint8).ctypes.data
        assert advise(address, 100) == 0
        assert advise(address + 1, 100) == -1


def test_the_limit_is_the_machines_or_less() -> None:
    limit = memory.memory_limit_bytes()
    assert limit > 2**26
    if sys.platform == "linux":
        total_kb = int(Path("/proc/meminfo").read_text().split()[1])
        assert limit <= total_kb * 1024


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such limits")
@pytest.mark.parametrize("kind", ["RLIMIT_DATA", "RLIMIT_AS"])
def test_a_limit_of_the_process_counts(kind: str) -> None:
    script = (
        "import resource; from netloom.memory import memory_limit_bytes;"
        f"resource.setrlimit(resource.{kind}, (2**28, resource.getrlimit(resource.{kind})[1]));"
        "print(memory_limit_bytes())"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert int(done.stdout) == 2**28


def test_no_more_memory_is_free_than_there_is() -> None:
    assert 0 < memory.free_memory_bytes() <= memory.memory_limit_bytes()


@pytest.mark.parametrize("version", [1, 2])
def test_what_a_container_has_used_is_not_free(version: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """But for the pages of files, which it gives back; 300 MB of limit, 250 used, of which 100 are such pages."""
    folder, limit, used, pages = {
        1: (tmp_path / "memory", "limit_in_bytes", "usage_in_bytes", "total_inactive_file"),
        2: (tmp_path, "max", "current", "inactive_file"),
    }[version]
    folder.mkdir(exist_ok=True)
    (folder / f"memory.{limit}").write_text(f"{300 * 10**6}\n")
    (folder / f"memory.{used}").write_text(f"{250 * 10**6}\n")
    (folder / "memory.stat").write_text(f"anon 1\n{pages} {100 * 10**6}\n")
    monkeypatch.setattr(memory, "_CONTAINER", tmp_path)
    assert memory.memory_limit_bytes() == 300 * 10**6
    assert memory.free_memory_bytes() == 150 * 10**6


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_what_the_process_has_used_of_its_limit_is_not_free() -> None:
    script = (
        "import resource; from netloom.memory import free_memory_bytes;"
        "resource.setrlimit(resource.RLIMIT_DATA, (2**28, resource.getrlimit(resource.RLIMIT_DATA)[1]));"
        "before = free_memory_bytes(); taken = b'x' * 2**26; print(before, before - free_memory_bytes())"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    before, taken = map(int, done.stdout.split())
    assert before < 2**28
    assert 2**26 <= taken < 2**27
