"""Features on disk: found again, never half of them, never damaged ones, and no more than the cache's limit."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import numpy as np
import pytest

from netloom.data.cache import find_entries
from netloom.data.feature_cache import FeatureCache, Keys

SPACE, OTHER = "0" * 32, "f" * 32


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NETLOOM_CACHE", str(tmp_path / "cache"))


def keys(*numbers: int) -> Keys:
    return np.array([[n % 256, n // 256, *[7] * 14] for n in numbers], dtype=np.uint8)


def features(*numbers: int) -> np.ndarray:
    return np.array([[n, n + 0.25, -n] for n in numbers], dtype=np.float32)


def entries() -> list[Path]:
    return find_entries(f"features-{SPACE}-")


def test_what_was_added_is_found_in_any_order_and_the_rest_is_not() -> None:
    cache = FeatureCache(SPACE)
    assert cache.find(keys(1))[0] is None
    cache.add(keys(1, 2, 3), features(1, 2, 3))
    cache.add(keys(9), features(9))
    found, which = FeatureCache(SPACE).find(keys(9, 5, 2, 1, 2))
    assert which.tolist() == [True, False, True, True, True]
    assert found is not None
    assert np.array_equal(found[which], features(9, 2, 1, 2))
    assert not found[1].any()


def test_spaces_do_not_see_each_other() -> None:
    FeatureCache(SPACE).add(keys(1), features(1))
    assert not FeatureCache(OTHER).find(keys(1))[1].any()


@pytest.mark.parametrize("name", ["", "0" * 31, "../" + "0" * 29, "G" * 32])
def test_a_space_is_a_digest(name: str) -> None:
    with pytest.raises(ValueError, match="32 hexadecimal digits"):
        FeatureCache(name)


def damage_bit(content: bytearray) -> bytearray:
    content[-3] ^= 1  # in a number
    return content


@pytest.mark.parametrize(
    "damage",
    [
        damage_bit,
        lambda content: content[: len(content) // 2],
        lambda content: bytearray(),
        lambda content: bytearray(b"\xff" * 40),
        lambda content: content + bytearray(8),
    ],
    ids=["one bit", "truncated", "empty", "no header", "longer"],
)
def test_damaged_entries_are_not_found_and_give_way_to_new_ones(damage) -> None:
    cache = FeatureCache(SPACE)
    cache.add(keys(1, 2), features(1, 2))
    file = next(entries()[0].iterdir())
    file.write_bytes(bytes(damage(bytearray(file.read_bytes()))))
    assert not cache.find(keys(1, 2))[1].any()
    assert not entries()
    cache.add(keys(1, 2), features(1, 2))
    assert cache.find(keys(1, 2))[1].all()


def test_an_entry_of_another_width_is_not_mixed_in() -> None:
    cache = FeatureCache(SPACE)
    cache.add(keys(1), features(1))
    cache.add(keys(2), np.ones((1, 5), dtype=np.float32))
    found, which = cache.find(keys(1, 2))
    assert which.sum() == 1
    assert found is not None
    assert len(entries()) == 1


def test_many_entries_become_one() -> None:
    cache = FeatureCache(SPACE)
    for number in range(12):
        cache.add(keys(number, 100), features(number, 100))
    assert len(entries()) <= 5
    found, which = cache.find(keys(*range(12), 100))
    assert which.all()
    assert np.array_equal(found, features(*range(12), 100))


def test_rows_are_not_written_again_at_every_merging(monkeypatch: pytest.MonkeyPatch) -> None:
    """64 entries of one size: 63 of them are written a second time, and none a third time."""
    written = []
    original = Path.write_bytes

    def watched(path: Path, content: bytes) -> int:
        written.append(len(content))
        return original(path, content)

    monkeypatch.setattr(Path, "write_bytes", watched)
    cache = FeatureCache(SPACE)
    for number in range(64):
        rows = range(100 * number, 100 * number + 100)
        cache.add(keys(*rows), np.full((100, 50), number, dtype=np.float32))
    one = written[0]
    assert 64 * one < sum(written) < 2.1 * 64 * one
    assert len(entries()) <= 16
    found, which = cache.find(keys(*range(6400)))
    assert which.all()
    assert found is not None
    assert np.array_equal(found[:, 7], np.arange(6400) // 100)


def test_too_little_memory_costs_the_cache_alone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def too_much(*_: object) -> None:
        raise MemoryError

    cache = FeatureCache(SPACE)
    with monkeypatch.context() as patched:
        patched.setattr(FeatureCache, "_merge", too_much)
        cache.add(keys(1), features(1))
    assert "stay in many small files: too little memory" in caplog.text
    assert cache.find(keys(1))[1].all()
    monkeypatch.setattr(FeatureCache, "_write", too_much)
    cache.add(keys(2), features(2))
    assert "not kept for later trainings: too little memory" in caplog.text


def test_several_at_once() -> None:
    def work(start: int) -> None:
        for number in range(start, start + 15):
            FeatureCache(SPACE).add(keys(number), features(number))
            FeatureCache(SPACE).find(keys(number))

    threads = [threading.Thread(target=work, args=(start,)) for start in (0, 5, 10, 15)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found, which = FeatureCache(SPACE).find(keys(*range(30)))
    # A merging may lose what another one merges at the same time; it is computed again then, and never wrong.
    assert found is not None
    assert which.sum() > 15
    assert np.array_equal(found[which], features(*np.flatnonzero(which).tolist()))


def test_features_count_for_the_limit_of_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NETLOOM_CACHE_LIMIT_GB", "0.00002")  # 20 kB
    old = np.zeros((1, 2_000), dtype=np.float32)
    FeatureCache(SPACE).add(keys(1), old)
    from netloom.data import cache as entries_of_cache

    monkeypatch.setattr(entries_of_cache, "_in_use", set())  # as another process sees them
    for entry in entries():
        os.utime(entry, (1, 1))
    monkeypatch.setattr(entries_of_cache, "_in_use", set())
    FeatureCache(OTHER).add(keys(1), np.zeros((1, 4_000), dtype=np.float32))
    assert not entries()
    assert FeatureCache(OTHER).find(keys(1))[1].all()


def test_a_full_disk_costs_the_cache_alone(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def full(*_: object, **__: object) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("netloom.data.feature_cache.build_entry", full)
    FeatureCache(SPACE).add(keys(1), features(1))
    assert "not kept" in caplog.text
