"""The request object that console pages receive."""

import re
from binascii import a2b_qp
from collections.abc import Callable, Mapping
from typing import TypeVar
from urllib.parse import quote

import attrs
from starlette.requests import Request

from mlapi.application.deadlines import PausedDeadline
from mlapi.application.users import Users
from mlapi.domain.errors import FieldError, InvalidFieldsError
from mlapi.entrypoints.admin import AdminPolicy
from mlapi.entrypoints.console.sessions import Session, Sessions
from mlapi.entrypoints.http.runtime import Runtime
from mlapi.entrypoints.wire import requests
from mlapi.entrypoints.wire.client import Client
from mlapi.entrypoints.wire.headers import get_cookies
from mlapi.entrypoints.wire.queries import split_query

T = TypeVar("T")

CONSOLE_PATH = "/console"
"""The path of the console, relative to the mount point of the application."""
SESSION_COOKIE = "session"
FLASH_COOKIE = "flash"
_FORM_TYPE = "application/x-www-form-urlencoded"
_MAX_FIELDS = 20
_INVALID_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})|[\r\n]")


@attrs.frozen(kw_only=True)
class ConsoleRequest:
    """A request, together with the session, form and services that a page needs."""

    http_request: Request
    client: Client
    sessions: Sessions
    session: Session | None = None
    """None on the login page if the client is not logged in."""
    form: Mapping[str, str] = attrs.field(factory=dict, repr=False)
    """The form values by field name. Forms that repeat a field are rejected."""

    @property
    def base(self) -> str:
        """The URL-encoded path of the console as the browser sees it.

        It starts with exactly one slash, because browsers treat what follows two slashes as a host name.
        """
        root: str = self.http_request.scope.get("root_path", "")
        return "/" + quote((root + CONSOLE_PATH).lstrip("/"))

    @property
    def admin_policy(self) -> AdminPolicy:
        policy: AdminPolicy = self.http_request.app.state.admin_policy
        return policy

    @property
    def runtime(self) -> Runtime:
        runtime: Runtime = self.http_request.app.state.runtime
        return runtime

    @property
    def users(self) -> Users:
        """The users, with the console as the actor in the audit trail."""
        return self.runtime.as_actor("console")

    @property
    def address(self) -> str:
        """The client address, taking the headers of trusted proxies into account."""
        return self.client.resolve_address(self.runtime.trusted_proxies)

    @property
    def is_safe(self) -> bool:
        """True if the method is safe (RFC 9110, 9.2.1): the request does not change anything."""
        return self.http_request.method in {"GET", "HEAD"}

    @property
    def is_partial(self) -> bool:
        """True if htmx sent the request; htmx uses only a part of the page."""
        return self.http_request.headers.get("hx-request") == "true"

    async def search(self, function: Callable[[], T]) -> T:
        """Call a function whose cost grows with the number of rows. See `SearchPool.run`."""
        return await self.runtime.executor.search(self.http_request.receive, function)

    def query_parameters(self, *names: str) -> dict[str, str]:
        """Return the non-empty query parameters with these names.

        Raises:
            InvalidFieldsError: if the query is too long, has too many parameters, or is not UTF-8.
        """
        query = dict(split_query(self.http_request.scope["query_string"]))
        return {name: query[name] for name in names if query.get(name)}

    def cookies(self, name: str) -> list[str]:
        """Return the values of a cookie. Other applications on this host may have set cookies of the same name."""
        return get_cookies(self.http_request.scope["headers"], self.cookie_name(name))

    def cookie_name(self, name: str) -> str:
        """Return the full name of a cookie.

        Browsers accept a cookie with the ``__Secure-`` prefix only over HTTPS, so a network attacker cannot plant one.
        """
        return f"__Secure-mlapi_{name}" if self.client.scheme == "https" else f"mlapi_{name}"


async def read_form(request: Request) -> dict[str, str]:
    """Return the form fields in the body.

    Raises:
        InvalidFieldsError: if the body is empty or not URL-encoded UTF-8, repeats a field or has too many fields.
        BodyTooLargeError: if the body is too large.
    """
    content_type, _, _ = request.headers.get("content-type", "").partition(";")
    with PausedDeadline():
        body = await requests.read_body(request.stream())
    try:
        pairs = _split_form(body)
    except ValueError:  # too many fields, a malformed escape sequence, or not UTF-8
        pairs = []
    if not pairs or len(dict(pairs)) != len(pairs) or content_type.strip().lower() != _FORM_TYPE:
        raise InvalidFieldsError((FieldError("form", f"must be {_FORM_TYPE} in UTF-8 and must not repeat a field"),))
    return dict(pairs)


def _split_form(body: bytes) -> list[tuple[str, str]]:
    fields = body.split(b"&")
    if len(fields) > _MAX_FIELDS:
        raise ValueError
    parts = [field.partition(b"=") for field in fields if field]
    return [(unquote_form(name), unquote_form(value)) for name, _, value in parts]


def unquote_form(text: bytes) -> str:
    """Decode a name or value of a form. The result equals that of urllib, which takes three times as long.

    Raises:
        ValueError: if an escape sequence is malformed, the text contains a line break, or it is not UTF-8.
    """
    if _INVALID_ESCAPE.search(text):
        raise ValueError
    # Quoted-printable differs only in the escape character and in its rules for line breaks.
    escaped = text.replace(b"+", b" ").replace(b"=", b"%3D").replace(b"%", b"=")
    return a2b_qp(escaped).decode("utf-8")
