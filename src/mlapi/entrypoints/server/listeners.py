"""The sockets that ``mlapi serve`` listens on: start listening, accept the waiting connections, and stop."""

import asyncio
import ctypes
import select
import socket
import struct
from collections.abc import Sequence
from contextlib import suppress

BACKLOG = 2048
"""The maximum number of connections that the kernel queues until a worker accepts them."""
HANDSHAKE_SECONDS = 0.5
"""How long a TCP handshake may take. This is longer than a round trip to the other side of the Earth."""
MAX_DRAIN_SECONDS = 5.0
"""The maximum time for accepting the waiting connections."""
_POLL_SECONDS = 0.02

_SO_ATTACH_FILTER = 26  # Linux
_DROP_SYN = (
    (0x30, 0, 0, 13),  # load byte 13 of the TCP header: the flags
    (0x54, 0, 0, 0x12),  # keep SYN (0x02) and ACK (0x10)
    (0x15, 0, 1, 0x02),  # continue if only SYN is set, else skip one instruction
    (0x06, 0, 0, 0),  # drop the packet
    (0x06, 0, 0, 0xFFFFFFFF),  # accept the packet
)
"""A classic BPF program that drops the first packet of each handshake, and accepts all others."""


def describe_listener(listener: socket.socket) -> str:
    """Return the address of a listener as a URL, or ``unix:`` and the path of a Unix socket."""
    name = listener.getsockname()
    if listener.family == socket.AF_UNIX:
        return f"unix:{name if isinstance(name, str) else name.decode('utf-8', 'replace')}"
    address, port, *_ = name
    return f"http://[{address}]:{port}" if ":" in address else f"http://{address}:{port}"


def reserve_address(listener: socket.socket) -> None:
    """Keep other servers from binding the address of a socket that does not listen.

    SO_REUSEADDR is required to bind the address while old connections are in TIME_WAIT. While it is set, another server
    can bind the same address, until one of the two listens.
    """
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)


def start_listening(listener: socket.socket) -> None:
    """Listen on a bound socket. If it already listens, nothing changes.

    Raises:
        OSError: if another server listens on the same address.
    """
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.listen(BACKLOG)


def is_listening(listener: socket.socket) -> bool:
    return bool(listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


def stop_listening(listener: socket.socket) -> None:
    """Refuse new connections and reset the waiting ones, but keep the address. A worker can listen again."""
    if listener.family == socket.AF_UNIX:
        _empty_queue(listener)
        return
    # On a socket that does not listen, Linux would remember the shutdown and apply it to all later connections.
    if is_listening(listener):
        with suppress(OSError):  # not supported by macOS
            listener.shutdown(socket.SHUT_RD)
        reserve_address(listener)


def _empty_queue(listener: socket.socket) -> None:
    """Close the waiting connections of a Unix socket, and make its queue as short as possible.

    A Unix socket cannot stop listening: after a shutdown, it would refuse all connections indefinitely.
    """
    if is_listening(listener):
        listener.listen(0)
        with suppress(OSError):  # no connection is waiting
            while True:
                listener.accept()[0].close()


def close_all(listeners: Sequence[socket.socket]) -> None:
    for listener in listeners:
        listener.close()


async def drain_backlog(listener: socket.socket, *, is_shared: bool = False) -> None:
    """Wait until the event loop has accepted all connections that clients have opened or are opening.

    When a listener is closed, the kernel resets the connections in its queue. Therefore, first drop the packets that
    open connections. The clients send these packets again after a second. By then, another server accepts the
    connections, or the kernel refuses them.

    Args:
        listener: a listener that the event loop accepts connections from.
        is_shared: whether another program keeps the listener open. A filter would then stay in place.
    """
    loop = asyncio.get_running_loop()
    started_at = loop.time()
    # Without the filter, new clients would keep arriving, so only wait until the queue is empty.
    is_filtered = not is_shared and listener.family != socket.AF_UNIX and _drop_new_handshakes(listener)
    wait_until = started_at + (HANDSHAKE_SECONDS if is_filtered else 0.0)
    while loop.time() < wait_until or (  # noqa: ASYNC110 - the kernel sends no event when the queue is empty
        _has_waiting(listener) and loop.time() < started_at + MAX_DRAIN_SECONDS
    ):
        await asyncio.sleep(_POLL_SECONDS)


def _drop_new_handshakes(listener: socket.socket) -> bool:
    """Attach a socket filter that drops SYN packets. Return whether the system supports it."""
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *instruction) for instruction in _DROP_SYN))
    program = struct.pack("HP", len(_DROP_SYN), ctypes.addressof(code))
    try:
        listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)
    except OSError:
        return False
    return True


def _has_waiting(listener: socket.socket) -> bool:
    """Return whether a connection waits to be accepted."""
    poll = select.poll()
    poll.register(listener, select.POLLIN)
    return bool(poll.poll(0))
