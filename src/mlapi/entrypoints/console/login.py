"""Sign in to the console with a manager's token or the admin token, and sign out."""

import logging
from collections.abc import Sequence
from http import HTTPStatus

from starlette.responses import Response

from mlapi.application.sessions import NewSession
from mlapi.bootstrap import AttemptLimits, in_memory_attempts
from mlapi.domain.attempts import Attempt
from mlapi.domain.errors import InvalidTokenError, TooManyAttemptsError
from mlapi.domain.managers import ADMIN, looks_like_manager_token
from mlapi.entrypoints.console.access import LOGIN_PATH
from mlapi.entrypoints.http.browser_sessions import docs_cookies
from mlapi.entrypoints.http.browsers import describe_browser
from mlapi.entrypoints.http.sessions import PageTokens
from mlapi.entrypoints.pages import Notice, PageRequest, redirect, render_page
from mlapi.entrypoints.wire.paths import ACCOUNT_PATH, base_path

MAX_WRONG_TOKENS_PER_MINUTE = 10
"""The limit per process for each IPv4 address or IPv6 /64 network."""

_logger = logging.getLogger("mlapi")


class LoginPage:
    """The page that asks for a token and starts a session."""

    def __init__(self) -> None:
        self._attempts = in_memory_attempts(
            # A limit for each token or name would let an attacker lock a manager out.
            AttemptLimits(per_address=MAX_WRONG_TOKENS_PER_MINUTE, per_name=None, per_name_and_address=None)
        )

    async def __call__(self, request: PageRequest) -> Response:
        if request.session is not None:
            return redirect(request)
        if request.is_safe:
            return _form(request, HTTPStatus.OK)
        address = request.address
        attempt = Attempt(username="", address=address)
        try:
            self._attempts.start(attempt)
            new = await _start_session(request, request.form.get("token", ""))
            if new is None:
                self._attempts.record_failure(attempt)
        except TooManyAttemptsError as error:
            text = f"Too many wrong tokens from this address. Try again in {error.retry_after_seconds} seconds."
            headers = [("Retry-After", str(error.retry_after_seconds))]
            return _form(request, HTTPStatus.TOO_MANY_REQUESTS, text, headers)
        finally:
            self._attempts.end(attempt)
        if new is None:
            _logger.warning("console: wrong token from %s", address)
            return _form(request, HTTPStatus.UNAUTHORIZED, "This token is wrong or has expired.")
        _logger.info("console: %s signed in from %s", new.session.manager, address)
        docs_cookie = PageTokens(request.admin_policy.session_key).docs_cookie(new.session.id)
        return _with_cookies(redirect(request), request, new.secret, docs_cookie)


async def _start_session(request: PageRequest, token: str) -> NewSession | None:
    """Start a session of the manager with this token, and return it. Return None if the token is invalid."""
    epoch = request.admin_policy.session_epoch
    if looks_like_manager_token(token):
        try:
            manager = await request.runtime.managers.identify(token)
        except InvalidTokenError:
            return None
        name, epoch, ends_by = manager.name, manager.digest, manager.expires_datetime
    elif epoch is not None and request.admin_policy.is_admin_token(token):
        name, ends_by = ADMIN.name, None
    else:
        return None
    return await request.runtime.executor.read_page(
        request.runtime.sessions.start,
        manager=name,
        epoch=epoch,
        ends_by=ends_by,
        address=request.address,
        browser=describe_browser(request.client.headers),
    )


async def log_out(request: PageRequest) -> Response:
    """End the session, which is not stored in local mode, and delete the cookies."""
    assert request.session is not None  # noqa: S101 - every page but the login has a session
    await request.runtime.executor.read_page(request.runtime.sessions.end, request.session.id)
    return _with_cookies(redirect(request, LOGIN_PATH, notice=Notice("You are signed out.")), request, "", "")


def _with_cookies(response: Response, request: PageRequest, secret: str, docs_cookie: str) -> Response:
    """Set the cookies of a new session, or delete them if they are empty."""
    cookies = docs_cookies(request.http_request.scope, request.client, docs_cookie)
    for cookie in (request.session_cookie(secret), *cookies):
        response.headers.append("Set-Cookie", cookie)
    return response


def _form(
    request: PageRequest, status: HTTPStatus, error: str = "", headers: Sequence[tuple[str, str]] = ()
) -> Response:
    has_account_pages = request.runtime.has_account_pages
    account = base_path(request.http_request.scope) + ACCOUNT_PATH if has_account_pages else None
    return render_page(request, "login.html", status, headers=headers, error=error, account=account)
