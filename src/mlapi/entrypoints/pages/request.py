"""The request object that pages receive, and the site and access rule that it belongs to."""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, TypeVar
from urllib.parse import quote

import attrs
from starlette.requests import Request

from mlapi.application.deadlines import PausedDeadline
from mlapi.application.users import Users
from mlapi.domain.actors import ANYONE
from mlapi.domain.errors import FieldError, InvalidFieldsError
from mlapi.domain.managers import ManagerIdentity
from mlapi.domain.sessions import LIFETIME_SECONDS, Session, SessionId
from mlapi.domain.users import User
from mlapi.entrypoints.admin import AdminPolicy
from mlapi.entrypoints.http.browser_sessions import cookie_name, set_cookie
from mlapi.entrypoints.http.runtime import Runtime
from mlapi.entrypoints.pages.notices import NOTICE_SECONDS, Notice, Notices
from mlapi.entrypoints.wire import requests
from mlapi.entrypoints.wire.client import Client
from mlapi.entrypoints.wire.errors import (
    UnreadableBodyError,
    UnsupportedContentEncodingError,
    UnsupportedMediaTypeError,
)
from mlapi.entrypoints.wire.forms import decode_form
from mlapi.entrypoints.wire.headers import FORM, get_cookies, validate_content_headers
from mlapi.entrypoints.wire.paths import base_path
from mlapi.entrypoints.wire.queries import split_query

T = TypeVar("T")

_NOTICE_COOKIE = "notice"


@attrs.frozen(kw_only=True)
class PageSession:
    """The session of the client that opened a page.

    Attributes:
        id: the id of the session. In local mode, no session with this id is stored.
        csrf_token: every form contains this token, which proves that the form belongs to this session.
        actor: the name of the client in the audit trail.
        manager: the manager who is signed in; None for users.
        user: the user who is signed in; None for managers.
        stored: the stored session; None in local mode, where no sign-in is needed.
        form_key: a secret of this session. Forms that make a secret derive it from this key, so that a form which is
            sent twice makes one secret.
    """

    id: SessionId = attrs.field(repr=False)
    csrf_token: str = attrs.field(repr=False)
    actor: str
    manager: ManagerIdentity | None = None
    user: User | None = None
    stored: Session | None = None
    form_key: bytes = attrs.field(default=b"", repr=False)


class AccessRule(Protocol):
    """Decides who may open the pages of a site."""

    def is_public(self, path: str) -> bool:
        """Return whether a page needs no session.

        Args:
            path: relative to the path of the site.
        """
        ...

    async def open_session(self, request: "PageRequest") -> tuple[PageSession | None, Sequence[str]]:
        """Return the session of a request, and Set-Cookie headers for the response.

        Raises:
            MlapiError: if the client may not open any page of the site.
        """
        ...

    def check(self, request: "PageRequest") -> None:
        """Check that the session of a request allows it. Called before the page.

        Raises:
            MlapiError: if it does not.
        """
        ...


class PublicAccess:
    """An `AccessRule` for pages that anyone may open, without a session."""

    def is_public(self, path: str) -> bool:  # noqa: ARG002 - part of the protocol
        return True

    async def open_session(self, request: "PageRequest") -> tuple[PageSession | None, Sequence[str]]:  # noqa: ARG002 - part of the protocol
        return None, ()

    def check(self, request: "PageRequest") -> None:
        pass


@attrs.frozen(kw_only=True)
class Site:
    """A group of pages below one path, with one access rule.

    Attributes:
        name: the name in error messages and metrics, such as ``console``.
        path: the path, such as ``/console``.
        package: the package with the folder ``templates``, which may replace templates of `mlapi.entrypoints.pages`.
        access: decides who may open the pages.
        home: the name of the page at the path, in links to it. Empty if there is no page.
        login_path: where clients without a session are sent, relative to the path of the site.
        cookie: the name of the session cookie.
        is_same_origin_required: whether forms must come from the pages of the site. False if a form contains a secret
            that no other page knows.
        headers: headers for every response, in addition to the default ones.
        is_enabled: whether the settings allow the site. If not, its pages do not exist.
    """

    name: str
    path: str
    package: str
    access: AccessRule
    home: str = ""
    login_path: str = ""
    cookie: str = ""
    is_same_origin_required: bool = True
    headers: Mapping[str, str] = attrs.field(factory=dict)
    is_enabled: Callable[[Runtime], bool] = lambda _runtime: True


@attrs.frozen(kw_only=True)
class PageRequest:
    """A request, together with the session, form and services that a page needs."""

    site: Site
    http_request: Request
    client: Client
    notices: Notices
    session: PageSession | None = None
    """None on public pages if the client is not signed in."""
    form: Mapping[str, str] = attrs.field(factory=dict, repr=False)
    """The form values by field name. Forms that repeat a field are rejected."""

    @property
    def base(self) -> str:
        """The URL-encoded path of the site as the browser sees it."""
        return base_path(self.http_request.scope) + self.site.path

    @property
    def path(self) -> str:
        """The path of the page, relative to the path of the site."""
        return self.client.path.removeprefix(self.site.path)

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
        """The users, with the client as the actor in the audit trail."""
        return self.runtime.as_actor(ANYONE if self.session is None else self.session.actor)

    @property
    def address(self) -> str:
        """The client address, taking the headers of trusted proxies into account."""
        return self.client.resolve_address(self.runtime.trusted_proxies)

    @property
    def is_safe(self) -> bool:
        """True if the method is safe (RFC 9110, 9.2.1): the request does not change anything."""
        return self.http_request.method in {"GET", "HEAD"}

    @property
    def path_and_query(self) -> str:
        """The path of the page, relative to the path of the site, with its query; both are URL-encoded."""
        query = self.http_request.scope["query_string"].decode("latin-1")
        return quote(self.path) + (f"?{query}" if query else "")

    @property
    def is_htmx(self) -> bool:
        """True if htmx sent the request, to update a part of the current page."""
        return self.http_request.headers.get("hx-request") == "true"

    @property
    def is_partial(self) -> bool:
        """True if htmx uses only a part of ``#main``."""
        return self.is_htmx and self.http_request.headers.get("hx-target") != "main"

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
    def notice_cookies(self) -> list[str]:
        """The notices in the cookies. Other applications on this host may have set cookies of the same name."""
        return get_cookies(self.client.headers, cookie_name(self.client, _NOTICE_COOKIE))

    def notice_cookie(self, notice: Notice | None) -> str:
        """Return a Set-Cookie header for a notice. None deletes the cookie."""
        value, max_age_seconds = ("", 0) if notice is None else (self.notices.sign(notice), NOTICE_SECONDS)
        return set_cookie(self.client, _NOTICE_COOKIE, value, self.base, max_age_seconds)

    @property
    def session_cookies(self) -> list[str]:
        """The session cookies of the site. Other applications on this host may have set cookies of the same name."""
        return get_cookies(self.client.headers, cookie_name(self.client, self.site.cookie))

    def session_cookie(self, value: str) -> str:
        """Return a Set-Cookie header for the session. An empty value deletes the cookie."""
        return set_cookie(self.client, self.site.cookie, value, self.base, LIFETIME_SECONDS if value else 0)


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
