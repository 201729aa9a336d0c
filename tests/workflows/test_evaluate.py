"""What `evaluate` says beside the scores: pictures that trained, sources that changed, what guessing would give."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner

import netloom
from netloom.cli import app
from netloom.data.imageset import load_image_set
from netloom.errors import RunError
from netloom.metrics.intervals import wilson_interval
from netloom.runtime import ExecutionPlan
from netloom.workflows.prepare import fingerprint
from netloom.workflows.remembered_pictures import already_seen
from picture_folders import write_folder

PLAN = ExecutionPlan("cpu", 1, "float32")
PARTS = ("train", "validation", "test")
PER_CLASS = {"across": 20, "down": 10, "plain": 8}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """The first class is the commonest."""
    root = write_folder(tmp_path / "photos")
    for name, n in PER_CLASS.items():
        for path in sorted((root / name).glob("*.png"))[n:]:
            path.unlink()
    return root


@pytest.fixture
def run(photos: Path, tmp_path: Path) -> netloom.Run:
    settings = {"filters": [4], "epochs": 1, "augmentation": None}
    return netloom.train(photos, out=tmp_path / "runs", plan=PLAN, quiet=True, settings=settings)


def said(*arguments: object) -> str:
    result = CliRunner().invoke(app, ["evaluate", *map(str, arguments)])
    assert result.exit_code == 0, result.stderr
    return result.stdout


def test_pictures_that_trained_are_counted_wherever_they_lie(run: netloom.Run, photos: Path, tmp_path: Path) -> None:
    """Under other names, beside new ones, of another source: the network knows them."""
    other = write_folder(tmp_path / "other", per_class=1, side=14)
    trained, tested = run.split["train"][:3], run.split["test"][:2]
    for number, name in enumerate([*trained, *tested]):
        shutil.copy(photos / name, other / Path(name).parent.name / f"copy {number}.png")
    scores = run.evaluate(other)
    assert scores["n"] == 8
    assert scores["seen"] == {"train": 3, "validation": 0, "test": 2}
    assert scores["seen_in_training"]
    assert "trained on 3 of these 8 pictures" in said(run.path, other)
    for part in PARTS:
        own = run.evaluate(part=part)
        assert own["seen"] == {**dict.fromkeys(PARTS, 0), part: own["n"]}
        assert own["seen_in_training"] == (part == "train")
        assert own["seen_in_validation"] == (part == "validation")
        assert own["seen_by_earlier_runs"] == []
        assert not own["source_changed"]
    assert "says nothing of new ones" in said(run.path, "--part", "train")
    assert "note: these pictures validated the training; what was chosen by them" in said(
        run.path, "--part", "validation"
    )
    shutil.copy(photos / run.split["validation"][0], other / "across" / "one more.png")
    assert run.evaluate(other)["seen_in_validation"]
    assert "1 of these 9 pictures validated the training" in said(run.path, other)
    assert "note:" not in said(run.path)


def test_guessing_gives_the_commonest_class_of_the_training_part(run: netloom.Run, tmp_path: Path) -> None:
    other = write_folder(tmp_path / "other", classes=("across", "down"), per_class=2, side=14)
    for path in sorted((other / "across").glob("*.png"))[1:]:
        path.unlink()
    assert run.evaluate(other)["majority_baseline"] == {"class": "across", "accuracy": pytest.approx(1 / 3)}


def test_a_changed_source_is_told(run: netloom.Run, photos: Path) -> None:
    name = run.split["test"][0]
    (photos / name).write_bytes((photos / run.split["train"][0]).read_bytes())
    scores = run.evaluate()
    assert scores["source_changed"]
    assert scores["seen"]["train"] == 1
    text = said(run.path)
    assert "have changed since the training" in text
    assert f"trained on 1 of these {scores['n']} pictures" in text


@pytest.mark.parametrize("before", [False, True], ids=["now", "a run of before"])
def test_pixels_are_not_taken_for_other_pictures_than_their_files(before: bool, photos: Path, tmp_path: Path) -> None:
    """What an array and a file hold cannot be compared by digests; that is unknown then, not none."""
    pictures = load_image_set(photos, image_size=12).image_set
    pixels = pictures.images.permute(0, 2, 3, 1).numpy()
    arrays = netloom.ImageSet.from_arrays(pixels, pictures.targets, class_names=pictures.class_names)
    unmarked = tuple(digest.removeprefix("pixels:") for digest in arrays.content_hashes or ())
    assert fingerprint(arrays) == fingerprint(
        replace(arrays, content_hashes=unmarked)
    )  # a run of before is gone on with
    settings = {"filters": [4], "epochs": 1, "augmentation": None, "image_size": 12}
    options = {"out": tmp_path / "runs", "plan": PLAN, "quiet": True, "settings": settings}
    run = netloom.train(arrays, **options)
    remembered = run.path / "pictures.safetensors"
    if before:
        save_file({k: v for k, v in load_file(remembered).items() if k != "of_pixels"}, remembered)
    scores = run.evaluate(photos)
    assert (scores["n"], scores["seen"], scores["seen_in_training"]) == (len(pictures), None, None)
    assert "it is not known whether the network was trained on some of these pictures" in said(run.path, photos)
    assert already_seen(run, arrays, np.arange(len(arrays))) == {part: len(run.split[part]) for part in PARTS}
    further = netloom.transfer(photos, run.path, out=tmp_path / "runs", plan=PLAN, quiet=True)
    assert "It is not known whether the network of" in further.result["test_notes"][0]
    assert "test pictures, not all of them known to be new to it" in further.report_path.read_text(encoding="utf-8")
    own = further.evaluate()
    assert own["seen_by_earlier_runs"] == [{"run": str(run.path), "labelled": True, "n": None}]
    assert (own["seen"]["train"], own["seen_in_training"]) == (0, None)
    assert said(further.path).count("not known whether") == 1
    of_files = netloom.train(photos, **options)
    assert already_seen(of_files, arrays, np.arange(len(arrays))) is None
    assert already_seen(of_files, pictures, np.arange(len(pictures))) == {p: len(of_files.split[p]) for p in PARTS}


def test_a_part_is_of_the_runs_own_data(run: netloom.Run, photos: Path) -> None:
    with pytest.raises(RunError, match="Part 'validation' is one of the run's own data"):
        run.evaluate(photos, part="validation")
    refused = CliRunner().invoke(app, ["evaluate", str(run.path), str(photos), "--part", "test"])
    assert refused.exit_code == 2
    assert "all pictures are scored" in refused.stderr


def test_the_file_of_digests_is_small_and_checked(run: netloom.Run) -> None:
    path = run.path / "pictures.safetensors"
    assert path.stat().st_size < 500 + 8 * 38
    assert load_file(path)["train_counts"].sum() == len(run.split["train"])
    path.write_bytes(b"\0" * 40)
    with pytest.raises(RunError, match=r"pictures\.safetensors cannot be read"):
        run.evaluate()
    path.unlink()  # a run from before there was such a file
    assert "note: these pictures validated the training" in said(run.path, "--part", "validation")
    scores = run.evaluate()
    assert (scores["seen"], scores["seen_in_training"], scores["accuracy"]) == (
        None,
        False,
        json.loads((run.path / "result.json").read_text())["test"]["accuracy"],
    )


def test_grouped_pictures_are_told_and_widen_the_interval(tmp_path: Path) -> None:
    """Reference: Wilson's interval of the same answers, which takes them for independent."""
    rows = []
    for path in sorted(write_folder(tmp_path / "photos", per_class=40).rglob("*.png")):
        group = int(path.stem) // 8
        rows.append(f"{path},{path.parent.name},{path.parent.name} {group},{'test' if group % 2 else 'train'}")
    table = tmp_path / "photos.csv"
    table.write_text("\n".join(["image_path,label,group,split", *rows]), encoding="utf-8")
    settings = ["--set", "filters=[4]", "--set", "epochs=1", "--set", "augmentation=null"]
    training = ["train", str(table), "--out", str(tmp_path / "runs"), *settings]
    result = CliRunner().invoke(app, training)
    assert result.exit_code == 0, result.stderr
    assert "of 48 pictures of 6 groups" in result.stderr
    [path] = (tmp_path / "runs").iterdir()
    run = netloom.load(path)
    test = run.result["test"]
    assert (test["n"], test["groups"]) == (48, 6)
    plain = wilson_interval(round(test["accuracy"] * 48), 48)
    assert test["interval"][1] - test["interval"][0] > plain.high - plain.low
    assert run.evaluate()["interval"] == test["interval"]
    assert "of 48 pictures of 6 groups" in said(path)
    page = run.report_path.read_text(encoding="utf-8")
    assert "48 test pictures of 6 groups" in page
    assert "Korn and Graubard" in page
    assert CliRunner().invoke(app, [*training, "--seeds", "2", "--jobs", "2"]).exit_code == 0
    results = [json.loads(path.read_text()) for path in (tmp_path / "runs").glob("*/seed-*/result.json")]
    assert [result["test"]["groups"] for result in results] == [6, 6]
