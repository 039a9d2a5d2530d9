"""The log-in of token mode: whoever types the admin token gets a session."""

import logging
from functools import cached_property
from http import HTTPStatus

from starlette.responses import Response

from mlapi.bootstrap import AttemptLimits, in_memory_attempts
from mlapi.domain.errors import TooManyAttemptsError
from mlapi.domain.ports import AttemptLimiter
from mlapi.entrypoints.console.pages import LOG_IN, redirect, render_page, set_cookie
from mlapi.entrypoints.console.request import ConsoleRequest
from mlapi.entrypoints.console.sessions import LIFETIME

GUESSES = 10
"""Wrong admin tokens that one address may try in a minute (of IPv6: one /64), in each process."""
_ADMIN = "the admin token"  # stands for a name, as there is but one

_logger = logging.getLogger("mlapi")


class LoginPage:
    """The page on which the admin token is typed."""

    @cached_property
    def _attempts(self) -> AttemptLimiter:
        return in_memory_attempts(AttemptLimits(per_address=GUESSES))  # begins a thread, which no import does

    async def __call__(self, visit: ConsoleRequest) -> Response:
        if visit.management.mode != "token" or visit.session is not None:
            return redirect(visit)
        if visit.is_safe:
            return render_page(visit, "log_in.html", problem=None)
        address = visit.caller.resolve_address(visit.serving.trusted_proxies)
        try:
            was_known = self._attempts.count(_ADMIN, address)
        except TooManyAttemptsError as error:
            text = f"Too many wrong tokens from this address. Try again in {error.retry_after} seconds."
            headers = [("Retry-After", str(error.retry_after))]
            return render_page(visit, "log_in.html", HTTPStatus.TOO_MANY_REQUESTS, headers=headers, problem=text)
        if not visit.management.is_admin_token(visit.form.get("token", "")):
            _logger.warning("console: a wrong admin token from %s", address)
            return render_page(visit, "log_in.html", HTTPStatus.UNAUTHORIZED, problem="This is not the admin token.")
        self._attempts.record_success(_ADMIN, address, was_known=was_known)
        _logger.info("console: log-in from %s", address)
        _session, cookie = visit.sessions.begin()
        return with_session(redirect(visit), visit, cookie, LIFETIME)


async def log_out(visit: ConsoleRequest) -> Response:
    """Delete the cookie, which is all there is of a session."""
    return with_session(redirect(visit, LOG_IN, said="You are logged out."), visit, "", 0)


def with_session(response: Response, visit: ConsoleRequest, cookie: str, lifetime: int) -> Response:
    """Give the browser the cookie of a session, for so many seconds; 0 takes it away."""
    set_cookie(response, visit, "session", cookie, lifetime)
    return response
