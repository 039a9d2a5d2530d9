"""How many files the processes of ``mlapi serve`` may open, and how many connections that allows."""

import math
import resource
from contextlib import suppress

MIN_OPEN_FILES = 256
"""The open files that a worker needs: for its database, its other files and about 150 connections."""
RESERVED_FILES = 100
"""File descriptors that are reserved for the database, other files and the log."""


def raise_open_file_limit() -> float:
    """Raise the limit of open files of this process to the maximum, and return it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with suppress(ValueError, OSError):  # macOS does not allow the hard limit that it reports
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
    return math.inf if soft == resource.RLIM_INFINITY else soft


def needed_files(workers: int) -> int:
    """Return how many files each process must be able to open."""
    # The supervisor has a listener, two sockets and pipes for each worker, and two workers for each listener while it
    # replaces them.
    return max(MIN_OPEN_FILES, 50 + 6 * workers)


def limit_connections(wanted: int) -> int:
    """Raise the limit of open files to the maximum, and return how many of the wanted connections it allows."""
    return int(max(1, min(wanted, raise_open_file_limit() - RESERVED_FILES)))
