from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from benchmarks.suite import page
from benchmarks.suite.figures import summary

MACHINE = {
    "system": "Linux",
    "processor": "A processor",
    "cpu_capability": "AVX2",
    "cpu_flags": ["avx2", "fma"],
    "usable_cpus": 4,
    "cuda_devices": [],
    "memory_bytes": 8 << 30,
}


def contender(*speeds: float, start: float = 2.0, note: str = "a way") -> dict[str, Any]:
    return {
        "variant": {},
        "parameters": 7,
        "device": "cpu",
        "notes": [note],
        "n": len(speeds),
        "pictures_per_second": summary(speeds),
        "start_seconds": summary([start] * len(speeds)),
        "peak_memory_bytes": summary([512e6] * len(speeds)),
    }


def case(batch: int, ours: float, network: str = "cifar10-lenet5") -> dict[str, Any]:
    return {
        "command": "./scripts/bench training",
        "date": "2026-01-02",
        "commit": "0123456789abcdef",
        "versions": {"netloom": {"torch": "2.13.0"}, "PyTorch": {"torch": "2.13.0"}, "fastai": {"python": "3.11.9"}},
        "case": {"network": network, "batch_size": batch, "pictures": 16_384, "processors": 4},
        "other_work_cpus": 0.0,
        "contenders": {
            "netloom": contender(ours, ours),
            "Keras TensorFlow": contender(1000.0, 1000.0),
            "PyTorch": contender(4000.0),
            "fastai": {"missing": "fastai is not installed"},
            "Lightning": {"failed": "ValueError: a | b"},
        },
    }


def record(benchmark: str = "training", **changes: Any) -> dict[str, Any]:
    return {
        "benchmark": benchmark,
        "quick": False,
        "repeats": 5,
        "epochs": 3,
        "threads": 4,
        "device": "cpu",
        "isa": None,
        "machine": MACHINE,
        "cases": [case(32, 2000.0), case(128, 8000.0)],
        **changes,
    }


def text_of(tmp_path: Path, *records: dict[str, Any]) -> str:
    for number, found in enumerate(records):
        (tmp_path / f"{number}.json").write_text(json.dumps(found), encoding="utf-8")
    return page.performance_page(tmp_path)


def test_a_row_has_figures_ratios_and_names_whoever_is_better(tmp_path: Path) -> None:
    lines = text_of(tmp_path, record()).splitlines()
    names = "netloom | Keras TensorFlow | PyTorch | fastai | Lightning"
    assert f"| network | batch | pictures | {names} | better than netloom |" in lines
    row = "| cifar10-lenet5 | 32 | 16,384 | 2,000 | 1,000 (×2.00) | 4,000 (×0.50, n = 1) | missing | failed | PyTorch |"
    assert row in lines
    assert (
        "| cifar10-lenet5 | 128 | 16,384 | 8,000 | 1,000 (×8.00) | 4,000 (×2.00, n = 1) | missing | failed | – |"
        in lines
    )


def test_geometric_means_are_over_the_rows_of_one_batch_size(tmp_path: Path) -> None:
    """And the smallest ratio says where it is, so that a network that is slower than any peer is seen."""
    cases = [case(20, 1.0), case(32, 2000.0), case(32, 8000.0, "mnist-convnet"), case(128, 3000.0), case(128, 3000.0)]
    lines = text_of(tmp_path, record(cases=cases)).splitlines()
    assert "| batch | netloom beside | geometric mean | smallest | largest | rows |" in lines
    assert "| 32 | the faster precision of Keras on TensorFlow | ×4.00 | ×2.00 (cifar10-lenet5) | ×8.00 | 2 |" in lines
    assert "| 32 | the fastest Keras | ×4.00 | ×2.00 (cifar10-lenet5) | ×8.00 | 2 |" in lines
    assert "| 32 | the fastest PyTorch loop | ×1.00 | ×0.50 (cifar10-lenet5) | ×2.00 | 2 |" in lines
    assert "| 32 | the best peer of each row | ×1.00 | ×0.50 (cifar10-lenet5, PyTorch) | ×2.00 | 2 |" in lines
    assert "| 32 | PyTorch | ×1.00 | ×0.50 (cifar10-lenet5) | ×2.00 | 2 |" in lines
    assert "| 128 | Keras TensorFlow | ×3.00 | ×3.00 (cifar10-lenet5) | ×3.00 | 2 |" in lines
    assert not any(line.startswith("| 20 | ") for line in lines), "a single row has no mean"
    assert not any(" | fastai | ×" in line for line in lines)


def test_what_grows_has_no_means(tmp_path: Path) -> None:
    cases = [case(32, 1000.0), case(32, 2000.0)]
    assert "geometric mean |" in text_of(tmp_path, record(cases=cases))
    assert "geometric mean |" not in text_of(tmp_path, record("scaling", cases=cases))


def test_single_rows_have_no_means(tmp_path: Path) -> None:
    assert "geometric mean |" not in text_of(tmp_path, record())


def test_memory_stands_beside_time(tmp_path: Path) -> None:
    on_cuda = record(cases=[case(32, 1000.0)])
    on_cuda["cases"][0]["contenders"]["netloom"]["peak_gpu_memory_bytes"] = summary([200e6])
    on_cuda["cases"][0]["contenders"]["PyTorch"]["peak_gpu_memory_bytes"] = summary([300e6])
    text = text_of(tmp_path, on_cuda)
    assert "Most memory of the GPU that PyTorch's tensors took, MB:" in text
    row = "| cifar10-lenet5 | 32 | 16,384 | 200 (n = 1) | – | 300 (×1.50, n = 1) | missing | failed | – |"
    assert row in text.splitlines()
    assert "Most memory of the GPU" not in text_of(tmp_path, record())


def test_rows_that_were_measured_apart_are_told(tmp_path: Path) -> None:
    assert "not measured alike" not in text_of(tmp_path, record())
    found = record()
    command = "./scripts/bench training --only cifar10-lenet5"
    found["cases"][1] |= {"date": "2026-01-03", "commit": "fedcba9876543210+abc", "command": command}
    found["cases"][1]["versions"] = {"PyTorch": {"torch": "2.14.0"}, "netloom": {"torch": "2.13.0"}}
    text = text_of(tmp_path, found)
    assert f"`./scripts/bench training`, 2026-01-02; `{command}`, 2026-01-03: A processor;" in text
    assert (
        "**The rows were not measured alike: 2026-01-02 (1 row), 2026-01-03 (1 row); commit 0123456789 (1 row), "
        "commit fedcba9876+abc (1 row); PyTorch: torch 2.13.0 (1 row), PyTorch: torch 2.14.0 (1 row).**" in text
    )


def test_each_section_tells_its_command_machine_ways_and_failures(tmp_path: Path) -> None:
    text = text_of(tmp_path, record())
    assert (
        "`./scripts/bench training`, 2026-01-02: A processor; avx2 fma; 4 of 4 processors; 8 GiB; on cpu; "
        "turns: 5, of 3 epochs each." in text
    )
    assert "- netloom: torch 2.13.0; commit 0123456789; a way (2 rows)." in text
    assert "- PyTorch: torch 2.13.0; a way (2 rows)." in text
    assert "- fastai: missing: fastai is not installed." in text
    assert "- Lightning: failed: ValueError: a / b." in text
    assert "Not measured yet: `./scripts/bench inference`." in text
    assert "trial" not in text.split("## Training")[1].split("## Searches")[0]


def test_what_is_measured_beside_other_work_or_shortly_is_no_result(tmp_path: Path) -> None:
    busy = record()
    busy["cases"][1]["other_work_cpus"] = 2.34
    assert "A trial of the suite and no result: the machine was not quiet" in text_of(tmp_path, busy)
    assert "up to 2.3 processors" in text_of(tmp_path, busy)
    assert "no result: epochs were short" in text_of(tmp_path, record(quick=True))
    unknown = record()
    for case in unknown["cases"]:
        case["other_work_cpus"] = None
    assert "no result" not in text_of(tmp_path, unknown), "the system does not tell"


def test_results_under_another_instruction_set_are_a_section_beside(tmp_path: Path) -> None:
    text = text_of(tmp_path, record(), record(isa="AVX2"))
    assert "oneDNN limited to AVX2" in text
    assert text.count("Pictures a second:") == 2


@pytest.mark.parametrize(
    ("benchmark", "start"),
    [
        ("scaling", "| 4 | 32 | 16,384 | 2,000 | 1,000 (×2.00)"),
        ("data-scaling", "| 4 | 32 | 16,384 | 2,000 | 1,000 (×2.00)"),
        ("inference-scaling", "| 4 | 32 | 16,384 | 2,000 | 1,000 (×2.00)"),
        ("data", "| 16,384 | 2,000 | 1,000 (×2.00)"),
        ("inference", "| cifar10-lenet5 | 32 | 16,384 | 2,000 | 1,000 (×2.00)"),
    ],
)
def test_other_benchmarks_have_their_own_columns(tmp_path: Path, benchmark: str, start: str) -> None:
    text = text_of(tmp_path, record(benchmark))
    assert any(line.startswith(start) for line in text.splitlines())
    assert ("Seconds from the start of Python to" in text) is (not benchmark.startswith("inference"))
    assert "| 512 | 512 (×1.00) | 512 (×1.00, n = 1) |" in text, "memory"


def test_netlooms_second_start_is_no_peer(tmp_path: Path) -> None:
    found = record("data", cases=[case(32, 1.0), case(32, 1.0)])
    for entry in found["cases"]:
        entry["contenders"] = {
            "netloom": contender(1000.0),
            "netloom, second start": contender(9000.0),
            "PyTorch workers": contender(500.0),
        }
    lines = text_of(tmp_path, found).splitlines()
    assert "| 16,384 | 1,000 (n = 1) | 9,000 (×0.11, n = 1) | 500 (×2.00, n = 1) | – |" in lines
    where = "cifar10-lenet5, PyTorch workers"
    assert f"| 32 | the best peer of each row | ×2.00 | ×2.00 ({where}) | ×2.00 | 2 |" in lines


def test_without_netloom_nothing_is_claimed(tmp_path: Path) -> None:
    found = record(cases=[case(32, 1.0), case(32, 1.0)])
    for entry in found["cases"]:
        entry["contenders"]["netloom"] = {"failed": "TrainingError"}
    text = text_of(tmp_path, found)
    assert "| failed | 1,000 | 4,000 (n = 1) | missing | failed | not known |" in text
    assert "geometric mean |" not in text


def test_a_page_of_other_results_is_written_beside_them(tmp_path: Path) -> None:
    (tmp_path / "training.json").write_text(json.dumps(record()), encoding="utf-8")
    assert page.write(tmp_path) == tmp_path / "performance.md"
    assert (tmp_path / "performance.md").read_text(encoding="utf-8") == page.performance_page(tmp_path)
