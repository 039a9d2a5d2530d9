"""Logins with the password form of OAuth 2.0 (RFC 6749, 4.3), as OAuth clients, FastAPI and Swagger UI send it."""

import logging
from base64 import b64encode
from collections.abc import Iterator
from typing import Annotated, Any

import pytest
from fastapi import Depends, FastAPI
from fastapi.security import OAuth2PasswordBearer
from starlette.testclient import TestClient

from mlapi import Access, Authenticator, Guard, User, Users
from mlapi.adapters.memory import InMemoryTokens, InMemoryUserRepository, PlainCipher, UnlimitedAttempts
from mlapi.bootstrap import in_memory_access
from mlapi.entrypoints.http import create_app
from mlapi.testing import UnavailableRepository
from mlapi.testing.http import LOCAL_MODE, content
from tests.contract.test_http import asgi_client

FORM = "application/x-www-form-urlencoded"
PASSWORD = "difference engine +&=%é"
ADA: dict[str, Any] = {"username": "ada", "password": PASSWORD}


@pytest.fixture
def users() -> Users:
    return Users(InMemoryUserRepository(), PlainCipher())


@pytest.fixture
def access(users: Users) -> Access:
    tokens = InMemoryTokens()
    authenticator = Authenticator(users, tokens, UnlimitedAttempts())
    return Access(authenticator=authenticator, guard=Guard(users.repository, tokens))


@pytest.fixture
def http(users: Users, access: Access) -> Iterator[TestClient]:
    with asgi_client(create_app(users, LOCAL_MODE, access=access)) as client:
        yield client


@pytest.fixture
def ada(users: Users) -> User:
    return users.register(email="ada@example.com", **ADA)


def send(http: TestClient, body: bytes, content_type: str = FORM) -> tuple[int, object]:
    return content(http.post("/token", content=body, headers={"content-type": content_type}))


@pytest.mark.parametrize(
    "extra",
    [
        {},
        {"grant_type": "password"},
        {"grant_type": ""},
        {"grant_type": "password", "scope": "read write", "client_id": "a", "client_secret": "b", "other": "c"},
    ],
)
def test_form_returns_an_oauth_token(http: TestClient, ada: User, extra: dict[str, str]) -> None:
    response = http.post("/token", data={**ADA, **extra})

    body = response.json()
    assert content(response) == (
        200,
        {"access_token": body["access_token"], "token_type": "bearer", "expires_in": 3600},
    )
    assert (response.headers["cache-control"], response.headers["pragma"]) == ("no-store", "no-cache")
    status = http.get("/token_status", headers={"authorization": f"Bearer {body['access_token']}"})
    assert content(status) == (200, {"message": "Token is valid"})


def test_client_credentials_in_the_header_are_ignored(http: TestClient, ada: User) -> None:
    headers = {"authorization": f"Basic {b64encode(b'client:secret').decode()}"}

    assert http.post("/token", data=ADA, headers=headers).status_code == 200


@pytest.mark.parametrize(
    "content_type", [f"{FORM}; charset=utf-8", f"{FORM};", "Application/X-WWW-Form-URLEncoded;charset=UTF-8"]
)
def test_form_media_type_may_have_parameters(http: TestClient, ada: User, content_type: str) -> None:
    body = b"username=ada&&password=difference+engine%20%2B%26%3D%25%c3%A9&"

    assert send(http, body, content_type)[0] == 200


@pytest.mark.parametrize(
    ("changed", "status", "error"),
    [
        ({"password": "wrong"}, 401, "invalid_grant"),
        ({"username": "bob"}, 401, "invalid_grant"),
        ({"grant_type": "client_credentials"}, 400, "unsupported_grant_type"),
    ],
)
def test_errors_have_the_fields_that_oauth_clients_expect(
    http: TestClient, ada: User, changed: dict[str, str], status: int, error: str
) -> None:
    response = http.post("/token", data={**ADA, **changed})

    message = "Invalid credentials" if status == 401 else "The grant_type must be password"
    assert content(response) == (status, {"message": message, "error": error, "error_description": message})


def test_disabled_user_gets_no_token(http: TestClient, users: Users, ada: User) -> None:
    users.set_enabled(user_id=ada.id, enabled=False)

    message = "User is disabled"
    body = {"message": message, "error": "invalid_grant", "error_description": message}
    assert content(http.post("/token", data=ADA)) == (403, body)


def test_other_grants_are_unsupported_rather_than_incomplete(http: TestClient) -> None:
    message = "The grant_type must be password"
    body = {"message": message, "error": "unsupported_grant_type", "error_description": message}
    for form in (b"grant_type=client_credentials&client_id=a", b"grant_type=refresh_token&refresh_token=a"):
        assert send(http, form) == (400, body)


def test_missing_fields_are_listed(http: TestClient) -> None:
    assert send(http, b"grant_type=password") == (
        422,
        {
            "message": "Invalid input",
            "errors": [{"field": name, "message": "is missing"} for name in ("username", "password")],
            "error": "invalid_request",
            "error_description": "Invalid input",
        },
    )


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"username=ada&password=a&username=ada", "it repeats a field"),
        (b"username=ada&password=a&other=1&other=2", "it repeats a field"),
        (b"username=ada&password=a&user%6eame=bob", "it repeats a field"),
        (b"username=ada&password=%zz", "it is not URL-encoded UTF-8"),
        (b"username=ada&password=%4", "it is not URL-encoded UTF-8"),
        (b"username=ada&password=%ff", "it is not URL-encoded UTF-8"),
        (b"username=ada&password=%ed%a0%80", "it is not URL-encoded UTF-8"),
        (b"username=ada&password=\xff", "it is not URL-encoded UTF-8"),
        (b"username=ada&password=a\r\n", "it is not URL-encoded UTF-8"),
        (b"&".join(b"%d=" % number for number in range(51)), "it has more than 50 fields"),
    ],
)
def test_malformed_form_is_rejected(http: TestClient, ada: User, body: bytes, reason: str) -> None:
    message = f"The body is not a valid form: {reason}"

    assert send(http, body) == (
        400,
        {"message": message, "error": "invalid_request", "error_description": message},
    )


@pytest.mark.parametrize(
    ("content_type", "body"),
    [("application/json", b"username=ada&password=a"), (FORM, b'{"username": "ada", "password": "a"}')],
)
def test_media_type_decides_how_the_body_is_read(http: TestClient, content_type: str, body: bytes) -> None:
    assert send(http, body, content_type)[0] in {400, 422}


def test_form_larger_than_16_kib_is_rejected(http: TestClient) -> None:
    assert send(http, b"username=a&password=" + b"a" * 16384) == (
        413,
        {"message": "The body is larger than 16384 bytes"},
    )


@pytest.mark.parametrize("path", ["/register-user", "/users/1/password", "/users/1/keys"])
def test_other_operations_accept_no_forms(http: TestClient, ada: User, path: str) -> None:
    method = "PUT" if path.endswith("password") else "POST"

    response = http.request(method, path, data={**ADA, "email": "a@b.c", "name": "x"})

    assert response.status_code == 415


def test_other_media_types_are_rejected_with_both_names(http: TestClient) -> None:
    message = "The Content-Type must be application/json or application/x-www-form-urlencoded, in UTF-8"

    assert send(http, b"", "multipart/form-data; boundary=x") == (415, {"message": message})


def test_forms_count_as_login_attempts(users: Users, ada: User, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "mlapi")
    with asgi_client(create_app(users, LOCAL_MODE, access=in_memory_access(users))) as http:
        responses = [http.post("/token", data={**ADA, "password": "wrong"}) for _ in range(21)]

    assert [response.status_code for response in responses] == [401] * 20 + [429]
    assert responses[-1].json()["error"] == "temporarily_unavailable"
    assert PASSWORD not in caplog.text


def test_unavailable_database_gives_503_with_retry_after() -> None:
    users = Users(UnavailableRepository(), PlainCipher())
    with asgi_client(create_app(users, LOCAL_MODE)) as http:
        response = http.post("/token", data=ADA)

    assert (response.status_code, response.json()["error"]) == (503, "temporarily_unavailable")
    assert response.headers["retry-after"] == "1"


def test_form_login_sets_no_cookie(http: TestClient, ada: User) -> None:
    """Any web page can send a form. Without a cookie or CORS headers, the page gains nothing."""
    response = http.post("/token", data=ADA, headers={"origin": "https://example.com", "sec-fetch-site": "cross-site"})

    assert response.status_code == 200
    assert not {"set-cookie", "access-control-allow-origin"} & {name.lower() for name in response.headers}


def test_fastapi_dependency_accepts_the_token(http: TestClient, access: Access, ada: User) -> None:
    model = FastAPI()
    scheme = OAuth2PasswordBearer(tokenUrl="http://localhost:8001/token")

    @model.get("/whoami")
    def whoami(token: Annotated[str, Depends(scheme)]) -> str:
        return access.guard.check(token).username

    token = http.post("/token", data={**ADA, "grant_type": "password"}).json()["access_token"]
    with TestClient(model) as client:
        assert client.get("/whoami").status_code == 401
        assert client.get("/whoami", headers={"authorization": f"Bearer {token}"}).json() == "ada"
