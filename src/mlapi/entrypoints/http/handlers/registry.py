"""The registry of handlers."""

from collections.abc import Awaitable, Callable

from starlette.requests import Request

from mlapi.entrypoints.wire.responses import Response

Handler = Callable[[Request], Awaitable[Response]]
HANDLERS: dict[str, Handler] = {}
"""The handler for each operation, by `Operation.name`."""


def handler(function: Handler) -> Handler:
    """Register a function as the handler for the operation of the same name."""
    HANDLERS[function.__name__] = function
    return function
