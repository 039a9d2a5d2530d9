"""Which operating systems mlapi runs on, and how many cores they give it."""

import os
from importlib import import_module

from mlapi.domain.errors import ConfigurationError

_POSIX_MODULES = ("fcntl", "pwd", "resource")
"""Modules of the standard library that only Unix has. mlapi locks files and checks their owners."""


def require_unix() -> None:
    """Check that this is Linux or macOS.

    Raises:
        ConfigurationError: on any other system, such as Windows.
    """
    try:
        for module in _POSIX_MODULES:
            import_module(module)
    except ImportError:
        raise ConfigurationError(
            "mlapi needs Linux or macOS: on Windows, run it in WSL (https://learn.microsoft.com/windows/wsl)."
            " Only `import mlapi` and the fakes in mlapi.testing work everywhere"
        ) from None


def cores() -> int:
    """Return the number of cores that this process may use, which may be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
