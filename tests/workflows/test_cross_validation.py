from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file
from typer.testing import CliRunner

import netloom
from html_page import Page
from netloom.cli import app
from netloom.data.folds import Scheme
from netloom.data.imageset import ImageSet
from netloom.errors import DataError, NetloomError, RunError, TrainingError
from netloom.files import lock_file
from netloom.runtime import ExecutionPlan
from netloom.workflows import training_task
from netloom.workflows.interruption import BY_TIME, ending_at
from netloom.workflows.runs import Run
from netloom.workflows.trainings import InterruptedTrainingsError
from parallel import work
from picture_folders import stripes, write_folder

PLAN = ExecutionPlan("cpu", 1, "float32", prediction_threads=2)
POSIX = pytest.mark.skipif(os.name == "nt", reason="signals are POSIX")
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
QUICK: dict[str, Any] = {
    "filters": [8],
    "batch_size": 8,
    "epochs": 2,
    "dropout": 0.2,
    "augmentation": {"rotation": 10},
    "schedule": None,
    "early_stopping": None,
    "precision": "float32",
}
TIMED = ("seconds", "images_per_second", "train_seconds", "train_images_per_second", "run", "folder", "jobs")


def pictures(n: int = 60, seed: int = 0, **more: Any) -> ImageSet:
    """Horizontal, vertical or no stripes, in memory."""
    pixels = np.stack([stripes(i % 3, seed * 1000 + i) for i in range(n)])
    names = ("across", "down", "plain")
    return ImageSet.from_arrays(pixels, np.arange(n) % 3, class_names=names, **more)


def untimed(value: Any) -> Any:
    """Plain values without what differs from run to run."""
    if isinstance(value, dict):
        return {k: untimed(v) for k, v in value.items() if k not in TIMED}
    return [untimed(v) for v in value] if isinstance(value, list) else value


def assert_same_bits(one: Path, other: Path) -> None:
    """Weights, checkpoints, predictions and untimed figures of every training, and of the whole."""
    found, expected = (json.loads((path / "cv.json").read_text(encoding="utf-8")) for path in (one, other))
    assert untimed(found) == untimed(expected)
    names = [training["name"] for training in expected["trainings"]]
    for name in names:
        for file in ("weights", "checkpoint", "test_predictions"):
            ours, theirs = (load_file(path / name / f"{file}.safetensors") for path in (one, other))
            assert ours.keys() == theirs.keys()
            assert all((ours[key] == theirs[key]).all() for key in ours)


@pytest.fixture(scope="module")
def one_by_one(
    photos: Path, tmp_path_factory: pytest.TempPathFactory
) -> netloom.workflows.cross_validate.CrossValidation:
    """Three folds in this process, one after the other."""
    out = tmp_path_factory.mktemp("one by one")
    return netloom.cross_validate(photos, folds=3, jobs=1, plan=PLAN, out=out, quiet=True, settings=QUICK)


@pytest.fixture(scope="module")
def at_once(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> netloom.workflows.cross_validate.CrossValidation:
    """The same in two processes."""
    out = tmp_path_factory.mktemp("at once")
    return netloom.cross_validate(photos, folds=3, jobs=2, plan=PLAN, out=out, quiet=True, settings=QUICK)


def test_parallel_trainings_give_the_bits_of_sequential_ones(one_by_one: Any, at_once: Any) -> None:
    assert at_once.result["jobs"] == 2
    assert {run.plan.prediction_threads for run in one_by_one.runs} == {2}
    assert {run.plan.prediction_threads for run in at_once.runs} == {0}  # a worker keeps to its share
    assert_same_bits(at_once.path, one_by_one.path)


def test_a_fold_is_what_train_does_with_that_split(one_by_one: Any, photos: Path, tmp_path: Path) -> None:
    """The fold's own recipe trained by `netloom.train` on the source with the fold's parts."""
    run = one_by_one.runs[1]
    names = sorted(str(p.relative_to(photos)) for p in photos.rglob("*.png"))
    part_of = {name: part for part in ("train", "validation", "test") for name in run.split[part]}
    assert set(part_of) == set(names)
    table = tmp_path / "labels.csv"
    rows = [f"{photos / name},{Path(name).parent.name},{part_of[name]}" for name in names]
    table.write_text("image_path,label,split\n" + "\n".join(rows) + "\n", encoding="utf-8")
    trained = netloom.train(table, run.recipe, plan=PLAN, out=tmp_path / "runs", quiet=True)
    ours, theirs = load_file(run.weights_path), load_file(trained.weights_path)
    assert all((ours[key] == theirs[key]).all() for key in theirs)
    assert trained.result["test"]["accuracy"] == run.result["test"]["accuracy"]


def test_every_picture_is_held_out_once_and_its_answers_are_kept(one_by_one: Any) -> None:
    found = one_by_one.out_of_fold()
    assert len(set(found["ids"])) == len(found["ids"]) == 60
    assert [Path(name).parent.name for name in found["ids"]] == [
        ("across", "down", "plain")[target] for target in found["targets"]
    ]
    right = found["probabilities"].argmax(axis=1) == found["targets"]
    assert np.trace(one_by_one.scores.confusion) == right.sum()
    assert one_by_one.scores.confusion.sum() == 60
    values = [run.result["test"]["accuracy"] for run in one_by_one.runs]
    assert one_by_one.scores.accuracy.values == tuple(values)
    assert one_by_one.result["accuracy"]["mean"] == pytest.approx(np.mean(values))


def test_the_page_tells_the_figures(one_by_one: Any) -> None:
    page = Page((one_by_one.path / "report.html").read_text(encoding="utf-8"))
    accuracy = one_by_one.scores.accuracy
    assert f"{accuracy.mean:.1%}" in page.words
    assert "1/3 + 0.5" in page.words
    rows = page.table("training")
    assert [row[0] for row in rows] == ["fold-1", "fold-2", "fold-3"]
    assert [int(row[6]) for row in rows] == [20, 20, 20]


def cv_process(*arguments: str | Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "netloom", "cv", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def children(process: int) -> list[int]:
    text = Path(f"/proc/{process}/task/{process}/children").read_text()
    return [int(number) for number in text.split()]


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def settings(**changes: Any) -> list[str]:
    pairs = {**QUICK, **changes}
    return [part for key, value in pairs.items() for part in ("--set", f"{key}={json.dumps(value)}")]


def wait_for(condition: Any, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


@LINUX
@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130), (signal.SIGTERM, 143)]
)
def test_a_cut_cross_validation_is_resumed_bit_for_bit(
    photos: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    """Cut when one training is finished; no worker stays, finished trainings are not repeated."""
    longer = {"epochs": 60}
    begun = cv_process(photos, "--folds", "4", "--jobs", "2", "--out", tmp_path / "cut", *settings(**longer))
    with begun as process:
        wait_for(lambda: list(tmp_path.glob("cut/*/fold-*/test_predictions.safetensors")), process)
        wait_for(lambda: len(list(tmp_path.glob("cut/*/fold-*/metrics.csv"))) >= 3, process)
        workers = children(process.pid)
        assert len(workers) == 2
        process.send_signal(number)
        started = time.monotonic()
        _, errors = process.communicate(timeout=60)
        assert time.monotonic() - started < 10  # 1 to 2 s, 3.4 s where three times as many processes as cores run
    assert process.returncode == code
    deadline = time.monotonic() + 3
    while any(map(alive, workers)):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    (folder,) = (tmp_path / "cut").iterdir()
    finished = [p for p in sorted(folder.glob("fold-*")) if netloom.load(p).result["status"] == "finished"]
    assert 1 <= len(finished) <= 3
    before = {p: (p / "weights.safetensors").stat().st_mtime_ns for p in finished}
    if code > 0:
        assert f"netloom cv --resume {folder}" in errors
        assert "Traceback" not in errors
    result = CliRunner().invoke(app, ["cv", "--resume", str(folder), "--jobs", "2", "--json", "--quiet"])
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["status"] == "finished"
    assert before == {p: (p / "weights.safetensors").stat().st_mtime_ns for p in finished}
    plan = ExecutionPlan.from_json(json.loads((folder / "trainings.json").read_text())["plan"])
    whole = netloom.cross_validate(
        photos, folds=4, jobs=2, plan=plan, out=tmp_path / "whole", quiet=True, settings={**QUICK, **longer}
    )
    assert_same_bits(folder, whole.path)


@LINUX
@pytest.mark.slow
def test_a_killed_worker_costs_nothing_but_time(photos: Path, tmp_path: Path, one_by_one: Any) -> None:
    longer = {"epochs": 30}
    options = ("--folds", "3", "--jobs", "2", "--out", tmp_path / "killed", "--json")
    with cv_process(photos, *options, *settings(**longer)) as process:
        wait_for(lambda: list(tmp_path.glob("killed/*/fold-*/metrics.csv")), process)
        os.kill(children(process.pid)[0], signal.SIGKILL)
        output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert "its process was killed (SIGKILL)" in errors
    found = json.loads(output)
    plan = ExecutionPlan.from_json(found["plan"])
    whole = netloom.cross_validate(
        photos, folds=3, jobs=1, plan=plan, out=tmp_path / "whole", quiet=True, settings={**QUICK, **longer}
    )
    assert_same_bits(Path(found["folder"]), whole.path)


def test_a_second_reason_to_end_does_not_finish_a_training(
    one_by_one: Any, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGTERM, while what Ctrl-C has ended is being written; it is gone on with, and the seconds are added up."""
    asked: list[int] = []
    tell, write = training_task._EpochReports.on_batch_end, Run.write_weights

    def ask(number: signal.Signals) -> None:
        asked.append(number)
        signal.raise_signal(number)

    def told(self: Any, state: Any) -> None:
        tell(self, state)
        if self._context._task.name == one_by_one.runs[1].name and not asked:
            ask(signal.SIGINT)

    def written(*arguments: Any) -> None:
        write(*arguments)
        if asked == [signal.SIGINT]:
            ask(signal.SIGTERM)

    options: dict[str, Any] = {"folds": 3, "jobs": 1, "plan": PLAN, "quiet": True, "settings": QUICK}
    with monkeypatch.context() as patched:
        patched.setattr(training_task._EpochReports, "on_batch_end", told)
        patched.setattr(Run, "write_weights", written)
        with pytest.raises(InterruptedTrainingsError, match="SIGTERM") as caught:
            netloom.cross_validate(photos, out=tmp_path, **options)
    assert asked == [signal.SIGINT, signal.SIGTERM]
    assert caught.value.exit_code == 143
    (folder,) = tmp_path.iterdir()
    assert [netloom.load(path).result["status"] for path in sorted(folder.glob("fold-*"))][:2] == [
        "finished",
        "interrupted",
    ]
    manifest = folder / "trainings.json"
    noted = json.loads(manifest.read_text(encoding="utf-8"))
    assert 0 < noted["seconds"] < 600
    manifest.write_text(json.dumps({**noted, "seconds": 1000.0}), encoding="utf-8")
    seconds = netloom.resume_cross_validation(folder, jobs=1, quiet=True).result["seconds"]
    assert 1000 < seconds < 1600
    assert_same_bits(folder, one_by_one.path)
    assert netloom.resume_cross_validation(folder, jobs=1, quiet=True).result["seconds"] == seconds
    for damaged in ("many", -1, float("nan")):
        manifest.write_text(json.dumps({**noted, "seconds": damaged}), encoding="utf-8")
        with pytest.raises(RunError, match=r"trainings\.json is damaged \(seconds is"):
            netloom.resume_cross_validation(folder, jobs=1, quiet=True)


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_time_that_is_over_ends_it_to_be_gone_on_with(jobs: int, photos: Path, tmp_path: Path) -> None:
    settings = {**QUICK, "epochs": 100_000}
    with ending_at(time.perf_counter() + 1.0), pytest.raises(InterruptedTrainingsError, match="time limit") as caught:
        netloom.cross_validate(photos, folds=2, jobs=jobs, plan=PLAN, out=tmp_path, quiet=True, settings=settings)
    assert caught.value.reason == BY_TIME
    (folder,) = tmp_path.iterdir()
    assert netloom.load(folder / "fold-1").result["status"] != "finished"


def test_shuffled_labels_score_near_chance(tmp_path: Path) -> None:
    """With labels dealt at random the interval holds 1/3 and the page says that nothing was learned."""
    made = pictures(120)
    labels = np.random.default_rng(5).permutation(made.targets.numpy())
    shuffled = ImageSet.from_arrays(made.images.permute(0, 2, 3, 1).numpy(), labels)
    found = netloom.cross_validate(
        shuffled, folds=4, repeats=2, jobs=1, plan=PLAN, out=tmp_path, quiet=True, settings=QUICK
    )
    low, high = found.scores.accuracy.interval
    assert low < 1 / 3 < high
    assert abs(found.scores.accuracy.mean - 1 / 3) < 0.12
    assert "does not show that the recipe learns anything" in (found.path / "report.html").read_text(encoding="utf-8")


def test_a_given_test_part_is_neither_trained_on_nor_tested(tmp_path: Path) -> None:
    parts = ["test" if i % 5 == 0 else "validation" if i % 5 == 1 else "train" for i in range(60)]
    made = pictures(splits=parts)
    found = netloom.cross_validate(made, folds=3, jobs=1, plan=PLAN, out=tmp_path, quiet=True, settings=QUICK)
    expected = {name for name, part in zip(made.ids, parts, strict=True) if part != "test"}
    for run in found.runs:
        seen = [name for part in ("train", "validation", "test") for name in run.split[part]]
        assert len(seen) == len(set(seen))
        assert set(seen) == expected
    assert "12 pictures of the source's own test part take no part" in " ".join(found.result["notes"])


def test_repeated_hold_out(tmp_path: Path) -> None:
    found = netloom.cross_validate(
        pictures(), holdout=0.25, repeats=3, jobs=1, plan=PLAN, out=tmp_path, quiet=True, settings=QUICK
    )
    assert [run.name for run in found.runs] == ["repeat-1", "repeat-2", "repeat-3"]
    tested = [frozenset(run.split["test"]) for run in found.runs]
    assert [len(part) for part in tested] == [15] * 3
    assert len(set(tested)) == 3
    assert found.scores.test_per_train == pytest.approx(1 / 3)
    seeds = [run.recipe.seed for run in found.runs]
    assert seeds == [0, 1, 2]


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ({}, Scheme(5)),
        ({"folds": 3}, Scheme(3)),
        ({"repeats": 2}, Scheme(5, 2)),
        ({"holdout": 0.2}, Scheme(None, 5, 0.2)),
        ({"holdout": 0.2, "repeats": 7}, Scheme(None, 7, 0.2)),
    ],
)
def test_what_is_not_said_of_the_scheme_is_the_same_for_every_caller(
    given: dict[str, Any], meant: Scheme, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def drawn(scheme: Scheme, **_: Any) -> None:
        assert scheme == meant
        raise DataError("It is the one that was meant.")

    monkeypatch.setattr("netloom.workflows.cross_validate.make_folds", drawn)
    with pytest.raises(DataError, match="the one that was meant"):
        netloom.cross_validate(photos, out=tmp_path, quiet=True, **given)
    options = [item for key, value in given.items() for item in (f"--{key}", str(value))]
    assert "the one that was meant" in fail(photos, *options, "--out", tmp_path, "--quiet")


@pytest.mark.usefixtures("fold_2_fails")
def test_one_failing_fold_does_not_lose_the_others(tmp_path: Path) -> None:
    with pytest.raises(
        NetloomError, match=r"1 of 3 trainings failed, for example fold-2: Cannot write.*go on with: netloom\.resume"
    ):
        netloom.cross_validate(pictures(), folds=3, jobs=1, plan=PLAN, out=tmp_path, quiet=True, settings=QUICK)
    (folder,) = tmp_path.iterdir()
    result = json.loads((folder / "cv.json").read_text())
    assert result["status"] == "incomplete"
    assert result["accuracy"]["n"] == 2
    assert [training["status"] for training in result["trainings"]] == ["finished", "failed", "finished"]
    assert "fold-2 failed and is in no figure here" in Page((folder / "report.html").read_text()).words
    (folder / "fold-2" / "checkpoint.safetensors").rmdir()
    resumed = netloom.resume_cross_validation(folder, source=pictures(), jobs=1, quiet=True)
    assert resumed.result["status"] == "finished"
    assert resumed.scores.accuracy.n == 3


def fail(*arguments: str | Path) -> str:
    result = CliRunner().invoke(app, ["cv", *map(str, arguments)])
    assert result.exit_code == 2, (result.stdout, result.stderr, result.exception)
    assert isinstance(result.exception, SystemExit)
    assert result.stdout == ""
    return result.stderr


def test_mistakes_are_told_before_anything_is_made(photos: Path, tmp_path: Path, one_by_one: Any) -> None:
    out = ["--out", str(tmp_path / "runs"), "--quiet"]
    assert "folds must be at least 2, not 1" in fail(photos, "--folds", "1", *out)
    assert "Use at most 20 folds" in fail(photos, "--folds", "21", *out)
    assert "repeats must be at least 1" in fail(photos, "--repeats", "0", *out)
    assert "between 0 and 1" in fail(photos, "--holdout", "1.5", *out)
    assert "at least 2 repeats" in fail(photos, "--holdout", "0.2", "--repeats", "1", *out)
    assert "not both" in fail(photos, "--holdout", "0.2", "--folds", "3", *out)
    assert "jobs must be auto or a whole number" in fail(photos, "--jobs", "many", *out)
    assert "jobs must be auto or a whole number" in fail(photos, "--jobs", "0", *out)
    assert "no class 'plane'" in fail(photos, "--set", "class_weight.plane=2", *out)
    assert "netloom cv SOURCE" in fail(*out)
    assert "has no trainings.json" in fail("--resume", photos)
    assert "besides it only --jobs" in fail("--resume", one_by_one.path, "--folds", "3")
    assert not (tmp_path / "runs").exists()


def test_a_finished_cross_validation_is_told_again(one_by_one: Any) -> None:
    before = json.loads((one_by_one.path / "cv.json").read_text())
    netloom.resume_cross_validation(one_by_one.path, quiet=True)
    assert untimed(json.loads((one_by_one.path / "cv.json").read_text())) == untimed(before)


def test_changed_pictures_and_damaged_manifests_are_refused(tmp_path: Path) -> None:
    photos = write_folder(tmp_path / "photos")
    found = netloom.cross_validate(
        photos, folds=2, jobs=1, plan=PLAN, out=tmp_path / "runs", quiet=True, settings={**QUICK, "epochs": 1}
    )
    kept, whole = (photos / "plain" / "000.png").read_bytes(), json.loads((found.path / "trainings.json").read_text())
    (photos / "plain" / "000.png").write_bytes((photos / "down" / "001.png").read_bytes())
    assert "have changed" in fail("--resume", found.path)
    manifest = found.path / "trainings.json"
    for damaged in ("{}", '{"kind": "cross-validation", "plan": {"device": "cpu", "threads": 1}}', "no JSON", "[]"):
        manifest.write_text(damaged)
        assert "damaged" in fail("--resume", found.path)
    for name in ("../photos", "..", ""):
        names = {"kind": "cross-validation", "plan": PLAN.to_json(), "trainings": [{"name": name}]}
        manifest.write_text(json.dumps(names))
        assert "damaged" in fail("--resume", found.path)
    (photos / "plain" / "000.png").write_bytes(kept)
    for key in ("scheme", "notes"):
        manifest.write_text(json.dumps({k: v for k, v in whole.items() if k != key}))
        assert "damaged" in fail("--resume", found.path)
    manifest.write_text(json.dumps(whole))
    assert netloom.resume_cross_validation(found.path, quiet=True).result["status"] == "finished"


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_run_of_several_is_extended_as_any_other(jobs: int, photos: Path, tmp_path: Path) -> None:
    """What has told of its progress was no callback of the user's."""
    found = netloom.cross_validate(photos, folds=2, jobs=jobs, plan=PLAN, out=tmp_path, quiet=True, settings=QUICK)
    path = found.runs[0].path
    assert netloom.load(path).result["callbacks"] == []
    assert netloom.resume(path, epochs=3, quiet=True).result["departures"] == []


def test_a_run_that_another_process_trains_is_left_to_it(one_by_one: Any, photos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(one_by_one.path, folder)
    path = sorted(folder.glob("fold-*"))[0]
    (path / "result.json").unlink()
    told = r"1 of 3 trainings failed.*Another process is training"
    with lock_file(path / "split.json", "busy"), pytest.raises(TrainingError, match=told):
        netloom.resume_cross_validation(folder, jobs=1, quiet=True)
    assert netloom.resume_cross_validation(folder, jobs=1, quiet=True).result["status"] == "finished"


@pytest.mark.slow
def test_seeds_at_once_give_the_bits_of_seeds_one_by_one(photos: Path, tmp_path: Path) -> None:
    from netloom.workflows.seeds import resume_seeds, train_seeds

    found = {
        jobs: train_seeds(photos, n_seeds=2, jobs=jobs, plan=PLAN, out=tmp_path / str(jobs), quiet=True, settings=QUICK)
        for jobs in (1, 2)
    }
    assert untimed({k: v for k, v in found[1].items() if k != "runs"}) == untimed(
        {k: v for k, v in found[2].items() if k != "runs"}
    )
    for one, other in zip(found[1]["runs"], found[2]["runs"], strict=True):
        assert (Path(one) / "weights.safetensors").read_bytes() == (Path(other) / "weights.safetensors").read_bytes()
    assert resume_seeds(found[1]["folder"], quiet=True)["test_accuracy"] == found[1]["test_accuracy"]


def test_a_network_that_other_processes_cannot_import_is_trained_one_by_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def inside(in_channels: int, num_outputs: int) -> Any:
        return work.small_network(in_channels, num_outputs)

    options: dict[str, Any] = {"folds": 2, "plan": PLAN, "out": tmp_path, "settings": {"epochs": 1}}
    with pytest.raises(NetloomError, match=r"inside' cannot be used by other processes"):
        netloom.cross_validate(pictures(), model=inside, jobs=2, quiet=True, **options)
    with pytest.raises(NetloomError, match="a module keeps its trained weights"):
        netloom.cross_validate(pictures(), model=inside(3, 3), quiet=True, **options)
    assert not list(tmp_path.iterdir())
    found = netloom.cross_validate(pictures(), model=inside, **options)
    assert found.result["jobs"] == 1
    assert found.result["model"] == "inside"
    assert "One training after the other" in capsys.readouterr().err


@pytest.mark.slow
def test_a_network_of_the_users_own_is_trained_at_once(tmp_path: Path) -> None:
    found = {
        jobs: netloom.cross_validate(
            pictures(),
            folds=2,
            model=work.small_network,
            jobs=jobs,
            plan=PLAN,
            out=tmp_path / str(jobs),
            quiet=True,
            settings={"epochs": 1},
        )
        for jobs in (1, 2)
    }
    assert_same_bits(found[2].path, found[1].path)
