"""Compose the service from settings. Only this package imports adapters.

Most names are imported on first use: a guard needs neither the password ciphers nor SQLAlchemy.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from mlapi.bootstrap.guard import async_guard as async_guard
from mlapi.bootstrap.guard import open_guard as open_guard

if TYPE_CHECKING:
    from mlapi.bootstrap.exports import *  # noqa: F403 - the names in its __all__


def __getattr__(name: str) -> object:
    return getattr(import_module("mlapi.bootstrap.exports"), name)
