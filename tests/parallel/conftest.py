from __future__ import annotations

import os
import secrets
import tempfile
from collections.abc import Iterator
from typing import Any

import pytest


@pytest.fixture(scope="session")
def ray() -> Iterator[Any]:
    """Ray, with clusters that demand a token, as those that it starts by itself do: a process keeps to one way."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
        yield pytest.importorskip("ray", reason="Ray is not installed (netloom[ray])")


@pytest.fixture(scope="session")
def two_machines(ray: Any) -> Iterator[Any]:
    """A Ray cluster of two nodes with one CPU each, which are on this machine but know nothing of each other."""
    if os.name == "nt":
        pytest.skip("Ray has clusters on Linux and macOS only")
    from ray.cluster_utils import Cluster

    with (
        tempfile.TemporaryDirectory(prefix="nl-", dir="/tmp", ignore_cleanup_errors=True) as folder,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("RAY_TMPDIR", folder)  # a cluster that really runs here is not forgotten
        patch.delenv("RAY_ADDRESS", raising=False)
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        try:
            cluster.add_node(num_cpus=1)
            yield cluster
        finally:
            cluster.shutdown()
