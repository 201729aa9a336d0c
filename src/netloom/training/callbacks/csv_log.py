"""One CSV row per epoch."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from netloom.files import write_atomically
from netloom.training.callbacks.base import Callback
from netloom.training.state import TrainingState


class CSVLog(Callback):
    """Writes the history to `path` after every epoch, whole and atomically."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_epoch_end(self, state: TrainingState) -> None:
        """Write the history so far."""
        text = io.StringIO()
        columns = list(dict.fromkeys(key for row in state.history for key in row))
        writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(state.history)
        write_atomically(self.path, text.getvalue())
