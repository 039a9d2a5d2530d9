"""The storages that applications add. Guards can import this module without SQLAlchemy."""

from collections.abc import Callable

from mlapi.domain.storage import Storage

registered_storages: dict[str, Callable[[str], Storage]] = {}
"""The function that makes a storage from a URL, for each scheme that `register_storage` was called with."""


def register_storage(scheme: str, from_url: Callable[[str], Storage]) -> None:
    """Add support for another scheme in ``database.url``. Call this before the service starts.

    >>> from mlapi.adapters.memory import InMemoryStorage
    >>> register_storage("archive", InMemoryStorage.from_url)  # database.url: archive://...

    A package does not need this call if it declares the storage in its ``pyproject.toml``, which also makes the storage
    available to `mlapi serve` and the other commands:

        [project.entry-points."mlapi.storages"]
        archive = "archive_storage:ArchiveStorage.from_url"

    Args:
        scheme: the part of the URL before ``://``, in lower case.
        from_url: makes a storage from the whole URL; see `mlapi.domain.storage.Storage`.
    """
    registered_storages[scheme] = from_url
