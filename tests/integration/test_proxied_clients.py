"""Clients behind proxies: their address in the access log, Unix sockets, and root paths."""

import asyncio
import logging
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.routing import Mount

from mlapi import Users
from mlapi.adapters.memory import InMemoryUserRepository, PlainCipher
from mlapi.config import HttpSettings
from mlapi.entrypoints.http import create_app
from mlapi.entrypoints.http.peers import connected_client
from mlapi.testing.http import LOCAL_MODE
from tests.asgi import Request, call_with_scope
from tests.integration.test_request_context import UvicornCycle, receive_nothing

PROXY = ("127.0.0.1", 50_000)
UNIX_SOCKET: dict[str, Any] = {"client": None, "server": ("/run/mlapi.sock", None)}
FORWARDED = (
    (b"host", b"localhost"),
    (b"x-forwarded-for", b"198.51.100.9, 203.0.113.7"),
    (b"x-request-id", b"from-nginx"),
)


def service(*trusted: str) -> Starlette:
    users = Users(InMemoryUserRepository(), PlainCipher())
    return create_app(users, LOCAL_MODE, trusted_proxies=HttpSettings(trusted_proxies=trusted).trusted_networks)


def call(app: Any, path: str, headers: Any = FORWARDED, **changes: Any) -> tuple[int, dict[str, Any], dict[str, Any]]:
    """Return the status, the response headers and the scope from which the server writes its access log."""
    scope = Request("GET", path, headers, b"").to_scope(app) | changes
    if changes.get("root_path") and "app_root_path" not in changes:
        scope["path"] = changes["root_path"] + scope["path"]  # like uvicorn
        scope["raw_path"] = scope["path"].encode()
    response = asyncio.run(call_with_scope(app, scope, b""))
    assert response is not None
    return response.status, {name.decode(): value.decode() for name, value in response.headers}, scope


@pytest.mark.parametrize(
    ("trusted", "connection", "client", "request_id"),
    [
        (("127.0.0.1",), {}, ("203.0.113.7", 0), "from-nginx"),
        (("127.0.0.1", "203.0.113.0/24"), {}, ("198.51.100.9", 0), "from-nginx"),
        (("unix",), UNIX_SOCKET, ("203.0.113.7", 0), "from-nginx"),
        (("unix",), {}, PROXY, None),
        (("127.0.0.1",), UNIX_SOCKET, None, None),
        ((), {}, PROXY, None),
        ((), UNIX_SOCKET, None, None),
    ],
)
def test_access_log_names_the_client_behind_a_trusted_proxy(
    trusted: tuple[str, ...], connection: dict[str, Any], client: object, request_id: str | None
) -> None:
    status, headers, scope = call(service(*trusted), "/health/live", **connection)

    assert (status, scope["client"]) == (200, client)
    assert (headers["x-request-id"] == "from-nginx") == (request_id is not None)


def test_disconnect_is_logged_with_the_client_behind_the_proxy(caplog: pytest.LogCaptureFixture) -> None:
    app = service("127.0.0.1")
    scope = Request("GET", "/health/live", FORWARDED, b"").to_scope(app)

    with caplog.at_level(logging.INFO, "uvicorn.access"):
        asyncio.run(app(scope, receive_nothing, UvicornCycle(disconnected=True).send))

    assert caplog.messages == ['203.0.113.7:0 - "GET /health/live HTTP/1.1" 499']


@pytest.mark.parametrize("trusted", [(), ("unix",), ("127.0.0.1",)])
def test_unix_socket_gives_no_admin_access_in_local_mode(trusted: tuple[str, ...]) -> None:
    host = ((b"host", b"localhost"),)

    statuses = [call(service(*trusted), path, host, **UNIX_SOCKET)[0] for path in ("/users", "/console", "/metrics")]
    replaced = UNIX_SOCKET | {"client": ("127.0.0.1", 0)}  # by uvicorn --forwarded-allow-ips '*'

    assert statuses == [403, 403, 403]
    assert call(service(*trusted), "/users", host, **replaced)[0] == 403


@pytest.mark.parametrize("peer", ["", b"\0name"])
def test_connection_through_a_unix_socket_is_certain(peer: str | bytes) -> None:
    class Transport:
        def get_extra_info(self, _name: str) -> object:
            return peer

    class Cycle:
        transport = Transport()

        async def receive(self) -> Any:
            """Never called."""

    scope = Request("GET", "/", (), b"").to_scope(None) | {"client": ("198.51.100.9", 0)}  # replaced by uvicorn

    client = connected_client(scope, Cycle().receive)

    assert (client.peer_address, client.is_peer_certain) == ("unix", True)


# --- root paths


@pytest.mark.parametrize(
    ("root", "path", "status", "logged"),
    [
        pytest.param("/um", "/health/live", 200, "/um/health/live", id="prefix removed"),
        pytest.param("/um", "/um/health/live", 200, "/um/health/live", id="prefix kept"),
        pytest.param("/um", "/um/um/health/live", 403, "/um/um/health/live", id="prefix kept and repeated"),
        pytest.param("/um", "/umx/health/live", 403, "/um/umx/health/live", id="other path"),
        pytest.param("/a/b", "/a/b/health/live", 200, "/a/b/health/live", id="two segments"),
        pytest.param("/um/", "/health/live", 200, "/um//health/live", id="slash at the end"),
        pytest.param("um", "/health/live", 200, "um/health/live", id="no slash at the start"),
        pytest.param("/users", "/users", 403, "/users/users", id="root path like /users"),
        pytest.param("/health", "/health/live", 200, "/health/health/live", id="root path like /health"),
    ],
)
def test_proxy_may_keep_or_remove_the_root_path(root: str, path: str, status: int, logged: str) -> None:
    found, _headers, scope = call(service(), path, root_path=root)

    assert (found, scope["path"]) == (status, logged)
    assert scope["raw_path"] == logged.encode()


def test_mounted_application_keeps_repeated_paths() -> None:
    app = Starlette(routes=[Mount("/people", service())])
    local = ((b"host", b"localhost"),)

    statuses = [call(app, path, local)[0] for path in ("/people/health/live", "/people/people/health/live")]

    assert statuses == [200, 404]


def test_root_path_without_a_raw_path_is_removed() -> None:
    scope = Request("GET", "/um/health/live", (), b"").to_scope(None) | {
        "path": "/um/um/health/live",
        "root_path": "/um",
    }
    del scope["raw_path"]
    app = service()

    response = asyncio.run(call_with_scope(app, scope | {"app": app}, b""))

    assert response is not None
    assert response.status == 200
