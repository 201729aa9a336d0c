"""The command: its options, its cases, its result files; and the facts of the machine."""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path
from typing import Any

import pytest
from benchmarks.suite import __main__ as command
from benchmarks.suite import page, plans
from benchmarks.suite.figures import summary
from benchmarks.suite.machine import OtherWork, busy_seconds, cpu_flags, machine_record
from benchmarks.suite.pictures import HELD_OUT, noise, photo_folder, source_of_photos
from PIL import Image

from netloom.runtime import usable_cpus


def test_the_defaults_are_a_full_run_into_the_documentation() -> None:
    options = command.arguments([])
    assert options.names == ["training", "inference", "data", "scaling"]
    assert (options.repeats, options.threads, options.out) == (5, usable_cpus(), page.RESULTS)


def test_a_quick_run_does_not_touch_the_documentation() -> None:
    options = command.arguments(["training", "--quick"])
    assert options.repeats == 2
    assert page.RESULTS not in (options.out, *options.out.parents)


@pytest.mark.parametrize("wrong", [["speed"], ["--threads", "0"], ["--threads", "9999"], ["--repeats", "0"]])
def test_mistakes_are_told(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        command.arguments(wrong)
    assert wrong[-1] in capsys.readouterr().err


def test_the_training_covers_own_batch_sizes_and_32_and_128() -> None:
    benchmark = plans.training(4, cuda=False, large=False)
    covered = {(case["network"], case["batch_size"]) for case in benchmark.cases}
    assert len(covered) == len(benchmark.cases) == 16
    assert {("cats-dogs-scratch", 20), ("cats-dogs-scratch", 32), ("mnist-convnet", 64)} <= covered
    assert not any(network == "cifar10-vgg" for network, _ in covered)
    assert any(case["network"] == "cifar10-vgg" for case in plans.training(4, cuda=False, large=True).cases)


def test_compiling_is_tried_on_a_gpu_only() -> None:
    for cuda in (False, True):
        tuned = next(c for c in plans.training_contenders(4, cuda=cuda) if c.name == "PyTorch tuned")
        assert any("compile" in variant for variant in tuned.variants) is cuda


def test_scaling_changes_one_thing_at_a_time() -> None:
    cases = plans.scaling(4, cuda=False, large=False).cases
    assert sorted({case["processors"] for case in cases}) == [1, 2, 4]
    assert sorted({case["batch_size"] for case in cases}) == [32, 64, 128, 256, 512]
    assert sorted({case["pictures"] for case in cases}) == [1024, 10_240, 51_200]
    base = {"network": "cifar10-bayes-cnn", "batch_size": 32, "pictures": 10_240, "processors": 4}
    assert all(sum(case[key] != base[key] for key in base) <= 1 for case in cases)
    assert [case["processors"] for case in plans.scaling(1, cuda=False, large=False).cases[:1]] == [1]


def test_short_epochs_stay_whole_batches() -> None:
    cases = plans.training(4, cuda=False, large=True).cases
    assert all(case["pictures"] % 512 == 0 and case["pictures"] for case in plans.resized(cases, 0.25))
    photos = plans.data(4, cuda=False, large=False).cases
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
    """Stands for the processes."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, Any], int]] = []

    def __call__(self, contender: plans.Contender, variant: dict[str, Any], case: plans.Case) -> dict[str, Any]:
        self.asked.append((contender.name, variant, case["batch_size"]))
        if contender.library == "lightning":
            return {"missing": "lightning is not installed"}
        names = ("epoch_seconds", "first_seconds", "start_seconds", "peak_memory_bytes")
        speed = 20.0 if variant.get("inputs") == "tf.data" else 10.0
        same = {"parameters": 7, "device": "cpu", "versions": {"python": "3.11"}, "note": "a way"}
        return {"pictures_per_second": speed, **dict.fromkeys(names, 1.0), **same}


def record(measure: Measured, out: Path, *more: str) -> dict[str, Any]:
    given = ["training", "--only", "mnist-convnet", "--repeats", "3", "--out", str(out), *more]
    options = command.arguments(given)
    whole = plans.training(options.threads, cuda=False, large=False)
    path = command.record(command._chosen(whole, options), measure, options, "cpu")
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def test_a_record_holds_every_case_with_figures_and_setting(tmp_path: Path) -> None:
    measure = Measured()
    found = record(measure, tmp_path)
    assert [entry["case"]["batch_size"] for entry in found["cases"]] == [32, 64, 128]
    assert found["command"] == "./scripts/bench training --only mnist-convnet --repeats 3"
    assert found["cases"][0]["contenders"]["netloom"]["pictures_per_second"] == summary([10.0] * 3)
    assert found["cases"][0]["contenders"]["Lightning"] == {"missing": "lightning is not installed"}
    assert str(tmp_path) not in json.dumps(found), "no paths of the machine"
    assert "## Training" in page.performance_page(tmp_path)


def test_variants_are_tried_once_for_a_network_and_lent_to_the_other_precision(tmp_path: Path) -> None:
    measure = Measured()
    found = record(measure, tmp_path)
    trials = [entry["trials"] for entry in found["cases"]]
    tried = [trial["variant"]["inputs"] for trial in trials[0] if trial["contender"] == "Keras TensorFlow"]
    assert tried == ["float32 arrays", "uint8 arrays", "tf.data"]
    assert trials[1] == trials[2] == []
    variants = {name: variant for name, variant, _ in measure.asked}
    assert variants["Keras TensorFlow bfloat16"] == {"inputs": "tf.data", "precision": "bfloat16"}


def test_a_run_that_was_cut_short_goes_on(tmp_path: Path) -> None:
    whole = record(Measured(), tmp_path)
    path = tmp_path / "training.json"
    path.write_text(json.dumps({**whole, "cases": whole["cases"][:2]}), encoding="utf-8")
    measure = Measured()
    again = record(measure, tmp_path, "--continue")
    assert [entry["case"] for entry in again["cases"]] == [entry["case"] for entry in whole["cases"]]
    assert {batch_size for _, _, batch_size in measure.asked} == {128}


def test_a_case_without_all_contenders_is_measured_anew(tmp_path: Path) -> None:
    record(Measured(), tmp_path, "--contenders", "fastai")
    measure = Measured()
    found = record(measure, tmp_path, "--continue")
    assert {batch_size for _, _, batch_size in measure.asked} == {32, 64, 128}
    assert "Keras TensorFlow" in found["cases"][0]["contenders"]


def test_figures_of_another_setting_are_not_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = record(Measured(), tmp_path)
    (tmp_path / "training.json").write_text(json.dumps({**whole, "repeats": 4}), encoding="utf-8")
    measure = Measured()
    record(measure, tmp_path, "--continue")
    assert {batch_size for _, _, batch_size in measure.asked} == {32, 64, 128}
    assert "another setting" in capsys.readouterr().err


def test_only_the_asked_peers_take_part(tmp_path: Path) -> None:
    measure = Measured()
    found = record(measure, tmp_path, "--contenders", "fastai")
    assert {name for name, _, _ in measure.asked} == {"netloom", "fastai"}
    assert "--contenders 'fastai'" in found["command"] or "--contenders fastai" in found["command"]


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
