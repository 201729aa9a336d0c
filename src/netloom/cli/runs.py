"""Verbs that work with trained runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from netloom.cli.app import app
from netloom.cli.options import (
    AsJSON,
    Device,
    DeviceOption,
    Force,
    Part,
    Quiet,
    RunArgument,
)
from netloom.cli.output import print_json, print_table, say, told

# More are read on the page.
_CLASSES_SHOWN = 12


@app.command()
@told
def evaluate(
    run: RunArgument,
    source: Annotated[
        str | None,
        typer.Argument(help="Other labelled pictures; the run's own without it.", show_default=False),
    ] = None,
    part: Annotated[
        Part | None, typer.Option("--part", help="Which part of the run's own data; test without it.")
    ] = None,
    device: DeviceOption = Device.auto,
    as_json: AsJSON = False,
    quiet: Quiet = False,
) -> None:
    """Score a run on its own test part or on other labelled pictures."""
    from netloom.report.wording import pictures_in_words
    from netloom.workflows.evaluate import evaluate as run_evaluation

    scores = run_evaluation(run, source, part=None if part is None else part.value, device=device.value, quiet=quiet)
    if as_json:
        print_json(scores)
        return
    low, high = scores["interval"]
    say(
        f"{scores['part']} accuracy {scores['accuracy']:.2%} of {pictures_in_words(scores['n'], scores['groups'])} "
        f"(95% interval {low:.2%} to {high:.2%}), macro F1 {scores['macro_f1']:.4f}, "
        f"log loss {scores['log_loss']:.4f}"
    )
    for note in _notes(scores):
        say(f"  note: {note}")
    print_table(
        ["class", "precision", "recall", "F1", "n"],
        [
            [name, *(_cell(row[k]) for k in ("precision", "recall", "f1")), f"{row['n']:,}"]
            for name, row in scores["per_class"].items()
        ],
        right=(1, 2, 3, 4),
    )


def _notes(scores: Mapping[str, Any]) -> list[str]:
    """What makes the scores another thing than they seem, in words."""
    notes, n = [], scores["n"]
    earlier = [run for run in scores["seen_by_earlier_runs"] if run["n"]]
    trained, validated = (None if scores["seen"] is None else scores["seen"][part] for part in ("train", "validation"))
    if trained == n or (trained is None and scores["seen_in_training"] and not earlier):
        notes.append("the network was trained on these pictures, so the score says nothing of new ones")
    elif trained:
        notes.append(f"the network was trained on {trained:,} of these {n:,} pictures, so the score is too good")
    for run in earlier:
        how = "trained on" if run["labelled"] else "learned from, without their labels,"
        so = "is too good" if run["labelled"] else "may be too good"
        notes.append(
            f"{run['n']:,} of these {n:,} pictures were {how} by the network of {run['run']}, from which this one "
            f"started, so the score {so}"
        )
    if not trained and not earlier:  # what is not there any more was counted by the training
        notes += scores["test_notes"]
    if scores["seen_in_validation"]:
        which = "these pictures" if validated in (None, n) else f"{validated:,} of these {n:,} pictures"
        notes.append(
            f"{which} validated the training; what was chosen by them (the epoch that is kept, the settings) makes the "
            "score a little too good"
        )
    if scores["seen_in_training"] is None and not scores["test_notes"]:
        notes.append("it is not known whether the network was trained on some of these pictures")
    if scores["source_changed"]:
        notes.append(
            "the pictures, their classes or their weights have changed since the training; this score is of what is "
            "there now"
        )
    return notes


def _cell(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


@app.command()
@told
def compare(
    runs: Annotated[list[str], typer.Argument(help="Folders of two or more runs.", show_default=False)],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="FILE.html", help="Write a page with the curves of all runs."),
    ] = None,
    force: Force = False,
    as_json: AsJSON = False,
) -> None:
    """Compare runs: what differs, what came out, and which differences are more than noise."""
    from netloom.report.comparison import classes_table, headline, pairs_table, recipes_table, runs_table
    from netloom.workflows.compare import compare as run_comparison

    found = run_comparison(runs, out=out, force=force)
    if as_json:
        print_json({**found.to_json(), "page": None if out is None else str(out)})
        return
    by_class = classes_table(found)
    shown = by_class._replace(rows=by_class.rows[:_CLASSES_SHOWN])
    for table in (runs_table(found), recipes_table(found), pairs_table(found), shown):
        if table.rows:
            print_table(table.columns, table.rows, right=table.right)
    if by_class.rows:
        rest = len(by_class.rows) - len(shown.rows)
        more = f" {rest:,} classes more differ less; --out and --json give all." if rest else ""
        say(f"Recall by class, its differences not tested: those of few pictures are easily luck.{more}")
    if not found.recipe_differences:
        say("The recipes are the same.")
    say(headline(found))
    for note in found.notes:
        say(f"  note: {note}")
    if out is not None:
        say(f"Page: {out}")


@app.command()
@told
def predict(
    run: RunArgument,
    pictures: Annotated[list[str], typer.Argument(help="Files, folders or patterns.", show_default=False)],
    top: Annotated[int, typer.Option("--top", min=1, help="Classes to give for each picture.")] = 1,
    device: DeviceOption = Device.auto,
    as_json: AsJSON = False,
    quiet: Quiet = False,
) -> None:
    """Classify new pictures with a trained run."""
    from netloom.workflows.predict import predict as run_prediction

    results = run_prediction(run, pictures, top=top, device=device.value, quiet=quiet)
    unreadable = [item for item in results if "error" in item]
    if as_json:
        print_json({"run": run, "predictions": results})
    else:
        for item in results:
            found = item.get("predictions", [])
            text = "  ".join(f"{p['class']} {p['probability']:.1%}" for p in found)
            say(f"{item['path']}: {text or 'unreadable: ' + item['error']}")
    if len(unreadable) == len(results):
        raise typer.Exit(2)
