"""Find out which user of this machine runs the program at the other end of a connection.

Headers cannot prove that a request comes from a program on this machine, because a local proxy may add none. However,
the kernel knows the owner of every socket, and a proxy usually runs as its own user.

The sock_diag protocol looks up the owner of a connection in constant time (sock_diag(7)). If it is forbidden, for
example by systemd's ``RestrictAddressFamilies``, search the table of connections in ``/proc/net`` instead.
"""

import errno
import os
import socket
import struct
import sys
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from ipaddress import IPv4Address, IPv6Address
from itertools import starmap
from pathlib import Path

import attrs

from mlapi.domain.addresses import parse_address
from mlapi.domain.errors import ServiceUnavailableError
from mlapi.entrypoints.wire.client import Client

_MAX_CACHED_CONNECTIONS = 10_000

# Constants from linux/netlink.h, linux/sock_diag.h and linux/inet_diag.h.
_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_NLM_F_REQUEST = 1
_HEADER = struct.Struct("=IHHII")
"""struct nlmsghdr: length, type, flags, sequence number, port id."""
_REQUEST = struct.Struct("=BBBxI2s2s16s16sI8s")
"""struct inet_diag_req_v2: family, protocol, extensions, states, then struct inet_diag_sockid: the ports, addresses,
interface and cookie. Ports and addresses are in network byte order."""
_RESPONSE = struct.Struct("=BBBB2s2s16s16sI8sIIIII")
"""struct inet_diag_msg: family, state, timer, retransmits, struct inet_diag_sockid, expiry, queue sizes, user id,
inode."""
_ALL_STATES = 0xFFFFFFFF
_ALL_USERS = 0xFFFFFFFF
_ANY_COOKIE = b"\xff" * 8
_MAX_RESPONSE_BYTES = 4096
_TIMEOUT_SECONDS = 1.0

_EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}

_CONNECTION_TABLES = ("/proc/net/tcp", "/proc/net/tcp6")


@attrs.frozen
class _Endpoint:
    """One endpoint of a TCP connection."""

    address: IPv4Address | IPv6Address
    port: int


def describe_trusted_peers() -> str:
    """Return which programs `is_trusted_peer` accepts, for the log."""
    if sys.platform != "linux":
        return "programs on this machine that send no proxy headers"
    user = "root" if os.geteuid() == 0 else f"user {os.geteuid()} or root"
    return f"programs on this machine that run as {user}, including a proxy that does"


class PeerOwners:
    """Decides whether the program at the other end of a connection runs as the same user as this process, or as root.

    It asks the kernel once per connection. Only Linux reports the owner. On other systems every peer is trusted, and
    only the checks of addresses and headers apply.
    """

    def __init__(self) -> None:
        self._cache: dict[tuple[str, int], tuple[object, bool]] = {}
        """For each peer address and port, the connection that was looked up, and the result."""

    def __call__(self, client: Client) -> bool:
        """Return whether the peer is trusted. Peers that the kernel does not know are not.

        The kernel does not know peers in other network namespaces, such as the clients of a container's published port.

        Raises:
            ServiceUnavailableError: if this process or the machine has no free file descriptor or memory.
        """
        if sys.platform != "linux":
            return True
        key = client.peer_address, client.peer_port
        connection, is_trusted = self._cache.get(key, (None, False))
        # Servers create the object that identifies a connection once per connection. Compare by identity: another
        # program may use the same port for its next connection.
        if connection is None or connection is not client.connection:
            is_trusted = _find_owner(client) in {0, os.geteuid()}
            if len(self._cache) >= _MAX_CACHED_CONNECTIONS:
                self._cache.clear()
            self._cache[key] = client.connection, is_trusted
        return is_trusted


def trust_any_peer(_client: Client) -> bool:
    """Trust every peer. Use this for tests that call the application in their own process, without a connection."""
    return True


def _find_owner(client: Client) -> int | None:
    """Return the id of the user who owns the socket at the other end of a client's connection, or None.

    Raises:
        ServiceUnavailableError: if this process or the machine has no free file descriptor or memory.
    """
    peer = parse_address(client.peer_address)
    server = parse_address(client.server_address)
    if peer is None or server is None or peer.version != server.version:
        return None
    ends = [(_Endpoint(peer, client.peer_port), _Endpoint(server, client.server_port))]
    if isinstance(peer, IPv4Address):  # programs such as Java's connect with an IPv6 socket and IPv4-mapped addresses
        ends.append((_mapped(ends[0][0]), _mapped(ends[0][1])))
    try:
        owners = [owner for owner in starmap(_ask_kernel, ends) if owner is not None]
    except OSError as error:
        if error.errno in _EXHAUSTED:
            raise ServiceUnavailableError("the kernel has no resources to look up the owner of a connection") from None
        owners = _search_table(ends)
    return owners[0] if owners and owners[0] != _overflow_user_id() else None


def _ask_kernel(peer: _Endpoint, server: _Endpoint) -> int | None:
    """Return the owner of the peer's socket from sock_diag, or None.

    Raises:
        OSError: if this process may not ask.
    """
    family = socket.AF_INET if isinstance(peer.address, IPv4Address) else socket.AF_INET6
    identity = struct.pack("!HH", peer.port, server.port), peer.address.packed, server.address.packed
    ports, source, destination = identity
    request = _REQUEST.pack(
        family, socket.IPPROTO_TCP, 0, _ALL_STATES, ports[:2], ports[2:], source, destination, 0, _ANY_COOKIE
    )
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_SOCK_DIAG) as kernel:
        kernel.settimeout(_TIMEOUT_SECONDS)
        kernel.send(_HEADER.pack(_HEADER.size + len(request), _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST, 0, 0) + request)
        response = kernel.recv(_MAX_RESPONSE_BYTES)
    _, kind, *_ = _HEADER.unpack_from(response)
    if kind != _SOCK_DIAG_BY_FAMILY:
        return None  # an error: there is no such socket
    fields = _RESPONSE.unpack_from(response, _HEADER.size)
    found_ports, found_source, found_destination = b"".join(fields[4:6]), fields[6], fields[7]
    user_id, inode = fields[-2:]
    # If there is no connection, the kernel may return a listening socket on the peer's port.
    is_connection = found_ports == ports and (found_source, found_destination) == (
        source.ljust(16, b"\0"),
        destination.ljust(16, b"\0"),
    )
    # A socket without an inode was closed by its program. The kernel reports root as its owner.
    return user_id if is_connection and inode else None


def _search_table(ends: Sequence[tuple[_Endpoint, _Endpoint]]) -> list[int]:
    """Return the owners of the sockets with these ends from the table of connections in ``/proc/net``."""
    wanted = {(_format(peer), _format(server)) for peer, server in ends}
    owners = []
    for path in _CONNECTION_TABLES:
        with suppress(OSError):
            for row in Path(path).read_text("ascii").splitlines()[1:]:
                _, local, remote, _, _, _, _, user_id, _, inode, *_ = row.split()
                if (local, remote) in wanted and inode != "0":
                    owners.append(int(user_id))
    return owners


def _format(end: _Endpoint) -> str:
    """Format an endpoint like ``/proc/net/tcp``: 32-bit words in host byte order, in hexadecimal."""
    packed = end.address.packed
    words = struct.unpack(f"={len(packed) // 4}I", packed)
    return f"{''.join(f'{word:08X}' for word in words)}:{end.port:04X}"


def _mapped(end: _Endpoint) -> _Endpoint:
    return _Endpoint(IPv6Address(b"\0" * 10 + b"\xff" * 2 + end.address.packed), end.port)


@cache
def _overflow_user_id() -> int | None:
    """Return the id that represents all users without an id in this user namespace, or None if every user has one.

    See user_namespaces(7).
    """
    with suppress(OSError, ValueError):
        (first, _, count), *others = (
            line.split() for line in Path("/proc/self/uid_map").read_text("ascii").splitlines()
        )
        if others or (int(first), int(count)) != (0, _ALL_STATES):
            return int(Path("/proc/sys/kernel/overflowuid").read_text("ascii"))
    return None
