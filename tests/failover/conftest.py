"""Tests of the cluster in deploy/. Only `make failover` runs them: they take minutes and need Patroni and etcd."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.failover.cluster import Cluster, running_cluster


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    is_requested: bool = config.getoption("--torture")
    return None if is_requested else True


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with running_cluster() as running:
        yield running
