"""What the tests of faults share: how often they try, and what they counted, which is told at the end of the run.

``make test`` runs each in a short form; ``make torture`` runs them with the counts that RELIABILITY.md publishes.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import URL

from tests.conftest import SUMMARY_PROPERTY
from tests.postgres_server import PostgresServer, running_postgres


@pytest.fixture
def times(request: pytest.FixtureRequest) -> Callable[[int, int], int]:
    """Return how often to try: ``times(short, full)``."""
    is_full: bool = request.config.getoption("--torture")
    return lambda short, full: full if is_full else short


@pytest.fixture
def tell(record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """Tell a figure: one sentence that says what was done how often, and what came of it."""
    return lambda sentence: record_property(SUMMARY_PROPERTY, sentence)


@pytest.fixture(scope="module")
def durable_postgres() -> Iterator[PostgresServer]:
    """A server that waits for its disk: for tests that kill it."""
    with running_postgres(durable=True) as server:
        yield server


@pytest.fixture
def durable_postgres_url(durable_postgres: PostgresServer) -> Iterator[URL]:
    with durable_postgres.new_database() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgres"])
def durable_url(request: pytest.FixtureRequest, tmp_path: Path) -> URL:
    """The URL of an empty database that is on disk when it says so, once for each kind."""
    name = {"sqlite": "sqlite_url", "postgres": "durable_postgres_url"}[request.param]
    found: URL = request.getfixturevalue(name)
    return found
