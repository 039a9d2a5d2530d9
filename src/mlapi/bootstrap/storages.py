"""Open the storage that ``database.url`` selects."""

import re
from collections.abc import Callable
from importlib.metadata import entry_points

import attrs

from mlapi.adapters.memory import InMemoryStorage
from mlapi.adapters.sql.database import Database
from mlapi.adapters.sql.dialect import namespace_error
from mlapi.adapters.sql.storage import SqlStorage
from mlapi.adapters.sql.urls import connection_url, unsupported_scheme_error
from mlapi.bootstrap.storage_registry import registered_storages
from mlapi.config import Settings
from mlapi.config.database_paths import database_url_of
from mlapi.domain.errors import ConfigurationError
from mlapi.domain.storage import Storage
from mlapi.platforms import require_unix

ENTRY_POINTS = "mlapi.storages"
"""The entry point group for storages from other packages. The entry point's name is the URL scheme."""
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_MEMORY = "memory"


def open_storage(settings: Settings, *, may_create: bool = True) -> Storage:
    """Return the configured storage. It connects on first use, and the caller must close it.

    Args:
        settings: the settings.
        may_create: if False, the file of an SQLite database must exist already, and not be empty.

    Raises:
        ConfigurationError: if ``database.url`` is invalid, its scheme is not supported, or the file does not exist.
            Always raised on Windows, where mlapi does not run.
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


def open_database(settings: Settings, *, may_create: bool = True) -> Database:
    """Return the configured SQL database. It connects on first use, and its ``engine`` gives access to the tables.

    See `open_storage` for the arguments.

    Raises:
        ConfigurationError: if the storage is not an SQL database, or for the same reasons as in `open_storage`.
    """
    storage = open_storage(settings, may_create=may_create)
    if not isinstance(storage, SqlStorage):
        raise ConfigurationError("this needs an SQLite or PostgreSQL database: change database.url")
    return storage.database


def _make_storage(settings: Settings) -> Storage:
    namespace = settings.database.schema
    if settings.connection is not None:
        return SqlStorage(Database(connection_url(**attrs.asdict(settings.connection)), namespace=namespace))
    url = database_url_of(settings)
    scheme = _SCHEME.match(url)
    if scheme is None or _is_sql(scheme[1].lower()):
        return SqlStorage.from_url(url, namespace=namespace)
    from_url = _find_factory(scheme[1].lower())
    if from_url is None:
        raise unsupported_scheme_error(scheme[1], [_MEMORY, *SqlStorage.SCHEMES, *registered_storages])
    if namespace is not None:
        raise namespace_error()
    return from_url(url)


def _is_sql(scheme: str) -> bool:
    return scheme in SqlStorage.SCHEMES and scheme not in registered_storages


def _find_factory(scheme: str) -> Callable[[str], Storage] | None:
    """Return the function that makes a storage from a URL with this scheme. SQL schemes are not included."""
    if scheme in registered_storages:
        return registered_storages[scheme]
    if scheme == _MEMORY:
        return InMemoryStorage.from_url
    for entry_point in entry_points(group=ENTRY_POINTS, name=scheme):
        from_url: Callable[[str], Storage] = entry_point.load()
        return from_url
    return None


def _find_missing(storage: Storage) -> str | None:
    """Return an error if the database's file does not exist, or if an SQLite file is empty."""
    if not storage.files:
        return None
    file = storage.files[0]
    try:
        is_empty = file.stat().st_size == 0
    except OSError:
        return f"there is no database at {file}"
    return f"the database {file} is empty (0 bytes)" if is_empty and isinstance(storage, SqlStorage) else None
