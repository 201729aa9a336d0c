from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import netloom
from netloom.data.imageset import ImageSet
from netloom.runtime import ExecutionPlan
from picture_folders import stripes

OPTIONS: dict[str, Any] = {
    "space": {"learning_rate": "1e-3..1e-1:log", "dropout": "0..0.5"},
    "sampler": "random",
    "pruner": "none",
    "n_trials": 4,
    "final_seeds": 0,
    "plan": ExecutionPlan("cpu", 1, "float32"),
    "quiet": True,
    "settings": {"filters": [4], "epochs": 2, "batch_size": 8, "precision": "float32", "augmentation": None},
}


@pytest.mark.slow
def test_a_search_on_a_cluster_is_the_search_on_one_machine(two_machines: Any, tmp_path: Path) -> None:
    pixels = np.stack([stripes(i % 3, i) for i in range(60)])
    pictures = ImageSet.from_arrays(pixels, np.arange(60) % 3, class_names=("across", "down", "plain"))
    here = netloom.tune(pictures, jobs=1, out=tmp_path / "here", **OPTIONS)
    there = netloom.tune(pictures, ray=two_machines.address, out=tmp_path / "there", **OPTIONS)

    def table(study: Any) -> list[Any]:
        return [(t["number"], t["state"], t["value"], t["overrides"], t["values"]) for t in study.trials]

    assert table(here) == table(there)
    assert here.result["jobs"] == 1
    assert 1 <= there.result["jobs"] <= len(there.trials)  # as many as ran together there, whatever this machine has
