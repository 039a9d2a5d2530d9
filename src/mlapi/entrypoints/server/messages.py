"""The messages between the supervisor and a worker, one byte each, and the exit code of a worker that cannot start."""

from enum import Enum

STARTUP_FAILURE = 3
"""The exit code of a worker whose settings, secrets, database or address must be fixed first.

uvicorn uses the same code if the application cannot start. Other exit codes may have transient causes.
"""


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
