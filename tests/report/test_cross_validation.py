from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from html_page import Page
from netloom.evaluation.cross_validation import FoldOutcome, summarize_folds
from netloom.metrics.intervals import Interval
from netloom.report.cross_validation import CrossValidationReport, FoldFacts, render_cross_validation

NAMES = ("고양이 <b>", "개", "plain")


def report(n_folds: int = 3, names: tuple[str, ...] = NAMES, **changes: Any) -> CrossValidationReport:
    random = np.random.default_rng(1)
    k = len(names)
    outcomes = []
    for _ in range(n_folds):
        targets = np.tile(np.arange(k), 10)
        probabilities = random.dirichlet(np.ones(k), 10 * k).astype(np.float32)
        outcomes.append(FoldOutcome(probabilities, targets, np.tile(targets, 2)))
    scores = summarize_folds(outcomes, k)
    history = [
        {"epoch": e, "train_loss": 1 / e, "validation_loss": 1.1 / e, "train_accuracy": 0.5, "validation_accuracy": 0.5}
        for e in (1.0, 2.0)
    ]
    folds = [
        FoldFacts(
            name=f"fold-{i + 1}",
            seed=i,
            train_n=40,
            validation_n=20,
            test_n=30,
            accuracy=scores.accuracy.values[i],
            interval=Interval(0.1, 0.9),
            macro_f1=scores.macro_f1.values[i],
            epochs=2,
            kept_epoch=2,
            seconds=3.0,
            history=history,
        )
        for i in range(n_folds)
    ]
    values: dict[str, Any] = {
        "title": "photos <i>",
        "folder": "2026-photos-cv",
        "created": "2026-01-01 12:00",
        "scheme": f"{n_folds} folds",
        "repeats": 1,
        "class_names": names,
        "scores": scores,
        "folds": folds,
        "model": "convnet",
        "parameters": 1234,
        "recipe_yaml": "model: convnet\n",
        "environment": {"Device": "cpu, 1 threads"},
    }
    return CrossValidationReport(**{**values, **changes})


def test_the_page_holds_every_figure_and_no_markup_of_names() -> None:
    made = report(notes=["One & only"], failures={"fold-4": "no memory"})
    page = Page(render_cross_validation(made))
    accuracy = made.scores.accuracy
    for text in (
        f"{accuracy.mean:.1%}",
        f"{accuracy.interval.low:.1%} to {accuracy.interval.high:.1%}",
        "fold-4 failed and is in no figure here: no memory",
        "One & only",
        "고양이 <b>",
        "photos <i>",
        "1/3 + 0.5",
    ):
        assert text in page.words
    assert [row[0] for row in page.table("training")] == ["fold-1", "fold-2", "fold-3"]
    recalls = [made.scores.recall[i].mean for i in range(3)]
    assert {row[2].split(" ")[0] for row in page.table("class")} == {f"{recall:.1%}" for recall in recalls}
    assert "script" not in {tag for tag, _ in page.tags}
    assert all("http" not in (attributes.get("src") or "") for attributes in page.named("img"))


def test_guessing_is_called_so() -> None:
    """Random answers: the interval includes what always guessing one class gives."""
    assert "does not show that the recipe learns anything" in Page(render_cross_validation(report())).words


def test_one_training_and_many_classes_render() -> None:
    one = render_cross_validation(report(n_folds=1))
    assert "one training tells no spread" in Page(one).words
    assert "nan" not in one
    many = Page(render_cross_validation(report(names=tuple(f"class {i}" for i in range(30)))))
    assert "Confusion matrix of all 30 classes" in many.words
    assert len(many.table("class")) == 30


def test_scores_of_other_classes_are_refused() -> None:
    with pytest.raises(ValueError, match="There are 2 class names"):
        render_cross_validation(report(class_names=("a", "b")))
