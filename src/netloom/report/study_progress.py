"""How a search went: values by trial and over time, the course of each trial, and what ran when."""

from __future__ import annotations

import math
from collections.abc import Sequence

from markupsafe import Markup

from netloom.report import axes
from netloom.report.study_data import StudyFacts, TrialFacts
from netloom.report.study_marks import MARK, Shading, mark, score_axis, score_form, tooltip
from netloom.report.svg import Drawing, Plot

_SIZE = (480.0, 270.0)
_WIDE = 1060.0
_COURSES_SIZE = (_WIDE, 330.0)
# A line of so many points is as smooth as the screen.
_CURVE_POINTS = 160
# Trials that follow each other in one worker may overlap by so much of the second: their clocks are read at different
# moments.
_CLOCKS = 0.1


def draw_history(study: StudyFacts) -> Markup | None:
    """Each trial's value in the order of ending, and the best so far; None of one trial or no complete one."""
    if not study.complete or len(study.trials) < 2:
        return None
    ordered = finishing_order(study)
    x = axes.linear_axis(1, len(ordered), form=axes.number_text, integers=True, label="trials, as they ended")
    plot = Plot(*_SIZE, label=f"{study.metric} by trial", x=x, y=score_axis(study, study.trials))
    _draw_trials(plot, study, [(trial, float(index)) for index, trial in enumerate(ordered, 1)])
    return plot.markup


def draw_over_time(study: StudyFacts) -> Markup | None:
    """The same against the time since the search began; None where that is not known."""
    timed = [(trial, trial.finished_after) for trial in finishing_order(study) if math.isfinite(trial.finished_after)]
    end = max((at for _, at in timed), default=0.0)
    if not (study.complete and len(timed) > 1 and end > 0):
        return None
    x = axes.time_axis(end, label="since the search began")
    plot = Plot(*_SIZE, label=f"{study.metric} over time", x=x, y=score_axis(study, study.trials))
    _draw_trials(plot, study, timed)
    return plot.markup


def _draw_trials(plot: Plot, study: StudyFacts, trials: Sequence[tuple[TrialFacts, float]]) -> None:
    """A mark for each trial at its moment, and a line of steps for the best so far."""
    x, y = plot.axes
    best = math.nan
    steps: list[tuple[float, float]] = []
    for trial, at in trials:
        if trial.state == "complete" and (math.isnan(best) or study.advantage(trial.value, best) > 0):
            across, best = plot.x(x.place(at) or 0.0), trial.value
            steps += [(across, steps[-1][1])] if steps else []
            steps.append((across, plot.y(y.place(best) or 0.0)))
    if steps:
        plot.line([*steps, (plot.x(1), steps[-1][1])], class_="so-far")
    for trial, at in trials:
        mark(plot, study, trial, x.place(at))


def finishing_order(study: StudyFacts) -> list[TrialFacts]:
    """Trials as they ended; those whose end is not known last."""

    def key(trial: TrialFacts) -> tuple[float, int]:
        return trial.finished_after if math.isfinite(trial.finished_after) else math.inf, trial.number

    return sorted(study.trials, key=key)


def draw_courses(study: StudyFacts, shading: Shading) -> Markup | None:
    """The objective after each epoch or fold, pruned trials fainter, the best on top; None where there was none."""
    lines = [trial for trial in study.trials if any(map(math.isfinite, trial.values))]
    if not lines:
        return None
    finite = [value for trial in lines for value in trial.values if math.isfinite(value)]
    low, high = axes.score_range(finite, maximize=study.maximize)
    epochs, step = max(len(trial.values) for trial in lines), "fold" if study.by_fold else "epoch"
    plot = Plot(
        *_COURSES_SIZE,
        label=f"{study.metric} of each trial by {step}",
        x=axes.linear_axis(1, epochs, form=axes.number_text, integers=True, label=step),
        y=axes.linear_axis(low, high, form=score_form(study)),
    )
    winner = study.winner
    # The worst first, so that the better ones are on top of them.
    order = {"failed": 0, "pruned": 1, "complete": 2}
    lines.sort(key=lambda trial: (trial is winner, order[trial.state], shading.shade(trial.value)))
    for trial in lines:
        _draw_curve(plot, study, trial, shading, best=trial is winner)
    return plot.markup


def _draw_curve(plot: Plot, study: StudyFacts, trial: TrialFacts, shading: Shading, *, best: bool) -> None:
    x, y = plot.axes
    step = max(1, math.ceil(len(trial.values) / _CURVE_POINTS))
    points = [
        (plot.x(x.place(epoch) or 0.0), plot.y(y.place(value) or 0.0))
        for epoch, value in enumerate(trial.values, 1)
        if math.isfinite(value) and (epoch % step == 0 or epoch in (1, len(trial.values)))
    ]
    colour = f"v{shading.shade(trial.value)}" if trial.state == "complete" else trial.state
    words = tooltip(study, trial)
    if len(points) < 2:
        for x_at, y_at in points:
            plot.add("circle", title=words, class_=f"dot {colour}", cx=x_at, cy=y_at, r=MARK)
    else:
        plot.line(points, class_=f"curve {colour}{' best' if best else ''}", title=words)


def draw_timeline(study: StudyFacts, shading: Shading) -> Markup | None:
    """Which trial ran when, a lane for each that ran at once; None where the times are not known."""
    timed = [trial for trial in study.trials if math.isfinite(trial.finished_after) and math.isfinite(trial.seconds)]
    end = max((trial.finished_after for trial in timed), default=0.0)
    if len(timed) < 2 or not end > 0:
        return None
    timed.sort(key=lambda trial: (trial.finished_after - trial.seconds, trial.number))
    spans = [(max(0.0, trial.finished_after - trial.seconds), trial.finished_after) for trial in timed]
    lanes = _lanes(spans)
    x = axes.time_axis(end)
    height = 24.0 * (max(lanes) + 1)
    drawing = Drawing(_WIDE, height + 24, label="which trial ran when")
    for tick in x.ticks:
        at = tick.place * _WIDE
        drawing.line([(at, 0), (at, height + 4)], class_="grid")
        drawing.text(at, height + 18, tick.text, anchor="middle")
    for trial, span, lane in zip(timed, spans, lanes, strict=True):
        left, right = (_WIDE * (x.place(at) or 0.0) for at in span)
        width = max(1.0, right - left - 1)
        colour = f"v{shading.shade(trial.value)}" if trial.state == "complete" else trial.state
        words = tooltip(study, trial)
        drawing.add(
            "rect", title=words, class_=f"span {colour}", x=left, y=24.0 * lane + 2, width=width, height=20, rx=3
        )
        if width > 9 + 7 * len(str(trial.number)):
            drawing.text(left + 5, 24.0 * lane + 16.5, str(trial.number), class_="over")
    return drawing.markup


def _lanes(spans: Sequence[tuple[float, float]]) -> list[int]:
    """A lane for each span of time, in the order of their starts, so that no two in a lane overlap."""
    ends: list[float] = []
    lanes = []
    for start, stop in spans:
        lane = next((index for index, end in enumerate(ends) if end <= start + _CLOCKS * (stop - start)), len(ends))
        ends[lane : lane + 1] = [stop]
        lanes.append(lane)
    return lanes
