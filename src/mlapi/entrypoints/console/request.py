"""The request object that console pages receive."""

from collections.abc import Callable, Mapping
from typing import TypeVar

import attrs
from starlette.requests import Request

from mlapi.application.deadlines import PausedDeadline
from mlapi.application.users import Users
from mlapi.domain.errors import FieldError, InvalidFieldsError
from mlapi.entrypoints.admin import AdminPolicy
from mlapi.entrypoints.http.browser_sessions import cookie_name, docs_cookies, session_cookie, set_cookie
from mlapi.entrypoints.http.runtime import Runtime
from mlapi.entrypoints.http.sessions import FLASH_SECONDS, Session, Sessions
from mlapi.entrypoints.wire import requests
from mlapi.entrypoints.wire.client import Client
from mlapi.entrypoints.wire.errors import (
    UnreadableBodyError,
    UnsupportedContentEncodingError,
    UnsupportedMediaTypeError,
)
from mlapi.entrypoints.wire.forms import decode_form
from mlapi.entrypoints.wire.headers import FORM, get_cookies, validate_content_headers
from mlapi.entrypoints.wire.paths import CONSOLE_PATH, base_path
from mlapi.entrypoints.wire.queries import split_query

T = TypeVar("T")

_FLASH_COOKIE = "flash"


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
        """The URL-encoded path of the console as the browser sees it."""
        return base_path(self.http_request.scope) + CONSOLE_PATH

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

    @property
    def flash_cookies(self) -> list[str]:
        """The flash messages in the cookies. Other applications on this host may have set cookies of the same name."""
        return get_cookies(self.client.headers, cookie_name(self.client, _FLASH_COOKIE))

    def flash_cookie(self, text: str) -> str:
        """Return a Set-Cookie header for a flash message. An empty text deletes the cookie."""
        value, max_age_seconds = (self.sessions.sign(text), FLASH_SECONDS) if text else ("", 0)
        return set_cookie(self.client, _FLASH_COOKIE, value, self.base, max_age_seconds)

    def docs_cookies(self, session: Session | None) -> list[str]:
        """Return the Set-Cookie headers that let a session read the documentation, or delete these cookies."""
        return docs_cookies(self.http_request.scope, self.client, self.sessions, session)

    def session_cookie(self, value: str) -> str:
        """Return a Set-Cookie header for the session. An empty value deletes the cookie."""
        return session_cookie(self.http_request.scope, self.client, value)


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
