"""What earlier studies, whose best values a search tries first, have learned of the pictures that it will test on."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from netloom.errors import NetloomError
from netloom.progress import Reporter
from netloom.run import RunFolder
from netloom.workflows.prepare import PreparedData
from netloom.workflows.remembered_pictures import pictures_of_parts


def with_notes_on_earlier_studies(
    data: PreparedData, studies: Sequence[str | Path], reporter: Reporter
) -> PreparedData:
    """The pictures, whose split has notes on those of the test part by which an earlier study chose its best values.

    No network has seen them, so that nothing is refused; but values that were chosen by the very pictures that test
    them are no more tested on new ones.

    Args:
        data: The pictures and their split.
        studies: The folders of earlier studies.
        reporter: Told the notes.
    """
    notes = list(_notes(data, studies))
    for note in notes:
        reporter.say(f"  note: {note}")
    return replace(data, split=data.split.with_test_notes(notes))


def _notes(data: PreparedData, studies: Sequence[str | Path]) -> Iterator[str]:
    test = data.split.test
    for study in studies:
        seen = _seen(RunFolder(study), data)
        values = f"trials of the study {study}, whose best values are tried first"
        if seen is None:
            yield (
                f"It is not known whether pictures of the test part trained or validated {values}: if some did, "
                "figures on them may flatter."
            )
        elif n := int(seen[test].sum()):
            yield (
                f"{n:,} of the {len(test):,} pictures of the test part trained or validated {values}: figures on them "
                "may flatter."
            )


def _seen(folder: RunFolder, data: PreparedData) -> npt.NDArray[np.bool_] | None:
    """Which pictures trained or validated the study's trials, bool `[N]`; None where that is not known."""
    with contextlib.suppress(NetloomError):
        same = folder.data.fingerprint == data.facts.fingerprint
        return pictures_of_parts(folder, data.image_set, ("train", "validation"), same_source=same)
    return None
