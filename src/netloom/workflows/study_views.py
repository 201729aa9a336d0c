"""Looking at a search from outside: Optuna's dashboard on its database, TensorBoard's table of hyperparameters."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from netloom.errors import NetloomError, RunError
from netloom.files import writing
from netloom.progress import Reporter
from netloom.training.callbacks import require_tensorboard
from netloom.tuning.driver import TrialEnd, Watcher
from netloom.tuning.space import label_of
from netloom.tuning.storage import close_storage, open_file, open_storage
from netloom.workflows.search_options import DEFAULT_PORT
from netloom.workflows.study_manifest import DATABASE, StudyManifest

_LOOPBACK = "127.0.0.1"


def serve_dashboard(
    folder: str | Path,
    *,
    host: str = _LOOPBACK,
    port: int = DEFAULT_PORT,
    storage: str | None = None,
    reporter: Reporter | None = None,
) -> None:
    """Show a study, also one that is running, in a browser, until Ctrl-C.

    Args:
        folder: The study's.
        host: Address to listen on; only this machine can reach the default one.
        port: To listen on; 0 for any that is free.
        storage: The database's URL with its password, where it had one.
        reporter: Told the page's address.

    Raises:
        RunError: There is no such study.
        NetloomError: optuna-dashboard is not installed, or the port is taken.
    """
    with dashboard_server(folder, host=host, port=port, storage=storage) as (url, serve):
        if reporter is not None:
            reporter.say(f"{url}   (Ctrl-C ends it)")
        with contextlib.suppress(KeyboardInterrupt):
            serve()


@contextlib.contextmanager
def dashboard_server(
    folder: str | Path, *, host: str, port: int, storage: str | None
) -> Iterator[tuple[str, Callable[[], None]]]:
    """A server that listens: the page's address, and what serves until it is interrupted; as `serve_dashboard`."""
    manifest = StudyManifest.read(Path(folder))
    database = Path(folder) / DATABASE
    try:
        from wsgiref.simple_server import WSGIRequestHandler, make_server

        from optuna_dashboard import wsgi
    except ImportError as error:
        raise NetloomError(
            f"The dashboard needs the package optuna-dashboard, which cannot be imported ({error}). Install it with: "
            "pip install 'netloom[dashboard]'. The page that a finished search leaves needs nothing."
        ) from error
    if manifest.storage is None and not database.is_file():
        raise RunError(f"{folder} has no {DATABASE}, so there is nothing to show.")

    class Quiet(WSGIRequestHandler):
        """Does not print every request."""

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class' name
            """Nothing."""

    url = storage or manifest.storage
    opened = open_file(database) if url is None else open_storage(url, shared=False)
    try:
        try:
            server = make_server(host, port, _looking_only(wsgi(opened), host), handler_class=Quiet)
        except OSError as error:
            raise NetloomError(
                f"Nothing can listen on {host}:{port} ({error.strerror or error}). Give another --port, or 0 for any."
            ) from error
        with server:
            yield f"http://{host}:{server.server_port}/dashboard", server.serve_forever
    finally:
        close_storage(opened)


def _looking_only(application: Any, host: str) -> Any:
    """A WSGI application that lets nobody change a study, and answers no page of another site.

    The dashboard can delete studies and end trials, in a database that a running search takes for its own. A page of
    another site may reach a server of this machine through a name of its own, but not without telling that name.
    """
    names = {host, "localhost", _LOOPBACK}

    def answer(environment: dict[str, Any], start: Callable[..., Any]) -> Any:
        if environment["REQUEST_METHOD"] not in ("GET", "HEAD"):
            return refuse(start, "405 Method Not Allowed", "This page shows the study; it cannot change it.")
        if host == _LOOPBACK and environment.get("HTTP_HOST", "").rpartition(":")[0] not in names:
            return refuse(start, "403 Forbidden", f"This page is at http://{_LOOPBACK} alone.")
        return application(environment, start)

    def refuse(start: Callable[..., Any], status: str, why: str) -> list[bytes]:
        start(status, [("Content-Type", "text/plain; charset=utf-8")])
        return [why.encode()]

    return answer


class Watchers(Watcher):
    """Tells several watchers.

    Args:
        *watchers: In the order of telling.
    """

    def __init__(self, *watchers: Watcher) -> None:
        self._watchers = watchers

    def started(self, proposal: Any) -> None:
        """A trial was handed to a worker."""
        for watcher in self._watchers:
            watcher.started(proposal)

    def progressed(self, number: int, values: Mapping[str, Any]) -> None:
        """A trial reported."""
        for watcher in self._watchers:
            watcher.progressed(number, values)

    def retried(self, number: int, reason: str) -> None:
        """The process of a trial died."""
        for watcher in self._watchers:
            watcher.retried(number, reason)

    def ended(self, end: TrialEnd) -> None:
        """A trial ended."""
        for watcher in self._watchers:
            watcher.ended(end)


class HParamsLog(Watcher):
    """Writes each trial's values and scores for the HParams page of TensorBoard.

    Args:
        folder: For the event files, one folder for each trial.
        objective: Name of the score.
        by_fold: The values on a trial's way are those of folds, not of epochs.

    Raises:
        NetloomError: The package tensorboard is not installed.
    """

    def __init__(self, folder: Path, objective: str, *, by_fold: bool) -> None:
        self._folder, self._objective = folder, objective
        self._tag = f"{'fold' if by_fold else 'epoch'}/{objective}"
        self._open_writer = require_tensorboard()

    def ended(self, end: TrialEnd) -> None:
        """Write the trial's files, all at once; a failed one has none."""
        values = [float(value) for value in end.outcome.get("values", [])]
        score = end.value if end.value is not None else (values[-1] if values else None)
        if score is None:
            return
        settings = {k: v if isinstance(v, int | float) else label_of(v) for k, v in end.overrides.items()}
        with writing(self._folder, "Free some space, or search with --set tensorboard=false."):
            writer = self._open_writer(str(self._folder / f"trial-{end.number:04d}"))
            with contextlib.closing(writer):
                writer.add_hparams(settings, {self._objective: score}, run_name=".", global_step=len(values))
                for step, value in enumerate(values, 1):
                    writer.add_scalar(self._tag, value, step)
