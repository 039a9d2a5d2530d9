"""Logins, passwords, API keys and user lists over HTTP: responses and effects."""

import asyncio
import json
import logging
import re
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import httpx2
import pytest
from starlette.applications import Starlette
from starlette.routing import Route
from starlette.testclient import TestClient

from mlapi import Access, ApiKey, Authenticator, Guard, InvalidFieldsError, User, Users
from mlapi.adapters.memory import InMemoryTokens, InMemoryUserRepository, PlainCipher, UnlimitedAttempts
from mlapi.bootstrap import in_memory_access
from mlapi.domain.commands import Reencrypt
from mlapi.domain.rules import PasswordPolicy
from mlapi.domain.users import EncryptedPassword
from mlapi.entrypoints.admin import AdminPolicy
from mlapi.entrypoints.http import create_app
from mlapi.entrypoints.wire.errors import ApiKeyNotAcceptedError, MissingCredentialError, TokenRequiredError
from mlapi.testing import UnavailableRepository
from mlapi.testing.http import ADMIN_TOKEN, LOCAL_MODE, content
from mlapi.testing.http_samples import INVALID_CONTENT_TYPES, UNREADABLE_BODIES
from tests.contract.test_http import BASE, asgi_client

PASSWORD = "difference engine"
INVALID_TOKEN = (401, {"message": "Invalid token"})
MISSING_CREDENTIAL = (401, {"message": str(MissingCredentialError())})
INVALID_CREDENTIALS = (401, {"message": "Invalid credentials"})


class CountingCipher(PlainCipher):
    """Counts comparisons, and reports values that start with ``plain:old:`` as outdated."""

    def __init__(self) -> None:
        self.comparisons: list[EncryptedPassword | None] = []

    def matches(self, password: str, encrypted: EncryptedPassword | None) -> bool:
        self.comparisons.append(encrypted)
        return super().matches(password, encrypted)

    def needs_upgrade(self, encrypted: EncryptedPassword) -> bool:
        return encrypted.value.startswith("plain:old:")


class CostlyCipher(CountingCipher):
    is_costly = True


@pytest.fixture(params=[CountingCipher, CostlyCipher], ids=["cheap", "costly"])
def cipher(request: pytest.FixtureRequest) -> CountingCipher:
    cipher: CountingCipher = request.param()
    return cipher


@pytest.fixture
def users(cipher: CountingCipher) -> Users:
    return Users(InMemoryUserRepository(), cipher, password_policy=PasswordPolicy(min_chars=2))


@pytest.fixture
def access(users: Users) -> Access:
    tokens = InMemoryTokens()
    return Access(
        authenticator=Authenticator(users, tokens, UnlimitedAttempts()), guard=Guard(users.repository, tokens)
    )


@pytest.fixture
def http(users: Users, access: Access) -> Iterator[TestClient]:
    with asgi_client(create_app(users, LOCAL_MODE, access=access)) as client:
        yield client


@pytest.fixture
def ada(users: Users) -> User:
    return users.register(username="ada", password=PASSWORD, email="ada@example.com")


def log_in(http: httpx2.Client, username: str = "ada", password: str = PASSWORD) -> httpx2.Response:
    return http.post("/token", json={"username": username, "password": password})


def token(http: httpx2.Client, password: str = PASSWORD) -> str:
    issued: str = log_in(http, password=password).json()["token"]
    return issued


def bearer(credential: str) -> dict[str, str]:
    return {"authorization": f"Bearer {credential}"}


def status(http: httpx2.Client, credential: str) -> tuple[int, object]:
    return content(http.get("/token_status", headers=bearer(credential)))


# --- POST /token


def test_correct_password_returns_a_token(http: TestClient, ada: User) -> None:
    response = log_in(http)

    assert response.status_code == 200
    body = response.json()
    assert body == {"token": body["token"], "token_type": "bearer", "expires_in": 3600}
    assert response.headers["cache-control"] == "no-store"
    assert status(http, body["token"]) == (200, {"message": "Token is valid"})


@pytest.mark.parametrize("username", ["ADA", "Ada", "ａｄａ"])
def test_login_accepts_any_spelling_of_the_username(http: TestClient, ada: User, username: str) -> None:
    assert log_in(http, username).status_code == 200


@pytest.mark.parametrize(
    ("username", "password"),
    [
        ("ada", "wrong"),
        ("ada", ""),
        ("bob", PASSWORD),
        ("", PASSWORD),
        (" ", PASSWORD),
        ("a\0", "x"),
        ("x" * 5000, "x"),
    ],
)
def test_failed_logins_look_alike_and_each_compare_one_password(
    http: TestClient, cipher: CountingCipher, ada: User, username: str, password: str
) -> None:
    response = log_in(http, username, password)

    assert content(response) == INVALID_CREDENTIALS
    assert response.headers["www-authenticate"] == "Bearer"
    assert len(cipher.comparisons) == 1


def test_disabled_user_is_reported_only_with_correct_password(
    http: TestClient, users: Users, cipher: CountingCipher, ada: User
) -> None:
    users.set_enabled(user_id=ada.id, enabled=False)

    responses = [content(log_in(http)), content(log_in(http, password="wrong"))]

    assert responses == [(403, {"message": "User is disabled"}), INVALID_CREDENTIALS]
    assert len(cipher.comparisons) == 2


def test_login_log_lines_omit_the_submitted_text(http: TestClient, ada: User, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "mlapi")

    for username, password in [("ada", PASSWORD), ("ada", "c4n4ry"), ("c4n4ry", "x"), ("c4n4ry\r\nlog-in", "x")]:
        log_in(http, username, password)

    assert [(record.levelname, record.getMessage()) for record in caplog.records if record.name == "mlapi"] == [
        ("INFO", f"login from 127.0.0.1: correct password for user {ada.id}"),
        ("WARNING", f"login from 127.0.0.1: wrong password for user {ada.id}"),
        ("WARNING", "login from 127.0.0.1: unknown username"),
        ("WARNING", "login from 127.0.0.1: unknown username"),
    ]


def test_excessive_login_attempts_are_logged(users: Users, caplog: pytest.LogCaptureFixture) -> None:
    with asgi_client(create_app(users, LOCAL_MODE, access=in_memory_access(users))) as http:
        responses = [log_in(http, "nobody", "x").status_code for _ in range(21)]

    assert responses == [401] * 20 + [429]
    assert caplog.messages[-1] == "login from 127.0.0.1: too many attempts"


def test_outdated_stored_password_is_upgraded_at_login(
    http: TestClient, users: Users, access: Access, ada: User
) -> None:
    old = EncryptedPassword(f"plain:old:{PASSWORD}")
    users.apply(Reencrypt(user_id=ada.id, password=old, replacing=ada.password))
    failed = log_in(http, password="wrong")
    stored_after_failure = users.get(ada.id).password.value

    first = token(http)
    stored = users.get(ada.id).password.value

    assert failed.status_code == 401
    assert stored_after_failure == f"plain:old:{PASSWORD}"
    assert not stored.startswith("plain:old:")
    assert [status(http, first)[0], log_in(http).status_code] == [200, 200]


@pytest.mark.parametrize("body", UNREADABLE_BODIES.values(), ids=UNREADABLE_BODIES.keys())
def test_body_that_is_not_strict_json_is_rejected(http: TestClient, body: bytes) -> None:
    response = http.post("/token", content=body, headers={"content-type": "application/json"})

    assert response.status_code == 400


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        ({}, ["username", "password"]),
        ([], ["body"]),
        ({"username": "ada", "password": None}, ["password"]),
        ({"username": 1, "password": PASSWORD}, ["username"]),
    ],
)
def test_all_invalid_fields_are_reported(http: TestClient, body: object, fields: list[str]) -> None:
    response = http.post("/token", json=body)

    assert response.status_code == 422
    assert [error["field"] for error in response.json()["errors"]] == fields
    assert PASSWORD not in response.text


def test_login_ignores_the_other_fields_of_a_registration(http: TestClient, ada: User) -> None:
    """The tutorial of the legacy app sends the whole registration."""
    ignored: dict[str, object] = {"email": "ada@example.com", "otp": None, "list": [{}]}
    body = {"username": "ada", "password": PASSWORD, **ignored}

    assert http.post("/token", json=body).status_code == 200


@pytest.mark.parametrize("media_type", [other for other in INVALID_CONTENT_TYPES if "form-urlencoded" not in other])
def test_other_content_types_are_rejected(http: TestClient, media_type: str) -> None:
    response = http.post("/token", content=b"{}", headers={"content-type": media_type})

    assert response.status_code == 415


def test_wrong_method_response_lists_the_allowed_methods(http: TestClient) -> None:
    responses = {
        path: http.request(method, path).headers["allow"]
        for method, path in [
            ("GET", "/token"),
            ("POST", "/token_status"),
            ("POST", "/users/me/password"),
            ("GET", "/users/me/tokens"),
            ("PATCH", "/users/me/keys"),
            ("GET", "/users/me/keys/x"),
            ("GET", "/users/1/password"),
            ("PATCH", "/users/1/keys"),
            ("GET", "/keys/x"),
        ]
    }

    assert {path: set(allow.split(", ")) for path, allow in responses.items()} == {
        "/token": {"POST"},
        "/token_status": {"GET", "HEAD"},
        "/users/me/password": {"PUT"},
        "/users/me/tokens": {"DELETE"},
        "/users/me/keys": {"GET", "HEAD", "POST"},
        "/users/me/keys/x": {"DELETE"},
        "/users/1/password": {"PUT"},
        "/users/1/keys": {"GET", "HEAD", "POST"},
        "/keys/x": {"DELETE"},
    }


def test_logins_get_503_while_the_database_is_unavailable(access: Access) -> None:
    users = Users(UnavailableRepository(), PlainCipher())
    http = asgi_client(create_app(users, LOCAL_MODE))

    responses = [log_in(http), http.get("/users/1/keys")]

    assert [response.status_code for response in responses] == [503, 503]


def test_login_attempts_are_limited_by_default(users: Users, ada: User) -> None:
    with asgi_client(create_app(users, LOCAL_MODE, access=in_memory_access(users))) as http:
        responses = [log_in(http, password="wrong").status_code for _ in range(21)]
        forged = http.post(
            "/token",
            json={"username": "ada", "password": PASSWORD},
            headers={"x-forwarded-for": "203.0.113.9"},
        )

    assert responses == [401] * 20 + [429]
    assert forged.status_code == 429
    assert 1 <= int(forged.headers["retry-after"]) <= 60


class SlowCipher(CostlyCipher):
    """Takes 10 ms to compare a password."""

    def matches(self, password: str, encrypted: EncryptedPassword | None) -> bool:
        time.sleep(0.01)
        return super().matches(password, encrypted)


@pytest.mark.parametrize(("password", "expected"), [(PASSWORD, {200}), ("wrong", {401, 429})], ids=["correct", "wrong"])
def test_concurrent_logins_with_correct_password_succeed(password: str, expected: set[int]) -> None:
    users = Users(InMemoryUserRepository(), SlowCipher())
    users.register(username="ada", password=PASSWORD, email="ada@example.com")
    app = create_app(users, LOCAL_MODE)

    async def log_in_concurrently() -> list[int]:
        transport = httpx2.ASGITransport(app, client=("127.0.0.1", 50000))
        async with httpx2.AsyncClient(transport=transport, base_url=BASE) as http:
            body = {"username": "ada", "password": password}
            responses = await asyncio.gather(*[http.post("/token", json=body) for _ in range(60)])
        return [response.status_code for response in responses]

    responses = asyncio.run(log_in_concurrently())

    assert set(responses) == expected
    assert responses.count(401) in {0, 20}
    app.state.runtime.close()


# --- token status


def test_token_status_in_the_path_can_be_turned_off(users: Users, access: Access, ada: User) -> None:
    issued = access.authenticator.log_in(username="ada", password=PASSWORD).token
    enabled = asgi_client(create_app(users, LOCAL_MODE, access=access))
    disabled = asgi_client(create_app(users, LOCAL_MODE, access=access, token_in_path=False))

    responses = [content(http.get(f"/token_status/{issued}")) for http in (enabled, disabled)]

    assert responses == [(200, {"message": "Token is valid"}), (404, {"message": "Not Found"})]
    assert content(enabled.get(f"/token_status/{issued}x")) == INVALID_TOKEN


def test_unknown_token_and_disabled_user_look_alike(http: TestClient, users: Users, ada: User) -> None:
    issued = token(http)
    users.set_enabled(user_id=ada.id, enabled=False)

    responses = [content(http.get("/token_status")), status(http, issued), status(http, "nonsense")]

    assert responses == [INVALID_TOKEN] * 3


# --- passwords


def test_changing_a_password_revokes_all_tokens(http: TestClient, ada: User) -> None:
    first, second = token(http), token(http)

    response = http.put("/users/me/password", json={"current": PASSWORD, "new": "analytical"}, headers=bearer(first))

    assert (response.status_code, response.content) == (204, b"")
    assert "content-length" not in response.headers
    assert [status(http, issued) for issued in (first, second)] == [INVALID_TOKEN] * 2
    assert [log_in(http).status_code, log_in(http, password="analytical").status_code] == [401, 200]


@pytest.mark.parametrize(
    ("current", "new", "expected"),
    [
        ("wrong", "analytical", INVALID_CREDENTIALS),
        (
            PASSWORD,
            "x",
            (
                422,
                {"message": "Invalid input", "errors": [{"field": "new", "message": "must be at least 2 characters"}]},
            ),
        ),
        (
            "wrong",
            "",
            (422, {"message": "Invalid input", "errors": [{"field": "new", "message": "must not be empty"}]}),
        ),
    ],
)
def test_rejected_password_change_changes_nothing(
    http: TestClient, ada: User, current: str, new: str, expected: object
) -> None:
    issued = token(http)

    response = http.put("/users/me/password", json={"current": current, "new": new}, headers=bearer(issued))

    assert content(response) == expected
    assert status(http, issued)[0] == log_in(http).status_code == 200


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("PUT", "/users/me/password"),
        ("DELETE", "/users/me/tokens"),
        ("GET", "/users/me/keys"),
        ("POST", "/users/me/keys"),
        ("DELETE", "/users/me/keys/0123456789abcdef"),
    ],
)
def test_own_account_operations_reject_api_keys(
    http: TestClient, users: Users, ada: User, method: str, path: str
) -> None:
    _, key = users.add_api_key(user_id=ada.id, name="job")
    body = json.dumps({"current": PASSWORD, "new": "analytical"})
    sent = {"content-type": "application/json"}

    responses = [
        http.request(method, path, content=body, headers={**sent, **headers})
        for headers in ({}, bearer("nonsense"), bearer(key), {"x-api-key": key})
    ]

    no_key = (401, {"message": str(ApiKeyNotAcceptedError())})
    missing = (401, {"message": str(TokenRequiredError())})
    assert [content(response) for response in responses] == [missing, INVALID_TOKEN, no_key, no_key]
    challenges = [response.headers["www-authenticate"] for response in responses]
    assert challenges == ["Bearer", *['Bearer error="invalid_token"'] * 3]
    assert users.get(ada.id) == ada


def test_users_can_revoke_their_own_tokens(http: TestClient, ada: User) -> None:
    first, second = token(http), token(http)

    response = http.delete("/users/me/tokens", headers=bearer(first))

    assert content(response) == (200, {"message": "Tokens ended successfully", "user_id": ada.id})
    assert [status(http, issued) for issued in (first, second)] == [INVALID_TOKEN] * 2
    assert log_in(http).status_code == 200


def test_admin_can_revoke_tokens_and_set_a_password(http: TestClient, ada: User) -> None:
    first = token(http)
    ended = http.delete(f"/users/{ada.id}/tokens")
    second = token(http)
    password_set = http.put(f"/users/{ada.id}/password", json={"password": "analytical"})

    assert content(ended) == (200, {"message": "Tokens ended successfully", "user_id": ada.id})
    assert (password_set.status_code, password_set.content) == (204, b"")
    assert [status(http, issued) for issued in (first, second)] == [INVALID_TOKEN] * 2
    assert log_in(http, password="analytical").status_code == 200


def test_password_set_by_an_admin_must_follow_the_policy(http: TestClient, users: Users, ada: User) -> None:
    response = http.put(f"/users/{ada.id}/password", json={"password": "x"})

    errors = [{"field": "password", "message": "must be at least 2 characters"}]
    assert content(response) == (422, {"message": "Invalid input", "errors": errors})
    assert users.get(ada.id) == ada


# --- API keys


def test_api_key_is_shown_once_and_valid_until_removed(http: TestClient, users: Users, ada: User) -> None:
    created = http.post(f"/users/{ada.id}/keys", json={"name": "nightly job"})

    assert created.status_code == 201
    shown = created.json()
    (key,) = users.list_api_keys(ada.id)
    in_list = {
        "key_id": key.id,
        "name": "nightly job",
        "created_at": key.created_datetime.isoformat().replace("+00:00", "Z"),
        "expires_at": None,
        "last_used_at": None,
    }
    assert shown == {"message": "Key created successfully", "key": shown["key"], **in_list}
    assert shown["key"].startswith(f"mlapi_{key.id}_")
    assert created.headers["cache-control"] == "no-store"
    listed = http.get(f"/users/{ada.id}/keys")
    assert content(listed) == (200, {"keys": [in_list]})
    assert status(http, shown["key"]) == (200, {"message": "Token is valid"})
    assert http.get(f"/users/{ada.id}/keys").json()["keys"][0]["last_used_at"] is not None
    removed = http.delete(f"/keys/{key.id}")
    assert content(removed) == (200, {"message": "Key deleted successfully"})
    assert status(http, shown["key"]) == INVALID_TOKEN


def test_api_key_can_expire(http: TestClient, users: Users, ada: User) -> None:
    created = http.post(f"/users/{ada.id}/keys", json={"name": "job", "expires_at": "2099-01-31T12:00:00+02:00"})

    assert created.json()["expires_at"] == "2099-01-31T10:00:00Z"
    (key,) = users.list_api_keys(ada.id)
    assert key.expires_datetime == datetime(2099, 1, 31, 10, tzinfo=UTC)


@pytest.mark.parametrize(
    ("body", "field", "message"),
    [
        ({}, "name", "is missing"),
        ({"name": ""}, "name", "must not be empty"),
        ({"name": "  "}, "name", "must not be empty"),
        ({"name": "a\nb"}, "name", "must not contain control or invisible characters"),
        ({"name": "x" * 101}, "name", "must be at most 100 characters"),
        ({"name": 1}, "name", "must be a string"),
        ({"name": "x", "expires_at": 1}, "expires_at", "must be a time such as 2030-01-31T12:00:00Z, or null"),
        ({"name": "x", "expires_at": "soon"}, "expires_at", "must be a time such as 2030-01-31T12:00:00Z, or null"),
        (
            {"name": "x", "expires_at": "2099-01-31T12:00:00"},
            "expires_at",
            "must have a time zone, as in 2030-01-31T12:00:00Z",
        ),
        ({"name": "x", "expires_at": "2020-01-31T12:00:00Z"}, "expires_at", "must be in the future"),
        (
            {"name": "x", "expires_at": "9999-12-31T23:59:59-12:00"},
            "expires_at",
            "must be between the years 1 and 9999 in UTC",
        ),
        ({"name": "x", "scope": "all"}, "body", "must contain only name, expires_at"),
    ],
)
def test_invalid_api_key_request_error_names_the_field(
    users: Users, ada: User, body: object, field: str, message: str
) -> None:
    http = asgi_client(create_app(users, LOCAL_MODE))

    response = http.post(f"/users/{ada.id}/keys", json=body)

    errors = [{"field": field, "message": message}]
    assert content(response) == (422, {"message": "Invalid input", "errors": errors})
    assert users.list_api_keys(ada.id) == []


def test_api_key_is_valid_only_while_its_user_is_enabled(http: TestClient, users: Users, ada: User) -> None:
    _, key = users.add_api_key(user_id=ada.id, name="job", expires_datetime=datetime.now(UTC) + timedelta(days=1))

    users.set_enabled(user_id=ada.id, enabled=False)
    while_disabled = status(http, key)
    users.set_enabled(user_id=ada.id, enabled=True)

    assert [while_disabled, status(http, key)] == [INVALID_TOKEN, (200, {"message": "Token is valid"})]


@pytest.mark.parametrize("user_id", ["2", "0", "99999999999999999999"])
def test_unknown_user_is_not_found(http: TestClient, ada: User, user_id: str) -> None:
    responses = [
        http.get(f"/users/{user_id}/keys"),
        http.post(f"/users/{user_id}/keys", json={"name": "x"}),
        http.put(f"/users/{user_id}/password", json={"password": "analytical"}),
        http.delete(f"/users/{user_id}/tokens"),
    ]

    assert [content(response) for response in responses] == [(404, {"message": "User not found"})] * 4


@pytest.mark.parametrize("key_id", ["x", "%00", "0123456789abcdef", "é", "a" * 4000])
def test_unknown_api_key_is_not_found(http: TestClient, key_id: str) -> None:
    assert content(http.delete(f"/keys/{key_id}")) == (404, {"message": "Key not found"})


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/users/x/keys"),
        ("POST", "/users/mee/keys"),
        ("PUT", "/users/1x/password"),
        ("DELETE", "/users/١/tokens"),
    ],
)
def test_user_id_must_be_ascii_digits(http: TestClient, method: str, path: str) -> None:
    response = http.request(method, path, content=b"{}", headers={"content-type": "application/json"})

    errors = [{"field": "user_id", "message": "must be ASCII digits"}]
    assert content(response) == (422, {"message": "Invalid input", "errors": errors})


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/users/1/keys"),
        ("POST", "/users/1/keys"),
        ("DELETE", "/keys/0123456789abcdef"),
        ("PUT", "/users/1/password"),
        ("DELETE", "/users/1/tokens"),
    ],
)
def test_admin_operations_reject_user_tokens(users: Users, access: Access, ada: User, method: str, path: str) -> None:
    http = asgi_client(create_app(users, AdminPolicy(admin_token=ADMIN_TOKEN), access))
    issued = token(http)

    responses = [http.request(method, path, headers=headers).status_code for headers in ({}, bearer(issued))]

    assert responses == [401, 401]
    assert isinstance(users.list_api_keys(ada.id), list)
    assert users.get(ada.id) == ada


def test_repr_of_an_api_key_omits_the_secret(users: Users, ada: User) -> None:
    key, secret = users.add_api_key(user_id=ada.id, name="job")

    assert isinstance(key, ApiKey)
    assert secret.rpartition("_")[2] not in repr(key)
    assert key.digest not in repr(key)


# --- reading users


def as_json(user: User) -> dict[str, object]:
    return {
        "user_id": user.id,
        "username": user.username,
        "email": user.email,
        "enabled": user.enabled,
        "created_datetime": user.created_datetime.isoformat().replace("+00:00", "Z"),
        "updated_datetime": user.updated_datetime.isoformat().replace("+00:00", "Z"),
        "state": "active" if user.enabled else "disabled",
        "expires_at": None,
        "plan": None,
        "metadata": {},
    }


@pytest.fixture
def people(users: Users) -> list[User]:
    names = ["ada", "Bob", "Straße", "adam", "100%_\\"]
    registered = [
        users.register(username=name, password=PASSWORD, email=f"User{number}@example.com")
        for number, name in enumerate(names)
    ]
    return [*registered[:1], users.set_enabled(user_id=registered[1].id, enabled=False), *registered[2:]]


def test_users_are_listed_in_pages_without_passwords(http: TestClient, people: list[User]) -> None:
    first = http.get("/users?limit=2")
    second = http.get(f"/users?limit=2&after={first.json()['next']}")
    third = http.get(f"/users?limit=2&after={second.json()['next']}")

    assert content(first) == (200, {"users": [as_json(user) for user in people[:2]], "next": people[1].id})
    assert content(second) == (200, {"users": [as_json(user) for user in people[2:4]], "next": people[3].id})
    assert content(third) == (200, {"users": [as_json(people[4])], "next": None})
    assert first.headers["cache-control"] == "no-store"


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", [0, 1, 2, 3, 4]),
        ("enabled=1", [0, 2, 3, 4]),
        ("enabled=0", [1]),
        ("q=ADA", [0, 3]),
        ("q=STRASSE", [2]),
        ("q=user3%40", [3]),
        ("q=%25_%5C", [4]),
        ("q=%25_", [4]),
        ("q=nobody", []),
        ("q=%40example&enabled=1&limit=1&after=1", [2]),
        ("after=99999999999999999999999", []),
        ("limit=500", [0, 1, 2, 3, 4]),
    ],
)
def test_users_are_filtered_by_state_and_text(
    http: TestClient, people: list[User], query: str, expected: list[int]
) -> None:
    response = http.get(f"/users?{query}")

    assert [user["user_id"] for user in response.json()["users"]] == [people[number].id for number in expected]


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("enabled=yes", "enabled"),
        ("enabled=", "enabled"),
        ("limit=0", "limit"),
        ("limit=501", "limit"),
        ("limit=-1", "limit"),
        ("limit=١", "limit"),
        ("after=x", "after"),
        ("after=", "after"),
        ("q=%00", "q"),
        ("q=%E2%80%AE", "q"),
        ("q=" + "x" * 255, "q"),
        ("q=a&q=b", "q"),
        ("password=x", "query"),
        ("q=%FF", "query"),
        ("&".join(f"q{number}=" for number in range(50)), "query"),
    ],
)
def test_invalid_query_error_names_the_parameter(http: TestClient, query: str, field: str) -> None:
    response = http.get(f"/users?{query}")

    assert response.status_code == 422
    assert [error["field"] for error in response.json()["errors"]] == [field]


def test_user_can_be_read_by_id_or_with_their_own_token(http: TestClient, users: Users, ada: User) -> None:
    _, key = users.add_api_key(user_id=ada.id, name="job")

    by_id = http.get(f"/users/{ada.id}")
    by_token, by_key = (http.get("/users/me", headers=bearer(credential)) for credential in (token(http), key))

    own = {name: value for name, value in as_json(ada).items() if name != "metadata"}
    assert content(by_token) == content(by_key) == (200, own)
    assert content(by_id) == (200, {**as_json(ada), "last_seen": None})
    assert content(http.get("/users/7")) == (404, {"message": "User not found"})
    assert content(http.get("/users/me")) == MISSING_CREDENTIAL


@pytest.mark.parametrize("path", ["/users", "/users/1"])
def test_only_admins_can_read_users(users: Users, access: Access, ada: User, path: str) -> None:
    http = asgi_client(create_app(users, AdminPolicy(admin_token=ADMIN_TOKEN), access))

    headers = [{}, bearer(token(http)), bearer(ADMIN_TOKEN)]

    assert [http.get(path, headers=header).status_code for header in headers] == [401, 401, 200]


# --- GET requests, and unusual values


def test_get_requests_change_nothing(http: TestClient, users: Users, ada: User) -> None:
    users.add_api_key(user_id=ada.id, name="job")
    before = [users.list_page(), users.list_api_keys(ada.id), users.list_audit_page()]
    app = http.app
    assert isinstance(app, Starlette)
    paths = [re.sub(r"{[\w:]+}", "1", route.path) for route in app.routes if isinstance(route, Route)]

    responses = {path: http.get(path, headers=bearer(token(http))).status_code for path in paths}

    assert responses["/users/1"] == responses["/users/1/keys"] == responses["/audit"] == 200
    assert (
        responses["/remove-user/1"] == responses["/toggle-user-permission/1/1"] == responses["/users/1/tokens"] == 405
    )
    assert [users.list_page(), users.list_api_keys(ada.id), users.list_audit_page()] == before


@pytest.mark.parametrize(
    "extra", [{"id": 7}, {"enabled": False}, {"user_id": 7}, {"token_epoch": "0"}, {"is_admin": 1}]
)
def test_unknown_fields_in_a_registration_change_nothing(
    http: TestClient, users: Users, extra: dict[str, object]
) -> None:
    body = {"username": "mallory", "password": PASSWORD, "email": "mallory@example.com", **extra}

    response = http.post("/register-user", json=body)

    assert content(response) == (201, {"message": "User created successfully", "user_id": 1})
    (user,) = users.list_page()
    assert (user.id, user.enabled, user.token_epoch != "0") == (1, True, True)


def test_special_characters_in_names_are_escaped_in_json(http: TestClient, users: Users) -> None:
    name = 'ada", "enabled": false, "x": "</script>\u2028\\'
    users.register(username="ada", password=PASSWORD, email="ada@example.com")
    with pytest.raises(InvalidFieldsError):
        users.register(username=name, password=PASSWORD, email="ada@example.com")  # U+2028 is a line separator

    user = users.register(username=name.replace("\u2028", ""), password=PASSWORD, email="'\"@example.com")

    assert content(http.get(f"/users/{user.id}")) == (200, {**as_json(user), "last_seen": None})
