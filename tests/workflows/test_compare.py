"""Comparisons of runs whose answers are known picture by picture, and of two that were really trained."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import recall_score
from typer.testing import CliRunner

import netloom
from html_page import Page
from netloom.cli import app
from netloom.errors import RunError
from netloom.metrics.intervals import wilson_interval
from netloom.run import RunFolder
from netloom.run_facts import DataFacts
from netloom.runtime import ExecutionPlan
from picture_folders import write_folder

IDS = [f"cat/{i:03}.jpg" for i in range(100)]
TARGETS = np.arange(100) % 2


def write_run(
    path: Path,
    *,
    right: np.ndarray | None,
    ids: list[str] = IDS,
    targets: np.ndarray = TARGETS,
    classes: tuple[str, ...] = ("cat", "dog"),
    status: str = "finished",
    train: list[str] | None = None,
    fingerprint: str = "same",
    threads: int = 1,
    epochs: int = 3,
    groups: np.ndarray | None = None,
    validation_groups: np.ndarray | None = None,
    **recipe: Any,
) -> Path:
    """A run that answered the test pictures `ids` of classes `targets` as `right` says; None for one not tested."""
    path.mkdir(parents=True)
    folder = RunFolder(path)
    folder.write_setup(
        recipe=netloom.Recipe.from_mapping({"name": "made", "epochs": 3, **recipe}),
        split={
            "method": "given",
            "seed": 0,
            "notes": [],
            "train": train or ["t/1", "t/2"],
            "validation": ["v/1"] * 10,
            "test": ids,
        },
        data=DataFacts(
            source_name="photos",
            source_location="",
            class_names=classes,
            image_size=(8, 8),
            channels=3,
            resize="stretch",
            mean=(0.0,) * 3,
            std=(1.0,) * 3,
            fingerprint=fingerprint,
            audit={},
        ),
        environment={"processor": "a processor"},
        pictures=None if validation_groups is None else {"validation_groups": validation_groups},
    )
    folder.write_plan(ExecutionPlan("cpu", threads, "float32", "for a test"))
    with folder.metrics_path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["epoch", "train_loss", "validation_loss", "validation_accuracy", "seconds"])
        writer.writerows([e, 1 / e, 1.2 / e, 1 - 0.4 / e, 0.5] for e in range(1, epochs + 1))
    result: dict[str, Any] = {"status": status, "tests": int(status == "finished")}
    if right is not None:
        folder.write_test_predictions(
            probabilities=np.eye(len(classes), dtype=np.float32)[np.where(right, targets, 1 - targets)],
            targets=targets,
            groups=groups,
        )
        n_right = int(right.sum())
        scores = {
            "accuracy": n_right / len(ids),
            "n": len(ids),
            "interval": list(wilson_interval(n_right, len(ids))),
        }
        result |= {"parameters": 1234, "kept_epoch": 2, "test": scores, "validation": scores}
    folder.write_result(result)
    return path


def answers(*wrong: range) -> np.ndarray:
    right = np.ones(100, dtype=bool)
    for part in wrong:
        right[list(part)] = False
    return right


def compare(*arguments: str | Path) -> dict[str, Any]:
    result = CliRunner().invoke(app, ["compare", *map(str, arguments), "--json"])
    assert result.exit_code == 0, (result.stderr, result.exception)
    return dict(json.loads(result.stdout))


def test_a_pair_is_tested_on_the_pictures_that_tell_the_runs_apart(tmp_path: Path) -> None:
    """20 pictures only the second run got right, 4 only the first; p by SciPy's binomial test of 4 in 24."""
    one = write_run(tmp_path / "one", right=answers(range(30)))
    other = write_run(tmp_path / "other", right=answers(range(10), range(50, 54)))
    (pair,) = compare(one, other)["pairs"]
    assert (pair["first"], pair["second"], pair["kind"]) == ("one", "other", "paired")
    assert (pair["only_first"], pair["only_second"], pair["n"]) == (4, 20, 100)
    assert pair["difference"] == pytest.approx(0.16)
    assert pair["interval"][0] < 0.16 < pair["interval"][1]
    assert pair["p_value"] == pair["adjusted_p_value"] == pytest.approx(stats.binomtest(4, 24).pvalue)
    assert pair["more_than_noise"] is True


def test_recall_is_set_beside_each_other_class_by_class(tmp_path: Path) -> None:
    """Reference: scikit-learn's `recall_score`. The class that differs most comes first, and nothing is tested."""
    wrong = (range(30), range(60, 95))
    runs = [write_run(tmp_path / f"run{i}", right=answers(part)) for i, part in enumerate(wrong)]
    found = compare(*runs)
    expected = [
        recall_score(TARGETS, np.where(answers(part), TARGETS, 1 - TARGETS), average=None).tolist() for part in wrong
    ]
    names = ("cat", "dog")
    (pair,) = found["pairs"]
    assert [(row["name"], row["n"]) for row in pair["classes"]] == [
        (name, int((label == TARGETS).sum())) for label, name in enumerate(names)
    ]
    for label, row in enumerate(pair["classes"]):
        assert [row["first"], row["second"]] == pytest.approx([expected[0][label], expected[1][label]])
        assert row["difference"] == pytest.approx(expected[1][label] - expected[0][label])
        assert set(row) == {"name", "n", "first", "second", "difference"}
    result = CliRunner().invoke(app, ["compare", *map(str, runs), "--out", str(tmp_path / "page.html")])
    rows = Page((tmp_path / "page.html").read_text(encoding="utf-8")).table("class", "test pictures", "run 1", "run 2")
    largest = max(pair["classes"], key=lambda row: abs(row["difference"]))
    assert len(rows) == 2
    assert rows[0][0] == largest["name"]
    assert rows[0][3].endswith(f"{largest['difference'] * 100:+.1f} points")
    assert f"{largest['difference'] * 100:+.1f} points" in result.stdout
    assert "not tested" in result.stdout


def test_runs_of_other_test_pictures_have_no_recalls_beside_each_other(tmp_path: Path) -> None:
    one = write_run(tmp_path / "one", right=answers()[:80], ids=IDS[:80], targets=TARGETS[:80])
    other = write_run(tmp_path / "other", right=answers())
    assert compare(one, other)["pairs"][0]["classes"] == []
    assert "recall" not in CliRunner().invoke(app, ["compare", str(one), str(other)]).stdout


def test_pictures_are_matched_by_id_and_class_names_whatever_their_order(tmp_path: Path) -> None:
    right, order = answers(range(30)), np.random.default_rng(0).permutation(100)
    one = write_run(tmp_path / "one", right=right)
    other = write_run(
        tmp_path / "other",
        right=right[order],
        ids=[IDS[i] for i in order],
        targets=1 - TARGETS[order],
        classes=("dog", "cat"),
    )
    (pair,) = compare(one, other)["pairs"]
    assert (pair["kind"], pair["only_first"], pair["only_second"]) == ("paired", 0, 0)
    assert pair["more_than_noise"] is False


def test_several_tests_are_corrected_together(tmp_path: Path) -> None:
    """Three p-values, their Holm correction worked out from the definition; one of them loses its verdict by it."""
    wrong = (range(30), range(15), range(14, 25))
    runs = [write_run(tmp_path / f"run{i}", right=answers(part)) for i, part in enumerate(wrong)]
    pairs = compare(*runs)["pairs"]
    raw = [stats.binomtest(min(b, c), b + c).pvalue for b, c in ((0, 15), (0, 19), (14, 10))]
    assert [pair["p_value"] for pair in pairs] == pytest.approx(raw)
    small, middle, large = sorted(raw)
    by_hand = {small: 3 * small, middle: max(3 * small, 2 * middle), large: max(3 * small, 2 * middle, large)}
    assert [pair["adjusted_p_value"] for pair in pairs] == pytest.approx([by_hand[p] for p in raw])


def test_a_difference_can_be_noise_only_because_several_were_tested(tmp_path: Path) -> None:
    wrong = (range(7), range(1), range(3))
    runs = [write_run(tmp_path / f"run{i}", right=answers(part)) for i, part in enumerate(wrong)]
    alone, together = compare(*runs[:2]), compare(*runs)
    assert alone["pairs"][0]["p_value"] == together["pairs"][0]["p_value"] == pytest.approx(2 / 2**6)
    assert alone["pairs"][0]["more_than_noise"] is True
    assert together["pairs"][0]["more_than_noise"] is False
    assert together["headline"].startswith("None of the 3 differences")


def test_of_many_runs_each_is_compared_with_the_first(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / f"run{i}", right=answers(range(i * 5))) for i in range(7)]
    found = compare(*runs)
    assert [(p["first"], p["second"]) for p in found["pairs"]] == [("run0", f"run{i}") for i in range(1, 7)]
    assert any("compared with run 1" in note for note in found["notes"])


def test_other_test_pictures_are_said_and_compared_unpaired(tmp_path: Path) -> None:
    """56 of 70 and 48 of 80: Newcombe 1998, table II, gives 0.0524 to 0.3339."""
    one = write_run(tmp_path / "one", right=np.arange(80) < 48, ids=IDS[:80], targets=TARGETS[:80], train=["t/9"])
    other = write_run(tmp_path / "other", right=np.arange(70) < 56, ids=IDS[30:], targets=TARGETS[30:])
    found = compare(one, other)
    (pair,) = found["pairs"]
    assert pair["kind"] == "unpaired"
    assert "80 and 70 pictures, of which 50 are the same" in pair["reason"]
    assert pair["interval"] == pytest.approx([0.0524, 0.3339], abs=5e-5)
    assert pair["p_value"] is None
    assert pair["more_than_noise"] is None
    assert any("harder" in note for note in found["notes"])
    assert any("not trained on the same pictures" in note for note in found["notes"])
    assert "no difference can be told from noise" in found["headline"]


def test_relabelled_test_pictures_are_not_paired(tmp_path: Path) -> None:
    one = write_run(tmp_path / "one", right=answers())
    changed = np.where(np.arange(100) < 3, 1 - TARGETS, TARGETS)
    other = write_run(tmp_path / "other", right=answers(), targets=changed, fingerprint="other")
    found = compare(one, other)
    assert "3 of the test pictures have another class" in found["pairs"][0]["reason"]
    assert any("not of the same data" in note for note in found["notes"])


def test_one_test_part_within_different_data_is_paired_with_a_caution(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / f"run{i}", right=answers(), fingerprint=name) for i, name in enumerate("aab")]
    found = compare(*runs)
    assert {pair["kind"] for pair in found["pairs"]} == {"paired"}
    assert "The runs are not of the same data (runs 1 and 2: photos; run 3: photos)." in found["notes"]
    assert any("matched by name and class alone" in note for note in found["notes"])


def test_runs_of_other_classes_are_shown_without_a_difference(tmp_path: Path) -> None:
    one = write_run(tmp_path / "one", right=answers())
    other = write_run(tmp_path / "other", right=answers(range(9)), classes=("cat", "owl"), fingerprint="other")
    found = compare(one, other)
    assert found["pairs"][0]["kind"] == "none"
    assert found["pairs"][0]["difference"] is None
    assert [run["test"]["accuracy"] for run in found["runs"]] == [1, 0.91]


@pytest.mark.parametrize(
    ("status", "words"), [("running", "running, or was killed"), ("failed", "failed"), ("interrupted", "interrupted")]
)
def test_an_unfinished_run_is_compared_as_far_as_it_got(tmp_path: Path, status: str, words: str) -> None:
    one = write_run(tmp_path / "one", right=answers())
    two = write_run(tmp_path / "two", right=answers(range(30)))
    unfinished = write_run(tmp_path / "three", right=None, status=status, epochs=2)
    found = compare(one, two, unfinished)
    assert [pair["kind"] for pair in found["pairs"]] == ["paired", "none", "none"]
    assert found["pairs"][1]["reason"] == "run 3 has not been tested"
    run = found["runs"][2]
    assert (run["status"], run["epochs"], run["train_seconds"]) == (status, 2, 1.0)
    assert run["validation"]["accuracy"] == pytest.approx(0.8)
    assert run["validation"]["interval"] == pytest.approx(list(wilson_interval(8, 10)))
    assert run["test"] is None
    assert any(words in note and "2 of 3 epochs" in note for note in found["notes"])


def test_an_epoch_of_pictures_in_groups_has_no_interval(tmp_path: Path) -> None:
    """How many answers were right is known, not of which groups."""
    one = write_run(tmp_path / "one", right=answers())
    unfinished = write_run(
        tmp_path / "two", right=None, status="running", epochs=2, validation_groups=np.arange(10) // 5
    )
    validation = compare(one, unfinished)["runs"][1]["validation"]
    assert (validation["accuracy"], validation["groups"]) == (pytest.approx(0.8), 2)
    assert validation["interval"] == [None, None]
    told = CliRunner().invoke(app, ["compare", str(one), str(unfinished)]).stdout
    assert "80.0% of 10" in told
    assert "2 groups" in told
    assert "nan" not in told
    assert "– to" not in told


def test_runs_without_an_epoch_still_compare(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / name, right=None, status="running", epochs=0) for name in "ab"]
    found = compare(*runs, "--out", tmp_path / "page.html")
    assert found["runs"][0]["validation"] is None
    assert found["runs"][0]["train_images_per_second"] is None
    assert not Page((tmp_path / "page.html").read_text(encoding="utf-8")).named("figure")


def test_only_differing_recipe_keys_are_told_with_dots_into_groups(tmp_path: Path) -> None:
    recipes: list[dict[str, Any]] = [
        {"dropout": 0.3, "learning_rate": 0.01, "description": "one"},
        {"learning_rate": 0.02, "augmentation": {"rotation": 10}, "description": "two"},
        {"learning_rate": 0.02, "augmentation": {"rotation": 20, "horizontal_flip": True}},
    ]
    runs = [write_run(tmp_path / f"run{i}", right=answers(), **keys) for i, keys in enumerate(recipes)]
    found = compare(*runs)["recipe_differences"]
    assert found == {
        "dropout": [0.3, None, None],
        "augmentation": ["off", "on", "on"],
        "augmentation.rotation": [None, 10.0, 20.0],
        "augmentation.horizontal_flip": [None, False, True],
        "learning_rate": [0.01, 0.02, 0.02],
    }
    assert list(found)[:2] == ["dropout", "augmentation"], "in the order of the documentation"
    assert compare(*runs[1:])["recipe_differences"] == {
        "augmentation.rotation": [10.0, 20.0],
        "augmentation.horizontal_flip": [False, True],
    }


def test_other_machines_are_said(tmp_path: Path) -> None:
    one = write_run(tmp_path / "one", right=answers())
    two = write_run(tmp_path / "two", right=answers(), threads=4)
    assert any("4 threads" in note for note in compare(one, two)["notes"])
    assert not any("threads" in note for note in compare(one, write_run(tmp_path / "x", right=answers()))["notes"])


def test_a_run_that_was_tested_more_than_once_is_said(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / name, right=answers()) for name in "ab"]
    assert not any("times" in note for note in compare(*runs)["notes"])
    folder = RunFolder(runs[1])
    folder.write_result({**folder.result, "tests": 3})
    assert any(note.startswith("Run 2 was tested 3 times") for note in compare(*runs)["notes"])


def test_runs_of_one_name_are_told_apart_by_their_paths(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / parent / "run", right=answers()) for parent in "ab"]
    assert [run["name"] for run in compare(*runs)["runs"]] == list(map(str, runs))


def test_what_cannot_be_compared_is_refused(tmp_path: Path) -> None:
    one = write_run(tmp_path / "one", right=answers())
    two = write_run(tmp_path / "two", right=answers())
    with pytest.raises(RunError, match="at least two runs, found 1"):
        netloom.compare(one)
    with pytest.raises(RunError, match="more than once"):
        netloom.compare([one, two, tmp_path / "two" / ".." / "one"])
    with pytest.raises(RunError, match=r"no run folder.*Did you mean 'one'"):
        netloom.compare([one, tmp_path / "onee"])
    with pytest.raises(RunError, match="is a folder"):
        netloom.compare([one, two], out=tmp_path)
    RunFolder(two).write_test_predictions(probabilities=np.ones((7, 2), np.float32), targets=TARGETS[:7])
    with pytest.raises(RunError, match=r"expected probabilities \[100, 2\] .* found .*\[7, 2\]"):
        netloom.compare([one, two])
    (two / "test_predictions.safetensors").write_bytes(b"cut off")
    with pytest.raises(RunError, match="damaged"):
        netloom.compare([one, two])


@pytest.mark.parametrize(
    ("name", "message"),
    [("page.html", "exists already. Give another name, or --force"), ("thesis.txt", r"expected a name that ends in")],
)
def test_a_file_of_the_users_is_not_replaced_unasked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, message: str
) -> None:
    runs = [write_run(tmp_path / name, right=answers()) for name in "ab"]
    mine = tmp_path / name
    mine.write_text("mine")

    def comparing(*_: object) -> None:
        raise AssertionError("nothing is compared before the file is looked at")

    with monkeypatch.context() as patched:
        patched.setattr("netloom.workflows.compare._compare_pair", comparing)
        result = CliRunner().invoke(app, ["compare", *map(str, runs), "--out", str(mine)])
        assert result.exit_code == 2, result.output
        assert message in result.stderr
        with pytest.raises(RunError, match=message):
            netloom.compare(runs, out=mine)
    assert mine.read_text() == "mine"
    result = CliRunner().invoke(app, ["compare", *map(str, runs), "--out", str(mine), "--force"])
    if mine.suffix == ".html":
        assert result.exit_code == 0, result.output
        assert "more than noise" in Page(mine.read_text(encoding="utf-8")).words
    else:
        assert (result.exit_code, mine.read_text()) == (2, "mine")


def test_the_terminal_shows_every_part(tmp_path: Path) -> None:
    one = write_run(tmp_path / "고양이 [bold]", right=answers(range(30)))
    two = write_run(tmp_path / "two", right=answers(), dropout=0.5)
    result = CliRunner().invoke(app, ["compare", str(one), str(two), "--out", str(tmp_path / "new" / "page.html")])
    assert result.exit_code == 0, result.stderr
    for text in ("고양이 [bold]", "1,234 parameters", "70.0% of 100", "dropout", "0.5", "+30.0 points", "< 0.001"):
        assert text in result.stdout
    assert "Run 2 was right on 30.0 points more of the same 100 test pictures than run 1, more than noise." in (
        result.stdout
    )
    assert "chooses on the test part" in result.stdout
    assert Page((tmp_path / "new" / "page.html").read_text(encoding="utf-8")).named("svg")


def test_two_trained_runs_agree_with_their_own_evaluations(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "photos", parts=("train", "validation", "test"), per_class=8)
    options: dict[str, Any] = {"quiet": True, "filters": [4], "augmentation": None, "schedule": None, "batch_size": 8}
    runs = [
        netloom.train(source, out=tmp_path / "runs", name=f"epochs-{epochs}", epochs=epochs, **options)
        for epochs in (1, 4)
    ]
    found = netloom.compare(runs)
    accuracies = [netloom.evaluate(run)["accuracy"] for run in runs]
    (pair,) = found.pairs
    assert pair.kind == "paired"
    assert pair.difference == pytest.approx(accuracies[1] - accuracies[0])
    assert [run.test.value for run in found.runs if run.test] == accuracies
    assert found.recipe_differences == {"epochs": [1, 4]}


def test_pictures_in_groups_are_compared_by_groups(tmp_path: Path) -> None:
    """20 pictures of two patients only the second got right, 4 of another the first: SciPy's exact permutation test."""
    groups = np.repeat(np.arange(10), 10)
    paths = [
        write_run(tmp_path / "one", right=answers(range(30)), groups=groups),
        write_run(tmp_path / "other", right=answers(range(10), range(50, 54)), groups=groups),
    ]
    (pair,) = compare(*paths)["pairs"]
    assert (pair["only_first"], pair["only_second"], pair["n"], pair["groups"]) == (4, 20, 100, 10)
    differences = np.array([0, 10, 10, 0, 0, -4, 0, 0, 0, 0])
    reference = stats.permutation_test((differences,), np.sum, permutation_type="samples", n_resamples=np.inf)
    assert pair["p_value"] == pytest.approx(reference.pvalue) == 0.5
    assert pair["interval"][0] < 0 < pair["interval"][1]
    assert not pair["more_than_noise"]
    out = CliRunner().invoke(app, ["compare", *map(str, paths)])
    assert "10 groups" in out.stdout


def test_different_test_pictures_in_groups_are_compared_by_their_intervals(tmp_path: Path) -> None:
    groups = np.repeat(np.arange(4), 25)
    others = [f"dog/{i:03}.jpg" for i in range(100)]
    wide, narrow = (
        compare(
            write_run(tmp_path / f"one {given is None}", right=answers(range(40)), groups=given),
            write_run(tmp_path / f"other {given is None}", right=answers(range(10)), groups=given, ids=others),
        )["pairs"][0]
        for given in (groups, None)
    )
    assert wide["kind"] == narrow["kind"] == "unpaired"
    assert wide["interval"][0] < 0 < narrow["interval"][0]
