"""Find the endpoint of an operation by the first segment of the path."""

from collections.abc import Awaitable, Iterable, Mapping

from starlette.routing import Match, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from mlapi.entrypoints.http.handlers import HANDLERS
from mlapi.entrypoints.http.middleware import Endpoint, MethodDispatch
from mlapi.entrypoints.wire.operations import OPERATIONS
from mlapi.entrypoints.wire.paths import relative_path


class OperationDispatch:
    """Middleware that calls the endpoint of an operation. Leaves all other requests to the application.

    Starlette compares the path with the pattern of each route in turn. This middleware only does so for the few
    operations that have the same first segment. Requests with other methods are left to Starlette too.

    Args:
        app: the application.
        routes: the routes from `operation_routes`, which the application also has.
    """

    def __init__(self, app: ASGIApp, routes: Iterable[Route]) -> None:
        self._app = app
        self._routes: dict[str, list[Route]] = {}
        for route in routes:
            self._routes.setdefault(_first_segment(route.path), []).append(route)

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        path = relative_path(scope) if scope["type"] == "http" else ""
        for route in self._routes.get(_first_segment(path), ()):
            match = route.path_regex.match(path)
            if match is None:
                continue
            if route.methods is not None and scope["method"] not in route.methods:
                break
            scope["endpoint"], scope["route"] = route.endpoint, route
            scope["path_params"] = {**scope.get("path_params", {}), **match.groupdict()}
            endpoint: ASGIApp = route.endpoint
            return endpoint(scope, receive, send)
        return self._app(scope, receive, send)


def operation_routes() -> list[Route]:
    """Return one route for each path in the table of operations, in the order of the table."""
    endpoints: dict[str, dict[str, Endpoint]] = {}
    for operation in OPERATIONS:
        endpoint = Endpoint(HANDLERS[operation.name], operation.name)
        endpoints.setdefault(operation.path, {})[operation.method] = endpoint
    any_method = {operation.path for operation in OPERATIONS if operation.any_method}
    return [
        _PathRoute(path, _merge(by_method), methods=None if path in any_method else list(by_method))
        for path, by_method in endpoints.items()
    ]


class _PathRoute(Route):
    """A route that responds to every method of its path, with 405 to those it does not support.

    Otherwise, ``/users/{user_id}``, which is for admins, would receive the other methods of ``/users/me``.
    """

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        match, child_scope = super().matches(scope)
        return Match.FULL if match is Match.PARTIAL else match, child_scope


def _merge(endpoints: Mapping[str, Endpoint]) -> ASGIApp:
    """Combine the methods of a path into one ASGI application, so that a 405 response lists all of them."""
    (first, *others) = endpoints.values()
    return MethodDispatch(endpoints) if others else first


def _first_segment(path: str) -> str:
    return path.split("/", 2)[1] if path.startswith("/") else ""
