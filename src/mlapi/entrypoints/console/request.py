"""The request object that console pages receive."""

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
from mlapi.entrypoints.wire.errors import (
    UnreadableBodyError,
    UnsupportedContentEncodingError,
    UnsupportedMediaTypeError,
)
from mlapi.entrypoints.wire.forms import decode_form
from mlapi.entrypoints.wire.headers import FORM, get_cookies, validate_content_headers
from mlapi.entrypoints.wire.queries import split_query

T = TypeVar("T")

CONSOLE_PATH = "/console"
"""The path of the console, relative to the mount point of the application."""
SESSION_COOKIE = "session"
FLASH_COOKIE = "flash"


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
    with PausedDeadline():
        body = await requests.read_body(request.stream())
    try:
        validate_content_headers(request.scope["headers"], (FORM,))
        form = decode_form(body)
    except (UnreadableBodyError, UnsupportedMediaTypeError, UnsupportedContentEncodingError):
        form = {}
    if not form:
        message = f"must be {FORM.decode()} in UTF-8 and must not repeat a field"
        raise InvalidFieldsError((FieldError("form", message),))
    return form
