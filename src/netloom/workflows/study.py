"""What a search leaves: `Study`, from `netloom.tune`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from netloom.recipe import Recipe
from netloom.workflows.runs import Run


@dataclass(frozen=True, eq=False)
class Study:
    """A finished search, from `netloom.tune`.

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
