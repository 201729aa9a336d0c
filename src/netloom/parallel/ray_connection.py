"""The way to a Ray cluster: one that runs, or one of this machine alone for as long as it is needed."""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import shutil
import signal
import socket
import tempfile
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from netloom.errors import NetloomError
from netloom.runtime import usable_cpus

_SECONDS_TO_ANSWER = 5.0
_GCS_PORT, _CLIENT_PORT = 6379, 10001  # which `ray start --head` takes

# On Linux Ray binds to all addresses of the machine, and to the loopback interface where clusters are not enabled. A
# cluster of one machine needs no other, and whoever reaches its ports and knows its token can run anything.
_CLUSTERS_ENABLED = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"


@dataclass(frozen=True)
class Connection:
    """What connects this process.

    Attributes:
        ray: The module.
        address: Of the cluster, for people.
    """

    ray: ModuleType
    address: str


@contextlib.contextmanager
def connected(address: str) -> Iterator[Connection]:
    """Connect this process to a Ray cluster for the body.

    A connection that this process has already is used as it is, where it is to that address or the address is `auto`.

    Args:
        address: `auto` for the cluster that runs on this machine or that RAY_ADDRESS names, or else one of this machine
            alone, started here; `local` for the latter; `HOST:PORT` for a cluster that this machine is part of;
            `ray://HOST:PORT` for any other.

    Raises:
        NetloomError: Ray is not installed, the address is none, nothing answers there, or what answers does not fit.
    """
    ray = _import_ray()
    if ray.is_initialized():
        yield _existing(ray, address)
        return
    if address == "auto":
        address = os.environ.get("RAY_ADDRESS") or _known_here() or "local"
    if address == "local":
        with _own_cluster(ray):
            yield Connection(ray, address)
        return
    if address == _known_here():
        _take_token(ray)
    if not _answers(*_host_and_port(address)):
        raise NetloomError(
            f"No Ray cluster answers at {address}. Start one with: ray start --head, give the address it shows, or use "
            "auto for this machine alone."
        )
    with _initialized(ray, address):
        yield Connection(ray, address)


def _import_ray() -> ModuleType:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nobody is told that netloom is used
    try:
        ray = importlib.import_module("ray")
    except ImportError as error:
        raise NetloomError(
            f"Ray, which trainings on several machines need, cannot be imported ({error}). Install it: "
            'pip install "netloom[ray]"'
        ) from error
    logging.getLogger("ray").setLevel(logging.ERROR)
    return ray


def _existing(ray: ModuleType, address: str) -> Connection:
    found = str(ray.get_runtime_context().gcs_address)
    if address not in ("auto", found):
        raise NetloomError(
            f"This process is connected to the Ray cluster at {found} already, not to {address}. Use auto, or call "
            "ray.shutdown() before."
        )
    return Connection(ray, found)


def _known_here() -> str | None:
    """The cluster that `ray start` has started or joined on this machine, if it still answers.

    Ray's own search would take any cluster of one machine too, such as that of another netloom, which ends with it.
    """
    try:
        address = (Path(_temporary_folder()) / "ray" / "ray_current_cluster").read_text(encoding="utf-8").strip()
        return address if _answers(*_host_and_port(address)) else None
    except (OSError, ValueError, NetloomError):
        return None


def _take_token(ray: ModuleType) -> None:
    """As `ray start` does: where the user has a token, the clusters of this machine demand it."""
    with contextlib.suppress(ImportError, AttributeError):  # earlier versions have no tokens
        tokens = importlib.import_module(f"{ray.__name__}._private.authentication.authentication_token_setup")
        tokens.maybe_enable_token_auth_if_token_available(warn_if_disabled=False)


def _temporary_folder() -> str:
    """In which Ray puts its folders."""
    return os.environ.get("RAY_TMPDIR") or ("/tmp" if os.name == "posix" else tempfile.gettempdir())


@contextlib.contextmanager
def _own_cluster(ray: ModuleType) -> Iterator[None]:
    """A cluster of this machine alone, which ends with this process."""
    # A short name: the paths of the sockets in it, of which Ray's names take 62, may have no more than 104 characters.
    folder = tempfile.mkdtemp(prefix="netloom-ray-", dir=_temporary_folder())
    try:
        with (
            _loopback_only(),
            _initialized(ray, "local", num_cpus=usable_cpus(), include_dashboard=False, _temp_dir=folder),
        ):
            yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _initialized(ray: ModuleType, address: str, **options: Any) -> Iterator[None]:
    # What befalls workers reaches people as events. Ray would print pages about it on the standard output, whatever
    # `log_to_driver` says.
    with _changed("ray._private.worker", "_worker_logs_enabled", False):
        try:
            with _explained(address), _signals_kept(), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # they are about later versions of Ray
                ray.init(address=address, log_to_driver=False, logging_level="ERROR", **options)
            yield
        finally:
            ray.shutdown()


@contextlib.contextmanager
def _explained(address: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # Ray raises nearly every kind
        text = " ".join(f"{error}".split())[:600] or type(error).__name__
        advice = "The message is Ray's own."
        if "ersion mismatch" in text:
            advice = "Install the same versions of Ray and Python on all machines."
        elif address != "local":
            advice = (
                "If it demands a token, set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN unless the token is in "
                "~/.ray/auth_token."
            )
            if not address.startswith("ray://"):
                host = _host_and_port(address)[0]
                advice += f" If this machine is no part of that cluster, use ray://{host}:{_CLIENT_PORT}."
        name = "A Ray cluster on this machine" if address == "local" else f"The Ray cluster at {address}"
        raise NetloomError(f"{name} cannot be used: {text}\n{advice}") from error


@contextlib.contextmanager
def _signals_kept() -> Iterator[None]:
    """Ray puts a handler of its own at SIGTERM; what ends this process is not Ray's to decide."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGBREAK") if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _loopback_only() -> Iterator[None]:
    # The variable is for the processes that are started, the constant has been read from it in this one.
    before = os.environ.get(_CLUSTERS_ENABLED)
    os.environ[_CLUSTERS_ENABLED] = "0"
    try:
        with _changed("ray._private.ray_constants", "ENABLE_RAY_CLUSTER", False):
            yield
    finally:
        del os.environ[_CLUSTERS_ENABLED]
        if before is not None:
            os.environ[_CLUSTERS_ENABLED] = before


@contextlib.contextmanager
def _changed(module: str, name: str, value: Any) -> Iterator[None]:
    """Set what Ray has no option for; the tests tell when that no longer does what it is for."""
    found: Any = importlib.import_module(module)
    before = getattr(found, name, None)
    setattr(found, name, value)
    try:
        yield
    finally:
        setattr(found, name, before)


def _host_and_port(address: str) -> tuple[str, int]:
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not host or not port.isdecimal() or not 0 < int(port) < 65536 or "/" in host:
        raise NetloomError(
            f"{address!r} is no address of a Ray cluster: expected auto, local, HOST:{_GCS_PORT} or "
            f"ray://HOST:{_CLIENT_PORT}."
        )
    return host.strip("[]"), int(port)


def _answers(host: str, port: int) -> bool:
    """Whether anything listens there; Ray itself would try for half a minute."""
    try:
        socket.create_connection((host, port), timeout=_SECONDS_TO_ANSWER).close()
    except OSError:
        return False
    return True
