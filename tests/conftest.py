"""Fixtures for all tests. Each xdist worker has its own PostgreSQL server, so a test may stop it."""

import logging
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from sqlalchemy import URL

from mlapi.adapters.sql.database import Database
from mlapi.adapters.sql.schema import upgrade
from mlapi.adapters.sql.urls import database_url
from mlapi.entrypoints.http.middleware import error_log
from tests.old_versions import adapt_test_tools
from tests.postgres_server import PostgresServer, running_postgres

adapt_test_tools()

KEY = "Vq3n0hYyYc1cZk8Yw1m0x3m2lC1Tq0g1mJX0cM3r7aQ="  # for tests only
OLDER_KEY = "oB7QbT0r2kq3lYQ0m9w9fB0c8m2d4h3e5i6g7k8n9p0="
SALT = "a salt for tests"
SUMMARY_PROPERTY = "summary"
"""Name of the pytest user property whose value is printed as a line at the end of the run."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--torture", action="store_true", help="repeat tests in tests/torture as often as RELIABILITY.md states"
    )
    parser.addoption("--distributions", metavar="FOLDER", help="test the wheel and the sdist in a folder: `make dist`")
    parser.addoption("--screenshots", metavar="FOLDER", help="take screenshots of every page: `make screenshots`")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the results recorded by the tests in tests/torture."""
    reports = [report for outcome in ("passed", "failed") for report in terminalreporter.stats.get(outcome, [])]
    lines = [value for report in reports for name, value in report.user_properties if name == SUMMARY_PROPERTY]
    if lines:
        terminalreporter.section("counted results")
        for line in lines:
            terminalreporter.write_line(line)


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
    """Return the URL of an empty database, once for SQLite and once for PostgreSQL."""
    database_url: URL = request.getfixturevalue(f"{request.param}_url")
    return database_url


@pytest.fixture
def open_database() -> Iterator[Callable[[URL], Database]]:
    """Return a function that opens a database. The database is closed after the test."""
    with ExitStack() as stack:

        def open_one(url: URL) -> Database:
            database = Database(url)
            stack.callback(database.close)
            return database

        yield open_one


@pytest.fixture
def database(url: URL, open_database: Callable[[URL], Database]) -> Database:
    """Return a database with the newest schema and no users, once for SQLite and once for PostgreSQL."""
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


@pytest.fixture(autouse=True)
def forget_logged_errors() -> None:
    """Let each test log errors that another one has just logged."""
    error_log.clear()


@pytest.fixture
def restore_process_state() -> Iterator[None]:
    """Restore the loggers, signal handlers and metrics directory after a server has run in this process."""
    loggers = [logging.getLogger(name) for name in ("uvicorn", "uvicorn.access", "uvicorn.error", "mlapi")]
    before = [(logger.handlers[:], logger.level, logger.propagate) for logger in loggers]
    handlers = {number: signal.getsignal(number) for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGINT)}
    metrics_directory = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)
    for logger, (logger_handlers, level, propagate) in zip(loggers, before, strict=True):
        logger.handlers[:], logger.level, logger.propagate = logger_handlers, level, propagate
    if metrics_directory is None:
        os.environ.pop("PROMETHEUS_MULTIPROC_DIR", None)
