"""What `make failover` alone runs: it takes minutes, and wants Patroni and etcd."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.failover.cluster import Cluster, running_cluster


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    is_asked_for: bool = config.getoption("--torture")
    return None if is_asked_for else True


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with running_cluster() as running:
        yield running
