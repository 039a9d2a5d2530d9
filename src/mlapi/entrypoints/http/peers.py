"""Find the address at the other end of a connection, even if the server has replaced it in the scope."""

from collections.abc import Mapping
from typing import Any

from starlette.types import Receive

from mlapi.domain.addresses import UNIX_PEER
from mlapi.entrypoints.wire.client import Client


def connected_client(scope: Mapping[str, Any], receive: Receive) -> Client:
    """Return the client of a request, with the address of its connection if the server exposes it.

    If a request comes from the same machine, uvicorn by default replaces the address in the scope with one from
    ``X-Forwarded-For``. ``receive`` is a method of an object that also refers to the connection, which has the real
    address.

    Args:
        scope: an ASGI HTTP scope.
        receive: the callable that the server passed with the scope. If another application has wrapped it, or the
            server is not uvicorn, `Client.resolve_address` guesses whether the address was replaced.
    """
    transport = getattr(getattr(receive, "__self__", None), "transport", None)
    peer = None if transport is None else transport.get_extra_info("peername")
    if isinstance(peer, tuple):
        return Client.from_asgi(scope, (peer[0], peer[1]))
    is_unix_socket = isinstance(peer, str | bytes)  # the client's socket usually has no name
    return Client.from_asgi(scope, (UNIX_PEER, 0) if is_unix_socket else None)
