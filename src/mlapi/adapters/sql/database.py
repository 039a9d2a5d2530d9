"""One database: its URL, its engine with the settings each kind needs, and transactions that raise our errors."""

import os
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, Table, create_engine, event, make_url
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from mlapi.domain.errors import ConfigurationError, RepositoryUnavailableError

WAIT = 3
"""Seconds to wait for a connection, for a lock, and for a free place in the pool: each. An HTTP answer has 10."""
CONNECTIONS = 8
"""As many threads as wait for the database at once."""

_EXAMPLES = "write sqlite:///mlapi.db or postgresql://user:password@host:5432/database"
_DRIVERS = {
    "sqlite": "sqlite",
    "sqlite+pysqlite": "sqlite",
    "postgres": "postgresql+psycopg",
    "postgresql": "postgresql+psycopg",
    "postgresql+psycopg": "postgresql+psycopg",
}
_SQLITE_BEGIN = "mlapi_sqlite_begin"


def database_url(text: str) -> URL:
    """Return the URL of a database that mlapi runs on.

    Raises:
        ConfigurationError: if it cannot be read, or names another kind. Never repeats it: it may hold a password.
    """
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        raise ConfigurationError(f"database.url cannot be read: {_EXAMPLES}") from None
    if url.drivername not in _DRIVERS:
        raise ConfigurationError(f"database.url names {url.drivername}, which mlapi does not run on: {_EXAMPLES}")
    url = url.set(drivername=_DRIVERS[url.drivername])
    if url.drivername == "sqlite":
        if url.host or url.query or not url.database or url.database == ":memory:":
            raise ConfigurationError(
                "database.url for SQLite must be three slashes and the path of a file, and no more: sqlite:///mlapi.db"
            )
        if not Path(url.database).absolute().parent.is_dir():
            raise ConfigurationError(f"database.url: there is no folder for {url.database}; make it first")
    return url


def connection_url(*, username: str, password: str, host: str, port: int, database: str) -> URL:
    """Return the URL of a PostgreSQL database given in parts, whatever characters they hold."""
    return URL.create(_DRIVERS["postgresql"], username, password, host, port, database)


def sqlite_file(url: URL) -> Path | None:
    """Return the absolute path of an SQLite database, or None for a server's."""
    return Path(url.database or "").absolute() if url.drivername == "sqlite" else None


class Database:
    """An engine and two kinds of transaction, which raise `RepositoryUnavailableError` for whatever goes wrong in them.

    Opens nothing until it is used. ``engine`` may be given to whoever reads tables: pandas, say.

    Raises:
        ConfigurationError: if the URL is not for us, or psycopg is not installed.
    """

    def __init__(self, url: URL) -> None:
        self.is_sqlite = url.drivername == "sqlite"
        self.engine = _sqlite_engine(url) if self.is_sqlite else _postgresql_engine(url)
        self._immediate = self.engine.execution_options(**{_SQLITE_BEGIN: "BEGIN IMMEDIATE"})
        self._writer = threading.Lock()

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A transaction that reads."""
        with _transaction(self.engine) as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A transaction that is durable when this is left, and undone when it is left by an error."""
        with self._turn(), _transaction(self._immediate) as connection:
            yield connection

    def insert(self, table: Table) -> sqlite.Insert | postgresql.Insert:
        """An INSERT that can be told what to do on conflict, which Core's own cannot."""
        return sqlite.insert(table) if self.is_sqlite else postgresql.insert(table)

    def close(self) -> None:
        self.engine.dispose()

    def _turn(self) -> AbstractContextManager[None]:
        # SQLite has one writer at a time, and lets the waiting ones race for the next turn: under load some starve. So
        # the threads of this process queue here, in order.
        return _held(self._writer) if self.is_sqlite else nullcontext()


@contextmanager
def _held(lock: threading.Lock) -> Iterator[None]:
    if not lock.acquire(timeout=WAIT):
        raise RepositoryUnavailableError("the database is busy: no turn to write")
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _transaction(engine: Engine) -> Iterator[Connection]:
    try:
        with engine.connect() as connection:
            try:
                with connection.begin():
                    yield connection
            except DBAPIError:
                # It may be lost, half-way through something, or read-only since a failover: take a new one next time.
                connection.invalidate()
                raise
    except DBAPIError as error:
        first_line = str(error.orig).strip().partition("\n")[0]
        raise RepositoryUnavailableError(f"{type(error.orig).__name__}: {first_line}") from error
    except PoolTimeoutError as error:
        raise RepositoryUnavailableError("the database is busy: no free connection") from error


def _sqlite_engine(url: URL) -> Engine:
    engine = create_engine(url, hide_parameters=True, pool_size=CONNECTIONS, max_overflow=0, pool_timeout=WAIT)

    @event.listens_for(engine, "do_connect")
    def _create_private(_dialect: object, _record: object, arguments: list[Any], _keywords: object) -> None:
        # Passwords are in it, if encrypted, so nobody else may read it. Only ever a file that is not there yet: to
        # close a file that SQLite has open would drop its locks.
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY
        if not Path(arguments[0]).exists():
            with suppress(OSError):  # another process was first, or SQLite will say why not
                os.close(os.open(arguments[0], flags, 0o600))

    @event.listens_for(engine, "connect")
    def _configure(connection: DBAPIConnection, _record: object) -> None:
        # None: the sqlite3 module begins and commits nothing by itself. Its legacy handling commits early.
        connection.isolation_level = None
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA busy_timeout = {WAIT * 1000}")
        cursor.execute("PRAGMA journal_mode = WAL")
        cursor.execute("PRAGMA synchronous = FULL")  # acknowledged means on disk
        cursor.execute("PRAGMA foreign_keys = ON")
        cursor.close()

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        # IMMEDIATE for what will write: a transaction that reads first and then asks for the lock can be refused.
        connection.exec_driver_sql(connection.get_execution_options().get(_SQLITE_BEGIN, "BEGIN"))

    return engine


def _postgresql_engine(url: URL) -> Engine:
    try:
        from psycopg import ProgrammingError  # noqa: PLC0415 - an extra
        from psycopg.conninfo import make_conninfo  # noqa: PLC0415
    except ImportError:
        raise ConfigurationError("PostgreSQL needs psycopg: pip install 'mlapi[postgres]'") from None

    # A server that has gone without a word is noticed by what is sent to it, and by probes while nothing is.
    noticing = {
        "connect_timeout": WAIT,
        "tcp_user_timeout": WAIT * 1000,
        "keepalives_idle": 10,
        "keepalives_interval": 2,
        "keepalives_count": 3,
    }
    engine = create_engine(
        url,
        connect_args={name: value for name, value in noticing.items() if name not in url.query},
        hide_parameters=True,
        pool_pre_ping=True,
        pool_size=CONNECTIONS,
        max_overflow=0,
        pool_timeout=WAIT,
    )
    try:
        make_conninfo(**dict.fromkeys(url.query, ""))
    except ProgrammingError:
        raise ConfigurationError(f"database.url holds an option that PostgreSQL does not know: {_EXAMPLES}") from None

    @event.listens_for(engine, "connect")
    def _configure(connection: DBAPIConnection, _record: object) -> None:
        # In a statement and not in the start-up packet, which poolers refuse. Acknowledged means on disk: a server that
        # does not wait for its disk is told to; one that waits for more (standbys) is left alone.
        cursor = connection.cursor()
        cursor.execute(
            "SELECT set_config('lock_timeout', %s, false), set_config('statement_timeout', %s, false)",
            (f"{WAIT}s", f"{WAIT + 2}s"),
        )
        cursor.execute(
            "SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'"
        )
        cursor.close()
        connection.commit()

    return engine
