"""The command line: thin callers of the workflows."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from pathlib import Path
from typing import TextIO

from netloom.cli import lists, pretraining, runs, training, trainings, transfer, tuning
from netloom.cli.app import app

__all__ = ["app", "lists", "main", "pretraining", "runs", "training", "trainings", "transfer", "tuning"]


def main() -> None:
    """Entry point of the `netloom` command."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            # Closed by `2>&-`, or a program without a console. A file opened later would get its number, and with it
            # what libraries write there.
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115 - for as long as it runs
        elif isinstance(stream, io.TextIOWrapper):
            # A pipe on Windows has no Hangul, and a file's name may be no text at all; in JSON the escapes are exact.
            stream.reconfigure(errors="backslashreplace")
    try:
        app()
    finally:
        for stream in (sys.__stdout__, sys.__stderr__):
            _let_go(stream)


def _let_go(stream: TextIO | None) -> None:
    """Have what nobody reads any more go nowhere: Python would fail to flush it at its exit, with code 120."""
    if stream is None:
        return
    try:
        stream.flush()
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)
