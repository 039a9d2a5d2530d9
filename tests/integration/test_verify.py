"""`/verify` answers proxies: any method, no body read, the user in headers of the response."""

import asyncio
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

import pytest
from starlette.testclient import TestClient

from mlapi import Access, Users
from mlapi.adapters.memory import InMemoryUserRepository, PlainCipher
from mlapi.bootstrap import in_memory_access
from mlapi.entrypoints.http import create_app
from mlapi.testing import UnavailableRepository
from mlapi.testing.fakes import LoggedInUser, register_and_log_in
from mlapi.testing.http import LOCAL_MODE
from tests.contract.test_http import asgi_client


@pytest.fixture
def access() -> Access:
    return in_memory_access(Users(InMemoryUserRepository(), PlainCipher()))


@pytest.fixture
def http(access: Access) -> Iterator[TestClient]:
    with asgi_client(create_app(access.authenticator.users, LOCAL_MODE, access=access)) as client:
        yield client


@pytest.fixture
def ada(access: Access) -> LoggedInUser:
    return register_and_log_in(access, "ada")


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "REPORT"])
def test_verify_accepts_any_method(http: TestClient, ada: LoggedInUser, method: str) -> None:
    response = http.request(method, "/verify", headers=ada.headers)

    assert response.status_code == 200
    assert response.headers["x-auth-request-user-id"] == str(ada.user.id)
    assert response.headers["x-auth-request-user"] == "ada"
    assert response.headers["cache-control"] == "no-store"
    assert (response.headers["content-length"], response.content) == ("0", b"")


@pytest.mark.parametrize("name", ["Zoë Käse", "a/b?c#d%e", "李", "x@example.com"])
def test_verify_percent_encodes_the_username(http: TestClient, access: Access, name: str) -> None:
    access.authenticator.users.register(username=name, password="difference engine", email="ada@example.com")
    token = access.authenticator.log_in(username=name, password="difference engine").token

    encoded = http.get("/verify", headers={"Authorization": f"Bearer {token}"}).headers["x-auth-request-user"]

    assert encoded.isascii()
    assert unquote(encoded) == name


def test_verify_accepts_api_keys(http: TestClient, access: Access, ada: LoggedInUser) -> None:
    _, secret = access.authenticator.users.add_api_key(user_id=ada.user.id, name="key")

    response = http.post("/verify", headers={"X-API-Key": secret})

    assert (response.status_code, response.headers["x-auth-request-user"]) == (200, "ada")


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer forged"}, {"X-API-Key": "mlapi_1"}])
def test_verify_rejects_missing_and_invalid_credentials(http: TestClient, headers: dict[str, str]) -> None:
    response = http.get("/verify", headers=headers)

    assert response.status_code == 401
    assert response.headers["www-authenticate"].startswith("Bearer")
    assert set(response.json()) == {"message"}
    assert response.headers["x-auth-request-error"] == response.text
    assert not any(name.startswith("x-auth-request-user") for name in response.headers)


def test_verify_rejects_disabled_users(http: TestClient, access: Access, ada: LoggedInUser) -> None:
    access.authenticator.users.set_enabled(user_id=ada.user.id, enabled=False)

    response = http.get("/verify", headers=ada.headers)

    assert (response.status_code, response.json()) == (403, {"message": "User is disabled"})


def test_verify_answers_503_while_the_database_is_unavailable() -> None:
    access = in_memory_access(Users(UnavailableRepository(), PlainCipher()))
    with asgi_client(create_app(access.authenticator.users, LOCAL_MODE, access=access)) as http:
        response = http.get("/verify", headers={"X-API-Key": f"mlapi_{'0' * 16}_{'0' * 64}"})

    assert (response.status_code, response.headers["retry-after"]) == (503, "1")


@pytest.mark.parametrize("query", ["cost=2", "cost=-1", "cost=", "cost=0&cost=1", "other=1", "cost=0&x=1"])
def test_verify_rejects_other_queries(http: TestClient, ada: LoggedInUser, query: str) -> None:
    """If a proxy forwards its client's query, the client must not be able to choose the cost."""
    assert http.get(f"/verify?{query}", headers=ada.headers).status_code == 422


@pytest.mark.parametrize(
    "framing", [(b"content-length", b"107374182400"), (b"transfer-encoding", b"chunked")], ids=["length", "chunked"]
)
def test_verify_never_reads_the_body(access: Access, ada: LoggedInUser, framing: tuple[bytes, bytes]) -> None:
    sent: list[Any] = []

    async def receive() -> Any:
        raise AssertionError("read the body")

    async def send(message: Any) -> None:
        sent.append(message)

    app = create_app(access.authenticator.users, LOCAL_MODE, access=access)
    scope = {
        "type": "http",
        "http_version": "1.1",
        "method": "POST",
        "path": "/verify",
        "query_string": b"",
        "headers": [(b"authorization", ada.headers["Authorization"].encode()), framing],
    }
    asyncio.run(app(scope, receive, send))

    assert sent[0]["status"] == 200
