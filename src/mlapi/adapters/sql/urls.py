"""Parse and build database URLs."""

from collections.abc import Iterable
from pathlib import Path

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from mlapi.domain.errors import ConfigurationError

_EXAMPLES = "write sqlite:///mlapi.db or postgresql://user:password@host:5432/database"
_DRIVERS = {
    "sqlite": "sqlite",
    "sqlite+pysqlite": "sqlite",
    "postgres": "postgresql+psycopg",
    "postgresql": "postgresql+psycopg",
    "postgresql+psycopg": "postgresql+psycopg",
}
SCHEMES = tuple(_DRIVERS)
"""The URL schemes of SQLite and PostgreSQL."""


def database_url(text: str) -> URL:
    """Parse a database URL and set the driver that mlapi uses.

    Raises:
        ConfigurationError: if the URL is invalid or the database is unsupported. The message never contains the URL,
            because the URL may contain a password.
    """
    try:
        url = make_url(text)
        (url.host or "").encode("idna")  # resolving the host name would raise the same error later
    except (ArgumentError, ValueError):
        raise ConfigurationError(f"database.url is not a valid URL: {_EXAMPLES}") from None
    if url.drivername not in _DRIVERS:
        raise unsupported_scheme_error(url.drivername, SCHEMES)
    url = url.set(drivername=_DRIVERS[url.drivername])
    if url.drivername == "sqlite":
        _validate_sqlite_path(url)
    elif url.port == 0:
        raise ConfigurationError(f"database.url: 0 is not a valid port: {_EXAMPLES}")
    return url


def unsupported_scheme_error(scheme: str, supported: Iterable[str]) -> ConfigurationError:
    """Return the error for a database URL with an unsupported scheme. It lists the supported schemes."""
    names = ", ".join(sorted(supported))
    return ConfigurationError(f"database.url has the unsupported scheme {scheme}: {_EXAMPLES} (supported: {names})")


def connection_url(*, username: str, password: str, host: str, port: int, database: str) -> URL:
    """Build a PostgreSQL URL from its parts, which may contain any characters."""
    return URL.create(_DRIVERS["postgresql"], username, password, host, port, database)


def _validate_sqlite_path(url: URL) -> None:
    if url.host or url.query or not url.database or url.database == ":memory:":
        raise ConfigurationError(
            "database.url for SQLite must be sqlite:/// and a file path, without options: sqlite:///mlapi.db"
        )
    path = Path(url.database).absolute()
    try:
        is_usable = path.parent.is_dir() and not path.is_dir()
    except (OSError, ValueError):  # the path is too long, contains a NUL or cannot be accessed
        is_usable = False
    if not is_usable:
        raise ConfigurationError(
            f"database.url: {url.database!r} must be a file in an existing folder: create the folder first"
        )
