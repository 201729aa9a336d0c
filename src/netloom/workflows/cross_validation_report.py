"""Fill the page of a cross-validation with what its runs hold."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from netloom.files import write_atomically
from netloom.metrics.intervals import Interval
from netloom.report.cross_validation import CrossValidationReport, FoldFacts, render_cross_validation
from netloom.workflows.report import environment_facts
from netloom.workflows.runs import Run

if TYPE_CHECKING:
    from netloom.workflows.cross_validate import CrossValidation


def write_cross_validation_report(found: CrossValidation, path: Path) -> None:
    """Write the page of a cross-validation whose figures are known.

    Raises:
        RunError: It cannot be written.
    """
    first, result = found.runs[0], found.result
    jobs = result["jobs"]
    report = CrossValidationReport(
        title=result["source"],
        folder=found.path.resolve().name,
        created=time.strftime("%Y-%m-%d %H:%M"),
        scheme=result["scheme_in_words"],
        repeats=result["scheme"]["repeats"],
        class_names=result["class_names"],
        scores=found.scores,
        folds=[_tested(run) for run in found.runs],
        failures={t["name"]: t["reason"] for t in result["trainings"] if t["reason"] is not None},
        notes=result["notes"],
        model=result["model"],
        parameters=result["parameters"],
        recipe_yaml=first.recipe.to_yaml(),
        environment={
            "Trainings": "one after the other" if jobs == 1 else f"{jobs} at once",
            **environment_facts(first),
        },
    )
    write_atomically(path, render_cross_validation(report))


def _tested(run: Run) -> FoldFacts:
    result: dict[str, Any] = run.result
    test: Mapping[str, Any] = result["test"]
    split = run.split
    return FoldFacts(
        name=run.name,
        seed=run.recipe.seed,
        train_n=len(split["train"]),
        validation_n=len(split["validation"]),
        test_n=test["n"],
        accuracy=test["accuracy"],
        interval=Interval(*test["interval"]),
        macro_f1=test["macro_f1"],
        epochs=result["epochs"],
        kept_epoch=result["kept_epoch"],
        seconds=result["train_seconds"],
        history=run.history,
    )
