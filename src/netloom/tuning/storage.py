"""Where trials are written down: a database that several drivers, of several machines, may share."""

from __future__ import annotations

import contextlib
import logging
import re
import sqlite3
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy
from optuna.storages import BaseStorage, InMemoryStorage, RDBStorage

from netloom.errors import NetloomError, RunError
from netloom.files import lock_file
from netloom.tuning.own_database import OwnDatabase

_SECONDS_TO_WAIT = 120
"""For another writer of the same SQLite file."""
HEARTBEAT_SECONDS = 30
_TRIES = 50
GRACE_SECONDS = 180
"""A shared study's trial whose driver has been silent for so long counts as failed."""


def sqlite_url(path: Path) -> str:
    """The URL of a database file whose path has no `?`."""
    return f"sqlite:///{path.resolve().as_posix()}"


def in_memory() -> BaseStorage:
    """A storage that ends with the process."""
    quiet_optuna()
    return InMemoryStorage()


def open_own(path: Path) -> OwnDatabase:
    """Open a database file that this process alone writes to, and make its tables where there are none.

    Raises:
        RunError: Another process has it open so.
        NetloomError: It cannot be opened.
    """
    lock = lock_file(
        path.with_suffix(".lock"),
        f"Another process is at work on {path.parent}. Wait for its end, or end it; several that share one study "
        "need a database of their own, see --storage.",
    )
    try:
        database = open_file(path)
        try:
            return OwnDatabase(database, lock, path)
        except BaseException:
            close_storage(database)
            raise
    except BaseException:
        lock.close()
        raise


def open_file(path: Path) -> RDBStorage:
    """Open a database file, whatever characters its path has, and make its tables where there are none.

    Raises:
        NetloomError: It cannot be opened.
    """
    quiet_optuna()
    file = str(path.resolve())
    options = {
        "creator": lambda: sqlite3.connect(file, timeout=_SECONDS_TO_WAIT, check_same_thread=False),
        "poolclass": sqlalchemy.pool.QueuePool,
    }
    with _refusals(str(path)):
        _use_write_ahead_log(file)
        storage = _made("sqlite://", options, {})
        _lock_at_the_start(storage.engine)
        return storage


def open_storage(
    url: str, *, shared: bool, heartbeat_seconds: int = HEARTBEAT_SECONDS, grace_seconds: int = GRACE_SECONDS
) -> RDBStorage:
    """Open a database, and make its tables where there are none.

    Args:
        url: As SQLAlchemy takes it: `sqlite:///study.db`, `postgresql://user@host/name`.
        shared: Several drivers write to it: each tells now and then that it is alive.
        heartbeat_seconds: How often it tells.
        grace_seconds: After such a silence the trials of a driver count as failed.

    Raises:
        NetloomError: It is no such URL, its driver is not installed, or the database cannot be opened.
    """
    quiet_optuna()
    try:
        parsed = sqlalchemy.engine.make_url(url)
    except sqlalchemy.exc.ArgumentError as error:
        raise NetloomError(
            f"--storage {without_password(url)!r} is no database URL. Write sqlite:///FILE or "
            "postgresql://USER:PASSWORD@HOST/NAME."
        ) from error
    file_based = parsed.get_backend_name() == "sqlite"
    if parsed.drivername == "postgresql":
        # The second generation of psycopg is what SQLAlchemy takes for the bare name.
        url = parsed.set(drivername=_postgresql_driver()).render_as_string(hide_password=False)
    engine_options: dict[str, Any] = (
        {"connect_args": {"timeout": _SECONDS_TO_WAIT}} if file_based else {"pool_pre_ping": True}
    )
    heartbeat = {"heartbeat_interval": heartbeat_seconds, "grace_period": grace_seconds} if shared else {}
    with _refusals(without_password(url)):
        if not file_based:
            return _made(url, engine_options, heartbeat)
        _use_write_ahead_log(parsed.database)
        storage = _made(url, engine_options, heartbeat)
        _lock_at_the_start(storage.engine)
        return storage


@contextlib.contextmanager
def _refusals(shown: str) -> Iterator[None]:
    """Turn what a database, its driver or the system refuses into one message.

    Raises:
        NetloomError: In all these cases.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise NetloomError(
            f"The database {shown} needs the Python package {error.name}, which is not installed: "
            f'pip install "netloom[postgresql]" for PostgreSQL, or pip install {error.name}.'
        ) from error
    except (
        sqlalchemy.exc.SQLAlchemyError,
        optuna.exceptions.StorageInternalError,
        sqlite3.Error,
        OSError,
        ImportError,
    ) as error:
        cause = str(getattr(error, "orig", None) or error).strip().splitlines()
        raise NetloomError(f"The database {shown} cannot be used: {cause[0] if cause else error}.") from error


def _made(url: str, engine_options: dict[str, Any], heartbeat: dict[str, int]) -> RDBStorage:
    """Optuna's storage; drivers that make the tables of one database at once are in each other's way for a moment.

    Attempts that fail keep no connection, since nobody could close it.
    """
    unpooled = {**engine_options, "poolclass": sqlalchemy.pool.NullPool}
    for _ in range(_TRIES - 1):
        with contextlib.suppress(_MadeByAnotherError):
            _try_to_make(url, unpooled, {})
            break
        time.sleep(0.1)
    return _try_to_make(url, engine_options, heartbeat)


class _MadeByAnotherError(sqlalchemy.exc.SQLAlchemyError):
    """Another driver was making the same tables."""


def _try_to_make(url: str, engine_options: dict[str, Any], heartbeat: dict[str, int]) -> RDBStorage:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return RDBStorage(
                url.replace("{", "{{").replace("}", "}}"),  # Optuna takes braces for a template
                engine_options,
                heartbeat_interval=heartbeat.get("heartbeat_interval"),
                grace_period=heartbeat.get("grace_period"),
            )
    except (sqlalchemy.exc.DBAPIError, optuna.exceptions.StorageInternalError) as error:
        if re.search("already exists|duplicate|UNIQUE|locked", f"{error} {error.__cause__}", re.IGNORECASE):
            raise _MadeByAnotherError(str(error)) from error
        raise


def _use_write_ahead_log(database: str | None) -> None:
    """Readers and a writer of one file then do not wait for each other, and a commit costs no wait for the disk.

    After a loss of power the last commits may be missing, never half of one; a trial so lost is made again.
    """
    if not database or database == ":memory:":
        raise NetloomError("--storage sqlite:// needs a file, which other processes find: sqlite:///FILE.")
    with contextlib.closing(sqlite3.connect(database, timeout=_SECONDS_TO_WAIT)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")


def _lock_at_the_start(engine: sqlalchemy.engine.Engine) -> None:
    """Make transactions take SQLite's write lock when they begin, and wait for it there.

    Otherwise two that have read, and then want to write, cannot both: one ends with "database is locked",
    without waiting.
    """

    @sqlalchemy.event.listens_for(engine, "connect")
    def _on_connect(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # the driver must not begin transactions by itself
        connection.execute("PRAGMA synchronous=NORMAL")

    @sqlalchemy.event.listens_for(engine, "begin")
    def _on_begin(connection: Any) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    engine.dispose()  # connections that were made before


def _postgresql_driver() -> str:
    """`postgresql+psycopg` where psycopg 3 is installed, else what SQLAlchemy takes by itself."""
    import importlib.util

    return "postgresql+psycopg" if importlib.util.find_spec("psycopg") else "postgresql"


def backend_of(storage: BaseStorage) -> BaseStorage:
    """What lies behind the cache that Optuna puts before a database."""
    backend: BaseStorage = getattr(storage, "_backend", storage)
    return backend


def close_storage(storage: BaseStorage) -> None:
    """End the connections to a database."""
    backend = backend_of(storage)
    if isinstance(backend, OwnDatabase):
        backend.close()
    elif isinstance(backend, RDBStorage):
        backend.scoped_session.remove()
        backend.engine.dispose()


def quiet_optuna() -> None:
    """Its log would tell every trial a second time; heartbeats are sent here as its own loop sends them."""
    optuna.logging.set_verbosity(logging.WARNING)
    warnings.filterwarnings("ignore", message="Heartbeat of storage is supposed to be used", category=UserWarning)


def without_password(url: str) -> str:
    """A database's URL as it may be shown and lie in a file; what cannot be read as one loses all that may be secret.

    Passwords stand before the host, or, as PostgreSQL's own tools allow, among the options behind the `?`.
    """
    try:
        parsed = sqlalchemy.engine.make_url(url)
    except (sqlalchemy.exc.ArgumentError, ValueError):
        return re.sub(r":[^:]*@", "@", url.partition("?")[0])
    return sqlalchemy.engine.URL.create(
        parsed.drivername,
        username=parsed.username,
        host=parsed.host,
        port=parsed.port,
        database=parsed.database,
        query={key: value for key, value in parsed.query.items() if "pass" not in key.lower()},
    ).render_as_string(hide_password=False)


def with_absolute_path(url: str) -> str:
    """The URL of an SQLite file as any working folder takes it; every other URL as it is."""
    try:
        parsed = sqlalchemy.engine.make_url(url)
    except (sqlalchemy.exc.ArgumentError, ValueError):
        return url
    file = parsed.database
    if parsed.get_backend_name() != "sqlite" or not file or file == ":memory:" or file.startswith("file:"):
        return url
    if Path(file).is_absolute():
        return url
    return parsed.set(database=Path(file).resolve().as_posix()).render_as_string(hide_password=False)


def missing_study(name: str, url: str) -> RunError:
    """The error that says so."""
    return RunError(f"The database {without_password(url)} holds no study {name!r}.")
