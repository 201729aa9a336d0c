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
        "versions": {"torch": "2.13.0"},
        "notes": [note],
        "n": len(speeds),
        "pictures_per_second": summary(speeds),
        "start_seconds": summary([start] * len(speeds)),
        "peak_memory_bytes": summary([512e6] * len(speeds)),
    }


def record(benchmark: str = "training", **changes: Any) -> dict[str, Any]:
    cases = [
        {
            "case": {"network": "cifar10-lenet5", "batch_size": batch, "pictures": 16_384, "processors": 4},
            "other_work_cpus": 0.0,
            "contenders": {
                "netloom": contender(ours, ours),
                "Keras TensorFlow": contender(1000.0, 1000.0),
                "PyTorch": contender(4000.0),
                "fastai": {"missing": "fastai is not installed"},
                "Lightning": {"failed": "ValueError: a | b"},
            },
        }
        for batch, ours in ((32, 2000.0), (128, 8000.0))
    ]
    return {
        "benchmark": benchmark,
        "command": f"./scripts/bench {benchmark}",
        "date": "2026-01-02",
        "quick": False,
        "repeats": 5,
        "epochs": 3,
        "threads": 4,
        "device": "cpu",
        "isa": None,
        "machine": MACHINE,
        "cases": cases,
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


def test_geometric_means_are_over_the_rows(tmp_path: Path) -> None:
    lines = text_of(tmp_path, record()).splitlines()
    assert "| the fastest Keras | ×4.00 | ×2.00 | ×8.00 | 2 |" in lines
    assert "| the fastest plain PyTorch | ×1.00 | ×0.50 | ×2.00 | 2 |" in lines
    assert "| the best peer of each row | ×1.00 | ×0.50 | ×2.00 | 2 |" in lines
    assert not any(line.startswith("| fastai | ×") for line in lines)


def test_a_single_row_has_no_means(tmp_path: Path) -> None:
    found = record()
    del found["cases"][1]
    assert "geometric mean" not in text_of(tmp_path, found).split("## Training")[1]


def test_each_section_tells_its_command_machine_ways_and_failures(tmp_path: Path) -> None:
    text = text_of(tmp_path, record())
    assert (
        "`./scripts/bench training`, 2026-01-02: A processor; avx2 fma; 4 of 4 processors; 8 GiB; on cpu; "
        "turns: 5, of 3 epochs each." in text
    )
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
    text = text_of(tmp_path, record(), record(isa="AVX2", command="./scripts/bench training --isa AVX2"))
    assert "oneDNN limited to AVX2" in text
    assert text.count("Pictures a second:") == 2


@pytest.mark.parametrize(
    ("benchmark", "start"),
    [
        ("scaling", "| 4 | 32 | 16,384 | 2,000 | 1,000 (×2.00)"),
        ("data", "| 16,384 | 2,000 | 1,000 (×2.00)"),
        ("inference", "| cifar10-lenet5 | 32 | 16,384 | 2,000 | 1,000 (×2.00)"),
    ],
)
def test_other_benchmarks_have_their_own_columns(tmp_path: Path, benchmark: str, start: str) -> None:
    text = text_of(tmp_path, record(benchmark))
    assert any(line.startswith(start) for line in text.splitlines())
    assert ("Seconds from the start" in text) is (benchmark != "inference")
    assert ("| 512 | 512 (×1.00) | 512 (×1.00, n = 1) |" in text) is (benchmark == "scaling")


def test_netlooms_second_start_is_no_peer(tmp_path: Path) -> None:
    found = record("data")
    for case in found["cases"]:
        case["contenders"] = {
            "netloom": contender(1000.0),
            "netloom, second start": contender(9000.0),
            "PyTorch workers": contender(500.0),
        }
    lines = text_of(tmp_path, found).splitlines()
    assert "| 16,384 | 1,000 (n = 1) | 9,000 (×0.11, n = 1) | 500 (×2.00, n = 1) | – |" in lines
    assert "| the best peer of each row | ×2.00 | ×2.00 | ×2.00 | 2 |" in lines


def test_without_netloom_nothing_is_claimed(tmp_path: Path) -> None:
    found = record()
    for case in found["cases"]:
        case["contenders"]["netloom"] = {"failed": "TrainingError"}
    text = text_of(tmp_path, found)
    assert "| failed | 1,000 | 4,000 (n = 1) | missing | failed | not known |" in text
    assert "geometric mean" not in text.split("## Training")[1].split("## Searches")[0]


def test_a_page_of_other_results_is_written_beside_them(tmp_path: Path) -> None:
    (tmp_path / "training.json").write_text(json.dumps(record()), encoding="utf-8")
    assert page.write(tmp_path) == tmp_path / "performance.md"
    assert (tmp_path / "performance.md").read_text(encoding="utf-8") == page.performance_page(tmp_path)
