"""The command: its options, its cases, its result files; and the facts of the machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from benchmarks.suite import __main__ as command
from benchmarks.suite import page, plans
from benchmarks.suite.errors import OtherSettingError
from benchmarks.suite.figures import summary
from benchmarks.suite.machine import OtherWork, busy_seconds, cpu_flags, machine_record, source_version
from benchmarks.suite.pictures import HELD_OUT, noise, photo_folder, source_of_photos
from PIL import Image

from netloom.runtime import usable_cpus


def test_the_defaults_are_a_full_run_into_the_documentation() -> None:
    options = command.arguments([])
    assert options.names == ["training", "inference", "data", "scaling", "inference-scaling", "data-scaling"]
    assert (options.repeats, options.threads, options.out) == (5, usable_cpus(), page.RESULTS)


def test_a_quick_run_does_not_touch_the_documentation() -> None:
    options = command.arguments(["training", "--quick"])
    assert options.repeats == 2
    assert page.RESULTS not in (options.out, *options.out.parents)


def test_rows_without_most_contenders_do_not_touch_the_documentation() -> None:
    assert command.arguments(["--contenders", "fastai"]).out == command.arguments(["--quick"]).out


@pytest.mark.skipif(os.name == "nt", reason="links need a privilege there")
def test_the_peers_may_have_a_python_of_their_own(tmp_path: Path) -> None:
    link = tmp_path / "python"
    link.symlink_to(sys.executable)
    assert command.arguments(["--peers-python", str(link)]).peers_python == link, "an environment's is a link"
    assert command.arguments([]).peers_python.parts[-3] == ".venv-peers"


@pytest.mark.parametrize(
    "wrong",
    [
        ["speed"],
        ["--threads", "0"],
        ["--threads", "9999"],
        ["--repeats", "0"],
        ["--peers-python", "no-such-python"],
        ["--only", "vgg"],
    ],
)
def test_mistakes_are_told(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        command.arguments(wrong)
    assert wrong[-1] in capsys.readouterr().err


def test_the_training_covers_own_batch_sizes_and_32_and_128() -> None:
    benchmark = plans.training(4, cuda=False)
    covered = {(case["network"], case["batch_size"]) for case in benchmark.cases}
    assert len(covered) == len(benchmark.cases) == 18
    assert {("cats-dogs-scratch", 20), ("cats-dogs-scratch", 32), ("mnist-convnet", 64), ("cifar10-vgg", 32)} <= covered


def test_compiling_is_tried_on_a_gpu_only() -> None:
    for cuda in (False, True):
        tuned = next(c for c in plans.training_contenders(4, cuda=cuda) if c.name == "PyTorch tuned")
        assert any("compile" in variant for variant in tuned.variants) is cuda


@pytest.mark.parametrize(
    ("name", "base", "batch_sizes", "counts"),
    [
        ("scaling", ("cifar10-bayes-cnn", 10_240), [32, 128, 512], [1024, 10_240, 51_200]),
        ("inference-scaling", ("cifar10-bayes-cnn", 20_480), [32, 128, 512], [1024, 20_480, 51_200]),
        ("data-scaling", ("photos", 990), [32, 128, 512], [990, 3960]),
    ],
)
def test_scaling_changes_one_thing_at_a_time(
    name: str, base: tuple[str, int], batch_sizes: list[int], counts: list[int]
) -> None:
    cases = plans.BENCHMARKS[name](4, cuda=False).cases
    assert sorted({case["processors"] for case in cases}) == [1, 2, 4]
    assert sorted({case["batch_size"] for case in cases}) == batch_sizes
    assert sorted({case["pictures"] for case in cases}) == counts
    first = {"network": base[0], "batch_size": 32, "pictures": base[1], "processors": 4}
    assert all(sum(case[key] != first[key] for key in first) <= 1 for case in cases)
    assert len({tuple(case.values()) for case in cases}) == len(cases)
    assert [case["processors"] for case in plans.BENCHMARKS[name](1, cuda=False).cases[:1]] == [1]


def test_scaling_has_both_precisions_of_keras_and_folders_their_goals_peers() -> None:
    def names(name: str) -> set[str]:
        return {contender.name for contender in plans.BENCHMARKS[name](4, cuda=False).contenders}

    assert names("scaling") == {"netloom", "Keras TensorFlow", "Keras TensorFlow bfloat16", "PyTorch", "PyTorch tuned"}
    assert names("inference-scaling") == names("inference") >= {"netloom", "PyTorch", "ONNX Runtime"}
    assert names("data-scaling") < names("data")


def test_predictions_take_several_batches() -> None:
    assert all(case["pictures"] >= 2 * case["batch_size"] for case in plans.inference(4, cuda=False).cases)


def test_precisions_of_predictions_are_tried() -> None:
    pytorch = next(c for c in plans.inference(4, cuda=False).contenders if c.name == "PyTorch")
    assert [variant["precision"] for variant in pytorch.variants] == ["float32", "bfloat16"]


def test_short_epochs_stay_whole_batches() -> None:
    cases = plans.training(4, cuda=False).cases
    assert plans.resized(cases, 1) == cases
    for factor in (0.25, 8):
        for case in plans.resized(cases, factor):
            assert case["pictures"] % (case["batch_size"] if case["batch_size"] in (32, 64) else 128) == 0
    photos = plans.data(4, cuda=False).cases
    assert plans.resized(photos, 8) == photos
    assert [case["pictures"] for case in plans.resized(photos, 0.25)] == [990]


@pytest.mark.parametrize(
    ("given", "name"),
    [
        (("training", "cpu", None), "training"),
        (("training", "cuda", None), "training-cuda"),
        (("scaling", "cpu", "AVX2"), "scaling-avx2"),
    ],
)
def test_results_of_another_setting_have_another_name(given: tuple[str, str, str | None], name: str) -> None:
    assert command.result_name(*given) == name


class Measured:
    """Stands for the processes. `fastest` is the variant of Keras that is, by batch size."""

    def __init__(self, fastest: dict[int, str] | None = None) -> None:
        self.asked: list[tuple[str, dict[str, Any], int]] = []
        self.fastest = fastest or {}
        self.installed = {"netloom": {"torch": "2.13.0"}, "fastai": {"fastai": "2.8.12"}}

    def versions(self) -> dict[str, dict[str, str]]:
        return self.installed

    def __call__(self, contender: plans.Contender, variant: dict[str, Any], case: plans.Case) -> dict[str, Any]:
        self.asked.append((contender.name, variant, case["batch_size"]))
        if contender.library == "lightning":
            return {"missing": "lightning is not installed"}
        names = ("epoch_seconds", "first_seconds", "start_seconds", "peak_memory_bytes")
        speed = 20.0 if variant.get("inputs") == self.fastest.get(case["batch_size"], "tf.data") else 10.0
        same = {"parameters": 7, "device": "cpu", "note": "a way"}
        return {"pictures_per_second": speed, **dict.fromkeys(names, 1.0), **same}

    @property
    def batch_sizes(self) -> set[int]:
        return {batch_size for _, _, batch_size in self.asked}


@pytest.fixture(autouse=True)
def commit(monkeypatch: pytest.MonkeyPatch) -> list[str | None]:
    """The commit that is measured, in a list of one."""
    found: list[str | None] = ["a" * 40]
    monkeypatch.setattr(command, "source_version", lambda root: found[0])
    return found


def record(
    measure: Measured, out: Path, *more: str, only: str = "mnist-convnet", deadline: float | None = None
) -> dict[str, Any]:
    given = ["training", "--only", only, "--repeats", "3", "--out", str(out), *more]
    options = command.arguments(given)
    in_time = command.record(
        plans.training(options.threads, cuda=False),
        measure,  # type: ignore[arg-type]
        options,
        "cpu",
        deadline,
    )
    assert in_time == (deadline is None)
    found: dict[str, Any] = json.loads((out / "training.json").read_text(encoding="utf-8"))
    return found


def rows(found: dict[str, Any]) -> list[tuple[str, int]]:
    return [(entry["case"]["network"], entry["case"]["batch_size"]) for entry in found["cases"]]


MNIST = [("mnist-convnet", 32), ("mnist-convnet", 64), ("mnist-convnet", 128)]


def test_a_record_holds_every_case_with_figures_and_setting(tmp_path: Path) -> None:
    measure = Measured()
    found = record(measure, tmp_path)
    assert rows(found) == MNIST
    first = found["cases"][0]
    assert first["command"] == "./scripts/bench training --only mnist-convnet --repeats 3"
    assert (first["commit"], first["versions"]["fastai"]) == ("a" * 40, {"fastai": "2.8.12"})
    assert first["contenders"]["netloom"]["pictures_per_second"] == summary([10.0] * 3)
    assert first["contenders"]["Lightning"] == {"missing": "lightning is not installed"}
    assert str(tmp_path) not in json.dumps(found), "no paths of the machine"
    assert "## Training" in page.performance_page(tmp_path)


def test_variants_are_tried_at_every_batch_size_and_lent_to_the_other_precision(tmp_path: Path) -> None:
    measure = Measured({32: "float32 arrays", 64: "tf.data", 128: "uint8 arrays"})
    found = record(measure, tmp_path)
    for entry, fastest in zip(found["cases"], ("float32 arrays", "tf.data", "uint8 arrays"), strict=True):
        tried = [trial["variant"]["inputs"] for trial in entry["trials"] if trial["contender"] == "Keras TensorFlow"]
        assert tried == ["float32 arrays", "uint8 arrays", "tf.data"]
        measured = {name: result.get("variant") for name, result in entry["contenders"].items()}
        assert measured["Keras TensorFlow"] == {"inputs": fastest}
        assert measured["Keras TensorFlow bfloat16"] == {"inputs": fastest, "precision": "bfloat16"}


def test_a_run_that_was_cut_short_goes_on(tmp_path: Path) -> None:
    whole = record(Measured(), tmp_path)
    path = tmp_path / "training.json"
    machine = {**whole["machine"], "memory_bytes": 1}  # started anew, it has some pages more or less
    path.write_text(json.dumps({**whole, "machine": machine, "cases": whole["cases"][:2]}), encoding="utf-8")
    measure = Measured()
    again = record(measure, tmp_path, "--continue")
    assert rows(again) == MNIST
    assert measure.batch_sizes == {128}


def test_a_run_that_is_cut_short_loses_nothing_of_the_one_before(tmp_path: Path) -> None:
    class Cut(Measured):
        def __call__(self, contender: plans.Contender, variant: dict[str, Any], case: plans.Case) -> dict[str, Any]:
            if case["batch_size"] == 64:
                raise KeyboardInterrupt
            return super().__call__(contender, variant, case)

    before = record(Measured({32: "float32 arrays"}), tmp_path)
    with pytest.raises(KeyboardInterrupt):
        record(Cut(), tmp_path)
    after = json.loads((tmp_path / "training.json").read_text(encoding="utf-8"))
    assert rows(after) == MNIST
    assert after["cases"][1:] == before["cases"][1:]
    assert after["cases"][0] != before["cases"][0]


def test_networks_that_are_not_asked_for_keep_their_figures(tmp_path: Path) -> None:
    record(Measured(), tmp_path)
    found = record(Measured(), tmp_path, only="cifar10-lenet5")
    assert rows(found) == [("cifar10-lenet5", 32), ("cifar10-lenet5", 128), *MNIST], "in the order of the benchmark"
    assert [entry["command"].split()[3] for entry in found["cases"]] == ["cifar10-lenet5"] * 2 + ["mnist-convnet"] * 3


def test_no_further_case_begins_when_the_time_is_over(tmp_path: Path) -> None:
    class Slow(Measured):
        def __call__(self, contender: plans.Contender, variant: dict[str, Any], case: plans.Case) -> dict[str, Any]:
            now[0] += 1.0
            return super().__call__(contender, variant, case)

    now = [0.0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("time.monotonic", lambda: now[0])
        found = record(Slow(), tmp_path, deadline=0.5)
    assert rows(found) == MNIST[:1]


def test_what_has_no_figures_yet_comes_before_what_has_those_of_other_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, commit: list[str | None], capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []

    class Noted(Measured):
        def __call__(self, contender: plans.Contender, variant: dict[str, Any], case: plans.Case) -> dict[str, Any]:
            asked.append(case["batch_size"])
            return super().__call__(contender, variant, case)

    monkeypatch.setattr(command, "Processes", lambda **_: Noted())
    whole = record(Measured(), tmp_path)
    (tmp_path / "training.json").write_text(json.dumps({**whole, "cases": whole["cases"][:2]}), encoding="utf-8")
    commit[0] = "b" * 40
    given = ["training", "--only", "mnist-convnet", "--repeats", "3", "--out", str(tmp_path), "--continue"]
    command._measure(command.arguments(given), "cpu", tmp_path)
    assert list(dict.fromkeys(asked)) == [128, 32, 64]
    asked.clear()
    commit[0] = "c" * 40
    command._measure(command.arguments([*given, "--minutes", "0"]), "cpu", tmp_path)
    assert asked == []
    assert "the time is over; go on by --continue" in capsys.readouterr().err


def test_a_case_without_all_contenders_is_measured_anew(tmp_path: Path) -> None:
    record(Measured(), tmp_path, "--contenders", "fastai")
    measure = Measured()
    found = record(measure, tmp_path, "--continue")
    assert measure.batch_sizes == {32, 64, 128}
    assert "Keras TensorFlow" in found["cases"][0]["contenders"]


def test_figures_of_all_contenders_do_not_give_way_to_those_of_a_few(tmp_path: Path) -> None:
    whole = record(Measured(), tmp_path)
    measure = Measured()
    with pytest.raises(OtherSettingError, match=r"figures of Keras TensorFlow, .*--out FOLDER"):
        record(measure, tmp_path, "--contenders", "fastai")
    assert measure.asked == []
    assert json.loads((tmp_path / "training.json").read_text(encoding="utf-8")) == whole


@pytest.mark.parametrize("more", [(), ("--continue",)])
def test_figures_of_another_setting_stay_as_they_are(tmp_path: Path, more: tuple[str, ...]) -> None:
    whole = record(Measured(), tmp_path)
    other = json.dumps({**whole, "repeats": 4, "machine": {**whole["machine"], "usable_cpus": 99}})
    (tmp_path / "training.json").write_text(other, encoding="utf-8")
    measure = Measured()
    with pytest.raises(OtherSettingError, match=r"another setting \(repeats 4, not 3, another machine\).*--out FOLDER"):
        record(measure, tmp_path, *more)
    assert measure.asked == []
    assert (tmp_path / "training.json").read_text(encoding="utf-8") == other


def test_what_was_measured_of_other_code_is_not_gone_on_with(tmp_path: Path, commit: list[str | None]) -> None:
    record(Measured(), tmp_path)
    commit[0] = "b" * 40
    measure = Measured()
    found = record(measure, tmp_path, "--continue")
    assert measure.batch_sizes == {32, 64, 128}
    assert {entry["commit"] for entry in found["cases"]} == {"b" * 40}


@pytest.mark.parametrize("installed", [{"fastai": "2.9.0"}, {}])
def test_what_was_measured_of_other_versions_is_not_gone_on_with(tmp_path: Path, installed: dict[str, str]) -> None:
    record(Measured(), tmp_path)
    measure = Measured()
    measure.installed = {**measure.installed, "fastai": installed}
    record(measure, tmp_path, "--continue")
    assert measure.batch_sizes == {32, 64, 128}
    again = Measured()
    again.installed = measure.installed
    record(again, tmp_path, "--continue")
    assert again.asked == []


def test_settings_that_differ_are_told_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of the last benchmark too, which would begin after hours."""
    monkeypatch.setattr("sys.argv", ["bench", "training", "scaling", "--out", str(tmp_path)])
    (tmp_path / "scaling.json").write_text(json.dumps({"benchmark": "scaling", "cases": []}), encoding="utf-8")
    monkeypatch.setattr(command, "record", lambda *given: pytest.fail("it was measured"))
    assert command.main() == 2
    assert "scaling.json was measured in another setting" in capsys.readouterr().err


def test_rows_and_contenders_that_are_no_longer_measured_give_way(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = record(Measured(), tmp_path)
    whole["cases"][0]["case"]["pictures"] = 1
    whole["cases"][1]["contenders"]["JAX"] = {"missing": "JAX is not installed"}
    (tmp_path / "training.json").write_text(json.dumps(whole), encoding="utf-8")
    found = record(Measured(), tmp_path)
    assert rows(found) == MNIST
    assert "JAX" not in found["cases"][1]["contenders"]
    assert "1 rows that are no longer measured" in capsys.readouterr().err


def test_trials_begin_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "_TRIALS", tmp_path)
    record(Measured(), tmp_path, "--contenders", "Keras torch")
    found = record(Measured(), tmp_path, "--contenders", "fastai")
    assert set(found["cases"][0]["contenders"]) == {"netloom", "fastai"}


def test_only_the_asked_peers_take_part(tmp_path: Path) -> None:
    measure = Measured()
    found = record(measure, tmp_path, "--contenders", "fastai")
    assert {name for name, _, _ in measure.asked} == {"netloom", "fastai"}
    assert "--contenders 'fastai'" in found["cases"][0]["command"]


def test_the_measured_code_is_that_of_the_last_commit_that_changed_it(tmp_path: Path) -> None:
    def git(*words: str) -> str:
        identity = ("-c", "user.name=A", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false")
        done = subprocess.run(["git", *identity, *words], cwd=tmp_path, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    assert source_version(tmp_path) is None
    git("init", "-q")
    for folder in ("src/netloom", "docs"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "src" / "netloom" / "code.py").write_text("1", encoding="utf-8")
    git("add", "-A")
    git("commit", "-qm", "code")
    commit = git("rev-parse", "HEAD")
    (tmp_path / "docs" / "page.md").write_text("figures", encoding="utf-8")
    assert source_version(tmp_path) == commit
    git("add", "-A")
    git("commit", "-qm", "figures")
    assert source_version(tmp_path) == commit
    (tmp_path / "src" / "netloom" / "code.py").write_text("2", encoding="utf-8")
    changed = source_version(tmp_path)
    assert changed is not None
    assert changed.startswith(f"{commit}+")
    (tmp_path / "src" / "netloom" / "code.py").write_text("3", encoding="utf-8")
    assert source_version(tmp_path) not in (changed, None)


def test_instruction_sets_are_read_from_the_flags() -> None:
    text = "processor : 0\nflags\t\t: fpu sse avx avx2 fma amx_bf16 avx512f bmi2 svm\nflags : other\n"
    assert cpu_flags(text) == ["amx_bf16", "avx", "avx2", "avx512f", "fma"]
    assert cpu_flags("processor : 0\nFeatures : fp asimd sve i8mm\n") == ["asimd", "i8mm", "sve"]
    assert cpu_flags("") == []


def test_the_machine_has_no_names_or_paths() -> None:
    found = machine_record()
    assert set(found) == {
        "system", "processor", "cpu_capability", "usable_cpus", "cuda_devices", "cpu_flags", "memory_bytes",
    }  # fmt: skip


@pytest.mark.skipif(not hasattr(os, "sysconf"), reason="this system has no /proc/stat")
def test_busy_seconds_leave_out_idling_and_waiting() -> None:
    ticks = os.sysconf("SC_CLK_TCK")
    assert busy_seconds("cpu  100 20 30 9999 8888 5 6 0 0 0\ncpu0 1 1 1\n") == 161 / ticks


def test_ones_own_work_is_no_other_work() -> None:
    others = OtherWork()
    found = others.cpus()
    assert found is None or found >= 0


def test_noise_is_the_same_at_every_call() -> None:
    pixels, labels = noise((8, 6, 3), 10, 25)
    again, _ = noise((8, 6, 3), 10, 25)
    assert (pixels.shape, pixels.dtype.name, labels.dtype.name) == ((25, 8, 6, 3), "uint8", "int64")
    assert (pixels == again).all()
    assert set(labels.tolist()) == set(range(10))


def parts(folder: Path) -> dict[str, int]:
    found: dict[str, int] = {}
    for path in folder.rglob("*.jpg"):
        found[path.relative_to(folder).parts[0]] = found.get(path.relative_to(folder).parts[0], 0) + 1
    return found


def test_the_generated_folder_is_made_once(tmp_path: Path) -> None:
    folder = photo_folder(tmp_path / "photos", None, 2 * HELD_OUT + 4)
    assert parts(folder) == {"train": 4, "validation": HELD_OUT, "test": HELD_OUT}
    first = sorted(folder.rglob("*.jpg"))[0]
    with Image.open(first) as picture:
        assert picture.size == (500, 375)
    stamp = first.stat().st_mtime_ns
    assert photo_folder(tmp_path / "photos", None, 2 * HELD_OUT + 4) == folder
    assert first.stat().st_mtime_ns == stamp


def test_a_folder_whose_making_was_cut_short_is_made_anew(tmp_path: Path) -> None:
    left = tmp_path / "photos" / "pictures" / "train" / "first" / "99999.jpg"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"half a picture")
    photo_folder(tmp_path / "photos", None, 2 * HELD_OUT + 2)
    assert not left.exists()


def test_real_pictures_are_taken_where_they_are(tmp_path: Path) -> None:
    count = 2 * HELD_OUT + 4
    with zipfile.ZipFile(tmp_path / "cats_and_dogs_small.zip", "w") as archive:
        for number in range(count):
            archive.writestr(f"train/{('cats', 'dogs')[number % 2]}/{number:03}.jpg", f"picture {number}")
    folder = photo_folder(tmp_path / "photos", tmp_path, count)
    assert parts(folder) == {"train": 4, "validation": HELD_OUT, "test": HELD_OUT}
    contents = {path.read_text() for path in folder.rglob("*.jpg")}
    assert len(contents) == count, "no picture twice"
    assert source_of_photos(tmp_path) == "cats_and_dogs_small.zip"
    assert source_of_photos(None) == source_of_photos(tmp_path / "photos") == "generated"


@pytest.mark.parametrize("words", [["--device", "cpu"], ["--device", "cuda"], []])
def test_the_recorded_command_names_the_device_that_was_asked_for(words: list[str]) -> None:
    options = command.arguments(["training", *words])
    told = command._command(plans.BENCHMARKS["training"](1, cuda=False), options).split()
    assert told == ["./scripts/bench", "training", *words]
