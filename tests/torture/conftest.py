"""Fixtures for the fault tests: repetition counts, reported results and PostgreSQL with fsync.

``make faults`` runs a short form of each test. ``make torture`` uses the counts published in RELIABILITY.md.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import URL

from tests.conftest import SUMMARY_PROPERTY
from tests.postgres_server import PostgresServer, running_postgres

ShortOrFull = Callable[[int, int], int]
Report = Callable[[str], None]


@pytest.fixture
def short_or_full(request: pytest.FixtureRequest) -> ShortOrFull:
    """Return a function that returns its first argument in ``make faults`` and its second in ``make torture``."""
    is_full: bool = request.config.getoption("--torture")
    return lambda short, full: full if is_full else short


@pytest.fixture
def report(record_property: Callable[[str, object], None]) -> Report:
    """Return a function that adds a line to the results printed at the end of the run."""
    return lambda line: record_property(SUMMARY_PROPERTY, line)


@pytest.fixture(scope="module")
def durable_postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL server with fsync enabled, for tests that kill it."""
    with running_postgres(durable=True) as server:
        yield server


@pytest.fixture
def durable_postgres_url(durable_postgres: PostgresServer) -> Iterator[URL]:
    with durable_postgres.new_database() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgres"])
def durable_url(request: pytest.FixtureRequest, tmp_path: Path) -> URL:
    """The URL of an empty database with fsync enabled, once for SQLite and once for PostgreSQL."""
    fixture = {"sqlite": "sqlite_url", "postgres": "durable_postgres_url"}[request.param]
    url: URL = request.getfixturevalue(fixture)
    return url
