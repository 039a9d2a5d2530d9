"""The page of a user: what they may do, what they have done, and the forms that change it."""

import json
import secrets
from collections.abc import Mapping, Sequence
from http import HTTPStatus

import attrs
from starlette.responses import Response

from mlapi.domain.audit import AuditEntry, AuditFilter
from mlapi.domain.credentials import ApiKey
from mlapi.domain.errors import InvalidFieldsError
from mlapi.domain.logins import Login
from mlapi.domain.users import User, UserId, utc_now
from mlapi.entrypoints.pages import PageRequest, redirect_with_secret, render_page, take_secret
from mlapi.entrypoints.pages.notices import Notice
from mlapi.entrypoints.pages.usage import UsageOverview, default_days, read_overview
from mlapi.entrypoints.wire import requests

RECENT_ENTRIES = 10
"""The number of audit entries on the page."""
RECENT_LOGINS = 5
"""The number of logins on the page."""
SECRETS = ("API key", "password", "link")
"""The kinds of secrets that the page shows once."""


@attrs.frozen(kw_only=True)
class UserOverview:
    """What the page shows about a user.

    Attributes:
        user: the user.
        keys: the user's API keys.
        entries: the latest entries of the audit trail about the user.
        logins: the user's latest logins; None if logins are not recorded.
        usage: the charts of the user's usage.
    """

    user: User
    keys: Sequence[ApiKey]
    entries: Sequence[AuditEntry]
    logins: Sequence[Login] | None
    usage: UsageOverview


async def show_user(request: PageRequest) -> Response:
    return await user_page(request, user_id_in_path(request))


async def user_page(
    request: PageRequest,
    user_id: UserId,
    status: int = HTTPStatus.OK,
    *,
    errors: Mapping[str, str] | None = None,
) -> Response:
    """Return a user's page.

    Args:
        request: the request.
        user_id: the id of the user.
        status: the status code of the response.
        errors: error messages by form field.

    Raises:
        UserNotFoundError: if no user has this id.
        ServiceUnavailableError: if the database is unavailable.
    """
    overview = await request.runtime.executor.read_page(_read_overview, request, user_id)
    kind, secret, cookies = _take_secret(request, user_id)
    response = render_page(
        request,
        "user.html",
        status,
        **attrs.asdict(overview, recurse=False),
        form={} if errors is None else request.form,
        errors=errors or {},
        secret_kind=kind,
        secret=secret,
        metadata_text=json.dumps(overview.user.metadata.as_dict(), ensure_ascii=False, indent=2),
        plans=request.runtime.users.plans,
        password_rules=request.runtime.users.password_rules,
        nonce=secrets.token_hex(16),
        now=utc_now(),
    )
    for cookie in cookies:
        response.headers.append("Set-Cookie", cookie)
    return response


def redirect_to_secret(request: PageRequest, user: User, kind: str, secret: str, text: str) -> Response:
    """Redirect to the page of a user, which shows a new secret once.

    Args:
        request: the request with the form that made the secret.
        user: the user that the secret belongs to.
        kind: one of `SECRETS`.
        secret: the secret.
        text: the notice, which says what the form did.
    """
    path = f"/users/{user.id}"
    notice = Notice(text, about=path)
    return redirect_with_secret(request, path, name=_secret_name(kind, user.id), secret=secret, notice=notice)


def user_id_in_path(request: PageRequest) -> UserId:
    return requests.parse_user_id(request.http_request.path_params["user_id"])


def errors_by_field(error: InvalidFieldsError) -> dict[str, str]:
    return {field_error.field: field_error.message for field_error in error.errors}


def _read_overview(request: PageRequest, user_id: UserId) -> UserOverview:
    runtime = request.runtime
    return UserOverview(
        user=runtime.users.get(user_id),
        keys=runtime.users.list_api_keys(user_id),
        entries=runtime.users.list_audit_page(limit=RECENT_ENTRIES, matching=AuditFilter(user_id=user_id)),
        logins=None if runtime.logins is None else runtime.logins.list_recent(user_id, limit=RECENT_LOGINS),
        usage=read_overview(runtime.usage, default_days(), user_id),
    )


def _take_secret(request: PageRequest, user_id: UserId) -> tuple[str, str | None, list[str]]:
    """Return the kind of a new secret, the secret or None, and the headers that delete its cookie."""
    for kind in SECRETS:
        secret, cookies = take_secret(request, _secret_name(kind, user_id))
        if secret is not None:
            return kind, secret, cookies
    return "", None, []


def _secret_name(kind: str, user_id: UserId) -> str:
    return f"{kind} of user {user_id}"
