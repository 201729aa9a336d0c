"""Prediction of files that strangers give: decoded apart, in their order, and what the system refuses is told."""

from __future__ import annotations

import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import netloom
from netloom.data import decode, decoding_files
from netloom.data.sources import open_pictures
from netloom.errors import DataError
from netloom.runtime import ExecutionPlan
from picture_corpus import endless_jpeg
from picture_folders import write_folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("photos") / "photos", per_class=24)


@pytest.fixture(scope="module")
def run(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> netloom.Run:
    settings = {"filters": [4], "epochs": 1, "augmentation": None}
    plan = ExecutionPlan("cpu", 1, "float32")
    return netloom.train(photos, out=tmp_path_factory.mktemp("runs"), plan=plan, quiet=True, settings=settings)


def test_predictions_are_those_of_the_test_part_whatever_lies_between(
    run: netloom.Run, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several batches, unreadable files among them; reference: the probabilities that the run's own test gave."""
    monkeypatch.setattr("netloom.workflows.predict.inference_batch_size", lambda *_: 5)
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"nothing")
    names = run.split["test"]
    found = run.predict([path for name in names for path in (photos / name, bad)], top=3)
    assert [item["path"] for item in found[::2]] == [str(photos / name) for name in names]
    assert all("error" in item for item in found[1::2])
    probabilities, _ = run.test_predictions()
    shares = [{p["class"]: p["probability"] for p in item["predictions"]} for item in found[::2]]
    ours = [[share[name] for name in run.data.class_names] for share in shares]
    np.testing.assert_allclose(ours, probabilities, atol=1e-5)


def test_all_threads_predict_however_few_trained(
    run: netloom.Run, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The training had one, as those of a cross-validation have."""
    pools: list[int] = []

    class Noted(ThreadPoolExecutor):
        def __init__(self, n_threads: int, *more: Any, **options: Any) -> None:
            pools.append(n_threads)
            super().__init__(n_threads, *more, **options)

    assert run.plan.cpus == 1
    monkeypatch.setattr("netloom.inference.ThreadPoolExecutor", Noted)
    monkeypatch.setattr("netloom.runtime.training_threads", lambda: 3)
    monkeypatch.setattr("netloom.workflows.predict.inference_batch_size", lambda *_: 5)
    monkeypatch.setattr("netloom.workflows.builders.pictures.inference_batch_size", lambda *_: 5)
    run.predict(photos)
    assert pools == [3]
    evaluated = run.evaluate()
    assert pools == [3, 3]
    assert evaluated["accuracy"] == evaluated["recorded_accuracy"]


def test_a_picture_is_never_decoded_in_this_process(
    run: netloom.Run, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_args: object, **_options: object) -> None:
        raise AssertionError("decoded here")

    monkeypatch.setattr(decode, "decode_picture", refuse)
    monkeypatch.setattr("PIL.Image.open", refuse)
    assert len(run.predict(photos)) == 72
    assert run.predict(photos / run.split["test"][0])[0]["predictions"]


def test_a_picture_that_hangs_its_decoder_costs_itself_only(
    run: netloom.Run, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "endless.jpg").write_bytes(endless_jpeg())
    own = decoding_files.decode_in_batches
    monkeypatch.setattr(
        "netloom.workflows.predict.decode_in_batches",
        lambda *args, **options: own(*args, **options, picture_timeout_seconds=1),
    )
    good = photos / run.split["test"][0]
    started = time.monotonic()
    first, hanging, last = run.predict([good, tmp_path / "endless.jpg", good])
    assert time.monotonic() - started < 15
    assert hanging["error"] == "decoding it took longer than 1 s"
    assert first == last


def test_paths_that_the_system_refuses_are_told(run: netloom.Run, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"x… cannot be looked at: |No such picture"):
        run.predict("x" * 5000)
    if os.name == "posix" and os.geteuid() != 0:
        (tmp_path / "closed").mkdir(mode=0)
        with pytest.raises(DataError, match="cannot be looked at: Permission denied"):
            run.predict(tmp_path / "closed" / "a.png")


def test_the_files_of_a_folder_are_those_that_training_takes(
    run: netloom.Run, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reference: `open_pictures` of the same folder, and what it leaves out."""
    picture = (photos / run.split["test"][0]).read_bytes()
    for name in ("in/a/1.png", "in/b/2.png", "in/.hidden/3.png", "in/b/.4.png", "in/__MACOSX/5.png", "elsewhere/6.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(picture)
    root = tmp_path / "in"
    (root / "a" / "Thumbs.db").write_bytes(b"of Windows")
    (root / "closed").mkdir()
    if os.name == "posix":
        (root / "b" / "linked").symlink_to(tmp_path / "elsewhere")
    own = os.scandir

    def scandir(folder: str) -> Any:
        if str(folder).endswith("closed"):
            raise PermissionError(13, "Permission denied")
        return own(folder)

    monkeypatch.setattr(os, "scandir", scandir)
    source = open_pictures(root)
    expected = sorted([*(sample.id for sample in source.samples), *(one.path for one in source.rejected)])
    found = run.predict(root)
    assert [Path(item["path"]).relative_to(root).as_posix() for item in found] == expected
    assert {Path(item["path"]).name: item["error"] for item in found if "error" in item} == {
        "closed": "folder not readable: Permission denied"
    }
    assert len(expected) == (4 if os.name == "posix" else 3)
    (tmp_path / "only" / "closed").mkdir(parents=True)
    assert [set(item) for item in run.predict(tmp_path / "only")] == [{"path", "error"}]
    with pytest.raises(DataError, match="closed cannot be looked at: Permission denied"):
        run.predict(root / "closed")


@pytest.mark.skipif(sys.platform != "linux", reason="a link that leads nowhere it may be followed to")
def test_a_folder_that_vanishes_while_it_is_listed_is_left_out(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from netloom.data import source_files

    own = source_files._key

    def key(folder: str) -> tuple[int, int]:
        if folder.endswith("plain"):
            raise FileNotFoundError(2, "No such file or directory")
        return own(folder)

    monkeypatch.setattr(source_files, "_key", key)
    source = source_files.open_path(photos)
    assert source.class_names == ("across", "down")
    assert any("not readable: No such file" in rejected.reason for rejected in source.rejected)
