"""Responses with pages, redirects and error pages."""

import json
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from functools import cache
from http import HTTPStatus
from typing import TYPE_CHECKING

from starlette.responses import Response

from mlapi.domain.errors import (
    ApiKeyNotFoundError,
    ConfigurationError,
    ManagerNotFoundError,
    MlapiError,
    SearchUnavailableError,
    ServiceUnavailableError,
    UserNotFoundError,
)
from mlapi.entrypoints.http.middleware import logged_error_response
from mlapi.entrypoints.pages.assets import asset_path
from mlapi.entrypoints.pages.notices import Notice, PageNotice
from mlapi.entrypoints.pages.request import PageRequest
from mlapi.entrypoints.wire.paths import DOCS_PATH, base_path

if TYPE_CHECKING:
    from jinja2 import Environment


def render_page(
    request: PageRequest,
    template: str,
    status: int = 200,
    *,
    headers: Iterable[tuple[str, str]] = (),
    **context: object,
) -> Response:
    """Render a template. If an action led to this page, show its notice."""
    cookies = request.notice_cookies
    notice = request.notices.find(cookies)
    manager = None if request.session is None else request.session.manager
    text = (
        _templates(request.site.package)
        .get_template(template)
        .render(
            base=request.base,
            home=request.site.home,
            docs=base_path(request.http_request.scope) + DOCS_PATH,
            asset=lambda name: request.base + asset_path(name),
            session=request.session,
            manager=manager,
            may_change=manager is not None and manager.is_admin,
            mode=request.admin_policy.mode,
            page_path=request.path_and_query,
            flash=PageNotice(
                notice,
                "" if notice is None else request.notices.sign_rendered(notice),
                is_whole_page=not request.is_htmx,
            ),
            **context,
        )
    )
    response = Response(text, status, dict(headers), media_type="text/html; charset=utf-8")
    if cookies:
        response.headers.append("Set-Cookie", request.notice_cookie(None))
    return response


def redirect(request: PageRequest, path: str = "", *, notice: Notice | None = None) -> Response:
    """Redirect to another page of the site, which shows the notice. See `mlapi.entrypoints.pages.notices`.

    The Location header contains no host name, because the Host header of the request may be forged.
    """
    if request.is_htmx and path == request.site.login_path:  # htmx would show the login page inside the current page
        return Response(status_code=HTTPStatus.UNAUTHORIZED, headers={"HX-Redirect": request.base + path})
    response = Response(status_code=HTTPStatus.SEE_OTHER, headers={"Location": request.base + path})
    if notice is not None:
        response.headers.append("Set-Cookie", request.notice_cookie(notice))
    return response


def handle_error(request: PageRequest, error: MlapiError) -> Response:
    """Return the error page for an error that is not shown next to a form field."""
    api_response = logged_error_response(request.http_request, error)
    match error:
        case ManagerNotFoundError(name=name):
            text = f"Manager {name} does not exist or was removed."
        case UserNotFoundError(user_id=user_id):
            text = f"User {user_id} does not exist or was removed."
        case ApiKeyNotFoundError():
            text = "This API key does not exist or was removed."
        case SearchUnavailableError():
            text = f"{error}."
        case ServiceUnavailableError():
            text = "The service is unavailable. Try again in a moment, and check whether your last change was saved."
        case ConfigurationError():
            text = "The service cannot use its database. See the server log for details."
        case _:
            text = f"{str(error)[:1].upper()}{str(error)[1:]}."
    headers = [(name, value) for name, value in api_response.headers if name in {"Retry-After", "Allow"}]
    return error_page(request, api_response.status, text, headers=headers)


def error_page(request: PageRequest, status: int, text: str, *, headers: Iterable[tuple[str, str]] = ()) -> Response:
    login = request.site.login_path if status == HTTPStatus.FORBIDDEN and request.session is None else ""
    title = _TITLES.get(status, HTTPStatus(status).phrase.capitalize())
    return render_page(request, "error.html", status, headers=headers, title=title, text=text, login=login)


HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self';"
        " form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
    ),
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    # With no-referrer, browsers would send "Origin: null" with our forms.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
"""Default headers for every response. A response can override them."""

_TITLES: Mapping[int, str] = {
    HTTPStatus.FORBIDDEN: "Access denied",
    HTTPStatus.NOT_FOUND: "Not found",
    HTTPStatus.UNPROCESSABLE_ENTITY: "Invalid request",
    HTTPStatus.SERVICE_UNAVAILABLE: "Temporarily unavailable",
    HTTPStatus.INTERNAL_SERVER_ERROR: "Internal error",
}


def _to_timedelta(seconds: int) -> timedelta:
    return timedelta(seconds=seconds)


@cache
def _templates(package: str) -> "Environment":
    """Return the templates of a site. They replace shared templates of the same name."""
    from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined  # noqa: PLC0415 - takes 40 ms, so import it on first use

    environment = Environment(
        loader=ChoiceLoader([PackageLoader(package), PackageLoader("mlapi.entrypoints.pages")]),
        autoescape=True,
        undefined=StrictUndefined,
        auto_reload=False,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "parse_json": json.loads,
        "parse_time": datetime.fromisoformat,
        "seconds": _to_timedelta,
    }
    return environment
