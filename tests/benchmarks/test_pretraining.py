"""What pretraining is worth: the table of the page, and that it is worth something."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from benchmarks.pretraining import page, probed, with_labels

import netloom
from netloom.data.imageset import load_image_set
from netloom.data.splits import Split

TEXT = "# Title\n\n<!-- Measured: cifar10 -->\nby hand\n<!-- End of cifar10 -->\n\nThe end.\n"


def probe(per_class: int, draw: int, random: float, pretrained: float) -> dict[str, Any]:
    found = {"random": {"accuracy": random, "n": 10_000}, "pretrained": {"accuracy": pretrained, "n": 10_000}}
    return {"per_class": per_class, "draw": draw, **found, "gain": pretrained - random}


RECORD = {
    "command": "python -m benchmarks.pretraining cifar10 --draws 2",
    "date": "2026-01-01",
    "machine": {"processor": "A processor", "cpu_capability": "AVX2"},
    "other_work_cpus": 1.5,
    "pretraining": {"epochs": 5, "train_n": 40_000, "parameters": 93_696},
    "cpu_seconds": 388.2,
    "threads": 1,
    "probes": [probe(20, 0, 0.317, 0.427), probe(20, 1, 0.32, 0.3), probe(0, 0, 0.47, 0.561)],
    "versions": {"torch": "2.13.0"},
}


def written(docs: Path, name: str | None, text: str = TEXT) -> Path:
    (docs / "results" / "pretraining").mkdir(parents=True)
    (docs / "pretrain.md").write_text(text, encoding="utf-8")
    if name is not None:
        (docs / "results" / "pretraining" / f"{name}.json").write_text(json.dumps(RECORD), encoding="utf-8")
    return docs


def test_what_is_recorded_stands_in_its_place(tmp_path: Path) -> None:
    lines = page(written(tmp_path, "cifar10")).splitlines()
    assert (lines[0], lines[-1]) == ("# Title", "The end.")
    assert "by hand" not in lines
    assert "`python -m benchmarks.pretraining cifar10 --draws 2`, 2026-01-01:" in lines
    told = next(line for line in lines if line.startswith("5 epochs of 40,000 training pictures"))
    assert "388 s of processor time (one thread), on A processor (AVX2), torch 2.13.0; " in told
    assert told.endswith("93,696 parameters; 10,000 test pictures, so that a standard error is 0.5 points.")
    assert "The machine was not quiet: other work took 1.5 processors." in lines
    assert "| 20 of each class | 31.7%, 32.0% | 42.7%, 30.0% | +11.0, -2.0 |" in lines
    assert "| all 40,000 | 47.0% | 56.1% | +9.1 |" in lines
    (tmp_path / "pretrain.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    assert page(tmp_path).splitlines() == lines


def test_what_is_not_recorded_stays(tmp_path: Path) -> None:
    assert page(written(tmp_path, None)) == TEXT


def test_a_record_without_a_place_is_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no place for mnist\.json: write <!-- Measured: mnist --> and"):
        page(written(tmp_path, "mnist"))


def test_the_page_has_a_place_for_both_sources(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs" / "pretrain.md").read_text(encoding="utf-8")
    for name in ("cifar10", "cats_and_dogs_small"):
        assert "| all 40,000 | 47.0% | 56.1% | +9.1 |" in page(written(tmp_path / name, name, text))


@pytest.mark.slow
@pytest.mark.data
def test_two_epochs_without_labels_are_worth_five_points(shared_data: Path, tmp_path: Path) -> None:
    """On CIFAR-10, with 100 labelled pictures of each class; the test's standard error is half a point."""
    source = shared_data / "cifar10.zip"
    run = netloom.pretrain(source, out=tmp_path, quiet=True, settings={"self_supervised.pictures": 80_000})
    assert run.result["epochs"] == 2
    facts = run.data
    pictures = load_image_set(
        source, image_size=facts.image_size, resize=facts.resize, channels=facts.channels
    ).image_set
    labelled = with_labels(pictures, Split.from_json(run.split, pictures.ids), 100, seed=0)
    found = {weights: probed(labelled, run, weights, tmp_path) for weights in ("random", str(run.weights_path))}
    assert found["random"]["n"] == 10_000
    assert found[str(run.weights_path)]["accuracy"] > found["random"]["accuracy"] + 0.05
