"""The processor time of one hostile request: the service checks lengths before it does anything slower.

Every text of a request is filled to its limit with the characters that are slowest to process. New operations and
console pages are covered without a change here; long headers are sent to one target of each kind.
"""

import asyncio
import ipaddress
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from itertools import chain, product
from typing import Any
from urllib.parse import quote

import attrs
import msgspec
import pytest
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp

from mlapi import Users
from mlapi.adapters.common_passwords import load_common_passwords
from mlapi.adapters.jwt import JwtTokenIssuer
from mlapi.adapters.memory import InMemoryUserRepository, PlainCipher, UnlimitedAttempts
from mlapi.application.authentication import Access, Authenticator
from mlapi.application.guard import Guard
from mlapi.config import CONTEXT_WORDS
from mlapi.domain.rules import PasswordPolicy
from mlapi.entrypoints.admin import AdminPolicy
from mlapi.entrypoints.console import console_routes
from mlapi.entrypoints.guard import GuardMiddleware
from mlapi.entrypoints.http import create_app
from mlapi.entrypoints.pages import PagesApp
from mlapi.entrypoints.wire.errors import MAX_BODY_BYTES, MAX_HEADER_BYTES, MAX_PATH_CHARS, MAX_QUERY_BYTES
from mlapi.entrypoints.wire.operations import OPERATIONS
from mlapi.testing.http import ADMIN_TOKEN
from tests.asgi import Request, call_with_scope
from tests.console_session import start_session

MAX_SECONDS = 0.004 if "PYTEST_XDIST_WORKER" in os.environ else 0.002
"""Several test processes share the caches of a processor, which up to doubles the processor time of each."""
MAX_ATTEMPTS = 30
"""A request is too slow only if it is slow this many times, because the machine may be busy with something else."""
PAUSE_SECONDS = 0.01
"""How much longer to wait before each further attempt."""
MAX_REPORTED = 3
MAX_HEAD_BYTES = 64_000
"""Slightly less than servers accept for the request line and all headers."""

SLOW_TEXTS: Mapping[str, str] = {
    "marks that must be sorted": "\u0344\u0316",
    "a character that normalizes to 18": "\ufdfa",
    "a character that normalizes to marks": "\u1fa7",
    "a character that normalizes to combining symbols": "\U0001d160",
    "Hangul": "\u1100\u1161\u11a8",
    "a letter beyond ASCII": "\xe9",
    "an invisible character": "\u200b",
    "a letter": "a",
    "a digit": "9",
    "spaces": " ",
    "separators": "a=&b;,",
    "escapes": '"\\',
    "path segments": "/.",
    "domain labels": "a@a.",
}
HEADER_VALUES = (b"\\", b",", b"a=; ")
HEADERS = (
    *(b"accept", b"authorization", b"connection", b"content-length", b"content-type", b"cookie", b"forwarded", b"host"),
    *(b"hx-request", b"if-none-match", b"origin", b"sec-fetch-site", b"transfer-encoding", b"upgrade"),
    *(b"user-agent", b"via", b"x-forwarded-for", b"x-forwarded-proto", b"x-request-id", b"x-unknown"),
)
HEADER_PREFIXES: Mapping[bytes, Sequence[bytes]] = {
    b"authorization": (b"Bearer ", b"Bearer eyJ", b"Bearer mlapi_"),
    b"content-type": (b"application/json", b""),
    b"cookie": (b'mlapi_session="', b"mlapi_notice=", b""),
    b"if-none-match": (b'"', b""),
}
JSON = (b"content-type", b"application/json")
FORM = (b"content-type", b"application/x-www-form-urlencoded")
FORM_FIELDS = ("csrf_token", "username", "password", "email", "name", "expires_at", "enabled", "list", "token")
QUERY_FIELDS = ("q", "after")
BODIES: Mapping[str, bytes] = {
    "nested lists": b"[" * MAX_BODY_BYTES,
    "nested objects": (b'{"a":' * MAX_BODY_BYTES)[:MAX_BODY_BYTES],
    "many keys": json.dumps({f"{number:x}": 0 for number in range(1_500)}).encode(),
    "equal keys": b"{" + b",".join([b'"a":0'] * 2_500) + b"}",
    "a long integer": b"9" * MAX_BODY_BYTES,
    "long integers": b"[" + b",".join([b"9" * 4_000] * 4) + b"]",
    "a long fraction": b"0." + b"1" * (MAX_BODY_BYTES - 2),
    "a long exponent": b"1e" + b"9" * (MAX_BODY_BYTES - 2),
    "fractions": b"[" + b",".join([b"1.7976931348623157e308"] * 600) + b"]",
    "escape sequences": b'"' + b"\\ud83d\\ude00" * 1_300 + b'"',
    "many strings": b"[" + b",".join([b'""'] * 5_000) + b"]",
    "spaces": b" " * MAX_BODY_BYTES,
    "not UTF-8": b"\xff" * MAX_BODY_BYTES,
}


@attrs.frozen(kw_only=True)
class Target:
    """An application with one method of one path."""

    app: ASGIApp = attrs.field(repr=False)
    method: str
    path: str
    body_type: type[Any] | None = None
    headers: Mapping[bytes, bytes] = attrs.field(factory=dict, repr=False)
    """The headers of a valid request."""
    csrf_token: str = attrs.field(default="", repr=False)

    @property
    def body(self) -> bytes:
        """A body that is valid as long as the values of its fields do not matter."""
        if self.body_type is not None:
            fields = msgspec.structs.fields(self.body_type)
            return json.dumps({field.encode_name: "a" for field in fields if field.required}).encode()
        return f"csrf_token={self.csrf_token}".encode() if self.method == "POST" else b""

    @property
    def content_type(self) -> tuple[bytes, bytes]:
        return JSON if self.body_type is not None else FORM

    def __str__(self) -> str:
        return f"{self.method} {self.path}"

    def make_request(
        self,
        headers: Sequence[tuple[bytes, bytes]] = (),
        *,
        body: bytes | None = None,
        query: str = "",
        parameter: str = "1",
        suffix: str = "",
    ) -> Request:
        names = {name for name, _ in headers}
        others = [header for header in (*self.headers.items(), self.content_type) if header[0] not in names]
        target = replace_parameters(self.path, parameter) + suffix + (f"?{query}" if query else "")
        return Request(self.method, target, [*headers, *others], self.body if body is None else body)


def replace_parameters(path: str, value: str) -> str:
    head, _, rest = path.partition("{")
    return head + value + replace_parameters(rest.partition("}")[2], value) if rest else path


def make_service(policy: AdminPolicy) -> ASGIApp:
    password_policy = PasswordPolicy(min_chars=8, common=load_common_passwords(), words=CONTEXT_WORDS)
    users = Users(InMemoryUserRepository(), PlainCipher(), password_policy=password_policy)
    users.register(username="ada", password="difference engine", email="ada@example.com")
    tokens = JwtTokenIssuer([b"k" * 32], lifetime=timedelta(hours=1), issuer="mlapi", audience="mlapi")
    access = Access(
        authenticator=Authenticator(users, tokens, UnlimitedAttempts()), guard=Guard(users.repository, tokens)
    )
    return create_app(users, policy, access, trusted_proxies=[ipaddress.ip_network("127.0.0.1/32")])


def find_targets() -> list[Target]:
    """Return every operation and every console page in token mode, and a guarded application."""
    policy = AdminPolicy(admin_token=ADMIN_TOKEN, docs_open=True)
    service = make_service(policy)
    session = start_session(service)
    host = {b"host": b"127.0.0.1:8001"}
    in_console = {**host, b"cookie": session.cookie.encode(), b"sec-fetch-site": b"same-origin"}
    as_admin = {**host, b"authorization": f"Bearer {ADMIN_TOKEN}".encode()}
    console = console_routes()[0].endpoint
    assert isinstance(console, PagesApp)
    guarded = GuardMiddleware(
        PlainTextResponse("ok"),
        Guard(InMemoryUserRepository(), JwtTokenIssuer([b"k" * 32], lifetime=timedelta(1), issuer="", audience="")),
        exempt=["/docs/*"],
    )
    return [
        *(
            Target(app=service, method=one.method, path=one.path, body_type=one.request, headers=as_admin)
            for one in OPERATIONS
        ),
        *(
            Target(app=service, method=method, path=route.path, headers=in_console, csrf_token=session.csrf_token)
            for route in console.routes
            for method in sorted((route.methods or set()) - {"HEAD"})
        ),
        Target(app=guarded, method="GET", path="/predict/{x}", headers=host),
        Target(app=guarded, method="GET", path="/docs/{x:path}", headers=host),
        Target(app=make_service(AdminPolicy()), method="GET", path="/users", headers=host),
    ]


def one_of_each_kind(targets: Sequence[Target]) -> list[Target]:
    """Return the first target of each kind. Targets of one kind read the same headers."""
    kinds = {
        (id(target.app), "/console" in target.path, target.method, target.body_type is None): target
        for target in targets[::-1]
    }
    return list(kinds.values())


TARGETS = find_targets()


def fill(text: str, max_chars: int, max_bytes: int, encode: Callable[[str], str]) -> str:
    """Return the encoded form of "a" and as many copies of ``text`` as fit."""
    count = min((max_chars - 1) // len(text), (max_bytes - 1) // len(encode(text).encode()))
    return "a" + encode(text) * count


def escape(text: str) -> str:
    return json.dumps(text)[1:-1]


def escape_quotes(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)[1:-1]


def make_json_bodies(body_type: type[Any], text: str) -> Iterator[bytes]:
    fields = [field.encode_name for field in msgspec.structs.fields(body_type)]
    for field, encode, max_chars in product(fields, (escape, escape_quotes), (100, 254, 1_024, MAX_BODY_BYTES)):
        others = "".join(f'"{other}":"a",' for other in fields if other != field)
        value = fill(text, max_chars, MAX_BODY_BYTES - 100, encode)
        yield f'{{{others}"{field}":"{value}"}}'.encode()


def make_forms(csrf_token: str, text: str) -> Iterator[bytes]:
    for field, max_chars in product(FORM_FIELDS, (254, MAX_BODY_BYTES)):
        token = "" if field == "csrf_token" else f"csrf_token={csrf_token}&"
        yield f"{token}{field}={fill(text, max_chars, MAX_BODY_BYTES - 200, quote)}".encode()


def make_requests(target: Target, text: str) -> Iterator[Request]:
    """Yield requests with this text in each place that takes text."""
    for max_bytes in (MAX_PATH_CHARS, MAX_HEAD_BYTES):
        if "{" in target.path:
            yield target.make_request(parameter=fill(text, max_bytes, max_bytes, quote))
        yield target.make_request(suffix="/" + fill(text, max_bytes, max_bytes, quote))
    for field, max_bytes in product(QUERY_FIELDS, (MAX_QUERY_BYTES - 10, MAX_HEAD_BYTES)):
        yield target.make_request(query=f"{field}={fill(text, max_bytes, max_bytes, quote)}")
    if target.body_type is not None:
        for body in make_json_bodies(target.body_type, text):
            yield target.make_request(body=body)
    elif target.method == "POST":
        for body in make_forms(target.csrf_token, text):
            yield target.make_request(body=body)


def make_header_requests(target: Target) -> Iterator[Request]:
    """Yield requests with long, repeated and numerous headers."""
    for name, value in product(HEADERS, HEADER_VALUES):
        for prefix in HEADER_PREFIXES.get(name, (b"",)):
            for size_bytes in (MAX_HEADER_BYTES, MAX_HEAD_BYTES):
                yield target.make_request([(name, (prefix + value * size_bytes)[:size_bytes])])
    for name in HEADERS:
        yield target.make_request([(name, b"127.0.0.1," * (MAX_HEADER_BYTES // 10))] * 4)
        yield target.make_request([(name, b"")] * (MAX_HEAD_BYTES // (len(name) + 4)))
    for cookie in (b"mlapi_session=a.b.c;", b"mlapi_notice=a.b.c;"):
        yield target.make_request([(b"cookie", cookie * (MAX_HEADER_BYTES // len(cookie)))])
    yield target.make_request(query="&" * MAX_QUERY_BYTES)
    yield target.make_request(query="a" * MAX_HEAD_BYTES)
    for body in BODIES.values() if target.body_type is not None else ():
        yield target.make_request(body=body)


@contextmanager
def untraced() -> Iterator[None]:
    """Pause the measurement of coverage, which would make loops several times slower."""
    tracer = sys.gettrace()
    sys.settrace(None)
    try:
        yield
    finally:
        sys.settrace(tracer)


async def measure_seconds(
    target: Target, request: Request, limit_seconds: float, pause_seconds: float = PAUSE_SECONDS
) -> float:
    """Return the processor time of a request in all threads, which also keep the event loop from running."""
    for attempt in range(MAX_ATTEMPTS):
        await asyncio.sleep(attempt * pause_seconds)
        scope = request.to_scope(target.app)
        with untraced():
            started = time.process_time()
            await call_with_scope(target.app, scope, request.body)
            seconds = time.process_time() - started
        if seconds < limit_seconds:
            break
    return seconds


async def find_slow_requests(target: Target, requests: Iterator[Request]) -> list[str]:
    """Return the first requests that cost much more than a short one, because some pages are always expensive."""
    limit = MAX_SECONDS + min([await measure_seconds(target, target.make_request(), 0, 0) for _ in range(3)])
    slow: list[str] = []
    for request in requests:
        seconds = await measure_seconds(target, request, limit)
        if seconds >= limit:
            slow.append(f"{seconds * 1000:.1f} ms: {request}"[:300])
        if len(slow) == MAX_REPORTED:
            break
    return slow


@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_text_at_any_length_costs_little_processor_time(target: Target) -> None:
    requests = chain.from_iterable(make_requests(target, text) for text in SLOW_TEXTS.values())

    assert asyncio.run(find_slow_requests(target, requests)) == []


@pytest.mark.parametrize("target", one_of_each_kind(TARGETS), ids=str)
def test_header_at_any_length_costs_little_processor_time(target: Target) -> None:
    assert asyncio.run(find_slow_requests(target, make_header_requests(target))) == []
