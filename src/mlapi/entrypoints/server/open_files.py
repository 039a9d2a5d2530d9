"""How many files the processes of ``mlapi serve`` may open, and how many connections that allows."""

import math
import resource
from contextlib import suppress

MIN_OPEN_FILES = 256
"""The open files that a worker needs: for its database, its other files and about 150 connections."""
RESERVED_FILES = 100
"""File descriptors that are reserved for the database, other files, the log, and the listeners of one address."""
LISTENERS_PER_ADDRESS = 16
"""How many connections are accepted in one iteration of the event loop. uvloop accepts one for each file descriptor."""


def raise_open_file_limit() -> float:
    """Raise the limit of open files of this process to the maximum, and return it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with suppress(ValueError, OSError):  # macOS does not allow the hard limit that it reports
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
    return math.inf if soft == resource.RLIM_INFINITY else soft


def needed_files(workers: int, addresses: int = 1) -> int:
    """Return how many files each process must be able to open.

    Args:
        workers: the number of worker processes.
        addresses: the number of addresses that the service listens on.
    """
    # For each worker, the supervisor has listeners, two sockets and pipes, and two workers while it replaces one.
    needed_by_supervisor = 50 + (5 + addresses) * workers
    return max(MIN_OPEN_FILES + _reserved_files(addresses) - RESERVED_FILES, needed_by_supervisor)


def limit_connections(wanted: int, addresses: int = 1) -> int:
    """Raise the limit of open files to the maximum, and return how many of the wanted connections it allows."""
    return int(max(1, min(wanted, raise_open_file_limit() - _reserved_files(addresses))))


def _reserved_files(addresses: int) -> int:
    return RESERVED_FILES + LISTENERS_PER_ADDRESS * (addresses - 1)
