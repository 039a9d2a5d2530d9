"""Random bytes in every part of a request: the API and the console never answer with a server error."""

import asyncio

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from starlette.applications import Starlette

from mlapi import Users
from mlapi.adapters.memory import InMemoryUserRepository, PlainCipher
from mlapi.entrypoints.admin import AdminPolicy
from mlapi.entrypoints.console import console_routes
from mlapi.entrypoints.http import create_app
from mlapi.entrypoints.pages import PagesApp
from mlapi.entrypoints.wire.operations import OPERATIONS
from mlapi.testing import UnavailableRepository
from mlapi.testing.http import ADMIN_TOKEN
from tests.asgi import Request, call_app
from tests.console_session import start_session

MODES = {"local": AdminPolicy(docs_open=True), "token": AdminPolicy(admin_token=ADMIN_TOKEN, docs_open=True)}


def find_paths() -> list[str]:
    """Return the path of every operation and of every console page."""
    console = console_routes()[0].endpoint
    assert isinstance(console, PagesApp)
    return sorted({*(operation.path for operation in OPERATIONS), *(route.path for route in console.routes)})


@pytest.fixture(params=MODES)
def policy(request: pytest.FixtureRequest) -> AdminPolicy:
    return MODES[request.param]


@pytest.fixture
def app(policy: AdminPolicy) -> Starlette:
    users = Users(InMemoryUserRepository(), PlainCipher())
    users.register(username="ada", password="difference engine", email="ada@example.com")
    return create_app(users, policy)


def replace_parameters(path: str, value: str) -> str:
    head, _, rest = path.partition("{")
    return head + value + replace_parameters(rest.partition("}")[2], value) if rest else path


NAMES = (
    *(
        b"accept",
        b"authorization",
        b"connection",
        b"content-length",
        b"content-type",
        b"cookie",
        b"expect",
        b"forwarded",
    ),
    *(b"host", b"hx-current-url", b"hx-request", b"hx-target", b"if-none-match", b"origin", b"range", b"referer"),
    *(b"sec-fetch-site", b"transfer-encoding", b"upgrade", b"x-forwarded-for", b"x-forwarded-proto", b"x-request-id"),
)
BYTES = st.binary(max_size=60).map(lambda value: value.translate(None, b"\0\r\n"))
SEGMENTS = st.sampled_from(["1", "0", "%00", "%FF", "%ED%A0%80", "a%2Fb", "\xa7", ".."])
QUERIES = st.text("aqenbldftr=&%;+019 \xe9\xff\0", max_size=40)
FORMS = st.text("csrf_token=&%listxé+;", max_size=60).map(str.encode)


@given(
    method=st.sampled_from(["GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS"]),
    path=st.sampled_from(find_paths()),
    segment=SEGMENTS,
    query=QUERIES,
    headers=st.lists(st.tuples(st.sampled_from(NAMES), BYTES), max_size=5),
    body=st.binary(max_size=60) | FORMS,
)
@example(method="GET", path="/console", segment="", query="", headers=[(b"host", b"[")], body=b"")
@example(method="GET", path="/console", segment="", query="", headers=[(b"host", b"\xa8\xbc:80")], body=b"")
@settings(
    deadline=None,
    derandomize=True,
    max_examples=150,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_random_bytes_cause_no_server_error(
    app: Starlette,
    policy: AdminPolicy,
    *,
    method: str,
    path: str,
    segment: str,
    query: str,
    headers: list[tuple[bytes, bytes]],
    body: bytes,
) -> None:
    session = start_session(app)
    valid = {
        b"host": b"127.0.0.1:8001",
        b"authorization": f"Bearer {ADMIN_TOKEN}".encode(),
        b"cookie": session.cookie.encode(),
        b"content-type": b"application/x-www-form-urlencoded",
        b"sec-fetch-site": b"same-origin",
    }
    names = {name for name, _ in headers}
    sent = [*headers, *(header for header in valid.items() if header[0] not in names)]
    target = replace_parameters(path, segment) + (f"?{query}" if query else "")
    form = f"csrf_token={session.csrf_token}&".encode() + body

    for content in (body, form):
        response = asyncio.run(call_app(app, Request(method, target, sent, content)))

        assert response is None or response.status < 500, response


@pytest.mark.parametrize("host", [b"[", b"]", b"[::1", b"\xa8\xbc", b"a:b:c", b"", b"/", b"?", b"#"])
@pytest.mark.parametrize("path", ["/users", "/console", "/health/ready"])
def test_unavailable_service_answers_503_to_any_host(path: str, host: bytes) -> None:
    users = Users(UnavailableRepository(), PlainCipher())
    app = create_app(users, MODES["token"])
    headers = [
        (b"host", host),
        (b"authorization", f"Bearer {ADMIN_TOKEN}".encode()),
        (b"cookie", start_session(app).cookie.encode()),
    ]

    response = asyncio.run(call_app(app, Request("GET", path, headers, b"")))

    assert response is not None
    assert response.status == 503
