"""What a search found, in plain words; above all how much of it was luck."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from netloom.durations import duration
from netloom.report.axes import number_text, value_text
from netloom.report.study_data import SearchKey, StudyFacts, read_study
from netloom.report.wording import counted, percent, percent_interval, pictures_in_words, points

# Nearer to an end of its range than this part of it, the best value may lie beyond.
_AT_THE_END = 0.03
# More reasons of failures than these are counted, not listed.
_REASONS = 5


def describe_study(result: Mapping[str, Any]) -> list[str]:
    """A search for the terminal, a line each: the best as searched, the same on fresh seeds or folds, the test.

    Args:
        result: As `tune.json` holds it.

    Raises:
        NetloomError: Something that every search has is missing.
    """
    study = read_study(result)
    return [line for line in (headline(study), fresh_scores(study), test_result(study)) if line]


def headline(study: StudyFacts) -> str:
    """The answer first: the best value, and that being the best of many flatters it."""
    if study.best is None:
        return nothing_found(study)
    value = f"{study.score(study.best.value)} {study.metric}"
    n = len(study.complete)
    if n < 2:
        return f"The only trial that ended reached {value}: nothing was compared."
    return (
        f"The best of {counted(n, 'trial')} reached {value} (trial {study.best.number}); "
        "chosen for this very figure, it is a little too good."
    )


def nothing_found(study: StudyFacts) -> str:
    """Why there is no best trial."""
    if not study.trials:
        return "No trial has ended yet."
    reasons = failures(study)
    if len(reasons) == 1 and not study.of_state("pruned"):
        return f"All {counted(len(study.trials), 'trial')} failed: {next(iter(reasons))}"
    return f"None of {counted(len(study.trials), 'trial')} ran to its end, so there is nothing to choose."


def failures(study: StudyFacts) -> Mapping[str, int]:
    """How often each reason made a trial fail, the commonest first."""
    return dict(Counter(trial.reason or "no reason known" for trial in study.of_state("failed")).most_common())


def failures_in_words(study: StudyFacts) -> list[str]:
    """A sentence for each of the commonest reasons, unless `headline` says it already."""
    reasons = failures(study)
    if study.best is None and len(reasons) == 1 and not study.of_state("pruned"):
        return []
    listed = list(reasons.items())
    more = sum(n for _, n in listed[_REASONS:])
    lines = [f"{counted(n, 'trial')} failed: {reason}" for reason, n in listed[:_REASONS]]
    return lines + (
        [f"{counted(more, 'trial')} more failed for other reasons; the table of all trials has them."] if more else []
    )


def trials_in_words(study: StudyFacts) -> str:
    """`38 complete, 10 pruned, 2 failed`, and how many were meant to be, if more."""
    states = [(state, len(study.of_state(state))) for state in ("complete", "pruned", "failed")]
    words = ", ".join(f"{n:,} {state}" for state, n in states if n) or "none"
    unfinished = study.planned is not None and len(study.trials) < study.planned
    return f"{words}, of {study.planned:,} planned" if unfinished else words


def fresh_scores(study: StudyFacts) -> str:
    """The same recipe on seeds or folds that the search had not seen; the difference is selection luck."""
    if study.best is None:
        return ""
    if study.fresh is None:
        return _without_fresh_scores(study)
    fresh, n = study.fresh, len(study.fresh.values)
    on, among = f"on {counted(n, 'fresh seed')}", ""
    if fresh.by_fold:
        on, among = f"by {counted(n, 'fold')} drawn anew, with fresh seeds,", " from fold to fold"
    known = not math.isnan(fresh.standard_deviation)
    spread = f" ± {_amount(study, fresh.standard_deviation, '')}{among}" if known else ""
    told = f"The same recipe {on} reached {study.score(fresh.mean)}{spread}, {selection_luck(study)}."
    return f"{told} {_trained_on_both(study)}." if _on_both_parts(study) else told


def _without_fresh_scores(study: StudyFacts) -> str:
    """Why the share of luck is not known."""
    if _on_both_parts(study):
        return (
            f"{_trained_on_both(study)}. Nothing is left to validate on, so the share of luck in the searched figure "
            "is not known."
        )
    if study.test is not None or study.final is not None:
        return (
            "The winning recipe was trained again on fresh seeds and tested, but not scored as the trials were, so its "
            "share of luck is not known."
        )
    return "The winning recipe was not trained again on fresh seeds, so its share of luck is not known."


def _on_both_parts(study: StudyFacts) -> bool:
    return study.final is not None and study.final.on != "train"


def _trained_on_both(study: StudyFacts) -> str:
    assert study.final is not None
    return (
        f"{'For the test it' if study.fresh else 'The same recipe'} was trained anew on "
        f"{counted(study.final.n, 'picture')}, of training and validation part together, for "
        f"{counted(study.final.epochs, 'epoch')}, as many as the winning trial kept"
    )


def left_by_fresh_scores(study: StudyFacts) -> str:
    """Which luck fresh scores do not take out."""
    if study.fresh is not None and study.fresh.by_fold:
        return (
            "Fresh folds take out the luck of the seed and of how the pictures were divided, not what was learned of "
            "these pictures by choosing; only the test does that."
        )
    return (
        "Fresh seeds take out the luck of the seed, not what was learned of the validation pictures by choosing; only "
        "the test does that."
    )


def without_importance(study: StudyFacts) -> list[str]:
    """Why some keys are not among the importances, a sentence each."""
    return [
        f"{key.name} is searched {key.condition}, so what it explains of all trials is not known."
        for key in study.keys
        if key.condition
    ]


def selection_luck(study: StudyFacts) -> str:
    """How the fresh seeds or folds compare with the searched figure, and what that says."""
    if study.best is None or study.fresh is None:
        return ""
    fresh = study.fresh
    gap = study.advantage(study.best.value, fresh.mean)
    what = "fold" if fresh.by_fold else "seed"
    if gap <= 0:
        lucky = "lucky folds" if fresh.by_fold else "a lucky seed"
        return f"no worse than as searched: the choice owes nothing to {lucky}"
    word = "lower" if study.maximize else "higher"
    lead = f"{_amount(study, gap)} {word} than as searched"
    if len(fresh.values) < 2:
        return f"{lead}; one {what} cannot tell luck from noise"
    expected = fresh.one_more
    if expected is None:
        return f"{lead}; {what}s that all came out the same cannot tell luck from noise"
    if expected.low <= study.best.value <= expected.high:
        return f"{lead}, which {counted(len(fresh.values), what)} cannot tell from noise"
    return f"{lead}: so much of that figure was the luck of being chosen"


def test_result(study: StudyFacts) -> str:
    """The only figure to quote: the test, looked at once; and what makes it less than that."""
    if study.test is None and study.best is None:
        return ""
    return " ".join([_test_figures(study), *study.test_notes])


def _test_figures(study: StudyFacts) -> str:
    if study.test is None:
        return "The test pictures have not been looked at."
    test = study.test
    interval = "" if test.interval is None else f" (95% interval {percent_interval(test.interval)})"
    guessing = (
        ""
        if math.isnan(test.majority)
        else f"; always guessing the commonest class would be right on {percent(test.majority)}"
    )
    looked = "looked at once, after the search"
    if test.earlier_winners:
        winners = counted(test.earlier_winners, "earlier winner")
        looked = f"which met {winners} of this search, too: choosing by these figures would make them too good"
    return (
        f"Right on {percent(test.accuracy)} of {pictures_in_words(test.n, test.groups, 'test picture')}{interval}, "
        f"{looked}{guessing}.{_test_over_seeds(test.over_seeds)}"
    )


def _test_over_seeds(accuracies: Sequence[float]) -> str:
    """What the other trainings with fresh seeds say of the same pictures."""
    if len(accuracies) < 2:
        return ""
    mean, deviation = statistics.mean(accuracies), statistics.stdev(accuracies)
    return f" Over all {len(accuracies)} fresh seeds the mean is {percent(mean)} ± {deviation * 100:.1f}."


def verdict(study: StudyFacts) -> str:
    """Whether the test shows that anything was learned, compared with always guessing one class."""
    if study.test is None or study.test.interval is None or math.isnan(study.test.majority):
        return ""
    low, high = study.test.interval
    if low > study.test.majority:
        return ""
    if high < study.test.majority:
        return "That is worse than guessing: something is wrong with the training or the labels."
    return (
        "The interval includes what guessing gives, so this test does not show that the network has learned anything."
    )


def at_the_end(key: SearchKey, value: Any) -> str:
    """A hint where the best value lies at an end of what was searched."""
    if key.kind == "choice" or isinstance(value, bool) or not isinstance(value, (int, float)) or not key.high > key.low:
        return ""
    low, high, at = key.low, key.high, float(value)
    if not low <= at <= high:
        return ""
    if key.log and low > 0:
        low, high, at = math.log(low), math.log(high), math.log(at)
    share = (at - low) / (high - low)
    if share < _AT_THE_END:
        return "at the lower end of its range: try smaller ones"
    return "at the upper end of its range: try larger ones" if share > 1 - _AT_THE_END else ""


def plan_in_words(plan: Mapping[str, Any]) -> str:
    """`cpu, 2 threads, float32`."""
    threads = plan.get("threads")
    parts = [
        plan.get("device"),
        counted(threads, "thread") if isinstance(threads, int) else None,
        plan.get("precision"),
    ]
    return ", ".join(value_text(part) for part in parts if part is not None)


def facts(study: StudyFacts) -> dict[str, str]:
    """How the search was made, by label."""
    n = "" if study.validation_n is None else f", {pictures_in_words(study.validation_n, study.validation_groups)}"
    listed = {
        "Recipe": study.recipe,
        "Scored by": f"{study.metric}, {study.scheme}{n}",
        "Trained on": "" if study.per_class is None else f"{counted(study.per_class, 'picture')} of each class",
        "Settings chosen by": study.sampler,
        "Stopped early by": study.pruner,
        "Trials": trials_in_words(study),
        "At once": str(study.jobs),
        "Time": "" if math.isnan(study.seconds) else duration(study.seconds),
        "Each trial on": plan_in_words(study.plan),
        "The final run": study.final_run,
    }
    return {label: value for label, value in listed.items() if value}


def _amount(study: StudyFacts, difference: float, unit: str = " points") -> str:
    """A difference of two values of the objective: `1.2 points`, or four digits."""
    if not study.is_share:
        return number_text(float(f"{difference:.2g}"))
    return points(difference) if unit else f"{difference * 100:.1f}"
