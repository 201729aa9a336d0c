"""Decoding everything: isolation, archives, the cache."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import logging
import os
import signal
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from netloom.data import cache, decoding, worker_pool
from netloom.data.decoded_entry import DecodedPictures
from netloom.data.decoding import decode_all, suggest_image_size
from netloom.data.location import (
    FileLocation,
    Location,
    StreamedTarMember,
    TarMember,
    UnreadablePictureError,
    ZipMember,
    from_json,
    read_bytes,
    to_json,
)
from netloom.errors import DataError
from picture_corpus import CorpusFile, colours, encoded, endless_jpeg, greys, write_corpus

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="finds the workers through /proc")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> list[CorpusFile]:
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture
def pictures(tmp_path: Path) -> list[Location]:
    """Sixty different pictures of 12 x 8 pixels; the first one's first pixel is (0, 0, 0), the next's (1, 1, 1)…"""
    return _write_pictures(tmp_path / "pictures", 60)


def _write_pictures(folder: Path, n: int) -> list[Location]:
    folder.mkdir()
    for i in range(n):
        (folder / f"{i:03}.png").write_bytes(encoded(np.full((8, 12, 3), i, dtype=np.uint8), "PNG"))
    return [FileLocation(str(path)) for path in sorted(folder.iterdir())]


def _decode(locations: list[Location], **options: Any) -> DecodedPictures:
    defaults: dict[str, Any] = {"image_size": (8, 12), "resize": "stretch", "channels": 3, "fingerprint": "f"}
    return decode_all(locations, **{**defaults, "jobs": 2, **options})


def _entries() -> list[Path]:
    folder = cache.cache_directory() / "pictures"
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _workers(parent: int | None = None) -> list[int]:
    """Process ids of the decode workers that `parent` (this process) started and that still run."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError):
            after_name = (folder / "stat").read_text().rpartition(")")[2].split()
            is_child = int(after_name[1]) == (parent or os.getpid()) and after_name[0] != "Z"
            if is_child and b"decode_worker" in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
    return found


def _digests(files: list[CorpusFile]) -> dict[str, str]:
    regular = [f.path for f in files if f.path.is_file() and f.path.stat().st_size < 2**27]
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in regular}


def test_corpus_loses_exactly_its_bad_files_and_is_left_as_it_was(corpus: list[CorpusFile]) -> None:
    before = _digests(corpus)
    start = time.monotonic()
    decoded = _decode([FileLocation(str(f.path)) for f in corpus], image_size=(20, 30), fingerprint="corpus")
    assert time.monotonic() - start < 60
    assert _digests(corpus) == before
    assert [corpus[i].path.name for i, _ in decoded.rejected] == [f.path.name for f in corpus if not f.valid]
    assert all(reason for _, reason in decoded.rejected)
    assert decoded.readable.tolist() == [i for i, f in enumerate(corpus) if f.valid]
    assert len(decoded.pixels) == len(decoded.widths) == len(decoded.modes) == len(decoded.content_hashes)
    for row, index in enumerate(decoded.readable):
        file = corpus[index]
        if file.expected is None:
            continue
        assert decoded.content_hashes[row] == hashlib.blake2b(file.path.read_bytes(), digest_size=16).hexdigest()
        assert (decoded.heights[row], decoded.widths[row]) == file.expected.shape[:2], file.path.name
        reference = Image.fromarray(np.ascontiguousarray(file.expected)).resize((30, 20), Image.Resampling.BILINEAR)
        difference = decoded.pixels[row].astype(int) - np.asarray(reference)
        assert np.abs(difference).max() <= file.tolerance + 1, file.path.name


def test_pixels_are_a_mapped_copy_that_never_reaches_the_cache(pictures: list[Location]) -> None:
    decoded = _decode(pictures)
    assert isinstance(decoded.pixels, np.memmap)
    decoded.pixels[:] = 77
    again = _decode(pictures)
    assert again.pixels[:, 0, 0, 0].tolist() == list(range(60))


def test_rows_close_up_where_pictures_are_left_out(pictures: list[Location]) -> None:
    for i in (0, 1, 7, 30, 59):
        Path(pictures[i].path).write_bytes(b"")  # type: ignore[union-attr]
    decoded = _decode(pictures)
    kept = [i for i in range(60) if i not in (0, 1, 7, 30, 59)]
    assert decoded.readable.tolist() == kept
    assert decoded.pixels[:, 7, 11, 2].tolist() == kept
    assert [i for i, _ in decoded.rejected] == [0, 1, 7, 30, 59]


def test_nothing_readable_gives_no_rows(tmp_path: Path) -> None:
    (tmp_path / "x.jpg").write_bytes(b"no")
    decoded = _decode([FileLocation(str(tmp_path / "x.jpg"))], channels=None)
    assert decoded.pixels.shape == (0, 8, 12, 3)
    assert len(decoded.rejected) == 1


def test_progress_ends_at_all(pictures: list[Location]) -> None:
    seen: list[tuple[int, int]] = []
    _decode(pictures, on_progress=lambda done, total: seen.append((done, total)))
    assert seen == sorted(seen)
    assert seen[-1] == (60, 60)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resize": "strech"}, "Did you mean 'stretch'"),
        ({"image_size": (0, 5)}, "at least 1"),
        ({"channels": 4}, "channels must be"),
    ],
)
def test_impossible_arguments_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        _decode([], **options)


# Archives


def _zipped(path: Path, compression: int = zipfile.ZIP_DEFLATED) -> list[Location]:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for i in range(20):
            archive.writestr(f"{i}.png", encoded(np.full((8, 12, 3), i, dtype=np.uint8), "PNG"))
    return [ZipMember(str(path), f"{i}.png") for i in range(20)]


def _tarred(path: Path, mode: str) -> list[tarfile.TarInfo]:
    with tarfile.open(path, mode) as archive:
        for i in range(20):
            data = encoded(np.full((8, 12, 3), i, dtype=np.uint8), "PNG")
            info = tarfile.TarInfo(f"{i}.png")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    with tarfile.open(path) as archive:
        return archive.getmembers()


def test_archives_give_the_same_pictures_as_files(tmp_path: Path) -> None:
    plain = str(tmp_path / "a.tar")
    sources: list[list[Location]] = [
        _zipped(tmp_path / "stored.zip", zipfile.ZIP_STORED),
        _zipped(tmp_path / "deflated.zip"),
        [TarMember(plain, info.offset_data, info.size) for info in _tarred(Path(plain), "w")],
    ]
    for ending in ("gz", "bz2", "xz"):
        path = tmp_path / f"a.tar.{ending}"
        members = _tarred(path, f"w:{ending}")
        sources.append([StreamedTarMember(str(path), info.name, info.size) for info in members][::-1])
    for number, source in enumerate(sources):
        decoded = _decode(source, fingerprint=str(number))
        in_order = list(range(20)) if number < 3 else list(range(20))[::-1]
        assert decoded.rejected == []
        assert decoded.pixels[:, 0, 0, 0].tolist() == in_order
        picture = encoded(np.full((8, 12, 3), in_order[4], dtype=np.uint8), "PNG")
        assert read_bytes(source[4]) == picture


def test_broken_zip_members_are_left_out(tmp_path: Path) -> None:
    locations = _zipped(tmp_path / "a.zip", zipfile.ZIP_STORED)
    data = bytearray((tmp_path / "a.zip").read_bytes())
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        offsets = [info.header_offset for info in archive.filelist]
    directory = data.index(b"PK\x01\x02")
    entries = [directory]
    for _ in range(3):
        entries.append(data.index(b"PK\x01\x02", entries[-1] + 4))
    data[offsets[0] + 6] |= 1  # encrypted, in the member's own header and in the directory
    data[entries[0] + 8] |= 1
    data[offsets[1] + 8] = data[entries[1] + 10] = 99  # an unknown compression method
    data[offsets[2] + 60] ^= 0xFF  # contents that miss their checksum
    data[entries[3] + 24 : entries[3] + 28] = (2**31).to_bytes(4, "little")  # says to be 2 GiB large
    (tmp_path / "a.zip").write_bytes(data)
    locations.append(ZipMember(str(tmp_path / "a.zip"), "absent.png"))
    locations.append(ZipMember(str(tmp_path / "absent.zip"), "0.png"))
    decoded = _decode(locations)
    reasons = dict(decoded.rejected)
    assert sorted(reasons) == [0, 1, 2, 3, 20, 21]
    for index, word in {0: "encrypted", 1: "method", 2: "CRC", 3: "2048 MiB", 20: "no member", 21: "opened"}.items():
        assert word in reasons[index]


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_members_behind_the_damage_of_a_compressed_tar_are_left_out(tmp_path: Path, share: float) -> None:
    path = tmp_path / "a.tar.gz"
    generator = np.random.Generator(np.random.Philox(5))
    with tarfile.open(path, "w:gz") as archive:
        for i in range(20):
            data = encoded(generator.integers(0, 256, (40, 40, 3), dtype=np.uint8), "PNG")
            info = tarfile.TarInfo(f"{i}.png")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    with tarfile.open(path) as archive:
        locations = [StreamedTarMember(str(path), info.name, info.size) for info in archive]
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    decoded = _decode(list(locations))
    assert len(decoded.readable) + len(decoded.rejected) == 20
    assert decoded.readable.tolist() == list(range(len(decoded.readable)))
    assert (len(decoded.readable) > 3) == (share > 0)
    assert all("damaged" in reason or "cannot be" in reason for _, reason in decoded.rejected)


@pytest.mark.parametrize(
    "location",
    [
        FileLocation(os.fsdecode("나/x\udcff.png".encode(errors="surrogateescape"))),
        ZipMember("a.zip", "b/c.png"),
        TarMember("a.tar", 512, 99),
        StreamedTarMember("a.tar.gz", "b", 3),
    ],
)
def test_locations_survive_json(location: Location) -> None:
    assert from_json(json.loads(json.dumps(to_json(location)))) == location


@pytest.mark.parametrize("value", [{}, {"kind": "url", "path": "x"}, {"kind": "file"}, {"kind": "file", "p": "x"}])
def test_other_json_is_no_location(value: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="location"):
        from_json(value)


# Grey or colour, and which size


def test_channels_follow_the_pictures(tmp_path: Path) -> None:
    """Grey only if all are, also where the coloured one is not among those probed."""
    (tmp_path / "p").mkdir()
    for i in range(250):
        (tmp_path / "p" / f"{i:03}.png").write_bytes(encoded(greys(), "PNG"))
    paths: list[Location] = [FileLocation(str(path)) for path in sorted((tmp_path / "p").iterdir())]
    assert _decode(paths, channels=None, fingerprint="grey").pixels.shape[3] == 1
    (tmp_path / "p" / "001.png").write_bytes(encoded(colours(), "PNG"))
    decoded = _decode(paths, channels=None, fingerprint="one coloured")
    assert decoded.pixels.shape == (250, 8, 12, 3)
    assert np.ptp(decoded.pixels[1].astype(int), axis=-1).max() > 50
    assert len(_entries()) == 2


def test_suggested_size_is_the_common_small_one_or_128(tmp_path: Path) -> None:
    locations = _write_pictures(tmp_path / "p", 5)
    assert suggest_image_size(locations) == (8, 12)
    (tmp_path / "p" / "000.png").write_bytes(b"unreadable ones do not count")
    assert suggest_image_size(locations) == (8, 12)
    (tmp_path / "p" / "001.png").write_bytes(encoded(np.zeros((9, 12), dtype=np.uint8), "PNG"))
    assert suggest_image_size(locations) == (128, 128)
    (tmp_path / "large.png").write_bytes(encoded(np.zeros((97, 97), dtype=np.uint8), "PNG"))
    assert suggest_image_size([FileLocation(str(tmp_path / "large.png"))]) == (128, 128)


def test_the_suggested_size_is_remembered_for_the_same_content(tmp_path: Path, no_workers: Callable[[], None]) -> None:
    locations = _write_pictures(tmp_path / "p", 5)
    assert suggest_image_size(locations, fingerprint="f") == (8, 12)
    no_workers()
    assert suggest_image_size(locations, fingerprint="f") == (8, 12)
    with pytest.raises(AssertionError, match="worker"):
        suggest_image_size(locations, fingerprint="other")
    (memo,) = (cache.cache_directory() / "sizes").iterdir()
    for damaged in ("[8]", '["8", 12]', "[0, 12]", "{", "null"):
        memo.write_text(damaged)
        with pytest.raises(AssertionError, match="worker"):
            suggest_image_size(locations, fingerprint="f")


# Isolation


@linux_only
def test_a_killed_worker_loses_no_picture(pictures: list[Location]) -> None:
    killed = []

    def kill_once(done: int, total: int) -> None:
        if not killed:
            killed.extend(_workers())
            for pid in killed:
                os.kill(pid, signal.SIGKILL)

    decoded = _decode(pictures, on_progress=kill_once)
    assert killed
    assert decoded.rejected == []
    assert decoded.pixels[:, 0, 0, 0].tolist() == list(range(60))


@linux_only
def test_a_suspended_worker_loses_no_picture(pictures: list[Location]) -> None:
    stopped = []

    def stop_once(done: int, total: int) -> None:
        if not stopped:
            stopped.extend(_workers()[:1])
            for pid in stopped:
                os.kill(pid, signal.SIGSTOP)

    decoded = _decode(pictures, on_progress=stop_once, picture_timeout_seconds=2, jobs=1)
    assert stopped
    assert decoded.rejected == []
    assert decoded.pixels[:, 0, 0, 0].tolist() == list(range(60))


@pytest.fixture
def with_an_endless_one(tmp_path: Path, pictures: list[Location]) -> list[Location]:
    """The pictures with one in their midst that takes 20 s to decode."""
    (tmp_path / "endless.jpg").write_bytes(endless_jpeg())
    return [*pictures[:30], FileLocation(str(tmp_path / "endless.jpg")), *pictures[30:]]


def test_a_picture_that_takes_too_long_costs_itself_only(with_an_endless_one: list[Location]) -> None:
    decoded = _decode(with_an_endless_one, picture_timeout_seconds=1)
    assert decoded.rejected == [(30, "decoding it took longer than 1 s")]
    assert decoded.pixels[:, 0, 0, 0].tolist() == list(range(60))


@pytest.fixture
def as_if_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """No time need pass before what failed for a passing reason is tried again."""
    monkeypatch.setattr(decoding, "_SECONDS_BEFORE_ANOTHER_TRY", 0.0)


def test_a_picture_that_took_too_long_is_tried_again_later(
    with_an_endless_one: list[Location], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a busy machine any picture can take too long; it must not be missing from the cache for good."""
    assert len(_decode(with_an_endless_one, picture_timeout_seconds=1).rejected) == 1
    (tmp_path / "endless.jpg").write_bytes(encoded(np.full((8, 12, 3), 99, dtype=np.uint8), "PNG"))
    assert len(_decode(with_an_endless_one).rejected) == 1  # at once it would fail again
    monkeypatch.setattr(decoding, "_SECONDS_BEFORE_ANOTHER_TRY", 0.0)
    decoded = _decode(with_an_endless_one)
    assert decoded.rejected == []
    assert decoded.pixels[:, 0, 0, 0].tolist() == [*range(30), 99, *range(30, 60)]
    assert not list(cache.cache_directory().rglob("again.json"))


@pytest.mark.usefixtures("as_if_later")
def test_a_picture_that_never_ends_is_tried_twice_more(with_an_endless_one: list[Location]) -> None:
    spent = []
    for _ in range(5):
        started = time.monotonic()
        assert _decode(with_an_endless_one, picture_timeout_seconds=1).rejected[0][0] == 30
        spent.append(time.monotonic() - started)
    assert min(spent[:3]) > 1 > max(spent[3:])


@pytest.mark.usefixtures("as_if_later")
def test_a_damaged_picture_is_not_tried_again(pictures: list[Location], tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"not a picture")
    locations = [*pictures, FileLocation(str(tmp_path / "broken.png"))]
    assert len(_decode(locations).rejected) == 1
    assert not list(cache.cache_directory().rglob("again.json"))


@pytest.mark.usefixtures("as_if_later")
def test_a_file_that_was_away_is_tried_again(pictures: list[Location], tmp_path: Path) -> None:
    """As are those that a network drive or another program withheld: that says nothing of the picture."""
    locations = [*pictures, FileLocation(str(tmp_path / "away.png"))]
    assert _decode(locations).rejected == [(60, "there is no such file")]
    (tmp_path / "away.png").write_bytes(encoded(np.full((8, 12, 3), 99, dtype=np.uint8), "PNG"))
    assert _decode(locations).pixels[:, 0, 0, 0].tolist() == [*range(60), 99]


@pytest.mark.usefixtures("as_if_later")
def test_a_try_for_which_there_is_no_room_costs_nothing(
    pictures: list[Location], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The decoded pictures stay, and the picture keeps its tries."""
    locations = [*pictures, FileLocation(str(tmp_path / "away.png"))]
    _decode(locations)
    [again] = cache.cache_directory().rglob("again.json")
    before = again.read_bytes()

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(decoding, "reserve_pixels", full)
        for _ in range(3):
            assert len(_decode(locations).pixels) == 60
    assert again.read_bytes() == before


@linux_only
def test_a_picture_that_crashes_its_decoder_costs_itself_only(with_an_endless_one: list[Location]) -> None:
    """Every worker that has computed for 0.8 s, as only the endless picture makes it, is ended by SIGSEGV."""
    done = threading.Event()

    def crash_busy_ones() -> None:
        while not done.wait(0.05):
            for pid in _workers():
                with contextlib.suppress(OSError):
                    after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                    if int(after_name[11]) / os.sysconf("SC_CLK_TCK") > 0.8:
                        os.kill(pid, signal.SIGSEGV)

    thread = threading.Thread(target=crash_busy_ones)
    thread.start()
    try:
        decoded = _decode(with_an_endless_one)
    finally:
        done.set()
        thread.join()
    assert decoded.rejected == [(30, "its decoder crashed, more than once (SIGSEGV)")]
    assert decoded.pixels[:, 0, 0, 0].tolist() == list(range(60))


@linux_only
@pytest.mark.parametrize("interruption", [KeyboardInterrupt, ValueError])
def test_an_interruption_leaves_no_entry_and_no_worker(
    pictures: list[Location], interruption: type[BaseException]
) -> None:
    def interrupt(done: int, total: int) -> None:
        assert _workers()
        raise interruption

    with pytest.raises(interruption):
        _decode(pictures, on_progress=interrupt)
    assert _workers() == []
    assert _entries() == []
    assert len(_decode(pictures).pixels) == 60


_SCRIPT = """
import sys
from pathlib import Path
from netloom.data.decoding import decode_all
from netloom.data.location import FileLocation
paths = [FileLocation(str(path)) for path in sorted(Path(sys.argv[1]).iterdir())]
report = lambda done, total: print(done, flush=True)
pictures = decode_all(paths, image_size=(8, 12), resize="stretch", channels=3, fingerprint="f", on_progress=report)
print("sum", int(pictures.pixels.sum()), flush=True)
"""  # on purpose without `if __name__ == "__main__"`, as users write scripts


def _run_script(tmp_path: Path, folder: Path) -> subprocess.Popen[str]:
    (tmp_path / "script.py").write_text(_SCRIPT)
    command = [sys.executable, str(tmp_path / "script.py"), str(folder)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_two_processes_may_build_the_same_entry_at_once(tmp_path: Path, pictures: list[Location]) -> None:
    running = [_run_script(tmp_path, tmp_path / "pictures") for _ in range(2)]
    outputs = [process.communicate(timeout=60)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0]
    assert [output.split()[-1] for output in outputs] == [str(sum(range(60)) * 8 * 12 * 3)] * 2
    assert len(_entries()) == 1


@linux_only
def test_no_worker_outlives_a_killed_parent(tmp_path: Path) -> None:
    _write_pictures(tmp_path / "pictures", 60)
    for i in range(4):
        (tmp_path / "pictures" / f"zz{i}.jpg").write_bytes(endless_jpeg())
    process = _run_script(tmp_path, tmp_path / "pictures")
    assert process.stdout is not None
    process.stdout.readline()
    workers = _workers(process.pid)
    process.kill()
    process.communicate()
    assert workers
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() and _is_running(pid) for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not [pid for pid in workers if Path(f"/proc/{pid}").exists() and _is_running(pid)]
    assert all(entry.name.endswith(".partial") for entry in _entries())


def _is_running(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def test_files_in_the_current_folder_are_not_imported(
    tmp_path: Path, pictures: list[Location], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("json", "queue", "numpy", "PIL"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('imported by mistake')")
    monkeypatch.chdir(tmp_path)
    assert len(_decode(pictures).pixels) == 60


def test_a_worker_that_cannot_start_is_reported(pictures: list[Location], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if "site-packages" not in entry])
    with pytest.raises(DataError, match=r"could not be started.*ModuleNotFoundError"):
        _decode(pictures)
    assert _entries() == []


# The cache


@pytest.fixture
def no_workers(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Call it, and from then on no worker can be started."""

    def forbid(*_: object) -> None:
        raise AssertionError("a worker was started")

    return lambda: monkeypatch.setattr(worker_pool.WorkerPool, "run", forbid)


def test_second_call_maps_the_entry_without_a_worker(pictures: list[Location], no_workers: Callable[[], None]) -> None:
    Path(pictures[3].path).write_bytes(b"")  # type: ignore[union-attr]
    first = _decode(pictures, channels=None)
    no_workers()
    second = _decode(pictures, channels=None)
    for name in vars(first):
        np.testing.assert_array_equal(getattr(second, name), getattr(first, name))
    with pytest.raises(AssertionError, match="worker"):
        _decode(pictures, channels=None, fingerprint="changed")


def test_sizes_resizing_and_channels_are_entries_of_their_own(pictures: list[Location]) -> None:
    for i, options in enumerate(({}, {"image_size": (12, 8)}, {"resize": "pad"}, {"channels": 1}), start=1):
        _decode(pictures, **options)
        assert len(_entries()) == i
    assert _decode(pictures, image_size=(12, 8)).pixels.shape == (60, 12, 8, 3)
    assert len(_entries()) == 4


@pytest.mark.parametrize("damage", ["pixels.npy", "pictures.json"])
def test_a_damaged_entry_is_made_anew(pictures: list[Location], damage: str) -> None:
    _decode(pictures)
    file = _entries()[0] / damage
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    assert _decode(pictures).pixels[:, 0, 0, 0].tolist() == list(range(60))


def test_sixty_thousand_pictures_are_there_at_once(tmp_path: Path) -> None:
    """An entry of that many rows, as decoding writes it, stands in for decoding them."""
    n = 60_000
    columns = {"widths": 32, "heights": 32, "modes": "RGB", "formats": "JPEG", "content_hashes": "0" * 32}
    location = FileLocation(str(tmp_path / "x.png"))
    (tmp_path / "x.png").write_bytes(encoded(colours(), "PNG"))
    _decode([location])
    entry = _entries()[0]
    content: dict[str, Any] = {name: [value] * n for name, value in columns.items()}
    content |= {"n_locations": n, "readable": list(range(n)), "rejected": []}
    (entry / "pictures.json").write_text(json.dumps(content))
    np.save(entry / "pixels.npy", np.zeros((n, 8, 12, 3), dtype=np.uint8))
    start = time.perf_counter()
    decoded = _decode([location] * n)
    assert time.perf_counter() - start < 0.5
    assert decoded.pixels.shape == (n, 8, 12, 3)


def _old_entry(name: str, age_seconds: float, n_bytes: int = 1000) -> Path:
    entry = cache.cache_directory() / "pictures" / name
    entry.mkdir(parents=True)
    (entry / "pixels.npy").write_bytes(bytes(n_bytes))
    for path in (entry / "pixels.npy", entry):
        os.utime(path, (time.time() - age_seconds,) * 2)
    return entry


def test_what_was_used_longest_ago_gives_way(pictures: list[Location], monkeypatch: pytest.MonkeyPatch) -> None:
    needed = 60 * 8 * 12 * 3
    oldest, older, newest = (_old_entry(f"e{age}", age, 4000) for age in (3000, 2000, 1000))
    monkeypatch.setenv("NETLOOM_CACHE_LIMIT_GB", str((needed + 9000) / 1e9))
    _decode(pictures)
    assert [entry.exists() for entry in (oldest, older, newest)] == [False, True, True]
    monkeypatch.setenv("NETLOOM_CACHE_LIMIT_GB", str(1 / 1e9))
    mine = _decode(pictures)
    _decode(pictures, image_size=(3, 3))
    assert [entry.exists() for entry in (oldest, older, newest)] == [False, False, False]
    assert len(_entries()) == 2
    assert mine.pixels[:, 0, 0, 0].tolist() == list(range(60))


def test_use_makes_an_entry_young_again(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = _old_entry("first", 3000), _old_entry("second", 2000)
    assert cache.find_entry("first") == first
    assert first.stat().st_mtime > second.stat().st_mtime


@pytest.mark.parametrize("limit", ["many", "-3", "nan", "0"])
def test_an_impossible_limit_is_named(pictures: list[Location], monkeypatch: pytest.MonkeyPatch, limit: str) -> None:
    monkeypatch.setenv("NETLOOM_CACHE_LIMIT_GB", limit)
    with pytest.raises(DataError, match="NETLOOM_CACHE_LIMIT_GB"):
        _decode(pictures)


def test_leftovers_of_killed_runs_are_swept_after_a_day(pictures: list[Location]) -> None:
    stale, fresh = _old_entry(".a.partial", 2 * 86_400), _old_entry(".b.partial", 3600)
    _decode(pictures)
    assert not stale.exists()
    assert fresh.exists()


@pytest.fixture
def _unwritable_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a file").write_bytes(b"")
    monkeypatch.setenv("NETLOOM_CACHE", str(tmp_path / "a file" / "cache"))


@pytest.mark.usefixtures("_unwritable_cache")
def test_without_a_writable_cache_a_temporary_folder_serves(
    pictures: list[Location], caplog: pytest.LogCaptureFixture, no_workers: Callable[[], None]
) -> None:
    with caplog.at_level(logging.WARNING):
        assert len(_decode(pictures).pixels) == 60
    assert "NETLOOM_CACHE" in caplog.text
    no_workers()
    assert len(_decode(pictures).pixels) == 60


def test_a_full_disk_says_what_is_needed(pictures: list[Location], monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage:
        free = 1000

    monkeypatch.setattr("shutil.disk_usage", lambda _: Usage)
    with pytest.raises(DataError, match=r"disk is full.*17,280 bytes.*NETLOOM_CACHE"):
        _decode(pictures)
    assert _entries() == []


@linux_only
def test_an_entry_is_moved_when_no_worker_has_its_files_open(
    pictures: list[Location], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows refuses to move a folder in which a file is open."""
    moved = []

    def watched(partial: Path, entry: Path) -> None:
        workers = _workers()
        links = [link for pid in workers for link in Path(f"/proc/{pid}/fd").iterdir()]
        assert links
        assert not [link for link in links if str(link.readlink()).startswith(str(partial))]
        moved.append(len(workers))
        partial.rename(entry)

    monkeypatch.setattr(cache, "_move_into_place", watched)
    (tmp_path / "broken.png").write_bytes(b"not a picture")
    _decode([*pictures, FileLocation(str(tmp_path / "broken.png"))])
    assert moved == [2]


def test_what_the_system_refuses_names_the_folder(pictures: list[Location], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Access is denied")

    monkeypatch.setattr(cache, "_move_into_place", refuse)
    with pytest.raises(DataError, match=r"cannot be kept in .*pictures: Access is denied.*NETLOOM_CACHE") as told:
        _decode(pictures)
    assert str(cache.cache_directory()) in str(told.value)
    assert _entries() == []


def test_old_entries_make_room_on_a_disk_that_lacks_it(
    pictures: list[Location], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk of 60,000 bytes: the new entry takes 17,280, as much stays free, and one of three old ones has to go."""
    olds = [_old_entry(f"e{age}", age, 12_000) for age in (3000, 2000, 1000)]

    class Usage:
        @property
        def free(self) -> int:
            return 60_000 - sum(path.stat().st_size for entry in _entries() for path in entry.rglob("*"))

    monkeypatch.setattr("shutil.disk_usage", lambda _: Usage())
    _decode(pictures)
    assert [entry.exists() for entry in olds] == [False, True, True]
    monkeypatch.setattr(Usage, "free", 2 * 17_280 - 1)
    with pytest.raises(DataError, match=r"34,559 bytes free.*17,280 more"):
        _decode(pictures, fingerprint="another")


@linux_only
def test_files_are_read_whole_also_where_their_size_is_not_told() -> None:
    """Files under /proc have the size 0."""
    assert read_bytes(FileLocation("/proc/version")) == Path("/proc/version").read_bytes() != b""


def test_reading_one_absent_member_is_a_reason(tmp_path: Path) -> None:
    _tarred(tmp_path / "a.tar.gz", "w:gz")
    with pytest.raises(UnreadablePictureError, match="no such member"):
        read_bytes(StreamedTarMember(str(tmp_path / "a.tar.gz"), "absent", 3))
    with pytest.raises(UnreadablePictureError, match="ends before"):
        read_bytes(TarMember(str(tmp_path / "a.tar.gz"), 0, 10**8))


@pytest.mark.parametrize("kind", ["file", "tar", "tar.gz", "zip"])
def test_what_the_system_fails_to_read_may_be_read_another_time(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / f"a.{kind}"
    path.write_bytes(b"some bytes that are neither a picture nor an archive")
    locations: dict[str, Location] = {
        "file": FileLocation(str(path)),
        "zip": ZipMember(str(path), "a.png"),
        "tar": TarMember(str(path), 0, 3),
        "tar.gz": StreamedTarMember(str(path), "a.png", 3),
    }

    def fail(*_: object, **__: object) -> Any:
        raise OSError(errno.EIO, "Input/output error")

    for target in ("os.open", "pathlib.Path.open", "tarfile.open", "zipfile.ZipFile"):
        monkeypatch.setattr(target, fail)
    with pytest.raises(UnreadablePictureError, match="Input/output error") as told:
        read_bytes(locations[kind])
    assert told.value.passing
    monkeypatch.undo()
    if kind in ("zip", "tar.gz"):
        with pytest.raises(UnreadablePictureError) as told:
            read_bytes(locations[kind])
        assert not told.value.passing
