"""Cookies that the console did not set: they are ignored and removed, on every page and in both modes."""

import hashlib
import json
import re
import zlib
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime

import httpx2
import pytest
from itsdangerous import TimestampSigner
from itsdangerous.encoding import base64_encode
from starlette.testclient import TestClient

from mlapi import User, Users
from mlapi.adapters.memory import InMemoryUserRepository, PlainCipher
from mlapi.domain.sessions import find_session_id, generate_session_secret
from mlapi.entrypoints.admin import AdminPolicy
from mlapi.entrypoints.console import console_routes
from mlapi.entrypoints.http import create_app
from mlapi.entrypoints.http.signatures import MAX_COOKIE_CHARS
from mlapi.entrypoints.pages import Notice, PagesApp
from mlapi.entrypoints.pages.notices import MAX_NOTICE_CHARS, Notices
from mlapi.entrypoints.wire.paths import CONSOLE_PATH
from mlapi.testing.http import ADMIN_TOKEN, LOCAL_MODE
from tests.console_session import start_session
from tests.contract.test_http import BASE

MODES = {"local": LOCAL_MODE, "token": AdminPolicy(admin_token=ADMIN_TOKEN)}
COOKIES = ("mlapi_session", "mlapi_notice")
NOW = int(datetime.now(UTC).timestamp())


@pytest.fixture(params=MODES)
def mode(request: pytest.FixtureRequest) -> AdminPolicy:
    return MODES[request.param]


@pytest.fixture
def users() -> Users:
    return Users(InMemoryUserRepository(), PlainCipher())


@pytest.fixture
def client(users: Users, mode: AdminPolicy) -> Iterator[TestClient]:
    """A client that keeps no cookies."""
    with TestClient(create_app(users, mode), BASE, client=("127.0.0.1", 50_000), follow_redirects=False) as client:
        yield client


def console_paths(user: User, key_id: str) -> list[str]:
    """Return the path of every page, for a user who has an API key."""
    app = next(route.endpoint for route in console_routes())
    assert isinstance(app, PagesApp)
    values = {"user_id": str(user.id), "key_id": key_id, "digest": "0" * 32, "name": "pages.css"}
    return [re.sub(r"{(\w+)}", lambda match: values.get(match[1], "1"), route.path) for route in app.routes]


def sign(content: bytes, mode: AdminPolicy, *, timestamp: int = NOW) -> str:
    """Sign any content, like a program that knows the key. The key of local mode is not secret."""

    class Signer(TimestampSigner):
        def get_timestamp(self) -> int:
            return timestamp

    signer = Signer(mode.session_key, b"mlapi notice", key_derivation="hmac", digest_method=hashlib.sha256)
    return signer.sign(content).decode("ascii")


def as_json(value: object) -> bytes:
    return base64_encode(json.dumps(value))


SIGNED_CONTENT: Mapping[str, bytes] = {
    "empty": b"",
    "not base64": b"====",
    "one character": b"A",
    "not JSON": base64_encode(b"{"),
    "not UTF-8": base64_encode(b'"\xff"'),
    "null": as_json(None),
    "number": as_json(1),
    "object": as_json({"a": [1, {"b": None}]}),
    "empty list": as_json([]),
    "list of numbers": as_json([1, 2]),
    "session with a number as id": as_json([1, NOW]),
    "session with another id": as_json(["é" * 16, NOW]),
    "session with text as time": as_json(["0" * 32, "now"]),
    "session with a huge time": as_json(["0" * 32, 10**400]),
    "session with an infinite time": base64_encode(f'["{"0" * 32}", 1e999]'.encode()),
    "session with a negative time": as_json(["0" * 32, -(2**62)]),
    "session with three values": as_json(["0" * 32, NOW, 1]),
    "lone surrogate": as_json("\ud800"),
    "number with many digits": base64_encode(b"9" * 3_000),
    "nested deeply": base64_encode(b"[" * 2_900),
    "long text": as_json(["x" * (MAX_NOTICE_CHARS + 1), "", None]),
    "path with a host": as_json(["forged", "//host", None]),
    "undo elsewhere": as_json(["forged", "", ["https://host", {}, "Undo"]]),
    "undo with a number": as_json(["forged", "", ["/users", {"enabled": 1}, "Undo"]]),
    "compressed": b"." + base64_encode(zlib.compress(b'"' + b"x" * 10_000_000 + b'"')[:2_000]),
    "compressed text": b"." + base64_encode(zlib.compress(b'"' + b"x" * 100_000 + b'"')),
}


def forged_values(cookie: str, mode: AdminPolicy) -> list[str]:
    """Return cookie values that the console did not issue for this purpose, or that have expired."""
    valid = Notices(mode.session_key).sign(Notice("forged")) if cookie == "mlapi_session" else ""
    long = sign(base64_encode(b'"' + b"x" * 12_000 + b'"'), mode)
    return [
        *(sign(content, mode) for content in SIGNED_CONTENT.values()),
        *(sign(as_json("forged"), mode, timestamp=time) for time in (0, 1, NOW - 86_400, NOW + 86_400, 2**62)),
        *("x", ".", "..", "...", "é", "\xff" * 100, '"', '"\\"', '"\\' * 100, "a" * MAX_COOKIE_CHARS, "=", "==;", "\t"),
        *(valid, long, "." * 15_000, '"' + "\\" * 15_000 + '"'),
        Notices(b"another key").sign(Notice("forged")),
        generate_session_secret()[:-1],
    ]


def get(client: TestClient, path: str, cookies: str) -> httpx2.Response:
    client.cookies.clear()
    headers = {b"cookie": cookies.encode("latin-1"), b"sec-fetch-site": b"same-origin"}
    return client.get(path, headers=headers)


@pytest.mark.parametrize("cookie", COOKIES)
def test_forged_cookie_never_causes_a_server_error(
    client: TestClient, users: Users, mode: AdminPolicy, cookie: str
) -> None:
    ada = users.register(username="ada", password="difference engine", email="ada@example.com")
    key, _secret = users.add_api_key(user_id=ada.id, name="job")
    others = "" if cookie == "mlapi_session" else f"{start_session(client.app).cookie}; "

    responses = {
        (path, value): get(client, path, f"{others}{cookie}={value}")
        for path in console_paths(ada, key.id)
        for value in forged_values(cookie, mode)
    }

    assert {case: response.status_code for case, response in responses.items() if response.status_code >= 500} == {}
    assert not any("forged" in response.text for response in responses.values())


@pytest.mark.parametrize("mode", ["token"], indirect=True)
def test_forged_session_cookie_is_removed(client: TestClient, mode: AdminPolicy) -> None:
    removal = "mlapi_session=; Path=/console; Max-Age=0; HttpOnly; SameSite=Strict"

    responses = [
        get(client, f"{CONSOLE_PATH}/log-in", f"mlapi_session={value}")
        for value in forged_values("mlapi_session", mode)
    ]

    assert {(response.status_code, response.headers["set-cookie"]) for response in responses} == {(200, removal)}


@pytest.mark.parametrize("mode", ["local"], indirect=True)
def test_forged_session_cookie_is_replaced_in_local_mode(client: TestClient, mode: AdminPolicy) -> None:
    for value in forged_values("mlapi_session", mode):
        response = get(client, CONSOLE_PATH, f"mlapi_session={value}")

        assert (response.status_code, len(response.headers.get_list("set-cookie"))) == (200, 1)
        assert find_session_id(response.cookies["mlapi_session"]) is not None


def test_forged_notice_cookie_is_removed(client: TestClient, mode: AdminPolicy) -> None:
    removal = "mlapi_notice=; Path=/console; Max-Age=0; HttpOnly; SameSite=Strict"
    session = start_session(client.app).cookie

    responses = [
        get(client, CONSOLE_PATH, f"{session}; mlapi_notice={value}") for value in forged_values("mlapi_notice", mode)
    ]

    assert {(response.status_code, response.headers["set-cookie"]) for response in responses} == {(200, removal)}


def test_valid_cookie_is_found_among_forged_ones(client: TestClient, mode: AdminPolicy) -> None:
    session = start_session(client.app).cookie
    notice = Notices(mode.session_key).sign(Notice("ada was added."))
    forged = "mlapi_session=x; mlapi_notice=x"
    orders = [
        f"{forged}; {session}; mlapi_notice={notice}",
        f"{session};mlapi_notice={notice};{forged}",
    ]

    responses = [get(client, CONSOLE_PATH, cookies) for cookies in orders]

    assert [(response.status_code, "ada was added." in response.text) for response in responses] == [(200, True)] * 2
    assert all("mlapi_session" not in response.headers["set-cookie"] for response in responses)
