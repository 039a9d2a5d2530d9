"""With the configurations in deploy/, nginx, Caddy and HAProxy guard a server that does not use mlapi."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import attrs
import pytest

from tests.cut_connections import CuttingProxy
from tests.e2e.deployed_proxies import PROXIES, TIMEOUT_SECONDS, Account, Deployment, register, set_enabled, update
from tests.e2e.model_server import running_model_server
from tests.e2e.server import MlapiServer

UPLOAD_BYTES = 100 * 1024 * 1024
PIECE = bytes(1 << 20)
DAY_SECONDS = 86_400
POLICY = '"requests per day";q=2;w=86400, "requests per month";q=100'


@attrs.frozen
class RecordedDeployment(Deployment):
    """A deployment that records the traffic from the proxy to mlapi, with the folder of the proxy."""

    mlapi: CuttingProxy
    folder: Path


@pytest.fixture(scope="module", params=PROXIES)
def guarded(
    request: pytest.FixtureRequest, verifier: MlapiServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RecordedDeployment]:
    folder = tmp_path_factory.mktemp("proxy") / "files"
    with (
        running_model_server() as model,
        CuttingProxy(verifier.port) as mlapi,
        PROXIES[request.param](folder, mlapi.port, model.port) as base,
    ):
        yield RecordedDeployment(base, model, mlapi, folder)


def headers_of(request: Any) -> dict[str, str]:
    """Return the headers that the model received. Fail if a header is repeated."""
    headers = dict(request["headers"])
    assert len(headers) == len(request["headers"])
    return headers


# --- requests to the model


def test_model_receives_the_request_and_the_user(guarded: Deployment, ada: Account) -> None:
    answer = guarded.request("POST", "/v1/chat%20x?a=1&b=%2F", ada.key, data=b"x" * 1000, headers={"X-Trace": "7"})

    received = answer.json()
    headers = headers_of(received)
    assert (answer.status_code, received["method"], received["path"]) == (200, "POST", "/v1/chat%20x?a=1&b=%2F")
    assert (received["body_bytes"], headers["x-trace"]) == (1000, "7")
    assert (headers["x-auth-request-user-id"], headers["x-auth-request-user"]) == (str(ada.id), "ada")
    assert {"authorization", "x-api-key", "x-auth-request-plan"}.isdisjoint(headers)


def test_api_key_header_is_accepted_and_removed(guarded: Deployment, ada: Account) -> None:
    answer = guarded.request("GET", "/", headers={"X-API-Key": ada.key})

    assert (answer.status_code, "x-api-key" in headers_of(answer.json())) == (200, False)


def test_username_is_percent_encoded(guarded: Deployment, verifier: MlapiServer) -> None:
    zoe = register(verifier, "Zoë 李/%")

    username = headers_of(guarded.request("GET", "/", zoe.key).json())["x-auth-request-user"]

    assert (username.isascii(), unquote(username)) == (True, "Zoë 李/%")


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS"])
def test_every_method_is_guarded(guarded: Deployment, ada: Account, method: str) -> None:
    guarded.model.request_lines.clear()
    rejected, admitted = guarded.request(method, "/x"), guarded.request(method, "/x", ada.key)

    assert (rejected.status_code, admitted.status_code) == (401, 200)
    assert guarded.model.request_lines == [f"{method} /x"]


FORGED_HEADERS = """\
X-Auth-Request-User: forged
x-auth-request-user: forged
X-AUTH-REQUEST-USER-ID: forged
X-Auth-Request-Plan: forged
X_Auth_Request_User: forged
x_auth-request_user_id: forged
X-Auth-Request_Plan: forged
X-Auth-Request-Email: forged
X-Auth-Request-Groups: forged"""


def test_forged_user_headers_are_removed(guarded: Deployment, ada: Account) -> None:
    answer = guarded.send_raw(f"GET / HTTP/1.1\nAuthorization: Bearer {ada.key}\n{FORGED_HEADERS}")

    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b"forged" not in answer


def test_client_cannot_remove_the_headers_of_the_user(guarded: Deployment, ada: Account) -> None:
    listed = "Connection: X-Auth-Request-User, X-Auth-Request-User-Id"

    answer = guarded.send_raw(f"GET / HTTP/1.1\nAuthorization: Bearer {ada.key}\n{listed}")

    assert b'["x-auth-request-user", "ada"]' in answer
    assert f'["x-auth-request-user-id", "{ada.id}"]'.encode() in answer


@pytest.mark.parametrize(
    "path", ["/health/../x", "/health/%2e%2e/x", "/health%2f..%2fx", "/health/x", "/x/../health/y"]
)
def test_open_path_does_not_open_other_paths(guarded: Deployment, path: str) -> None:
    guarded.model.request_lines.clear()

    answer = guarded.send_raw(f"GET {path} HTTP/1.1")

    assert answer[9:12] in {b"400", b"401"}
    assert guarded.model.request_lines == []


def test_open_path_needs_no_credential(guarded: Deployment) -> None:
    answer = guarded.request("GET", "/health", headers={"X-Auth-Request-User": "forged"})

    assert (answer.status_code, answer.json()["path"]) == (200, "/health")
    assert "forged" not in answer.text


# --- responses to clients


def test_credential_errors_reach_the_client(guarded: Deployment) -> None:
    missing, wrong = guarded.request("GET", "/"), guarded.request("POST", "/", "nonsense", data=b"x")

    assert missing.json()["message"].startswith("This needs a token or an API key")
    assert (missing.status_code, missing.headers["WWW-Authenticate"]) == (401, "Bearer")
    assert (wrong.status_code, wrong.json()) == (401, {"message": "Invalid token"})
    assert wrong.headers["WWW-Authenticate"] == 'Bearer error="invalid_token"'
    assert {answer.headers["Content-Type"] for answer in (missing, wrong)} == {"application/json"}


def test_repeated_credentials_are_rejected(guarded: Deployment, ada: Account) -> None:
    lines = f"Authorization: Bearer nonsense\nAuthorization: Bearer {ada.key}"

    answer = guarded.send_raw(f"GET / HTTP/1.1\n{lines}")

    assert answer[9:12] in {b"400", b"401"}


def test_disabled_user_is_rejected_at_the_next_request(guarded: Deployment, verifier: MlapiServer) -> None:
    bob = register(verifier, f"bob of {guarded.base}")
    before = guarded.request("GET", "/", bob.key).status_code

    set_enabled(verifier, bob, 0)
    disabled = guarded.request("GET", "/", bob.key)
    set_enabled(verifier, bob, 1)

    assert (before, disabled.status_code, disabled.json()) == (200, 403, {"message": "User is disabled"})
    assert guarded.request("GET", "/", bob.key).status_code == 200


def test_expired_access_reaches_the_client(guarded: Deployment, verifier: MlapiServer) -> None:
    eve = register(verifier, f"eve of {guarded.base}")
    update(verifier, eve, expires_at="2026-01-01T00:00:00Z")

    expired = guarded.request("GET", "/", eve.key)
    update(verifier, eve, expires_at="+1mo")

    assert (expired.status_code, expired.json()) == (403, {"message": "Access has expired"})
    assert guarded.request("GET", "/", eve.key).status_code == 200


def test_request_limit_reaches_the_client(guarded: Deployment, verifier: MlapiServer) -> None:
    eve = register(verifier, f"eve on trial of {guarded.base}")
    update(verifier, eve, plan="trial")

    admitted = [guarded.request("GET", "/?cost=0", eve.key) for _ in range(2)]
    limited = guarded.request("POST", "/?cost=0", eve.key, data=PIECE)

    assert {headers_of(answer.json())["x-auth-request-plan"] for answer in admitted} == {"trial"}
    assert (limited.status_code, limited.json()) == (429, {"message": "Request limit reached: 2 per day"})
    assert 0 < int(limited.headers["Retry-After"]) <= DAY_SECONDS
    assert {answer.headers["RateLimit-Policy"] for answer in (*admitted, limited)} == {POLICY}
    remaining = [re.findall(r";r=(\d+);t=\d+", answer.headers["RateLimit"]) for answer in (*admitted, limited)]
    assert remaining == [["1", "99"], ["0", "98"], ["0", "98"]]


@pytest.mark.parametrize("status", [401, 403, 404, 429, 500, 503])
def test_errors_of_the_model_are_not_changed(guarded: Deployment, ada: Account, status: int) -> None:
    answer = guarded.request("GET", f"/status/{status}", ada.key)

    assert (answer.status_code, answer.json()) == (status, {"message": "from the model"})


# --- requests to mlapi


def test_service_receives_only_the_headers_of_a_request(guarded: RecordedDeployment, ada: Account) -> None:
    guarded.mlapi.received.clear()

    guarded.request("PUT", "/x?cost=0", ada.key, data=b"the body", headers={"Cookie": "session=1"})

    received = guarded.mlapi.received.decode().lower()
    method, target, _ = received.partition("\r\n")[0].split(" ")
    assert (method in {"get", "head"}, target) == (True, "/verify")
    assert received.count("\r\n\r\n") == 1
    assert received.endswith("\r\n\r\n")
    for line in ("x-forwarded-method: put", "x-forwarded-uri: /x?cost=0", "x-forwarded-for: 127.0.0.1"):
        assert f"{line}\r\n" in received
    assert f"authorization: bearer {ada.key}\r\n" in received


def test_connections_to_the_service_are_reused(guarded: RecordedDeployment, ada: Account) -> None:
    guarded.request("GET", "/", ada.key)
    before = guarded.mlapi.connection_count

    statuses = {guarded.request("GET", "/", ada.key).status_code for _ in range(20)}

    assert statuses == {200}
    assert guarded.mlapi.connection_count - before <= 3


def test_lost_connections_to_the_service_are_replaced(guarded: RecordedDeployment, ada: Account) -> None:
    statuses = []
    for _ in range(3):
        statuses.append(guarded.request("GET", "/", ada.key).status_code)
        guarded.mlapi.reset()  # as after a restart of mlapi

    assert statuses == [200, 200, 200]


# --- streams


def test_events_arrive_when_they_are_sent(guarded: Deployment, ada: Account) -> None:
    guarded.model.first_event_received.clear()

    with guarded.request("GET", "/events", ada.key, stream=True) as answer:
        lines = answer.iter_lines(chunk_size=1)
        first = next(lines)
        guarded.model.first_event_received.set()
        rest = list(lines)

    assert (first, [line for line in rest if line]) == (b"data: first", [b"data: second"])
    assert answer.headers["Content-Type"] == "text/event-stream"


@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_upload_of_100_mb_is_streamed_to_the_model(guarded: RecordedDeployment, ada: Account, framing: str) -> None:
    guarded.model.upload_started.clear()
    guarded.mlapi.received.clear()
    arrived_early = []

    def pieces() -> Iterator[bytes]:
        yield PIECE
        arrived_early.append(guarded.model.upload_started.wait(TIMEOUT_SECONDS))
        for _ in range(UPLOAD_BYTES // len(PIECE) - 1):
            yield PIECE

    body: Any = SizedBody(pieces()) if framing == "length" else pieces()
    answer = guarded.request("POST", "/upload", ada.key, data=body)

    assert (answer.status_code, answer.json()["body_bytes"], arrived_early) == (200, UPLOAD_BYTES, [True])
    assert len(guarded.mlapi.received) < 2000
    assert sum(file.stat().st_size for file in guarded.folder.rglob("*") if file.is_file()) < UPLOAD_BYTES // 10


class SizedBody:
    """A body that requests sends with a Content-Length, one piece after the other."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces

    def __len__(self) -> int:
        return UPLOAD_BYTES

    def __iter__(self) -> Iterator[bytes]:
        return self._pieces

    def read(self, _size: int) -> bytes:
        return next(self._pieces, b"")


def test_upload_without_a_credential_does_not_reach_the_model(guarded: Deployment) -> None:
    guarded.model.request_lines.clear()

    with guarded.connect(f"POST /upload HTTP/1.1\nContent-Length: {UPLOAD_BYTES}") as connection:
        connection.sendall(b"the first bytes")
        answer = connection.recv(65536)

    assert answer.startswith(b"HTTP/1.1 401 ")
    assert guarded.model.request_lines == []


HANDSHAKE = """\
GET /ws HTTP/1.1
Connection: Upgrade
Upgrade: {protocol}
Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==
Sec-WebSocket-Version: 13"""


def test_websocket_reaches_the_model_after_the_check(guarded: Deployment, ada: Account) -> None:
    guarded.model.request_lines.clear()
    head = HANDSHAKE.format(protocol="websocket")
    anonymous = guarded.send_raw(head)
    assert guarded.model.request_lines == []

    with guarded.connect(f"{head}\nAuthorization: Bearer {ada.key}") as connection:
        accepted = connection.recv(65536)
        connection.sendall(b"ping")
        answer = connection.recv(65536)

    assert (anonymous[:12], accepted[:12], answer) == (b"HTTP/1.1 401", b"HTTP/1.1 101", b"PING")


@pytest.mark.parametrize("protocol", ["h2c", "h2c\nUpgrade: websocket", "websocket, h2c"])
def test_other_upgrades_are_not_passed_on(guarded: Deployment, ada: Account, protocol: str) -> None:
    lines = f"{HANDSHAKE.format(protocol=protocol)}\nAuthorization: Bearer {ada.key}"

    with guarded.connect(lines) as connection:
        answer = connection.recv(65536)

    assert b"h2c" not in answer.replace(b"http/1.1", b"").lower()
