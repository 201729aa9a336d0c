"""A run told as one HTML page that opens anywhere: offline, on a phone, on paper.

The page holds no script, and its content security policy forbids any request. Every value is
escaped when it is written, so that a class called `<b>` shows as such.
"""

from __future__ import annotations

from typing import Any

from markupsafe import Markup

from netloom.metrics.summary import HeldOutScores
from netloom.report import tables, wording
from netloom.report.curves import draw_curve
from netloom.report.data import ReportData, TrainingFacts
from netloom.report.page import render_page
from netloom.report.pictures import thumbnail
from netloom.report.reading import read_curves, read_unfreezing

# Up to here the matrix is read at a glance; above, the pairs come first and the matrix scrolls.
_GLANCE_CLASSES = 20
# Above, a matrix has more cells (10,000) than anyone looks at; the pairs say it.
_MATRIX_CLASSES = 100
_CONFUSED_PAIRS = 12
# Of fewer epochs a running average says no more than its beginning.
_AVERAGED_EPOCHS = 8
# More unreadable files than this are counted, not listed; the audit lists them all.
_REJECTED = 100


# Of the table of epochs: heading, column of the history, format.
_COLUMNS = (
    ("training loss", "train_loss", "{:.4f}"),
    ("validation loss", "validation_loss", "{:.4f}"),
    ("training accuracy", "train_accuracy", "{:.2%}"),
    ("validation accuracy", "validation_accuracy", "{:.2%}"),
    ("learning rate", "learning_rate", "{:.3g}"),
    ("seconds", "seconds", "{:.2f}"),
)


def render_report(report: ReportData) -> str:
    """Write a report as one self-contained HTML page.

    A run that was interrupted or failed renders too: what it did not reach is left out, and said.

    Raises:
        ValueError: The class names and the scores or counts disagree about the number of classes,
            or a picture is not uint8 `[1, H, W]` or `[3, H, W]`.
    """
    _check_classes(report)
    return render_page(
        "report.html",
        report=report,
        headline=wording.headline(report),
        missing=wording.missing_parts(report),
        test=_test(report.test, report) if report.test else None,
        training=_training(report.training) if report.training else None,
        counts=tables.part_counts(report.source, report.class_names) if report.source else (),
        rejected_shown=_REJECTED,
        mistakes=[(mistake, thumbnail(mistake.picture)) for mistake in report.mistakes],
    )


def _test(test: HeldOutScores, report: ReportData) -> dict[str, Any]:
    class_names, weights = report.class_names, report.source.class_weights if report.source else ()
    n_classes = len(class_names)
    return {
        "verdict": wording.verdict(test.accuracy, test.majority),
        "at_a_glance": n_classes <= _GLANCE_CLASSES,
        "matrix": (tables.confusion_rows(test.confusion, class_names) if n_classes <= _MATRIX_CLASSES else None),
        "pairs": tables.confused_pairs(test.confusion, class_names, limit=_CONFUSED_PAIRS),
        "classes": tables.class_rows(test.confusion, class_names, weights),
        "weighted": bool(weights),
        "calibration": wording.calibration_in_words(test.reliability, test.calibration_error_by_chance),
        "reliability": tables.reliability_rows(test.reliability),
        "n_wrong": int(test.confusion.sum() - test.confusion.trace()),
    }


def _training(training: TrainingFacts) -> dict[str, Any]:
    history = training.history
    unfreezing = [epoch for epoch, _ in training.unfreezing]
    averaged = training.averaged and len(history) >= _AVERAGED_EPOCHS
    validated = any(row.get("validation_loss") is not None for row in history)
    return {
        "epochs": len(history),
        "validated": validated,
        "columns": [c for c in _COLUMNS if validated or not c[1].startswith("validation")],
        # Markup of Matplotlib from numbers alone; no name of the user's is in it.
        "curves": [
            (
                name,
                Markup(
                    draw_curve(
                        history,
                        name,
                        best_epoch=training.best_epoch,
                        unfreezing=unfreezing,
                        averaged=averaged,
                    )
                ),
            )
            for name in ("loss", "accuracy")
            if history
        ],
        "reading": [
            *read_unfreezing(training.unfreezing, training.frozen),
            *read_curves(history),
            *(["Thick lines are running averages of the thin ones."] if averaged else []),
        ],
    }


def _check_classes(report: ReportData) -> None:
    n_classes = len(report.class_names)
    if report.test is not None and report.test.confusion.shape != (n_classes, n_classes):
        raise ValueError(
            f"There are {n_classes} class names, so the confusion matrix must be "
            f"[{n_classes}, {n_classes}]; found {list(report.test.confusion.shape)}."
        )
    for part, counts in report.source.class_counts.items() if report.source else ():
        if len(counts) != n_classes:
            raise ValueError(
                f"There are {n_classes} class names, but counts of {len(counts)} classes in the {part} part."
            )
