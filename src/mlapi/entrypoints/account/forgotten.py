"""Mail a link to users who have forgotten their password."""

from http import HTTPStatus

from starlette.responses import Response

from mlapi.application.deadlines import pause
from mlapi.domain.errors import TooManyAttemptsError
from mlapi.domain.rules import find_username_error
from mlapi.entrypoints.account.access import FORGOTTEN_PATH
from mlapi.entrypoints.http.middleware import REJECTION_SECONDS
from mlapi.entrypoints.pages import PageRequest, error_page, redirect, render_page


async def request_password_link(request: PageRequest) -> Response:
    """Show the form on GET. On POST, queue a link; the answer is the same for unknown users."""
    mailing, address = request.runtime.mailing, request.address
    if mailing is None:
        return error_page(request, HTTPStatus.NOT_FOUND, "There is no page at this address.")
    if request.is_safe:
        return _form(request, is_sent="sent" in request.query_parameters("sent"))
    name = request.form.get("username", "").strip()
    if not name:
        return _form(request, HTTPStatus.UNPROCESSABLE_ENTITY, "must not be empty")
    if find_username_error(name) is None:  # otherwise, no user has this name or address
        try:
            await request.runtime.executor.for_client(address).query(mailing.request_password, name, address)
        except TooManyAttemptsError as error:
            await pause(REJECTION_SECONDS)
            seconds = error.retry_after_seconds
            text = f"cannot be looked up now: too many attempts. Try again in {seconds} seconds"
            return _form(request, HTTPStatus.TOO_MANY_REQUESTS, text, retry_after_seconds=seconds)
    return redirect(request, f"{FORGOTTEN_PATH}?sent=1")


def _form(
    request: PageRequest,
    status: HTTPStatus = HTTPStatus.OK,
    error: str = "",
    *,
    is_sent: bool = False,
    retry_after_seconds: int = 0,
) -> Response:
    return render_page(
        request,
        "forgotten_password.html",
        status,
        headers=[("Retry-After", str(retry_after_seconds))] if retry_after_seconds else [],
        errors={"username": error} if error else {},
        is_sent=is_sent,
    )
