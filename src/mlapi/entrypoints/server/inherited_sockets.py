"""Use sockets that the parent process has opened, such as those of systemd."""

import os
import socket

from mlapi.domain.errors import ConfigurationError


def adopt_socket(descriptor: int) -> socket.socket:
    """Return the socket that a parent process, such as systemd, has opened and bound.

    Raises:
        ConfigurationError: if the file descriptor is not a bound stream socket.
    """
    try:
        os.fstat(descriptor)  # `socket` would ignore the high bits of a number that is too large
        listener = socket.socket(fileno=descriptor)
    except (OSError, OverflowError):
        raise _not_usable(descriptor, "is not an open socket") from None
    problem = _find_problem(listener)
    if problem is not None:
        listener.detach()
        raise _not_usable(descriptor, problem)
    return listener


def _find_problem(listener: socket.socket) -> str | None:
    if not _is_stream(listener):
        return "is not a TCP or Unix stream socket"
    if _is_connected(listener):
        return "is connected to a client"
    return None if _is_bound_to_address(listener) else "is not bound to an address"


def _is_stream(listener: socket.socket) -> bool:
    families = {socket.AF_INET, socket.AF_INET6, socket.AF_UNIX}
    return listener.type == socket.SOCK_STREAM and listener.family in families


def _is_connected(listener: socket.socket) -> bool:
    try:
        listener.getpeername()
    except OSError:
        return False
    return True


def _is_bound_to_address(listener: socket.socket) -> bool:
    name = listener.getsockname()
    return bool(name if listener.family == socket.AF_UNIX else name[1])


def _not_usable(descriptor: int, problem: str) -> ConfigurationError:
    return ConfigurationError(
        f"--fd {descriptor}: file descriptor {descriptor} {problem}; pass the number of a socket that the parent"
        " process has opened, such as 3 for the first socket of systemd"
    )
