"""Answers of the console: its pages, redirects and refusals."""

from collections.abc import Iterable, Mapping
from functools import cache
from http import HTTPStatus
from typing import TYPE_CHECKING

from starlette.responses import Response

from mlapi.domain.errors import (
    ApiKeyNotFoundError,
    ConfigurationError,
    MlapiError,
    ServiceUnavailableError,
    UserNotFoundError,
)
from mlapi.entrypoints.console.assets import asset_path
from mlapi.entrypoints.console.request import ConsoleRequest
from mlapi.entrypoints.console.sessions import SAID_FOR
from mlapi.entrypoints.http.middleware import logged_error_response

if TYPE_CHECKING:
    from jinja2 import Environment


def render_page(
    visit: ConsoleRequest,
    template: str,
    status: int = 200,
    *,
    headers: Iterable[tuple[str, str]] = (),
    **context: object,
) -> Response:
    """Return a page, with what the one before had to say."""
    said = visit.cookie("said")
    text = (
        _templates()
        .get_template(template)
        .render(
            base=visit.base,
            asset=lambda name: visit.base + asset_path(name),
            session=visit.session,
            mode=visit.management.mode,
            said=visit.sessions.opened(said),
            **context,
        )
    )
    response = Response(text, status, dict(headers), media_type="text/html; charset=utf-8")
    if said:
        set_cookie(response, visit, "said", "", 0)
    return response


def redirect(visit: ConsoleRequest, path: str = "", *, said: str = "") -> Response:
    """Lead to another page of the console by GET; that page will say ``said``.

    The address names no host: the one that the client has sent may be anybody's.
    """
    if visit.is_partial and path == LOG_IN:  # a part of the page cannot become the log-in
        return Response(status_code=HTTPStatus.UNAUTHORIZED, headers={"HX-Redirect": visit.base + path})
    response = Response(status_code=HTTPStatus.SEE_OTHER, headers={"Location": visit.base + path})
    if said:
        set_cookie(response, visit, "said", visit.sessions.sealed(said), SAID_FOR)
    return response


def refused(visit: ConsoleRequest, error: MlapiError) -> Response:
    """Return the page of whatever our code raises on purpose and no form shows by its field."""
    answer = logged_error_response(visit.request, error)
    match error:
        case UserNotFoundError(user_id=user_id):
            text = f"There is no user {user_id}, or no longer."
        case ApiKeyNotFoundError():
            text = "This user has no such API key, or no longer."
        case ServiceUnavailableError():
            text = (
                "The users cannot be reached now. Try again in a moment; then look whether your last change was made."
            )
        case ConfigurationError():
            text = "The service cannot use its database. Its log says what to do."
        case _:
            text = f"{str(error)[:1].upper()}{str(error)[1:]}."
    headers = [(name, value) for name, value in answer.headers if name in {"Retry-After", "Allow"}]
    return problem(visit, answer.status, text, headers=headers)


def problem(visit: ConsoleRequest, status: int, text: str, *, headers: Iterable[tuple[str, str]] = ()) -> Response:
    title = _TITLES.get(status, HTTPStatus(status).phrase.capitalize())
    return render_page(visit, "problem.html", status, headers=headers, title=title, text=text)


def set_cookie(response: Response, visit: ConsoleRequest, name: str, value: str, lifetime: int) -> None:
    """Give the browser a cookie for the console alone, for so many seconds; 0 takes it away."""
    secure = "; Secure" if visit.caller.scheme == "https" else ""
    response.headers.append(
        "Set-Cookie",
        f"{visit.cookie_name(name)}={value}; Path={visit.base}; Max-Age={lifetime}; HttpOnly; SameSite=Strict{secure}",
    )


LOG_IN = "/log-in"
HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self';"
        " form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
    ),
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    # Not no-referrer: with that a browser says `Origin: null` of our own forms.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
"""Of every answer, unless it has its own."""

_TITLES: Mapping[int, str] = {
    HTTPStatus.FORBIDDEN: "Closed",
    HTTPStatus.NOT_FOUND: "Not found",
    HTTPStatus.UNPROCESSABLE_ENTITY: "Not understood",
    HTTPStatus.SERVICE_UNAVAILABLE: "Away for a moment",
    HTTPStatus.INTERNAL_SERVER_ERROR: "A fault of ours",
}


@cache
def _templates() -> "Environment":
    from jinja2 import Environment, PackageLoader, StrictUndefined  # noqa: PLC0415 - 40 ms, for whoever opens a page

    return Environment(
        loader=PackageLoader("mlapi.entrypoints.console"),
        autoescape=True,
        undefined=StrictUndefined,
        auto_reload=False,
        trim_blocks=True,
        lstrip_blocks=True,
    )
