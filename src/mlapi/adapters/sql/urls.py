"""Parse and build database URLs."""

import os
import re
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import unquote

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from mlapi.domain.errors import ConfigurationError

_DRIVERS = {
    "sqlite": "sqlite",
    "sqlite+pysqlite": "sqlite",
    "postgres": "postgresql+psycopg",
    "postgresql": "postgresql+psycopg",
    "postgresql+psycopg": "postgresql+psycopg",
}
"""The driver of SQLAlchemy for each scheme."""
SCHEMES = tuple(_DRIVERS)
"""The URL schemes of SQLite and PostgreSQL."""
_EXAMPLES = "write sqlite:///mlapi.db or postgresql://user:password@host:5432/database"
_SQLITE_SCHEMES = frozenset(scheme for scheme, driver in _DRIVERS.items() if driver == "sqlite")
_MAX_PORT = 65535
_SHOWN_OPTIONS = (
    "application_name",
    "connect_timeout",
    "dbname",
    "host",
    "load_balance_hosts",
    "options",
    "passfile",
    "password",
    "port",
    "service",
    "sslcert",
    "sslkey",
    "sslmode",
    "sslpassword",
    "sslrootcert",
    "target_session_attrs",
    "user",
)
"""The PostgreSQL options that errors may name. Another name could be a part of a password that contains ``&``."""
_PART_NAMES = ("user", "password", "host", "port", "dbname")
"""The options that are also parts of a URL, in the order of the parts."""
_DECODES_PATH = make_url("sqlite:///%25").database == "%"
"""Whether SQLAlchemy percent-decodes the path. Versions before 2.1 do not."""
_CONTROL_CHARACTER = re.compile(r"[\x00-\x1f\x7f]")
# RFC 3986, 3.2.1 allows fewer characters, but the others do not change how a URL is split.
_SPLITS_URL = re.compile(r"[@/?#\[\]\\\x00-\x1f\x7f]")
_INVALID_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_AMBIGUOUS = (
    "database.url can be read in more than one way: percent-encode the characters @ / ? # [ ] % and \\ in its user"
    " name, password and options; for example, write p%40ss for the password p@ss"
)
_SQLITE_OPTIONS = (
    "database.url for SQLite must be sqlite:/// and a file path, without options: remove the ? and what follows it, or"
    " write %3F if the question mark is part of the path"
)


def database_url(text: str) -> URL:
    """Parse a database URL and set the driver that mlapi uses.

    Raises:
        ConfigurationError: if the URL is invalid or the database is unsupported. The message never contains the URL,
            because the URL may contain a password.
    """
    if text != text.strip() or _CONTROL_CHARACTER.search(text) or "%00" in text:
        raise ConfigurationError("database.url begins or ends with a space, or contains a control character: remove it")
    scheme, _, rest = text.partition("://")
    if scheme.casefold() not in _SQLITE_SCHEMES:
        _validate_unambiguous(rest)
    elif "?" in rest:
        raise ConfigurationError(_SQLITE_OPTIONS)
    try:
        url = make_url(text)
        (url.host or "").encode("idna")  # resolving the host name would raise the same error later
    except (ArgumentError, ValueError):
        raise ConfigurationError(f"database.url is not a valid URL: {_EXAMPLES}") from None
    if url.drivername not in _DRIVERS:
        raise unsupported_scheme_error(url.drivername, SCHEMES)
    url = url.set(drivername=_DRIVERS[url.drivername])
    if url.database and not _DECODES_PATH:  # pragma: no cover - depends on the version of SQLAlchemy
        url = url.set(database=unquote(url.database))
    if url.drivername == "sqlite":
        _validate_sqlite_path(url)
        return url
    if url.port is not None and not 0 < url.port <= _MAX_PORT:
        raise ConfigurationError(f"database.url: the port must be from 1 to {_MAX_PORT}: {_EXAMPLES}")
    _validate_options(url, rest)
    return _with_hidden_password(url)


def unsupported_scheme_error(scheme: str, supported: Iterable[str]) -> ConfigurationError:
    """Return the error for a database URL with an unsupported scheme. It lists the supported schemes."""
    names = ", ".join(sorted(supported))
    return ConfigurationError(f"database.url has the unsupported scheme {scheme}: {_EXAMPLES} (supported: {names})")


def connection_url(*, username: str, password: str, host: str, port: int, database: str) -> URL:
    """Build a PostgreSQL URL from its parts, which may contain any characters."""
    return URL.create(_DRIVERS["postgresql"], username, password, host, port, database)


def _validate_unambiguous(rest: str) -> None:
    """Check that all parsers split the part of a URL after the scheme in the same way.

    If a password contains an unencoded ``@``, for example, its end is taken for the host, which driver errors show.
    """
    credentials, _, _ = rest.rpartition("@")
    if _SPLITS_URL.search(credentials) or "#" in rest or _INVALID_ESCAPE.search(rest):
        raise ConfigurationError(_AMBIGUOUS)


def _validate_options(url: URL, rest: str) -> None:
    """Check the options of a PostgreSQL URL.

    SQLAlchemy would drop an option without a value, and read a ``+`` as a space, unlike libpq.
    """
    _, separator, query = rest.partition("?")
    if not separator:
        return
    parts = (url.username, url.password, url.host, url.port, url.database)
    seen = {name for name, value in zip(_PART_NAMES, parts, strict=True) if value}
    for option in query.split("&"):
        encoded_name, _, value = option.partition("=")
        name = unquote(encoded_name)
        shown = name if name in _SHOWN_OPTIONS else "an option"
        if not name or not value:
            raise ConfigurationError(
                f"database.url: {shown} after the ? has no value: write"
                f" {name if name in _SHOWN_OPTIONS else 'name'}=value, or remove it"
            )
        if "+" in value and "password" in name:
            raise ConfigurationError(f"database.url: {shown} contains a +: write %2B for a plus sign, %20 for a space")
        if name in seen:
            raise ConfigurationError(f"database.url sets {shown} twice: remove one")
        if name != "host":  # a URL can list several hosts
            seen.add(name)


def _with_hidden_password(url: URL) -> URL:
    """Move a password from the options to the user information, where SQLAlchemy hides it when it shows the URL."""
    password = url.query.get("password")
    if not isinstance(password, str):
        return url
    return url.difference_update_query(["password"]).set(password=password)


def _validate_sqlite_path(url: URL) -> None:
    if url.host or url.port or url.username is not None or not url.database or url.database == ":memory:":
        raise ConfigurationError(
            "database.url for SQLite must be sqlite:/// and a file path, without options: sqlite:///mlapi.db"
        )
    shown = "its path" if "@" in url.database else repr(url.database)  # it may be another URL with a password
    try:
        path = Path(url.database).resolve()  # the target of a symbolic link, even if it does not exist yet
        is_usable = path.is_file() or (path.parent.is_dir() and not os.path.lexists(path))
    except PermissionError:
        raise ConfigurationError(
            f"database.url: this account may not access the folder of {shown}: give it access to the folder"
        ) from None
    except (OSError, ValueError, RuntimeError):  # too long, contains a NUL, or links to itself
        is_usable = False
    if not is_usable:
        raise ConfigurationError(f"database.url: {shown} must be a file in an existing folder: create the folder first")
