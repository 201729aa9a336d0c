"""A search told as one HTML page: what won and how much of that was luck, what mattered, what was tried."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
from matplotlib.colors import to_hex

from netloom.durations import duration
from netloom.files import write_atomically
from netloom.report import study_wording as wording
from netloom.report.axes import value_text
from netloom.report.curves import ThemedColour
from netloom.report.page import render_page
from netloom.report.sorting import SORT_SCRIPT, SORT_SOURCE
from netloom.report.study_data import SearchKey, StudyFacts, TrialFacts, read_study, same_setting
from netloom.report.study_marks import SHADES, Shading, beyond_the_axis
from netloom.report.study_progress import draw_courses, draw_history, draw_over_time, draw_timeline
from netloom.report.study_space import PARALLEL_AXES, draw_pairs, draw_parallel, draw_slice
from netloom.report.study_wording import describe_study

__all__ = ["describe_study", "render_study", "write_study_report"]

# More keys than these are not drawn one by one; the most important are.
_SLICES = 12
# So many dots lie on each other.
_MANY = 150
# The name under which the page tells to save a winning recipe that is in no file.
_RECIPE_FILE = "best.yaml"
# Where a trial's settings come from, where that is worth a word.
_ORIGINS = {"sampler": "", "recipe": "the recipe itself"}
# Parts of viridis (van der Walt and Smith, 2015; even to the eye, also to colour-blind ones and in grey) that stand out
# from light and from dark paper, from the worst value to the best, which is farthest from the paper.
_LIGHT_PART, _DARK_PART = (0.88, 0.02), (0.25, 0.97)


class SettingRow(NamedTuple):
    """A searched key: what won, what the recipe itself has, and what was searched."""

    name: str
    winning: str
    own: str
    """Empty where not known."""
    changed: bool
    searched: str
    hint: str


class Cell(NamedTuple):
    """A cell of the table of trials, and what it is sorted by."""

    text: str
    sort: str


class TrialRow(NamedTuple):
    """A trial in the table of all."""

    number: int
    state: str
    reason: str
    origin: str
    best: bool
    value: Cell
    settings: list[Cell]
    epochs: int
    time: Cell


def write_study_report(result: Mapping[str, Any], path: Path) -> None:
    """Write the page of a search.

    Args:
        result: As `tune.json` holds it; figures that are not numbers may be NaN, infinite or None.
        path: Of the HTML file; replaced in one step.

    Raises:
        NetloomError: Something that every search has is missing.
        RunError: The file cannot be written.
    """
    write_atomically(path, render_study(result))


def render_study(result: Mapping[str, Any]) -> str:
    """A search as one self-contained HTML page; also one that was interrupted, or whose trials all failed.

    Raises:
        NetloomError: Something that every search has is missing.
    """
    study = read_study(result)
    shading = Shading(study)
    # A single trial has nothing to be compared with.
    drawn = study.keys_by_importance[:_SLICES] if len(study.complete) > 1 else []
    used = {name for trial in study.trials for name in trial.settings}
    return render_page(
        "study.html",
        study=study,
        wording=wording,
        settings=[_setting(study, key) for key in study.keys] if study.best else [],
        command=_command(study),
        recipe_file=_RECIPE_FILE,
        importances=_importances(study),
        history=draw_history(study),
        over_time=draw_over_time(study),
        courses=draw_courses(study, shading),
        parallel=draw_parallel(study, shading) if drawn else None,
        parallel_axes=PARALLEL_AXES,
        slices=[(key, draw_slice(study, key)) for key in drawn if key.name in used],
        slices_most=_SLICES,
        pairs=draw_pairs(study, shading) if drawn else [],
        timeline=draw_timeline(study, shading),
        many=len(study.trials) > _MANY,
        n_beyond=beyond_the_axis(study) if study.complete else 0,
        scale=shading,
        shades=_colours(),
        trials=trial_rows(study),
        sort_script=SORT_SCRIPT,
        sort_source=SORT_SOURCE,
    )


def _command(study: StudyFacts) -> str:
    """What trains the winning recipe; empty where a shell has no pictures or no network for it."""
    if not study.source_location or study.has_own_network:
        return ""
    return shlex.join(["netloom", "train", study.source_location, "--recipe", study.recipe_file or _RECIPE_FILE])


def trial_rows(study: StudyFacts) -> list[TrialRow]:
    """All trials, the best first, then those that were pruned, then those that failed."""
    order = {"complete": 0, "pruned": 1, "failed": 2}

    def rank(trial: TrialFacts) -> tuple[int, float, int]:
        worse = math.inf if math.isnan(trial.value) else study.advantage(0.0, trial.value)
        return order[trial.state], worse, trial.number

    return [_trial_row(study, trial) for trial in sorted(study.trials, key=rank)]


def _trial_row(study: StudyFacts, trial: TrialFacts) -> TrialRow:
    return TrialRow(
        number=trial.number,
        state=trial.state,
        reason=trial.reason,
        origin=_ORIGINS.get(trial.origin, trial.origin),
        best=trial is study.winner,
        value=Cell(study.score(trial.value, digits=2), _sort_text(trial.value)),
        settings=[
            _setting_cell(trial.settings[key.name]) if key.name in trial.settings else Cell("", "")
            for key in study.keys
        ],
        epochs=trial.epochs,
        time=Cell("–" if math.isnan(trial.seconds) else duration(trial.seconds), _sort_text(trial.seconds)),
    )


def _setting_cell(value: Any) -> Cell:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return Cell(value_text(value), _sort_text(value) if is_number else value_text(value))


def _sort_text(value: float) -> str:
    return repr(value) if math.isfinite(value) else ""


def _setting(study: StudyFacts, key: SearchKey) -> SettingRow:
    """The row of a key; the winner may lack one that depends on another."""
    best, own = study.best.settings if study.best else {}, study.base
    both = key.name in best and key.name in own
    return SettingRow(
        name=key.name,
        winning=value_text(best[key.name]) if key.name in best else "not used",
        own=value_text(own[key.name]) if key.name in own else "–",
        changed=both and not same_setting(best[key.name], own[key.name]),
        searched=", ".join(filter(None, (key.range_in_words, key.condition))),
        hint=wording.at_the_end(key, best.get(key.name)),
    )


def _importances(study: StudyFacts) -> list[tuple[str, float]]:
    known = [(name, share) for name, share in study.importances.items() if math.isfinite(share)]
    return sorted(known, key=lambda item: -item[1])


def _colours() -> list[ThemedColour]:
    """A colour for each shade on light and on dark paper."""
    viridis = mpl.colormaps["viridis"]

    def at(part: tuple[float, float], shade: int) -> str:
        first, last = part
        return str(to_hex(viridis(first + (last - first) * shade / (SHADES - 1))))

    return [ThemedColour(at(_LIGHT_PART, shade), at(_DARK_PART, shade)) for shade in range(SHADES)]
