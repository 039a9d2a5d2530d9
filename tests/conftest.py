"""What tests of every kind share. Each xdist worker has a PostgreSQL server of its own, so a test may stop it."""

import logging
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from sqlalchemy import URL

from mlapi.adapters.sql import Database, database_url, upgrade
from tests.postgres_server import PostgresServer, running_postgres

KEY = "Vq3n0hYyYc1cZk8Yw1m0x3m2lC1Tq0g1mJX0cM3r7aQ="  # for tests only
OLDER_KEY = "oB7QbT0r2kq3lYQ0m9w9fB0c8m2d4h3e5i6g7k8n9p0="
SALT = "a salt for tests"
FIGURE = "figure"
"""The property of a test's report that tells what it has counted."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--torture", action="store_true", help="try the faults of tests/torture as often as RELIABILITY.md"
    )


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Show what the tests of tests/torture have counted."""
    reports = [report for outcome in ("passed", "failed") for report in terminalreporter.stats.get(outcome, [])]
    figures = [value for report in reports for name, value in report.user_properties if name == FIGURE]
    if figures:
        terminalreporter.section("what was counted")
        for figure in figures:
            terminalreporter.write_line(figure)


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    with running_postgres() as server:
        yield server


@pytest.fixture
def sqlite_url(tmp_path: Path) -> URL:
    return database_url(f"sqlite:///{tmp_path}/mlapi.db")


@pytest.fixture
def postgres_url(postgres: PostgresServer) -> Iterator[URL]:
    with postgres.new_database() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest) -> URL:
    """The URL of an empty database, once for each kind."""
    found: URL = request.getfixturevalue(f"{request.param}_url")
    return found


@pytest.fixture
def open_database() -> Iterator[Callable[[URL], Database]]:
    """Open as many as a test needs; all are closed after it."""
    with ExitStack() as opened:

        def open_one(url: URL) -> Database:
            database = Database(url)
            opened.callback(database.close)
            return database

        yield open_one


@pytest.fixture
def database(url: URL, open_database: Callable[[URL], Database]) -> Database:
    """A database of each kind at the newest schema, without users."""
    return _upgraded(open_database(url))


@pytest.fixture
def sqlite_database(sqlite_url: URL, open_database: Callable[[URL], Database]) -> Database:
    return _upgraded(open_database(sqlite_url))


@pytest.fixture
def postgres_database(postgres_url: URL, open_database: Callable[[URL], Database]) -> Database:
    return _upgraded(open_database(postgres_url))


def _upgraded(database: Database) -> Database:
    upgrade(database)
    return database


@pytest.fixture
def process_as_it_was() -> Iterator[None]:
    """Put back what a server sets for itself in a process of its own: loggers, signals, where metrics are."""
    loggers = [logging.getLogger(name) for name in ("uvicorn", "uvicorn.access", "uvicorn.error", "mlapi")]
    before = [(logger.handlers[:], logger.level, logger.propagate) for logger in loggers]
    handlers = {number: signal.getsignal(number) for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGINT)}
    folder = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)
    for logger, (handling, level, propagate) in zip(loggers, before, strict=True):
        logger.handlers[:], logger.level, logger.propagate = handling, level, propagate
    if folder is None:
        os.environ.pop("PROMETHEUS_MULTIPROC_DIR", None)
