"""A PostgreSQL server for a test, where its programs are installed."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import socket
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

PASSWORD = "s3cret/Pass:word"
USER = "postgres"
"""Of the system: what the server runs as where the tests are root's."""


@contextlib.contextmanager
def postgresql_server() -> Iterator[str]:
    """URL of a server of its own, with a password, in a temporary folder on a free port of this machine."""
    programs = _programs()
    if programs is None:
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql, or its programs on the PATH")
    if importlib.util.find_spec("psycopg") is None:
        pytest.skip('psycopg is not installed: pip install "netloom[postgresql]"')
    user = _unprivileged()
    folder = Path(tempfile.mkdtemp(prefix="netloom-postgresql-"))
    if user:
        os.chown(folder, user["user"], user["group"])
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    secret, data = folder / "password", folder / "data"
    secret.write_text(PASSWORD)
    secret.chmod(0o644)  # in a folder that is closed to others

    def run(program: str, *arguments: str | Path) -> None:
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}  # a pipe would stay open in the server
        subprocess.run([programs / program, *arguments], cwd=folder, check=True, **quiet, **user)

    try:
        run("initdb", "-D", data, "-U", "netloom", "-A", "scram-sha-256", f"--pwfile={secret}", "-N")
        settings = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off -c max_connections=200"
        run("pg_ctl", "-D", data, "-w", "-t", "120", "-l", folder / "log", "-o", settings, "start")
        yield f"postgresql://netloom:{quote(PASSWORD, safe='')}@127.0.0.1:{port}/postgres"
    finally:
        with contextlib.suppress(subprocess.CalledProcessError):
            run("pg_ctl", "-D", data, "-m", "immediate", "stop")
        shutil.rmtree(folder, ignore_errors=True)


def new_database(server: str) -> str:
    """URL of an empty database on it."""
    import psycopg

    name = f"study_{uuid.uuid4().hex}"
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return f"{server.rpartition('/')[0]}/{name}"


def _programs() -> Path | None:
    found = shutil.which("initdb")
    places = [Path(found).parent] if found else sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    return places[-1] if places else None


def _unprivileged() -> dict[str, Any]:
    """Whom the server runs as, since it refuses to be root."""
    if os.geteuid() != 0:
        return {}
    import pwd

    try:
        found = pwd.getpwnam(USER)
    except KeyError:
        pytest.skip(f"PostgreSQL does not run as root, and there is no user {USER}")
    return {"user": found.pw_uid, "group": found.pw_gid, "extra_groups": []}
