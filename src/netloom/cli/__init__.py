"""The command line: thin callers of the workflows."""

from __future__ import annotations

import io
import sys

from netloom.cli import lists, pretraining, runs, training, trainings, transfer, tuning
from netloom.cli.app import app

__all__ = ["app", "lists", "main", "pretraining", "runs", "training", "trainings", "transfer", "tuning"]


def main() -> None:
    """Entry point of the `netloom` command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A pipe on Windows has no Hangul, and a file's name may be no text at all; in JSON the escapes are exact.
            stream.reconfigure(errors="backslashreplace")
    app()
