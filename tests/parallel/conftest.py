from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from typing import Any

import pytest


@pytest.fixture(scope="session")
def two_machines() -> Iterator[Any]:
    """A Ray cluster of two nodes with one CPU each, which are on this machine but know nothing of each other."""
    if os.name == "nt":
        pytest.skip("Ray has clusters on Linux and macOS only")
    pytest.importorskip("ray", reason="Ray is not installed (netloom[ray])")
    from ray.cluster_utils import Cluster

    with (
        tempfile.TemporaryDirectory(prefix="netloom-", dir="/tmp", ignore_cleanup_errors=True) as folder,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("RAY_TMPDIR", folder)  # a cluster that really runs here is not forgotten
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.delenv("RAY_ADDRESS", raising=False)
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        try:
            cluster.add_node(num_cpus=1)
            yield cluster
        finally:
            cluster.shutdown()
