"""The messages between the supervisor and a worker: one byte each."""

from enum import Enum


class Order(bytes, Enum):
    """Sent by the supervisor on a Unix socket. When the socket is closed, the worker drains now."""

    SERVE_CONNECTION = b"c"
    """Serve the connection whose file descriptor comes with the message."""
    STOP = b"s"
    """Serve the waiting connections, close the listener, and drain."""
    LEAVE = b"l"
    """Close the listener and drain. Another worker accepts connections from the same listener."""


class Status(bytes, Enum):
    """Sent by the worker on a pipe."""

    SERVING = b"."
    """Sent when the worker is ready and at regular intervals while it is serving."""
    REPLACE_ME = b"r"
    """The worker received SIGTERM, and keeps serving until another worker has taken over its listener."""
    DRAINING = b"-"
    """The worker accepts no more connections."""
