"""One request to the console, as its views get it."""

from collections.abc import Mapping
from urllib.parse import parse_qsl, quote

import attrs
from starlette.requests import Request

from mlapi.application.users import Users
from mlapi.domain.errors import FieldError, InvalidFieldsError
from mlapi.entrypoints.admin import AdminPolicy
from mlapi.entrypoints.console.sessions import Session, Sessions
from mlapi.entrypoints.http.runtime import Runtime
from mlapi.entrypoints.wire import requests
from mlapi.entrypoints.wire.client import Client

PATH = "/console"
"""Where the console is, below where the application is mounted."""
_FORM = "application/x-www-form-urlencoded"
_FIELDS_MAX = 20


@attrs.frozen(kw_only=True)
class ConsoleRequest:
    """A request with what it is answered from. ``form`` has every field once, ``session`` is None at the log-in."""

    request: Request
    caller: Client
    sessions: Sessions
    session: Session | None = None
    form: Mapping[str, str] = attrs.field(factory=dict, repr=False)

    @property
    def base(self) -> str:
        """The path of the console as the browser has it, quoted; it begins with one slash, so it names no host."""
        root: str = self.request.scope.get("root_path", "")
        return "/" + quote((root + PATH).lstrip("/"))

    @property
    def management(self) -> AdminPolicy:
        management: AdminPolicy = self.request.app.state.admin_policy
        return management

    @property
    def serving(self) -> Runtime:
        serving: Runtime = self.request.app.state.runtime
        return serving

    @property
    def users(self) -> Users:
        """Whose changes are told of the console in the audit trail."""
        return self.serving.as_actor("console")

    @property
    def is_safe(self) -> bool:
        """Whether it only reads (RFC 9110, 9.2.1)."""
        return self.request.method in {"GET", "HEAD"}

    @property
    def is_partial(self) -> bool:
        """Whether htmx asks, and will take a part of the page."""
        return self.request.headers.get("hx-request") == "true"

    def given(self, *names: str) -> dict[str, str]:
        """Return those parameters of the query that say something."""
        query = self.request.query_params
        return {name: query[name] for name in names if query.get(name)}

    def cookie(self, name: str) -> str:
        return self.request.cookies.get(self.cookie_name(name), "")

    def cookie_name(self, name: str) -> str:
        """Browsers let only HTTPS set a name with this prefix: nobody on the way can give us a session of his."""
        return f"__Secure-mlapi_{name}" if self.caller.scheme == "https" else f"mlapi_{name}"


async def read_form(request: Request) -> dict[str, str]:
    """Return the fields of a form.

    Raises:
        InvalidFieldsError: unless it is URL-encoded UTF-8 with a few fields, each of them once.
        BodyTooLargeError: if it is too large.
    """
    content_type, _, _ = request.headers.get("content-type", "").partition(";")
    body = await requests.read_body(request.stream())
    try:
        pairs = parse_qsl(body.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=_FIELDS_MAX)
    except ValueError:
        pairs = []
    if not pairs or len(dict(pairs)) != len(pairs) or content_type.strip().lower() != _FORM:
        raise InvalidFieldsError((FieldError("form", f"must be {_FORM} in UTF-8, with each field once"),))
    return dict(pairs)
