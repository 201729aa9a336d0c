"""What a search leaves: `Study`, from `netloom.tune` and `netloom.load_study`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from netloom.errors import RunError
from netloom.files import read_json
from netloom.recipe import Recipe, load_recipe
from netloom.workflows.builders import CustomModel
from netloom.workflows.interruption import quoted
from netloom.workflows.runs import Run

RESULT_FILE = "tune.json"
REPORT_FILE = "report.html"
BEST_RECIPE_FILE = "best.yaml"


@dataclass(frozen=True, eq=False)
class Study:
    """A finished search, from `netloom.tune` or `netloom.load_study`.

    Attributes:
        path: Its folder, with `tune.json`, `best.yaml`, `report.html` and the runs of the winner.
        best_recipe: The base recipe with the winner's values.
        run: The winner trained anew, with a seed that the search had not seen, and tested once; None where that was
            not asked for.
        result: What `tune.json` holds.
    """

    path: Path
    best_recipe: Recipe
    run: Run | None
    result: Mapping[str, Any]

    @property
    def best_value(self) -> float:
        """The best trial's value: the best of many, and so too good."""
        return float(self.result["best"]["value"])

    @property
    def best_overrides(self) -> dict[str, Any]:
        """The best trial's values by recipe key."""
        return dict(self.result["best"]["overrides"])

    @property
    def trials(self) -> list[dict[str, Any]]:
        """All trials by number: `number`, `state`, `value`, `overrides`, `epochs`, `seconds`, `values`, `reason`."""
        return list(self.result["trials"])

    @property
    def runs(self) -> list[Run]:
        """The winner's trainings, one for each fresh seed; none where they were not asked for."""
        model = None if self.run is None else self.run.custom_model
        return [Run(path, model=model) for path in _final_runs(self.path, self.result)]

    def table(self) -> list[dict[str, Any]]:
        """A flat row for each trial, with a column for each key of the space; `pandas.DataFrame` takes it."""
        keys = [dimension["key"] for dimension in self.result["space"]]
        columns = ("epochs", "kept_epoch", "parameters", "seconds", "reason")
        return [
            {
                **{name: trial.get(name) for name in ("number", "state", "value")},
                **{key: trial["overrides"].get(key) for key in keys},
                **{name: trial.get(name) for name in columns},
            }
            for trial in self.trials
        ]


def load_study(folder: str | Path, *, model: CustomModel | None = None) -> Study:
    """A finished search from its folder, without its pictures.

    Args:
        folder: Which `netloom.tune` made; it may have been moved.
        model: The network's function, where the search was over one of the user's own and the winner shall predict.

    Raises:
        RunError: It holds no finished search, or a damaged one.
    """
    path = Path(folder)
    if not (path / RESULT_FILE).is_file():
        raise RunError(
            f"{folder} holds no finished search: it has no {RESULT_FILE}. Give the folder that tune made; if "
            f"the search was cut short, go on with: netloom tune --resume {quoted(folder)}"
        )
    result = read_json(path / RESULT_FILE)
    try:
        if result["best"] is None:
            raise RunError(
                f"No trial of {folder} was complete, so there is no best one. {path / REPORT_FILE} says why."
            )
        runs = _final_runs(path, result)
        study = Study(
            path, load_recipe(path / BEST_RECIPE_FILE), Run(runs[0], model=model) if runs else None, dict(result)
        )
        study.table()
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise RunError(f"{path / RESULT_FILE} is damaged ({type(error).__name__}: {error}).") from error
    return study


def _final_runs(path: Path, result: Mapping[str, Any]) -> list[Path]:
    """The winner's runs, which lie two levels below the study's folder."""
    return [path.joinpath(*re.split(r"[\\/]", run)[-2:]) for run in result.get("final_runs") or ()]
