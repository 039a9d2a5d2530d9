"""For the tests of whoever has an application to guard: is each of its routes closed."""

import asyncio
import re
import uuid
from collections.abc import Iterable, Iterator
from http import HTTPStatus
from typing import Any, NamedTuple

from starlette.routing import BaseRoute, Host, Mount, Route, WebSocketRoute
from starlette.types import ASGIApp, Message

_PARAMETER = re.compile(r"{\w+(:\w+)?}")
_METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
_PATIENCE = 5  # seconds for an endpoint that was reached


class Probe(NamedTuple):
    kind: str
    method: str
    path: str
    host: str


def assert_all_routes_guarded(app: ASGIApp, *, exempt: Iterable[str] = ()) -> None:
    """Ask every route of an application, without a credential; each must refuse with 401 before its endpoint is run.

    Args:
        app: on Starlette: FastAPI, say, or one of them in `GuardMiddleware`. Its lifespan is not run.
        exempt: paths, as their routes have them, that are meant to be open.

    Raises:
        AssertionError: naming every route that is open.
    """
    meant_to_be_open = set(exempt)
    probes = [probe for route in _routes(app) for probe in _probes(route)]
    assert probes, "the application has no routes: was the right one given?"
    found = [probe for template, probe in probes if template not in meant_to_be_open and not _is_refused(app, probe)]
    named = ", ".join(f"{probe.method} {probe.path}" for probe in found)
    assert not found, f"open to whoever has no credential: {named}"


def _routes(app: Any) -> list[BaseRoute]:
    while not hasattr(app, "routes") and hasattr(app, "app"):
        app = app.app
    routes: list[BaseRoute] = getattr(app, "routes", [])
    return routes


def _probes(route: BaseRoute, prefix: str = "", host: str = "localhost") -> Iterator[tuple[str, Probe]]:
    """Yield for each way to ask a route its path as it was written, and the probe."""
    if isinstance(route, Host):
        for inner in route.routes:
            yield from _probes(inner, prefix, _PARAMETER.sub("any", route.host))
    elif isinstance(route, Mount):
        for inner in route.routes:
            yield from _probes(inner, prefix + route.path, host)
        if not route.routes:  # files, say
            yield prefix + route.path, Probe("http", "GET", _filled(f"{prefix}{route.path}/probe"), host)
    elif isinstance(route, WebSocketRoute):
        yield prefix + route.path, Probe("websocket", "WebSocket", _filled(prefix + route.path), host)
    elif isinstance(route, Route):
        for method in sorted(route.methods or _METHODS):
            yield prefix + route.path, Probe("http", method, _filled(prefix + route.path), host)
    else:
        raise AssertionError(  # noqa: TRY004 - a test that fails
            f"{type(route).__name__} is no kind of route that can be asked"
        )


def _filled(path: str) -> str:
    return _PARAMETER.sub(lambda match: str(uuid.UUID(int=1)) if match[1] == ":uuid" else "1", path)


def _is_refused(app: ASGIApp, probe: Probe) -> bool:
    first: Message = {}

    async def receive() -> Message:
        return {"type": "http.request", "body": b""} if probe.kind == "http" else {"type": "websocket.connect"}

    async def send(message: Message) -> None:
        first.update(message if not first else {})

    scope = {
        "type": probe.kind,
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": probe.method,
        "scheme": "http" if probe.kind == "http" else "ws",
        "path": probe.path,
        "raw_path": probe.path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [(b"host", probe.host.encode())],
        "client": ("127.0.0.1", 1),
        "server": (probe.host, 80),
        "subprotocols": [],
    }
    try:
        asyncio.run(asyncio.wait_for(app(scope, receive, send), _PATIENCE))
    except Exception:  # noqa: BLE001 - it came so far as to fail
        return False
    return first.get("status") == HTTPStatus.UNAUTHORIZED or first.get("type") == "websocket.close"
