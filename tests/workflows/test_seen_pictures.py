"""What a run has learned from is not tested on by what starts from it, and where it validates, that is told."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner

import netloom
from html_page import Page
from netloom.cli import app
from netloom.errors import DataError
from netloom.runtime import ExecutionPlan
from picture_folders import write_folder

pytestmark = pytest.mark.usefixtures("one_thread")

PLAN = ExecutionPlan("cpu", 1, "float32")
SMALL: dict[str, Any] = {
    "filters": [4],
    "head_pooling": "average",
    "batch_size": 16,
    "epochs": 1,
    "early_stopping": None,
    "schedule": None,
}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("photos") / "photos", per_class=40)


@pytest.fixture(scope="module")
def backbone(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> netloom.Run:
    """A run whose split is not the usual one."""
    settings = {**SMALL, "augmentation": None, "split_seed": 5, "test_fraction": 0.3}
    return netloom.train(photos, out=tmp_path_factory.mktemp("runs"), plan=PLAN, quiet=True, settings=settings)


@pytest.fixture(scope="module")
def pretrained(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> netloom.Run:
    settings = {**SMALL, "self_supervised.hidden_units": 16, "self_supervised.embedding_size": 8}
    return netloom.pretrain(photos, out=tmp_path_factory.mktemp("runs"), plan=PLAN, quiet=True, settings=settings)


def transfer(source: Path, run: netloom.Run | Path, out: Path, **changes: Any) -> netloom.Run:
    return netloom.transfer(
        source, run if isinstance(run, Path) else run.path, out=out, plan=PLAN, quiet=True, settings=changes
    )


def seen(run: netloom.Run, backbone: netloom.Run, part: str) -> int:
    return len(set(run.split[part]) & set(backbone.split["train"]))


def forget_earlier_runs(path: Path) -> None:
    """As runs of before are, which did not remember them."""
    file = path / "pictures.safetensors"
    save_file({key: value for key, value in load_file(file).items() if not key.startswith("earlier")}, file)


def test_the_split_of_a_backbone_run_is_taken_over(photos: Path, backbone: netloom.Run, tmp_path: Path) -> None:
    run = transfer(photos, backbone, tmp_path)
    assert [run.split[part] for part in ("train", "validation", "test")] == [
        backbone.split[part] for part in ("train", "validation", "test")
    ]
    assert run.result["notes"] == []


def test_test_pictures_that_a_run_was_trained_on_are_refused_with_their_number(
    photos: Path, backbone: netloom.Run, tmp_path: Path
) -> None:
    again = transfer(photos, backbone, tmp_path, split_seed=6, **{"transfer.test_on_seen": True})
    n = seen(again, backbone, "test")
    assert 5 < n < len(again.split["test"])
    note = f"{n} of the {len(again.split['test'])} pictures of the test part were trained on with their labels"
    assert note in again.result["notes"][0]
    words = Page(again.report_path.read_text(encoding="utf-8")).words
    assert note in words
    assert "test pictures, not all of them known to be new to it (95% interval" in words
    assert "never seen" not in words
    assert "had no part in training" not in words
    assert "Not all of these pictures are known to be new to the network" in words

    def evaluated() -> str:
        return " ".join(CliRunner().invoke(app, ["evaluate", str(again.path)]).stdout.split())

    assert f"{n} of these {len(again.split['test'])} pictures were trained on by the network of {backbone.path}" in (
        evaluated()
    )
    there = evaluated()
    away = backbone.path.with_name("away")
    backbone.path.rename(away)
    assert evaluated() == there  # it remembers
    forget_earlier_runs(again.path)
    assert note in evaluated()
    away.rename(backbone.path)
    honest = transfer(photos, backbone, tmp_path)
    told = [text for text in netloom.compare([honest, again]).notes if "with their labels" in text]
    assert told == [f"Run 2: {again.result['test_notes'][0]}"]
    assert "test pictures it had never seen" in Page(honest.report_path.read_text(encoding="utf-8")).words
    with pytest.raises(
        DataError, match=rf"^{n} of the .* test part .*--set split_seed=5 --set test_fraction=0\.3 .*test_on_seen"
    ):
        transfer(photos, backbone, tmp_path / "refused", split_seed=6)
    assert not (tmp_path / "refused").exists()


def test_pictures_are_known_by_their_content_in_another_source(
    photos: Path, backbone: netloom.Run, tmp_path: Path
) -> None:
    """Other names, other classes; and what the run itself was made of counts as well."""
    other = write_folder(tmp_path / "other", side=14, per_class=10)
    between = transfer(other, backbone, tmp_path / "runs")
    assert between.result["notes"] == []
    (tmp_path / "mixed").mkdir()
    for name in ("across", "down"):
        (tmp_path / "mixed" / name).mkdir()
        for number in range(10):
            shutil.copy(photos / name / f"{number:03}.png", tmp_path / "mixed" / name / f"renamed-{number}.png")
    for run in (backbone, between):
        with pytest.raises(DataError, match="of the 4 pictures of the test part were trained on") as error:
            transfer(tmp_path / "mixed", run, tmp_path / "runs", split_seed=1, test_fraction=0.2)
        assert "split_seed=" not in str(error.value)  # no split of this source is that run's
        assert str(backbone.path) in str(error.value)


def test_a_score_on_pictures_of_a_run_it_started_from_says_so(
    photos: Path, backbone: netloom.Run, pretrained: netloom.Run, tmp_path: Path
) -> None:
    """The run itself was made of other pictures."""
    other = write_folder(tmp_path / "other", side=14, per_class=10)
    for first, labelled, words in (
        (backbone, True, "were trained on by the network of"),
        (pretrained, False, "were learned from, without their labels, by the network of"),
    ):
        run = transfer(other, first, tmp_path / "runs")
        scores = run.evaluate(photos)
        n = len(first.split["train"])
        assert scores["seen"] == {"train": 0, "validation": 0, "test": 0}
        assert scores["seen_by_earlier_runs"] == [{"run": str(first.path), "labelled": labelled, "n": n}]
        assert scores["seen_in_training"]
        told = CliRunner().invoke(app, ["evaluate", str(run.path), str(photos)]).stdout
        assert f"note: {n} of these 120 pictures {words} {first.path}" in told
        assert not run.evaluate()["seen_in_training"]


def test_runs_of_before_are_compared_by_names(photos: Path, backbone: netloom.Run, tmp_path: Path) -> None:
    """They tell no contents."""
    old = tmp_path / "old"
    shutil.copytree(backbone.path, old)
    (old / "pictures.safetensors").unlink()
    with pytest.raises(DataError, match="pictures of the test part were trained on"):
        transfer(photos, old, tmp_path / "runs", split_seed=6)
    assert transfer(photos, old, tmp_path / "runs").result["status"] == "finished"


def test_validation_and_folds_are_told_of_not_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = write_folder(tmp_path / "photos", parts=("train", "test"))
    backbone = netloom.train(photos, out=tmp_path, plan=PLAN, quiet=True, settings={**SMALL, "augmentation": None})
    run = transfer(photos, backbone, tmp_path, split_seed=1)
    n = seen(run, backbone, "validation")
    assert n > 5
    assert [note.split(" were")[0] for note in run.result["notes"]] == [
        f"{n} of the {len(run.split['validation'])} pictures of the validation part"
    ]
    found = netloom.cross_validate(photos, run.recipe, folds=2, jobs=1, out=tmp_path, plan=PLAN, quiet=False)
    told = f"{len(backbone.split['train'])} of the 60 pictures of the held-out folds were trained on"
    assert told in found.result["notes"][0]
    assert told in capsys.readouterr().err
    assert all(told in fold.result["notes"][-1] for fold in found.runs)
    assert all("never seen" not in fold.report_path.read_text(encoding="utf-8") for fold in found.runs)


def test_what_was_learned_without_labels_is_told(photos: Path, pretrained: netloom.Run, tmp_path: Path) -> None:
    run = transfer(photos, pretrained, tmp_path)
    assert run.split["test"] == pretrained.split["test"]
    assert run.result["notes"] == []
    assert "never seen" in run.report_path.read_text(encoding="utf-8")
    other = transfer(photos, pretrained, tmp_path, split_seed=3)
    assert "never seen" not in other.report_path.read_text(encoding="utf-8")
    assert other.result["test_notes"] == other.result["notes"][:1]
    test, validation = (seen(other, pretrained, part) for part in ("test", "validation"))
    assert test
    of_test, of_validation = (len(other.split[part]) for part in ("test", "validation"))
    assert [note.split(" by the")[0] for note in other.result["notes"]] == [
        f"{test} of the {of_test} pictures of the test part were learned from without their labels",
        f"{validation} of the {of_validation} pictures of the validation part were learned from without their labels",
    ]


def test_of_a_fold_no_split_is_advised_that_would_be_refused_again(photos: Path, tmp_path: Path) -> None:
    """The keys of its recipe, which are taken over, do not draw its parts."""
    folds = netloom.cross_validate(photos, folds=2, jobs=1, out=tmp_path, plan=PLAN, quiet=True, settings=SMALL)
    for changes in ({}, {"split_seed": 4}):
        with pytest.raises(DataError, match=r"Start from a run of `netloom train`.* or test on pictures") as error:
            transfer(photos, folds.runs[0], tmp_path / "refused", **changes)
        assert "--set split_seed" not in str(error.value)
    assert not (tmp_path / "refused").exists()


@pytest.mark.parametrize("labelled", [True, False])
def test_a_run_remembers_what_those_that_it_started_from_have_learned_from(
    labelled: bool, photos: Path, backbone: netloom.Run, pretrained: netloom.Run, tmp_path: Path
) -> None:
    first = Path(shutil.copytree((backbone if labelled else pretrained).path, tmp_path / "first"))
    n = len(netloom.load(first).split["train"]) if labelled else len(pretrained.split["train"])
    second = transfer(write_folder(tmp_path / "other", side=14, per_class=10), first, tmp_path / "runs")
    third = transfer(write_folder(tmp_path / "third", side=11, per_class=10), second, tmp_path / "runs")
    shutil.rmtree(first)
    expected = [{"run": str(first), "labelled": labelled, "n": n}]
    assert second.evaluate(photos)["seen_by_earlier_runs"] == expected
    assert third.evaluate(photos)["seen_by_earlier_runs"] == expected
    if labelled:
        with pytest.raises(DataError, match="of the test part were trained on, with their labels, by the network of"):
            transfer(photos, second, tmp_path / "refused", split_seed=6)
    shutil.rmtree(second.path)
    found = third.evaluate(photos)
    assert (found["seen_by_earlier_runs"], found["seen_in_training"]) == (expected, True)
    forget_earlier_runs(third.path)
    found = third.evaluate(photos)
    assert found["seen_by_earlier_runs"] == [{"run": str(second.path), "labelled": True, "n": None}]
    assert found["seen_in_training"] is None
    fourth = transfer(photos, third, tmp_path / "runs")
    assert any(
        note.startswith(f"It is not known whether the network of {second.path}") for note in fourth.result["notes"]
    )
