from __future__ import annotations

import functools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from typer.testing import CliRunner

import netloom
from figures import note
from netloom.cli import app
from netloom.data import decoding
from netloom.data.imageset import load_image_set
from netloom.data.worker_pool import WorkerPool
from netloom.errors import NetloomError, RunError
from netloom.progress import Reporter
from netloom.recipe import load_recipe
from netloom.runtime import ConvolutionMethods
from netloom.training.callbacks import Callback
from netloom.training.checkpoint import load_checkpoint
from netloom.training.divided import DividedStep
from netloom.tuning.space import Dimension
from netloom.workflows import report, training_run
from netloom.workflows.prepare import prepare_data
from netloom.workflows.seeds import resume_seeds, train_seeds
from netloom.workflows.study_pictures import study_pictures
from netloom.workflows.training_run import InterruptedTrainingError
from picture_folders import write_folder
from workflows.killed_training import KINDS, RECIPE, Killer

pytestmark = pytest.mark.usefixtures("one_thread")

SCRIPT = Path(__file__).parent / "killed_training.py"
STEPS_PER_EPOCH = 5  # 60 pictures: 12 to test, 10 to validate, 38 to train in batches of 8
NEVER_SEEN = "test pictures it had never seen (95% interval"
TIMED = ("seconds", "images_per_second")
DENSE = {"batch_size": 8, "augmentation": None, "precision": "float32", "shards": 0, "schedule": None}
WholeOf = Callable[[str], netloom.Run]
POSIX = pytest.mark.skipif(os.name == "nt", reason="SIGKILL is POSIX")


@pytest.fixture(scope="module")
def whole_of(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> WholeOf:
    """The uninterrupted training of a kind."""

    @functools.cache
    def run(kind: str) -> netloom.Run:
        return train(photos, tmp_path_factory.mktemp(kind), **KINDS[kind])

    return run


@pytest.fixture(scope="module")
def whole(whole_of: WholeOf) -> netloom.Run:
    """That of all that has a state."""
    return whole_of("all")


def train(photos: Path, out: Path, callback: Callback | None = None, **changes: Any) -> netloom.Run:
    callbacks = [callback or Killer(10**9, "step")]
    return netloom.train(photos, out=out, quiet=True, callbacks=callbacks, settings={**RECIPE, **changes})


def resume(path: Path, **options: Any) -> netloom.Run:
    return netloom.resume(path, quiet=True, callbacks=[Killer(10**9, "step")], **options)


def untimed(row: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in row.items() if name not in TIMED}


def saved(run: netloom.Run) -> dict[str, Any]:
    """What a checkpoint holds beside tensors: counters, history, callbacks' states; without what the clock says."""
    values = load_checkpoint(run.checkpoint_path).values
    for state in values["callbacks"].values():
        for name in ("seconds", "longest_epoch_seconds"):  # of the time limit
            state.pop(name, None)
    return {**values, "history": [untimed(row) for row in values["history"]]}


def assert_same_bits(resumed: netloom.Run, whole: netloom.Run) -> None:
    """Weights, optimizer state, callbacks' states, counters and figures."""
    for path in ("weights_path", "checkpoint_path"):
        ours, theirs = (load_file(getattr(run, path)) for run in (resumed, whole))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert saved(resumed) == saved(whole)
    assert [untimed(row) for row in resumed.history] == [untimed(row) for row in whole.history]
    assert resumed.result["test"] == whole.result["test"]
    assert resumed.result["status"] == "finished"


def killed(photos: Path, out: Path, kind: str, whole: netloom.Run, step: int, phase: str) -> Path:
    """The folder of a run whose process was killed."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(SCRIPT), str(photos), str(out), kind, str(whole.path), str(step), phase]
    result = subprocess.run(command, env=environment, capture_output=True, timeout=120, check=False)
    assert result.returncode == -signal.SIGKILL, result.stderr.decode()
    (folder,) = out.iterdir()
    return folder


def steps_saved(folder: Path) -> int:
    """How many steps a killed run need not take again."""
    path = folder / "checkpoint.safetensors"
    return int(load_checkpoint(path).values["step"]) if path.exists() else 0


@POSIX
@pytest.mark.parametrize(
    ("kind", "step", "phase", "left"),
    [
        ("all", 1, "step", 0),
        ("all", 13, "step", 12),
        ("all", 7, "validation", 9),
        ("all", 12, "save", 11),
        ("stopping", 12, "step", 11),
    ],
)
def test_a_killed_training_is_resumed_bit_for_bit(
    photos: Path, tmp_path: Path, whole_of: WholeOf, kind: str, step: int, phase: str, left: int
) -> None:
    folder = killed(photos, tmp_path, kind, whole_of(kind), step, phase)
    assert steps_saved(folder) == left
    resumed = resume(folder)
    assert not list(folder.glob(".*partial"))
    assert_same_bits(resumed, whole_of(kind))


def test_a_training_whose_early_stopping_fires_has_few_epochs(whole_of: WholeOf) -> None:
    """Else nothing would tell whether a resumption knows how long it has waited."""
    assert whole_of("stopping").result["epochs"] == 3
    assert whole_of("all").result["epochs"] == RECIPE["epochs"]


@POSIX
@pytest.mark.slow
def test_thirty_kills_at_random_steps(photos: Path, tmp_path: Path, whole_of: WholeOf) -> None:
    """Of trainings with all that has a state, of such as end early, in shards, and with captured steps."""
    draw, kills = random.Random(20), []
    long = RECIPE["epochs"]
    for kind, n, epochs in (("all", 12, long), ("stopping", 6, 3), ("shards", 6, long), ("captured", 6, long)):
        for step in draw.sample(range(1, STEPS_PER_EPOCH * epochs), n):
            phase = draw.choice(["step", "step", "validation", "save"])
            folder = killed(photos, tmp_path / str(len(kills)), kind, whole_of(kind), step, phase)
            kills.append({"kind": kind, "step": step, "phase": phase, "resumed_from": steps_saved(folder)})
            assert_same_bits(resume(folder), whole_of(kind))
    points = {(kill["kind"], kill["resumed_from"]) for kill in kills}
    within = sum(kill["resumed_from"] % STEPS_PER_EPOCH > 0 for kill in kills)
    note(
        "trainings killed and resumed",
        kills=len(kills),
        same_bits=len(kills),
        resumption_points=len(points),
        resumed_within_an_epoch=within,
        of=kills,
    )
    assert len(kills) == 30
    assert len(points) >= 20
    assert within >= 15


def test_members_of_a_job_that_were_killed_at_their_report_get_it(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without another test; those that have one are left alone."""
    settings = {**DENSE, "epochs": 1, "filters": [4]}
    summary = train_seeds(photos, n_seeds=2, out=tmp_path, jobs=1, quiet=True, settings=settings)
    first, second = (netloom.load(path) for path in summary["runs"])
    before, drawn = second.result, first.report_path.stat().st_mtime_ns
    second.report_path.unlink()

    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("the test part is looked at again")

    monkeypatch.setattr(training_run, "evaluate_model", fail)
    assert resume_seeds(summary["folder"], quiet=True)["test_accuracy"] == summary["test_accuracy"]
    assert second.result == before
    assert NEVER_SEEN in second.report_path.read_text("utf-8")
    assert first.report_path.stat().st_mtime_ns == drawn


class StopAt(Callback):
    """Asks for an end as a user does: by a signal to this process, after a step or when its epoch is validated."""

    def __init__(self, step: int, number: int, *, validating: bool = False) -> None:
        self.step, self.number, self.validating = step, number, validating

    def on_batch_end(self, state: Any) -> None:
        if state.step == self.step and not self.validating:
            os.kill(os.getpid(), self.number)

    def on_validation_start(self, state: Any) -> None:
        if state.step == self.step and self.validating:
            os.kill(os.getpid(), self.number)


@POSIX
@pytest.mark.parametrize("shards", [1, 2])
def test_a_training_with_captured_steps_is_resumed_bit_for_bit(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shards: int
) -> None:
    """How convolutions compute, a measurement otherwise, is in the plan that the run goes on with."""
    methods = (ConvolutionMethods(weight_gradient="unfolded"),)
    monkeypatch.setattr(DividedStep, "faster_convolutions", lambda self: methods)
    small = {**RECIPE, "filters": [8], "dense_units": [], "epochs": 3}

    def train_until(step: int, out: Path, **options: Any) -> netloom.Run:
        callbacks = [StopAt(step, signal.SIGINT)]
        return netloom.train(photos, out=out, quiet=True, callbacks=callbacks, settings=small, **options)

    with pytest.raises(InterruptedTrainingError) as caught:
        train_until(8, tmp_path / "cut", shards=shards)
    cut = caught.value.run
    assert (cut.plan.shards, cut.plan.convolutions) == (shards, methods)
    assert cut.result["epochs"] == 1
    monkeypatch.setattr(DividedStep, "faster_convolutions", lambda self: ())
    whole = train_until(10**9, tmp_path / "whole", plan=cut.plan)
    assert_same_bits(netloom.resume(cut.path, quiet=True), whole)


@POSIX
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_training_is_resumed_bit_for_bit(
    photos: Path, tmp_path: Path, whole: netloom.Run, number: int, code: int
) -> None:
    with pytest.raises(InterruptedTrainingError) as caught:
        train(photos, tmp_path, StopAt(8, number))
    assert caught.value.exit_code == code
    folder = caught.value.run.path
    assert caught.value.run.result["status"] == "interrupted"
    assert "test" not in caught.value.run.result
    assert_same_bits(resume(folder), whole)


def test_a_run_that_is_training_is_left_alone(photos: Path, tmp_path: Path) -> None:
    """By another process; a second one would take its half-written files for those of a killed one."""
    program = (
        "import sys, netloom\n"
        "class Waits(netloom.Callback):\n"
        "    def on_epoch_end(self, state):\n"
        "        print('training', flush=True); sys.stdin.read()\n"
        f"netloom.train({str(photos)!r}, out={str(tmp_path)!r}, epochs=2, quiet=True, callbacks=[Waits()])\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline().strip() == b"training"
        (folder,) = tmp_path.iterdir()
        half_written = folder / ".checkpoint.safetensors.1.partial"
        half_written.write_bytes(b"")
        with pytest.raises(RunError, match="Another process is training"):
            netloom.resume(folder, quiet=True)
        assert half_written.exists()
        assert netloom.load(folder).split
        other.kill()
    assert netloom.resume(folder, quiet=True).result["status"] == "finished"
    assert not half_written.exists()


@POSIX
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("epoch", [2, RECIPE["epochs"]])
def test_a_signal_during_a_validation_ends_the_training_behind_it(
    photos: Path, tmp_path: Path, whole: netloom.Run, number: int, epoch: int
) -> None:
    """Also in the last epoch, before the test; SIGTERM leaves no time for scores and report."""
    with pytest.raises(InterruptedTrainingError, match=rf"after {epoch} of 6 epochs.*resume") as caught:
        train(photos, tmp_path, StopAt(epoch * STEPS_PER_EPOCH, number, validating=True))
    run = caught.value.run
    values = load_checkpoint(run.checkpoint_path).values
    assert (values["epoch"], values["step"], values["progress"]["batches"]) == (epoch, epoch * STEPS_PER_EPOCH, 0)
    assert (run.result["status"], run.result["tests"]) == ("interrupted", 0)
    assert run.weights_path.is_file()
    at_once = number == signal.SIGTERM
    assert ("validation" not in run.result, not run.report_path.is_file()) == (at_once, at_once)
    resumed = resume(run.path)
    assert_same_bits(resumed, whole)
    assert resumed.result["tests"] == 1


@POSIX
def test_a_signal_during_the_validation_that_ends_a_training_early_is_heard(
    photos: Path, tmp_path: Path, whole_of: WholeOf
) -> None:
    whole = whole_of("stopping")
    with pytest.raises(InterruptedTrainingError) as caught:
        train(photos, tmp_path, StopAt(3 * STEPS_PER_EPOCH, signal.SIGTERM, validating=True), **KINDS["stopping"])
    resumed = resume(caught.value.run.path)
    assert_same_bits(resumed, whole)
    assert (resumed.result["epochs"], resumed.result["stop_reason"]) == (3, whole.result["stop_reason"])


@POSIX
@pytest.mark.parametrize("interrupted_before", [False, True])
def test_a_run_that_was_killed_at_its_report_gets_it_without_another_test(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, interrupted_before: bool
) -> None:
    """Where it had one of an interruption, that one is replaced."""

    def killed(*_: Any) -> None:
        raise SystemExit

    begin = functools.partial(train, photos, tmp_path, epochs=1)
    if interrupted_before:
        with pytest.raises(InterruptedTrainingError) as caught:
            begin(StopAt(4, signal.SIGINT))
        assert NEVER_SEEN not in caught.value.run.report_path.read_text("utf-8")
        begin = functools.partial(resume, caught.value.run.path)
    with monkeypatch.context() as patch:
        patch.setattr(report, "write_report", killed)
        with pytest.raises(SystemExit):
            begin()
    (folder,) = tmp_path.iterdir()
    before = netloom.load(folder).result
    assert (before["status"], before["tests"]) == ("finished", 1)
    assert not (folder / "report.html").exists()
    with monkeypatch.context() as patch:
        patch.setattr(training_run, "evaluate_model", killed)
        resumed = resume(folder)
    assert resumed.result == before
    assert NEVER_SEEN in resumed.report_path.read_text("utf-8")
    drawn = resumed.report_path.stat().st_mtime_ns
    assert resume(folder).report_path.stat().st_mtime_ns == drawn


def test_a_constant_schedule_is_extended_exactly(photos: Path, tmp_path: Path) -> None:
    changes = {"schedule": None, "early_stopping": None}
    whole = train(photos, tmp_path / "whole", **changes)
    short = train(photos, tmp_path / "short", epochs=3, **changes)
    extended = resume(short.path, epochs=6)
    assert extended.recipe.epochs == 6
    assert_same_bits(extended, whole)
    assert extended.result["tests"] == 2
    page, unseen = extended.report_path.read_text("utf-8"), whole.report_path.read_text("utf-8")
    assert "test pictures it was not trained on (95% interval" in page
    assert "The test part was looked at 2 times, with training in between." in page
    assert "never seen" not in page
    assert "or in any choice" not in page
    assert NEVER_SEEN in unseen
    assert "looked at" not in unseen


def dense(in_channels: int, num_outputs: int, image_size: tuple[int, int]) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(in_channels * image_size[0] * image_size[1], num_outputs))


def raising(in_channels: int) -> nn.Module:
    raise ValueError("it has a mistake")


class Dying(Callback):
    """Ends a training as a kill does: nothing is written any more."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_batch_end(self, state: Any) -> None:
        if state.step == self.step:
            raise SystemExit


def test_an_extension_that_cannot_begin_leaves_the_run_as_it_was(photos: Path, tmp_path: Path) -> None:
    run = netloom.train(photos, out=tmp_path, model=dense, quiet=True, epochs=2, settings=DENSE)
    before = run.result
    with pytest.raises(ValueError, match="mistake"):
        netloom.resume(run.path, epochs=4, model=raising, quiet=True)
    assert netloom.resume(run.path, model=dense, quiet=True).result == before
    extended = netloom.resume(run.path, epochs=4, model=dense, quiet=True)
    assert (extended.recipe.epochs, extended.result["epochs"], extended.result["status"]) == (4, 4, "finished")


def test_an_extension_that_is_killed_before_its_first_checkpoint_goes_on(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a training that early stopping has ended, as nothing improves at a rate of zero; 5 steps are an epoch."""
    stopping = {"monitor": "validation_loss", "patience": 2}
    still = {**DENSE, "optimizer": "sgd", "learning_rate": 1e-30, "early_stopping": stopping}
    run = netloom.train(photos, out=tmp_path, model=dense, quiet=True, epochs=8, settings=still)
    assert run.result["epochs"] == 3
    undisturbed = shutil.copytree(run.path, tmp_path / "undisturbed")
    with pytest.raises(SystemExit):
        netloom.resume(run.path, epochs=12, model=dense, quiet=True, callbacks=[Dying(3 * STEPS_PER_EPOCH + 3)])
    resumed = netloom.resume(run.path, model=dense)
    told = capsys.readouterr().err
    assert "Extending the training from 8 to 12 epochs" in told
    assert "it had ended early by early stopping: validation_loss has not improved" in told
    assert "early stopping waits anew" in told
    assert (resumed.recipe.epochs, resumed.result["epochs"]) == (12, 5)
    assert_same_bits(resumed, netloom.resume(undisturbed, epochs=12, model=dense, quiet=True))


def test_a_finished_run_is_left_as_it_is(whole: netloom.Run) -> None:
    before = whole.result
    assert resume(whole.path).result == before


def test_resuming_with_fewer_epochs_or_changed_pictures_is_refused(photos: Path, tmp_path: Path) -> None:
    copy = write_folder(tmp_path / "photos")
    run = train(copy, tmp_path / "runs", epochs=2)
    with pytest.raises(NetloomError, match="has trained 2 epochs already"):
        resume(run.path, epochs=1)
    (copy / "plain" / "000.png").write_bytes((copy / "down" / "001.png").read_bytes())
    with pytest.raises(NetloomError, match="have changed"):
        resume(run.path, epochs=3)


@pytest.fixture
def busy(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """A machine so busy that the third picture takes too long, until the patch is undone; then it is tried again."""
    own = WorkerPool.run

    def run(pool: WorkerPool, settings: dict[str, Any], chunks: Any) -> Iterator[Any]:
        for index, answer in own(pool, settings, chunks):
            late = index == 2 and settings["operation"] == "decode"
            yield index, ["unreadable", "decoding it took longer than 60 s", "for now"] if late else answer

    monkeypatch.setattr(decoding, "_SECONDS_BEFORE_ANOTHER_TRY", 0.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(WorkerPool, "run", run)
        yield patch


@POSIX
def test_a_run_goes_on_without_a_picture_that_is_readable_by_now(
    busy: pytest.MonkeyPatch, photos: Path, tmp_path: Path
) -> None:
    whole = train(photos, tmp_path / "whole")
    assert whole.data.audit["rejected"] == [{"path": "across/002.png", "reason": "decoding it took longer than 60 s"}]
    with pytest.raises(InterruptedTrainingError) as caught:
        train(photos, tmp_path / "stopped", StopAt(8, signal.SIGINT))
    busy.undo()
    assert len(load_image_set(photos, image_size=12, channels=3).image_set) == 60
    assert_same_bits(resume(caught.value.run.path), whole)
    scores = whole.evaluate()
    assert not scores["source_changed"]
    assert scores["accuracy"] == whole.result["test"]["accuracy"]
    assert whole.evaluate(photos)["n"] == 60
    changed = write_folder(tmp_path / "photos")
    (changed / "plain" / "000.png").write_bytes((changed / "down" / "001.png").read_bytes())
    facts = json.loads((whole.path / "data.json").read_text(encoding="utf-8"))
    (whole.path / "data.json").write_text(json.dumps({**facts, "source_location": str(changed)}), encoding="utf-8")
    with pytest.raises(NetloomError, match="have changed"):
        resume(whole.path, epochs=7)


def test_a_search_goes_on_without_a_picture_that_is_readable_by_now(busy: pytest.MonkeyPatch, photos: Path) -> None:
    """At each of the sizes that it tries."""
    recipe, reporter = load_recipe("photos", {"image_size": 8}), Reporter(quiet=True)
    data = prepare_data(photos, recipe, reporter)
    busy.undo()
    sizes = [Dimension("image_size", "choice", choices=(8, 12))]
    found = study_pictures(photos, recipe, data, sizes, reporter)
    assert [kind.image_set.images.shape[2] for kind, _ in found.kinds] == [8, 12]
    assert all(kind.image_set.ids == data.image_set.ids for kind, _ in found.kinds)
    assert len(data.image_set) == 59


@POSIX
def test_an_epoch_that_has_begun_cannot_be_left_out(photos: Path, tmp_path: Path, whole: netloom.Run) -> None:
    with pytest.raises(InterruptedTrainingError) as caught:
        train(photos, tmp_path, StopAt(STEPS_PER_EPOCH + 3, signal.SIGINT))
    folder = caught.value.run.path
    before = (folder / "checkpoint.safetensors").read_bytes()
    with pytest.raises(NetloomError, match="is within epoch 2 already; it cannot be resumed to have 1"):
        resume(folder, epochs=1)
    assert (folder / "checkpoint.safetensors").read_bytes() == before
    assert_same_bits(resume(folder), whole)


def test_pictures_with_other_weights_have_changed(photos: Path, tmp_path: Path) -> None:
    rows = [f"{path},{path.parent.name},{1 + i % 2}" for i, path in enumerate(sorted(photos.rglob("*.png")))]
    table = tmp_path / "photos.csv"
    table.write_text("\n".join(["image_path,label,weight", *rows]), encoding="utf-8")
    run = train(table, tmp_path / "runs", epochs=1)
    assert run.data.fingerprint != train(photos, tmp_path / "runs", epochs=1).data.fingerprint
    table.write_text("\n".join(["image_path,label,weight", *rows]).replace(",2", ",3"), encoding="utf-8")
    with pytest.raises(NetloomError, match="have changed"):
        resume(run.path, epochs=2)


def test_a_run_goes_on_on_another_device(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run whose plan names a GPU, which this machine does not have."""
    changes = {"schedule": None, "early_stopping": None}
    run = train(photos, tmp_path, epochs=2, **changes)
    path = run.path / "execution.json"
    path.write_text(path.read_text(encoding="utf-8").replace('"cpu"', '"cuda:0"'), encoding="utf-8")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(NetloomError, match=r"trained on cuda:0, which this machine does not have.* --device auto"):
        resume(run.path, epochs=3)
    assert run.recipe.epochs == 2
    arguments = ["train", "--resume", str(run.path), "--device", "cpu", "--set", "epochs=3"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.stderr
    assert "it goes on on cpu and began on cuda:0, so the last bits differ" in result.stderr
    assert (run.plan.device, run.result["device"], run.result["epochs"]) == ("cpu", "cpu", 3)
    again = CliRunner().invoke(app, [*arguments[:-1], "epochs=4"])
    assert "last bits" not in again.stderr
    assert run.result["epochs"] == 4
