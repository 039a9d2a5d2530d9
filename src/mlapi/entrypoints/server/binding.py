"""Bind the sockets of ``mlapi serve``: TCP addresses, the path of a Unix socket, or sockets that it inherits."""

import errno
import os
import socket
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import attrs

from mlapi.domain.errors import ConfigurationError
from mlapi.entrypoints.server.listeners import reserve_address

_Address = tuple[socket.AddressFamily, tuple[Any, ...]]
_UNAVAILABLE = {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}
_MAX_PORT_ATTEMPTS = 20
_BOUND_SOCKETS = Path("/proc/net/unix")  # Linux


def bind_hosts(hosts: Sequence[str], port: int, copies: int) -> list[list[socket.socket]]:
    """Bind every address of the hosts to the same port.

    A host such as ``localhost`` may have an IPv4 and an IPv6 address. Skip an address that this machine does not have,
    unless the host has no other.

    Args:
        hosts: addresses or host names.
        port: the port, or 0 to let the kernel choose a port that is free on all addresses.
        copies: how many sockets to bind to each address.

    Returns:
        The sockets of each address. They do not listen yet.

    Raises:
        ConfigurationError: if an address is invalid or in use.
    """
    for _ in range(_MAX_PORT_ATTEMPTS - 1):
        with suppress(_PortTakenError):
            return _bind_hosts(hosts, port, copies, is_port_final=port != 0)
    return _bind_hosts(hosts, port, copies, is_port_final=True)


class _PortTakenError(Exception):
    """The port that the kernel chose for one address is in use on another."""


def _bind_hosts(hosts: Sequence[str], port: int, copies: int, *, is_port_final: bool) -> list[list[socket.socket]]:
    bound: dict[_Address, list[socket.socket]] = {}
    with ExitStack() as on_error:
        for host in hosts:
            try:
                for family, address in _available(_resolve(host)):
                    if (family, address) not in bound:
                        sockets = _bind_copies(family, (address[0], port, *address[2:]), copies)
                        bound[family, address] = sockets
                        on_error.callback(close_all, sockets)
                        port = sockets[0].getsockname()[1]
                continue
            except socket.gaierror as error:  # its error codes are not errno values
                reason = str(error.args[1])
            except OSError as error:
                if bound and not is_port_final and error.errno == errno.EADDRINUSE:
                    raise _PortTakenError from None
                reason = os.strerror(error.errno or 0)
            except UnicodeError:
                reason = "invalid host name"
            raise ConfigurationError(f"cannot listen on {host} port {port}: {reason.lower()}; change --host or --port")
        on_error.pop_all()
    return list(bound.values())


def _resolve(host: str) -> list[_Address]:
    found = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    return list(dict.fromkeys((family, address) for family, _, _, _, address in found))


def _available(addresses: Sequence[_Address]) -> Iterator[_Address]:
    """Yield the addresses that this machine has. If it has none, yield all of them, so that binding reports why."""
    available = [address for address in addresses if _is_available(*address)]
    yield from available or addresses


def _is_available(family: socket.AddressFamily, address: tuple[Any, ...]) -> bool:
    try:
        _bind(family, address, reuse_port=False).close()
    except OSError as error:
        return error.errno not in _UNAVAILABLE
    return True


def _bind_copies(family: socket.AddressFamily, address: tuple[Any, ...], copies: int) -> list[socket.socket]:
    # Bind without SO_REUSEPORT first, to detect another server on the same address. Then bind to the same port
    # explicitly. Otherwise, a socket whose port the kernel has chosen would lose the port when it stops listening.
    with _bind(family, address, reuse_port=False) as first:
        address = first.getsockname()
    return [_bind(family, address, reuse_port=copies > 1) for _ in range(copies)]


def _bind(family: socket.AddressFamily, address: tuple[Any, ...], *, reuse_port: bool) -> socket.socket:
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse_port:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:  # an IPv4 socket may then use the same port
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind(address)
        reserve_address(listener)
    except BaseException:
        listener.close()
        raise
    return listener


def close_all(listeners: Sequence[socket.socket]) -> None:
    for listener in listeners:
        listener.close()


# --- Unix sockets


@attrs.frozen
class SocketFile:
    """The file of a Unix socket that this service has created."""

    path: str
    device: int
    inode: int

    def remove(self) -> None:
        """Remove the file, unless another service has replaced it."""
        with suppress(OSError):
            found = os.lstat(self.path)
            if (found.st_dev, found.st_ino) == (self.device, self.inode):
                Path(self.path).unlink()


def bind_path(path: str, mode: int) -> tuple[socket.socket, SocketFile]:
    """Bind a Unix socket. Replace the file of a service that was killed, but never a file of another kind.

    Args:
        path: the path of the socket file.
        mode: the permissions of the file. A client must be able to write to it.

    Raises:
        ConfigurationError: if the path is in use or cannot be created.
    """
    path = str(Path(path).absolute())  # the process that removes the file may run in another folder
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _remove_stale(path)
        listener.bind(path)
        Path(path).chmod(mode)
        found = os.lstat(path)
    except OSError as error:
        listener.close()
        reason = os.strerror(error.errno).lower() if error.errno else str(error)
        raise ConfigurationError(f"cannot listen on {path}: {reason}; change --uds") from None
    except BaseException:
        listener.close()
        raise
    return listener, SocketFile(path, found.st_dev, found.st_ino)


def _remove_stale(path: str) -> None:
    """Remove the socket file of a process that has exited.

    Raises:
        ConfigurationError: if the file is not a socket, or a process is using the socket.
    """
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise ConfigurationError(f"cannot listen on {path}: it exists and is not a socket; change --uds or remove it")
    if _accepts_connections(path) or _is_bound(path):
        raise ConfigurationError(
            f"cannot listen on {path}: another process is using this socket; change --uds or stop that process"
        )
    Path(path).unlink()


def _accepts_connections(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(0)
        try:
            client.connect(path)
        except ConnectionRefusedError:
            return False
        except BlockingIOError:  # its queue is full
            return True
    return True


def _is_bound(path: str) -> bool:
    """Return whether a process has bound this path. It may not listen yet, so connecting to it is not enough."""
    with suppress(OSError):
        return any(line.endswith(f" {path}") for line in _BOUND_SOCKETS.read_text("utf-8", "replace").splitlines())
    return False


# --- inherited sockets


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
    checks: tuple[tuple[str, Callable[[], bool]], ...] = (
        ("is not a TCP or Unix stream socket", lambda: _is_stream(listener)),
        ("is connected to a client", lambda: not _is_connected(listener)),
        ("is not bound to an address", lambda: _is_bound_to_address(listener)),
    )
    for problem, is_fine in checks:
        if not is_fine():
            listener.detach()
            raise _not_usable(descriptor, problem)
    return listener


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


# --- descriptions


def describe_listener(listener: socket.socket) -> str:
    """Return the address of a listener as a URL, or ``unix:`` and the path of a Unix socket."""
    name = listener.getsockname()
    if listener.family == socket.AF_UNIX:
        return f"unix:{name if isinstance(name, str) else name.decode('utf-8', 'replace')}"
    address, port, *_ = name
    return f"http://[{address}]:{port}" if ":" in address else f"http://{address}:{port}"
