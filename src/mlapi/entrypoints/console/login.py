"""Log in to the console with the admin token, and log out."""

import logging
from http import HTTPStatus

from starlette.responses import Response

from mlapi.bootstrap import AttemptLimits, in_memory_attempts
from mlapi.domain.attempts import Attempt
from mlapi.domain.errors import TooManyAttemptsError
from mlapi.entrypoints.console.access import LOGIN_PATH
from mlapi.entrypoints.http.browser_sessions import docs_cookies
from mlapi.entrypoints.http.sessions import Session
from mlapi.entrypoints.pages import Notice, PageRequest, redirect, render_page

MAX_WRONG_TOKENS_PER_MINUTE = 10
"""The limit per process for each IPv4 address or IPv6 /64 network."""

_logger = logging.getLogger("mlapi")


class LoginPage:
    """The page that asks for the admin token and starts a session."""

    def __init__(self) -> None:
        self._attempts = in_memory_attempts(
            # All admins share one token, so a limit for the token would let an attacker lock them out.
            AttemptLimits(per_address=MAX_WRONG_TOKENS_PER_MINUTE, per_name=None, per_name_and_address=None)
        )

    async def __call__(self, request: PageRequest) -> Response:
        if request.admin_policy.mode != "token" or request.session is not None:
            return redirect(request)
        if request.is_safe:
            return render_page(request, "login.html", error=None)
        address = request.address
        attempt = Attempt(username="", address=address)
        try:
            self._attempts.start(attempt)
            is_right = request.admin_policy.is_admin_token(request.form.get("token", ""))
            if not is_right:
                self._attempts.record_failure(attempt)
        except TooManyAttemptsError as error:
            text = f"Too many wrong tokens from this address. Try again in {error.retry_after_seconds} seconds."
            headers = [("Retry-After", str(error.retry_after_seconds))]
            return render_page(request, "login.html", HTTPStatus.TOO_MANY_REQUESTS, headers=headers, error=text)
        finally:
            self._attempts.end(attempt)
        if not is_right:
            _logger.warning("console: wrong admin token from %s", address)
            return render_page(request, "login.html", HTTPStatus.UNAUTHORIZED, error="The admin token is wrong.")
        _logger.info("console: login from %s", address)
        session, cookie = request.sessions.create()
        return _set_all_cookies(redirect(request), request, session, cookie)


async def log_out(request: PageRequest) -> Response:
    """Delete the cookies. Sessions are not stored on the server."""
    return _set_all_cookies(redirect(request, LOGIN_PATH, notice=Notice("You have signed out.")), request, None, "")


def _set_all_cookies(response: Response, request: PageRequest, session: Session | None, cookie: str) -> Response:
    """Set the cookies of a new session, or delete them."""
    cookies = docs_cookies(request.http_request.scope, request.client, request.sessions, session)
    for set_cookie in (request.session_cookie(cookie), *cookies):
        response.headers.append("Set-Cookie", set_cookie)
    return response
