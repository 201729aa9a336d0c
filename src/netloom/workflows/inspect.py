"""What is in a source, and what is wrong with it."""

from __future__ import annotations

from pathlib import Path

from netloom.data.audit import Audit, audit
from netloom.data.imageset import load_image_set
from netloom.data.sources import open_source
from netloom.progress import Reporter


def audit_source(source: str | Path, *, quiet: bool = True) -> Audit:
    """Open every picture of a source and report counts, sizes, duplicates, and what could not be read.

    Raises:
        DataError: The source cannot be opened at all, or nothing in it can be read.
    """
    with Reporter(quiet=quiet).bar("Reading pictures") as on_progress:
        return audit(load_image_set(open_source(source), on_progress=on_progress))
