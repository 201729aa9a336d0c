"""What a search tried and what came out: all keys at once, one by one, and the most important in pairs."""

from __future__ import annotations

import itertools
import math

import numpy as np
import numpy.typing as npt
from markupsafe import Markup
from matplotlib.figure import Figure

from netloom.report.study_data import SearchKey, StudyFacts
from netloom.report.study_marks import MARK, SHADES, SPREAD, Shading, jittered, key_axis, mark, score_axis, tooltip
from netloom.report.svg import LINE_HEIGHT, Drawing, Plot, number, spaced

FloatArray = npt.NDArray[np.float64]

_SLICE_SIZE = (330.0, 220.0)
_PAIR_SIZE = (360.0, 300.0)
_WIDE = 1060.0
# Fewer trials say nothing about what lies between them.
_FIELD_TRIALS = 20
_FIELD_CELLS = 72
# Scott's factor n**(-1/6) (two dimensions) times the standard deviation of what is spread evenly over 0..1.
_BANDWIDTH = 1 / math.sqrt(12)
# Where less than so many trials' weight lies near, nothing is drawn.
_LEAST_WEIGHT = 1.5
# More axes than these stand so close that lines between them say nothing.
PARALLEL_AXES = 10


def draw_slice(study: StudyFacts, key: SearchKey) -> Markup:
    """The objective against one key."""
    x = key_axis(study, key)
    plot = Plot(*_SLICE_SIZE, label=f"{study.metric} by {key.name}", x=x, y=score_axis(study, study.complete))
    for trial in study.trials:
        place = x.place(trial.settings[key.name]) if key.name in trial.settings else None
        mark(plot, study, trial, jittered(x, place, trial.number), key.name)
    if x.slot:
        _draw_medians(plot, study, key)
    return plot.markup


def _draw_medians(plot: Plot, study: StudyFacts, key: SearchKey) -> None:
    x, y = plot.axes
    by_place: dict[float, list[float]] = {}
    for trial in study.complete:
        place = x.place(trial.settings.get(key.name)) if key.name in trial.settings else None
        if place is not None:
            by_place.setdefault(place, []).append(trial.value)
    for place, values in by_place.items():
        if len(values) < 2:
            continue
        height = plot.y(y.place(float(np.median(values))) or 0.0)
        reach = SPREAD * x.slot / 2 + 0.01
        title = f"median of {len(values)}: {study.score(float(np.median(values)))}"
        plot.line([(plot.x(place - reach), height), (plot.x(place + reach), height)], class_="median", title=title)


def draw_parallel(study: StudyFacts, shading: Shading) -> Markup:
    """A line for each complete trial through an axis for each of the most important keys, the objective last."""
    keys = study.keys_by_importance[:PARALLEL_AXES]
    upright = [key_axis(study, key, label=key.name) for key in keys]
    columns = [*upright, score_axis(study, study.complete, label=study.metric)]
    left, right, top, foot = 14.0, _WIDE - 76, 48.0, 330.0
    gap = (right - left) / max(1, len(columns) - 1)
    drawing = Drawing(_WIDE, 372, label=f"settings and {study.metric} of each trial")

    def height(place: float | None) -> float:
        # A key that a trial has not has a place of its own below the axis.
        return foot + 24 if place is None else foot - place * (foot - top)

    without = set()
    for trial in sorted(study.complete, key=lambda trial: shading.shade(trial.value)):
        places = [
            jittered(axis, axis.place(trial.settings[key.name]), trial.number) if key.name in trial.settings else None
            for key, axis in zip(keys, upright, strict=True)
        ]
        without |= {index for index, place in enumerate(places) if place is None}
        points = [
            (left + index * gap, height(place)) for index, place in enumerate((*places, columns[-1].place(trial.value)))
        ]
        best = " best" if trial is study.winner else ""
        words = tooltip(study, trial, *(key.name for key in keys))
        drawing.line(points, class_=f"course v{shading.shade(trial.value)}{best}", title=words)
    letters = int((gap - 14) / 7)
    for index, axis in enumerate(columns):
        x = left + index * gap
        drawing.line([(x, top), (x, foot)], class_="axis")
        anchor = "end" if index == len(columns) - 1 and len(columns) > 1 else "start"
        end = _WIDE - 2 if anchor == "end" else x - 6
        # Names of neighbours on two levels have twice the room.
        level = 14 + 16 * (index % 2)
        drawing.text(max(2, end), level, axis.label, anchor=anchor, letters=2 * letters, class_="name")
        for tick in spaced(axis.ticks, foot - top, LINE_HEIGHT):
            drawing.text(x + 6, height(tick.place) + 4, tick.text, letters=letters, class_="over")
        if index in without:
            drawing.text(x + 6, height(None) + 4, "not set", letters=letters, class_="over")
    return drawing.markup


def draw_pairs(study: StudyFacts, shading: Shading) -> list[tuple[str, Markup]]:
    """Two keys at once, for the three most important: where it looked, and what it found there."""
    return [
        (f"{first.name} and {second.name}", _pair(study, first, second, shading))
        for first, second in itertools.combinations(study.keys_by_importance[:3], 2)
        if any(first.name in trial.settings and second.name in trial.settings for trial in study.complete)
    ]


def _pair(study: StudyFacts, first: SearchKey, second: SearchKey, shading: Shading) -> Markup:
    x, y = key_axis(study, first, label=first.name), key_axis(study, second, label=second.name)
    label = f"{study.metric} by {first.name} and {second.name}"
    plot = Plot(*_PAIR_SIZE, label=label, x=x, y=y)
    marks = []
    for trial in study.complete:
        if first.name in trial.settings and second.name in trial.settings:
            across, up = x.place(trial.settings[first.name]), y.place(trial.settings[second.name])
            if across is not None and up is not None:
                marks.append((trial, across, up))
    if not (x.slot or y.slot):
        for shade, path in filled_contours(
            np.array([mark[1:] for mark in marks], dtype=np.float64).reshape(-1, 2),
            np.array([trial.value for trial, _, _ in marks]),
            shading,
        ):
            d = " ".join(
                "M" + "L".join(f"{number(plot.x(a))} {number(plot.y(b))}" for a, b in ring) + "Z" for ring in path
            )
            plot.add("path", class_=f"field v{shade}", d=d)
    for trial, across, up in sorted(marks, key=lambda mark: shading.shade(mark[0].value)):
        at = jittered(x, across, trial.number), jittered(y, up, trial.number + 7)
        best = trial is study.winner
        plot.add(
            "circle",
            title=tooltip(study, trial, first.name, second.name),
            class_=f"dot v{shading.shade(trial.value)}{' best' if best else ''}",
            cx=plot.x(at[0] or 0.0),
            cy=plot.y(at[1] or 0.0),
            r=MARK + (2 if best else 0.6),
        )
    return plot.markup


def filled_contours(points: FloatArray, values: FloatArray, shading: Shading) -> list[tuple[int, list[FloatArray]]]:
    """What trials near each place reached on average, in bands of the colour scale; nothing of too few trials.

    Source: the estimate is that of Nadaraya, "On estimating regression", and Watson, "Smooth regression analysis",
    both 1964, with a Gaussian kernel of Scott's width ("Multivariate density estimation", 1992).

    Args:
        points: Places of the trials, 0..1, float64 `[n, 2]`.
        values: What each reached, float64 `[n]`, finite.
        shading: The colour scale.

    Returns:
        For each shade that occurs its rings (outlines and holes), each float64 `[vertices, 2]`, 0..1.
    """
    if len(points) < _FIELD_TRIALS or not shading.high > shading.low:
        return []
    at = np.linspace(0, 1, _FIELD_CELLS)
    surface = kernel_mean(points, np.clip(values, shading.low, shading.high), at)
    levels = np.linspace(shading.low, shading.high, SHADES + 1)
    # The smallest and the largest value belong to the outer bands.
    levels[0], levels[-1] = levels[0] - 1, levels[-1] + 1
    bands = Figure().add_subplot().contourf(at, at, surface, levels=levels)
    middles = (levels[:-1] + levels[1:]) / 2
    return [
        (shading.shade(float(middle)), rings)
        for middle, path in zip(middles, bands.get_paths(), strict=True)
        if (rings := [np.asarray(ring, dtype=np.float64) for ring in path.to_polygons(closed_only=False)])
    ]


def kernel_mean(points: FloatArray, values: FloatArray, at: FloatArray) -> FloatArray:
    """What points near each place of a grid have on average, by a Gaussian kernel.

    Args:
        points: Places, 0..1, float64 `[n, 2]`, across and up.
        values: Of each point, float64 `[n]`.
        at: Where the grid's columns and rows lie, 0..1, float64 `[side]`.

    Returns:
        float64 `[side, side]`, row by row upwards; masked where no point is near.
    """
    width = _BANDWIDTH * len(points) ** (-1 / 6)
    # The kernel of the plane is the product of one across and one up.
    across, up = (np.exp(-0.5 * ((at[:, None] - points[None, :, axis]) / width) ** 2) for axis in (0, 1))
    weight = up @ across.T
    mean = (up * values) @ across.T / np.maximum(weight, 1e-12)
    return np.ma.masked_where(weight < _LEAST_WEIGHT, mean)
