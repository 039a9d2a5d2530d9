"""A check for the tests of your own application: every route rejects requests without a credential."""

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
_TIMEOUT_SECONDS = 5  # an unguarded endpoint might never return


class Probe(NamedTuple):
    """A request without a credential."""

    scope_type: str
    method: str
    path: str
    host: str


def assert_all_routes_guarded(app: ASGIApp, *, exempt: Iterable[str] = ()) -> None:
    """Call every route of an application without a credential, and fail unless each responds with 401.

    Args:
        app: an application based on Starlette, such as a FastAPI application, possibly wrapped in
            `GuardMiddleware`. Its lifespan does not run.
        exempt: paths that are intentionally open, as declared in their routes.

    Raises:
        AssertionError: if any route is open. The message lists every open route.
    """
    exempt_paths = set(exempt)
    probes = [probe for route in _routes(app) for probe in _probes(route)]
    assert probes, "the application has no routes: check that it is the right one"
    open_routes = [
        probe for route_path, probe in probes if route_path not in exempt_paths and not _is_rejected(app, probe)
    ]
    names = ", ".join(f"{probe.method} {probe.path}" for probe in open_routes)
    assert not open_routes, f"open without a credential: {names}"


def _routes(app: Any) -> list[BaseRoute]:
    while not hasattr(app, "routes") and hasattr(app, "app"):
        app = app.app
    routes: list[BaseRoute] = getattr(app, "routes", [])
    return routes


def _probes(route: BaseRoute, prefix: str = "", host: str = "localhost") -> Iterator[tuple[str, Probe]]:
    """Yield the route's declared path and a probe for each of its methods."""
    if isinstance(route, Host):
        for inner in route.routes:
            yield from _probes(inner, prefix, _PARAMETER.sub("any", route.host))
    elif isinstance(route, Mount):
        for inner in route.routes:
            yield from _probes(inner, prefix + route.path, host)
        if not route.routes:  # StaticFiles, for example
            yield prefix + route.path, Probe("http", "GET", _fill_parameters(f"{prefix}{route.path}/probe"), host)
    elif isinstance(route, WebSocketRoute):
        yield prefix + route.path, Probe("websocket", "WebSocket", _fill_parameters(prefix + route.path), host)
    elif isinstance(route, Route):
        for method in sorted(route.methods or _METHODS):
            yield prefix + route.path, Probe("http", method, _fill_parameters(prefix + route.path), host)
    else:
        raise AssertionError(  # noqa: TRY004 - fails the test
            f"cannot check a route of type {type(route).__name__}: only the route classes of Starlette are supported"
        )


def _fill_parameters(path: str) -> str:
    return _PARAMETER.sub(lambda match: str(uuid.UUID(int=1)) if match[1] == ":uuid" else "1", path)


def _is_rejected(app: ASGIApp, probe: Probe) -> bool:
    first: Message = {}

    async def receive() -> Message:
        return {"type": "http.request", "body": b""} if probe.scope_type == "http" else {"type": "websocket.connect"}

    async def send(message: Message) -> None:
        first.update(message if not first else {})

    scope = {
        "type": probe.scope_type,
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": probe.method,
        "scheme": "http" if probe.scope_type == "http" else "ws",
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
        asyncio.run(asyncio.wait_for(app(scope, receive, send), _TIMEOUT_SECONDS))
    except Exception:  # noqa: BLE001 - the endpoint ran, and failed
        return False
    return first.get("status") == HTTPStatus.UNAUTHORIZED or first.get("type") == "websocket.close"
