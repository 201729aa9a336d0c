"""What gives a run again: a command, or a call where that takes what no shell has."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from netloom.data.folds import Scheme
from netloom.data.splits import DRAWN_AT_ONCE, VALIDATION_TRAINS, Split
from netloom.errors import DataError
from netloom.run import RunFolder
from netloom.training.callbacks.time_limit import is_time_limit
from netloom.workflows.training_job import job_manifest


class Repetition(NamedTuple):
    """How to get a run again."""

    command: str
    """For a shell, or a call for Python; empty where neither gives the same."""
    note: str
    """What to know of it, as a sentence; may be empty."""


class _Verb(NamedTuple):
    """What drew the parts of a run."""

    name: str
    function: str
    recipe: Path
    """The file that it is given."""
    options: dict[str, Any]


def how_to_repeat(folder: RunFolder, split: Split) -> Repetition:
    """What gives a run again, bit for bit under its execution plan where it was trained in one go.

    Args:
        folder: The run.
        split: Its parts.
    """
    verb, notes = _verb(folder, split), []
    if verb is None:
        return Repetition("", _why_not(split))
    if verb.name == "cv":
        notes.append("This is one training of a cross-validation, which is repeated as a whole.")
    notes += _departures(folder.result)
    source = folder.data.source_location
    if not source:
        return Repetition("", " ".join(notes))
    own = folder.recipe.custom_model
    if own is None:
        options = [text for name, value in verb.options.items() for text in (f"--{name}", str(value))]
        given = ["--recipe", str(verb.recipe), *options, "--plan-of", str(folder.path)]
        return Repetition(shlex.join(["netloom", verb.name, source, *given]), " ".join(notes))
    notes.append(f"The network is your own ({own}), of which the run holds no code: give it, as model, from Python.")
    options = [f"{name}={value!r}" for name, value in verb.options.items()]
    arguments = [
        repr(source),
        f"recipe={str(verb.recipe)!r}",
        *options,
        "model=model",
        f"plan=netloom.load({str(folder.path)!r}).plan",
    ]
    return Repetition(f"netloom.{verb.function}({', '.join(arguments)})", " ".join(notes))


def _verb(folder: RunFolder, split: Split) -> _Verb | None:
    """What draws these parts when it is given this recipe; None where nothing does that by itself."""
    if split.method in DRAWN_AT_ONCE:
        return _Verb("train", "train", folder.recipe_path, {})
    job = folder.path.parent
    manifest = job_manifest(job, "cross-validation")
    try:
        if manifest is None:
            return None
        scheme = Scheme(**manifest["scheme"])
        # Each training has its own seed, counted up from the first one's.
        first = RunFolder(job / manifest["trainings"][0]["name"])
    except (DataError, IndexError, KeyError, TypeError):
        return None
    options = {name: value for name, value in scheme.to_json().items() if value is not None}
    return _Verb("cv", "cross_validate", first.recipe_path, options)


def _departures(result: Mapping[str, Any]) -> list[str]:
    """What a training in one go would not do again."""
    found = list(result.get("departures", ()))  # runs of earlier versions have none
    if found:
        found.append("A training in one go gives another result.")
    if is_time_limit(result.get("stop_reason")):
        found.append("A time limit ended it: how many epochs are trained within it depends on the machine's speed.")
    return found


def _why_not(split: Split) -> str:
    if VALIDATION_TRAINS in split.method:
        return (
            "It was trained on the training and the validation part together, as the winner of netloom tune "
            "--final-on train+validation is. A training with this recipe alone would set a validation part aside again."
        )
    return f"Its parts ({split.method}) are not those that a training with this recipe alone would draw."
