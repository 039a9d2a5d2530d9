"""The first page of the account: state, limits, usage, API keys and recent logins."""

import secrets
from collections.abc import Mapping, Sequence
from http import HTTPStatus

import attrs
from starlette.responses import Response

from mlapi.domain.credentials import ApiKey
from mlapi.domain.errors import ConfigurationError
from mlapi.domain.logins import Login
from mlapi.domain.plans import Plans
from mlapi.domain.users import User
from mlapi.entrypoints.account.sessions import signed_in
from mlapi.entrypoints.http.runtime import Runtime
from mlapi.entrypoints.pages import PageRequest, redirect, render_page
from mlapi.entrypoints.pages.usage import UsageOverview, default_days, read_overview

RECENT_LOGINS = 10
_NONCE_BYTES = 8


@attrs.frozen(kw_only=True)
class _Found:
    keys: Sequence[ApiKey]
    usage: UsageOverview
    logins: Sequence[Login]


async def show_overview(request: PageRequest) -> Response:
    """Show the account."""
    return await overview_page(request)


async def redirect_to_overview(request: PageRequest) -> Response:
    """Redirect from ``/account/`` to ``/account``."""
    return redirect(request)


async def overview_page(
    request: PageRequest, status: HTTPStatus = HTTPStatus.OK, *, errors: Mapping[str, str] | None = None
) -> Response:
    """Return the page.

    Args:
        request: the request of the user. The form for a new API key keeps its values.
        status: the status of the response.
        errors: the messages for the fields of that form.
    """
    user, runtime = signed_in(request).owner, request.runtime
    found = await runtime.executor.read_own(user.id, _read, runtime, user)
    try:
        limits = await runtime.guard.read_limits(user)
    except ConfigurationError:
        limits = ()  # the plan is not in the configuration
    return render_page(
        request,
        "account.html",
        status,
        user=user,
        state=user.state_at(request.users.now()),
        now=request.users.now(),
        plan=_plan_name(request.users.plans, user),
        limits=limits,
        keys=found.keys,
        usage=found.usage,
        logins=found.logins,
        records_logins=runtime.logins is not None,
        max_keys=runtime.own_api_keys,
        nonce=secrets.token_hex(_NONCE_BYTES),
        form=request.form,
        errors=errors or {},
    )


def _read(runtime: Runtime, user: User) -> _Found:
    return _Found(
        keys=runtime.users.list_api_keys(user.id),
        usage=read_overview(runtime.usage, default_days(), user.id),
        logins=[] if runtime.logins is None else runtime.logins.list_recent(user.id, limit=RECENT_LOGINS),
    )


def _plan_name(plans: Plans, user: User) -> str | None:
    try:
        plan = plans.find(user.plan)
    except ConfigurationError:
        return user.plan
    return user.plan if plan is None else plan.name
