"""Users change their password and their email address."""

from http import HTTPStatus

from starlette.responses import Response

from mlapi.application.deadlines import pause
from mlapi.domain.errors import (
    InvalidCredentialsError,
    InvalidFieldsError,
    PasswordChangedError,
    TooManyAttemptsError,
)
from mlapi.entrypoints.account.access import SIGN_IN_PATH
from mlapi.entrypoints.account.sessions import signed_in, start_session
from mlapi.entrypoints.http.middleware import REJECTION_SECONDS
from mlapi.entrypoints.logs import REQUEST_ID
from mlapi.entrypoints.pages import Notice, PageRequest, redirect, render_page


async def change_password(request: PageRequest) -> Response:
    """Show the form on GET. On POST, change the password, end all other sessions and tokens, and keep this session."""
    if request.is_safe:
        return _form(request, "change_password.html")
    form, user = request.form, signed_in(request).owner
    try:
        changed = await request.runtime.authenticator.change_password(
            user=user,
            current=form.get("current", ""),
            new=form.get("new", ""),
            address=request.address,
            request_id=REQUEST_ID.get(),
        )
    except PasswordChangedError:
        text = "Your password was changed by another request. Sign in with the new one."
        return redirect(request, SIGN_IN_PATH, notice=Notice(text))
    except (InvalidFieldsError, InvalidCredentialsError, TooManyAttemptsError) as error:
        return await _handle_error(request, "change_password.html", error)
    text = "Your password was changed. You are signed out everywhere else, and your API keys still work."
    response = redirect(request, notice=Notice(text))
    response.headers.append("Set-Cookie", await start_session(request, changed))
    return response


async def change_email(request: PageRequest) -> Response:
    """Show the form on GET. On POST, check the password, and change the address or send a link to it."""
    if request.is_safe:
        return _form(request, "change_email.html")
    user, runtime, email = signed_in(request).owner, request.runtime, request.form.get("email", "")
    mailing = runtime.mailing
    try:
        command = request.users.prepare_update(user_id=user.id, email=email)
        password = request.form.get("current", "")
        await runtime.authenticator.check_password(user=user, password=password, address=request.address)
    except (InvalidFieldsError, InvalidCredentialsError, TooManyAttemptsError) as error:
        return await _handle_error(request, "change_email.html", error)
    if mailing is None:
        await runtime.executor.apply(command)
        return redirect(request, notice=Notice(f"Your email address is now {email}."))
    try:
        await runtime.executor.for_client(request.address).query(mailing.verify_new_email, user.id, email)
    except TooManyAttemptsError as error:
        text = f"cannot be changed now: too many requests. Try again in {error.retry_after_seconds} seconds"
        return _form(
            request, "change_email.html", HTTPStatus.TOO_MANY_REQUESTS, {"email": text}, error.retry_after_seconds
        )
    text = f"Open the link in the mail to {email}. Your address changes when you confirm it there."
    return redirect(request, notice=Notice(text))


async def _handle_error(
    request: PageRequest, template: str, error: InvalidFieldsError | InvalidCredentialsError | TooManyAttemptsError
) -> Response:
    if isinstance(error, InvalidFieldsError):
        errors = {field.field: field.message for field in error.errors}
        return _form(request, template, HTTPStatus.UNPROCESSABLE_ENTITY, errors)
    if isinstance(error, InvalidCredentialsError):
        return _form(request, template, HTTPStatus.FORBIDDEN, {"current": "is wrong"})
    await pause(REJECTION_SECONDS)
    errors = {"current": f"cannot be checked now: too many attempts. Try again in {error.retry_after_seconds} seconds"}
    return _form(request, template, HTTPStatus.TOO_MANY_REQUESTS, errors, error.retry_after_seconds)


def _form(
    request: PageRequest,
    template: str,
    status: HTTPStatus = HTTPStatus.OK,
    errors: dict[str, str] | None = None,
    retry_after_seconds: int = 0,
) -> Response:
    return render_page(
        request,
        template,
        status,
        headers=[("Retry-After", str(retry_after_seconds))] if retry_after_seconds else [],
        user=signed_in(request).owner,
        rules=request.users.password_rules,
        form=request.form,
        errors=errors or {},
        sends_mail=request.runtime.mailing is not None,
    )
