"""Route requests for operations by the first segment of their path."""

from collections.abc import Mapping, Sequence
from typing import Any

from starlette.routing import BaseRoute, Match, Route, Router
from starlette.types import ASGIApp, Lifespan, Receive, Scope, Send

from mlapi.entrypoints.http.handlers import HANDLERS
from mlapi.entrypoints.http.middleware import Endpoint, MethodDispatch
from mlapi.entrypoints.wire.operations import OPERATIONS


class OperationRouter(Router):
    """Routes requests for operations. Leaves all other requests to Starlette's router.

    Starlette's router compares the path with the pattern of each route in turn. This one only does so for the few
    operations that have the same first segment. Requests with other methods, and requests to a mounted application, are
    left to Starlette's router too.

    Args:
        operations: the routes from `operation_routes`.
        others: all other routes.
        lifespan: the lifespan of the application.
    """

    def __init__(self, operations: Sequence[Route], others: Sequence[BaseRoute], lifespan: Lifespan[Any]) -> None:
        # A redirect would contain the host from the Host header, which may be forged.
        super().__init__([*operations, *others], redirect_slashes=False, lifespan=lifespan)
        self._routes: dict[str, list[Route]] = {}
        for route in operations:
            self._routes.setdefault(_first_segment(route.path), []).append(route)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not scope.get("root_path"):
            path, method = scope["path"], scope["method"]
            for route in self._routes.get(_first_segment(path), ()):
                match = route.path_regex.match(path)
                if match is None:
                    continue
                if route.methods is not None and method not in route.methods:
                    break
                scope["endpoint"], scope["path_params"] = route.endpoint, match.groupdict()
                scope["router"], scope["route"] = self, route
                await route.endpoint(scope, receive, send)
                return
        await super().__call__(scope, receive, send)


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
