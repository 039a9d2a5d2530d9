"""Bind TCP sockets to the addresses of hosts."""

import errno
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from typing import Any

from mlapi.domain.errors import ConfigurationError
from mlapi.entrypoints.server.listeners import close_all, reserve_address

_Address = tuple[socket.AddressFamily, tuple[Any, ...]]
_UNAVAILABLE = {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}
_MAX_PORT_ATTEMPTS = 20


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
