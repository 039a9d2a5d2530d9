"""Sign in to the account with name and password, and sign out."""

from collections.abc import Sequence
from http import HTTPStatus

from starlette.responses import Response

from mlapi.application.deadlines import pause
from mlapi.domain.errors import (
    InvalidCredentialsError,
    TooManyAttemptsError,
    UserDisabledError,
    UserPendingError,
)
from mlapi.domain.users import UserId
from mlapi.entrypoints.account.access import SIGN_IN_PATH
from mlapi.entrypoints.account.sessions import end_session, signed_in, start_session
from mlapi.entrypoints.http.middleware import REJECTION_SECONDS
from mlapi.entrypoints.pages import Notice, PageRequest, redirect, render_page

_PENDING = {
    "email": "Your email address has not been confirmed yet. Open the link in the mail that was sent to it.",
    "email_then_approval": (
        "Your email address has not been confirmed yet. Open the link in the mail that was sent to it."
    ),
    "approval": "Your account has not been approved yet. A manager has to enable it.",
}
_CLEAR_CACHE = ("Clear-Site-Data", '"cache"')
"""Removes pages from the browser's memory: the Back button must not show them after signing out."""


async def sign_in(request: PageRequest) -> Response:
    """Show the form on GET; start a session on POST."""
    if request.session is not None:
        return redirect(request)
    if request.is_safe:
        return _form(request, HTTPStatus.OK)
    username = request.form.get("username", "")
    try:
        user = await request.runtime.authenticator.sign_in(
            username=username, password=request.form.get("password", ""), address=request.address
        )
    except (InvalidCredentialsError, TooManyAttemptsError, UserDisabledError, UserPendingError) as error:
        return await _rejected(request, username, error)
    response = redirect(request)
    response.headers.append("Set-Cookie", await start_session(request, user))
    return response


async def sign_out(request: PageRequest) -> Response:
    """End this session."""
    await end_session(request)
    return _signed_out(request, "You are signed out.")


async def sign_out_everywhere(request: PageRequest) -> Response:
    """Ask for confirmation on GET; end all sessions and tokens of the user on POST."""
    if request.is_safe:
        return render_page(request, "sign_out_everywhere.html")
    user = signed_in(request).owner
    await request.runtime.executor.apply(request.users.prepare_end_tokens(user_id=user.id))
    return _signed_out(request, "You are signed out everywhere. Your API keys still work.")


def _signed_out(request: PageRequest, text: str) -> Response:
    response = redirect(request, SIGN_IN_PATH, notice=Notice(text))
    response.headers.append("Set-Cookie", request.session_cookie(""))
    response.headers.append(*_CLEAR_CACHE)
    return response


async def _rejected(
    request: PageRequest,
    username: str,
    error: InvalidCredentialsError | TooManyAttemptsError | UserDisabledError | UserPendingError,
) -> Response:
    match error:
        case TooManyAttemptsError(retry_after_seconds=seconds):
            await pause(REJECTION_SECONDS)
            text = f"Too many attempts. Try again in {seconds} seconds."
            return _form(request, HTTPStatus.TOO_MANY_REQUESTS, text, username, [("Retry-After", str(seconds))])
        case UserDisabledError():
            text = "Your account is disabled. Ask the people who run this service to enable it."
            return _form(request, HTTPStatus.FORBIDDEN, text, username)
        case UserPendingError():
            return _form(request, HTTPStatus.FORBIDDEN, await _describe_pending(request, error), username)
    return _form(request, HTTPStatus.UNAUTHORIZED, "The username or the password is wrong.", username)


async def _describe_pending(request: PageRequest, error: UserPendingError) -> str:
    user_id = UserId(error.user_id)
    user = await request.runtime.executor.read_own(user_id, request.runtime.users.get, user_id)
    return _PENDING[user.pending or "approval"]


def _form(
    request: PageRequest,
    status: HTTPStatus,
    error: str = "",
    username: str = "",
    headers: Sequence[tuple[str, str]] = (),
) -> Response:
    return render_page(
        request,
        "sign_in.html",
        status,
        headers=headers,
        error=error,
        username=username,
        can_reset=request.runtime.mailing is not None,
    )
