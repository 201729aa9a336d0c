"""Fill the page of a pretraining with what is known of it."""

from __future__ import annotations

import shlex
import time

from netloom.report.pretraining import PretrainingReport, render_pretraining
from netloom.run import RunFolder
from netloom.workflows.report import environment_facts


def write_pretraining_report(folder: RunFolder) -> None:
    """Write `report.html` of a pretraining whose result is written."""
    result, facts, recipe = folder.result, folder.data, folder.recipe
    stopped = result["stop_reason"]
    report = PretrainingReport(
        title=facts.source_name,
        run_name=folder.name,
        created=time.strftime("%Y-%m-%d %H:%M"),
        status=result["status"],
        verdict=result["verdict"],
        collapsed=result["collapsed"],
        model=result["model"],
        parameters=result["parameters"],
        train_n=result["train_n"],
        views=result["views"],
        seconds=result["train_seconds"],
        history=folder.history,
        kept_epoch=result["kept_epoch"],
        compared=2 * min(recipe.batch_size, result["train_n"]) - 1,
        stopped=f"{stopped[0].upper()}{stopped[1:]}." if stopped else "",
        next_command=shlex.join(["netloom", "transfer", "SOURCE", "--backbone", str(folder.path)]),
        recipe_yaml=recipe.to_yaml(),
        environment=environment_facts(folder),
        notes=facts.audit.get("warnings", []),
    )
    folder.write_report(render_pretraining(report))
