"""What runs pages."""

from pathlib import Path

import pytest

from tests.bench.clusters import Clusters
from tests.server.docs.pages import Session


@pytest.fixture(scope="module")
def session(cluster_dsn: str, server_files: Path, clusters: Clusters) -> Session:
    return Session(cluster_dsn, server_files, clusters)
