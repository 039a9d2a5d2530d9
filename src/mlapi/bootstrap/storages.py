"""Open the storage that ``database.url`` selects."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from mlapi.adapters.memory import InMemoryStorage
from mlapi.adapters.sql.schemes import SCHEMES
from mlapi.config import Settings
from mlapi.config.database_paths import database_url
from mlapi.config.platforms import require_unix
from mlapi.domain.errors import ConfigurationError
from mlapi.domain.storage import Storage

if TYPE_CHECKING:
    from mlapi.adapters.sql import Database

ENTRY_POINTS = "mlapi.storages"
"""The entry point group for storages from other packages. The entry point's name is the URL scheme."""
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")

# A path that has the same meaning without the rules for URLs.
_PLAIN_SQLITE_PATH = re.compile(r"(sqlite(?:\+pysqlite)?):///([^?#%\x00-\x1f\x7f]+)")


def _open_sql(url: str, *, namespace: str | None = None) -> Storage:
    from mlapi.adapters.sql import SqlStorage  # noqa: PLC0415 - guards on SQLite do without SQLAlchemy

    return SqlStorage.from_url(url, namespace=namespace)


_storages: dict[str, Callable[[str], Storage]] = {
    "memory": InMemoryStorage.from_url,
    **dict.fromkeys(SCHEMES, _open_sql),
}


def register_storage(scheme: str, from_url: Callable[[str], Storage]) -> None:
    """Add support for another scheme in ``database.url``. Call this before the service starts.

    >>> register_storage("archive", InMemoryStorage.from_url)  # database.url: archive://...

    A package does not need this call if it declares the storage in its ``pyproject.toml``, which also makes the storage
    available to `mlapi serve` and the other commands:

        [project.entry-points."mlapi.storages"]
        archive = "archive_storage:ArchiveStorage.from_url"

    Args:
        scheme: the part of the URL before ``://``, in lower case.
        from_url: makes a storage from the whole URL; see `mlapi.domain.storage.Storage`.
    """
    _storages[scheme] = from_url


def open_storage(settings: Settings, *, may_create: bool = True) -> Storage:
    """Return the configured storage. It connects on first use, and the caller must close it.

    Args:
        settings: the settings.
        may_create: if False, the file of an SQLite database must exist already, and not be empty.

    Raises:
        ConfigurationError: if ``database.url`` is invalid, its scheme is not supported, or the file does not exist.
            Also on Windows, where mlapi does not run.
    """
    require_unix()
    storage = _make_storage(settings)
    if not may_create and (problem := _find_missing(storage)) is not None:
        storage.close()
        raise ConfigurationError(
            f"{problem}: set MLAPI_CONFIG to the service's configuration file, or database.url (MLAPI_DATABASE__URL) to"
            " its database; `mlapi serve` and `mlapi db upgrade` create a new one"
        )
    return storage


def _find_missing(storage: Storage) -> str | None:
    """Return an error if the database's file does not exist, or if an SQLite file is empty."""
    from mlapi.adapters.sql import SqlStorage  # noqa: PLC0415 - guards on SQLite do without SQLAlchemy

    if not storage.files:
        return None
    file = storage.files[0]
    try:
        is_empty = file.stat().st_size == 0
    except OSError:
        return f"there is no database at {file}"
    return f"the database {file} is empty (0 bytes)" if is_empty and isinstance(storage, SqlStorage) else None


def _make_storage(settings: Settings) -> Storage:
    from mlapi.adapters.sql import (  # noqa: PLC0415 - guards on SQLite do without SQLAlchemy
        Database,
        SqlStorage,
        connection_url,
        namespace_error,
        unsupported_scheme_error,
    )

    namespace = settings.database.schema
    if settings.connection is not None:
        return SqlStorage(Database(connection_url(**attrs.asdict(settings.connection)), namespace=namespace))
    url = settings.database.url or database_url(None, settings.folder)
    scheme = _SCHEME.match(url)
    if scheme is None:
        return _open_sql(url)  # raises an error that states the reason
    from_url = _find_factory(scheme[1].lower())
    if from_url is None:
        raise unsupported_scheme_error(scheme[1], _storages)
    if from_url is _open_sql:
        return _open_sql(url, namespace=namespace)
    if namespace is not None:
        raise namespace_error()
    return from_url(url)


def find_sqlite_file(settings: Settings) -> Path | None:
    """Return the configured database if it is an existing SQLite file, for a storage without SQLAlchemy.

    None also stands for every configuration that may be wrong: `open_storage` raises the error for it.

    Raises:
        ConfigurationError: on Windows, where mlapi does not run.
    """
    require_unix()
    if settings.connection is not None or settings.database.schema is not None:
        return None
    url = settings.database.url or database_url(None, settings.folder)
    match = _PLAIN_SQLITE_PATH.fullmatch(url)
    if match is None or _storages[match[1]] is not _open_sql or url != url.strip():
        return None
    file = Path(match[2]).absolute()
    return file if file.is_file() and file.stat().st_size else None


def open_database(settings: Settings, *, may_create: bool = True) -> "Database":
    """Return the configured SQL database. It connects on first use, and its ``engine`` gives access to the tables.

    See `open_storage` for the arguments.

    Raises:
        ConfigurationError: if the storage is not an SQL database, or for the same reasons as in `open_storage`.
    """
    from mlapi.adapters.sql import SqlStorage  # noqa: PLC0415 - guards on SQLite do without SQLAlchemy

    storage = open_storage(settings, may_create=may_create)
    if not isinstance(storage, SqlStorage):
        raise ConfigurationError("this needs an SQLite or PostgreSQL database: change database.url")
    return storage.database


def _find_factory(scheme: str) -> Callable[[str], Storage] | None:
    """Return the function that makes a storage from a URL with this scheme."""
    if scheme in _storages:
        return _storages[scheme]
    from importlib.metadata import entry_points  # noqa: PLC0415 - takes 3 MB of memory

    for entry_point in entry_points(group=ENTRY_POINTS, name=scheme):
        from_url: Callable[[str], Storage] = entry_point.load()
        return from_url
    return None
