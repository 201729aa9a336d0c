"""A shared database that is away for a moment is waited for; whoever waits knows, and can end it."""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

import optuna
import sqlalchemy

from netloom.errors import RunError
from netloom.parallel.tasks import Interruption, uninterrupted

_T = TypeVar("_T")

SECONDS_UNTIL_TOLD = 3.0
"""A shorter wait is not worth a word."""
_SECONDS_PER_LOOK = 0.1
"""Between two questions whether somebody asks for an end: what a person takes for at once."""

STORAGE_ERRORS = (optuna.exceptions.StorageInternalError, sqlalchemy.exc.SQLAlchemyError, sqlite3.Error)
"""What a database that cannot be reached ends in, and one that refuses."""
_AWAY = (
    sqlalchemy.exc.OperationalError,
    sqlalchemy.exc.InterfaceError,
    sqlalchemy.exc.TimeoutError,
    sqlalchemy.exc.DisconnectionError,
    sqlite3.OperationalError,
)


class StorageLostError(RunError):
    """A shared database was away for too long, or until somebody asked for an end."""


class Patience:
    """Waits for a database that is away; several threads may call.

    Args:
        seconds: Of each wait, at most.
        say: Tells a person of waits that last.
        first_pause: Seconds until the second attempt; each pause is twice as long as the one before.
        longest_pause: Seconds.
    """

    def __init__(
        self,
        *,
        seconds: float,
        say: Callable[[str], None] | None = None,
        first_pause: float = 0.2,
        longest_pause: float = 15.0,
    ) -> None:
        self._seconds, self._say = seconds, say or (lambda _: None)
        self._first_pause, self._longest_pause = first_pause, longest_pause
        self._interruption: Interruption = uninterrupted
        self._told = False
        self._lost: StorageLostError | None = None

    @contextlib.contextmanager
    def heeding(self, interruption: Interruption) -> Iterator[None]:
        """For the body, waits end when `interruption` gives a reason."""
        self._interruption = interruption
        try:
            yield
        finally:
            self._interruption = uninterrupted

    def call(self, call: Callable[[], _T]) -> _T:
        """Call, and where the database is away, again and again.

        A server that is started anew, or a network that drops, would otherwise cost every driver of a study.

        Raises:
            StorageLostError: It was away all the time, or until somebody asked for an end. Later calls raise it at
                once: the trial that it ended has not failed, and must not be written down as if it had.
        """
        started, pause = time.monotonic(), self._first_pause
        while self._lost is None:
            with _noting_absence() as away:
                found = call()
                self._tell_of_return()
                return found
            if not self._wait(started, pause, away[0]):
                self._lost = StorageLostError(
                    f"The study's database has been out of reach for {time.monotonic() - started:.0f} s: {away[0]}. "
                    "What it holds can be gone on with when it is back."
                )
            pause = min(2 * pause, self._longest_pause)
        raise self._lost

    def _wait(self, started: float, pause: float, why: str) -> bool:
        """Pause; whether to try again after that."""
        until = time.monotonic() + pause
        if until > started + self._seconds:
            return False
        while (now := time.monotonic()) < until:
            if self._interruption() is not None:
                return False
            if now - started >= SECONDS_UNTIL_TOLD and not self._told:
                self._told = True
                at_most = f"{self._seconds:.0f} s at most"
                self._say(f"The study's database does not answer: {why}. It is waited for, {at_most}")
            time.sleep(min(_SECONDS_PER_LOOK, until - now))
        return True

    def _tell_of_return(self) -> None:
        if self._told:
            self._told = False
            self._say("The study's database answers again")


@contextlib.contextmanager
def _noting_absence() -> Iterator[list[str]]:
    """Why the database was away, if it was; whatever else it says is raised."""
    away: list[str] = []
    try:
        yield away
    except STORAGE_ERRORS as error:
        cause = error.__cause__ or error
        if not isinstance(cause, _AWAY):
            raise
        away += str(getattr(cause, "orig", None) or cause).strip().splitlines() or [type(cause).__name__]
